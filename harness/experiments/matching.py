"""Matching of models: MLP widths that give every mixer's model the same number of non-embedding parameters.

The target is Gated DeltaNet-2 in the recurrent layout at the preset's reference MLP width. Widths are multiples of 32.
If the parameters cannot be divided equally, some blocks get 32 more than others, spread evenly over the depth.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch

from harness.experiments.presets import Preset, preset
from harness.model.language_model import LanguageModel, Layout, ModelConfig
from mixers.registry import resolved_options

WIDTH_STEP = 32  # MLP widths are multiples of it
TOLERANCE = 0.005  # largest relative difference from the target


def _config(
    scale: Preset, layout: Layout, mixer: str, options: dict[str, Any], widths: list[int], vocab_size: int
) -> ModelConfig:
    base = scale.mixers.get(mixer, {})
    return ModelConfig(
        layout=layout,
        mixer=mixer,
        mixer_options=resolved_options(mixer, base | options),
        attention_options=resolved_options("attention", scale.hybrid_attention) if layout == "hybrid" else {},
        d_model=scale.d_model,
        mlp_widths=widths,
        vocab_size=vocab_size,
        tie_embeddings=scale.tie_embeddings,
        embedding_std=scale.embedding_std,
    )


def meta_model(config: ModelConfig) -> LanguageModel:
    """The model on the meta device, without weights: shapes, counts and costs at any scale without delay."""
    with torch.device("meta"):
        return LanguageModel(config)


@lru_cache
def target_parameters(preset_name: str) -> int:
    """Number of non-embedding parameters that every model of the preset matches."""
    scale = preset(preset_name)
    widths = [scale.reference_mlp_width["recurrent"]] * scale.layers
    config = _config(scale, "recurrent", "gdn2", {}, widths, scale.vocab_size)
    return meta_model(config).cost(scale.context).non_embedding_params


def spread(units: int, layers: int) -> list[int]:
    """MLP widths per layer: `units` steps of WIDTH_STEP in total, spread as evenly as whole steps allow."""
    return [WIDTH_STEP * ((i + 1) * units // layers - i * units // layers) for i in range(layers)]


def fixed_parameters(config: ModelConfig) -> int:
    """Number of non-embedding parameters outside the MLPs. Blocks of a kind are alike, so it builds one of each."""
    kinds = 2 if config.layout == "hybrid" else 1
    few = meta_model(config.model_copy(update={"mlp_widths": [WIDTH_STEP] * kinds}))
    outside = sum(p.numel() for p in few.blocks.parameters()) - kinds * 3 * config.d_model * WIDTH_STEP
    return few.norm.weight.numel() + config.layers // kinds * outside


def matched_config(
    preset_name: str,
    layout: Layout,
    mixer: str,
    options: dict[str, Any] | None = None,
    vocab_size: int | None = None,
) -> ModelConfig:
    """The model of `mixer` in `layout` whose non-embedding parameters match the preset's target within 0.5%.

    options: options of the mixer, over the preset's geometry. vocab_size: None keeps the preset's.

    Raises ValueError with the reason if no MLP width, in multiples of 32, comes that close, or if the mixer or the
    layout rejects an option.
    """
    scale, options = preset(preset_name), options or {}
    vocab_size = vocab_size or scale.vocab_size
    if mixer not in scale.mixers and not options:
        raise ValueError(f"mixer: preset {preset_name!r} has no geometry for {mixer!r}; give its options")
    target = target_parameters(preset_name)
    narrowest = [WIDTH_STEP] * scale.layers
    config = _config(scale, layout, mixer, options, narrowest, vocab_size)
    step = 3 * scale.d_model * WIDTH_STEP
    fixed = fixed_parameters(config)
    reference = scale.reference_mlp_width.get(layout) if mixer == "gdn2" and not options else None
    units = round((target - fixed) / step) if reference is None else reference * scale.layers // WIDTH_STEP
    reached = fixed + units * step
    subject = f"matching {mixer} ({layout}) to {preset_name}"
    if units < scale.layers:
        raise ValueError(
            f"{subject}: outside its MLPs the model has {fixed:,} of {target:,} parameters, which leaves none for "
            f"MLPs of at least {WIDTH_STEP}; choose a narrower mixer or a larger preset"
        )
    if abs(reached / target - 1) > TOLERANCE:
        raise ValueError(
            f"{subject}: the nearest MLP widths give {reached:,} parameters, {100 * (reached / target - 1):+.2f}% of "
            f"{target:,}; one step of {WIDTH_STEP} is {step:,}; choose a larger preset or other mixer options"
        )
    return config.model_copy(update={"mlp_widths": spread(units, scale.layers)})


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
