"""Every configuration of the Triton kernels compiles for every GPU generation, without a GPU, and fits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.files import CHECKOUT
from mixers.gdn2.kernels.launch import SHARED_MEMORY, Resources
from run import app


@pytest.mark.long
def test_all_configurations_fit_all_gpus_without_spills(tmp_path: Path) -> None:
    # A separate process, because this one may have imported triton as an interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "run.py", "bench", "kernels", "--static", "--json"]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    rows = json.loads(done.stdout)
    gradients = {"state_gradients", "chunk_gradients"}
    kernels = {"intra_chunk", "scan_forward", "scan_backward", "recurrent_steps"} | gradients
    assert {(row["kernel"], row["capability"]) for row in rows} == {(k, c) for k in kernels for c in SHARED_MEMORY}
    for row in rows:
        assert row["spilled"] == 0, row
        assert 0 < row["registers"] <= 255, row
        assert row["shared"] <= SHARED_MEMORY[row["capability"]], row
        assert row["bytes"] > 0 and row["flops"] > 0, row
        if row["kernel"] != "recurrent_steps":  # a step multiplies a vector by the state
            assert sum(row["matrix_instructions"].values()) > 0, row


def test_what_spills_or_is_too_large_does_not_fit() -> None:
    assert Resources(255, 0, 1000, {}).fit(1000)
    assert not Resources(255, 8, 1000, {}).fit(1000)
    assert not Resources(64, 0, 1001, {}).fit(1000)


def test_a_configuration_that_does_not_fit_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from suites.bench import static_kernels

    row = {
        "shape": "paper", "kernel": "scan_forward", "capability": 80, "configuration": {"BV": 64, "num_warps": 4},
        "bytes": 10, "flops": 10, "tokens_heads": 1, "registers": 255, "spilled": 8, "shared": 10,
        "matrix_instructions": {"mma.sync": 2}, "fits": False,
    }  # fmt: skip
    monkeypatch.setattr(static_kernels, "run", lambda *arguments: [row | {"fits": True, "spilled": 0}, row])
    result = CliRunner().invoke(app, ["bench", "kernels", "--static"])
    assert result.exit_code == 1
    assert "error: 1 of 2 configurations spill or do not fit" in result.output
    assert result.output.count("DOES NOT FIT") == 1


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--shapes", "huge"], "error: --shapes: 'huge' is none of paper, small"),
        (["--capabilities", "75"], "error: --capabilities: 75 is none of 80, 90, 100"),
        (["--capabilities", "sm_90"], "error: --capabilities: 'sm_90' are no numbers"),
    ],
)
def test_unknown_shapes_and_gpus_are_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", "kernels", "--static", *arguments])
    assert result.exit_code == 2
    assert message in result.output
