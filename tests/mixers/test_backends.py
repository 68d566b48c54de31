"""The choice of backends, and every mixer through its authors' kernels: the same function as in torch.

The kernels run unchanged under Triton's interpreter, in fp32. test_backends_gpu.py runs them compiled, in bf16.
"""

from __future__ import annotations

import os

import pytest
import torch

from mixers import build_mixer
from mixers.backends import TORCH, Backend, disable_fla_dispatch, fla_kernels, mamba_ssm, reasons
from mixers.interface import Mixer, State
from tests.mixers.interpreter import upstream_kernels

pytestmark = pytest.mark.long

D = 24
DELTA = {"heads": 1, "head_dim": 16, "value_heads": 2}
SSM = {"d_inner": 32, "head_dim": 16, "d_state": 16}
CASES = [
    ("gdn2", DELTA),
    ("gated_deltanet", DELTA),
    ("gated_deltanet", DELTA | {"beta_range": 2, "output_gate": "sigmoid"}),
    ("kda", DELTA),
    ("mamba2", SSM),
    ("mamba2", SSM | {"n_groups": 2}),
    ("mamba3_siso", SSM),
    ("mamba3_siso", SSM | {"rope_fraction": 1.0}),
]
every_kernel = pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
interpreter_only = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter is for CPUs; kernels are compiled or interpreted, not both"
)
# fp32 against fp32: both round at 6e-8 over chunks of 64 to 256 tokens, and a wrong argument costs 1e-2. Measured:
# 2e-6, and 3e-5 for the gradients of A_log and dt_bias, whose sums over tokens nearly cancel.
CLOSE = 1e-4
# mamba-ssm's decoding step of Mamba-3 rounds state and query to bf16, 2^-8, for its last product.
STEP = {"mamba3_siso": 1e-2}


def mixer(name: str, options: dict) -> Mixer:
    torch.manual_seed(3)
    built = build_mixer(name, D, options)
    with torch.no_grad():  # so that weights that start as constants matter too
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def through_kernels(built: Mixer) -> Mixer:
    """Choose the kernels by name, even in fp32 if they refuse it because they compute in bf16 on a GPU."""
    name = built.backends[0].name
    built.backends = (Backend(name, lambda device, dtype, config: None), TORCH)
    built.backend = name
    return built


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm().clamp_min(1e-12)).item()


