"""Every built-in mixer passes the kit, and each broken promise is caught by the check that is for it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from mixers import build_mixer
from mixers.backends import TORCH, Backend
from mixers.conformance import HEADER, SMALL, Finding, conform, render
from mixers.interface import Cost, Mixer, MixerConfig, State
from mixers.parts.common import accumulator_dtype
from mixers.registry import _entries, register_mixer
from run import app
from tests.mixers.interpreter import upstream_kernels

D = 16
cli = CliRunner()


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a CPU outside the tests: other people's kernels are not made for Triton's interpreter.
    monkeypatch.setattr("mixers.backends.interpreted", lambda: False)


class DecayConfig(MixerConfig):
    """The gated sum has no options."""


class Decay(Mixer):
    """s_t = σ(a) · s_{t-1} + x_t W, y_t = s_t · (x_t G): a gated sum per channel, and all that a mixer needs."""

    config_class = DecayConfig

    def __init__(self, d_model: int, config: DecayConfig):
        super().__init__(d_model, config)
        self.write = nn.Linear(d_model, d_model, bias=False)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.decay = nn.Parameter(torch.zeros(d_model))

    def mix(self, x: Tensor, state: State | None, return_state: bool) -> tuple[Tensor, State | None]:
        written, gate = self.write(x), self.gate(x)
        written = written.to(accumulator_dtype(written))
        s = written.new_zeros(x.shape[0], self.d_model) if state is None else state["recurrent"]
        sums = []
        for token in written.unbind(1):
            s = self.decay.sigmoid() * s + token
            sums.append(s)
        y = (torch.stack(sums, 1) * gate).to(gate.dtype)
        return y, {"recurrent": s} if return_state else None

    def cost(self, seq_len: int) -> Cost:
        products = self.write.weight.numel() + self.gate.weight.numel()
        return Cost.recurrent(self.parameter_count(), products, self.d_model, 3)


def findings(cls: type[Mixer], **options: Any) -> dict[str, Finding]:
    found = conform(lambda: cls(D, DecayConfig()), **{"long_tokens": 512} | options)
    return {finding.check: finding for finding in found}


def failed(cls: type[Mixer]) -> set[str]:
    return {name for name, finding in findings(cls).items() if finding.status == "fail"}


CASES = [(name, options, 65536 if name in ("gdn2", "mamba2") else 8192) for name, options in SMALL.items()] + [
    ("attention", {"heads": 2, "window": 5}, 8192),
    ("attention", {"heads": 2, "window": 70}, 8192),
    ("gdn2", SMALL["gdn2"] | {"erase_gate": "scalar"}, 8192),
    ("gdn2", SMALL["gdn2"] | {"write_gate": "scalar"}, 8192),
    ("gdn2", SMALL["gdn2"] | {"erase_gate": "scalar", "write_gate": "scalar", "erase_range": 2}, 8192),
    ("mamba3_mimo", {"d_inner": 64, "head_dim": 16, "d_state": 16, "rank": 4}, 8192),
]


@pytest.mark.parametrize(
    ("name", "options", "long_tokens"), CASES, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(CASES)]
)
def test_every_built_in_mixer_passes(name: str, options: dict[str, Any], long_tokens: int) -> None:
    found = conform(lambda: build_mixer(name, 64, options), long_tokens=long_tokens)
    assert not [f for f in found if f.status == "fail"], render(found)
    assert {f.check for f in found if f.status == "skipped"} <= {"backend triton", "backend fla", "backend mamba-ssm"}


def test_a_mixer_of_ones_own_passes_everything() -> None:
    found = list(findings(Decay, long_tokens=65536).values())
    assert {f.status for f in found} == {"pass"}, render(found)


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


class MisdeclaresParameters(Decay):
    def cost(self, seq_len):
        return Cost(**vars(super().cost(seq_len)) | {"parameters": 2 * D * D})


class DeclaresLessState(Decay):
    def cost(self, seq_len):
        return Cost(**vars(super().cost(seq_len)) | {"state_floats": D // 2})


class DeclaresMoreState(Decay):
    def cost(self, seq_len):
        return Cost(**vars(super().cost(seq_len)) | {"state_floats": 2 * D})


class DeclaresFewerFlops(Decay):
    def cost(self, seq_len):
        return Cost(**vars(super().cost(seq_len)) | {"flops_per_token": D * D, "decode_flops": D * D})


class DeclaresMoreFlops(Decay):
    def cost(self, seq_len):
        return Cost(**vars(super().cost(seq_len)) | {"flops_per_token": 8.0 * D * D, "decode_flops": 8.0 * D * D})


class DeclaresAnotherMean(Decay):
    def cost(self, seq_len):
        cost = super().cost(seq_len)
        return Cost(**vars(cost) | {"flops_per_token": cost.flops_per_token / 2})


class DeclaresFewerBytes(Decay):
    def cost(self, seq_len):
        return Cost(**vars(super().cost(seq_len)) | {"decode_bytes": 2 * D})


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


class KeepsTheBatchSecond(Decay):
    def mix(self, x, state, return_state):
        y, after = super().mix(x, state and {"recurrent": state["recurrent"].T}, return_state)
        return y, after and {"recurrent": after["recurrent"].T}


class GrowsItsState(Decay):
    """Keeps all its inputs, though it needs none of them."""

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
        # What depends on tokens to come also differs when they come in another piece or as padding.
        (LeaksTheFuture, {"causality", "causality of gradients", "pieces", "padding", "lengths"}),
        (ForgetsItsState, {"pieces"}),
        (MixesPackedDocuments, {"packing"}),
        (PacksWithoutTheState, {"packing"}),
        (MisdeclaresParameters, {"cost: parameters"}),
        (DeclaresLessState, {"cost: state"}),
        (DeclaresMoreState, {"cost: state"}),
        (DeclaresFewerFlops, {"cost: products"}),
        (DeclaresMoreFlops, {"cost: FLOPs"}),
        (DeclaresAnotherMean, {"cost: mean"}),
        (DeclaresFewerBytes, {"cost: bytes"}),
        (ModifiesTheGivenState, {"inputs left alone"}),
        # Sequences of one length are packed as one batch, and joined states decode in one.
        (DependsOnOtherRows, {"batch", "packing", "states of beams"}),
        (IsNondeterministic, {"determinism"}),
        (DetachesAGradient, {"gradients"}),
        (DetachesTheState, {"gradients"}),
        (LeavesAParameterOut, {"every parameter learns"}),
        (LeaksOnlyGradients, {"causality of gradients", "gradients"}),
        (KeepsA16BitState, {"accumulators in fp32"}),
        (KeepsTheBatchSecond, {"shapes and dtypes", "packing", "states of beams"}),
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
    found = findings(LeaksTheFuture)["causality"]
    assert found.measured > 0.001 > found.bound and "before token" in found.detail
    assert findings(FailsOnThreeTokens)["lengths"].detail == "IndexError: three"
    assert findings(DetachesTheState)["gradients"].detail.startswith("state['recurrent']: ")
    assert findings(LeavesAParameterOut)["every parameter learns"].detail == "unused: receives no gradient"


class Fast(Decay):
    """With a second implementation that is the first one, `error` apart."""

    error = 0.0
    backends = (Backend("fast", lambda device, dtype, config: None), TORCH)

    def mix(self, x, state, return_state):
        y, after = super().mix(x, state, return_state)
        return (y * (1 + self.error) if self.implementation(x) == "fast" else y), after


class FastAndWrong(Fast):
    error = 0.2


class OnlyFast(Fast):
    backends = Fast.backends[:1]


class FastElsewhere(Fast):
    backends = (Backend("fast", lambda device, dtype, config: "it needs another machine"), TORCH)


def test_every_backend_that_serves_is_compared_with_the_float64_reference() -> None:
    assert findings(Fast)["backend fast"].status == "pass"
    wrong = findings(FastAndWrong)
    assert {name for name, f in wrong.items() if f.status == "fail"} == {"backend fast"}
    assert wrong["backend fast"].measured == pytest.approx(0.2, abs=0.02)
    # Asked for by name, it also computes everything else that is in bf16.
    assert findings(FastAndWrong, backend="fast")["bf16"].status == "fail"
    elsewhere = findings(FastElsewhere)["backend fast"]
    assert (elsewhere.status, elsewhere.detail) == ("skipped", "it needs another machine")


def test_what_cannot_be_tried_is_refused_before_the_first_check() -> None:
    made: list[Finding] = []
    with pytest.raises(ValueError, match="backend: 'fast' does not serve .* it needs another machine"):
        findings(FastElsewhere, backend="fast", progress=made.append)
    with pytest.raises(ValueError, match="backend: unknown name 'slow'; known: auto, fast, torch"):
        findings(Fast, backend="slow", progress=made.append)
    with pytest.raises(ValueError, match="'torch'; known: auto, fast; a form in torch is what all is compared with"):
        findings(OnlyFast, backend="fast", progress=made.append)
    with pytest.raises(ValueError, match="long_tokens: 1 tokens cannot be fed in pieces"):
        findings(Decay, long_tokens=1, progress=made.append)
    with pytest.raises(ValueError, match="heads=2"):
        conform(lambda: build_mixer("kda", 64, SMALL["kda"] | {"value_heads": 3}), progress=made.append)
    assert not made


def test_the_kit_leaves_the_random_state_as_it_was_and_repeats_itself() -> None:
    before = torch.get_rng_state()
    first = findings(Decay)
    assert torch.equal(torch.get_rng_state(), before)
    assert findings(Decay) == first


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for CPUs")
def test_gdn2s_own_kernels_pass_under_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("Triton was imported to compile for the GPU; `run.py check gdn2` tries the kernels there")
    monkeypatch.undo()
    options = {"heads": 1, "head_dim": 16, "value_heads": 2, "chunk_size": 16}
    with upstream_kernels():  # the layer's convolutions and norms are fla's
        found = conform(lambda: build_mixer("gdn2", D, options), long_tokens=64)
    assert found[-1].check == "backend triton" and found[-1].status == "pass", render(found)


@pytest.fixture
def registered() -> Iterator[None]:
    """`test-decay` and `test-broken` are mixers, for one test."""
    register_mixer("test-decay", display="Decay")(Decay)
    register_mixer("test-broken", display="Broken")(ForgetsItsState)
    yield
    del _entries["test-decay"], _entries["test-broken"]


def check(*arguments: str) -> Any:
    return cli.invoke(app, ["check", *arguments, "--device", "cpu", "--long-tokens", "512"])


def test_check_prints_the_table_and_its_exit_code_says_whether_all_passed(registered: None) -> None:
    passed = check("test-decay", "--d-model", "16")
    assert passed.exit_code == 0, passed.output
    assert HEADER in passed.output and passed.output.splitlines()[-1] == "22 passed, 0 failed, 0 skipped"
    broken = check("test-broken")
    assert broken.exit_code == 1
    assert broken.output.splitlines()[-1] == "21 passed, 1 failed, 0 skipped"
    rows = json.loads(check("test-broken", "--json").output)["findings"]
    assert [r["check"] for r in rows if r["status"] == "fail"] == ["pieces"]


def test_check_takes_a_presets_geometry_and_options_of_the_mixer() -> None:
    result = check("attention", "--preset", "cpu-600k", "--set", "window=9")
    assert result.exit_code == 0, result.output
    assert "attention at width 64, {'heads': 2, 'window': 9}, on cpu" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["delta"], "mixer: unknown name 'delta'; known: attention"),
        (["gdn2", "--set", "head=2"], "gdn2.head: "),
        (["gdn2", "--set", "heads=["], "--set: 'heads=[' has no YAML value"),
        (["gdn2", "--preset", "1b"], "preset: unknown name '1b'"),
        (["gdn2", "--backend", "triton"], "backend: 'triton' does not serve torch.bfloat16 on cpu"),
        (["attention", "--set", "heads=3"], "attention.heads: 3 does not divide the width 64"),
    ],
)
def test_wrong_use_of_check_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = check(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.output.splitlines() if line]
    assert line.startswith("error: ") and message in line


def test_a_device_that_is_not_there_is_wrong_use() -> None:
    result = cli.invoke(app, ["check", "gdn2", "--device", "mars"])
    assert result.exit_code == 2 and "--device: 'mars' is not on this machine" in result.output
