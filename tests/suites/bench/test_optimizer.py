"""The benchmark of an optimiser step: its rows, and no comparison of forms that take other steps."""

import json

import pytest
import torch
from typer.testing import CliRunner

from run import app
from suites.bench import optimizer

cli = CliRunner()


def test_every_form_of_a_step_has_its_time_and_spread() -> None:
    result = cli.invoke(app, ["bench", "optimizer", "--preset", "cpu-600k", "--steps", "2", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["form"], row["clips"]) for row in rows] == [
        ("mixerbench", True),
        ("AdamW fused, clip_grad_norm_", True),
        ("AdamW fused, not clipped", False),
        ("AdamW foreach, clip_grad_norm_", True),
        ("AdamW foreach, not clipped", False),
        ("AdamW loop, clip_grad_norm_", True),
        ("AdamW loop, not clipped", False),
    ]
    for row in rows:
        assert 0 < row["low_ms"] <= row["ms"] <= row["high_ms"] and row["steps"] == 2
        assert row["parameters_per_second"] == pytest.approx(1e3 * row["parameters"] / row["ms"])
        # Bytes per second are a GPU's alone: a CPU's caches hold so small a model.
        assert (row["bytes_per_second"] is None) == row["device"].startswith("cpu")
    assert "AdamW loop, not clipped" in optimizer.render(rows)


def test_forms_that_do_not_take_the_same_steps_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optimizer.ADAMW, "foreach", {"foreach": True, "eps": 1e-3})
    with pytest.raises(RuntimeError, match="AdamW foreach, clip_grad_norm_: its weights end .* are not compared"):
        optimizer.run("cpu-600k", 2, torch.device("cpu"))


def test_nothing_to_time_is_refused() -> None:
    result = cli.invoke(app, ["bench", "optimizer", "--steps", "0"])
    assert result.exit_code == 2 and "--steps: 0 leaves nothing to time" in result.output
