"""Any recurrent layer of flash-linear-attention as a mixer, by the name `fla:<Layer>`, such as `fla:DeltaNet`.

Options are the keyword arguments of the layer. Every block holds a layer of its own with layer_idx = 0: RWKV-7 is then
in each block what it is in its first, without values carried over from another. Nothing of fla is imported before
such a name is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeInt, PositiveInt, create_model
from torch import Tensor, nn

from mixers.backends import FLA, activation_dtype, fla_absent, interpreted
from mixers.interface import Cost, Entry, Mixer, MixerConfig, State, check_cu_seqlens, index_state

FLA_PREFIX = "fla:"
SET_HERE = {"hidden_size", "d_model", "layer_idx", "device", "dtype"}
DEFAULTS = {
    # Only a layer's place among the blocks depends on it, and the first is the first of any number.
    "RWKV7Attention": {"num_hidden_layers": 2},
}
SOFTMAX = "is softmax attention, whose state grows with the context; use `attention`"
REFUSED = {
    **dict.fromkeys(
        (
            "Attention", "BitAttention", "DeltaFormerAttention", "ForgettingAttention", "MoBA",
            "MultiheadLatentAttention", "NativeSparseAttention", "PaTHAttention", "Parallax",
            "SlidingWindowSharedKeyAttention", "StickBreakingAttention", "WallAttention",
        ),
        SOFTMAX,
    ),
    **dict.fromkeys(("YOCOCrossAttention", "YOCOSharedKVBuilder"), "shares keys and values with other layers"),
    **dict.fromkeys(("BasedLinearAttention", "ReBasedLinearAttention"), "has no cache in fla, so it cannot decode"),
    "ABCAttention": "does not continue from its cache as it would have gone on without a stop (fla 0.6.0)",
    "LogLinearMamba2": "has a state that grows with the length",
    "MomAttention": "needs a loss for its router beside that of the language model",
}  # fmt: skip


class FLAConfig(MixerConfig):
    """Beside the layer's own arguments, for a layer whose costs this module does not know:

    state_floats: numbers that its recurrence carries for a sequence. flops_per_state: FLOPs of a token for each.
    """

    state_floats: NonNegativeInt | None = None
    flops_per_state: PositiveInt | None = None


@dataclass(frozen=True)
class Known:
    """What is known of a layer.

    state: (layer) → numbers of its state a sequence. flops: (layer) → FLOPs of a token for each of them: decay 1,
    reading 2, writing 2. packs: takes cu_seqlens. positions: reads how many tokens its cache has seen. shifts: also
    carries its last input. one_by_one: behind a cache it takes one token at a time. no_fp32: its chunked kernels take
    no fp32, so that without a gradient it goes step by step there.
    """

    state: Callable[[Any], int]
    flops: Callable[[Any], int]
    packs: bool = True
    positions: bool = False
    shifts: bool = False
    one_by_one: bool = False
    no_fp32: bool = False


def _matrix(heads: str = "num_heads", key: str = "head_k_dim", value: str = "head_v_dim") -> Callable[[Any], int]:
    """A matrix for each head."""
    return lambda layer: getattr(layer, heads) * getattr(layer, key) * getattr(layer, value)


def _features(layer: Any) -> int:
    """Numbers that linear attention's feature map makes of a key."""
    weight = layer.k_proj.weight
    with torch.no_grad():
        return layer.feature_map_k(weight.new_zeros(1, 1, 1, layer.head_k_dim)).shape[-1]


def _linear_state(layer: Any) -> int:
    """With the denominator where there is one."""
    return layer.num_heads * _features(layer) * (layer.head_v_dim + int(layer.do_feature_map_norm))


