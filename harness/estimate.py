"""What a run costs, before it is made: from its configuration alone, without weights, data or a device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pandas as pd

from harness.checkpoint import KEEP
from harness.config import RunConfig
from harness.matching import meta_model
from harness.model import ModelConfig, ModelCost

FLOAT = 4  # bytes; weights, gradients and AdamW's two moments are fp32 whatever the activations are


@dataclass(frozen=True)
class Estimate:
    """The cost of training one run; its evaluation is not in it.

    training_flops: the model's own, so that of a chunked form or of recomputed activations what the function asks for
    alone. device_hours: on one device, or shared out among several at the same utilisation. measured: whether they come
    from a throughput that was measured, and not from the FLOPs.
    disk_bytes: of the checkpoints that are kept; while one is written there is one more. memory_bytes: of weights,
    gradients and AdamW's moments, which a device holds that shares the model with no other; beside them come
    activations, logits, weights cast to the activations' dtype, what kernels use, and the driver's own.
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
) -> Estimate:
    """The cost of a run on a device of `tflops` · 10¹² FLOP/s, of which training reaches the part `utilisation`.

    records, device: a frame of records (`harness.records.load`), and the device's name as they have it; where a
    throughput was measured there for every phase (`measured_rate`), hours are T over tokens a second.

    With N parameters, embeddings included and tied ones once, and T tokens in each phase, whole steps of them:

        training_flops = Σ over phases of T · FLOPs per training token at the phase's length (mixers.interface.Cost)
        device_hours   = training_flops / (tflops · 10¹² · utilisation) / 3600
        disk_bytes     = KEEP · 4 · 3N     weights and two moments
        memory_bytes   = 4 · 4N            weights, gradients and two moments

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
        disk_bytes=KEEP * FLOAT * 3 * parameters,
        memory_bytes=FLOAT * 4 * parameters,
    )


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
