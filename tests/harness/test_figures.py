"""Figures: the numbers behind them, a line a mixer, and what cannot be drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from harness import figures
from harness.figures import LOOK, OTHERS, Look, looks, recall, recall_numbers, write_figure
from harness.presets import PRESETS
from mixers.registry import entries
from tests.harness.test_tables import record, store

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


def test_files_lie_beside_the_records_and_are_the_same_when_drawn_again(frame: pd.DataFrame, tmp_path: Path) -> None:
    folder = tmp_path / "collected"
    folder.mkdir()
    frame.drop(columns="file").to_parquet(folder / "records.parquet")
    paths = write_figure(folder, "recall")
    assert paths == [folder / "recall.png", folder / "recall.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG") and b"<svg" in paths[1].read_bytes()[:1000]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_figure(folder, "recall")] == before


def test_what_cannot_be_drawn_is_one_clear_error(frame: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: nothing collected there; run collect first"):
        write_figure(tmp_path / "nowhere", "recall")
    with pytest.raises(ValueError, match=r"--what: unknown value 'speed'; known: recall"):
        write_figure(tmp_path, "speed")
    with pytest.raises(ValueError, match="no records of the recall suite"):
        figures.recall(frame[frame["suite"] != "recall"])
