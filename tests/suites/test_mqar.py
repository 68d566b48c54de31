"""The mqar suite: who passes, which details it gives, what cannot be asked, and a run from training to records."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lm_eval.api.model import LM
from torch import Tensor
from typer.testing import CliRunner

from harness.data.mqar import draw
from harness.data.tokenizer import load_tokenizer
from harness.experiments.matching import matched_config
from harness.lm.generate import NotFinite
from harness.lm.load import load_lm
from harness.lm.mixer_lm import MixerLM
from harness.model.language_model import build_model
from harness.records.stats import mean_stderr
from harness.records.store import load, load_samples
from harness.run_folder import RunFolder
from harness.tables.comparison import comparison
from run import app
from suites.mqar import Config, Mqar, clustered_mean
from tests.harness.training.tiny import metrics_lines

SETS = [{"pairs": 2, "seq_len": 16}, {"pairs": 8, "seq_len": 48}]


class Scripted(LM):
    """Answers every question with what `reads` gives for the listed keys, their values and the key asked for."""

    def __init__(self, reads: Callable[[list[int], list[int], int], int], ids: str = "ids:64"):
        super().__init__()
        self.reads, self.tokenizer = reads, load_tokenizer(ids)

    def likeliest(self, inputs: Tensor, positions: Tensor) -> Tensor:
        listed = 2 * positions.shape[1]
        answers = [
            [self.reads(row[:listed:2], row[1:listed:2], row[at]) for at in asked]
            for row, asked in zip(inputs.tolist(), positions.tolist(), strict=True)
        ]
        return torch.tensor(answers)

    def loglikelihood(self, requests: Any) -> Any:
        raise AssertionError("not asked for")

    loglikelihood_rolling = generate_until = loglikelihood


def test_a_reader_is_right_everywhere() -> None:
    lm = Scripted(lambda keys, values, key: values[keys.index(key)])
    found = Mqar().run(lm, Config(sets=SETS, rows=15))
    assert {m.value for m in found} == {1.0}
    assert [(m.length, m.n) for m in found if m.metric == "acc"] == [(2, 15), (8, 15)]
    for m in found:
        pairs = m.length if m.metric == "acc" else int(m.task.removeprefix("mqar@"))
        assert m.settings["chance"] == 1 / pairs and m.settings["questions"] == 15 * pairs
        assert (m.settings["protocol"], m.settings["split"]) == ("separated", "test")
        assert m.settings["seq_len"] == {2: 16, 8: 48}[pairs]


def test_who_names_the_value_listed_last_is_right_once_in_a_row_and_the_details_say_where() -> None:
    found = Mqar().run(Scripted(lambda keys, values, key: values[-1]), Config(sets=SETS, rows=200))
    for pairs in (2, 8):
        (acc,) = [m for m in found if m.metric == "acc" and m.length == pairs]
        assert acc.value == acc.settings["chance"] == 1 / pairs and acc.stderr == 0 and acc.task == "mqar"
        of = [m for m in found if m.task == f"mqar@{pairs}"]
        places = {m.length: m for m in of if m.metric == "acc_by_position"}
        assert [places[n].value for n in range(1, pairs + 1)] == [0.0] * (pairs - 1) + [1.0]
        assert {m.n for m in places.values()} == {acc.n}
        distances = [m for m in of if m.metric == "acc_by_distance"]
        assert sum(m.n for m in distances) == 200 * pairs
        assert sum(m.n * m.value for m in distances) == pytest.approx(200)
        lengths = [m.length for m in distances]
        assert all(n & (n - 1) == 0 for n in lengths) and max(lengths) <= 64
        # The pair listed last is the nearest, so questions that are far away never ask for it.
        assert distances[-1].value < distances[0].value


def test_distances_fall_into_bins_up_to_powers_of_two() -> None:
    lm = Scripted(lambda keys, values, key: values[keys.index(key)])
    found = Mqar().run(lm, Config(sets=SETS[1:], rows=50, protocol="zoology"))
    distances = draw(8, 48, 64, "zoology", "test 0", np.arange(50)).distances
    for m in found:
        if m.metric == "acc_by_distance":
            assert m.n == ((distances <= m.length) & (distances > m.length // 2)).sum()


def test_errors_treat_rows_as_the_samples() -> None:
    right = np.random.default_rng(0).random((50, 4)) < 0.6
    everything = np.ones_like(right)
    assert clustered_mean(right, everything) == pytest.approx((*mean_stderr(right.mean(axis=1)), 200))
    one = np.zeros_like(right)
    one[:, 2] = True
    assert clustered_mean(right, one) == pytest.approx((*mean_stderr(right[:, 2]), 50))
    alike = np.repeat(right[:, :1], 4, axis=1)  # four copies of one answer are worth one
    assert clustered_mean(alike, everything)[:2] == pytest.approx(mean_stderr(right[:, 0]))
    assert clustered_mean(right, one & (np.arange(50) == 7)[:, None]) == (float(right[7, 2]), None, 1)


def test_splits_and_seeds_have_rows_of_their_own_and_the_validation_split_is_no_reports() -> None:
    lm = Scripted(lambda keys, values, key: 0)
    config = Config(sets=SETS[:1], rows=10)
    chosen = Mqar().validation(config)
    assert chosen == config.model_copy(update={"split": "validation"}) == Mqar().validation(chosen)
    hashes = {
        Mqar().run(lm, c)[0].settings["items_sha256"] for c in (config, chosen, config.model_copy(update={"seed": 1}))
    }
    assert len(hashes) == 3


def test_options_that_fit_no_row_are_refused() -> None:
    with pytest.raises(ValueError, match="seq_len: 15 is too short for 4 pairs; use at least 16"):
        Config(sets=[{"pairs": 4, "seq_len": 15}])
    with pytest.raises(ValueError, match=r"pairs: \[4, 4\] has one twice"):
        Config(sets=[{"pairs": 4, "seq_len": 16}, {"pairs": 4, "seq_len": 32}])
    Mqar().check(Config(sets=SETS), load_tokenizer("ids:18"))
    with pytest.raises(ValueError, match="sets: 8 pairs have more keys than ids:17 has; train with ids:18 or more"):
        Mqar().check(Config(sets=SETS), load_tokenizer("ids:17"))
    with pytest.raises(ValueError, match="tokenizer: its 4096 tokens are no bare ids.*or use the suite recall"):
        Mqar().check(Config(), load_tokenizer())


def test_a_model_that_reads_text_is_refused() -> None:
    class Other(LM):
        tokenizer = load_tokenizer("ids:64")
        loglikelihood = loglikelihood_rolling = generate_until = None

    with pytest.raises(ValueError, match="mqar: Other reads text, and these rows are token ids; evaluate a run of"):
        Mqar().run(Other(), Config(sets=SETS))


def test_a_model_whose_outputs_are_not_finite_has_no_accuracy() -> None:
    ids = load_tokenizer("ids:64")
    config = matched_config("cpu-600k", "recurrent", "gated_deltanet", vocab_size=len(ids))
    lm = MixerLM(build_model(config, 0), ids)
    lm.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(NotFinite, match="mqar@2, sample 0: the model's output is not finite"):
        Mqar().run(lm, Config(sets=SETS, rows=2))


def test_a_sweep_on_bare_ids_goes_from_training_to_a_table(tmp_path: Path) -> None:
    sets = [{"pairs": 1, "seq_len": 4, "examples": 400}, {"pairs": 2, "seq_len": 10, "examples": 400}]
    scored = [{key: each[key] for key in ("pairs", "seq_len")} for each in sets]
    content = {
        "name": "tiny",
        "preset": "cpu-600k",
        "mixers": ["attention"],
        "data": {"source": "synthetic", "tokenizer": "ids:12", "phases": [{"mqar": sets, "rows": 20}]},
        "train": {"lr": 1e-3, "threads": 1},
        "suites": {"mqar": {"sets": scored, "rows": 50}},
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
    assert {"accuracy/mqar@1", "accuracy/mqar@2"} <= set(metrics_lines(folder)[0])
    frame = load(out)
    values = frame.set_index(["task", "metric", "length"])["value"]
    lm = load_lm(folder)
    drawn = draw(2, 10, 12, "separated", "test 0", np.arange(50))
    with torch.no_grad():
        likeliest = lm.model(torch.from_numpy(drawn.inputs))[0].argmax(-1).numpy()
    right = (likeliest == drawn.targets)[drawn.counted].reshape(50, 2).mean(axis=1)
    assert values["mqar", "acc", 2] == right.mean()
    (scores,) = [scores for key, scores in load_samples(out).items() if key[2:] == ("mqar", "acc", 2)]
    assert list(scores) == right.tolist()
    assert [column.name for column in comparison(frame).columns] == ["mqar_acc@1", "mqar_acc@2"]
    assert set(frame["metric"]) == {"acc", "acc_by_position", "acc_by_distance"}
    assert RunFolder(folder).read_summary().tokens_seen == 20 * 20 * (4 + 10)
