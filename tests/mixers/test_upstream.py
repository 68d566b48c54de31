"""Published layers and our mixers compute the same function of the same weights, in both directions.

The layers' Triton kernels run under Triton's interpreter; test_backends_gpu.py runs them compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mixers import build_mixer
from mixers.backends import mamba_ssm
from mixers.upstream import COUNTERPARTS, Counterpart, from_upstream, to_upstream
from tests.mixers.interpreter import upstream_kernels

pytestmark = pytest.mark.long

D = 32
DELTA = {"hidden_size": D, "head_dim": 16, "num_heads": 1, "num_v_heads": 2, "layer_idx": 0}
# fp32 in both, with sums over 40 tokens in other orders. Measured: 3e-6, and 3e-5 for the gradient of A_log, whose
# terms nearly cancel. A wrong kind of gate costs 1e-1.
CLOSE = 1e-4


def fla_layer(name: str, **arguments: Any) -> nn.Module:
    import fla.layers

    return getattr(fla.layers, name)(**arguments)


def mamba_layer(name: str, **arguments: Any) -> nn.Module:
    return getattr(mamba_ssm(f"modules.{name.lower()}"), name)(D, layer_idx=0, **arguments)


def fla_mamba3(**arguments: Any) -> nn.Module:
    return fla_layer("Mamba3", hidden_size=D, layer_idx=0, head_dim=16, state_size=16, **arguments)


LAYERS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "fla GatedDeltaNet": ("fla", lambda: fla_layer("GatedDeltaNet", **DELTA, expand_v=1)),
    "fla GatedDeltaNet, sigmoid, β to 2": (
        "fla",
        lambda: fla_layer(
            "GatedDeltaNet", **DELTA, expand_v=1.5, output_gate_activation="sigmoid", allow_neg_eigval=True
        ),
    ),
    "fla KimiDeltaAttention": ("fla", lambda: fla_layer("KimiDeltaAttention", **DELTA)),
    "fla KimiDeltaAttention, bounded decay": (
        "fla",
        lambda: fla_layer("KimiDeltaAttention", **DELTA, safe_gate=True, lower_bound=-5.0),
    ),
    "fla GatedDeltaNet2": ("fla", lambda: fla_layer("GatedDeltaNet2", **DELTA)),
    "fla GatedDeltaNet2, b to 2": ("fla", lambda: fla_layer("GatedDeltaNet2", **DELTA, allow_neg_eigval=True)),
    # One group: with several, this layer's CPU form assigns them to other heads than its kernels and mamba-ssm do.
    "fla Mamba2": ("fla", lambda: fla_layer("Mamba2", hidden_size=D, head_dim=16, state_size=16, layer_idx=0)),
    "fla Mamba3 SISO": ("fla", fla_mamba3),
    "mamba-ssm Mamba2": (
        "mamba-ssm",
        lambda: mamba_layer("Mamba2", headdim=16, d_state=16, expand=1, ngroups=2, use_mem_eff_path=False),
    ),
    "mamba-ssm Mamba3 SISO": ("mamba-ssm", lambda: mamba_layer("Mamba3", headdim=16, d_state=16, rope_fraction=1.0)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def randomised(layer: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    with torch.no_grad():  # so that weights that start as constants matter too
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer


def run(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if type(layer).__module__ == "fla.layers.mamba3":  # only its forward refuses a CPU
        return layer.cuda_kernels_forward(x)[0]
    y = layer(x)
    return y[0] if isinstance(y, tuple) else y


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give fla mamba-ssm's kernels: fla looks for them on import, which may have come too early."""
    import fla.layers.mamba2 as fla_mamba2
    import fla.layers.mamba3 as fla_mamba3

    siso = mamba_ssm("ops.triton.mamba3.mamba3_siso_combined").mamba3_siso_combined
    monkeypatch.setattr(fla_mamba3, "mamba3_siso_combined", siso)
    monkeypatch.setattr(fla_mamba2, "is_fast_path_available", False)


