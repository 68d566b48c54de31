"""Matching of models: MLP widths that make every mixer's model equal in one quantity.

The quantity is the number of non-embedding parameters, or the training FLOPs per token at the preset's context. The
target is Gated DeltaNet-2 in the recurrent layout at the preset's reference MLP width, without convolutions before its
mixers. Widths are multiples of the preset's step. If the quantity cannot be divided equally, some blocks get one step
more than others, spread evenly over the depth. Without matching, all models have the reference MLP width.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from pydantic import ValidationError

from harness.experiments.presets import Match, Preset, preset
from harness.model.language_model import LanguageModel, Layout, ModelConfig, ModelCost
from mixers.interface import one_line
from mixers.registry import resolved_options

TOLERANCE = 0.005  # largest relative difference from the target


def _config(
    scale: Preset,
    layout: Layout,
    mixer: str,
    options: dict[str, Any],
    widths: list[int],
    vocab_size: int,
    leading_conv: int = 0,
) -> ModelConfig:
    base = scale.mixers.get(mixer, {})
    values = dict(
        layout=layout,
        mixer=mixer,
        mixer_options=resolved_options(mixer, base | options),
        attention_options=resolved_options("attention", scale.hybrid_attention) if layout == "hybrid" else {},
        d_model=scale.d_model,
        mlp_widths=widths,
        vocab_size=vocab_size,
        tie_embeddings=scale.tie_embeddings,
        embedding_std=scale.embedding_std,
        leading_conv=leading_conv,
    )
    try:
        return ModelConfig(**values)
    except ValidationError as error:
        raise ValueError(one_line(error, f"{mixer} ({layout})")) from None


def meta_model(config: ModelConfig) -> LanguageModel:
    """The model on the meta device, without weights: shapes, counts and costs at any scale without delay."""
    with torch.device("meta"):
        return LanguageModel(config)


@lru_cache
def _reference_cost(preset_name: str, vocab_size: int) -> ModelCost:
    scale = preset(preset_name)
    widths = [scale.reference_mlp_width["recurrent"]] * scale.layers
    return meta_model(_config(scale, "recurrent", "gdn2", {}, widths, vocab_size)).cost(scale.context)


def target_parameters(preset_name: str) -> int:
    """Number of non-embedding parameters that every model of the preset has if parameters are matched."""
    return _reference_cost(preset_name, preset(preset_name).vocab_size).non_embedding_params


def target_flops(preset_name: str, vocab_size: int | None = None) -> float:
    """Training FLOPs per token, at the preset's context, that every model of the preset takes if FLOPs are matched.

    vocab_size: None keeps the preset's. The products of the head count.
    """
    return _reference_cost(preset_name, vocab_size or preset(preset_name).vocab_size).flops_per_token


def spread(units: int, layers: int, step: int) -> list[int]:
    """MLP widths per layer: `units` steps of `step` in total, spread as evenly as whole steps allow."""
    return [step * ((i + 1) * units // layers - i * units // layers) for i in range(layers)]


def outside_mlps(config: ModelConfig, match: Match, context: int) -> float:
    """Quantity of a model outside its MLPs, if all blocks have one: non-embedding parameters, or training FLOPs per
    token in sequences of `context` tokens. Blocks of a kind are alike, so it builds one of each."""
    kinds = 2 if config.layout == "hybrid" else 1
    few = meta_model(config.model_copy(update={"mlp_widths": [1] * kinds}))
    cost = few.cost(context)
    if match == "flops":
        total, beside = cost.flops_per_token, 6 * few.head.weight.numel()
    else:
        total, beside = cost.non_embedding_params, few.norm.weight.numel()
    return beside + config.layers // kinds * (total - beside - kinds * per_width(config.d_model, match))


def per_width(d_model: int, match: Match) -> int:
    """Quantity of one unit of a block's MLP width: three columns of weights, of six training FLOPs per token each."""
    return 3 * d_model * (6 if match == "flops" else 1)


def matched_config(
    preset_name: str,
    layout: Layout,
    mixer: str,
    options: dict[str, Any] | None = None,
    vocab_size: int | None = None,
    match: Match | None = None,
    leading_conv: int = 0,
) -> ModelConfig:
    """The model of `mixer` in `layout` that matches the preset's target within 0.5%.

    options: options of the mixer, over the preset's geometry. vocab_size: None keeps the preset's. match: see
    Experiment.match; None for `parameters`, or `mlp` if the preset has no MLPs. leading_conv: see ModelConfig.

    Raises ValueError with the reason if no MLP width comes that close, if there is no MLP to match with, or if the
    mixer or the layout rejects an option.
    """
    scale, options = preset(preset_name), options or {}
    vocab_size = vocab_size or scale.vocab_size
    width = scale.reference_mlp_width["recurrent"]
    match = match or ("parameters" if width else "mlp")
    if mixer not in scale.mixers and not options:
        raise ValueError(f"mixer: preset {preset_name!r} has no geometry for {mixer!r}; give its options")
    config = _config(scale, layout, mixer, options, [width] * scale.layers, vocab_size, leading_conv)
    if match == "mlp":
        return config
    if not width:
        raise ValueError(f"match: {match!r}, but preset {preset_name!r} has no MLPs to match with; use match: mlp")
    target = target_flops(preset_name, vocab_size) if match == "flops" else target_parameters(preset_name)
    step = per_width(scale.d_model, match) * scale.width_step
    fixed = outside_mlps(config, match, scale.context)
    stated = mixer == "gdn2" and match == "parameters" and not (options or leading_conv)
    reference = scale.reference_mlp_width.get(layout) if stated else None
    units = round((target - fixed) / step) if reference is None else reference * scale.layers // scale.width_step
    reached = fixed + units * step
    subject = f"matching {mixer} ({layout}) to {preset_name}"
    what = "training FLOPs per token" if match == "flops" else "parameters"
    if units < scale.layers:
        raise ValueError(
            f"{subject}: outside its MLPs the model has {fixed:,.0f} of {target:,.0f} {what}, which leaves none for "
            f"MLPs of at least {scale.width_step}; choose a narrower mixer or a larger preset"
        )
    if abs(reached / target - 1) > TOLERANCE:
        raise ValueError(
            f"{subject}: the nearest MLP widths give {reached:,.0f} {what}, {100 * (reached / target - 1):+.2f}% of "
            f"{target:,.0f}; one step of {scale.width_step} is {step:,}; choose a larger preset or other mixer options"
        )
    return config.model_copy(update={"mlp_widths": spread(units, scale.layers, scale.width_step)})


def parameter_table(preset_name: str, seq_len: int | None = None) -> list[dict[str, Any]]:
    """One row per mixer and layout of a preset: widths and costs, or under `refused` the reason for no match.

    seq_len: row length at which FLOPs per training token are counted; the preset's context if None.
    """
    scale = preset(preset_name)
    rows: list[dict[str, Any]] = []
    for mixer in scale.mixers:
        layouts: tuple[Layout, ...] = ("attention",) if mixer == "attention" else ("recurrent", "hybrid")
        for layout in layouts:
            row: dict[str, Any] = {"mixer": mixer, "layout": layout}
            try:
                config = matched_config(preset_name, layout, mixer)
            except ValueError as error:
                rows.append(row | {"refused": str(error)})
                continue
            cost = meta_model(config).cost(seq_len or scale.context)
            rows.append(row | asdict(cost) | {"mlp_widths": config.mlp_widths, "d_model": scale.d_model})
    return rows
