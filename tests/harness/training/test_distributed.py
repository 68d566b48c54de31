"""Training in several processes: equal to one process, stopped and resumed together, failing together."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.lm.load import load_trained
from harness.training import checkpoint
from harness.training.distributed import ALONE, World, join_world
from harness.training.train import train
from harness.training.trainer import Trainer
from tests.harness.training.processes import LOST, STEPS, recipe, start, torchrun, without_mlps
from tests.harness.training.tiny import TINY, metrics_lines, recall_config, run_config

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def alone(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, for comparison."""
    folder = tmp_path_factory.mktemp("alone")
    train(recipe(small_data), folder)
    return folder


@pytest.fixture(scope="module")
def four(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Folder and results of four processes."""
    out = tmp_path_factory.mktemp("four") / "out"
    return out, torchrun(4, small_data, out)


@pytest.fixture(scope="module")
def lost(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Folder and outcome of two runs that lost a process, by sharding."""
    folder = tmp_path_factory.mktemp("lost")
    return {
        sharding: (folder / sharding, start(2, small_data, folder / sharding, sharding, *how))
        for sharding, how in LOST.items()
    }


@pytest.fixture(scope="module")
def pair(
    small_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
    four: tuple[Path, list[dict[str, Any]]],
    lost: dict[str, tuple[Path, Any]],
) -> tuple[Path, list[dict[str, Any]]]:
    """Folder and results of two processes, which also resume what four processes and lost ones left."""
    out = tmp_path_factory.mktemp("pair") / "out"
    shutil.copytree(four[0] / "chain", out / "chain")
    for sharding, (folder, _) in lost.items():
        shutil.copytree(folder, out / f"lost-{sharding}")
    return out, torchrun(2, small_data, out)


@pytest.fixture(params=[2, 4])
def several(request: pytest.FixtureRequest) -> tuple[int, Path, list[dict[str, Any]]]:
    """Number, folder and results of two processes, and of four."""
    return request.param, *request.getfixturevalue({2: "pair", 4: "four"}[request.param])


def assert_close(run: Path, other: Path) -> None:
    """Require the same weights, but for the order of sums.

    fp32 rounds at 6e-8. AdamW's first steps enlarge that, since they are as long for a gradient near zero as for any
    other. All mixers stay within 2.3e-6; training moves weights by 6e-3.
    """
    weights, others = (load_trained(folder)[0].state_dict() for folder in (run, other))
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=0, atol=1e-5)


def test_several_processes_train_what_one_trains(several: Any, alone: Path) -> None:
    size, out, results = several
    assert all(f["whole"] == results[0]["whole"] for f in results)
    one = json.loads((alone / "train.json").read_text())
    summary = results[0]["whole"]
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
    _, _, results = several
    for f in results:
        assert f["stopped"] == f"TrainingInterrupted: stopped after step 3 of {STEPS}; submit again to continue"
        assert f["resumed"]["weights_sha256"] == f["whole"]["weights_sha256"]


def test_one_process_resumes_what_several_stopped(several: Any, alone: Path, small_data: Path) -> None:
    _, out, results = several
    assert all(f["stopped for one"].startswith("TrainingInterrupted: stopped after step 3") for f in results)
    assert Trainer(recipe(small_data), out / "fewer").step == 3
    summary = train(recipe(small_data), out / "fewer")
    assert summary.world_size == 1
    assert_close(out / "fewer", alone)


def test_two_processes_take_the_pieces_of_one_and_reach_its_bits(
    pair: tuple[Path, list[dict[str, Any]]], small_data: Path, tmp_path: Path
) -> None:
    # Each of the two sums the gradients of one half, like one process with two pieces. A sum of two has one order.
    one = train(recipe(small_data, accumulation=2), tmp_path / "halves")
    assert pair[1][0]["halves"]["weights_sha256"] == one.weights_sha256
    # Two processes sum four pieces as (a + b) + (c + d), one process as ((a + b) + c) + d.
    train(recipe(small_data, accumulation=4), tmp_path / "quarters")
    assert_close(pair[0] / "quarters", tmp_path / "quarters")


