"""One look per mixer in all figures, and figures that fit the page."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.experiments.presets import PRESETS
from harness.figures.collection import write
from harness.figures.numbers import measured
from harness.figures.scores import ablations, published_ablations, recall, scores
from harness.figures.speed import decode, decode_numbers
from harness.figures.style import LOOK, OTHERS, WIDTH, Look, count, drawing, looks, power_of_ten, size
from mixers.registry import entries, get
from tests.harness.figures.figure_records import reading
from tests.harness.tables.table_records import record, store


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


HOSTILE_RC = """\
font.size: 20
font.family: monospace
figure.facecolor: black
axes.prop_cycle: cycler('color', 'rgb')
axes.formatter.use_mathtext: True
lines.linestyle: --
svg.fonttype: none
savefig.transparent: True
savefig.bbox: tight
legend.fancybox: False
text.parse_math: True
path.sketch: 5, 50, 2
"""


def test_a_readers_own_settings_change_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = measured(store(tmp_path / "runs", [record("a", "wikitext", "word_perplexity", 10.0, 1.0)]))

    def drawn() -> list[bytes]:
        return [path.read_bytes() for path in write(scores(numbers), tmp_path / "scores")]

    expected = drawn()
    (tmp_path / "matplotlibrc").write_text(HOSTILE_RC)
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path / "matplotlibrc"))
    with mpl.rc_context(fname=mpl.matplotlib_fname()):  # as `import matplotlib` reads it
        assert mpl.rcParams["figure.facecolor"] == "black"
        assert drawn() == expected
        assert mpl.rcParams["figure.facecolor"] == "black"


def drawn_words(figure: Figure) -> set[str]:
    """Words that a drawn figure shows, as the comments of an SVG file name them."""
    file = io.BytesIO()
    with drawing():
        figure.savefig(file, format="svg")
    return set(re.findall(r"<!-- (.*?) -->", file.getvalue().decode()))


def test_dollars_underscores_and_backslashes_in_a_label_are_drawn_as_they_are(tmp_path: Path) -> None:
    labels = [r"$x_1$", r"\frac{$", "a_b^c $ d", r"$\notacommand$"]
    made = [record(label, "piqa", "acc", 0.5, 0.01) for label in labels]
    assert set(labels) <= drawn_words(scores(measured(store(tmp_path, made))))


def test_a_logarithmic_axis_has_powers_of_ten(tmp_path: Path) -> None:
    made = [record(f"m{k}", "wikitext", "word_perplexity", 10.0**k, 1.0) for k in (1, 3, 5)]
    assert {"10³", "10⁵"} <= drawn_words(scores(measured(store(tmp_path, made))))
    assert [power_of_ten(10.0**k) for k in (-2, 0, 1, 12)] == ["10⁻²", "1", "10", "10¹²"]


def test_counts_and_sizes_are_shortened_only_where_nothing_is_lost() -> None:
    assert [count(n) for n in (0, 320, 1024, 1536, 16384)] == ["0", "320", "1K", "1536", "16K"]
    assert [size(n) for n in (512, 1024, 1536, 2**24, 2**50)] == ["512 B", "1 KiB", "1.5 KiB", "16 MiB", "1024 TiB"]
