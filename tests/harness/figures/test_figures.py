"""Figures: the numbers behind them, a line a mixer, and what cannot be drawn."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from harness import figures
from harness.experiments.presets import PRESETS
from harness.figures import LOOK, OTHERS, Look, looks, recall, recall_numbers, write_figure
from harness.figures.speed import floor_ms
from harness.figures.style import WIDTH
from harness.records import stats
from harness.records.published import VARIANTS
from harness.records.significance import printed_gap
from mixers.registry import entries, get
from tests.harness.tables.test_comparison import record, store

VALUES = {"gdn2": (0.7, 0.9, 0.8), "kda": (0.5, 0.5, 0.5), "own": (0.1, 0.2, 0.3)}
WIDTHS = ("cpu-recall-32", "cpu-recall-64")


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    """Three mixers, three seeds, two widths, two difficulties of mqar and one of overwrite with both metrics."""
    own = {"suite": "recall", "settings": {"length_unit": "key-value pairs"}}
    asked = [
        ("mqar", "acc", 8, 1.0),
        ("mqar", "acc", 4, 0.5),
        ("overwrite", "acc", 2, 1.0),
        ("overwrite", "stale", 2, 1.0),
    ]
    records = []
    for preset in WIDTHS:
        for mixer, values in VALUES.items():
            for seed, value in enumerate(values):
                run = {"preset": preset, "seed": seed, "mixer": mixer}
                made = [
                    record(mixer.upper(), task, metric, value * scale, 0.01, length=length, **run, **own)
                    for task, metric, length, scale in asked
                ]
                records += [replace(r, run=f"{mixer}-{preset}-{seed}") for r in made]
    other = record("GDN2", "piqa", "acc", 0.6, 0.01, mixer="gdn2", preset=WIDTHS[0])
    return store(tmp_path / "runs", [*records, replace(other, run=f"gdn2-{WIDTHS[0]}-0")])


def test_the_numbers_are_mean_and_standard_deviation_over_seeds_in_percent(frame: pd.DataFrame) -> None:
    numbers = recall_numbers(frame)
    assert len(numbers) == len(WIDTHS) * len(VALUES) * 4 and set(numbers["seeds"]) == {3}
    keys = ["task", "metric", "preset", "mixer", "length"]
    found = {tuple(row[:5]): row[5:] for row in numbers[[*keys, "mean", "sd"]].itertuples(index=False, name=None)}
    assert found["mqar", "acc", "cpu-recall-32", "gdn2", 8] == pytest.approx((80, 10))
    assert found["mqar", "acc", "cpu-recall-64", "gdn2", 4] == pytest.approx((40, 5))
    assert found["overwrite", "stale", "cpu-recall-64", "own", 2] == pytest.approx((20, 10))
    assert found["mqar", "acc", "cpu-recall-32", "kda", 8] == pytest.approx((50, 0))


def test_every_panel_has_a_line_and_a_band_a_mixer_through_those_numbers(frame: pd.DataFrame) -> None:
    drawn = recall(frame)
    panels = drawn.get_axes()
    assert [axes.get_title() for axes in panels] == ["mqar acc ↑", "overwrite acc ↑", "overwrite stale ↓", "", "", ""]
    assert [panels[i].get_ylabel() for i in (0, 3)] == [f"{width}\n%" for width in WIDTHS]
    assert panels[3].get_xlabel() == "key-value pairs"
    for axes in panels:
        assert [line.get_label() for line in axes.get_lines()] == ["GDN2", "KDA", "OWN"]
        assert [to_hex(line.get_color()).upper() for line in axes.get_lines()] == [
            LOOK["gdn2"][0],
            LOOK["kda"][0],
            OTHERS[0][0],
        ]
        assert len(axes.collections) == 3
    line, band = panels[0].get_lines()[0], panels[0].collections[0]
    np.testing.assert_allclose(line.get_xydata(), [(4, 40), (8, 80)])
    edge = {tuple(point) for point in np.round(band.get_paths()[0].vertices, 6).tolist()}
    assert edge == {(4, 35), (4, 45), (8, 70), (8, 90)}


def test_one_seed_is_drawn_without_a_band(frame: pd.DataFrame) -> None:
    one = frame[frame["seed"] == 0]
    assert recall_numbers(one)["sd"].isna().all()
    axes = recall(one).get_axes()[0]
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), [35, 70])
    assert not any(np.isfinite(path.vertices).any() for band in axes.collections for path in band.get_paths())


def test_a_mixer_has_one_look_whatever_else_is_drawn_and_no_two_share_one() -> None:
    known = set(LOOK) & set(entries())
    assert known == set(LOOK) and set(PRESETS["cpu-1m"].mixers) <= known
    assert len({*LOOK.values(), *OTHERS}) == len(LOOK) + len(OTHERS)
    lines = [("Own", "own"), ("KDA", "kda"), ("KDA, wide", "kda"), ("Own, wide", "own"), ("More", "more")]
    assert looks(lines) == {
        "Own": Look(*OTHERS[0], "-"),
        "KDA": Look(*LOOK["kda"], "-"),
        "KDA, wide": Look(*LOOK["kda"], "--"),
        "Own, wide": Look(*OTHERS[0], "--"),
        "More": Look(*OTHERS[1], "-"),
    }
    # Printed in grey, neighbours of one family differ by their markers.
    assert len({marker for _, marker in [*LOOK.values(), *OTHERS]}) == len(LOOK) + len(OTHERS)


def test_a_label_in_two_layouts_is_two_lines_called_by_their_layouts(frame: pd.DataFrame) -> None:
    hybrid = frame.assign(layout="hybrid", value=frame["value"] / 2)
    labels = [line.get_label() for line in recall(pd.concat([frame, hybrid])).get_axes()[0].get_lines()]
    assert labels[::3] == ["GDN2 (recurrent)", "GDN2 (hybrid)"] and len(set(labels)) == 6


@pytest.fixture
def folder(frame: pd.DataFrame, tmp_path: Path) -> Path:
    """A collection of the frame, with what its runs cost."""
    out = tmp_path / "collected"
    out.mkdir()
    frame.drop(columns="file").to_parquet(out / "records.parquet")
    runs = frame[["run", "label", "mixer", "layout", "preset", "seed"]].drop_duplicates().to_dict("records")
    for run in runs:
        run["state_floats_per_layer"] = 512 if run["preset"] == WIDTHS[0] else 2048
        run["tokens_per_second"] = {"gdn2": 5000.0, "kda": 7000.0, "own": 6000.0}[run["mixer"]] + run["seed"]
    (out / "runs.json").write_text(json.dumps(runs))
    (out / "samples.json").write_text("[]")
    return out


def test_files_lie_beside_the_records_and_are_the_same_when_drawn_again(folder: Path) -> None:
    paths = write_figure(folder, "recall")
    assert paths == [folder / "recall.png", folder / "recall.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG") and b"<svg" in paths[1].read_bytes()[:1000]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_figure(folder, "recall")] == before


def test_every_figure_is_as_wide_as_a_page(frame: pd.DataFrame) -> None:
    numbers = figures.measured(frame)
    for drawn in (recall(frame), figures.scores(numbers), figures.ablations(figures.published_ablations())):
        assert drawn.get_size_inches()[0] == WIDTH


@pytest.mark.parametrize(
    ("what", "columns", "message"),
    [
        ("speed", None, r"--what: unknown value 'speed'; known: curves, recall, ruler, scores, pareto, ablations"),
        ("curves", None, "no training curves there; run collect again"),
        ("ruler", None, "no records of the ruler suite; name it under suites"),
        ("pareto", None, "--column: pareto needs at least one of .*mqar_acc@8, mqar_acc@4, overwrite_acc@2"),
        ("scores", ["mqar_acc@5"], "--column: no records of 'mqar_acc@5'; there are .*mqar_acc@8"),
        ("recall", ["mqar_acc@8"], "--column: recall shows all it has; leave it out"),
        ("ablations", None, "no ablation among the records; write some under `ablations`"),
        (
            "throughput",
            None,
            "such as figure2, or run `run.py bench throughput --preset PRESET --out .*/throughput.json",
        ),
        ("decode", None, "no records of the decode suite; name it under suites, submit and collect again"),
        ("kernels", None, "bench kernels --out .* on a machine with a GPU"),
        ("gates", None, "gates are drawn from a model"),
    ],
)
def test_what_cannot_be_drawn_is_one_clear_error(
    folder: Path, what: str, columns: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_figure(folder, what, columns)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json", ".parquet"]


def test_a_folder_without_a_collection_is_one_clear_error(frame: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: nothing collected there; run collect first"):
        write_figure(tmp_path / "nowhere", "recall")
    with pytest.raises(ValueError, match="no records of the recall suite"):
        figures.recall(frame[frame["suite"] != "recall"])


def test_numbers_have_the_interval_that_tables_have(frame: pd.DataFrame) -> None:
    numbers = figures.measured(frame)
    own = numbers[(numbers["column"] == "mqar_acc@8") & (numbers["preset"] == WIDTHS[0])].set_index("mixer")
    low, high = stats.estimate(VALUES["gdn2"], [0.01] * 3, [100] * 3).interval
    assert own.loc["gdn2", ["value", "seeds", "n"]].tolist() == [pytest.approx(80), 3, 100]
    assert own.loc["gdn2", ["low", "high"]].tolist() == pytest.approx([100 * low, min(100 * high, 100)])
    assert numbers["stand_in"].sum() == 0
    shown = figures.measured(frame.assign(stand_in="other prose"))
    assert shown["stand_in"].all()
    drawn = figures.scores(shown[shown["task"] == "mqar"])
    assert drawn.get_axes()[0].get_title().startswith("mqar* acc") and "a stand-in" in drawn.get_suptitle()


def test_samples_that_all_agree_leave_an_error(frame: pd.DataFrame) -> None:
    one = frame[(frame["seed"] == 0)].assign(value=0.0, stderr=0.0)
    low, high = figures.measured(one)[["low", "high"]].iloc[0]
    assert low == 0 and high > 100 * stats.proportion_floor(100)


def test_printed_numbers_carry_the_sampling_error_of_their_tasks() -> None:
    table = figures.printed("table2", "recurrent").set_index(["column", "mixer"])
    piqa, average = table.loc["piqa_acc", "gdn2"], table.loc["avg_acc", "gdn2"]
    assert piqa["value"] == pytest.approx(72.80)
    assert piqa["high"] - piqa["value"] == pytest.approx(196 * math.sqrt(0.728 * 0.272 / 1838), rel=1e-3)
    # Nine tasks of some hundreds to thousands of items each are known better than any of them alone.
    assert 0 < average["high"] - average["low"] < (piqa["high"] - piqa["low"])
    assert math.isnan(table.loc["wikitext_ppl", "gdn2"]["low"])
    assert set(table.index.get_level_values("mixer")) == set(PRESETS["cpu-1m"].mixers)
    drawn = figures.ruler(figures.printed("table3", "hybrid"))
    assert [axes.get_title() for axes in drawn.get_axes()] == ["S-NIAH-1", "S-NIAH-2", "S-NIAH-3", "MK-NIAH-1"]


def ruler_frame(tmp_path: Path, lengths: tuple[int, ...]) -> pd.DataFrame:
    made = [
        record(mixer.upper(), "s_niah_1", metric, value / (i + 1), 0.02, length=length, suite="ruler", mixer=mixer)
        for i, length in enumerate(lengths)
        for mixer, value in (("gdn2", 0.8), ("kda", 0.6))
        for metric in ("contains", "needle_logprob", "needle_gain")
    ]
    return store(tmp_path / "runs", made)


def test_ruler_is_drawn_over_length_and_as_points_where_there_is_one(tmp_path: Path) -> None:
    drawn = figures.ruler(figures.measured(ruler_frame(tmp_path, (1024, 2048))))
    accuracy, gain = drawn.get_axes()
    np.testing.assert_allclose(accuracy.get_lines()[0].get_xydata(), [(1024, 80), (2048, 40)])
    assert [label.get_text() for label in gain.get_xticklabels()] == ["1K", "2K"]
    np.testing.assert_allclose(gain.get_lines()[1].get_ydata(), [0.6, 0.3])
    one = figures.ruler(figures.measured(ruler_frame(tmp_path / "one", (320,))))
    assert [axes.get_title() for axes in one.get_axes()] == [
        "s_niah_1 contains\n@320 ↑",
        "s_niah_1 needle\ngain, nats/token\n@320 ↑",
    ]
    assert "one seed; 95% interval over samples" in one.get_suptitle()


def test_pareto_shows_each_line_at_its_cost_and_joins_what_nothing_beats(folder: Path) -> None:
    state, speed = (axes for axes in draw_pareto(folder).get_axes())
    points = {line.get_label(): line.get_xydata() for line in state.get_lines() if line.get_marker() == "o"}
    (own,) = points.values()
    np.testing.assert_allclose(own, [(512, 80), (2048, 80)])
    assert [label.get_text() for label in state.get_xticklabels()] == ["512", "1,024", "2,048"]
    assert speed.get_xlabel() == "training speed, tokens/s → better"
    values, cost = pd.Series([3.0, 2.0, 1.0, 2.0]), pd.Series([1.0, 2.0, 3.0, 1.0])
    assert figures.front(cost, values, more_is_better=True, higher_is_better=True) == [0, 1, 2]
    assert figures.front(cost, values, more_is_better=False, higher_is_better=True) == [0]
    assert figures.front(cost, values, more_is_better=True, higher_is_better=False) == [2]


def draw_pareto(folder: Path) -> Any:
    assert len(write_figure(folder, "pareto", ["mqar_acc@8", "mqar_acc@4"])) == 2
    numbers = figures.measured(pd.read_parquet(folder / "records.parquet"))
    return figures.pareto(numbers[numbers["column"] == "mqar_acc@8"], pd.read_json(folder / "runs.json"))


def test_curves_are_means_over_seeds_as_far_as_all_have_come() -> None:
    rows = [
        {"label": "KDA", "mixer": "kda", "layout": "recurrent", "preset": "cpu-1m", "seed": seed}
        | {"tokens": 1e6 * step, "loss": 4.0 - step + seed}
        for seed, steps in ((0, 3), (1, 2))
        for step in range(1, steps + 1)
    ]
    drawn = figures.curves(pd.DataFrame(rows))
    (axes,) = drawn.get_axes()
    np.testing.assert_allclose(axes.get_lines()[0].get_xydata(), [(1, 3.5), (2, 2.5)])
    assert len(axes.collections) == 1 and drawn.get_suptitle() == "mean over seeds, band from the lowest to the highest"
    with pytest.raises(ValueError, match="no run has logged a step"):
        figures.curves(pd.DataFrame(rows)[:0])


def test_ablations_are_differences_from_the_model_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base, scalar = (rng.random(200) < 0.8).astype(float), (rng.random(200) < 0.5).astype(float)
    made, samples = [], {}
    for label, scores in (("GDN2", base), ("GDN2, scalar erase gate", scalar)):
        error = float(scores.std(ddof=1) / math.sqrt(200))
        own = record(label, "s_niah_2", "contains", scores.mean(), error, 200, suite="ruler", length=4096, mixer="gdn2")
        text = record(label, "wikitext", "word_perplexity", 10.0 + len(made), 0.5, mixer="gdn2")
        made += [own, text]
        samples[own.key] = tuple(scores)
    numbers = figures.ablation_numbers(store(tmp_path, made), samples).set_index("column")
    assert set(numbers.index) == {"s_niah_2@4096", "wikitext_ppl"} and set(numbers["variant"]) == {"scalar erase gate"}
    truth = stats.paired(tuple(scalar), tuple(base))
    found = numbers.loc["s_niah_2@4096", ["difference", "low", "high"]].tolist()
    assert found == pytest.approx([100 * truth.difference, 100 * truth.low, 100 * truth.high])
    assert numbers.loc["wikitext_ppl", "difference"] == pytest.approx(2.0)
    drawn = figures.ablations(numbers.reset_index())
    assert [patch.get_width() for axes in drawn.get_axes() for patch in axes.patches] == pytest.approx(
        numbers["difference"].tolist()
    )


def test_the_papers_ablations_have_intervals_where_its_tasks_are_known() -> None:
    numbers = figures.published_ablations().set_index(["column", "variant"])
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


def step(mixer: str, length: int, rate: float | None) -> dict[str, Any]:
    """The part of a row of `bench throughput --out` that a figure reads."""
    spread = {"tokens_per_s_p20": rate and rate * 0.9, "tokens_per_s_p80": rate and rate * 1.1}
    row = {
        "mixer": mixer,
        "display": mixer.upper(),
        "layout": "recurrent",
        "length": length,
        "batch": 16384 // length,
        "preset": "125m",
    }
    return row | {"device": "a GPU", "dtype": "bfloat16", "tokens_per_s": rate, "refused": None} | spread


def test_throughput_stands_beside_the_papers_figure_2(tmp_path: Path) -> None:
    rows = [step("gdn2", 2048, 3e5), step("gdn2", 4096, 2e5), step("kda", 2048, None)]
    (tmp_path / "throughput-2048.json").write_text(json.dumps(rows[::2]))
    (tmp_path / "throughput-4096.json").write_text(json.dumps(rows[1:2]))
    assert write_figure(tmp_path, "throughput") == [tmp_path / "throughput.png", tmp_path / "throughput.svg"]
    paper, own = figures.throughput(figures.bench_numbers(rows)).get_axes()
    assert len(paper.get_lines()) == 7 and paper.get_lines()[-1].get_ydata()[0] == pytest.approx(38.0)
    (line,) = own.get_lines()
    np.testing.assert_allclose(line.get_xydata(), [(0, 300), (1, 200)])
    assert own.get_xticks().tolist() == [0, 1]
    assert [label.get_text() for label in own.get_xticklabels()] == ["2K×8", "4K×4"]
    assert len(figures.throughput(None).get_axes()) == 1
    with pytest.raises(ValueError, match="none of the 1 rows has a time"):
        figures.bench_numbers(rows[2:])


def test_throughput_is_drawn_from_records_of_its_suite(tmp_path: Path) -> None:
    rate = "train_tokens_per_second"
    made = [
        record(
            "GDN2", f"batch_{16384 // n}", rate, 1e5, 1e3, 7, length=n, suite="throughput", mixer="gdn2", layout=layout
        )
        for n in (2048, 4096)
        for layout in ("recurrent", "hybrid")
    ]
    numbers = figures.throughput_numbers(store(tmp_path, made))
    assert numbers[["length", "batch"]].drop_duplicates().values.tolist() == [[2048, 8], [4096, 4]]
    assert set(numbers["line"]) == {"GDN2 (recurrent)", "GDN2 (hybrid)"}
    assert (numbers["high"] - 1e5).tolist() == pytest.approx([1e3 * 2.447] * 4, rel=1e-3)  # t with 6 degrees
    _, own = figures.throughput(numbers).get_axes()
    assert len(own.get_lines()) == 2 and own.get_title().startswith("cpu-1m, recurrent, hybrid; 95% interval")


def placed(axes: Any) -> dict[str, tuple[float, float]]:
    """The point of the first line at every tick, by the tick's label."""
    (points,) = [dict(line.get_xydata().tolist()) for line in axes.get_lines()[:1]]
    labels = (label.get_text() for label in axes.get_xticklabels())
    return {label: points[tick] for tick, label in zip(axes.get_xticks(), labels, strict=True)}


