"""The decoding kernel alone: one launch against the equations, and how it is split over a GPU."""

import torch

from mixers.gdn2.kernels.recurrent import RECURRENT_STEPS
from tests.mixers.gdn2.cases import DEVICE, inputs


def test_one_step_is_decay_erase_write_and_read() -> None:
    x = inputs(1, value_heads=1, K=16, V=16, device=DEVICE)
    q, k, v, g, b, w = (x[name][0, 0, 0] for name in "qkvgbw")
    state, offsets = x["initial_state"], torch.tensor([0, 1], device=DEVICE)
    o, final = torch.empty_like(x["v"]), torch.empty_like(state)
    RECURRENT_STEPS(
        lambda meta: (1,),
        **{name: x[name] for name in "qkvgbw"}, A_log=None, dt_bias=None, initial=state, sequence_start=offsets,
        o=o, final=final, scale=0.5, erase_range=1.0, H=1, HV=1, K=16, V=16, KP=16,
        NORM=False, ACTIVATE=False, HAS_INITIAL=True,
    )  # fmt: skip
    decayed = g.exp()[:, None] * state[0, 0]
    expected = decayed + torch.outer(k, w * v - decayed.T @ (b * k))
    torch.testing.assert_close(final[0, 0], expected)
    torch.testing.assert_close(o[0, 0, 0], 0.5 * expected.T @ q)


def test_blocks_of_v_are_at_most_32_wide() -> None:
    for value_dim, block in ((16, 16), (24, 32), (128, 32)):
        (candidate,) = RECURRENT_STEPS.candidates({"V": value_dim}, 90)
        assert candidate.kwargs == {"BV": block}
