"""Training in several processes: equal to one process, stopped and resumed together, failing together.

Run as a script, under torchrun, this file is such a process.
"""

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

import pytest
import torch

from harness.experiments.run_config import RunConfig
from harness.files import CHECKOUT
from harness.lm.load import load_trained
from harness.model.language_model import build_model
from harness.run_folder import Summary
from harness.training import checkpoint
from harness.training.batches import pieces, step_rows
from harness.training.distributed import ALONE, World, join_world, local, shard
from harness.training.optim import build_optimizer
from harness.training.train import train
from harness.training.trainer import Trainer
from harness.training.wrappers import MaskedLoss
from tests.harness.training.tiny import TINY, after, run_config

STEPS = 6  # four of the first mixture, two of the second


def recipe(data: Path, mixer: str = "gdn2", **training: Any) -> RunConfig:
    return run_config(data, mixer, steps=STEPS, checkpoint_every=4, **training)


def odd_rows(config: RunConfig) -> RunConfig:
    """The same with three rows a step."""
    phases = [phase.model_copy(update={"rows": {"text": 3}}) for phase in config.data.phases]
    return config.model_copy(update={"data": config.data.model_copy(update={"phases": phases})})


def stop_in(world: World, rank: int, step: int) -> Callable[[], bool]:
    """Says yes in one process alone, from the given step of this call on."""
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return world.rank == rank and asked >= step

    return stop


def full_disk(world: World, config: RunConfig, folder: Path, rank: int, sharding: str) -> None:
    """Save where one process' files may not grow past 4 KiB."""
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
    """A step with an infinite weight in the last process alone."""
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
    """Go on with another model from what lies in a folder."""
    copy = folder.with_name(f"{folder.name}-copy")
    world.on_first(lambda: shutil.copytree(folder, copy))
    Trainer(config, copy, world, "fsdp")