def test_every_shape_of_throughput_has_its_own_place_under_its_name(tmp_path: Path) -> None:
    shapes = {(2, 64): 2e4, (1, 128): 3e4, (1, 64): 1e4}
    made = [
        record(
            "GDN2", f"batch_{b}", "train_tokens_per_second", rate, 1e2, 7, length=n, suite="throughput", mixer="gdn2"
        )
        for (b, n), rate in shapes.items()
    ]
    paper, own = figures.throughput(figures.throughput_numbers(store(tmp_path, made))).get_axes()
    assert placed(own) == {"64×1": 10, "64×2": 20, "128×1": 30}
    assert [placed(paper)[name] for name in ("2K×8", "4K×4", "8K×2", "16K×1")] == [45.8, 42.3, 36.8, 29.4]
    assert (np.diff(own.get_lines()[0].get_xdata()) > 0).all()


def reading(mixer: str, batch: int, length: int, state: float | None, layout: str = "recurrent", **run: Any) -> list:
    """What the suite `decode` measures of a shape; without a state, that it ran out of memory."""
    where = {"suite": "decode", "mixer": mixer, "layout": layout, "length": length} | run
    label, task = mixer.upper(), f"batch_{batch}"
    if state is None:
        return [record(label, task, "decode_out_of_memory", 1.0, None, 1, **where)]
    return [
        record(label, task, "prefill_tokens_per_second", 1000.0 * batch, 10.0, 5, **where),
        record(label, task, "decode_tokens_per_second", 40.0 * batch, 1.0, 5, **where),
        record(label, task, "state_bytes", state, None, 1, **where),
    ]


