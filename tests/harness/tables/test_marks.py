"""Marks: which rows of a column are best, which pairs stay open, and what would settle them."""

from __future__ import annotations

import math

import numpy as np

from harness.records.significance import items_to_settle, items_to_settle_paired, seeds_to_settle
from harness.records.stats import mean_stderr
from harness.records.store import load_samples
from harness.tables.comparison import comparison
from tests.harness.tables.table_records import record, store


def marks(table, column: str) -> dict[str, str | None]:
    return {row.label: cell.mark for (row, c), cell in table.cells.items() if c.name == column}


def test_a_clear_winner_and_a_clear_second_are_marked(tmp_path):
    values = {"gdn2": 0.9, "kda": 0.7, "mamba2": 0.5, "mamba3_siso": 0.4}
    records = [record(label, "piqa", "acc", v, 0.05) for label, v in values.items()]
    table = comparison(store(tmp_path, records))
    # 0.5 and 0.4 are 0.1 apart with an error of 0.07: neither is the third, and both are worse than 0.7.
    assert marks(table, "piqa_acc") == {"gdn2": "bold", "kda": "underlined", "mamba2": None, "mamba3_siso": None}
    assert "**90.0 ± 5.0**" in table.markdown() and "<u>70.0 ± 5.0</u>" in table.markdown()


def test_rows_that_cannot_be_told_apart_share_the_mark_or_have_none(tmp_path):
    close = [record(label, "piqa", "acc", v, 0.05) for label, v in {"gdn2": 0.9, "kda": 0.85, "mamba2": 0.5}.items()]
    assert marks(comparison(store(tmp_path, close)), "piqa_acc") == {"gdn2": "bold", "kda": "bold", "mamba2": None}
    level = comparison(store(tmp_path, close[:2]))
    assert marks(level, "piqa_acc") == {"gdn2": None, "kda": None}
    assert "bold" not in level.markdown()


def test_many_rows_that_equal_are_not_marked_for_their_extremes(tmp_path):
    # 0.50 and 0.62 are 2.4 errors apart: p = 0.018 alone, and one of 45 pairs of which some would be as far by chance.
    values = np.linspace(0.50, 0.62, 10)
    many = [record(f"m{i}", "piqa", "acc", v, 0.035, n=5000) for i, v in enumerate(values)]
    table = comparison(store(tmp_path / "a", many))
    assert set(marks(table, "piqa_acc").values()) == {None}
    alone = comparison(store(tmp_path / "b", [many[0], many[-1]]))
    assert marks(alone, "piqa_acc") == {"m0": None, "m9": "bold"}
    assert "Holm's correction over all pairs of a group in a column; Welch's t)" in alone.markdown()


def test_what_would_settle_the_nearest_open_pairs_is_said_once(tmp_path):
    rng = np.random.default_rng(0)
    easy = rng.random(100) < 0.5
    other = easy.copy()
    other[np.flatnonzero(easy)[:4]] = False
    scores = {"gdn2": easy.astype(float), "kda": other.astype(float)}
    records = [record(k, "piqa", "acc", *mean_stderr(s), 100, samples=tuple(s)) for k, s in scores.items()]
    records += [
        record(label, "boolq", "acc", value, 0.01, 1000, seed=seed)
        for label, values in {"gdn2": (0.60, 0.70, 0.65), "kda": (0.62, 0.66, 0.64)}.items()
        for seed, value in enumerate(values)
    ]
    frame = store(tmp_path, records)
    (note,) = [n for n in comparison(frame, samples=load_samples(tmp_path)).notes if n.startswith("undecided pairs")]
    needed = items_to_settle_paired(0.04, 0.04)
    assert f"PIQA acc gdn2 − kda (4): {needed} samples, now 100" in note
    # Standard deviations of 0.05 and 0.02 about a gap of 0.01.
    seeds = seeds_to_settle(0.01, math.sqrt((0.05**2 + 0.02**2) / 2))
    assert f"BoolQ acc gdn2 − kda (1): {seeds} seeds a row, now 3" in note
    settled = [record(k, "piqa", "acc", v, 0.01) for k, v in {"gdn2": 0.9, "kda": 0.1}.items()]
    assert not any("undecided pairs" in n for n in comparison(store(tmp_path / "b", settled)).notes)