KNOWN: dict[str, Known] = {
    "Comba": Known(_matrix("num_v_heads"), lambda layer: 7),
    "DeltaNet": Known(_matrix(), lambda layer: 6, no_fp32=True),
    "GatedDeltaNet": Known(_matrix("num_v_heads"), lambda layer: 7),
    "GatedDeltaProduct": Known(
        _matrix("num_v_heads"), lambda layer: 2 + 4 * layer.num_householder + int(layer.use_forget_gate), no_fp32=True
    ),
    "GatedLinearAttention": Known(_matrix(), lambda layer: 5),
    "GatedSlotAttention": Known(
        lambda layer: layer.num_heads * layer.num_slots * (layer.head_k_dim + layer.head_v_dim), lambda layer: 5
    ),
    "HGRN2Attention": Known(_matrix(key="head_f_dim", value="head_i_dim"), lambda layer: 5),
    # A vector, to which what is written is added, and which is read as it is.
    "HGRNAttention": Known(lambda layer: layer.input_dim, lambda layer: 2, packs=False),
    "KimiDeltaAttention": Known(_matrix("num_v_heads"), lambda layer: 7),
    "LinearAttention": Known(_linear_state, lambda layer: 4),
    "Mamba": Known(
        lambda layer: layer.intermediate_size * layer.ssm_state_size, lambda layer: 5, packs=False, one_by_one=True
    ),
    "Mamba2": Known(
        _matrix(key="head_dim", value="ssm_state_size"), lambda layer: 5, packs=False, one_by_one=True
    ),
    # Two matrices of one size, both decayed and written; one is read once, the other at every step of the solver.
    "MesaNet": Known(
        lambda layer: 2 * layer.num_heads * layer.head_dim**2, lambda layer: 4 + layer.max_cg_step_training
    ),
    "MultiScaleRetention": Known(_matrix(), lambda layer: 5, positions=True),
    "RWKV6Attention": Known(_matrix(), lambda layer: 5, shifts=True),
    "RWKV7Attention": Known(_matrix(key="head_dim"), lambda layer: 9, shifts=True),
}  # fmt: skip


class FLALayer(Mixer):
    """A layer of flash-linear-attention. It has one implementation, theirs, which needs a CUDA device.

    State: what the layer leaves in its cache, by flat names (`recurrent_state`, `conv_state.0`, …), and `length` [B],
    the tokens seen. Subclasses, one for each layer, are made by `entry`.
    """

    name: ClassVar[str]
    layer_class: ClassVar[type[nn.Module]]
    backends = (FLA,)
    keeps_biases = True  # decays and gates of many layers start in them
    config: FLAConfig

    def __init__(self, d_model: int, config: FLAConfig):
        super().__init__(d_model, config)
        layer = self.layer_class.__name__
        given = {key: getattr(config, key) for key in config.model_fields_set - set(FLAConfig.model_fields)}
        try:
            self.layer = self.layer_class(hidden_size=d_model, layer_idx=0, **DEFAULTS.get(layer, {}) | given)
        except (AssertionError, ArithmeticError, TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{self.name}: the layer refuses width {d_model} and options {given}: {error}") from None
        self.known = KNOWN.get(layer)
        self.mode = getattr(self.layer, "mode", None)

    def serving(self, device: torch.device, dtype: torch.dtype) -> str:
        if self.backend not in ("auto", FLA.name):
            raise ValueError(f"backend: {self.name} has no form {self.backend!r}; known: auto, {FLA.name}")
        if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
            raise ValueError(f"{self.name}: flash-linear-attention's layers need a CUDA device, not {device}")
        if (reason := fla_absent(device, dtype, None)) is not None:
            raise ValueError(f"{self.name}: {dtype} on {device}: {reason.removesuffix('; use torch')}")
        return FLA.name

    def mix_packed(
        self, x: Tensor, state: State | None, cu_seqlens: Tensor, return_state: bool
    ) -> tuple[Tensor, State | None]:
        if state is None and not return_state and self.known is not None and self.known.packs:
            self._prepare(x)
            check_cu_seqlens(x, cu_seqlens)
            return self.layer(x, cu_seqlens=cu_seqlens.long())[0], None
        return super().mix_packed(x, state, cu_seqlens, return_state)

    def mix(self, x: Tensor, state: State | None, return_state: bool) -> tuple[Tensor, State | None]:
        self._prepare(x)
        if state is None:
            return self._run(x, None, 0, return_state)
        if self.known is not None and not self.known.positions:
            return self._run(x, state, 1, return_state)  # whatever the number, it is not read
        lengths = state["length"].tolist()
        order = sorted(set(lengths))
        if len(order) == 1:
            return self._run(x, state, order[0], return_state)
        # The layer counts tokens for a batch as a whole: rows of one length together.
        groups = [[row for row, length in enumerate(lengths) if length == seen] for seen in order]
        parts = [
            self._run(x[rows], index_state(state, rows), seen, return_state)
            for rows, seen in zip(groups, order, strict=True)
        ]
        back = torch.tensor(sum(groups, []), device=x.device).argsort()
        y = torch.cat([part for part, _ in parts])[back]
        return y, index_state(self.cat_states([after for _, after in parts]), back) if return_state else None

    def _prepare(self, x: Tensor) -> None:
        """Raise where the layer cannot run, and choose its kernels where it would choose some that take no x."""
        self.implementation(x)
        if self.known is not None and self.known.no_fp32:
            self.layer.mode = "fused_recurrent" if activation_dtype(x) == torch.float32 else self.mode

    def _run(self, x: Tensor, state: State | None, seen: int, return_state: bool) -> tuple[Tensor, State | None]:
        """The layer on sequences of which `seen` tokens lie before x."""
        batch, steps, _ = x.shape
        keep = return_state or state is not None
        past = _cache(state, seen) if keep else None
        one_by_one = state is not None and self.known is not None and self.known.one_by_one
        pieces = x.split(1 if one_by_one else steps, 1)
        y = torch.cat([self.layer(piece, past_key_values=past, use_cache=keep)[0] for piece in pieces], 1)
        if not return_state:
            return y, None
        before = torch.zeros(batch, dtype=torch.long, device=x.device) if state is None else state["length"]
        after = self._flat(past[0])
        if wrong := [key for key, value in after.items() if value.shape[0] != batch]:
            raise RuntimeError(f"{self.name}: {wrong[0]} in its cache is not batch-first, so it cannot be a state")
        return y, after | {"length": before + steps}

    def _flat(self, held: dict[str, Any]) -> State:
        """A layer's cache, of which every part is None, a tensor or a sequence of tensors, by flat names."""
        flat: dict[str, Any] = {}
        for name, value in held.items():
            if isinstance(value, (tuple, list)):
                flat |= {f"{name}.{i}": item for i, item in enumerate(value)}
            elif value is not None:
                flat[name] = value
        if wrong := [f"{key} is a {type(t).__name__}" for key, t in flat.items() if not isinstance(t, Tensor)]:
            raise RuntimeError(f"{self.name}: {wrong[0]} in its cache, which no state can hold")
        return flat

    def cost(self, seq_len: int) -> Cost:
        """Linear layers and convolutions, and the FLOPs of the state as in the table KNOWN or the options. Norms,
        gates and activations are not counted."""
        c = self.config
        if self.known is None and (c.state_floats is None or c.flops_per_state is None):
            raise ValueError(
                f"{self.name}.state_floats, flops_per_state: the costs of this layer are not known; give the numbers "
                "of its state for a sequence, and the FLOPs of a token for each of them"
            )
        state = self.known.state(self.layer) if c.state_floats is None else c.state_floats
        flops = self.known.flops(self.layer) if c.flops_per_state is None else c.flops_per_state
        products, tail = 0, 0
        for name, module in self.layer.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv1d)):
                each_head = name.startswith("feature_map")
                products += module.weight.numel() * (self.layer.num_heads if each_head else 1)
            if isinstance(module, nn.Conv1d):
                tail += module.weight.numel()  # fla keeps as many inputs as there are taps
        if self.known is not None and self.known.shifts:
            tail += self.d_model
        return Cost.recurrent(self.parameter_count(), products, state, flops, 2 * tail)


