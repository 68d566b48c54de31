"""The kernels of gradients: launches and costs. Their numbers are tested with the operator, in test_chunk."""

import torch

from mixers.gdn2 import gated_delta_rule_2
from mixers.gdn2.kernels.gradients import CHUNK_GRADIENTS
from mixers.gdn2.kernels.launch import Kernel, Launch, recording
from mixers.gdn2.kernels.state_gradients import STATE_GRADIENTS
from tests.mixers.gdn2.cases import inputs


def launch(kernel: Kernel, dtype: torch.dtype = torch.bfloat16, K: int = 64, V: int = 64) -> Launch:
    x = {name: t.to("meta").requires_grad_() for name, t in inputs(64, heads=2, K=K, V=V, dtype=dtype).items()}
    with recording() as launches:
        o, _ = gated_delta_rule_2(**x, backend="triton")
        o.backward(torch.empty_like(o))
    (found,) = [made for made in launches if made.kernel is kernel]
    return found


def blocks(kernel: Kernel, **options: object) -> set[tuple[int, ...]]:
    candidates = kernel.candidates(launch(kernel, **options).arguments, 90)
    return {(*candidate.kwargs.values(), candidate.num_warps, candidate.num_stages) for candidate in candidates}


def test_every_input_gets_a_gradient_in_its_own_shape() -> None:
    for kernel, names in ((STATE_GRADIENTS, "vw"), (CHUNK_GRADIENTS, "qkgb")):
        arguments = launch(kernel).arguments
        for name in names:
            assert arguments[f"d{name}"].shape == arguments[name].shape


def test_flops_are_those_of_the_products_in_a_chunk() -> None:
    # One chunk of 64; two key and value heads of 64: dAqk and dT, three products with states; four below the diagonal.
    assert launch(STATE_GRADIENTS).flops == 2 * 64 * (4 * 64 * 64 + 6 * 64 * 64)
    assert launch(CHUNK_GRADIENTS).flops == 2 * 4 * 64 * 64 * 64


def test_blocks_depend_on_the_dtype_and_the_sizes() -> None:
    assert blocks(STATE_GRADIENTS) == {(32, 4, 2), (32, 4, 3), (64, 4, 2)}
    assert blocks(STATE_GRADIENTS, dtype=torch.float32) == {(32, 4, 1)}
    assert blocks(STATE_GRADIENTS, V=16) == {(16, 4, 2), (16, 4, 3)}
    assert blocks(CHUNK_GRADIENTS) == {(16, 4, 1), (32, 8, 1)}
    assert blocks(CHUNK_GRADIENTS, K=16) == {(16, 4, 1), (16, 8, 1)}
