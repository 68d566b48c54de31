"""What a job does: train one run, evaluate it, and leave behind what `status` shows."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from harness import checkpoint
from harness.checkpoint import write_atomic
from harness.data import load_tokenizer
from harness.journal import Journal
from harness.lm import MixerLM
from harness.provenance import provenance
from harness.records import Record, write_records
from harness.train import activation_dtype, load_trained, read_config, read_summary, this_device, train
from slurm.plan import RunPlan, evaluation_key, missing
from suites import suite

HEARTBEAT = 2.0  # seconds between two writes of a run's status


@dataclass(frozen=True)
class Status:
    """Where a run stands: `status.json` in its folder.

    state: training, evaluating, done, stopped or failed. detail: the step, the task, or why it failed, in one line.
    updated: seconds since the epoch.
    """

    state: str
    detail: str
    pid: int
    updated: float


def write_status(folder: Path, state: str, detail: str) -> None:
    status = Status(state, detail, os.getpid(), time.time())
    write_atomic(folder / "status.json", json.dumps(asdict(status)).encode())


def read_status(folder: Path) -> Status | None:
    """The last status of a run; None before its first."""
    path = folder / "status.json"
    return Status(**json.loads(path.read_text())) if path.exists() else None


@contextmanager
def exclusively(folder: Path) -> Iterator[None]:
    """Hold a run's folder; RuntimeError when another process of this machine works in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{folder}: another process is working on this run; wait for it or stop it") from None
        yield


def at_work(folder: Path) -> bool:
    """Whether a process of this machine holds a run's folder."""
    try:
        with exclusively(folder):
            return False
    except RuntimeError:
        return True


def describe(folder: Path) -> str:
    """What a run is doing or why it is not, in one line; a status whose process is gone says so."""
    status = read_status(folder)
    if status is None:
        return "not started"
    if status.state in ("training", "evaluating") and not at_work(folder):
        return f"stopped while {status.state}: {status.detail}; submit again to continue"
    return f"{status.state}: {status.detail}" if status.detail else status.state


def do(work: RunPlan, command: str) -> None:
    """Finish a run: train it, then evaluate it on what is missing. Anything that stops it is left in its status.

    command: the command line for the records' provenance.
    """
    with exclusively(work.folder):
        try:
            _train(work, command)
            for name in missing(work.folder, work.suites):
                evaluate(work.folder, name, work.suites[name], work.config.label, command)
        except KeyboardInterrupt:
            write_status(work.folder, "stopped", "interrupted")
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            write_status(work.folder, "failed", reason)
            raise
        write_status(work.folder, "done", "")


class Heartbeat:
    """Keeps a run's status fresh, without writing more often than anyone looks."""

    def __init__(self, folder: Path, state: str):
        self.folder, self.state, self.last = folder, state, 0.0

    def __call__(self, detail: str) -> None:
        if time.time() - self.last >= HEARTBEAT:
            self.last = time.time()
            write_status(self.folder, self.state, detail)


def _train(work: RunPlan, command: str) -> None:
    beat = Heartbeat(work.folder, "training")

    def progress(metrics: dict[str, float]) -> None:
        left = metrics["total_tokens"] - metrics["tokens"]
        beat(
            f"step {metrics['step']:.0f}/{metrics['total_steps']:.0f}  loss {metrics['loss']:.3f}  "
            f"{metrics['tokens_per_second']:,.0f} tok/s  {left / metrics['tokens_per_second']:.0f} s left"
        )

    if read_summary(work.folder) is None:
        write_status(work.folder, "training", "starting")
        train(work.config, work.folder, progress, command)


def load_lm(folder: Path) -> MixerLM:
    """A trained run as an lm-eval model on this machine's device, with the tokenizer it was trained with, and with
    activations in the dtype that its recipe asks for here."""
    model, config = load_trained(folder)
    device = this_device()
    dtype = activation_dtype(config.train, device)
    return MixerLM(model.to(device), load_tokenizer(config.data.tokenizer), dtype=dtype)


def evaluate(folder: Path, name: str, options: dict[str, Any], label: str, command: str) -> None:
    """Run a suite on a trained run and write its records, whole or not at all. One that was killed goes on behind the
    last answers that it wrote down.

    Raises ValueError for a run that is not trained or options that the suite does not take.
    """
    write_status(folder, "evaluating", name)
    config = read_config(folder)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    module, lm = suite(name), load_lm(folder)
    key = evaluation_key(options, checkpoint.digest(lm.model.state_dict()))
    beat = Heartbeat(folder, "evaluating")
    answers = folder / "answers" / f"{name}-{key[:12]}.jsonl"
    for other in answers.parent.glob(f"{name}-*.jsonl"):
        if other != answers:  # of other options or other weights
            other.unlink()
    measurements = module.run(
        Journal(lm, answers, lambda line: beat(f"{name}: {line}")), module.Config(**options), progress=beat
    )
    birth = provenance(config.hash, this_device(), lm.dtype, backend=lm.model.backend(lm.dtype), command=command)
    write_records(
        folder,
        name,
        [
            Record.of(
                m,
                birth,
                run=config.run_id,
                label=label,
                mixer=config.mixer,
                layout=config.layout,
                preset=config.preset,
                seed=config.seed,
            )
            for m in measurements
        ],
    )
    write_atomic(folder / "records" / f"{name}.done", key.encode())
