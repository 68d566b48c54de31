"""Mixerbench in Python: what a notebook needs, under one name.

    import mixerbench as mb

    records = mb.load("results/demo")          # a data frame, one row per number
    lm = mb.load_lm("runs/RUN")                # a trained run as an lm-eval model
    runs = mb.plan(mb.load_experiment("demo"), "runs")

The names come from the rooms that define them; their docstrings stand there. docs/python.md shows them at work.
"""

from importlib import metadata
from pathlib import Path

from harness import figures
from harness.experiments.data import DataConfig, Phase, RecallPhase, StateTrackingPhase
from harness.experiments.expand import expand
from harness.experiments.load import load_experiment, stored_experiment
from harness.experiments.run_config import RunConfig, read_config
from harness.experiments.schema import Ablation, Experiment, MixerSpec, TrainConfig
from harness.experiments.tuning import Choice, Tuning
from harness.figures.gate_values import gates as read_gates
from harness.figures.gate_values import prompt as gates_prompt
from harness.lm.generate import generate_text
from harness.lm.load import load_lm, load_trained, untrained_lm
from harness.lm.texts import score_texts
from harness.records import Measurement, Record, load, load_samples, sample_frame, write_records
from harness.run_folder import Collection, RunFolder, find_run
from harness.tables.collection import read_table
from harness.tables.comparison import comparison
from harness.tables.differences.collections import compare_collections
from harness.tables.differences.rows import differences
from mixers import Cost, Mixer, MixerConfig, State, build_mixer, register_mixer
from mixers.conformance import conform
from slurm.collect import collect_here
from slurm.local import run_here
from slurm.plan import plan
from suites.interface import Suite, SuiteConfig
from suites.registry import register_suite

__version__ = metadata.version("mixerbench")

__all__ = [
    "Ablation",
    "Choice",
    "Collection",
    "Cost",
    "DataConfig",
    "Experiment",
    "Measurement",
    "Mixer",
    "MixerConfig",
    "MixerSpec",
    "Path",
    "Phase",
    "RecallPhase",
    "Record",
    "RunConfig",
    "RunFolder",
    "State",
    "StateTrackingPhase",
    "Suite",
    "SuiteConfig",
    "TrainConfig",
    "Tuning",
    "build_mixer",
    "collect_here",
    "compare_collections",
    "comparison",
    "conform",
    "differences",
    "expand",
    "figures",
    "find_run",
    "gates_prompt",
    "generate_text",
    "load",
    "load_experiment",
    "load_lm",
    "load_samples",
    "load_trained",
    "plan",
    "read_config",
    "read_gates",
    "read_table",
    "register_mixer",
    "register_suite",
    "run_here",
    "sample_frame",
    "score_texts",
    "stored_experiment",
    "untrained_lm",
    "write_records",
]