def gradients(layer: nn.Module, run: Callable[..., torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = run(layer, x)
    y.square().sum().backward()
    return {"y": y, "x": x.grad} | {name: p.grad for name, p in layer.named_parameters()}


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter is for CPUs; kernels are compiled or interpreted, not both"
)
@every_layer
def test_a_published_layer_becomes_the_mixer_that_computes_it(name: str, kernels: None) -> None:
    layer = randomised(LAYERS[name][1]())
    mixer = from_upstream(layer)
    x = torch.randn(2, 40, D)
    with upstream_kernels():
        wanted = gradients(layer, run, x)
    found = gradients(mixer, lambda m, x: m(x)[0], x)
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        difference = ((found[key] - value).norm() / value.norm()).item()
        assert difference < CLOSE, f"{key}: {difference:.1e}"


@every_layer
def test_a_mixer_becomes_the_published_layer_and_comes_back(name: str) -> None:
    library, build = LAYERS[name]
    layer = randomised(build())
    mixer = from_upstream(layer)
    again = to_upstream(mixer, library)
    assert type(again) is type(layer)
    theirs = again.state_dict()
    assert set(theirs) == set(layer.state_dict())
    for key, value in layer.state_dict().items():
        assert torch.equal(theirs[key], value)
    next(iter(again.parameters())).data.add_(1)  # the layer holds a copy, so the mixer does not change
    assert torch.equal(next(iter(mixer.parameters())), next(iter(layer.parameters())))
    assert from_upstream(to_upstream(mixer, library)).config == mixer.config


def test_mimo_moves_to_both_libraries_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without TileLang mamba-ssm refuses to build the layer, although its weights do not need the kernels.
    monkeypatch.setattr(mamba_ssm("modules.mamba3"), "mamba3_mimo_combined", object())
    mixer = randomised(build_mixer("mamba3_mimo", D, {"head_dim": 16, "d_state": 16, "rank": 2}))
    for library in ("fla", "mamba-ssm"):
        again = from_upstream(to_upstream(mixer, library))
        for key, value in mixer.state_dict().items():
            assert torch.equal(again.state_dict()[key], value)
        assert again.rank == 2 and again.config.rope_fraction == mixer.config.rope_fraction


def test_an_inner_width_that_is_no_multiple_of_the_outer_moves_where_the_library_can() -> None:
    mixer = build_mixer("mamba2", 48, {"d_inner": 80, "head_dim": 16, "d_state": 16})
    assert from_upstream(to_upstream(mixer, "fla")).d_inner == 80
    with pytest.raises(
        ValueError, match="d_inner: 80 is no multiple of d_model=48, and mamba-ssm's Mamba2 takes whole"
    ):
        to_upstream(mixer, "mamba-ssm")


def test_variants_without_a_mixer_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"KimiDeltaAttention.safe_gate: False with lower_bound=-5.0 is no variant of"):
        from_upstream(fla_layer("KimiDeltaAttention", **DELTA, lower_bound=-5.0))
    bounded = build_mixer("gdn2", D, {"heads": 1, "head_dim": 16, "output_gate": "sigmoid", "lower_bound": -5})
    with pytest.raises(ValueError, match=r"gdn2.lower_bound: -5.0 has no counterpart in fla's GatedDeltaNet2"):
        to_upstream(bounded, "fla")
    with pytest.raises(ValueError, match=r"Mamba2.norm_before_gate: True is no variant of mamba2"):
        from_upstream(mamba_layer("Mamba2", headdim=16, norm_before_gate=True))
    with pytest.raises(ValueError, match=r"layer: Linear has no mixer here; known: fla GatedDeltaNet, "):
        from_upstream(nn.Linear(2, 2))
    mixer = build_mixer("gdn2", D, {"heads": 1, "head_dim": 16})
    with pytest.raises(
        ValueError, match=r"gdn2.output_gate: 'silu' has no counterpart in fla's GatedDeltaNet2, which has"
    ):
        to_upstream(mixer, "fla")
    theirs = {"heads": 1, "head_dim": 16, "output_gate": "sigmoid"}
    for option, value in {
        "decay": "head",
        "erase_gate": "scalar",
        "write_gate": "head",
        "output_gate_projection": "full",
    }.items():
        with pytest.raises(ValueError, match=rf"gdn2.{option}: '{value}' has no counterpart in fla's GatedDeltaNet2"):
            to_upstream(build_mixer("gdn2", D, theirs | {option: value}), "fla")
    with pytest.raises(ValueError, match=r"library: 'mamba-ssm' has no layer for gdn2; libraries that do: fla"):
        to_upstream(mixer, "mamba-ssm")


WIDE = {"heads": 64, "head_dim": 4}
WIDE_SSM = {"d_inner": 256, "head_dim": 4, "d_state": 16}


@pytest.mark.parametrize("counterpart", COUNTERPARTS, ids=lambda c: f"{c.library} {c.layer} {c.mixer}")
def test_a_mixer_starts_with_the_distributions_of_the_published_layer(counterpart: Counterpart) -> None:
    if (counterpart.library, counterpart.mixer) == ("mamba-ssm", "mamba3_mimo"):
        pytest.skip("mamba-ssm's MIMO layer needs TileLang")
    torch.manual_seed(0)
    mixer = build_mixer(counterpart.mixer, 128, WIDE_SSM if counterpart.mixer.startswith("mamba") else WIDE)
    theirs = dict(counterpart.load()(**counterpart.arguments(mixer)).named_parameters())
    ours = dict(mixer.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        a, b = parameter.detach().double(), theirs[name].detach().double()
        # The means and deviations of n draws differ by about 1/√n of a deviation; five times that is no chance.
        noise = 5 * float(b.std()) * (2 / a.numel()) ** 0.5
        assert abs(float(a.mean() - b.mean())) <= noise and abs(float(a.std() - b.std())) <= noise, name
