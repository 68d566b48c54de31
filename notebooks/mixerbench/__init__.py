"""Mixerbench in Python: what a notebook needs, under one name.

    import mixerbench as mb

    records = mb.load("results/demo")          # a data frame, one row per number
    lm = mb.load_lm("runs/RUN")                # a trained run as an lm-eval model
    runs = mb.plan(mb.load_experiment("demo"), mb.Path("runs"))

The names come from the rooms that define them; their docstrings stand there.
"""

from importlib import metadata
from pathlib import Path

from harness import figures
from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from harness.experiments.run_config import RunConfig, read_config
from harness.experiments.schema import Experiment
from harness.lm.generate import generate_text
from harness.lm.load import load_lm, load_trained, untrained_lm
from harness.records import Measurement, Record, load, load_samples, write_records
from harness.run_folder import Collection, RunFolder
from harness.tables.comparison import comparison
from mixers import Cost, Mixer, MixerConfig, State, build_mixer, register_mixer
from mixers.conformance import conform
from slurm.collect import collect
from slurm.plan import plan
from suites.interface import Suite, SuiteConfig
from suites.registry import register_suite

__version__ = metadata.version("mixerbench")

__all__ = [
    "Collection",
    "Cost",
    "Experiment",
    "Measurement",
    "Mixer",
    "MixerConfig",
    "Path",
    "Record",
    "RunConfig",
    "RunFolder",
    "State",
    "Suite",
    "SuiteConfig",
    "build_mixer",
    "collect",
    "comparison",
    "conform",
    "expand",
    "figures",
    "generate_text",
    "load",
    "load_experiment",
    "load_lm",
    "load_samples",
    "load_trained",
    "plan",
    "read_config",
    "register_mixer",
    "register_suite",
    "untrained_lm",
    "write_records",
]
