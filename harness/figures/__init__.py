"""Figures of collected records: functions that return a matplotlib figure, and writers of files.

from harness import figures
figures.scores(figures.measured(records))
"""

from harness.figures.collection import FIGURES, GATES, WITH_COLUMNS, draw, write, write_figure, write_gates
from harness.figures.inside import gates
from harness.figures.mqar import mqar, positions, state, state_needed
from harness.figures.numbers import measured, printed, wide
from harness.figures.scores import ablation_numbers, ablations, published_ablations, recall, ruler, scores
from harness.figures.speed import bench_numbers, decode, decode_numbers, kernels, throughput, throughput_numbers
from harness.figures.training import curves, learning, pareto, tokens_needed
from harness.figures.tuning import tuning

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
    "draw",
    "gates",
    "kernels",
    "learning",
    "measured",
    "mqar",
    "pareto",
    "positions",
    "printed",
    "published_ablations",
    "recall",
    "ruler",
    "scores",
    "state",
    "state_needed",
    "throughput",
    "throughput_numbers",
    "tokens_needed",
    "tuning",
    "wide",
    "write",
    "write_figure",
    "write_gates",
]
