"""Figures of scores show the records' numbers: recall, RULER, ablations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from harness.figures.numbers import measured
from harness.figures.scores import (
    ablation_numbers,
    ablations,
    published_ablations,
    recall,
    recall_numbers,
    ruler,
    scores,
)
from harness.figures.style import LOOK, OTHERS
from harness.records import stats
from harness.records.published import VARIANTS
from harness.records.significance import printed_gap
from tests.harness.figures.figure_records import VALUES, WIDTHS
from tests.harness.tables.table_records import record, store


def test_the_numbers_are_means_with_the_standard_error_of_tables_in_percent(frame: pd.DataFrame) -> None:
    numbers = recall_numbers(frame)
    assert len(numbers) == len(WIDTHS) * len(VALUES) * 4 and set(numbers["seeds"]) == {3}
    keys = ["task", "metric", "preset", "mixer", "length"]
    found = {tuple(row[:5]): row[5:] for row in numbers[[*keys, "value", "stderr"]].itertuples(index=False, name=None)}
    # Over three seeds sd²/3, and over samples the point that every record of the fixture has.
    assert found["mqar", "acc", "cpu-recall-32", "gdn2", 8] == pytest.approx((80, math.sqrt(100 / 3 + 1)))
    assert found["mqar", "acc", "cpu-recall-64", "gdn2", 4] == pytest.approx((40, math.sqrt(25 / 3 + 1)))
    assert found["overwrite", "stale", "cpu-recall-64", "own", 2] == pytest.approx((20, math.sqrt(100 / 3 + 1)))
    assert found["mqar", "acc", "cpu-recall-32", "kda", 8] == pytest.approx((50, 1))


def test_every_panel_has_a_line_and_a_band_per_mixer_through_those_numbers(frame: pd.DataFrame) -> None:
    drawn = recall(frame)
    panels = drawn.get_axes()
    assert [axes.get_title() for axes in panels] == ["mqar acc ↑", "overwrite acc ↑", "overwrite stale ↓", "", "", ""]
    assert [panels[i].get_ylabel() for i in (0, 3)] == [f"{width}\n%" for width in WIDTHS]
    assert panels[3].get_xlabel() == "key-value pairs"
    for i, axes in enumerate(panels):
        guessing, shown = axes.get_lines()[: i % 3 == 0], axes.get_lines()[i % 3 == 0 :]
        assert all(line.get_xydata().tolist() == [[4, 25], [8, 12.5]] for line in guessing)
        assert [line.get_label() for line in shown] == ["GDN2", "KDA", "OWN"]
        assert [to_hex(line.get_color()).upper() for line in shown] == [
            LOOK["gdn2"][0],
            LOOK["kda"][0],
            OTHERS[0][0],
        ]
        assert len(axes.collections) == 3
    line, band = panels[0].get_lines()[1], panels[0].collections[0]
    np.testing.assert_allclose(line.get_xydata(), [(4, 40), (8, 80)])
    edge = band.get_paths()[0].vertices[:, 1]
    few, many = math.sqrt(25 / 3 + 1), math.sqrt(100 / 3 + 1)
    assert {round(y, 6) for y in edge} == {round(y, 6) for y in (40 - few, 40 + few, 80 - many, 80 + many)}
    assert drawn.get_suptitle() == "mean of 3 seeds; band ± one standard error over seeds and samples"


def test_one_seed_has_the_error_over_samples_and_says_so(frame: pd.DataFrame) -> None:
    one = frame[frame["seed"] == 0]
    assert recall_numbers(one)["stderr"].tolist() == pytest.approx([1.0] * len(recall_numbers(one)))
    drawn = recall(one)
    np.testing.assert_allclose(drawn.get_axes()[0].get_lines()[1].get_ydata(), [35, 70])
    assert drawn.get_suptitle() == "one seed; band ± one standard error over samples"


def test_the_value_of_guessing_is_drawn_where_it_is_known(tmp_path: Path) -> None:
    known = record("gdn2", "mod_add", "acc", 0.5, 0.01, settings={"chance": 0.2}, suite="state_tracking", length=64)
    made = [record("gdn2", "piqa", "acc", 0.6, 0.01), known, record("gdn2", "novels", "word_perplexity", 40.0, 1.0)]
    numbers = measured(store(tmp_path, made))
    assert numbers.set_index("task")["chance"].round(6).to_dict() == pytest.approx(
        {"piqa": 50, "mod_add": 20, "novels": math.nan}, nan_ok=True
    )
    drawn = scores(numbers)
    dashed = [[line.get_xdata()[0] for line in axes.get_lines() if line.get_linestyle() == "--"] for axes in drawn.axes]
    assert dashed == [[50], [], [20]] and "dashed: guessing" in drawn.get_suptitle()
    assert drawn.axes[0].get_xlim()[0] < 50  # and it is in sight


def test_a_label_in_two_layouts_is_two_lines_called_by_their_layouts(frame: pd.DataFrame) -> None:
    hybrid = frame.assign(layout="hybrid", value=frame["value"] / 2)
    labels = [line.get_label() for line in recall(pd.concat([frame, hybrid])).get_axes()[0].get_lines()[1:]]
    assert labels[::3] == ["GDN2 (recurrent)", "GDN2 (hybrid)"] and len(set(labels)) == 6


def ruler_frame(tmp_path: Path, lengths: tuple[int, ...]) -> pd.DataFrame:
    made = [
        record(mixer.upper(), "s_niah_1", metric, value / (i + 1), 0.02, length=length, suite="ruler", mixer=mixer)
        for i, length in enumerate(lengths)
        for mixer, score in (("gdn2", 0.8), ("kda", 0.6))
        for metric, value in (("contains", score), ("needle_logprob", -score), ("needle_gain", score))
    ]
    return store(tmp_path / "runs", made)


def test_ruler_is_drawn_over_length_and_as_points_where_there_is_one(tmp_path: Path) -> None:
    drawn = ruler(measured(ruler_frame(tmp_path, (1024, 2048))))
    accuracy, gain = drawn.get_axes()
    np.testing.assert_allclose(accuracy.get_lines()[0].get_xydata(), [(1024, 80), (2048, 40)])
    assert [label.get_text() for label in gain.get_xticklabels()] == ["1K", "2K"]
    np.testing.assert_allclose(gain.get_lines()[1].get_ydata(), [0.6, 0.3])
    one = ruler(measured(ruler_frame(tmp_path / "one", (320,))))
    assert [axes.get_title() for axes in one.get_axes()] == [
        "s_niah_1 contains\n@320 ↑",
        "s_niah_1 needle\ngain, nats/token\n@320 ↑",
    ]
    assert "one seed; 95% interval over samples" in one.get_suptitle()


def test_ablations_are_differences_from_the_model_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base, scalar = (rng.random(200) < 0.8).astype(float), (rng.random(200) < 0.5).astype(float)
    made, samples = [], {}
    for label, correct in (("GDN2", base), ("GDN2, scalar erase gate", scalar)):
        error = float(correct.std(ddof=1) / math.sqrt(200))
        own = record(
            label, "s_niah_2", "contains", correct.mean(), error, 200, suite="ruler", length=4096, mixer="gdn2"
        )
        text = record(label, "wikitext", "word_perplexity", 10.0 + len(made), 0.5, mixer="gdn2")
        made += [own, text]
        samples[own.key] = tuple(correct)
    numbers = ablation_numbers(store(tmp_path, made), samples).set_index("column")
    assert set(numbers.index) == {"s_niah_2@4096", "wikitext_ppl"} and set(numbers["variant"]) == {"scalar erase gate"}
    truth = stats.paired(tuple(scalar), tuple(base))
    found = numbers.loc["s_niah_2@4096", ["difference", "low", "high"]].tolist()
    assert found == pytest.approx([100 * truth.difference, 100 * truth.low, 100 * truth.high])
    assert numbers.loc["wikitext_ppl", "difference"] == pytest.approx(2.0)
    drawn = ablations(numbers.reset_index())
    assert [patch.get_width() for axes in drawn.get_axes() for patch in axes.patches] == pytest.approx(
        numbers["difference"].tolist()
    )


def test_the_papers_ablations_have_intervals_where_its_tasks_are_known() -> None:
    numbers = published_ablations().set_index(["column", "variant"])
    number = numbers.loc["s_niah_3@2048", VARIANTS["w_only"]]
    gap = printed_gap(0.714, 0.898, 500)
    assert number[["difference", "low", "high"]].tolist() == pytest.approx([-18.4, 100 * gap.low, 100 * gap.high])
    assert numbers["low"].isna().groupby(level="column").all().to_dict() == {
        "wikitext_ppl": True,
        "lambada_ppl": True,
        "avg_acc": True,
        "s_niah_2@4096": False,
        "s_niah_3@2048": False,
        "mk_niah_1@4096": False,
        "avg": True,
    }


def test_a_wide_range_of_perplexities_has_a_logarithmic_axis(tmp_path: Path) -> None:
    values = {"near": (40.0, 50.0), "far": (40.0, 4000.0)}
    made = [
        record(label, task, "word_perplexity", value, 1.0, mixer=label)
        for task, pair in values.items()
        for label, value in zip(("gdn2", "kda"), pair, strict=True)
    ]
    panels = scores(measured(store(tmp_path, made))).get_axes()
    assert {axes.get_title().split()[0]: axes.get_xscale() for axes in panels} == {"near": "linear", "far": "log"}
