"""The one interface of everything that is compared.

A token mixer maps [B, T, D] to [B, T, D] causally and can stop and continue: a sequence fed whole, in pieces
through `state`, or token by token gives the same output, and packed sequences never see each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from mixers.backends import TORCH, Backend, activation_dtype, choose

State = dict[str, Tensor]
"""Everything a mixer carries from one token to the next. Every tensor is batch-first."""


class MixerConfig(BaseModel):
    """Base of every mixer's options. Closed: a key that the mixer does not know is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Cost:
    """What a mixer costs a sequence of some length, from its shapes alone. FLOPs are two per multiply-add.

    parameters: learnable numbers.
    state_floats: numbers that the recurrence carries per sequence, convolution tails not counted;
        for attention the keys and values of the whole context (or window).
    flops_per_token: of the forward pass in its recurrent form, averaged over the sequence; training takes three times
        as many. A chunked form does more: what is counted is the work that the function asks for, not a kernel's.
    decode_flops: of one more token behind the sequence.
    decode_bytes: what that token reads and writes of the state, for each sequence of a batch, in the dtypes that the
        state has under bf16 activations. Beside them a step reads all weights once, whatever the batch.
    """

    parameters: int
    state_floats: int
    flops_per_token: float
    decode_flops: float
    decode_bytes: int

    @classmethod
    def recurrent(cls, parameters: int, products: int, state: int, flops_per_state: int, tail_bytes: int = 0) -> Cost:
        """A recurrence with an fp32 state of fixed size: every token costs the same.

        products: weights of linear layers and convolutions, each one multiply-add a token. flops_per_state: FLOPs for
        each number of the state. tail_bytes: of what else is carried, such as a convolution's last inputs.
        """
        flops = 2 * products + flops_per_state * state
        return cls(parameters, state, flops, flops, 2 * (4 * state + tail_bytes))


class Mixer(nn.Module):
    """Base class of all token mixers.

    Subclasses set `config_class`, take `(d_model, config)` and implement `mix` and `cost`. One with more than one
    implementation lists them in `backends`, best first and torch last, and asks `implementation` which to use.
    """

    config_class: type[MixerConfig]
    backends: ClassVar[tuple[Backend, ...]] = (TORCH,)
    # Whether biases of linear layers start as the mixer has set them, and not at 0 as the training recipe has it.
    keeps_biases: ClassVar[bool] = False
    # Which implementation to use. Not part of the configuration: all compute the same function of the same weights.
    backend: str = "auto"

    def __init__(self, d_model: int, config: MixerConfig):
        super().__init__()
        self.d_model = d_model
        self.config = config
        self._served: dict[tuple[str, torch.device, torch.dtype], str] = {}

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        cu_seqlens: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, State | None]:
        """x: [B, T, D] → (y [B, T, D], state or None).

        cu_seqlens: [N+1] integer offsets of N sequences packed along T, with B = 1; then `state` is batched over
        N. `state` is never modified in place. Raises ValueError for shapes outside this contract.
        """
        if x.dim() != 3 or x.shape[-1] != self.d_model:
            raise ValueError(f"x: expected [B, T, {self.d_model}], got {list(x.shape)}")
        if cu_seqlens is None:
            return self.mix(x, state, return_state)
        return self.mix_packed(x, state, cu_seqlens, return_state)

    def mix(self, x: Tensor, state: State | None, return_state: bool) -> tuple[Tensor, State | None]:
        """The mixer itself on sequences of one length: what `forward` promises, without packing."""
        raise NotImplementedError

    def mix_packed(
        self, x: Tensor, state: State | None, cu_seqlens: Tensor, return_state: bool
    ) -> tuple[Tensor, State | None]:
        """The same on packed sequences; `mix` on those of each length, unless a mixer has a better way."""
        return packed(self.mix, x, state, cu_seqlens, return_state)

    def serving(self, device: torch.device, dtype: torch.dtype) -> str:
        """The implementation that computes activations of a dtype on a device. Raises ValueError for a `backend` that
        does not serve there, with the reason."""
        key = (self.backend, device, dtype)
        if key not in self._served:  # asked at every call, and what is installed does not change
            self._served[key] = choose(self.backends, self.backend, device, dtype, self.config)
        return self._served[key]

    def implementation(self, x: Tensor) -> str:
        """The implementation that computes the present input, under the present autocast."""
        return self.serving(x.device, activation_dtype(x))

    def cost(self, seq_len: int) -> Cost:
        """Parameters, state, FLOPs and bytes at sequences of `seq_len` tokens."""
        raise NotImplementedError

    @staticmethod
    def cat_states(states: list[State]) -> State:
        """Join states along the batch. Attention overrides it, since its caches differ in length."""
        return {key: torch.cat([s[key] for s in states]) for key in states[0]}

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())