@pytest.fixture
def decoded(tmp_path: Path) -> pd.DataFrame:
    """Two mixers over two batches and lengths; attention has no room for 16 contexts of 8K."""
    made = []
    for batch in (16, 1):
        for length in (8192, 2048):
            full = batch * length == 16 * 8192
            made += reading("gdn2", batch, length, 2.0**20)
            made += reading("attention", batch, length, None if full else 2048.0 * length, "attention")
    return store(tmp_path / "decode", made)


def test_decoding_has_a_panel_a_metric_and_batch_and_a_line_a_mixer(decoded: pd.DataFrame) -> None:
    drawn = figures.decode(figures.decode_numbers(decoded))
    assert drawn.get_size_inches()[0] == WIDTH
    axs = drawn.get_axes()
    assert [axes.get_title() for axes in axs[:3]] == [
        "prefill tokens/s",
        "decoding tokens/s",
        "state, bytes a sequence",
    ]
    assert len(axs) == 6 and [axs[i].get_ylabel() for i in (0, 3)] == ["batch_1", "batch_16"]
    for axes in axs:
        assert {to_hex(line.get_color()).upper() for line in axes.get_lines()} == {
            LOOK["gdn2"][0],
            LOOK["attention"][0],
        }
        assert axes.get_xticks().tolist() == [2048, 8192]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["2K", "8K"]
    prefill, decoding, state = (
        {line.get_marker(): line.get_xydata().tolist() for line in axes.get_lines()} for axes in axs[:3]
    )
    own, attention = LOOK["gdn2"][1], LOOK["attention"][1]
    assert prefill[own] == [[2048, 1000], [8192, 1000]] and decoding[own] == [[2048, 40], [8192, 40]]
    assert state == {own: [[2048, 2**20], [8192, 2**20]], attention: [[2048, 2**22], [8192, 2**24]]}
    assert [label.get_text() for label in axs[2].get_yticklabels()] == ["1 MiB", "2 MiB", "4 MiB", "8 MiB", "16 MiB"]
    half = stats.estimate([40.0], [1.0], [5]).interval[1] - 40
    edge = {round(y, 6) for y in axs[1].collections[0].get_paths()[0].vertices[:, 1].tolist()}
    assert edge == {round(40 - half, 6), round(40 + half, 6)}