def _cache(state: State | None, seen: int) -> Any:
    """fla's cache for one layer, of copies: layers update convolutions' and Mamba's states in place."""
    from fla.models.cache_utils import Cache

    if state is None:
        return Cache()
    held: dict[str, Any] = dict.fromkeys(("recurrent_state", "attn_state", "conv_state", "ffn_state"))
    for key in sorted(state.keys() - {"length"}, key=lambda key: (len(key), key)):  # .10 after .9
        name, sequence, _ = key.partition(".")
        held[name] = (*(held[name] or ()), state[key].clone()) if sequence else state[key].clone()
    return Cache.from_legacy_cache((held,), seen_tokens=seen)


@cache
def entry(name: str) -> Entry:
    """The registry's entry of `fla:<Layer>`. Raises ValueError if fla is missing, does not know the layer, or has a
    layer that is no recurrence on its own."""
    layer = name.removeprefix(FLA_PREFIX)
    if find_spec("fla") is None:
        raise ValueError(f"mixer: {name!r} needs flash-linear-attention; pip install flash-linear-attention")
    layers = import_module("fla.layers")
    if layer not in layers.__all__:
        known = ", ".join(n for n in layers.__all__ if n not in REFUSED)
        raise ValueError(f"mixer: unknown name {name!r}; layers of flash-linear-attention: {known}")
    if layer in REFUSED:
        raise ValueError(f"mixer: {name!r} {REFUSED[layer]}")
    layer_class = getattr(layers, layer)
    options = {
        p.name: (Any, ... if p.default is p.empty else p.default)
        for p in list(inspect.signature(layer_class.__init__).parameters.values())[1:]
        if p.kind is not p.VAR_KEYWORD and p.name not in SET_HERE
    }
    config_class = create_model(f"{layer}Config", __base__=FLAConfig, **options)
    members = {"name": name, "layer_class": layer_class, "config_class": config_class, "__module__": __name__}
    return Entry(name, f"{layer} (fla)", type(layer, (FLALayer,), members), {})
