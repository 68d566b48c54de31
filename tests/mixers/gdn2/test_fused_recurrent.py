"""GDN-2's decoding kernel against the float64 recurrence, on a GPU or under Triton's interpreter on a CPU."""

import pytest
import torch

from mixers.gdn2 import gated_delta_rule_2
from tests.mixers.gdn2.cases import DECAYS, DEVICE, OUTPUT, inputs


@pytest.mark.parametrize("decay", DECAYS)
def test_decoding_is_exact_and_resumes_where_it_stopped(decay: str) -> None:
    x = inputs(7, batch=3, heads=2, value_heads=4, K=20, V=40, decay=decay, device=DEVICE)
    exact, last = gated_delta_rule_2(
        **{name: t.double() for name, t in x.items()}, output_final_state=True, backend="recurrent"
    )
    state = x.pop("initial_state")
    outputs = []
    with torch.no_grad():
        for span in (slice(0, 3), slice(3, 4), slice(4, 7)):
            piece = {name: t[:, span] for name, t in x.items()}
            o, state = gated_delta_rule_2(**piece, initial_state=state, output_final_state=True, backend="triton")
            outputs.append(o)
    assert ((torch.cat(outputs, 1) - exact).norm() / exact.norm()).item() < OUTPUT
    assert ((state - last).norm() / last.norm()).item() < OUTPUT


def test_decoding_packed_with_activations_equals_the_chunks() -> None:
    x = inputs(12, sequences=3, K=16, V=16, device=DEVICE, unit=False)
    x |= {"A_log": torch.tensor([0.5], device=DEVICE), "dt_bias": torch.linspace(-3, 1, 16, device=DEVICE)}
    options = dict(cu_seqlens=torch.tensor([0, 1, 9, 12], device=DEVICE), use_qk_l2norm=True, output_final_state=True)
    with torch.no_grad():
        o, state = gated_delta_rule_2(**x, **options, backend="triton")
    chunks, left = gated_delta_rule_2(**x | {"q": x["q"].requires_grad_()}, **options, backend="triton")
    assert ((o - chunks).norm() / chunks.norm()).item() < OUTPUT
    assert ((state - left).norm() / left.norm()).item() < OUTPUT


@pytest.mark.parametrize("steps", [1, 40])
def test_a_state_is_updated_in_place_only_when_asked(steps: int) -> None:
    x = inputs(steps, K=16, V=16, device=DEVICE)
    before = x["initial_state"].clone()
    with torch.no_grad():
        _, fresh = gated_delta_rule_2(**x, output_final_state=True, backend="triton")
        assert torch.equal(x["initial_state"], before)
        _, same = gated_delta_rule_2(**x, output_final_state=True, update_state=True, backend="triton")
    assert same is x["initial_state"]
    assert torch.equal(same, fresh)
