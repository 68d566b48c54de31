"""Estimates of cost, against sums by hand, a checkpoint on disk, and a model that torch shards itself."""

import multiprocessing
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from harness.experiments.matching import matched_config, meta_model
from harness.experiments.run_config import RunConfig
from harness.experiments.schema import DataConfig, TrainConfig
from harness.model.language_model import ModelConfig, build_model
from harness.training import checkpoint
from harness.training.distributed import divide
from harness.training.estimate import estimate, held_bytes, measured_rates
from harness.training.optim import build_optimizer
from harness.training.wrappers import MaskedLoss, masked_loss

PHASE = {"tokens": 5000, "seq_len": 127, "rows": {"text": 4}}
SHORT = {"tokens": 126, "seq_len": 63, "rows": {"text": 2}}


def run_config(phases: list[dict], **model: object) -> RunConfig:
    """A model of two attention blocks, small enough to work out every figure by hand."""
    shape = {"layout": "attention", "mixer": "attention", "mixer_options": {"heads": 2}}
    return RunConfig(
        label="Transformer",
        mixer="attention",
        layout="attention",
        preset="cpu-600k",
        seed=0,
        model=ModelConfig(**(shape | {"d_model": 64, "mlp_widths": [96, 96], "vocab_size": 100} | model)),
        data=DataConfig(phases=phases),
        data_sha256="0" * 64,
        train=TrainConfig(),
    )


def test_flops_and_hours_are_those_worked_out_by_hand() -> None:
    # In rows of 127 a token sees 64 keys on average. Attention: 2·4·64² + 4·64·64 = 49,152; MLP: 2·3·64·96 = 36,864;
    # head: 2·64·100 = 12,800. Forward 2·86,016 + 12,800 = 184,832, training three times that; 10 steps of 508 tokens.
    cost = estimate(run_config([PHASE]), tflops=1e-3, utilisation=0.5)
    assert cost.training_flops == 3 * 184_832 * 5_080
    assert cost.device_hours == pytest.approx(3 * 184_832 * 5_080 / 0.5e9 / 3600)
    # In rows of 63 it sees 32 keys: attention 40,960, forward 168,448; one step of 126 tokens.
    both = estimate(run_config([PHASE, SHORT]), tflops=1e-3, utilisation=0.5)
    assert both.training_flops == 3 * (184_832 * 5_080 + 168_448 * 126)


def test_rows_of_several_lengths_cost_what_each_costs() -> None:
    # As above: 184,832 FLOPs forward in rows of 127, and 168,448 in rows of 63. Two epochs of 2 and 1 steps of 4 rows.
    sets = [{"pairs": 4, "seq_len": 127, "examples": 8}, {"pairs": 2, "seq_len": 63, "examples": 3}]
    phase = {"mqar": sets, "rows": 4, "epochs": 2}
    config = run_config([PHASE])
    data = DataConfig(source="synthetic", tokenizer="ids:100", phases=[phase])
    cost = estimate(config.model_copy(update={"data": data}), tflops=1e-3, utilisation=0.5)
    assert cost.training_flops == 3 * 2 * (184_832 * 2 * 4 * 127 + 168_448 * 4 * 63)


def test_bytes_count_every_parameter_once() -> None:
    # Blocks 2·(4·64² + 3·64·96 + 2·64) = 69,888, last norm 64, embedding and head 6,400 each: 82,752.
    cost = estimate(run_config([PHASE]), 1.0, 0.5)
    assert (cost.memory_bytes, cost.disk_bytes) == (16 * 82_752, 12 * 82_752)  # ten steps: only the last is saved
    tied = estimate(run_config([PHASE], tie_embeddings=True), 1.0, 0.5)
    assert tied.memory_bytes == 16 * (82_752 - 6_400)


def test_a_checkpoint_is_as_large_on_disk_as_estimated(tmp_path: Path) -> None:
    config = run_config([PHASE], d_model=128, mlp_widths=[512, 512])
    model = build_model(config.model, 0)
    optimizer = build_optimizer(model, config.train)
    tokens = torch.zeros(1, 9, dtype=torch.long)
    masked_loss(model, tokens[:, :-1], tokens[:, 1:], tokens[:, 1:] == 0)[0].backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    for step in range(checkpoint.KEEP + 1):
        checkpoint.save(tmp_path, step, content)
    written = sum(path.stat().st_size for path in (tmp_path / "checkpoints").glob("step_*.pt"))
    # The file also holds names and the archive's own entries, some hundred bytes per tensor.
    assert written == pytest.approx(checkpoint.KEEP * estimate(config, 1.0, 0.5).disk_bytes, rel=0.01)


def test_disk_is_for_as_many_checkpoints_as_a_run_keeps(tmp_path: Path) -> None:
    config = run_config([PHASE], d_model=8, mlp_widths=[32, 32])  # ten steps
    one = estimate(config, 1.0, 0.5).disk_bytes
    for every, milestones, kept in ((3, None, 2), (3, 2, 6), (20, 4, 3), (1, 1, 10)):
        recipe = TrainConfig(checkpoint_every=every, milestones=milestones)
        folder = tmp_path / f"{every}-{milestones}"
        for step in range(1, 11):
            if step == 10 or step % every == 0 or (milestones is not None and step % milestones == 0):
                checkpoint.save(folder, step, {}, milestones)
        assert len(list(folder.glob("checkpoints/step_*"))) == kept
        assert estimate(config.model_copy(update={"train": recipe}), 1.0, 0.5).disk_bytes == kept * one


