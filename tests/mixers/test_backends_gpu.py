"""On a GPU in bf16: every mixer's kernels against its authors' layer and the float64 form of the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixers import build_mixer
from mixers.backends import reasons
from mixers.interface import Mixer
from mixers.upstream import to_upstream

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

GPU = torch.device("cuda")
D = 512
DELTA = {"heads": 4, "head_dim": 128}
SSM = {"d_inner": 1024, "head_dim": 64, "d_state": 64}
OPTIONS = {
    "gdn2": DELTA | {"output_gate": "sigmoid"},  # the only gate that fla's layer has
    "gated_deltanet": DELTA,
    "kda": DELTA,
    "mamba2": SSM,
    "mamba3_siso": SSM,
    "mamba3_mimo": SSM,
}
MAMBA_SSM = ("mamba3_siso", "mamba3_mimo")  # compared with mamba-ssm's layers, the others with fla's
# bf16 keeps 8 bits. Activations pass about ten roundings on the way to an output, and as many again to a gradient. Two
# implementations round at different places, so both are compared with the float64 form, and ours may not be far worse.
OUTPUT, GRADIENT, WORSE = 10 * 2**-8, 20 * 2**-8, 2.0


def mixer(name: str) -> Mixer:
    torch.manual_seed(0)
    built = build_mixer(name, D, OPTIONS[name]).to(GPU)
    for module in built.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, gain=2**-0.5)
    missing = reasons(built.backends, GPU, torch.bfloat16, built.config)[built.backends[0].name]
    if missing is not None:
        pytest.skip(missing)
    return built


def gradients(layer: nn.Module, x: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return output and gradients by name, in bf16 unless the layer is float64."""
    x = x.clone().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16, enabled=x.dtype != torch.float64):
        y = layer(x)
        y = y[0] if isinstance(y, tuple) else y
    layer.zero_grad()
    (y.double() * weights).sum().backward()
    return {"y": y, "x": x.grad} | {name: p.grad for name, p in layer.named_parameters()}


def errors(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    return {
        key: ((actual[key].double() - value).norm() / value.norm().clamp_min(1e-30)).item()
        for key, value in expected.items()
    }


@pytest.mark.parametrize("steps", [1, 77, 2048])
@pytest.mark.parametrize("name", OPTIONS)
def test_kernels_are_as_close_to_float64_as_the_published_layer(name: str, steps: int) -> None:
    built = mixer(name)
    x, weights = torch.randn(2, 2, steps, D, device=GPU, dtype=torch.float64)
    reference = build_mixer(name, D, OPTIONS[name]).to(GPU).double()
    reference.load_state_dict(built.state_dict())
    wanted = gradients(reference, x, weights)
    ours = errors(gradients(built, x.float(), weights), wanted)
    assert ours.pop("y") < OUTPUT and max(ours.values()) < GRADIENT, ours
    layer = to_upstream(built, "mamba-ssm" if name in MAMBA_SSM else "fla").to(GPU)
    theirs = errors(gradients(layer, x.float(), weights), wanted)
    theirs.pop("y")
    assert max(ours.values()) < WORSE * max(theirs.values()) + 2**-8, (ours, theirs)


@pytest.mark.parametrize("name", OPTIONS)
def test_decoding_by_kernels_continues_what_they_began(name: str) -> None:
    built = mixer(name).eval()
    x = torch.randn(2, 300, D, device=GPU)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        whole, _ = built(x)
        y, state = built(x[:, :280], return_state=True)
        outputs = [y]
        for t in range(280, 300):
            y, state = built(x[:, t : t + 1], state, return_state=True)
            outputs.append(y)
    difference = (torch.cat(outputs, 1).float() - whole.float()).norm() / whole.float().norm()
    assert difference < OUTPUT