def evaluate(built: Mixer, x: torch.Tensor, state: State | None, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return output, state and all gradients, for a loss that depends on both output and state."""
    leaves = {name: p for name, p in built.named_parameters()} | {"x": x.clone().requires_grad_()}
    entering = None
    if state is not None:
        entering = {key: value.clone().requires_grad_() for key, value in state.items()}
        leaves |= {f"state.{key}": value for key, value in entering.items()}
    y, after = built(leaves["x"], entering, return_state=True)
    loss = (y * weights).sum() + sum((value * value).sum() for key, value in after.items() if key != "angle")
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    outputs = {"y": y} | {f"after.{key}": value for key, value in after.items()}
    return outputs | {f"d {name}": g for name, g in zip(leaves, gradients, strict=True)}


@interpreter_only
@every_kernel
def test_kernels_give_the_outputs_states_and_gradients_of_torch(name: str, options: dict) -> None:
    built = mixer(name, options)
    with torch.no_grad():
        _, state = built(torch.randn(2, 5, D), return_state=True)
    # A length that is no multiple of a chunk, after a state; and a short one without a state.
    for entering, batch, steps in ((state, 2, 70), (None, 1, 9)):
        x, weights = torch.randn(2, batch, steps, D)
        built.backend = "torch"
        wanted = evaluate(built, x, entering, weights)
        with upstream_kernels():
            found = evaluate(through_kernels(built), x, entering, weights)
        errors = {key: error(found[key], wanted[key]) for key in wanted}
        assert max(errors.values()) < CLOSE, errors


@interpreter_only
@every_kernel
def test_decoding_by_kernels_continues_what_torch_began(name: str, options: dict) -> None:
    built = mixer(name, options).eval()
    x = torch.randn(2, 40, D)
    with torch.no_grad():
        built.backend = "torch"
        wanted, final = built(x, return_state=True)
        _, state = built(x[:, :33], return_state=True)
        before = {key: value.clone() for key, value in state.items()}
        outputs = []
        with upstream_kernels():
            through_kernels(built)
            y, after = built(x[:, 33:37], state, return_state=True)
            outputs.append(y)
            for t in range(37, 40):
                y, after = built(x[:, t : t + 1], after, return_state=True)
                outputs.append(y)
    bound = STEP.get(name, CLOSE)
    assert error(torch.cat(outputs, 1), wanted[:, 33:]) < bound
    for key, value in final.items():
        assert error(after[key].float(), value) < bound, key
        assert torch.equal(state[key], before[key]), f"{key} was changed in place"


@interpreter_only
@every_kernel
def test_packed_sequences_do_not_see_each_other_in_kernels(name: str, options: dict) -> None:
    built = mixer(name, options)
    x, offsets = torch.randn(1, 71, D), [0, 1, 34, 71]
    with torch.no_grad():
        built.backend = "torch"
        wanted = torch.cat([built(x[:, a:b])[0] for a, b in zip(offsets, offsets[1:], strict=False)], 1)
        with upstream_kernels():
            found, _ = through_kernels(built)(x, cu_seqlens=torch.tensor(offsets))
    assert error(found, wanted) < STEP.get(name, CLOSE)


def test_on_a_cpu_auto_is_torch_and_a_kernel_asked_for_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cpu = torch.device("cpu")
    for name, options in CASES:
        built = build_mixer(name, D, options)
        assert built.serving(cpu, torch.float32) == "torch"
        built.backend = built.backends[0].name
        with pytest.raises(ValueError, match=r"backend: '.*' does not serve torch.float32 on cpu: its kernels need a"):
            built(torch.zeros(1, 3, D))
        built.backend = "cuda"
        with pytest.raises(ValueError, match=r"backend: unknown name 'cuda'; known: auto, .*torch"):
            built(torch.zeros(1, 3, D))


GPU = torch.device("cuda")


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    return monkeypatch


def why(name: str, backend: str, dtype: torch.dtype = torch.bfloat16, **options: object) -> str | None:
    built = build_mixer(name, D, {**dict(CASES)[name], **options})
    return reasons(built.backends, GPU, dtype, built.config)[backend]


def test_on_a_gpu_every_mixer_runs_on_kernels_in_bf16(pretended_gpu: pytest.MonkeyPatch) -> None:
    for name, options in CASES:
        built = build_mixer(name, D, options)
        assert built.serving(GPU, torch.bfloat16) == built.backends[0].name != "torch"
        assert built.serving(GPU, torch.float64) == "torch"
    # Mamba-3's kernels cast every input to bf16.
    assert "compute in bfloat16" in why("mamba3_siso", "mamba-ssm", torch.float32)
    assert build_mixer("mamba3_siso", D, SSM).serving(GPU, torch.float32) == "torch"


def test_what_keeps_a_kernel_from_serving_names_the_remedy(pretended_gpu: pytest.MonkeyPatch) -> None:
    assert "powers of two from 16, not 24; use torch" in why("mamba3_siso", "mamba-ssm", d_state=24)
    assert "head_dim up to 256, not 512; use torch" in why("kda", "fla", head_dim=512)
    assert "serve K up to 256, got 272" in why("gdn2", "triton", head_dim=272)
    pretended_gpu.setattr("mixers.backends._installed", lambda module: False)
    assert "MAMBA_SKIP_CUDA_BUILD=TRUE pip install" in why("mamba2", "mamba-ssm")


def test_torch_in_place_of_kernels_on_a_gpu_is_told_with_the_reason(pretended_gpu: pytest.MonkeyPatch) -> None:
    build = dict(CASES)["kda"]
    assert build_mixer("kda", D, build).fallback(GPU, torch.bfloat16) is None
    large = build_mixer("kda", D, {**build, "head_dim": 512})
    assert large.fallback(GPU, torch.bfloat16) == "fla: fla's KDA takes head_dim up to 256, not 512; use torch"
    assert large.fallback(torch.device("cpu"), torch.float32) is None
    large.backend = "torch"  # asked for
    assert large.fallback(GPU, torch.bfloat16) is None
    assert build_mixer("attention", D, {"heads": 2}).fallback(GPU, torch.bfloat16) is None


def test_on_hopper_with_triton_3_6_only_gradients_with_a_decay_per_head_are_refused(
    pretended_gpu: pytest.MonkeyPatch,
) -> None:
    pretended_gpu.setattr("mixers.backends._installed", lambda module: False)
    pretended_gpu.setattr("mixers.backends._parts", lambda distribution: (3, 6, 0))
    assert "pip install 'triton>=3.7.1', or pip install tilelang" in why("gated_deltanet", "fla")
    assert why("kda", "fla") is None  # its gradients have kernels of their own
    built = build_mixer("gated_deltanet", D, DELTA)
    assert built.serving(GPU, torch.bfloat16) == "torch"
    assert built.serving(GPU, torch.bfloat16, gradients=False) == "fla"
    comba, retention = (build_mixer(f"fla:{name}", 64, {}) for name in ("Comba", "MultiScaleRetention"))
    with pytest.raises(ValueError, match="triton>=3.7.1"):
        comba.serving(GPU, torch.bfloat16)
    assert comba.serving(GPU, torch.bfloat16, gradients=False) == retention.serving(GPU, torch.bfloat16) == "fla"


def test_fla_runs_its_own_kernels_in_comparisons_or_says_that_it_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLA_DISABLE_BACKEND_DISPATCH", "")
    monkeypatch.setattr("fla.backends._DISPATCH_DISABLED", False)
    assert fla_kernels() == "fla, may dispatch"
    with pytest.raises(RuntimeError, match="set FLA_DISABLE_BACKEND_DISPATCH=1 before Python starts"):
        disable_fla_dispatch()
    monkeypatch.setattr("fla.backends._DISPATCH_DISABLED", True)
    disable_fla_dispatch()
    assert fla_kernels() == "fla" and os.environ["FLA_DISABLE_BACKEND_DISPATCH"] == "1"


def test_mimo_says_that_tilelang_is_missing(pretended_gpu: pytest.MonkeyPatch) -> None:
    pretended_gpu.setattr("mixers.mamba3.find_spec", lambda module: None)
    built = build_mixer("mamba3_mimo", D, {"d_inner": 64, "head_dim": 32, "d_state": 16})
    missing = reasons(built.backends, GPU, torch.bfloat16, built.config)["mamba-ssm"]
    assert missing.endswith("pip install tilelang==0.1.8")
    assert built.serving(GPU, torch.bfloat16) == "torch"


def test_mamba_ssm_is_imported_without_its_cuda_extension() -> None:
    package = mamba_ssm("modules.mamba2")
    assert package.Mamba2.__module__ == "mamba_ssm.modules.mamba2"
    import sys

    assert "selective_scan_cuda" not in sys.modules
    with pytest.raises(ImportError, match="Mamba-1 needs mamba-ssm's CUDA extension"):
        mamba_ssm("ops.selective_scan_interface").selective_scan_cuda.fwd()