def test_answers_of_all_processes_count_in_the_accuracy_of_training(
    pair: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    one = train(recall_config(accumulation=2), tmp_path)
    assert pair[1][0]["recall"]["weights_sha256"] == one.weights_sha256
    expected, ddp, fsdp = (metrics_lines(folder) for folder in (tmp_path, pair[0] / "recall", pair[0] / "recall-fsdp"))
    for key in ("step", "tokens", "loss", "accuracy/mqar@2", "accuracy/mqar@4"):
        assert [line[key] for line in ddp] == [line[key] for line in expected], key
    # fsdp sums in another order, which may turn a few of the 700 answers that a line counts.
    for line, other in zip(fsdp, expected, strict=True):
        assert abs(line["accuracy/mqar@4"] - other["accuracy/mqar@4"]) < 0.01


@pytest.mark.parametrize(("sharding", "last_step"), [("ddp", None), ("fsdp", 4)])
def test_a_process_that_is_lost_costs_the_steps_since_the_last_checkpoint(
    sharding: str,
    last_step: int | None,
    lost: dict[str, tuple[Path, Any]],
    pair: tuple[Path, list[dict[str, Any]]],
    alone: Path,
    small_data: Path,
    tmp_path: Path,
) -> None:
    folder, ended = lost[sharding]
    assert ended.returncode != 0
    assert ("MemoryError: no more of it" in ended.stderr) == (LOST[sharding][0] == "out of memory")
    newest = checkpoint.latest(folder)
    assert (None if newest is None else checkpoint.load(newest)["step"]) == last_step
    # Two processes resume it to the same bits, and one to the same weights.
    whole = pair[1][0]["whole" if sharding == "ddp" else "fsdp"]
    assert [f[f"lost {sharding}"]["weights_sha256"] for f in pair[1]] == [whole["weights_sha256"]] * 2
    content = checkpoint.load(checkpoint.latest(pair[0] / f"lost-{sharding}"))
    assert checkpoint.digest(content["model"]) == whole["weights_sha256"]
    shutil.copytree(folder, tmp_path / "by-one")
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


def test_the_error_of_one_process_reaches_all_and_its_traceback_the_log(
    pair: tuple[Path, list[dict[str, Any]]],
) -> None:
    assert [f["peer"] for f in pair[1]] == ["PeerFailed: rank 1: ValueError: the reason", "ValueError: the reason"]
    log = (pair[0] / "log").read_text()
    assert "rank 1 of 2 failed:\nTraceback (most recent call last):\n" in log
    assert 'raise ValueError("the reason")' in log


def test_sharded_processes_train_what_one_process_trains(several: Any, alone: Path) -> None:
    size, out, results = several
    assert all(f["fsdp"] == results[0]["fsdp"] for f in results)
    one, summary = json.loads((alone / "train.json").read_text()), results[0]["fsdp"]
    assert (summary["world_size"], summary["sharding"], one["sharding"]) == (size, "fsdp", None)
    assert results[0]["whole"]["sharding"] == "ddp" and summary["run"] == one["run"]
    assert abs(summary["train_loss"] - one["train_loss"]) < 1e-5  # of 8 nats
    assert_close(out / "fsdp", alone)
    assert [p.name for p in sorted((out / "fsdp" / "checkpoints").glob("step_*"))] == [
        "step_00000004.dcp",
        "step_00000006.dcp",
    ]


def test_sharded_processes_stop_together_and_resume_to_the_same_bits(several: Any) -> None:
    for f in several[2]:
        assert f["fsdp stopped"] == f"TrainingInterrupted: stopped after step 3 of {STEPS}; submit again to continue"
        assert f["fsdp resumed"]["weights_sha256"] == f["fsdp"]["weights_sha256"]


def test_a_run_resumes_with_any_number_of_processes_and_any_sharding(
    pair: tuple[Path, list[dict[str, Any]]], four: tuple[Path, list[dict[str, Any]]], alone: Path, small_data: Path
) -> None:
    """In turn four shards, two shards, two whole models, two shards, and one process train a step or two."""
    stopped = "TrainingInterrupted: stopped after step {} of 6; submit again to continue"
    assert all(f["chain fsdp"] == stopped.format(1) for f in four[1])
    assert all((f["chain ddp"], f["chain fsdp"]) == (stopped.format(3), stopped.format(4)) for f in pair[1])
    chain = pair[0] / "chain"
    assert checkpoint.latest(chain).name == "step_00000004.dcp"
    assert train(recipe(small_data), chain).world_size == 1
    assert checkpoint.latest(chain).name == "step_00000006.pt"
    assert_close(chain, alone)


@pytest.mark.parametrize("mixer", TINY)
def test_every_mixer_can_be_sharded(
    mixer: str, pair: tuple[Path, list[dict[str, Any]]], small_data: Path, tmp_path: Path
) -> None:
    one = train(run_config(small_data, mixer, steps=2), tmp_path)
    assert abs(pair[1][0][f"fsdp {mixer}"]["train_loss"] - one.train_loss) < 1e-5
    assert_close(pair[0] / f"fsdp-{mixer}", tmp_path)


def test_blocks_with_convolutions_and_without_mlps_can_be_sharded(
    pair: tuple[Path, list[dict[str, Any]]], small_data: Path, tmp_path: Path
) -> None:
    one = train(without_mlps(run_config(small_data, steps=2)), tmp_path)
    assert one.mlp_widths == [0, 32]
    assert abs(pair[1][0]["fsdp without MLPs"]["train_loss"] - one.train_loss) < 1e-5
    assert_close(pair[0] / "fsdp-bare", tmp_path)


def test_sharded_processes_accumulate_pieces_that_are_recomputed(
    pair: tuple[Path, list[dict[str, Any]]], small_data: Path, tmp_path: Path
) -> None:
    train(recipe(small_data, accumulation=4), tmp_path)
    assert_close(pair[0] / "fsdp-pieces", tmp_path)
    assert pair[1][0]["ddp recomputed"]["weights_sha256"] == pair[1][0]["whole"]["weights_sha256"]


def test_sharded_and_whole_models_compute_the_same_in_bf16(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    losses = [pair[1][0][name]["train_loss"] for name in ("fsdp bf16", "ddp bf16")]
    # Both round activations at 2^-8 in the same places; the order of sums moves some to the next number.
    assert abs(losses[0] - losses[1]) < 1e-3 and losses[0] != pair[1][0]["fsdp"]["train_loss"]


def test_a_model_that_differs_between_processes_is_not_sharded(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    for f in pair[1]:
        assert f["unequal"].startswith("RuntimeError: ") and "sharded over 2 processes it has" in f["unequal"]


def test_a_checkpoint_of_another_configuration_is_refused(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    for f in pair[1]:
        for name, file in (("other fsdp", "step_00000006.dcp"), ("other ddp", "step_00000006.pt")):
            assert f[name].startswith("CheckpointError: ") and f"{file}: made by another configuration" in f[name]


def test_sharding_keeps_marks_of_parameters_and_every_number_once(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [f["marked"] for f in pair[1]] == [None, None]


def test_an_unknown_sharding_is_refused(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    assert {f["unknown"] for f in pair[1]} == {"ValueError: sharding: 'zero' is unknown; use ddp or fsdp"}


def test_a_disk_that_fails_one_sharded_process_leaves_the_checkpoint_before(
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