def test_a_run_of_any_length_is_priced_at_once() -> None:
    # 10^18 tokens in steps of 508: what is kept is counted, not listed.
    long = run_config([PHASE | {"tokens": 10**18}])
    one = estimate(run_config([PHASE]), 1.0, 0.5).disk_bytes
    steps = -(-(10**18) // 508)
    for milestones, kept in ((None, 2), (10**6, steps // 10**6 + 2)):
        recipe = TrainConfig(milestones=milestones)
        assert estimate(long.model_copy(update={"train": recipe}), 1.0, 0.5).disk_bytes == kept * one


def divided(config: ModelConfig, rank: int, processes: int) -> dict[str, tuple[int, int, int]]:
    """By parameter of a model that torch shards on the meta device: numbers that this process holds, and the first row
    and number of rows that it writes to a checkpoint."""
    dist.init_process_group("fake", rank=rank, world_size=processes, store=FakeStore())
    model = meta_model(config)
    divide(MaskedLoss(model), model.blocks, init_device_mesh("cpu", (processes,)), torch.bfloat16)
    planner = DefaultSavePlanner()
    planner.set_up_planner(model.state_dict(), None, rank == 0)
    chunks = {item.index.fqn: item.tensor_data.chunk for item in planner.create_local_plan().items}
    return {
        name: (p.to_local().numel(), chunks[name].offsets[0], chunks[name].sizes[0])
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("mixer", ["gdn2", "mamba3_mimo", "attention"])
@pytest.mark.parametrize("processes", [1, 3, 64])
def test_the_papers_models_are_spread_over_processes_as_estimated(processes: int, mixer: str) -> None:
    """1.3B parameters: each process holds what is estimated, and a checkpoint has every row once."""
    config = matched_config("release-1.3b", "attention" if mixer == "attention" else "recurrent", mixer)
    whole = {name: p.shape for name, p in meta_model(config).named_parameters()}
    ranks = range(processes) if processes < 8 else (0, 1, 31, 32, 63)
    # Each rank in a process of its own: torch caches what it worked out for the first rank.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        parts = pool.starmap(divided, [(config, rank, processes) for rank in ranks], chunksize=1)
    for name, shape in whole.items():
        rows = -(-shape[0] // processes)
        for rank, part in zip(ranks, parts, strict=True):
            held, first, count = part[name]
            assert first == min(rank * rows, shape[0]) and count == min(rows, shape[0] - first)
            assert held == count * (shape.numel() // shape[0])
    outside = sum(shape.numel() for name, shape in whole.items() if not name.startswith("blocks."))
    blocks = [sum(s.numel() for n, s in whole.items() if n.startswith(f"blocks.{i}.")) for i in range(18)]
    together = 0 if processes == 1 else 8 * outside + 16 * max(blocks)
    largest = max(sum(held for held, _, _ in part.values()) for part in parts)
    assert held_bytes(config, processes, "fsdp") == 16 * largest + together
    assert held_bytes(config, processes, "ddp") == 16 * sum(shape.numel() for shape in whole.values())


def test_the_papers_run_takes_slightly_more_than_six_flops_per_parameter_and_token() -> None:
    runs = expand(load_experiment("table2"), 32000, "0" * 64).runs
    config = next(run for run in runs if (run.mixer, run.layout) == ("gdn2", "recurrent"))
    cost = estimate(config, tflops=989, utilisation=0.4)
    assert 100e9 <= config.data.tokens < 100e9 + 524_288
    # 6·N·T of the 1,302,640,416 parameters and the head's 32,000·2304, and the state's own work on top.
    six = 6 * (1_302_640_416 + 32_000 * 2304) * config.data.tokens
    assert six < cost.training_flops < 1.05 * six
    assert cost.memory_bytes == 16 * (1_302_640_416 + 2 * 32_000 * 2304)


def speeds(*changes: dict) -> pd.DataFrame:
    row = {"suite": "throughput", "metric": "train_tokens_per_second", "device": "H100", "length": 127, "value": 100.0}
    row |= {"preset": "cpu-600k", "mixer": "attention", "layout": "attention"}
    return pd.DataFrame([row | change for change in changes]).astype({"length": "Int64"})


def test_a_measured_rate_is_of_the_same_device_model_and_length_and_of_the_fastest_batch() -> None:
    model = ("cpu-600k", "attention", "attention")
    records = speeds({}, {"value": 300.0}, {"metric": "mfu", "value": 900.0}, {"mixer": "kda", "value": 900.0})
    records = pd.concat([records, speeds({"length": 63, "value": 50.0})])
    assert measured_rates(records, "H100", *model) == {127: 300.0, 63: 50.0}
    assert measured_rates(records, "A100", *model) == measured_rates(records, "H100", "125m", *model[1:]) == {}


def test_hours_are_measured_if_every_phase_has_a_rate_and_else_follow_from_the_flops() -> None:
    config, flops = run_config([PHASE, SHORT]), estimate(run_config([PHASE, SHORT]), 1.0, 0.5)
    both = estimate(config, 1.0, 0.5, speeds({}, {"length": 63, "value": 9.0}), "H100")
    assert both.measured and not flops.measured
    assert both.device_hours == pytest.approx((5_080 / 100 + 126 / 9) / 3600)
    assert estimate(config, 1.0, 0.5, speeds({}), "H100") == flops
    assert estimate(config, 1.0, 0.5, speeds({}, {"length": 63}), "A100") == flops
    assert both.training_flops == flops.training_flops


@pytest.mark.parametrize(
    ("tflops", "utilisation", "message"),
    [
        (0, 0.4, r"tflops: 0 is not a rate"),
        (float("inf"), 0.4, r"tflops: inf is not a rate"),
        (989, 0, r"utilisation: 0 is not a share"),
        (989, 40, r"utilisation: 40 is not a share of a rate; give more than 0 and at most 1"),
    ],
)
def test_a_wrong_rate_is_refused(tflops: float, utilisation: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(run_config([PHASE]), tflops, utilisation)