def test_what_would_settle_a_pair_counts_the_pairs_that_holm_has_left(tmp_path):
    # Three rows, of which two are 0.02 apart and far above the third: two pairs are rejected, and one is left.
    values = {"gdn2": 0.90, "kda": 0.88, "mamba2": 0.2}
    records = [record(label, "piqa", "acc", v, 0.01, 1000) for label, v in values.items()]
    (note,) = [n for n in comparison(store(tmp_path / "a", records)).notes if n.startswith("undecided pairs")]
    assert f"gdn2 − kda (2): {items_to_settle(0.90, 0.88):,} samples" in note
    # With a third row among the best, no pair is rejected: the next one must pass at a third of the level.
    close = [*records[:2], record("mamba2", "piqa", "acc", 0.87, 0.01, 1000)]
    (note,) = [n for n in comparison(store(tmp_path / "b", close)).notes if n.startswith("undecided pairs")]
    assert f"gdn2 − kda (2): {items_to_settle(0.90, 0.88, 0.05 / 3):,} samples" in note
    assert items_to_settle(0.90, 0.88, 0.05 / 3) > items_to_settle(0.90, 0.88)


def test_low_is_best_where_the_metric_says_so(tmp_path):
    records = [record(label, "lambada", "perplexity", v, 0.1) for label, v in {"gdn2": 11.0, "kda": 12.0}.items()]
    assert marks(comparison(store(tmp_path, records)), "lambada_ppl") == {"gdn2": "bold", "kda": None}


def test_layouts_are_marked_apart(tmp_path):
    records = [
        record(label, "piqa", "acc", value, 0.01, layout=layout)
        for layout, shift in (("recurrent", 0.0), ("hybrid", 0.2))
        for label, value in (("gdn2", 0.5 + shift), ("kda", 0.4 + shift))
    ]
    table = comparison(store(tmp_path, records))
    found = {(row.layout, row.label): cell.mark for (row, _), cell in table.cells.items()}
    assert found["recurrent", "gdn2"] == found["hybrid", "gdn2"] == "bold"
    assert found["recurrent", "kda"] is found["hybrid", "kda"] is None


def test_nothing_is_marked_where_an_error_is_unknown(tmp_path):
    records = [record("gdn2", "piqa", "acc", 0.9, None), record("kda", "piqa", "acc", 0.1, 0.01)]
    table = comparison(store(tmp_path, records))
    assert set(marks(table, "piqa_acc").values()) == {None}
    assert any("without ±" in note for note in table.notes)


def test_samples_on_the_same_items_sharpen_the_comparison_and_others_do_not(tmp_path):
    rng = np.random.default_rng(0)
    easy = rng.random(200) < 0.5
    # kda fails on ten items that gdn2 solves and agrees on the rest: p = 0.001 paired, 0.3 unpaired.
    scores = {"gdn2": easy.astype(float), "kda": np.where(np.cumsum(easy) <= 10, 0.0, easy)}

    def table(settings: dict[str, dict]):
        records = [
            record(label, "piqa", "acc", *mean_stderr(s), 200, samples=tuple(s), settings=settings[label])
            for label, s in scores.items()
        ]
        frame = store(tmp_path, records)
        return frame, load_samples(tmp_path)

    frame, samples = table({"gdn2": {"items": "x"}, "kda": {"items": "x"}})
    assert marks(comparison(frame, samples=samples), "piqa_acc") == {"gdn2": "bold", "kda": None}
    assert marks(comparison(frame), "piqa_acc") == {"gdn2": None, "kda": None}
    frame, samples = table({"gdn2": {"items": "x"}, "kda": {"items": "y"}})
    mixed = comparison(frame, samples=samples, allow_mixed=True)
    assert marks(mixed, "piqa_acc") == {"gdn2": None, "kda": None}
