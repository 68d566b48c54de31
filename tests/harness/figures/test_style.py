"""One look per mixer in all figures, and figures that fit the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.experiments.presets import PRESETS
from harness.figures.collection import write
from harness.figures.numbers import measured
from harness.figures.scores import ablations, published_ablations, recall, scores
from harness.figures.speed import decode, decode_numbers
from harness.figures.style import LOOK, OTHERS, WIDTH, Look, count, drawing, looks, markers, power_of_ten, size
from harness.figures.training import curves
from harness.files import CHECKOUT
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


OF_MIXERS = {mixer: color for mixer, (color, _) in LOOK.items()}


def linear(color: str) -> np.ndarray:
    """Linear sRGB [3] of a colour (IEC 61966-2-1)."""
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def deuteranopia(rgb: np.ndarray) -> np.ndarray:
    """Linear sRGB as a deuteranope sees it (Machado, Oliveira and Fernandes 2009, severity 1)."""
    rows = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    return np.clip(np.array(rows) @ rgb, 0, 1)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB [3] under D65 of linear sRGB."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    t = np.array(to_xyz) @ rgb / [0.95047, 1, 1.08883]
    x, y, z = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """CIEDE2000 of two colours in CIELAB, with the symbols of Sharma, Wu and Dalal (2005)."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25**7))
    c1, c2 = np.hypot(g * a1, b1), np.hypot(g * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, g * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = 0.0 if c1 * c2 == 0 else (h2 - h1 + 180) % 360 - 180
    dl, dc, dh = l2 - l1, c2 - c1, 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    lm, cm = (l1 + l2) / 2, (c1 + c2) / 2
    hm = h1 + h2 if c1 * c2 == 0 else h1 + turn / 2
    waves = ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.2, 4, -63))
    t = 1 + sum(size * np.cos(np.radians(n * hm + at)) for size, n, at in waves)
    sl, sc, sh = 1 + 0.015 * (lm - 50) ** 2 / np.sqrt(20 + (lm - 50) ** 2), 1 + 0.045 * cm, 1 + 0.015 * cm * t
    rt = -np.sin(np.radians(60 * np.exp(-(((hm % 360 - 275) / 25) ** 2)))) * 2 * np.sqrt(cm**7 / (cm**7 + 25**7))
    return float(np.sqrt((dl / sl) ** 2 + (dc / sc) ** 2 + (dh / sh) ** 2 + rt * dc / sc * dh / sh))


def test_the_difference_of_colours_is_that_of_the_published_pairs() -> None:
    pairs = [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ]
    for one, other, expected in pairs:
        assert difference(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("seen", "least"), [(lambda rgb: rgb, 22.2), (deuteranopia, 12.5)])
def test_colours_of_two_mixers_are_as_far_apart_as_the_documents_say(seen: Callable, least: float) -> None:
    colors = [lab(seen(linear(color))) for color in OF_MIXERS.values()]
    found = min(difference(a, b) for a, b in combinations(colors, 2))
    assert round(found, 1) == least
    text = " ".join((CHECKOUT / "docs" / "results.md").read_text(encoding="utf-8").split())
    assert f"{least} " in text[text.index("CIEDE2000") :][:300]


def test_lines_that_are_alike_in_grey_have_markers_of_their_own(frame: pd.DataFrame) -> None:
    lightness = {mixer: lab(linear(color))[0] for mixer, color in OF_MIXERS.items()}
    alike = [pair for pair in combinations(OF_MIXERS, 2) if abs(lightness[pair[0]] - lightness[pair[1]]) < 10]
    assert alike and all(LOOK[a][1] != LOOK[b][1] for a, b in alike)
    # Lines of many points show them too, each at points of its own.
    places = [markers(100, index, 3) for index in range(3)]
    assert places == [(0, 16), (5, 16), (10, 16)] and markers(1, 2, 3)[1] == 1
    steps = [{"step": i, "tokens": 1000 * i, "loss": 5.0 - i / 10, "tokens_per_second": 1.0} for i in range(1, 31)]
    runs = [
        {"run": mixer, "label": mixer, "mixer": mixer, "layout": "recurrent", "preset": "a", "seed": 0}
        for mixer in ("mamba2", "mamba3_mimo")
    ]
    drawn = curves(pd.DataFrame([run | step for run in runs for step in steps]))
    assert [line.get_marker() for line in drawn.axes[0].get_lines()] == [LOOK[run["mixer"]][1] for run in runs]


def test_nothing_of_a_figure_is_cut_off(frame: pd.DataFrame, tmp_path: Path) -> None:
    ends = [
        record(label, "piqa", "acc", value, 0.0, seed=0, mixer=label)
        for label, value in (("gdn2", 1.0), ("kda", 0.0), ("a mixer with a long name in the margin", 0.5))
    ]
    full = frame.assign(value=frame["value"].round())
    for drawn in (scores(measured(store(tmp_path, ends))), recall(full)):
        FigureCanvasAgg(drawn).draw()
        page = drawn.get_window_extent()
        for axes in drawn.axes:
            box = axes.get_tightbbox()
            assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
            for line in axes.get_lines():
                points = axes.transData.transform(line.get_xydata()) if line.get_marker() not in ("None", "") else []
                margin = line.get_markersize() / 2 * drawn.dpi / 72
                inside = axes.get_window_extent().padded(0.5)
                for x, y in points:
                    assert inside.x0 <= x and x <= inside.x1 and inside.y0 <= y - margin and y + margin <= inside.y1


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
