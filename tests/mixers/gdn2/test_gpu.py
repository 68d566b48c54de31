"""GDN-2's kernels at the sizes of the paper's models, across modules. Needs a GPU and is skipped elsewhere."""

import pytest
import torch

from mixers.gdn2 import gated_delta_rule_2
from suites.bench.gpu_short import BOUNDS
from tests.mixers.gdn2.cases import DECAYS, errors, evaluate, inputs, worst

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

# Hardware rounds where the interpreter truncates, so the bounds for 16 bits are half of those in test_chunk. fp32 has
# bounds of its own on a GPU, where products are in tf32x3.
OUTPUT, GRADIENT = BOUNDS[torch.float32]
OUTPUT_STEPS, GRADIENT_STEPS = 1, 2


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads,value_heads,K,V", [(2, 2, 128, 128), (2, 4, 64, 64), (1, 1, 256, 256), (1, 3, 80, 48)])
def test_outputs_and_gradients(decay: str, dtype: torch.dtype, heads: int, value_heads: int, K: int, V: int) -> None:
    x = inputs(300, batch=2, heads=heads, value_heads=value_heads, K=K, V=V, decay=decay, dtype=dtype, device="cuda")
    output, gradient = worst(measured := errors(x, torch.finfo(dtype).smallest_normal))
    if dtype == torch.float32:
        assert output < OUTPUT, measured
        assert gradient < GRADIENT, measured
    else:
        assert output < OUTPUT_STEPS * torch.finfo(dtype).eps, measured
        assert gradient < GRADIENT_STEPS * torch.finfo(dtype).eps, measured


@pytest.mark.parametrize("K", [64, 128, 256])
def test_normalisation_and_activations_inside(K: int) -> None:
    x = inputs(200, heads=2, value_heads=2, K=K, V=K, device="cuda", unit=False)
    x["g"], x["b"], x["w"] = x["g"] * 3 + 2, x["b"] * 8 - 4, x["w"] * 8 - 4
    x |= {"A_log": torch.tensor([0.1, 2.5], device="cuda"), "dt_bias": torch.linspace(-7, 1, 2 * K, device="cuda")}
    output, gradient = worst(measured := errors(x, use_qk_l2norm=True))
    assert output < OUTPUT, measured
    assert gradient < GRADIENT, measured


def test_packed_sequences() -> None:
    offsets = torch.tensor([0, 1, 64, 193, 450, 600], device="cuda")
    x = inputs(600, heads=2, value_heads=2, K=128, V=128, sequences=5, decay="brutal", device="cuda")
    output, gradient = worst(measured := errors(x, cu_seqlens=offsets))
    assert output < OUTPUT, measured
    assert gradient < GRADIENT, measured


@pytest.mark.parametrize("batch", [1, 64, 300])
def test_decoding(batch: int) -> None:
    x = inputs(3, batch=batch, heads=4, value_heads=4, K=128, V=128, device="cuda")
    with torch.no_grad():
        o, state = gated_delta_rule_2(**x, output_final_state=True, backend="triton")
    exact, last = gated_delta_rule_2(
        **{name: t.double() for name, t in x.items()}, output_final_state=True, backend="recurrent"
    )
    assert ((o - exact).norm() / exact.norm()).item() < OUTPUT
    assert ((state - last).norm() / last.norm()).item() < OUTPUT


def test_the_same_bits_every_time() -> None:
    x = inputs(1000, batch=2, heads=4, value_heads=4, K=128, V=128, dtype=torch.bfloat16, device="cuda")
    first, second = (evaluate(x, backend="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_offsets_beyond_32_bits() -> None:
    # v has more than 2^31 elements: 140K tokens of 64 value heads of 256. The last 64 tokens are compared.
    steps, heads, width = 140_000, 64, 256
    torch.manual_seed(0)
    q, k = (
        torch.nn.functional.normalize(torch.randn(1, steps, heads, 16, device="cuda", dtype=torch.bfloat16), dim=-1)
        for _ in range(2)
    )
    v = torch.randn(1, steps, heads, width, device="cuda", dtype=torch.bfloat16)
    g = torch.full((1, steps, heads, 16), -1.0, device="cuda")
    b, w = torch.full_like(k, 0.5), torch.full_like(v, 0.5)
    with torch.no_grad():
        o, _ = gated_delta_rule_2(q, k, v, g, b, w, backend="triton")
        # After 256 tokens of α = exp(-1) nothing is left of earlier tokens.
        tail = [x[:, -320:].double() for x in (q, k, v, g, b, w)]
        exact, _ = gated_delta_rule_2(*tail, backend="recurrent")
    last, exact = o[:, -64:].double(), exact[:, -64:]
    assert ((last - exact).norm() / exact.norm()).item() < torch.finfo(torch.bfloat16).eps