@dataclass(frozen=True)
class Entry:
    """A registered mixer: its class, the name that tables print, and options that the name itself fixes."""

    name: str
    display: str
    cls: type[Mixer]
    fixed: dict[str, Any]


def one_line(error: ValidationError, subject: str, known: Iterable[str] = ()) -> str:
    """Return the first fault of a pydantic error as one line: `subject: field: message (got value); options: a, b`.

    A subject that ends in a dot is joined to the field without a colon: `gdn2.` gives `gdn2.heads: …`. A missing field
    has no value, and a validator's own message names its value itself. Without `known`, no options are listed.
    """
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if not field or not subject.endswith("."):
        subject = f"{subject.rstrip('.')}: "
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown field; remove it or correct its name"
    value = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r})"
    options = ", ".join(known)
    return f"{subject}{field}{': ' if field else ''}{message}{value}{'; options: ' if options else ''}{options}"


def index_state(state: State, index: Tensor | slice | list[int]) -> State:
    """Pick, repeat or reorder the sequences of a state."""
    return {key: value[index] for key, value in state.items()}


def check_cu_seqlens(x: Tensor, cu_seqlens: Tensor) -> list[int]:
    """Offsets as a list, or ValueError naming what is wrong with them."""
    offsets = cu_seqlens.tolist()
    if x.shape[0] != 1:
        raise ValueError(f"cu_seqlens: packed sequences need a batch of 1, got {x.shape[0]}")
    if offsets[0] != 0 or offsets[-1] != x.shape[1] or any(b <= a for a, b in zip(offsets, offsets[1:], strict=False)):
        raise ValueError(f"cu_seqlens: expected offsets rising from 0 to {x.shape[1]}, got {offsets}")
    return offsets


def packed(
    mix: Callable[[Tensor, State | None, bool], tuple[Tensor, State | None]],
    x: Tensor,
    state: State | None,
    cu_seqlens: Tensor,
    return_state: bool,
) -> tuple[Tensor, State | None]:
    """Run `mix` over packed sequences, those of equal length together: no padding, no masks."""
    offsets = check_cu_seqlens(x, cu_seqlens)
    by_length: dict[int, list[int]] = {}
    for i, (a, b) in enumerate(zip(offsets, offsets[1:], strict=False)):
        by_length.setdefault(b - a, []).append(i)
    outputs: dict[int, Tensor] = {}
    states: dict[int, State] = {}
    for length, members in by_length.items():
        rows = torch.cat([x[:, offsets[i] : offsets[i] + length] for i in members])
        y, s = mix(rows, None if state is None else index_state(state, members), return_state)
        for row, i in enumerate(members):
            outputs[i] = y[row : row + 1]
            if s is not None:
                states[i] = index_state(s, slice(row, row + 1))
    y = torch.cat([outputs[i] for i in range(len(outputs))], dim=1)
    if not return_state:
        return y, None
    owner = getattr(mix, "__self__", Mixer)
    return y, owner.cat_states([states[i] for i in range(len(outputs))])
