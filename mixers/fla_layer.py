"""Any recurrent layer of flash-linear-attention as a mixer, named `fla:<Layer>`, such as `fla:DeltaNet`.

Its options are the layer's keyword arguments. Every block has its own layer with layer_idx = 0. RWKV-7 therefore
behaves in each block as in its first one, with no values carried over from another block. fla is imported only when
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

from mixers.backends import FLA, activation_dtype, fla_absent, fla_scalar_decay_gradient_absent, interpreted
from mixers.interface import Cost, Entry, Mixer, MixerConfig, State, check_cu_seqlens, index_state

FLA_PREFIX = "fla:"
SET_HERE = {"hidden_size", "d_model", "layer_idx", "device", "dtype"}
DEFAULTS = {
    # It only scales a layer's position among the blocks, and position 0 is the same for any number of blocks.
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
    "ABCAttention": "does not resume from its cache with the output of an uninterrupted run (fla 0.6.0)",
    "LogLinearMamba2": "has a state that grows with the length",
    "MomAttention": "needs a loss for its router next to that of the language model",
}  # fmt: skip


class FLAConfig(MixerConfig):
    """Options of a layer of flash-linear-attention besides the layer's own arguments.

    A layer whose cost this module does not know needs both.
    """

    spelt_out: ClassVar[bool] = False

    state_floats: NonNegativeInt | None = None
    """Numbers that the recurrence carries per sequence; None for the known value."""
    flops_per_state: PositiveInt | None = None
    """FLOPs per token for each of these numbers; None for the known value."""


@dataclass(frozen=True)
class Known:
    """The cost and the quirks of a layer.

    state: (layer) → numbers in its state per sequence. flops: (layer) → FLOPs per token for each of them: decay 1, read
    2, write 2. packs: accepts cu_seqlens. positions: reads how many tokens its cache has seen. shifts: also carries its
    last input. one_by_one: accepts only one token at a time after a cache. no_fp32: its chunked kernels do not accept
    fp32, so in fp32 it runs step by step.
    """

    state: Callable[[Any], int]
    flops: Callable[[Any], int]
    packs: bool = True
    positions: bool = False
    shifts: bool = False
    one_by_one: bool = False
    no_fp32: bool = False


def _matrix(heads: str = "num_heads", key: str = "head_k_dim", value: str = "head_v_dim") -> Callable[[Any], int]:
    """Return a function that counts one matrix per head, from a layer's attributes."""
    return lambda layer: getattr(layer, heads) * getattr(layer, key) * getattr(layer, value)


def _features(layer: Any) -> int:
    """Return the length of a key after linear attention's feature map."""
    weight = layer.k_proj.weight
    with torch.no_grad():
        return layer.feature_map_k(weight.new_zeros(1, 1, 1, layer.head_k_dim)).shape[-1]


def _linear_state(layer: Any) -> int:
    """Return the size of linear attention's state, including the denominator if there is one."""
    return layer.num_heads * _features(layer) * (layer.head_v_dim + int(layer.do_feature_map_norm))


SCALAR_DECAY = ("Comba", "GatedDeltaNet", "SimpleGatedLinearAttention")
"""Layers whose gradients run fla's kernels for one decay per head."""

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
    # The state is a vector. Writes are added to it, and the output reads it as it is.
    "HGRNAttention": Known(lambda layer: layer.input_dim, lambda layer: 2, packs=False),
    "KimiDeltaAttention": Known(_matrix("num_v_heads"), lambda layer: 7),
    "LinearAttention": Known(_linear_state, lambda layer: 4),
    "Mamba": Known(
        lambda layer: layer.intermediate_size * layer.ssm_state_size, lambda layer: 5, packs=False, one_by_one=True
    ),
    "Mamba2": Known(
        _matrix(key="head_dim", value="ssm_state_size"), lambda layer: 5, packs=False, one_by_one=True
    ),
    # Two matrices of equal size, both decayed and written. One is read once, the other at every step of the solver.
    "MesaNet": Known(
        lambda layer: 2 * layer.num_heads * layer.head_dim**2, lambda layer: 4 + layer.max_cg_step_training
    ),
    "MultiScaleRetention": Known(_matrix(), lambda layer: 5, positions=True),
    "RWKV6Attention": Known(_matrix(), lambda layer: 5, shifts=True),
    "RWKV7Attention": Known(_matrix(key="head_dim"), lambda layer: 9, shifts=True),
}  # fmt: skip


