"""The numbers of figures have the intervals of tables, ours and the paper's."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from harness.experiments.presets import PRESETS
from harness.figures.numbers import chosen, heading, measured, printed, wide
from harness.figures.scores import ruler, scores
from harness.records import stats
from tests.harness.figures.figure_records import VALUES, WIDTHS
from tests.harness.tables.table_records import record, store


def test_numbers_have_the_interval_that_tables_have(frame: pd.DataFrame) -> None:
    numbers = measured(frame)
    own = numbers[(numbers["column"] == "mqar_acc@8") & (numbers["preset"] == WIDTHS[0])].set_index("mixer")
    low, high = stats.estimate(VALUES["gdn2"], [0.01] * 3, [100] * 3).interval
    assert own.loc["gdn2", ["value", "seeds", "n"]].tolist() == [pytest.approx(80), 3, 100]
    assert own.loc["gdn2", ["low", "high"]].tolist() == pytest.approx([100 * low, min(100 * high, 100)])
    assert numbers["stand_in"].sum() == 0
    shown = measured(frame.assign(stand_in="other prose"))
    assert shown["stand_in"].all()
    drawn = scores(shown[shown["task"] == "mqar"])
    assert drawn.get_axes()[0].get_title().startswith("mqar* acc") and "a stand-in" in drawn.get_suptitle()


def test_samples_that_all_agree_leave_an_error(frame: pd.DataFrame) -> None:
    one = frame[(frame["seed"] == 0)].assign(value=0.0, stderr=0.0)
    low, high = measured(one)[["low", "high"]].iloc[0]
    assert low == 0 and high > 100 * stats.proportion_floor(100)


def test_printed_numbers_carry_the_sampling_error_of_their_tasks() -> None:
    table = printed("table2", "recurrent").set_index(["column", "mixer"])
    piqa, average = table.loc["piqa_acc", "gdn2"], table.loc["avg_acc", "gdn2"]
    assert piqa["value"] == pytest.approx(72.80)
    assert piqa["high"] - piqa["value"] == pytest.approx(196 * math.sqrt(0.728 * 0.272 / 1838), rel=1e-3)
    # Nine tasks of some hundreds to thousands of items each are known better than any of them alone.
    assert 0 < average["high"] - average["low"] < (piqa["high"] - piqa["low"])
    assert math.isnan(table.loc["wikitext_ppl", "gdn2"]["low"])
    assert set(table.index.get_level_values("mixer")) == set(PRESETS["cpu-1m"].mixers)
    drawn = ruler(printed("table3", "hybrid"))
    assert [axes.get_title() for axes in drawn.get_axes()] == ["S-NIAH-1", "S-NIAH-2", "S-NIAH-3", "MK-NIAH-1"]


def test_baselines_are_left_out(tmp_path: Path) -> None:
    made = [
        record("gdn2", "novels", "word_perplexity", 40.0, 1.0),
        record("unigram", "novels", "word_perplexity", 900.0, 9.0, layout="baseline"),
    ]
    assert measured(store(tmp_path, made))["line"].tolist() == ["gdn2"]


def test_columns_are_chosen_in_the_order_asked_for(frame: pd.DataFrame) -> None:
    columns = ["overwrite_acc@2", "mqar_acc@8"]
    assert list(dict.fromkeys(chosen(measured(frame), columns)["column"])) == columns
    with pytest.raises(ValueError, match="no records of 'mqar_acc@5'"):
        chosen(measured(frame), ["mqar_acc@5"])


def test_a_number_is_written_with_its_standard_error_as_far_as_it_has_one(frame: pd.DataFrame) -> None:
    row = {"preset": "cpu-1m", "line": "gdn2", "stderr": math.nan}
    numbers = pd.DataFrame(
        [
            row | {"column": "a", "value": 72.8, "stderr": 1.02},
            row | {"column": "b", "value": 99.0, "stderr": 2.0},
            row | {"column": "c", "value": 15.9},
            row | {"column": "d", "line": "kda", "value": 1.0},
        ]
    )
    assert wide(numbers).loc["gdn2"].tolist() == ["72.8 ± 1.0", "99.0 ± 2.0", "15.90", "–"]
    # The same error as in tables.
    own = measured(frame).set_index(["preset", "mixer", "column"])["stderr"]
    error = 100 * stats.estimate(VALUES["gdn2"], [0.01] * 3, [100] * 3).stderr
    assert own[WIDTHS[0], "gdn2", "mqar_acc@8"] == pytest.approx(error)


def test_a_heading_names_metric_length_and_direction() -> None:
    assert heading("mqar", "acc", 16) == "mqar acc @16 ↑"
    assert heading("wikitext", "word_perplexity") == "wikitext ppl ↓"
