"""Figures of what was collected, in one style; `style.py` says a mixer's colour and marker.

Every function here draws from numbers and returns a matplotlib figure; `write_figure` reads a collection and writes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from harness.figures.inside import gates
from harness.figures.numbers import chosen, measured, printed, wide
from harness.figures.scores import (
    ablation_numbers,
    ablations,
    published_ablations,
    recall,
    recall_numbers,
    ruler,
    scores,
)
from harness.figures.speed import bench_numbers, decode, decode_numbers, kernels, throughput, throughput_numbers
from harness.figures.style import LOOK, OTHERS, STYLE, Look, looks
from harness.figures.training import curves, front, pareto
from harness.files import write_atomic
from harness.records.store import load, load_samples
from harness.run_folder import Collection

if TYPE_CHECKING:
    from harness.lm.mixer_lm import MixerLM

__all__ = [
    "FIGURES",
    "LOOK",
    "OTHERS",
    "Look",
    "ablation_numbers",
    "ablations",
    "bench_numbers",
    "curves",
    "decode",
    "decode_numbers",
    "front",
    "gates",
    "kernels",
    "looks",
    "measured",
    "pareto",
    "printed",
    "published_ablations",
    "recall",
    "recall_numbers",
    "ruler",
    "scores",
    "throughput",
    "throughput_numbers",
    "wide",
    "write",
    "write_figure",
    "write_gates",
]

Columns = list[str] | None


def _records(folder: Path) -> pd.DataFrame:
    Collection(folder).require()
    return load(folder)


def _curves(folder: Path, columns: Columns) -> Figure:
    return curves(Collection(folder).read_curves())


def _scores(folder: Path, columns: Columns) -> Figure:
    return scores(_columns(measured(_records(folder)), columns, "scores"))


def _pareto(folder: Path, columns: Columns) -> Figure:
    numbers = _columns(measured(_records(folder)), columns, "pareto")
    runs = Collection(folder).read_runs()
    return pareto(numbers, runs)


def _ablations(folder: Path, columns: Columns) -> Figure:
    return ablations(ablation_numbers(_records(folder), load_samples(folder), columns))


def _throughput(folder: Path, columns: Columns) -> Figure:
    found = []
    if Collection(folder).records.is_file():
        found.append(throughput_numbers(load(folder)))
    if rows := [row for file in sorted(folder.glob("throughput*.json")) for row in json.loads(file.read_text())]:
        found.append(bench_numbers(rows))
    if all(numbers.empty for numbers in found):
        raise ValueError(
            f"{folder}: no training throughput there; submit and collect an experiment with the suite throughput, such "
            f"as figure2, or run `run.py bench throughput --preset PRESET --out {folder}/throughput.json`"
        )
    return throughput(pd.concat(found))


def _kernels(folder: Path, columns: Columns) -> Figure:
    remedy = "no kernels.json there; run `run.py bench kernels --out FOLDER` on a machine with a GPU"
    return kernels(json.loads(_file(folder, "kernels.json", remedy).read_text())["rows"])


def _file(folder: Path, name: str, lacking: str) -> Path:
    if not (folder / name).is_file():
        raise ValueError(f"{folder}: {lacking.replace('FOLDER', str(folder))}")
    return folder / name


def _columns(numbers: pd.DataFrame, columns: Columns, what: str) -> pd.DataFrame:
    if not columns:
        raise ValueError(f"--column: {what} needs at least one of {', '.join(dict.fromkeys(numbers['column']))}")
    return chosen(numbers, columns)


FIGURES: dict[str, Callable[[Path, Columns], Figure]] = {
    "curves": _curves,
    "recall": lambda folder, columns: recall(_records(folder)),
    "ruler": lambda folder, columns: ruler(measured(_records(folder))),
    "scores": _scores,
    "pareto": _pareto,
    "ablations": _ablations,
    "throughput": _throughput,
    "decode": lambda folder, columns: decode(decode_numbers(_records(folder))),
    "kernels": _kernels,
}
"""Every figure of a collection, from its folder and the columns to show."""
WITH_COLUMNS = ("scores", "pareto", "ablations")
GATES = "gates"
"""The figure that needs a model instead of a collection."""


def write_figure(folder: Path, what: str, columns: Columns = None) -> list[Path]:
    """Draw a figure of a collection; writes `<what>.png` and `<what>.svg` beside the records and returns them.

    columns: names as in table.csv, `mqar_acc@16`; `scores` and `pareto` need them, `ablations` takes them. `kernels`
    and, beside the records, `throughput` read the JSON files that the benchmarks wrote into the folder. Raises
    ValueError for a figure that is not known and, naming the command that makes it, for what lacks.
    """
    if what not in FIGURES:
        hint = "; gates are drawn from a model, see write_gates" if what == GATES else ""
        raise ValueError(f"--what: unknown value {what!r}; known: {', '.join(FIGURES)}{hint}")
    if columns and what not in WITH_COLUMNS:
        raise ValueError(f"--column: {what} shows all it has; leave it out, or draw {', '.join(WITH_COLUMNS)}")
    return write(FIGURES[what](folder, columns), folder / what)


def write_gates(folder: Path, lm: MixerLM, task: str, size: int) -> list[Path]:
    """Draw the gates of a Gated DeltaNet-2 model on a prompt of `harness.figures.gate_values.prompt`; writes gates.png
    and gates.svg.

    Raises ValueError for a model without such gates and a prompt that cannot be made.
    """
    from harness.figures.gate_values import gates as read_gates
    from harness.figures.gate_values import prompt

    text = prompt(lm.tokenizer, task, size)
    return write(gates(read_gates(lm.model, text.ids), text), folder / GATES)


def write(figure: Figure, path: Path) -> list[Path]:
    """A figure as `path`.png, 300 dots an inch, and `path`.svg; the same figure gives the same files."""
    paths = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for kind in ("png", "svg"):
            file = io.BytesIO()
            metadata: dict[str, Any] | None = {"Date": None} if kind == "svg" else None
            figure.savefig(file, format=kind, metadata=metadata)
            paths.append(path.with_suffix(f".{kind}"))
            write_atomic(paths[-1], file.getvalue())
    return paths
