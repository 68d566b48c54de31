"""What a run costs, before it is made: from its configuration alone, without weights, data or a device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pandas as pd

from harness.experiments.matching import meta_model
from harness.experiments.run_config import RunConfig
from harness.model.language_model import ModelConfig, ModelCost
from harness.training.checkpoint import kept_steps
from harness.training.distributed import Sharding

FLOAT = 4  # bytes; weights, gradients and AdamW's two moments are fp32 whatever the activations are


@dataclass(frozen=True)
class Estimate:
    """The cost of training one run; its evaluation is not in it.

    training_flops: the model's own, so that of a chunked form or of recomputed activations what the function asks for
    alone. device_hours: on one device, or shared out among several at the same utilisation. measured: whether they come
    from a throughput that was measured, and not from the FLOPs.
    disk_bytes: of the checkpoints that are kept at the end; while one is written there is one more. memory_bytes: of
    weights, gradients and AdamW's moments, what one process holds at most (`held_bytes`); beside them come activations,
    logits, weights cast to the activations' dtype, what kernels use, and the driver's own.
    """

    training_flops: float
    device_hours: float
    measured: bool
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
    """The cost of a run on a device of `tflops` · 10¹² FLOP/s, of which training reaches the part `utilisation`.

    records, device: a frame of records (`harness.records.store.load`), and the device's name as they have it; where a
    throughput was measured there for every phase (`measured_rate`), hours are T over tokens a second. processes,
    sharding: that train it together, and what each of them holds.

    With N parameters, embeddings included and tied ones once, and T tokens in each phase, whole steps of them:

        training_flops = Σ over phases of T · FLOPs per training token at the phase's length (mixers.interface.Cost)
        device_hours   = training_flops / (tflops · 10¹² · utilisation) / 3600
        disk_bytes     = 4 · 3N for every checkpoint that is kept: weights and two moments

    Raises ValueError for a rate that is none.
    """
    if not 0 < tflops < float("inf"):
        raise ValueError(f"tflops: {tflops} is no rate; give the device's, in 10^12 FLOP/s, more than 0")
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation: {utilisation} is no part of a rate; give more than 0 and at most 1")
    model = config.model.model_dump_json()
    costs = [_cost(model, phase.seq_len) for phase in config.data.phases]
    tokens = [phase.steps * phase.tokens_per_step for phase in config.data.phases]
    flops = sum(seen * cost.flops_per_token for seen, cost in zip(tokens, costs, strict=True))
    parameters = costs[0].non_embedding_params + costs[0].embedding_params
    seconds, measured = flops / (tflops * 1e12 * utilisation), False
    if records is not None and device is not None:
        model_of = (config.preset, config.mixer, config.layout)
        rates = [measured_rate(records, device, *model_of, phase.seq_len) for phase in config.data.phases]
        if None not in rates:
            seconds, measured = sum(seen / rate for seen, rate in zip(tokens, rates, strict=True)), True
    return Estimate(
        training_flops=flops,
        device_hours=seconds / 3600,
        measured=measured,
        disk_bytes=_checkpoints(config) * FLOAT * 3 * parameters,
        memory_bytes=held_bytes(config.model, processes, sharding),
    )


def held_bytes(config: ModelConfig, processes: int, sharding: Sharding) -> int:
    """What weights, gradients and two moments take in the process that holds the most of them, in bytes.

    A whole model's N parameters take 4 · 4N. With fsdp (harness.training.distributed.divide) a process has of each
    parameter ⌈first axis / processes⌉ rows, with gradients and moments; and whole, with gradients, what is brought
    together at a time: the parameters outside the blocks, and two blocks, since the next one comes while one computes.
    An upper bound, since an MLP travels in the activations' dtype.
    """
    model = meta_model(config)
    sizes = {parameter: parameter.numel() for parameter in model.parameters()}
    if processes == 1 or sharding == "ddp":
        return 4 * FLOAT * sum(sizes.values())
    part = sum(-(-p.shape[0] // processes) * (size // p.shape[0]) for p, size in sizes.items())
    blocks = [sum(sizes[p] for p in block.parameters()) for block in model.blocks]
    return FLOAT * (4 * part + 2 * (sum(sizes.values()) - sum(blocks)) + 2 * 2 * max(blocks))


def _checkpoints(config: RunConfig) -> int:
    """How many a run keeps that is not interrupted."""
    steps, every = config.data.steps, [config.train.checkpoint_every]
    if config.train.milestones is not None:
        every.append(config.train.milestones)
    saved = {steps, *(step for stride in every for step in range(stride, steps, stride))}
    return len(kept_steps(saved, config.train.milestones))


def measured_rate(
    records: pd.DataFrame, device: str, preset: str, mixer: str, layout: str, seq_len: int
) -> float | None:
    """Tokens a second of training steps in rows of `seq_len` tokens, as the suite `throughput` has measured them on a
    device of this name, with the batch that is fastest there; None where it has not."""
    wanted = {"suite": "throughput", "metric": "train_tokens_per_second", "device": device, "length": seq_len}
    wanted |= {"preset": preset, "mixer": mixer, "layout": layout}
    found = records
    for column, value in wanted.items():
        found = found[found[column] == value]
    return None if found.empty else float(found["value"].max())


@cache
def _cost(model: str, seq_len: int) -> ModelCost:
    """Of a model given as JSON, at a length: once for all seeds, since to lay out a large model takes a while."""
    return meta_model(ModelConfig.model_validate_json(model)).cost(seq_len)