class FLALayer(Mixer):
    """A layer of flash-linear-attention. Its only implementation is fla's, which needs a CUDA device.

    State: the contents of the layer's cache under flat names (`recurrent_state`, `conv_state.0`, …), and `length` [B],
    the tokens seen. `entry` makes one subclass per layer.
    """

    name: ClassVar[str]
    layer_class: ClassVar[type[nn.Module]]
    backends = (FLA,)
    keeps_biases = True  # many layers set their initial decays and gates by biases
    config: FLAConfig

    def __init__(self, d_model: int, config: FLAConfig):
        super().__init__(d_model, config)
        layer = self.layer_class.__name__
        options = {key: getattr(config, key) for key in config.model_fields_set - set(FLAConfig.model_fields)}
        try:
            self.layer = self.layer_class(hidden_size=d_model, layer_idx=0, **DEFAULTS.get(layer, {}) | options)
        except (AssertionError, ArithmeticError, TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{self.name}: the layer refuses width {d_model} and options {options}: {error}") from None
        self.known = KNOWN.get(layer)
        self.mode = getattr(self.layer, "mode", None)

    def serving(self, device: torch.device, dtype: torch.dtype, gradients: bool = True) -> str:
        """Return `fla`. Raises ValueError with the reason if fla does not serve on this device in this dtype."""
        if self.backend not in ("auto", FLA.name):
            raise ValueError(f"backend: {self.name} has no form {self.backend!r}; known: auto, {FLA.name}")
        if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
            raise ValueError(f"{self.name}: flash-linear-attention's layers need a CUDA device, not {device}")
        reason = fla_absent(device, dtype, None)
        if reason is None and gradients and self.layer_class.__name__ in SCALAR_DECAY:
            reason = fla_scalar_decay_gradient_absent(device, dtype, None)
        if reason is not None:
            raise ValueError(f"{self.name}: {dtype} on {device}: {reason.removesuffix('; use torch')}")
        return FLA.name

    def mix_packed(
        self, x: Tensor, state: State | None, cu_seqlens: Tensor, return_state: bool
    ) -> tuple[Tensor, State | None]:
        """Compute `forward` on packed sequences, in one call if the layer accepts cu_seqlens and needs no state."""
        if state is None and not return_state and self.known is not None and self.known.packs:
            self._prepare(x)
            check_cu_seqlens(x, cu_seqlens)
            return self.layer(x, cu_seqlens=cu_seqlens.long())[0], None
        return super().mix_packed(x, state, cu_seqlens, return_state)

    def mix(self, x: Tensor, state: State | None, return_state: bool) -> tuple[Tensor, State | None]:
        """Run the layer. Rows whose states have seen different numbers of tokens run apart if positions matter."""
        self._prepare(x)
        if state is None:
            return self._run(x, None, 0, return_state)
        if self.known is not None and not self.known.positions:
            return self._run(x, state, 1, return_state)  # the layer does not read the number
        lengths = state["length"].tolist()
        order = sorted(set(lengths))
        if len(order) == 1:
            return self._run(x, state, order[0], return_state)
        # The layer counts tokens for the batch as a whole, so rows run in groups of equal length.
        groups = [[row for row, length in enumerate(lengths) if length == seen] for seen in order]
        parts = [
            self._run(x[rows], index_state(state, rows), seen, return_state)
            for rows, seen in zip(groups, order, strict=True)
        ]
        back = torch.tensor(sum(groups, []), device=x.device).argsort()
        y = torch.cat([part for part, _ in parts])[back]
        return y, index_state(self.cat_states([after for _, after in parts]), back) if return_state else None

    def _prepare(self, x: Tensor) -> None:
        """Raise ValueError if the layer cannot run on x, and keep it from choosing kernels that do not accept x."""
        self.implementation(x)
        if self.known is not None and self.known.no_fp32:
            self.layer.mode = "fused_recurrent" if activation_dtype(x) == torch.float32 else self.mode

    def _run(self, x: Tensor, state: State | None, seen: int, return_state: bool) -> tuple[Tensor, State | None]:
        """Run the layer on x, after `seen` tokens. Returns y and the new state, or None if not asked for."""
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
        """Return a layer's cache under flat names. Each part of it is None, a tensor or a sequence of tensors."""
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
        """Return the cost of linear layers, convolutions and the state. The latter comes from KNOWN or the options.

        Norms, gates and activations are not counted. Raises ValueError if the cost of the state is unknown.
        """
        c = self.config
        if self.known is None and (c.state_floats is None or c.flops_per_state is None):
            raise ValueError(
                f"{self.name}.state_floats, flops_per_state: the cost of this layer is not known; give the numbers in "
                "its state per sequence, and the FLOPs per token for each of them"
            )
        state = self.known.state(self.layer) if c.state_floats is None else c.state_floats
        flops = self.known.flops(self.layer) if c.flops_per_state is None else c.flops_per_state
        products, tail = 0, 0
        for name, module in self.layer.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv1d)):
                per_head = name.startswith("feature_map")
                products += module.weight.numel() * (self.layer.num_heads if per_head else 1)
            if isinstance(module, nn.Conv1d):
                tail += module.weight.numel()  # fla carries one input per tap
        if self.known is not None and self.known.shifts:
            tail += self.d_model
        return Cost.recurrent(self.parameter_count(), products, state, flops, 2 * tail)


def _cache(state: State | None, seen: int) -> Any:
    """Return fla's cache for one layer, made of copies: layers update some states in place."""
    from fla.models.cache_utils import Cache

    if state is None:
        return Cache()
    held: dict[str, Any] = dict.fromkeys(("recurrent_state", "attn_state", "conv_state", "ffn_state"))
    for key in sorted(state.keys() - {"length"}, key=lambda key: (len(key), key)):  # so that .10 comes after .9
        name, sequence, _ = key.partition(".")
        held[name] = (*(held[name] or ()), state[key].clone()) if sequence else state[key].clone()
    return Cache.from_legacy_cache((held,), seen_tokens=seen)


@cache
def entry(name: str) -> Entry:
    """Return the registry's entry of `fla:<Layer>`.

    Raises ValueError if fla is missing or has no such layer, or if the layer is no recurrence by itself.
    """
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
