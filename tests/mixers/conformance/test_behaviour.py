"""Each broken promise of a mixer's behaviour is caught by the checks that are made for it, and by no other."""

import pytest
import torch
from torch import nn

from mixers.interface import Mixer
from tests.mixers.conformance.decay import Decay, failed, findings


class LeaksTheFuture(Decay):
    def mix(self, x, state, return_state):
        y, after = super().mix(x, state, return_state)
        return y + 0.1 * x.mean(1, keepdim=True), after


class LeaksOnlyGradients(Decay):
    def mix(self, x, state, return_state):
        y, after = super().mix(x, state, return_state)
        last = x[:, -1:]
        return y + (last - last.detach()), after


class ForgetsItsState(Decay):
    def mix(self, x, state, return_state):
        return super().mix(x, None, return_state)


class MixesPackedDocuments(Decay):
    def forward(self, x, state=None, cu_seqlens=None, return_state=False):
        if cu_seqlens is None:
            return super().forward(x, state, None, return_state)
        y = super().forward(x)[0]
        return y, super().forward(x, state, cu_seqlens, True)[1]


class PacksWithoutTheState(Decay):
    def forward(self, x, state=None, cu_seqlens=None, return_state=False):
        return super().forward(x, None if cu_seqlens is not None else state, cu_seqlens, return_state)


class ModifiesTheGivenState(Decay):
    def mix(self, x, state, return_state):
        y, after = super().mix(x, state, return_state)
        if state is not None and not torch.is_grad_enabled():
            state["recurrent"].copy_(after["recurrent"])
        return y, after


class DependsOnOtherRows(Decay):
    def mix(self, x, state, return_state):
        y, after = super().mix(x, state, return_state)
        return y - 0.1 * y.mean(0, keepdim=True), after


class IsNondeterministic(Decay):
    def mix(self, x, state, return_state):
        y, after = super().mix(x, state, return_state)
        return y + 1e-12 * torch.randn_like(y) if x.dtype == torch.float64 else y + 1e-3 * torch.randn_like(y), after


class DetachesAGradient(Decay):
    def mix(self, x, state, return_state):
        y, after = super().mix(x, state, return_state)
        return y + (0.5 * y - (0.5 * y).detach()), after


class LeavesAParameterOut(Decay):
    def __init__(self, d_model, config):
        super().__init__(d_model, config)
        self.unused = nn.Parameter(torch.zeros(d_model))


class DetachesTheState(Decay):
    def mix(self, x, state, return_state):
        return super().mix(x, state and {"recurrent": state["recurrent"].detach()}, return_state)


class KeepsA16BitState(Decay):
    def mix(self, x, state, return_state):
        y, after = super().mix(x, state, return_state)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.bfloat16
        return y, after and {"recurrent": after["recurrent"].to(dtype)}


RESUMES = {"pieces", "inputs left alone", "gradients", "long input", "cost: products", "cost: FLOPs"}
"""Checks that resume from a state, which `Mixer.forward` refuses if it is not batch-first."""


class KeepsTheBatchSecond(Decay):
    def mix(self, x, state, return_state):
        y, after = super().mix(x, state and {"recurrent": state["recurrent"].T}, return_state)
        return y, after and {"recurrent": after["recurrent"].T}


class GrowsItsState(Decay):
    """Keeps all its inputs without need."""

    def mix(self, x, state, return_state):
        y, after = super().mix(x, state, return_state)
        if after is not None:
            seen = x.detach() if state is None else torch.cat([state["seen"], x.detach()], 1)
            after["seen"] = seen.to(torch.int8)
        return y, after

    @staticmethod
    def cat_states(states):
        longest = max(s["seen"].shape[1] for s in states)
        padded = [torch.nn.functional.pad(s["seen"], (0, 0, longest - s["seen"].shape[1], 0)) for s in states]
        return {"recurrent": torch.cat([s["recurrent"] for s in states]), "seen": torch.cat(padded)}


class ComputesIn32Bits(Decay):
    def mix(self, x, state, return_state):
        y, after = super().mix(x, state, return_state)
        return y.float().to(y.dtype), after


class ScalesBf16Wrongly(Decay):
    def mix(self, x, state, return_state):
        y, after = super().mix(x, state, return_state)
        return (y * 1.1 if y.dtype == torch.bfloat16 else y), after


class TakesAnyWidth(Decay):
    def forward(self, x, state=None, cu_seqlens=None, return_state=False):
        return super().forward(x[..., : self.d_model], state, cu_seqlens, return_state)


class ReturnsAStateUnasked(Decay):
    def mix(self, x, state, return_state):
        return super().mix(x, state, True)


class OverflowsOnLongInputs(Decay):
    def mix(self, x, state, return_state):
        y, after = super().mix(x, state, True)
        after["count"] = torch.full((x.shape[0],), x.shape[1]) + (0 if state is None else state["count"])
        return torch.where((after["count"] > 400)[:, None, None], torch.inf, y), after if return_state else None


class FailsOnThreeTokens(Decay):
    def mix(self, x, state, return_state):
        if x.shape[1] == 3:
            raise IndexError("three\nis a crowd")
        return super().mix(x, state, return_state)


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        # An output that depends on later tokens also changes when they come in another piece or as padding.
        (LeaksTheFuture, {"causality", "causality of gradients", "pieces", "padding", "lengths"}),
        (ForgetsItsState, {"pieces"}),
        (MixesPackedDocuments, {"packing"}),
        (PacksWithoutTheState, {"packing"}),
        (ModifiesTheGivenState, {"inputs left alone"}),
        # Packed sequences of one length run as one batch, and joined states decode as one batch.
        (DependsOnOtherRows, {"batch", "packing", "states of beams"}),
        (IsNondeterministic, {"determinism"}),
        (DetachesAGradient, {"gradients"}),
        (DetachesTheState, {"gradients"}),
        (LeavesAParameterOut, {"every parameter learns"}),
        (LeaksOnlyGradients, {"causality of gradients", "gradients"}),
        (KeepsA16BitState, {"accumulators in fp32"}),
        (KeepsTheBatchSecond, {"shapes and dtypes", "packing", "states of beams"} | RESUMES),
        (GrowsItsState, {"long input"}),
        (OverflowsOnLongInputs, {"long input"}),
        (ComputesIn32Bits, {"gradients"}),
        (ScalesBf16Wrongly, {"bf16"}),
        (TakesAnyWidth, {"shapes and dtypes"}),
        (ReturnsAStateUnasked, {"shapes and dtypes"}),
        (FailsOnThreeTokens, {"lengths", "gradients"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_promise_is_caught_by_its_check(cls: type[Mixer], expected: set[str]) -> None:
    assert failed(cls) == expected


def test_a_fail_says_where_and_by_how_much() -> None:
    finding = findings(LeaksTheFuture)["causality"]
    assert finding.measured > 0.001 > finding.bound and "before token" in finding.detail
    assert findings(FailsOnThreeTokens)["lengths"].detail == "IndexError: three"
    assert findings(DetachesTheState)["gradients"].detail.startswith("state['recurrent']: ")
    assert findings(LeavesAParameterOut)["every parameter learns"].detail == "unused: receives no gradient"