def test_what_ran_out_of_memory_is_named_and_not_drawn(decoded: pd.DataFrame, tmp_path: Path) -> None:
    drawn = figures.decode(figures.decode_numbers(decoded))
    assert drawn.get_suptitle().splitlines() == [
        "cpu-1m, recurrent; Some CPU, float32; 95% interval over windows",
        "batch_16 out of memory: ATTENTION at 8K",
    ]
    for axes in drawn.get_axes()[3:]:
        (line,) = [line for line in axes.get_lines() if line.get_marker() == LOOK["attention"][1]]
        assert line.get_xdata().tolist() == [2048]
    # A point alone has no band to be seen in; a bar says how well it is known.
    (bar,) = [found for found in drawn.get_axes()[4].collections if len(found.get_paths()[0].vertices) == 2]
    half = stats.estimate([640.0], [1.0], [5]).interval[1] - 640
    np.testing.assert_allclose(bar.get_paths()[0].vertices, [(2048, 640 - half), (2048, 640 + half)])
    nothing = store(tmp_path / "full", reading("gdn2", 16, 8192, None))
    with pytest.raises(ValueError, match="every shape of the decode suite ran out of memory; list smaller ones"):
        figures.decode(figures.decode_numbers(nothing))


def test_decoding_keeps_machines_apart_and_writes_both_files(decoded: pd.DataFrame, tmp_path: Path) -> None:
    other = reading("gdn2", 1, 256, 2.0**10, preset="cpu-600k") + reading("gdn2", 1, 1024, 2.0**10, preset="cpu-600k")
    frame = pd.concat([decoded, store(tmp_path / "other", other)])
    drawn = figures.decode(figures.decode_numbers(frame))
    assert [axes.get_ylabel().split()[0] for axes in drawn.get_axes()[::3]] == ["cpu-1m,", "cpu-1m,", "cpu-600k,"]
    assert [label.get_text() for label in drawn.get_axes()[-1].get_xticklabels()] == ["256", "1K"]
    assert "batch_16, cpu-1m, recurrent; Some CPU, float32 out of memory: ATTENTION at 8K" in drawn.get_suptitle()
    frame.drop(columns="file").to_parquet(tmp_path / "records.parquet")
    assert write_figure(tmp_path, "decode") == [tmp_path / "decode.png", tmp_path / "decode.svg"]


