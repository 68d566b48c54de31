"""Cost of a run before it is trained, from its configuration alone: no weights, data or device are needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import pandas as pd

from harness.experiments.matching import meta_model
from harness.experiments.run_config import RunConfig
from harness.model.language_model import LanguageModel, ModelConfig, ModelCost
from harness.training.checkpoint import KEEP, kept_steps
from harness.training.distributed import Sharding

UTILISATION = 0.4
"""Share of a GPU's peak rate that training is assumed to reach where nothing else is stated."""
FLOAT = 4  # bytes; weights, gradients and AdamW's two moments are fp32 whatever the dtype of activations


@dataclass(frozen=True)
class Estimate:
    """The cost of training one run. Evaluation is not included.

    training_flops: FLOPs that the model's function needs; extra work of a chunked form or of recomputation does not
    count. device_hours: hours on one device, or summed over several at the same utilisation. measured: whether the
    hours come from a measured throughput rather than from the FLOPs. checkpoint_bytes: size of one checkpoint, a third
    of it weights and the rest AdamW's moments. disk_bytes: size of those that are kept at the end; during a write there
    is one more. memory_bytes: most that one process holds of weights, gradients and AdamW's moments (`held_bytes`).
    Activations, logits, weights cast to the activations' dtype, buffers of kernels and the driver come on top.
    """

    training_flops: float
    device_hours: float
    measured: bool
    checkpoint_bytes: int
    disk_bytes: int
    memory_bytes: int


def estimate(
    config: RunConfig,
    tflops: float,
    utilisation: float,
    records: pd.DataFrame | None = None,
    device: str | None = None,
    processes: int = 1,
    sharding: Sharding = "ddp",
) -> Estimate:
    """The cost of a run on a device of `tflops` · 10¹² FLOP/s, if training reaches the share `utilisation` of them.

    records: frame of records (`harness.records.store.load`). device: name of the device in the records. If they have a
    throughput for every row length on that device (`measured_rates`), hours follow from it. processes: number of
    processes that train the run together. sharding: what each of them holds.

    With N parameters (embeddings included, tied ones counted once) and T tokens per phase and row length, in whole
    steps:

        training_flops = Σ over both: T · FLOPs per training token at the length (mixers.interface.Cost)
        device_hours   = training_flops / (tflops · 10¹² · utilisation) / 3600
                         or, measured, Σ over both: T / tokens per second / 3600
        checkpoint_bytes = 4 · 3N: weights and two moments
        disk_bytes     = checkpoint_bytes per checkpoint that is kept

    Raises ValueError if `tflops` is not positive and finite or `utilisation` is outside (0, 1].
    """
    if not 0 < tflops < float("inf"):
        raise ValueError(f"tflops: {tflops} is not a rate; give the device's in 10^12 FLOP/s, more than 0")
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation: {utilisation} is not a share of a rate; give more than 0 and at most 1")
    model = config.model.model_dump_json()
    tokens = [seen for phase in config.data.phases for seen in phase.tokens_by_length.items()]
    costs = [_cost(model, seq_len) for seq_len, _ in tokens]
    flops = sum(seen * cost.flops_per_token for (_, seen), cost in zip(tokens, costs, strict=True))
    parameters = costs[0].non_embedding_params + costs[0].embedding_params
    seconds, measured = flops / (tflops * 1e12 * utilisation), False
    if records is not None and device is not None:
        rates = measured_rates(records, device, config.preset, config.mixer, config.layout)
        if all(seq_len in rates for seq_len, _ in tokens):
            seconds, measured = sum(seen / rates[seq_len] for seq_len, seen in tokens), True
    return Estimate(
        training_flops=flops,
        device_hours=seconds / 3600,
        measured=measured,
        checkpoint_bytes=FLOAT * 3 * parameters,
        disk_bytes=_checkpoints(config) * FLOAT * 3 * parameters,
        memory_bytes=held_bytes(config.model, processes, sharding),
    )


def held_bytes(config: ModelConfig, processes: int, sharding: Sharding) -> int:
    """Bytes of weights, gradients and two moments in the process that holds the most of them.

    A whole model with N parameters takes 4 · 4N. With fsdp (harness.training.distributed.divide) a process holds
    ⌈first axis / processes⌉ rows of each parameter, its gradient and its moments. On top come gathered parameters with
    their gradients: those outside the blocks, and two blocks, since the next one is gathered while one computes. This
    is an upper bound, since an MLP is gathered in the activations' dtype.
    """
    model = meta_model(config)
    sizes = {parameter: parameter.numel() for parameter in model.parameters()}
    if processes == 1 or sharding == "ddp":
        return 4 * FLOAT * sum(sizes.values())
    part = sum(-(-p.shape[0] // processes) * (size // p.shape[0]) for p, size in sizes.items())
    blocks = [sum(sizes[p] for p in block.parameters()) for block in model.blocks]
    return FLOAT * (4 * part + 2 * (sum(sizes.values()) - sum(blocks)) + 2 * 2 * max(blocks))


def _checkpoints(config: RunConfig) -> int:
    """Number of checkpoints that an uninterrupted run keeps."""
    steps, milestones = config.data.steps, config.train.milestones
    strides = [config.train.checkpoint_every, *([milestones] if milestones else [])]
    # The last KEEP of all are among the last KEEP of each stride. The steps in between may be too many to list.
    last = {steps, *(step for stride in strides for step in multiples_below(steps, stride, KEEP))}
    if milestones is None:
        return len(kept_steps(last, None))
    others = [step for step in sorted(last)[-KEEP:] if step % milestones]
    return len(others) + steps // milestones


def multiples_below(limit: int, stride: int, most: int) -> range:
    """The last multiples of `stride` from 1 on that are below `limit`, at most `most` of them."""
    count = (limit - 1) // stride
    return range(stride * max(1, count - most + 1), limit, stride)


def measured_rates(records: pd.DataFrame, device: str, preset: str, mixer: str, layout: str) -> dict[int, float]:
    """Training throughput in tokens per second by row length, as the suite `throughput` measured it on a device of this
    name with the fastest batch size."""
    wanted = {"suite": "throughput", "metric": "train_tokens_per_second", "device": device}
    wanted |= {"preset": preset, "mixer": mixer, "layout": layout}
    matching = records
    for column, value in wanted.items():
        matching = matching[matching[column] == value]
    return {int(length): float(value) for length, value in matching.groupby("length")["value"].max().items()}


@cache
def _cost(model: str, seq_len: int) -> ModelCost:
    """Cost of a model, given as JSON, at a row length. Cached over seeds."""
    return _laid_out(model).cost(seq_len)


@lru_cache(maxsize=64)
def _laid_out(model: str) -> LanguageModel:
    """A model, given as JSON, on the meta device. Cached over lengths: laying out a large model takes a while."""
    return meta_model(ModelConfig.model_validate_json(model))
