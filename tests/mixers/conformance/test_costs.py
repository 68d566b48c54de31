"""Each wrong declaration of a mixer's cost is caught by the check that is made for it, and by no other."""

import pytest

from mixers.interface import Cost, Mixer
from tests.mixers.conformance.decay import D, Decay, failed, findings


class MisdeclaresParameters(Decay):
    def cost(self, seq_len):
        return Cost(**vars(super().cost(seq_len)) | {"parameters": 2 * D * D})


class DeclaresLessState(Decay):
    def cost(self, seq_len):
        return Cost(**vars(super().cost(seq_len)) | {"state_floats": D // 2})


class DeclaresMoreState(Decay):
    def cost(self, seq_len):
        return Cost(**vars(super().cost(seq_len)) | {"state_floats": 2 * D})


class DeclaresFewerFlops(Decay):
    def cost(self, seq_len):
        return Cost(**vars(super().cost(seq_len)) | {"flops_per_token": D * D, "decode_flops": D * D})


class DeclaresMoreFlops(Decay):
    def cost(self, seq_len):
        return Cost(**vars(super().cost(seq_len)) | {"flops_per_token": 8.0 * D * D, "decode_flops": 8.0 * D * D})


class DeclaresAnotherMean(Decay):
    def cost(self, seq_len):
        cost = super().cost(seq_len)
        return Cost(**vars(cost) | {"flops_per_token": cost.flops_per_token / 2})


class DeclaresFewerBytes(Decay):
    def cost(self, seq_len):
        return Cost(**vars(super().cost(seq_len)) | {"decode_bytes": 2 * D})


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (MisdeclaresParameters, "cost: parameters"),
        (DeclaresLessState, "cost: state"),
        (DeclaresMoreState, "cost: state"),
        (DeclaresFewerFlops, "cost: products"),
        (DeclaresMoreFlops, "cost: FLOPs"),
        (DeclaresAnotherMean, "cost: mean"),
        (DeclaresFewerBytes, "cost: bytes"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_wrong_cost_is_caught_by_its_check_alone(cls: type[Mixer], check: str) -> None:
    assert failed(cls) == {check}


def test_a_wrong_cost_is_reported_next_to_the_measured_one() -> None:
    finding = findings(MisdeclaresParameters)["cost: parameters"]
    assert finding.measured == D  # 2 D² weights and D decays exist
    assert finding.detail == f"declared {2 * D * D:,}, there are {2 * D * D + D:,}"