@pytest.mark.parametrize("layouts", [("recurrent",), ("recurrent", "hybrid")])
def test_a_legend_is_no_wider_than_the_page(tmp_path: Path, layouts: tuple[str, ...]) -> None:
    made = [
        replace(r, label=get(mixer).display, run=f"{mixer}-{layout}")
        for layout in layouts
        for mixer in LOOK
        for r in reading(mixer, 1, 2048, 2.0**20, layout)
    ]
    drawn = figures.decode(figures.decode_numbers(store(tmp_path, made)))
    FigureCanvasAgg(drawn).draw()  # a figure knows the width of its letters when it is drawn
    (legend,) = drawn.legends
    assert len(legend.get_texts()) == len(made) / 3
    assert legend.get_window_extent().width <= drawn.get_window_extent().width


def launch(operator: str, form: str, direction: str, steps: int, batch: int, ms: float | None, **rest: Any) -> dict:
    """The part of a row of kernels.json that a figure reads."""
    shape = {"T": steps, "B": batch, "H": 16, "HV": 16, "K": 128, "V": 128}
    times = {"ms": ms, "ms_p20": ms and ms * 0.9, "ms_p80": ms and ms * 1.1}
    work = {"bytes": 3e9, "flops": 7e11, "copy_bytes_per_s": 3e12, "matmul_flop_per_s": 7e14}
    errors = {"output_error": 4e-3, "gradient_error": None, "state_error": None}
    row = {"operator": operator, "implementation": form, "direction": direction, "dtype": "bfloat16", "device": "a GPU"}
    return row | shape | times | work | errors | rest


