"""Figures of collected records: functions that return a matplotlib figure, and writers of files.

from harness import figures
figures.scores(figures.measured(records))
"""

from harness.figures.collection import FIGURES, GATES, WITH_COLUMNS, write, write_figure, write_gates
from harness.figures.inside import gates
from harness.figures.numbers import measured, printed, wide
from harness.figures.scores import ablation_numbers, ablations, published_ablations, recall, ruler, scores
from harness.figures.speed import bench_numbers, decode, decode_numbers, kernels, throughput, throughput_numbers
from harness.figures.training import curves, pareto

__all__ = [
    "FIGURES",
    "GATES",
    "WITH_COLUMNS",
    "ablation_numbers",
    "ablations",
    "bench_numbers",
    "curves",
    "decode",
    "decode_numbers",
    "gates",
    "kernels",
    "measured",
    "pareto",
    "printed",
    "published_ablations",
    "recall",
    "ruler",
    "scores",
    "throughput",
    "throughput_numbers",
    "wide",
    "write",
    "write_figure",
    "write_gates",
]
