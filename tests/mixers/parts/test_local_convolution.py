"""The convolution before every mixer: its equation, its cost, and everything that the interface promises."""

import torch
import torch.nn.functional as F

from mixers.conformance import conform, render
from mixers.parts.local_convolution import CONV_TAIL, LocalConvolution
from tests.mixers.interpreter import upstream_kernels


def test_it_is_the_silu_of_a_weighted_sum_over_the_last_tokens() -> None:
    torch.manual_seed(0)
    convolution, x = LocalConvolution(8, 3).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    weight = convolution.conv1d.weight[:, 0]  # the last column is the present token's
    before = torch.cat([torch.zeros(2, 2, 8, dtype=torch.float64), x], 1)
    summed = sum(weight[:, i] * before[:, i : i + 5] for i in range(3))
    y, state = convolution(x, return_state=True)
    torch.testing.assert_close(y, F.silu(summed))
    assert torch.equal(state[CONV_TAIL], x[:, -2:])


def test_it_keeps_what_the_interface_promises() -> None:
    with upstream_kernels():  # fla's convolution, under Triton's interpreter where there is no GPU
        results = conform(lambda: LocalConvolution(16, 3), long_tokens=1000)
    # Two checks want a recurrent state; this mixer declares none, since tails do not count.
    assert {f.check for f in results if f.status == "fail"} == {"cost: state", "long input"}, render(results)


def test_a_token_costs_a_multiply_add_per_weight() -> None:
    cost = LocalConvolution(16, 3).cost(100)
    assert (cost.parameters, cost.state_floats) == (48, 0)
    assert cost.flops_per_token == cost.decode_flops == 2 * 48
    assert cost.decode_bytes == 2 * 2 * 2 * 16  # two inputs of bf16 in and out