def test_kernels_are_drawn_over_their_floor(tmp_path: Path) -> None:
    rows = [
        launch("gdn2", "mixerbench triton", "forward", 2048, 16, 2.0),
        launch("gdn2", "mixerbench triton", "forward", 4096, 8, 3.0, flops=2.1e12),
        launch("kda", "fla chunk", "forward", 2048, 16, 2.5, output_error=0.5),
        launch("kda", "fla recurrent", "decode", 1, 8, 0.1),
        launch("gdn2", "fla chunk", "forward", 2048, 16, None, refused="no"),
        launch("gdn2", "mixerbench triton", "forward", 4096, 8, 9.0, K=64),
    ]
    # 3 GB at 3 TB/s and 0.7 TFLOP at 700 TFLOP/s take 1 ms each, three times the FLOPs 3 ms.
    assert floor_ms(pd.DataFrame(rows[:2])).tolist() == pytest.approx([1.0, 3.0])
    (tmp_path / "kernels.json").write_text(json.dumps({"ceilings": {}, "rows": rows}))
    assert len(write_figure(tmp_path, "kernels")) == 2
    drawn = figures.kernels(rows)
    forward, decode = drawn.get_axes()
    floors = [line.get_ydata().tolist() for line in forward.get_lines() if line.get_linestyle() == ":"]
    assert floors == [pytest.approx([1.0, 3.0]), pytest.approx([1.0])]
    names = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert names[0] == "Gated DeltaNet-2, mixerbench (error ≤ 4e-03)" and names[1] == "KDA, fla (error ≤ 5e-01)"
    assert decode.get_xlabel() == "batch"
    with pytest.raises(ValueError, match="none of the 1 rows has a time"):
        figures.kernels(rows[4:5])
