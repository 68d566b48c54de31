"""The kernel of all gradients: its launch and cost. Its numbers are tested with the operator, in test_chunk."""

import torch

from mixers.gdn2 import gated_delta_rule_2
from mixers.gdn2.kernels.gradients import CHUNK_GRADIENTS
from mixers.gdn2.kernels.launch import Launch, recording
from tests.mixers.gdn2.cases import inputs


def launch(dtype: torch.dtype = torch.bfloat16, K: int = 64, V: int = 64) -> Launch:
    x = {name: t.to("meta").requires_grad_() for name, t in inputs(64, heads=2, K=K, V=V, dtype=dtype).items()}
    with recording() as launches:
        o, _ = gated_delta_rule_2(**x, backend="triton")
        o.backward(torch.empty_like(o))
    (found,) = [made for made in launches if made.kernel is CHUNK_GRADIENTS]
    return found


def blocks(capability: int, **options: object) -> dict[str, int]:
    (candidate,) = CHUNK_GRADIENTS.candidates(launch(**options).arguments, capability)
    return {name: candidate.kwargs[name] for name in ("BK", "BV")}


def test_every_input_gets_a_gradient_in_its_own_shape() -> None:
    arguments = launch().arguments
    for name in "qkvgbw":
        assert arguments[f"d{name}"].shape == arguments[name].shape


def test_flops_are_those_of_the_products_in_a_chunk() -> None:
    # One chunk of 64; two key and value heads of 64: dAqk and dT, three products with states, four below the diagonal.
    assert launch().flops == 2 * 64 * (4 * 64 * 64 + 6 * 64 * 64) + 2 * 4 * 64 * 64 * 64


def test_blocks_depend_on_the_gpu_the_dtype_and_the_sizes() -> None:
    assert blocks(90) == {"BK": 32, "BV": 32}
    assert blocks(80) == {"BK": 16, "BV": 32}
    assert blocks(90, dtype=torch.float32) == {"BK": 16, "BV": 16}
    assert blocks(90, K=80, V=48) == {"BK": 32, "BV": 16}  # masks of sizes that 32 does not divide take registers
    assert blocks(90, K=16) == {"BK": 16, "BV": 16}
