"""The short run on a GPU, rehearsed on a CPU: every step through the same code on tiny shapes, and time limits."""

from __future__ import annotations

import json
import subprocess
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from run import app
from suites.bench import gpu_kernels, gpu_short
from suites.bench.gpu_short import PAPER, REHEARSAL, STEPS, run_step

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the rehearsal is for CPUs")

CEILINGS = {"copy_bytes_per_s": 4e12, "matmul_flop_per_s": 8e14, "lead_ms": 4.0}


def kept(out: Path, name: str) -> dict:
    return json.loads((out / f"{name}.json").read_text())


class Here:
    """A pool that runs its tasks at once, in this process."""

    def __init__(self, *arguments: object):
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, work, *arguments: object) -> Task:
        return Task(partial(work, *arguments))


class Task:
    """A task that has ended, with a result or an error."""

    def __init__(self, work):
        self.value = self.error = None
        try:
            self.value = work()
        except Exception as error:
            self.error = error

    def exception(self) -> Exception | None:
        return self.error

    def result(self):
        return self.value


@pytest.mark.long
def test_every_configuration_that_later_steps_launch_is_compiled_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def compile_one(kernel: str, arguments: dict, choice: int, capability: int) -> float:
        asked.append((kernel, arguments, choice))
        if kernel == "scan_forward":
            raise RuntimeError("ptxas failed")
        return 1.5

    monkeypatch.setattr(gpu_short, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(gpu_short, "as_completed", list)
    monkeypatch.setattr(gpu_short, "compile_one", compile_one)
    rows = run_step("compile", REHEARSAL, tmp_path)
    assert kept(tmp_path, "compile")["rows"] == rows and kept(tmp_path, "compile")["sizes"] == "rehearsal"
    assert {row["kernel"] for row in rows} == set(gpu_short._kernels())
    assert all((row["failed"] == "RuntimeError: ptxas failed") == (row["kernel"] == "scan_forward") for row in rows)
    assert gpu_short.wrong("compile", tmp_path)
    # bf16 and fp32, with and without activations inside; a decoding step once.
    of_gradients = [arguments for kernel, arguments, _ in asked if kernel == "chunk_gradients"]
    assert {(a["PRECISION"], a["ACTIVATE"]) for a in of_gradients} == {
        ("tf32", True),
        ("tf32", False),
        ("tf32x3", False),
    }
    assert asked[0][0] == "chunk_gradients"  # what takes longest


@pytest.mark.long
def test_without_the_sanitizer_its_case_still_runs_and_its_rows_say_so(tmp_path: Path) -> None:
    gpu_short.one_case(REHEARSAL)
    rows = run_step("sanitizer", REHEARSAL, tmp_path)
    assert [row["left_out"] for row in rows] == ["compute-sanitizer is not on the PATH"] * 2
    assert not gpu_short.wrong("sanitizer", tmp_path)


def test_what_the_sanitizer_finds_fails_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_short.shutil, "which", lambda name: name)
    commands = []

    def watched(command: list[str], **options: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=9 if "memcheck" in command else 0, stdout="Invalid read", stderr="")

    monkeypatch.setattr(gpu_short.subprocess, "run", watched)
    memory, race = gpu_short.sanitizer_step(REHEARSAL)
    assert (memory["failed"], memory["output"], race["failed"]) == ("exit code 9", "Invalid read", None)
    assert all(command[-2:] == ["--step", "one-case"] for command in commands)


@pytest.mark.long
def test_correctness_of_every_configuration_is_checked_and_passes(tmp_path: Path) -> None:
    rows = run_step("correctness", REHEARSAL, tmp_path)
    assert kept(tmp_path, "correctness")["failed"] is None
    assert {row["kernel"] for row in rows if "kernel" in row} == set(gpu_short._kernels()) - {"recurrent_steps"}
    # The interpreter truncates to bf16 where hardware rounds, which doubles an error: there only fp32 must be right.
    for row in rows:
        if row["dtype"] == "torch.float32" or "what" in row:
            assert row["failed"] is None, row
        else:
            assert row["output_error"] <= 2 * row["bounds"][0] and row["gradient_error"] <= 2 * row["bounds"][1], row


def test_a_wrong_configuration_fails_and_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu_short.evaluate

    def off_by_a_percent(drawn, backend, dtype=None):
        return [1.01 * x if backend == "triton" else x for x in right(drawn, "recurrent", dtype)]

    monkeypatch.setattr(gpu_short, "evaluate", off_by_a_percent)
    monkeypatch.setattr(gpu_short, "BOUNDS", {torch.float32: (4e-6, 1e-5)})
    monkeypatch.setattr(gpu_short, "recording", pretended_recording)
    rows = run_step("correctness", REHEARSAL, tmp_path)
    assert rows[0]["failed"] == "an error exceeds its bound" and rows[0]["kernel"] == "one"
    assert gpu_short.wrong("correctness", tmp_path) and "failed" in gpu_short.summary("correctness", tmp_path, None)


