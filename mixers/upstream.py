"""Conversion between mixers and layers of flash-linear-attention and mamba-ssm, weights included.

Parameters have the same names on both sides, so a state_dict loads unchanged. The two sides differ in how a layer's
shape is given, and in the variants of a layer that exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from mixers.backends import mamba_ssm
from mixers.interface import Mixer
from mixers.registry import build_mixer, entries

Library = Literal["fla", "mamba-ssm"]


@dataclass(frozen=True)
class Counterpart:
    """A published layer and the mixer that computes the same function.

    library, layer: where the layer's class is. mixer: the mixer's name. width: the layer's attribute for D. options:
    (layer) → the mixer's options. arguments: (mixer) → the layer's constructor arguments. fixed: attributes of the
    layer that must have these values, since the mixer has no other variant.
    """

    library: Library
    mixer: str
    layer: str
    width: str
    options: Callable[[Any], dict[str, Any]]
    arguments: Callable[[Any], dict[str, Any]]
    fixed: dict[str, Any]

    def load(self) -> type[nn.Module]:
        """Import and return the layer's class. Raises ImportError if the library is missing."""
        if self.library == "mamba-ssm":
            return getattr(mamba_ssm(f"modules.{self.layer.lower()}"), self.layer)
        import fla.layers

        return getattr(fla.layers, self.layer)


def _delta_options(layer: Any) -> dict[str, Any]:
    return {
        "heads": layer.num_heads,
        "head_dim": layer.head_k_dim,
        "value_heads": layer.num_v_heads,
        "value_dim": layer.head_v_dim,
        "conv_width": layer.conv_size,
        "norm_eps": layer.o_norm.eps,
    }


def _output_gate(layer: Any) -> str:
    return "sigmoid" if layer.o_norm.activation == "sigmoid" else "silu"


def _delta_arguments(mixer: Any) -> dict[str, Any]:
    return {
        "hidden_size": mixer.d_model,
        "head_dim": mixer.head_dim,
        "num_heads": mixer.heads,
        "num_v_heads": mixer.value_heads,
        "expand_v": _ratio(mixer.value_dim, mixer.head_dim),
        "conv_size": mixer.config.conv_width,
        "norm_eps": mixer.config.norm_eps,
        "layer_idx": 0,
    }


def _ratio(size: int, base: int) -> float:
    """Return size / base, rounded up where needed: layers multiply `base` by it and round down to `size`."""
    ratio = size / base
    return ratio if int(ratio * base) == size else math.nextafter(ratio, math.inf)


def _range(layer: Any) -> int:
    return 2 if layer.allow_neg_eigval else 1


def _lower_bound(layer: Any) -> float | None:
    if layer.safe_gate != (layer.lower_bound is not None):  # fla's chunked and step forms would differ
        raise ValueError(
            f"{type(layer).__name__}.safe_gate: {layer.safe_gate} with lower_bound={layer.lower_bound} is no variant "
            "of kda; it has both or neither"
        )
    return layer.lower_bound


def _mamba3_options(layer: Any, inner: str, state: str, head: str) -> dict[str, Any]:
    rank = {"rank": layer.mimo_rank} if layer.is_mimo else {}
    turned = layer.num_rope_angles * 2 / getattr(layer, state)
    return {
        "d_inner": getattr(layer, inner),
        "d_state": getattr(layer, state),
        "head_dim": getattr(layer, head),
        "rope_fraction": 1.0 if turned > 0.5 else 0.5,
    } | rank


