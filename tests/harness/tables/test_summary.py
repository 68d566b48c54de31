"""The summary: who leads in what and by how much, as far as constructed collections with known answers allow it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from harness.records.record import Record
from harness.records.stats import mean_stderr
from harness.records.store import load_samples
from harness.tables.comparison import comparison
from harness.tables.summary import MOST, summary
from harness.tables.verdicts import MET, NOT_MET, UNDECIDED, Verdict
from tests.harness.tables.table_records import record, run_row, store

ITEMS = 400


def scored(label: str, share: float, seed: int = 0, task: str = "piqa", **changes) -> Record:
    """A record with 0/1 scores: the first `share` of the items are right, so that rows nest; a seed turns one item."""
    scores = (np.arange(ITEMS) < round(share * ITEMS) + seed).astype(float)
    settings = {"items": task}
    return record(
        label, task, "acc", *mean_stderr(scores), ITEMS, seed=seed, samples=tuple(scores), settings=settings, **changes
    )


def summed(folder: Path, records: list[Record], verdicts: tuple[Verdict, ...] = (), **runs) -> dict[str, str]:
    """The lines of the summary by what stands before their colon. runs: further fields of every run."""
    frame = store(folder, records)
    rows = [
        run_row(r.label, r.mixer, r.layout, r.seed, preset=r.preset, **runs)
        for r in {r.run: r for r in records}.values()
    ]
    known = pd.DataFrame(rows)
    lines = summary(comparison(frame, runs=known, samples=load_samples(folder)), known, verdicts)
    assert len(lines) <= MOST and len({line.partition(": ")[0] for line in lines}) == len(lines)
    return dict(line.split(": ", 1) for line in lines)


def test_a_clear_lead_of_several_seeds_is_the_mixers_and_has_its_interval(tmp_path):
    records = [scored(label, share, seed) for label, share in {"gdn2": 0.9, "kda": 0.6}.items() for seed in (0, 1, 2)]
    lines = summed(tmp_path, records)
    assert lines["language"].startswith("gdn2 leads in 1 of 1 column (PIQA acc: +30.0 points [")
    low, high = map(float, lines["language"].partition("[")[2].partition("]")[0].split(", "))
    assert 20 < low < 30 < high < 40 and lines["language"].endswith("over kda)")
    assert lines["scale"] == "2 models, 1.184M non-embedding parameters, 1.001M training tokens, 3 seeds a row"
    assert "checkpoint" not in str(lines) and "other seeds" not in lines["not shown"]


def test_with_one_seed_a_lead_is_a_checkpoints(tmp_path):
    lines = summed(tmp_path, [scored("gdn2", 0.9), scored("kda", 0.6)])
    assert lines["language"].startswith("this checkpoint of gdn2 leads in 1 of 1 column (PIQA acc: +30.0 points [")
    assert lines["scale"].endswith("one seed: what follows is about these checkpoints, not about the mixers")
    assert "other seeds" in lines["not shown"] and "why a row leads" in lines["not shown"]


def test_a_tie_is_said_with_its_interval(tmp_path):
    lines = summed(tmp_path, [scored("gdn2", 0.605), scored("kda", 0.6)])
    assert lines["language"].startswith(
        "no row is told apart from the best in 1 of 1 column (PIQA acc: gdn2 +0.50 points [−"
    )
    assert "leads" not in lines["language"]


def test_rows_that_share_the_lead_are_named_together(tmp_path):
    lines = summed(tmp_path, [scored("gdn2", 0.905), scored("kda", 0.9), scored("mamba2", 0.3)])
    said = "this checkpoint of gdn2 is best in 1 of 1 column, not told apart from kda (PIQA acc: +60.5 points ["
    assert lines["language"].startswith(said) and lines["language"].endswith("] over mamba2)")


def test_a_lead_among_many_columns_counts_all_pairs_of_its_suite(tmp_path):
    # 9 items apart: p = 0.004 by McNemar's test, one of one pair or one of thirty.
    few = [scored(label, share) for label, share in {"gdn2": 0.5225, "kda": 0.5}.items()]
    assert "leads in 1 of 1 column" in summed(tmp_path / "a", few)["language"]
    others = [scored(label, 0.5, task=f"t{i}") for label in ("gdn2", "kda") for i in range(29)]
    assert "leads" not in summed(tmp_path / "b", [*few, *others])["language"]
    elsewhere = [scored(label, 0.5, task=f"t{i}", suite="recall") for label in ("gdn2", "kda") for i in range(29)]
    assert "leads in 1 of 1 column" in summed(tmp_path / "c", [*few, *elsewhere])["language"]


def test_a_lower_perplexity_leads_and_its_lead_is_positive(tmp_path):
    records = [record(label, "novels", "word_perplexity", v, 0.5) for label, v in {"gdn2": 30.0, "kda": 40.0}.items()]
    line = summed(tmp_path, records)["language"]
    assert line.startswith("this checkpoint of gdn2 leads in 1 of 1 column (novels ppl: +10.0 [8.6, 11.4] over kda)")


def test_what_was_tuned_is_said_and_where_nothing_was(tmp_path):
    records = [scored("gdn2", 0.9), scored("kda", 0.6)]
    assert summed(tmp_path / "a", records)["tuned"].startswith("nothing; all rows have the experiment's values")
    tuned = {
        "tuned": {"train.lr": 0.01},
        "trials": 12,
        "tuned_at": "cpu-1m",
        "tuned_share": 1.0,
        "at_edge": ["train.lr"],
    }
    line = summed(tmp_path / "b", records, **tuned)["tuned"]
    assert line == "lr, by 12 trials at cpu-1m; at the edge of the grid, where a wider one may do better, for 2 rows"


def test_tuned_rows_are_found_where_labels_carry_their_preset(tmp_path):
    records = [
        dataclasses.replace(scored(label, 0.5, preset=preset), run=f"{label}-{preset}")
        for label in ("gdn2", "kda")
        for preset in ("cpu-1m", "cpu-600k")
    ]
    tuned = {"tuned": {"train.lr": 0.01}, "trials": 3, "tuned_at": "cpu-1m", "tuned_share": 1.0, "at_edge": []}
    frame = store(tmp_path, records)
    runs = pd.DataFrame([run_row(r.label, r.mixer, r.layout, 0, run=r.run, preset=r.preset, **tuned) for r in records])
    lines = summary(comparison(frame, runs=runs, samples=load_samples(tmp_path)), runs, ())
    assert "tuned: lr, by 3 trials at cpu-1m" in lines
    assert any(line.startswith("language (recurrent, cpu-600k): ") for line in lines)


def test_truths_are_counted_and_the_first_of_each_outcome_is_named(tmp_path):
    records = [scored("gdn2", 0.9), scored("kda", 0.6)]
    assert summed(tmp_path / "a", records)["truths"] == "none is stated"
    verdicts = (Verdict(UNDECIDED, "u", ""), Verdict(MET, "m", ""), Verdict(MET, "o", ""), Verdict(NOT_MET, "n", ""))
    line = summed(tmp_path / "b", records, verdicts)["truths"]
    assert line == "2 met, 1 not met, 1 undecided (not met: n; met: m; undecided: u)"


def test_failed_and_missing_rows_are_counted(tmp_path):
    frame = store(tmp_path, [scored("gdn2", 0.9)])
    runs = pd.DataFrame([run_row("gdn2", "gdn2", "recurrent", 0), run_row("kda", "kda", "recurrent", 0, failure="nan")])
    lines = summary(comparison(frame, runs=runs), runs, ())
    assert "missing: 1 of 2 rows have no numbers yet, 1 run failed" in lines
    assert "no two rows of a layout have numbers with errors in the same column: nothing is compared" in lines


def test_columns_that_are_not_the_papers_are_counted(tmp_path):
    records = [scored(label, 0.5, stand_in="x") for label in ("gdn2", "kda")] + [scored("gdn2", 0.5, task="boolq")]
    assert "the paper's measurements in 1 of 2 columns" in summed(tmp_path, records)["not shown"]


def test_many_suites_leave_ten_lines(tmp_path):
    records = [scored(label, 0.5, suite=f"s{i}") for label in ("gdn2", "kda") for i in range(9)]
    assert summed(tmp_path, records)["in the tables"] == "s3, s4, s5, s6, s7, s8"
