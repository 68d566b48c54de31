"""The processes of tests/harness/training/test_distributed.py: this file, run as a script under torchrun."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from harness.experiments.run_config import RunConfig
from harness.files import CHECKOUT
from harness.model.language_model import build_model
from harness.run_folder import Summary
from harness.training import checkpoint
from harness.training.distributed import World, join_world, local, shard
from harness.training.optim import build_optimizer
from harness.training.train import train
from harness.training.trainer import Trainer
from harness.training.wrappers import MaskedLoss
from tests.harness.training.tiny import TINY, after, recall_config, run_config

STEPS = 6  # four of the first phase, two of the second

LOST = {"ddp": ("out of memory", 1, 3), "fsdp": ("killed", 0, 5)}
"""Runs that lose a process, by sharding: the way, the rank and the step."""


def recipe(data: Path, mixer: str = "gdn2", **training: Any) -> RunConfig:
    """A run of STEPS steps that saves a checkpoint at step 4 and at its end."""
    return run_config(data, mixer, steps=STEPS, checkpoint_every=4, **training)


def odd_rows(config: RunConfig) -> RunConfig:
    """The same run with three rows per step."""
    phases = [phase.model_copy(update={"rows": {"text": 3}}) for phase in config.data.phases]
    return config.model_copy(update={"data": config.data.model_copy(update={"phases": phases})})


def without_mlps(config: RunConfig) -> RunConfig:
    """The run with a convolution in both blocks, and no MLP in the first."""
    model = config.model.model_copy(update={"mlp_widths": [0, 32], "leading_conv": 3})
    return config.model_copy(update={"model": model})


def stop_in(world: World, rank: int, call: int) -> Callable[[], bool]:
    """A `stop` for training that says yes in one process alone, from its given call on."""
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return world.rank == rank and calls >= call

    return stop


def full_disk(world: World, config: RunConfig, folder: Path, rank: int, sharding: str) -> None:
    """Save a checkpoint while files of one process cannot grow past 4 KiB."""
    trainer = Trainer(config, folder, world, sharding)
    trainer.save()
    trainer.writer.wait()
    trainer.train_step()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        trainer.save()
        trainer.writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def overflow(world: World, config: RunConfig, folder: Path) -> None:
    """Train a step with an infinite weight in the last process alone."""
    trainer = Trainer(config, folder, world)
    if world.rank == world.size - 1:
        with torch.no_grad():
            trainer.model.blocks[0].mlp.up_proj.weight[0, 0] = torch.inf
    trainer.train_step()


def unequal(world: World, config: RunConfig) -> None:
    """Shard a model that differs between the processes."""
    model = build_model(config.model, world.rank)
    shard(MaskedLoss(model), model.blocks, world, torch.device("cpu"), torch.float32)


def other(world: World, config: RunConfig, folder: Path) -> None:
    """Resume a copy of a folder with another model."""
    copy = folder.with_name(f"{folder.name}-copy")
    world.on_first(lambda: shutil.copytree(folder, copy))
    Trainer(config, copy, world, "fsdp")


def marked(world: World, config: RunConfig) -> None:
    """Shard a model with a matrix that is marked as fla marks parameters that do not decay."""
    model = build_model(config.model, 0)
    model.blocks[0].mlp.up_proj.weight._no_weight_decay = True
    whole = [p.numel() for p in model.parameters()]
    shard(MaskedLoss(model), model.blocks, world, torch.device("cpu"), torch.float32)
    decaying, exempt = (group["params"] for group in build_optimizer(model, config.train).param_groups)
    assert [any(p is model.blocks[0].mlp.up_proj.weight for p in group) for group in (decaying, exempt)] == [
        False,
        True,
    ]
    assert world.total([local(p).numel() for p in model.parameters()]) == whole


def fail(world: World, rank: int) -> None:
    """Fail in one process alone."""
    with world.together():
        if world.rank == rank:
            raise ValueError("the reason")


def skip_one(world: World, config: RunConfig, folder: Path) -> None:
    """Train a step with an infinite weight in the last process alone, then a finite one. Only that moves weights."""
    trainer = Trainer(config, folder, world)
    weight = trainer.model.blocks[0].mlp.up_proj.weight
    finite = weight.detach().clone()
    if world.rank == world.size - 1:
        with torch.no_grad():
            weight[0, 0] = torch.inf
    before = trainer.model.head.weight.detach().clone()
    assert trainer.train_step()["skipped"] == 1
    assert torch.equal(before, trainer.model.head.weight)
    with torch.no_grad():
        weight.copy_(finite)
    metrics = trainer.train_step()
    assert metrics["skipped"] == 1 and metrics["step"] == 2
    assert not torch.equal(before, trainer.model.head.weight)


def worker(data: Path, out: Path) -> None:
    """The work of every process. Results and errors go to OUT/rank<rank>.json, by name."""
    results: dict[str, Any] = {}
    with join_world() as world:

        def note(name: str, action: Callable[[], Summary | None]) -> None:
            try:
                summary = action()
                results[name] = None if summary is None else asdict(summary)
            except Exception as error:
                results[name] = f"{type(error).__name__}: {error}"

        config = recipe(data)
        note("whole", lambda: train(config, out / "whole"))
        note("stopped", lambda: train(config, out / "resumed", stop=stop_in(world, world.size - 1, 3)))
        note("resumed", lambda: train(config, out / "resumed"))
        note("stopped for one", lambda: train(config, out / "fewer", stop=stop_in(world, 0, 3)))
        note("fsdp", lambda: train(config, out / "fsdp", sharding="fsdp"))
        stop = stop_in(world, world.size - 1, 3)
        note("fsdp stopped", lambda: train(config, out / "fsdp-resumed", stop=stop, sharding="fsdp"))
        note("fsdp resumed", lambda: train(config, out / "fsdp-resumed", sharding="fsdp"))
        # Four processes train the first step of `chain`, two the next three, and the test itself the last two.
        for sharding in ["fsdp"] if world.size == 4 else ["fsdp", "ddp", "fsdp"]:
            note(f"chain {sharding}", lambda s=sharding: train(config, out / "chain", stop=after(1), sharding=s))
        if world.size == 2:
            for mixer in TINY:
                short = run_config(data, mixer, steps=2)
                note(f"fsdp {mixer}", lambda m=mixer, c=short: train(c, out / f"fsdp-{m}", sharding="fsdp"))
            bare = without_mlps(run_config(data, steps=2))
            note("fsdp without MLPs", lambda: train(bare, out / "fsdp-bare", sharding="fsdp"))
            pieces = recipe(data, accumulation=4, recompute=True)
            note("fsdp pieces", lambda: train(pieces, out / "fsdp-pieces", sharding="fsdp"))
            note("fsdp bf16", lambda: train(recipe(data, dtype="bf16"), out / "fsdp-bf16", sharding="fsdp"))
            note("ddp bf16", lambda: train(recipe(data, dtype="bf16"), out / "ddp-bf16"))
            note("ddp recomputed", lambda: train(recipe(data, recompute=True), out / "ddp-recomputed"))
            for sharding in LOST:  # folders of runs that lost a process
                note(f"lost {sharding}", lambda s=sharding: train(config, out / f"lost-{s}", sharding=s))
            note("unknown", lambda: train(config, out / "unknown", sharding="zero"))
            note("unequal", lambda: unequal(world, config))
            wider = run_config(data, "attention", steps=STEPS)
            for name in ("fsdp", "ddp"):  # a folder and a file
                note(f"other {name}", lambda n=name: other(world, wider, out / f"{n}-bf16"))
            note("marked", lambda: marked(world, config))
            note("peer", lambda: fail(world, 1))
            note("skip", lambda: skip_one(world, config, out / "skip"))
            note("fsdp full", lambda: full_disk(world, config, out / "fsdp-full", 1, "fsdp"))
            note("halves", lambda: train(recipe(data, accumulation=2), out / "halves"))
            note("quarters", lambda: train(recipe(data, accumulation=4), out / "quarters"))
            recall = recall_config(accumulation=2)
            note("recall", lambda: train(recall, out / "recall"))
            note("fsdp recall stopped", lambda: train(recall, out / "recall-fsdp", stop=after(14), sharding="fsdp"))
            note("fsdp recall", lambda: train(recall, out / "recall-fsdp", sharding="fsdp"))
            note("odd", lambda: train(odd_rows(config), out / "odd"))
            note("full", lambda: full_disk(world, config, out / "full", 0, "ddp"))
            note("overflow", lambda: overflow(world, recipe(data, max_skipped=0), out / "overflow"))
        (out / f"rank{world.rank}.json").write_text(json.dumps(results))


def lose(data: Path, folder: Path, sharding: str, way: str, rank: int, step: int) -> None:
    """Train, and lose a process in a step: it is killed, or runs out of memory while others wait for its gradients."""
    with join_world() as world:
        trainer = Trainer(recipe(data), folder, world, sharding)
        compute = trainer.model.hidden

        def hidden(*arguments: Any) -> Any:
            if (world.rank, trainer.step) == (rank, step):
                # The checkpoint of step 4 may still be in progress.
                while step > 4 and checkpoint.latest(folder) is None:
                    time.sleep(0.01)
                if way == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if way == "out of memory":
                    raise MemoryError("no more of it")
            return compute(*arguments)

        trainer.model.hidden = hidden
        for _ in trainer.steps():
            pass


def start(processes: int, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run this file as a script in several processes."""
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", __file__]
    return subprocess.run([*command, *map(str, arguments)], env=environment, capture_output=True, text=True)


def torchrun(processes: int, data: Path, out: Path) -> list[dict[str, Any]]:
    """Results of the processes, by rank. Their log goes to OUT/log."""
    out.mkdir(exist_ok=True)
    done = start(processes, data, out)
    assert done.returncode == 0, done.stderr
    (out / "log").write_text(done.stderr)
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(processes)]


if __name__ == "__main__":
    data, out, *how = sys.argv[1:]
    if how:
        lose(Path(data), Path(out), how[0], how[1], int(how[2]), int(how[3]))
    else:
        worker(Path(data), Path(out))