class pretended_recording:  # noqa: N801
    def __enter__(self):
        kernel = SimpleNamespace(name="one", candidates=lambda arguments, capability: ["a configuration"])
        return [SimpleNamespace(kernel=kernel, arguments={})]

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def pretended_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_here(call, flush):
        started = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - started), 0.1

    monkeypatch.setattr(gpu_kernels, "REPEATS", 2)
    monkeypatch.setattr(gpu_kernels, "WARM_UP", 1)
    monkeypatch.setattr(gpu_kernels, "FLUSH_BYTES", 8)
    monkeypatch.setattr(gpu_kernels, "time_on_device", time_here)
    monkeypatch.setattr(gpu_kernels, "device_ceilings", lambda flush: CEILINGS)
    monkeypatch.setattr(gpu_short, "disable_fla_dispatch", lambda: None)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)


@pytest.mark.long
def test_kernels_are_measured_beside_flas_or_say_why_not(tmp_path: Path, pretended_clock: None) -> None:
    rows = run_step("kernels", REHEARSAL, tmp_path)
    assert kept(tmp_path, "kernels")["failed"] is None
    ours = [row for row in rows if row.get("implementation") == "mixerbench triton"]
    assert [row["direction"] for row in ours] == ["layer's call", "decode"]
    assert all(row["ms"] > 0 and row["refused"] is None for row in ours)
    # What fla cannot interpret has a reason and no number, and is no failure of ours.
    theirs = [row for row in rows if "fla" in row.get("implementation", "")]
    assert theirs and all((row["ms"] is None) == bool(row["refused"]) for row in theirs)
    assert [row["kernel_ms"] for row in rows if "kernel_ms" in row] == [None, None]  # not measured, not invented


@pytest.mark.long
def test_training_steps_of_each_mixer_are_timed(tmp_path: Path) -> None:
    rows = run_step("training", REHEARSAL, tmp_path)
    assert [row["mixer"] for row in rows] == ["gdn2", "kda"] and all(row["tokens_per_s"] > 0 for row in rows)


def test_the_steps_fit_the_limit_and_a_step_that_hangs_costs_only_its_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(seconds for _, seconds in STEPS.values()) <= gpu_short.LIMIT <= 540
    limits, lines = [], []

    def started(command: list[str], timeout: float, **options: object) -> SimpleNamespace:
        limits.append(timeout)
        name = command[command.index("--step") + 1]
        if name == "sanitizer":
            raise subprocess.TimeoutExpired(command, timeout)
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": [{"failed": None}], "failed": None, "seconds": 1.0}))
        return SimpleNamespace(returncode=1 if name == "kernels" else 0)

    monkeypatch.setattr(gpu_short.subprocess, "run", started)
    assert gpu_short.run(REHEARSAL, tmp_path, lines.append) == ["sanitizer", "kernels"]
    # What the compilation left goes to the sanitizer, and so on.
    assert limits == pytest.approx([150, 210, 310, 460, 540], abs=2)
    assert lines[0] == "compile: 1 rows, 0 failed, 1 s"
    assert lines[1].startswith("sanitizer: 0 rows, 0 failed, stopped after its 210 s")
    assert lines[3].endswith("exit code 1")


def test_an_error_of_a_step_is_kept_with_the_rows_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(sizes):
        yield {"first": 1, "failed": None}
        raise RuntimeError("the device is gone")

    monkeypatch.setitem(STEPS, "kernels", (breaks, 1))
    run_step("kernels", REHEARSAL, tmp_path)
    found = kept(tmp_path, "kernels")
    assert found["rows"] == [{"first": 1, "failed": None}] and found["failed"] == "RuntimeError: the device is gone"
    assert found["birth"]["version_torch"] == torch.__version__ and gpu_short.wrong("kernels", tmp_path)


def test_the_command_needs_its_device_and_knows_its_steps(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "short", "--out", str(tmp_path)])
    assert result.exit_code != 0 and "torch sees no CUDA device" in result.output
    result = CliRunner().invoke(app, ["bench", "short", "--step", "speed", "--out", str(tmp_path)])
    assert "--step: 'speed' is none of compile, sanitizer, correctness, kernels, training" in result.output
    assert PAPER.checked.key_dim == 128 and not list(tmp_path.iterdir())