def marked(world: World, config: RunConfig) -> None:
    """Shard a model of which a matrix is marked as fla marks what does not decay."""
    model = build_model(config.model, 0)
    model.blocks[0].mlp.up_proj.weight._no_weight_decay = True
    whole = [p.numel() for p in model.parameters()]
    shard(MaskedLoss(model), model.blocks, world, torch.device("cpu"), torch.float32)
    decaying, spared = (group["params"] for group in build_optimizer(model, config.train).param_groups)
    assert [any(p is model.blocks[0].mlp.up_proj.weight for p in group) for group in (decaying, spared)] == [
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
    """A step with an infinite weight in the last process alone, then one without; the weights move in that alone."""
    trainer = Trainer(config, folder, world)
    weight = trainer.model.blocks[0].mlp.up_proj.weight
    sound = weight.detach().clone()
    if world.rank == world.size - 1:
        with torch.no_grad():
            weight[0, 0] = torch.inf
    before = trainer.model.head.weight.detach().clone()
    assert trainer.train_step()["skipped"] == 1
    assert torch.equal(before, trainer.model.head.weight)
    with torch.no_grad():
        weight.copy_(sound)
    metrics = trainer.train_step()
    assert metrics["skipped"] == 1 and metrics["step"] == 2
    assert not torch.equal(before, trainer.model.head.weight)


def worker(data: Path, out: Path) -> None:
    """What every process does; what came of it goes to OUT/rank<rank>.json."""
    found: dict[str, Any] = {}
    with join_world() as world:

        def note(name: str, action: Callable[[], Summary | None]) -> None:
            try:
                summary = action()
                found[name] = None if summary is None else asdict(summary)
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"

        config = recipe(data)
        note("whole", lambda: train(config, out / "whole"))
        note("stopped", lambda: train(config, out / "resumed", stop=stop_in(world, world.size - 1, 3)))
        note("resumed", lambda: train(config, out / "resumed"))
        note("stopped for one", lambda: train(config, out / "fewer", stop=stop_in(world, 0, 3)))
        note("fsdp", lambda: train(config, out / "fsdp", sharding="fsdp"))
        stop = stop_in(world, world.size - 1, 3)
        note("fsdp stopped", lambda: train(config, out / "fsdp-resumed", stop=stop, sharding="fsdp"))
        note("fsdp resumed", lambda: train(config, out / "fsdp-resumed", sharding="fsdp"))
        # The last step of `chain` is trained by one process: see chained.
        for sharding in ["fsdp"] if world.size == 4 else ["fsdp", "ddp", "fsdp"]:
            note(f"chain {sharding}", lambda s=sharding: train(config, out / "chain", stop=after(1), sharding=s))
        if world.size == 2:
            for mixer in TINY:
                short = run_config(data, mixer, steps=2)
                note(f"fsdp {mixer}", lambda m=mixer, c=short: train(c, out / f"fsdp-{m}", sharding="fsdp"))
            pieces = recipe(data, accumulation=4, recompute=True)
            note("fsdp pieces", lambda: train(pieces, out / "fsdp-pieces", sharding="fsdp"))
            note("fsdp bf16", lambda: train(recipe(data, dtype="bf16"), out / "fsdp-bf16", sharding="fsdp"))
            note("ddp bf16", lambda: train(recipe(data, dtype="bf16"), out / "ddp-bf16"))
            note("ddp recomputed", lambda: train(recipe(data, recompute=True), out / "ddp-recomputed"))
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
            note("odd", lambda: train(odd_rows(config), out / "odd"))
            note("full", lambda: full_disk(world, config, out / "full", 0, "ddp"))
            note("overflow", lambda: overflow(world, recipe(data, max_skipped=0), out / "overflow"))
        (out / f"rank{world.rank}.json").write_text(json.dumps(found))


def lost(data: Path, folder: Path, sharding: str, way: str, rank: int, step: int) -> None:
    """Train, and in this step lose a process: killed, or out of memory where the others wait for its gradients."""
    with join_world() as world:
        trainer = Trainer(recipe(data), folder, world, sharding)
        compute = trainer.model.hidden

        def hidden(*arguments: Any) -> Any:
            if (world.rank, trainer.step) == (rank, step):
                while step > 4 and checkpoint.latest(folder) is None:  # that of step 4 may still be being written
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
    """This file as a script in several processes."""
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", __file__]
    return subprocess.run([*command, *map(str, arguments)], env=environment, capture_output=True, text=True)


def torchrun(processes: int, data: Path, out: Path) -> list[dict[str, Any]]:
    """What the processes found, by rank; what they logged goes to OUT/log."""
    out.mkdir(exist_ok=True)
    done = start(processes, data, out)
    assert done.returncode == 0, done.stderr
    (out / "log").write_text(done.stderr)
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def alone(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that several processes are compared with."""
    folder = tmp_path_factory.mktemp("alone")
    train(recipe(small_data), folder)
    return folder


@pytest.fixture(scope="module")
def pair(
    small_data: Path, tmp_path_factory: pytest.TempPathFactory, four: tuple[Path, list[dict[str, Any]]]
) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("pair") / "out"
    shutil.copytree(four[0] / "chain", out / "chain")
    return out, torchrun(2, small_data, out)


@pytest.fixture(scope="module")
def four(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("four") / "out"
    return out, torchrun(4, small_data, out)


@pytest.fixture(params=[2, 4])
def several(request: pytest.FixtureRequest) -> tuple[int, Path, list[dict[str, Any]]]:
    return request.param, *request.getfixturevalue({2: "pair", 4: "four"}[request.param])


def assert_close(run: Path, other: Path) -> None:
    """The same weights but for the order of sums: fp32's 6e-8, which AdamW's first steps enlarge, being as long for a
    gradient near zero as for any other. All mixers stay within 2.3e-6; training moves weights by 6e-3."""
    weights, others = (load_trained(folder)[0].state_dict() for folder in (run, other))
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=0, atol=1e-5)


def test_several_processes_train_what_one_trains(several: Any, alone: Path) -> None:
    size, out, found = several
    assert all(f["whole"] == found[0]["whole"] for f in found)
    one = json.loads((alone / "train.json").read_text())
    summary = found[0]["whole"]
    assert (summary["world_size"], one["world_size"]) == (size, 1)
    assert summary["run"] == one["run"] and summary["tokens_seen"] == one["tokens_seen"]
    assert abs(summary["train_loss"] - one["train_loss"]) < 1e-5  # of 8 nats
    assert_close(out / "whole", alone)


def test_only_one_process_writes(several: Any) -> None:
    _, out, _ = several
    assert [json.loads(line)["step"] for line in (out / "whole" / "metrics.jsonl").read_text().splitlines()] == [STEPS]
    assert len(list((out / "whole" / "tensorboard").iterdir())) == 1
    assert not list(out.rglob("*.partial"))


def test_one_process_told_to_stop_stops_all_and_they_resume_to_the_same_bits(several: Any) -> None:
    _, _, found = several
    for f in found:
        assert f["stopped"] == f"TrainingInterrupted: stopped after step 3 of {STEPS}; submit again to continue"
        assert f["resumed"]["weights_sha256"] == f["whole"]["weights_sha256"]


def test_one_process_goes_on_where_several_stopped(several: Any, alone: Path, small_data: Path) -> None:
    _, out, found = several
    assert all(f["stopped for one"].startswith("TrainingInterrupted: stopped after step 3") for f in found)
    assert Trainer(recipe(small_data), out / "fewer").step == 3
    summary = train(recipe(small_data), out / "fewer")
    assert summary.world_size == 1
    assert_close(out / "fewer", alone)


def test_two_processes_take_the_pieces_of_one_and_reach_its_bits(
    pair: tuple[Path, list[dict[str, Any]]], small_data: Path, tmp_path: Path
) -> None:
    # Each sums the gradients of one half, and so does one process with two pieces; a sum of two has one order.
    one = train(recipe(small_data, accumulation=2), tmp_path / "halves")
    assert pair[1][0]["halves"]["weights_sha256"] == one.weights_sha256
    # Four pieces are summed as (a + b) + (c + d) here and ((a + b) + c) + d there.
    train(recipe(small_data, accumulation=4), tmp_path / "quarters")
    assert_close(pair[0] / "quarters", tmp_path / "quarters")


@pytest.mark.parametrize(
    ("sharding", "way", "rank", "step", "from_step"),
    [("ddp", "out of memory", 1, 3, None), ("fsdp", "killed", 0, 5, 4)],
)
def test_a_process_that_is_lost_costs_the_steps_since_the_last_checkpoint(
    sharding: str,
    way: str,
    rank: int,
    step: int,
    from_step: int | None,
    pair: tuple[Path, list[dict[str, Any]]],
    alone: Path,
    small_data: Path,
    tmp_path: Path,
) -> None:
    done = start(2, small_data, tmp_path / "run", sharding, way, rank, step)
    assert done.returncode != 0
    assert ("MemoryError: no more of it" in done.stderr) == (way == "out of memory")
    found = checkpoint.latest(tmp_path / "run")
    assert (None if found is None else checkpoint.load(found)["step"]) == from_step
    shutil.copytree(tmp_path / "run", tmp_path / "by-one")
    again = start(2, small_data, tmp_path / "run", sharding, "not", rank, step)
    assert again.returncode == 0, again.stderr
    last = checkpoint.load(checkpoint.latest(tmp_path / "run"))
    whole = pair[1][0]["whole" if sharding == "ddp" else "fsdp"]
    assert checkpoint.digest(last["model"]) == whole["weights_sha256"]
    train(recipe(small_data), tmp_path / "by-one")
    assert_close(tmp_path / "by-one", alone)


def test_a_disk_that_fails_one_process_stops_all(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (f["full"] for f in pair[1])
    assert first.startswith("OSError: ") and "step_00000001.pt: cannot be written" in first
    assert second == f"PeerFailed: rank 0: {first}"


def test_a_loss_that_is_not_finite_in_one_process_stops_all(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    for f in pair[1]:
        assert f["overflow"].startswith("TrainingStopped: step 0: loss nan")


def test_a_step_that_is_not_finite_in_one_process_is_skipped_by_all(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [f["skip"] for f in pair[1]] == [None, None]


def test_what_one_process_fails_of_is_known_to_all_and_its_traceback_in_the_log(
    pair: tuple[Path, list[dict[str, Any]]],
) -> None:
    assert [f["peer"] for f in pair[1]] == ["PeerFailed: rank 1: ValueError: the reason", "ValueError: the reason"]
    log = (pair[0] / "log").read_text()
    assert "rank 1 of 2 failed:\nTraceback (most recent call last):\n" in log
    assert 'raise ValueError("the reason")' in log


def test_shares_of_a_model_train_what_one_process_trains(several: Any, alone: Path) -> None:
    size, out, found = several
    assert all(f["fsdp"] == found[0]["fsdp"] for f in found)
    one, summary = json.loads((alone / "train.json").read_text()), found[0]["fsdp"]
    assert (summary["world_size"], summary["sharding"], one["sharding"]) == (size, "fsdp", None)
    assert found[0]["whole"]["sharding"] == "ddp" and summary["run"] == one["run"]
    assert abs(summary["train_loss"] - one["train_loss"]) < 1e-5  # of 8 nats
    assert_close(out / "fsdp", alone)
    assert [p.name for p in sorted((out / "fsdp" / "checkpoints").glob("step_*"))] == [
        "step_00000004.dcp",
        "step_00000006.dcp",
    ]


def test_shares_of_a_model_stop_together_and_resume_to_the_same_bits(several: Any) -> None:
    for f in several[2]:
        assert f["fsdp stopped"] == f"TrainingInterrupted: stopped after step 3 of {STEPS}; submit again to continue"
        assert f["fsdp resumed"]["weights_sha256"] == f["fsdp"]["weights_sha256"]


def test_a_run_goes_on_whatever_processes_it_has(
    pair: tuple[Path, list[dict[str, Any]]], four: tuple[Path, list[dict[str, Any]]], alone: Path, small_data: Path
) -> None:
    """Four shares of a model, two shares, two whole models, two shares, and one process; a step or two each."""
    stopped = "TrainingInterrupted: stopped after step {} of 6; submit again to continue"
    assert all(f["chain fsdp"] == stopped.format(1) for f in four[1])
    assert all((f["chain ddp"], f["chain fsdp"]) == (stopped.format(3), stopped.format(4)) for f in pair[1])
    chain = pair[0] / "chain"
    assert checkpoint.latest(chain).name == "step_00000004.dcp"
    assert train(recipe(small_data), chain).world_size == 1
    assert checkpoint.latest(chain).name == "step_00000006.pt"
    assert_close(chain, alone)


@pytest.mark.parametrize("mixer", TINY)
def test_every_mixer_can_be_shared(
    mixer: str, pair: tuple[Path, list[dict[str, Any]]], small_data: Path, tmp_path: Path
) -> None:
    one = train(run_config(small_data, mixer, steps=2), tmp_path)
    assert abs(pair[1][0][f"fsdp {mixer}"]["train_loss"] - one.train_loss) < 1e-5
    assert_close(pair[0] / f"fsdp-{mixer}", tmp_path)


def test_shares_of_a_model_add_up_pieces_that_are_recomputed(
    pair: tuple[Path, list[dict[str, Any]]], small_data: Path, tmp_path: Path
) -> None:
    train(recipe(small_data, accumulation=4), tmp_path)
    assert_close(pair[0] / "fsdp-pieces", tmp_path)
    assert pair[1][0]["ddp recomputed"]["weights_sha256"] == pair[1][0]["whole"]["weights_sha256"]


def test_shares_and_whole_models_compute_the_same_in_bf16(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    losses = [pair[1][0][name]["train_loss"] for name in ("fsdp bf16", "ddp bf16")]
    # Activations are rounded at 2^-8 at the same places; the order of sums moves some of them to the next number.
    assert abs(losses[0] - losses[1]) < 1e-3 and losses[0] != pair[1][0]["fsdp"]["train_loss"]


def test_a_model_that_differs_between_processes_is_not_sharded(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    for f in pair[1]:
        assert f["unequal"].startswith("RuntimeError: ") and "sharded over 2 processes it has" in f["unequal"]


def test_a_checkpoint_of_another_configuration_is_refused(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    for f in pair[1]:
        for name, file in (("other fsdp", "step_00000006.dcp"), ("other ddp", "step_00000006.pt")):
            assert f[name].startswith("CheckpointError: ") and f"{file}: made by another configuration" in f[name]


def test_sharding_keeps_marks_of_parameters_and_each_number_once(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [f["marked"] for f in pair[1]] == [None, None]


def test_an_unknown_sharding_is_refused(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    assert {f["unknown"] for f in pair[1]} == {"ValueError: sharding: 'zero' is unknown; use ddp or fsdp"}


def test_a_disk_that_fails_the_share_of_one_process_leaves_the_checkpoint_before(
    pair: tuple[Path, list[dict[str, Any]]], small_data: Path
) -> None:
    for f in pair[1]:
        assert (
            f["fsdp full"].startswith("OSError: ") and "step_00000001.dcp: cannot be written (rank 1" in f["fsdp full"]
        )
    assert Trainer(recipe(small_data), pair[0] / "fsdp-full").restored_from.name == "step_00000000.dcp"


def test_rows_that_cannot_be_shared_equally_are_refused(
    pair: tuple[Path, list[dict[str, Any]]], small_data: Path
) -> None:
    for f in pair[1]:
        assert f["odd"] == (
            "ValueError: world size: 2 processes with train.accumulation 1 cut a step into 2 equal pieces, and "
            "data.phases.0 has 3 rows; use a number of processes that divides them"
        )
    assert not (pair[0] / "odd").exists()


def test_pieces_of_several_processes_are_no_larger_than_those_of_one(small_data: Path) -> None:
    config = recipe(small_data, accumulation=4)
    assert [pieces(config.data, config.train, size) for size in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(ValueError, match="3 processes with train.accumulation 4 cut a step into 6 .*has 4 rows"):
        pieces(config.data, config.train, 3)


def test_shares_in_order_of_rank_are_the_rows_of_the_step(small_data: Path, tmp_path: Path) -> None:
    config = recipe(small_data)
    trainer = Trainer(config, tmp_path)
    for step in (1, 5):
        tokens, counted = step_rows(config, step, trainer.tokenizer, trainer.data)
        for size in (2, 4):
            shares = [step_rows(config, step, trainer.tokenizer, trainer.data, World(r, size, r)) for r in range(size)]
            assert torch.equal(torch.cat([t for t, _ in shares]), tokens)
            assert torch.equal(torch.cat([c for _, c in shares]), counted)


@pytest.mark.parametrize("size", [None, "1"])
def test_one_process_needs_no_environment(size: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    with join_world() as world:
        assert world == ALONE == World(0, 1, 0)
        assert not torch.distributed.is_initialized()
        assert world.total([1.5, 2]) == [1.5, 2] and world.anyone(True) and not world.anyone(False)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "h"}, "WORLD_SIZE: 4 .* lacks LOCAL_RANK, MASTER_PORT; start"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE: 'many' in the environment is not a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: 0 is not a number of processes; give at least 1"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "1"},
            "RANK: 2 is not a rank among WORLD_SIZE=2 processes; give 0 to 1",
        ),
    ],
)
def test_a_wrong_environment_is_named(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message), join_world():
        pass


if __name__ == "__main__":
    data, out, *how = sys.argv[1:]
    if how:
        lost(Path(data), Path(out), how[0], how[1], int(how[2]), int(how[3]))
    else:
        worker(Path(data), Path(out))
