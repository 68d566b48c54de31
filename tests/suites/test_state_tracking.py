"""The state_tracking suite: who passes, who is at chance, what cannot be asked, and a run from training to a table."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lm_eval.api.model import LM
from torch import Tensor
from typer.testing import CliRunner

from harness.data.state_tracking import TASKS, Task, draw, states
from harness.data.tokenizer import load_tokenizer
from harness.lm.load import load_lm
from harness.records.store import load
from harness.tables.comparison import comparison
from run import app
from suites.state_tracking import Config, StateTracking
from tests.harness.training.tiny import metrics_lines


class Scripted(LM):
    """Answers with what `reads` gives for the rows, [R, T]."""

    tokenizer = load_tokenizer("ids:128")

    def __init__(self, reads: Callable[[Tensor], Tensor]):
        super().__init__()
        self.reads = reads

    def likeliest(self, inputs: Tensor, positions: Tensor) -> Tensor:
        return self.reads(inputs).gather(1, positions)

    loglikelihood = loglikelihood_rolling = generate_until = None


@pytest.mark.parametrize("task", TASKS)
def test_who_knows_the_state_is_right_and_who_always_names_one_is_at_chance(task: Task) -> None:
    config = Config(task=task, lengths=(24, 41), rows=400)
    found = {"right": [], "zero": []}
    for length in config.lengths:
        targets = torch.from_numpy(draw(task, length, "test 0", np.arange(400)).targets)
        one = config.model_copy(update={"lengths": (length,)})
        found["right"] += StateTracking().run(Scripted(lambda inputs, targets=targets: targets), one)
        found["zero"] += StateTracking().run(Scripted(torch.zeros_like), one)
    assert {m.value for m in found["right"]} == {1.0}
    scaled = [m for m in found["zero"] if m.metric == "scaled_acc"]
    assert [(m.task, m.length, m.n) for m in scaled] == [(task, 24, 400), (task, 41, 400)]
    for m in scaled:
        assert m.settings["chance"] == 0.0 and m.settings["states"] == states(task)
        # Four standard errors, of as many answers as rows at the least. A product with a zero is zero, so arithmetic
        # ends there more often than in one of five.
        spread = 4 * (1 / (states(task) - 1) / 400) ** 0.5
        assert -spread < m.value < spread + 0.3 * task.startswith("modular")


def test_only_the_last_quarter_counts_and_the_details_show_where_it_fails() -> None:
    def forgets(inputs: Tensor) -> Tensor:
        right = inputs.cumsum(1) % 2
        return torch.where(torch.arange(inputs.shape[1]) < 40, right, 1 - right)

    found = StateTracking().run(Scripted(forgets), Config(lengths=(40, 80), rows=20))
    values = {(m.task, m.metric, m.length): m.value for m in found}
    assert values["parity", "scaled_acc", 40] == 1.0 and values["parity", "scaled_acc", 80] == -1.0
    parts = [values["parity@80", "acc_by_position", length] for length in range(10, 81, 10)]
    assert parts == [1.0] * 4 + [0.0] * 4


def test_splits_and_seeds_have_rows_of_their_own() -> None:
    lm, config = Scripted(torch.zeros_like), Config(lengths=(12,), rows=5)
    chosen = StateTracking().validation(config)
    assert chosen.split == "validation" and StateTracking().validation(chosen) == chosen
    asked = (config, chosen, config.model_copy(update={"seed": 1}))
    assert len({StateTracking().run(lm, each)[0].settings["items_sha256"] for each in asked}) == 3


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="lengths: 1 is too short for modular_brackets; use at least 2"):
        Config(task="modular_brackets", lengths=(1, 8))
    with pytest.raises(ValueError, match="names one twice"):
        Config(lengths=(8, 8))
    StateTracking().check(Config(task="s5"), load_tokenizer("ids:120"))
    with pytest.raises(ValueError, match="tokenizer: ids:119 has too few ids for s5; train with .*tokenizer: ids:120"):
        StateTracking().check(Config(task="s5"), load_tokenizer("ids:119"))
    with pytest.raises(ValueError, match="tokenizer: its 4096 tokens are no bare ids for parity"):
        StateTracking().check(Config(), load_tokenizer())

    class Other(LM):
        tokenizer = load_tokenizer("ids:64")
        loglikelihood = loglikelihood_rolling = generate_until = None

    with pytest.raises(ValueError, match="state_tracking: Other reads text, and these rows are token ids; evaluate a"):
        StateTracking().run(Other(), Config())


def test_a_sweep_goes_from_training_with_a_growing_length_to_a_table(tmp_path: Path) -> None:
    phase = {"state_tracking": "s3", "steps": 30, "rows": 8, "lengths": [3, 12], "curriculum": 0.5}
    content = {
        "name": "tiny",
        "preset": "cpu-600k",
        "mixers": ["gated_deltanet"],
        "data": {"source": "synthetic", "tokenizer": "ids:12", "phases": [phase]},
        "train": {"lr": 1e-3, "threads": 1},
        "suites": {"state_tracking": {"task": "s3", "lengths": [12, 24], "rows": 20}},
    }
    path, runs, out = tmp_path / "tiny.yaml", tmp_path / "runs", tmp_path / "out"
    path.write_text(yaml.safe_dump(content))
    for command in (
        ["submit", str(path), "--cluster", "debug", "--runs", str(runs)],
        ["collect", str(path), "--runs", str(runs), "--out", str(out)],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    (folder,) = [found.parent for found in runs.glob("*/train.json")]
    assert "accuracy/s3" in metrics_lines(folder)[0]
    command = ["figure", str(path), "--what", "learning", "--out", str(out), "--runs", str(runs)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    frame, lm = load(out), load_lm(folder)
    drawn = draw("s3", 24, "test 0", np.arange(20))
    with torch.no_grad():
        likeliest = lm.model(torch.from_numpy(drawn.inputs))[0].argmax(-1).numpy()
    accuracy = (likeliest == drawn.targets)[:, 18:].mean()
    value = frame.set_index(["task", "metric", "length"])["value"]["s3", "scaled_acc", 24]
    assert value == pytest.approx((accuracy - 1 / 6) / (5 / 6))
    assert [column.name for column in comparison(frame).columns] == ["s3_scaled_acc@12", "s3_scaled_acc@24"]