def _mamba3_arguments(mixer: Any) -> dict[str, Any]:
    rank = {"mimo_rank": mixer.rank, "chunk_size": 64 // mixer.rank} if mixer.config.mimo else {}
    return {
        "expand": _ratio(mixer.d_inner, mixer.d_model),
        "rope_fraction": mixer.config.rope_fraction,
        "is_mimo": mixer.config.mimo,
        "layer_idx": 0,
    } | rank


def _mamba2_expansion(mixer: Any) -> int:
    if mixer.d_inner % mixer.d_model:
        raise ValueError(
            f"d_inner: {mixer.d_inner} is no multiple of d_model={mixer.d_model}, and mamba-ssm's Mamba2 takes whole "
            "multiples; use flash-linear-attention's"
        )
    return mixer.d_inner // mixer.d_model


DELTA = {"use_short_conv": True, "conv_bias": False}
MAMBA2 = {"rmsnorm": True, "norm_before_gate": False, "D_has_hdim": False, "dt_limit": (0.0, math.inf)}
MAMBA3 = {"is_outproj_norm": False, "A_floor": 1e-4}

COUNTERPARTS = [
    Counterpart(
        "fla", "gated_deltanet", "GatedDeltaNet", "hidden_size",
        lambda layer: _delta_options(layer) | {"output_gate": _output_gate(layer), "beta_range": _range(layer)},
        lambda mixer: _delta_arguments(mixer)
        | {"output_gate_activation": mixer.config.output_gate, "allow_neg_eigval": mixer.config.beta_range == 2},
        DELTA | {"use_gate": True},
    ),
    Counterpart(
        "fla", "kda", "KimiDeltaAttention", "hidden_size",
        lambda layer: _delta_options(layer) | {"beta_range": _range(layer), "lower_bound": _lower_bound(layer)},
        lambda mixer: _delta_arguments(mixer)
        | {"allow_neg_eigval": mixer.config.beta_range == 2}
        | {"safe_gate": mixer.config.lower_bound is not None, "lower_bound": mixer.config.lower_bound},
        DELTA,
    ),
    # fla's layer always has a sigmoid output gate. The paper's SiLU has no counterpart there.
    Counterpart(
        "fla", "gdn2", "GatedDeltaNet2", "hidden_size",
        lambda layer: _delta_options(layer)
        | {"output_gate": _output_gate(layer), "erase_range": _range(layer)}
        | {"erase_gate": "channel", "write_gate": "channel", "decay": "channel", "output_gate_projection": "low_rank"}
        | {"lower_bound": None},
        lambda mixer: _delta_arguments(mixer) | {"allow_neg_eigval": mixer.config.erase_range == 2},
        DELTA,
    ),
    Counterpart(
        "fla", "mamba2", "Mamba2", "hidden_size",
        lambda layer: {
            "d_inner": layer.intermediate_size, "d_state": layer.ssm_state_size, "head_dim": layer.head_dim,
            "n_groups": layer.n_groups, "conv_width": layer.conv_kernel_size,
        },
        lambda mixer: {
            "hidden_size": mixer.d_model, "expand": _ratio(mixer.d_inner, mixer.d_model),
            "state_size": mixer.config.d_state, "head_dim": mixer.config.head_dim, "n_groups": mixer.config.n_groups,
            "conv_kernel": mixer.config.conv_width, "layer_idx": 0,
        },
        MAMBA2 | {"use_bias": False, "use_conv_bias": True, "activation": "silu", "norm_eps": 1e-5},
    ),
    Counterpart(
        "mamba-ssm", "mamba2", "Mamba2", "d_model",
        lambda layer: {
            "d_inner": layer.d_ssm, "d_state": layer.d_state, "head_dim": layer.headdim, "n_groups": layer.ngroups,
            "conv_width": layer.d_conv,
        },
        lambda mixer: {
            "d_model": mixer.d_model, "expand": _mamba2_expansion(mixer), "d_state": mixer.config.d_state,
            "headdim": mixer.config.head_dim, "ngroups": mixer.config.n_groups, "d_conv": mixer.config.conv_width,
            "layer_idx": 0,
        },
        MAMBA2 | {"process_group": None, "activation": "silu"},
    ),
    *(
        Counterpart(
            "fla", name, "Mamba3", "hidden_size",
            lambda layer: _mamba3_options(layer, "intermediate_size", "ssm_state_size", "head_dim"),
            lambda mixer: _mamba3_arguments(mixer)
            | {"hidden_size": mixer.d_model, "state_size": mixer.config.d_state, "head_dim": mixer.config.head_dim},
            MAMBA3 | {"is_mimo": mimo, "n_groups": 1, "use_bias": False, "norm_eps": 1e-5},
        )
        for name, mimo in (("mamba3_siso", False), ("mamba3_mimo", True))
    ),
    *(
        Counterpart(
            "mamba-ssm", name, "Mamba3", "d_model",
            lambda layer: _mamba3_options(layer, "d_inner", "d_state", "headdim"),
            lambda mixer: _mamba3_arguments(mixer)
            | {"d_model": mixer.d_model, "d_state": mixer.config.d_state, "headdim": mixer.config.head_dim},
            MAMBA3 | {"is_mimo": mimo, "num_bc_heads": 1},
        )
        for name, mimo in (("mamba3_siso", False), ("mamba3_mimo", True))
    ),
]  # fmt: skip


def from_upstream(layer: nn.Module) -> Mixer:
    """Return the mixer that computes the same as a layer of flash-linear-attention or mamba-ssm.

    It has a copy of the layer's weights, on the same device and in the same dtypes. Raises ValueError if the layer has
    no mixer, or is a variant that its mixer does not have.
    """
    library = {"fla": "fla", "mamba_ssm": "mamba-ssm"}.get(type(layer).__module__.partition(".")[0])
    candidates = [c for c in COUNTERPARTS if (c.library, c.layer) == (library, type(layer).__name__)]
    if not candidates:
        known = ", ".join(sorted({f"{c.library} {c.layer}" for c in COUNTERPARTS}))
        raise ValueError(f"layer: {type(layer).__qualname__} has no mixer here; known: {known}")
    is_mimo = getattr(layer, "is_mimo", False)
    chosen = next((c for c in candidates if c.fixed.get("is_mimo", False) == is_mimo), candidates[0])
    for name, value in chosen.fixed.items():
        if (theirs := getattr(layer, name)) != value:
            raise ValueError(f"{chosen.layer}.{name}: {theirs!r} is no variant of {chosen.mixer}; it has {value!r}")
    mixer = build_mixer(chosen.mixer, getattr(layer, chosen.width), chosen.options(layer))
    state = layer.state_dict()
    _same_names(set(state), set(mixer.state_dict()), f"{chosen.library}'s {chosen.layer}")
    mixer.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
    return mixer


def to_upstream(mixer: Mixer, library: Library) -> nn.Module:
    """Return the layer of a library that computes the same as a mixer, with a copy of its weights, on its device.

    Raises ValueError if the library has no layer for the mixer or for one of its options, and ImportError if the
    library is not installed.
    """
    name = next(name for name, entry in entries().items() if entry.cls is type(mixer))
    chosen = next((c for c in COUNTERPARTS if (c.library, c.mixer) == (library, name)), None)
    if chosen is None:
        known = ", ".join(c.library for c in COUNTERPARTS if c.mixer == name) or "none"
        raise ValueError(f"library: {library!r} has no layer for {name}; libraries that do: {known}")
    layer = chosen.load()(**chosen.arguments(mixer))
    differing = {
        option: value
        for option, value in chosen.options(layer).items()
        if (ours := _resolved(mixer, option)) is not None and ours != value
    }
    if differing:
        option, value = next(iter(differing.items()))
        raise ValueError(
            f"{name}.{option}: {_resolved(mixer, option)!r} has no counterpart in {library}'s {chosen.layer}, which "
            f"has {value!r}"
        )
    state = mixer.state_dict()
    _same_names(set(state), set(layer.state_dict()), name)
    layer.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
    return layer


def _resolved(mixer: Mixer, option: str) -> Any:
    """Return the value of a mixer's option with its default filled in, or None if the mixer has no such option."""
    return getattr(mixer, option, getattr(mixer.config, option, None))


def _same_names(actual: set[str], expected: set[str], subject: str) -> None:
    if actual != expected:
        raise ValueError(
            f"{subject}: parameters on one side only: {', '.join(sorted(actual ^ expected))}; the layer may be of "
            "another version"
        )
