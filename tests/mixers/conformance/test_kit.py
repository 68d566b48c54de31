"""The conformance kit as a whole: built-in mixers pass it, wrong use is refused, and `run.py check` prints it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mixers import build_mixer
from mixers.backends import TORCH, Backend
from mixers.conformance import HEADER, SMALL, Finding, conform, counts, render
from mixers.registry import _entries, register_mixer
from run import app
from tests.mixers.conformance.decay import D, Decay, findings
from tests.mixers.interpreter import upstream_kernels

pytestmark = pytest.mark.long

cli = CliRunner()

CASES = [(name, options, 65536 if name in ("gdn2", "mamba2") else 8192) for name, options in SMALL.items()] + [
    ("attention", {"heads": 2, "window": 5}, 8192),
    ("attention", {"heads": 2, "window": 70}, 8192),
    ("gdn2", SMALL["gdn2"] | {"decay": "head", "erase_gate": "scalar"}, 8192),
    ("gdn2", SMALL["gdn2"] | {"erase_gate": "head", "write_gate": "tied", "output_gate_projection": "full"}, 8192),
    ("gdn2", SMALL["gdn2"] | {"erase_gate": "scalar", "write_gate": "scalar", "erase_range": 2}, 8192),
    ("mamba3_mimo", {"d_inner": 64, "head_dim": 16, "d_state": 16, "rank": 4}, 8192),
]


@pytest.mark.parametrize(
    ("name", "options", "long_tokens"), CASES, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(CASES)]
)
def test_every_built_in_mixer_passes(name: str, options: dict[str, Any], long_tokens: int) -> None:
    results = conform(lambda: build_mixer(name, 64, options), long_tokens=long_tokens)
    assert not [f for f in results if f.status == "fail"], render(results)
    assert {f.check for f in results if f.status == "skipped"} <= {"backend triton", "backend fla", "backend mamba-ssm"}


def test_a_mixer_of_ones_own_passes_everything() -> None:
    results = list(findings(Decay, long_tokens=65536).values())
    assert {f.status for f in results} == {"pass"}, render(results)


class Fast(Decay):
    """A mixer with a second implementation that scales the output of the first one by 1 + `error`."""

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
    # A backend asked for by name also computes every other check in bf16.
    assert findings(FastAndWrong, backend="fast")["bf16"].status == "fail"
    elsewhere = findings(FastElsewhere)["backend fast"]
    assert (elsewhere.status, elsewhere.detail) == ("skipped", "it needs another machine")


def test_what_cannot_be_tried_is_refused_before_the_first_check() -> None:
    made: list[Finding] = []
    with pytest.raises(ValueError, match="backend: 'fast' does not serve .* it needs another machine"):
        findings(FastElsewhere, backend="fast", progress=made.append)
    with pytest.raises(ValueError, match="backend: unknown name 'slow'; known: auto, fast, torch"):
        findings(Fast, backend="slow", progress=made.append)
    with pytest.raises(ValueError, match="'torch'; known: auto, fast; every check compares with a form in torch"):
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
    monkeypatch.setattr("mixers.backends.interpreted", lambda: True)
    options = {"heads": 1, "head_dim": 16, "value_heads": 2, "chunk_size": 16}
    with upstream_kernels():  # the layer's convolutions and norms are fla's
        results = conform(lambda: build_mixer("gdn2", D, options), long_tokens=64)
    assert results[-1].check == "backend triton" and results[-1].status == "pass", render(results)


def test_a_table_has_a_row_per_finding_and_ends_with_the_counts() -> None:
    passed = Finding("pieces", "pass", 1.5e-15, 1e-10, "outputs")
    skipped = Finding("backend fast", "skipped", None, None, "it needs another machine")
    header, first, second, last = render([passed, skipped]).splitlines()
    assert header == HEADER and last == counts([passed, skipped]) == "1 passed, 0 failed, 1 skipped"
    assert first.split() == ["pieces", "pass", "1.5e-15", "1e-10", "outputs"]
    assert second.split() == ["backend", "fast", "skipped", "-", "-", "it", "needs", "another", "machine"]


class ForgetsItsState(Decay):
    def mix(self, x, state, return_state):
        return super().mix(x, None, return_state)


@pytest.fixture
def registered() -> Iterator[None]:
    """Register `test-decay` and `test-broken` for one test."""
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
        (["gdn2", "--set", "heads=["], "--set: 'heads=[': not YAML"),
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
