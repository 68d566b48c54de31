"""One look per mixer in all figures, and figures that fit the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from harness.experiments.presets import PRESETS
from harness.figures.numbers import measured
from harness.figures.scores import ablations, published_ablations, recall, scores
from harness.figures.speed import decode, decode_numbers
from harness.figures.style import LOOK, OTHERS, WIDTH, Look, count, looks, size
from mixers.registry import entries, get
from tests.harness.figures.figure_records import reading
from tests.harness.tables.table_records import store


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


def test_every_figure_is_as_wide_as_a_page(frame: pd.DataFrame) -> None:
    numbers = measured(frame)
    for drawn in (recall(frame), scores(numbers), ablations(published_ablations())):
        assert drawn.get_size_inches()[0] == WIDTH


@pytest.mark.parametrize("layouts", [("recurrent",), ("recurrent", "hybrid")])
def test_a_legend_is_no_wider_than_the_page(tmp_path: Path, layouts: tuple[str, ...]) -> None:
    made = [
        replace(r, label=get(mixer).display, run=f"{mixer}-{layout}")
        for layout in layouts
        for mixer in LOOK
        for r in reading(mixer, 1, 2048, 2.0**20, layout)
    ]
    drawn = decode(decode_numbers(store(tmp_path, made)))
    FigureCanvasAgg(drawn).draw()  # a figure knows the width of its letters when it is drawn
    (legend,) = drawn.legends
    assert len(legend.get_texts()) == len(made) / 3
    assert legend.get_window_extent().width <= drawn.get_window_extent().width


def test_counts_and_sizes_are_shortened_only_where_nothing_is_lost() -> None:
    assert [count(n) for n in (0, 320, 1024, 1536, 16384)] == ["0", "320", "1K", "1536", "16K"]
    assert [size(n) for n in (512, 1024, 1536, 2**24, 2**50)] == ["512 B", "1 KiB", "1.5 KiB", "16 MiB", "1024 TiB"]
