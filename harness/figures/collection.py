"""The figures of a collection, written next to its records."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure

from harness.figures.inside import gates
from harness.figures.mqar import mqar, positions, state
from harness.figures.numbers import chosen, measured
from harness.figures.scores import ablation_numbers, ablations, recall, ruler, scores
from harness.figures.speed import bench_numbers, decode, decode_numbers, kernels, throughput, throughput_numbers
from harness.figures.style import drawing
from harness.figures.training import curves, learning, pareto
from harness.figures.tuning import tuning
from harness.files import read_json, write_atomic
from harness.records.store import load, load_samples
from harness.run_folder import Collection
from harness.tables.escaping import plain

if TYPE_CHECKING:
    from harness.lm.mixer_lm import MixerLM

Columns = list[str] | None


def _drawable(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose texts no font or file format refuses: they come from records that anyone may have written."""
    texts = frame.select_dtypes(["object", "string"])
    shown = {
        name: column.map(lambda value: plain(value) if isinstance(value, str) else value)
        for name, column in texts.items()
    }
    return frame.assign(**shown)


def _records(folder: Path) -> pd.DataFrame:
    Collection(folder).require()
    return _drawable(load(folder))


def _runs(folder: Path) -> pd.DataFrame:
    return _drawable(Collection(folder).read_runs())


def _curves(folder: Path, columns: Columns) -> Figure:
    return curves(_drawable(Collection(folder).read_curves()))


def _recall(folder: Path, columns: Columns) -> Figure:
    return recall(_records(folder))


def _mqar(folder: Path, columns: Columns) -> Figure:
    return mqar(_records(folder))


def _state(folder: Path, columns: Columns) -> Figure:
    return state(_records(folder), _runs(folder))


def _positions(folder: Path, columns: Columns) -> Figure:
    return positions(_records(folder))


def _learning(folder: Path, columns: Columns) -> Figure:
    return learning(_drawable(Collection(folder).read_curves()))


def _tuning(folder: Path, columns: Columns) -> Figure:
    return tuning(_drawable(Collection(folder).read_trials()))


def _ruler(folder: Path, columns: Columns) -> Figure:
    return ruler(measured(_records(folder)))


def _scores(folder: Path, columns: Columns) -> Figure:
    return scores(_chosen(measured(_records(folder)), columns, "scores"))


def _pareto(folder: Path, columns: Columns) -> Figure:
    numbers = _chosen(measured(_records(folder)), columns, "pareto")
    return pareto(numbers, _runs(folder))


def _ablations(folder: Path, columns: Columns) -> Figure:
    return ablations(ablation_numbers(_records(folder), load_samples(folder), columns))


def _throughput(folder: Path, columns: Columns) -> Figure:
    numbers = []
    if Collection(folder).records.is_file():
        numbers.append(throughput_numbers(_records(folder)))
    if rows := [row for file in sorted(folder.glob("throughput*.json")) for row in read_json(file, MEASURE)]:
        numbers.append(bench_numbers(_drawable(pd.DataFrame(rows)).to_dict("records")))
    if all(frame.empty for frame in numbers):
        raise ValueError(
            f"{folder}: no training throughput there; submit and collect an experiment with the suite throughput, such "
            f"as figure2, or run `run.py bench throughput --preset PRESET --out {folder}/throughput.json`"
        )
    return throughput(pd.concat(numbers))


def _decode(folder: Path, columns: Columns) -> Figure:
    return decode(decode_numbers(_records(folder)))


def _kernels(folder: Path, columns: Columns) -> Figure:
    file = folder / "kernels.json"
    if not file.is_file():
        raise ValueError(
            f"{folder}: no kernels.json there; run `run.py bench kernels --out {folder}` on a machine with a GPU"
        )
    return kernels(read_json(file, MEASURE)["rows"])


def _chosen(numbers: pd.DataFrame, columns: Columns, what: str) -> pd.DataFrame:
    if not columns:
        raise ValueError(f"--column: {what} needs at least one of {', '.join(dict.fromkeys(numbers['column']))}")
    return chosen(numbers, columns)


FIGURES: dict[str, Callable[[Path, Columns], Figure]] = {
    "curves": _curves,
    "recall": _recall,
    "mqar": _mqar,
    "state": _state,
    "positions": _positions,
    "learning": _learning,
    "tuning": _tuning,
    "ruler": _ruler,
    "scores": _scores,
    "pareto": _pareto,
    "ablations": _ablations,
    "throughput": _throughput,
    "decode": _decode,
    "kernels": _kernels,
}
"""The figures of a collection, drawn from its folder and the columns to show."""
MEASURE = "measure again with `run.py bench`"
WITH_COLUMNS = ("scores", "pareto", "ablations")
"""Figures that take columns."""
GATES = "gates"
"""The figure that needs a model instead of a collection."""


def draw(folder: Path | str, what: str, columns: Columns = None) -> Figure:
    """Draw a figure of a collection, whose axes may be changed further. Arguments and errors as for `write_figure`."""
    if what not in FIGURES:
        hint = "; gates are drawn from a model, see write_gates" if what == GATES else ""
        raise ValueError(f"--what: unknown value {what!r}; known: {', '.join(FIGURES)}{hint}")
    if columns and what not in WITH_COLUMNS:
        raise ValueError(f"--column: {what} shows all it has; leave it out, or draw {', '.join(WITH_COLUMNS)}")
    return FIGURES[what](Path(folder), columns)


def write_figure(folder: Path, what: str, columns: Columns = None) -> list[Path]:
    """Draw a figure of a collection. Writes `<what>.png` and `<what>.svg` next to the records and returns them.

    columns: names as in table.csv, such as `mqar_acc@16`; `scores` and `pareto` need them, `ablations` takes them.
    `kernels` reads the JSON file that the benchmark wrote into the folder; `throughput` reads such files and the
    records. Raises ValueError for an unknown figure, and for missing data with the command that makes them.
    """
    return write(draw(folder, what, columns), folder / what)


def write_gates(folder: Path, lm: MixerLM, task: str, size: int) -> list[Path]:
    """Draw the gates of a Gated DeltaNet-2 model on a prompt. Writes gates.png and gates.svg and returns them.

    task, size: as for `harness.figures.gate_values.prompt`. Raises ValueError for a model without such gates and for a
    prompt that cannot be made.
    """
    from harness.figures.gate_values import gates as read_gates
    from harness.figures.gate_values import prompt

    text = prompt(lm.tokenizer, task, size)
    return write(gates(read_gates(lm.model, text.ids), text), folder / GATES)


def write(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as `<path>.png` (300 dpi) and `<path>.svg`; returns both. The same figure gives the same bytes."""
    paths = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with drawing():
        for kind in ("png", "svg"):
            file = io.BytesIO()
            metadata: dict[str, Any] | None = {"Date": None} if kind == "svg" else None
            figure.savefig(file, format=kind, metadata=metadata)
            paths.append(path.with_suffix(f".{kind}"))
            write_atomic(paths[-1], file.getvalue())
    return paths
