"""Runs of models too small to learn much, for tests of training."""

import json
import math
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.experiments.run_config import RunConfig
from harness.experiments.schema import DataConfig, TrainConfig
from harness.model.language_model import ModelConfig
from harness.training.batches import data_sha256
from harness.training.trainer import Trainer

TINY = {
    "gdn2": {"heads": 2, "head_dim": 8},
    "gated_deltanet": {"heads": 2, "head_dim": 8},
    "kda": {"heads": 2, "head_dim": 8},
    "mamba2": {"d_inner": 32, "head_dim": 16, "d_state": 8},
    "mamba3_siso": {"d_inner": 32, "head_dim": 16, "d_state": 8},
    "mamba3_mimo": {"d_inner": 32, "head_dim": 16, "d_state": 8, "rank": 2},
    "attention": {"heads": 2},
}


PHASE = {"tokens": 1, "seq_len": 8, "rows": {"text": 1}}


def run_config(data: Path, mixer: str = "gdn2", steps: int = 12, **training: object) -> RunConfig:
    """A run of a model too small to learn much. The first four steps mix text and recall, the others read text."""
    layout = "attention" if mixer == "attention" else "recurrent"
    # Two phases, so that a run that stops and resumes crosses from one to the other.
    mixed = {"tokens": 4 * 4 * 128, "seq_len": 128, "rows": {"text": 2, "mqar": 2}}
    text = {"tokens": (steps - 4) * 4 * 96, "seq_len": 96, "rows": {"text": 4}}
    recipe = {"lr": 1e-3, "checkpoint_every": 5, "threads": 1}
    phases = [mixed, text] if steps > 4 else [mixed | {"tokens": steps * 4 * 128}]
    source = DataConfig(source=str(data), phases=phases)
    return RunConfig(
        label=mixer,
        mixer=mixer,
        layout=layout,
        preset="cpu-600k",
        seed=0,
        model=ModelConfig(
            layout=layout, mixer=mixer, mixer_options=TINY[mixer], d_model=16, mlp_widths=[32, 32], vocab_size=4096
        ),
        data=source,
        data_sha256=data_sha256(source),
        train=TrainConfig(**(recipe | training)),
    )


def recall_config(**training: object) -> RunConfig:
    """A run of 30 steps on bare ids: 18 and 12 steps of 16 rows of the two difficulties, in two epochs."""
    sets = [{"pairs": 2, "seq_len": 16, "examples": 140}, {"pairs": 4, "seq_len": 32, "examples": 96}]
    phase = {"mqar": sets, "rows": 16, "epochs": 2}
    data = DataConfig(source="synthetic", tokenizer="ids:32", phases=[phase])
    recipe = {"lr": 3e-3, "checkpoint_every": 7, "threads": 1}
    return RunConfig(
        label="gdn2",
        mixer="gdn2",
        layout="recurrent",
        preset="cpu-600k",
        seed=0,
        model=ModelConfig(
            layout="recurrent",
            mixer="gdn2",
            mixer_options=TINY["gdn2"],
            d_model=16,
            mlp_widths=[32, 32],
            vocab_size=32,
        ),
        data=data,
        data_sha256=data_sha256(data),
        train=TrainConfig(**(recipe | training)),
    )


def after(calls: int) -> Callable[[], bool]:
    """A `stop` for training: it says yes from the given call on."""
    call = count(1)
    return lambda: next(call) >= calls


def metrics_lines(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def make_bad(trainer: Trainer, steps: set[int]) -> None:
    """Make the loss of these steps nan."""
    forward = trainer.loss.forward

    def spoilt(*rows: Tensor, scored: bool) -> tuple[Tensor, Tensor | None]:
        loss, right = forward(*rows, scored=scored)
        return loss * (math.nan if trainer.step in steps else 1.0), right

    trainer.loss.forward = spoilt
