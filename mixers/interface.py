"""The interface of all token mixers: configuration, state, cost and the base class.

A token mixer maps [B, T, D] to [B, T, D] causally and can stop and resume. A sequence fed whole, in pieces through
`state`, or token by token gives the same output. Packed sequences never see each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from mixers.backends import TORCH, Backend, activation_dtype, choose, reasons

State = dict[str, Tensor]
"""Everything a mixer carries from one token to the next. Every tensor is batch-first."""


class MixerConfig(BaseModel):
    """Base of every mixer's options. Unknown keys and numbers that are not finite are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    spelt_out: ClassVar[bool] = True
    """Whether defaults are part of a run's configuration. False where they belong to another package."""


@dataclass(frozen=True)
class Cost:
    """The cost of a mixer on a sequence of a given length, from its shapes alone. A multiply-add is two FLOPs.

    parameters: learnable numbers.
    state_floats: numbers that the recurrence carries per sequence, without convolution tails; for attention, the keys
        and values of the whole context or window.
    flops_per_token: FLOPs of the forward pass in its recurrent form, averaged over the sequence. Training takes three
        times as many. A chunked form does more work; this counts what the function needs, not what a kernel does.
    decode_flops: FLOPs of one more token after the sequence.
    decode_bytes: bytes of state that this token reads and writes per sequence of a batch, in the state's dtypes under
        bf16 activations. A step also reads all weights once, whatever the batch.
    """

    parameters: int
    state_floats: int
    flops_per_token: float
    decode_flops: float
    decode_bytes: int

    @classmethod
    def recurrent(cls, parameters: int, products: int, state: int, flops_per_state: int, tail_bytes: int = 0) -> Cost:
        """Return the cost of a recurrence with an fp32 state of fixed size, where every token costs the same.

        parameters: learnable numbers. products: weights of linear layers and convolutions, one multiply-add per token
        each. state: numbers in the state. flops_per_state: FLOPs per token for each of them. tail_bytes: bytes carried
        next to the state, such as a convolution's last inputs.
        """
        flops = 2 * products + flops_per_state * state
        return cls(parameters, state, flops, flops, 2 * (4 * state + tail_bytes))


class Mixer(nn.Module):
    """Base class of all token mixers.

    A subclass sets `config_class`, takes `(d_model, config)` and implements `mix` and `cost`. If it has several
    implementations, it lists them in `backends`, best first and torch last, and asks `implementation` which one to use.
    """

    config_class: type[MixerConfig]
    backends: ClassVar[tuple[Backend, ...]] = (TORCH,)
    # Whether biases of linear layers keep the mixer's initial values instead of the training recipe's 0.
    keeps_biases: ClassVar[bool] = False
    # The implementation to use. Not part of the configuration, since all compute the same function of the weights.
    backend: str = "auto"

    def __init__(self, d_model: int, config: MixerConfig):
        super().__init__()
        self.d_model = d_model
        self.config = config
        self._served: dict[tuple[str, torch.device, torch.dtype, bool], str] = {}

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        cu_seqlens: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, State | None]:
        """Mix x [B, T, D] along T. Returns y [B, T, D] and the state after the last token, or None if not asked for.

        state: what an earlier call returned, to resume after it; it is never modified in place. cu_seqlens: [N+1]
        integer offsets of N sequences packed along T, with B = 1; `state` is then batched over N. Raises ValueError for
        shapes outside this contract.
        """
        if x.dim() != 3 or x.shape[-1] != self.d_model:
            raise ValueError(f"x: expected [B, T, {self.d_model}], got {list(x.shape)}")
        if 0 in x.shape[:2]:
            raise ValueError(f"x: {list(x.shape)} holds no token; give at least one row of one token")
        if state is not None:
            check_state(state, x.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1)
        if cu_seqlens is None:
            return self.mix(x, state, return_state)
        return self.mix_packed(x, state, cu_seqlens, return_state)

    def mix(self, x: Tensor, state: State | None, return_state: bool) -> tuple[Tensor, State | None]:
        """Compute `forward` on sequences of one length, without packing. Subclasses implement it."""
        raise NotImplementedError

    def mix_packed(
        self, x: Tensor, state: State | None, cu_seqlens: Tensor, return_state: bool
    ) -> tuple[Tensor, State | None]:
        """Compute `forward` on packed sequences. The default runs `mix` once per distinct length."""
        return packed(self.mix, x, state, cu_seqlens, return_state)

    def serving(self, device: torch.device, dtype: torch.dtype, gradients: bool = True) -> str:
        """Return the name of the implementation that computes activations of this dtype on this device.

        gradients: whether it must compute them too; some serve only without. Raises ValueError with the reason if
        `backend` names one that does not serve there.
        """
        key = (self.backend, device, dtype, gradients)
        if key not in self._served:  # asked at every call, and the answer never changes within a process
            self._served[key] = choose(self.backends, self.backend, device, dtype, self.config, gradients)
        return self._served[key]

    def fallback(self, device: torch.device, dtype: torch.dtype, gradients: bool = True) -> str | None:
        """Return why torch computes on a GPU for which the mixer has kernels; None where kernels do, where it has none,
        or where `backend` asks for torch.

        gradients: as for `serving`.
        """
        if device.type != "cuda" or self.backend != "auto" or self.serving(device, dtype, gradients) != TORCH.name:
            return None
        others = reasons(self.backends, device, dtype, self.config, gradients)
        return "; ".join(f"{name}: {reason}" for name, reason in others.items() if name != TORCH.name) or None

    def implementation(self, x: Tensor) -> str:
        """Return the name of the implementation that computes x under the current autocast and gradient mode."""
        return self.serving(x.device, activation_dtype(x), torch.is_grad_enabled())

    def cost(self, seq_len: int) -> Cost:
        """Return the cost on sequences of `seq_len` tokens. Subclasses implement it."""
        raise NotImplementedError

    @staticmethod
    def cat_states(states: list[State]) -> State:
        """Join states along the batch. Attention overrides this, since its caches differ in length."""
        return {key: torch.cat([s[key] for s in states]) for key in states[0]}

    def parameter_count(self) -> int:
        """Return the number of learnable numbers."""
        return sum(p.numel() for p in self.parameters())


@dataclass(frozen=True)
class Entry:
    """A registered mixer.

    name: as in experiment files. display: as in tables. cls: its class. fixed: options that the name implies, such as
    mimo=True for `mamba3_mimo`.
    """

    name: str
    display: str
    cls: type[Mixer]
    fixed: dict[str, Any]

    @property
    def line(self) -> str:
        """The mixer in a line of text: the first of its module's docstring, if it has one."""
        text = sys.modules[self.cls.__module__].__doc__ or ""
        return text.strip().partition("\n")[0].rstrip(".") or self.display


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
    """Return a state with its sequences picked, repeated or reordered by `index`."""
    return {key: value[index] for key, value in state.items()}


def check_state(state: State, sequences: int) -> None:
    """Raise ValueError unless every tensor of a state has this number of rows."""
    for key, value in state.items():
        if value.dim() == 0 or value.shape[0] != sequences:
            raise ValueError(
                f"state: {key!r} has shape {list(value.shape)}, but the input has {sequences} sequences; give the "
                "state of these sequences, picked or repeated by index_state"
            )


def check_cu_seqlens(x: Tensor, cu_seqlens: Tensor, empty: bool = False) -> list[int]:
    """Return the offsets as a list. Raises ValueError unless they rise from 0 to the length of x [1, T, …].

    empty: allow sequences without a token.
    """
    offsets = cu_seqlens.tolist()
    if x.shape[0] != 1:
        raise ValueError(f"cu_seqlens: packed sequences need a batch of 1, got {x.shape[0]}")
    lengths = [b - a for a, b in zip(offsets, offsets[1:], strict=False)]
    if offsets[0] != 0 or offsets[-1] != x.shape[1] or any(length < 0 for length in lengths):
        raise ValueError(f"cu_seqlens: expected offsets rising from 0 to {x.shape[1]}, got {offsets}")
    if 0 in lengths and not empty:
        raise ValueError(f"cu_seqlens: sequence {lengths.index(0)} of {offsets} is empty; leave it out")
    return offsets


def packed(
    mix: Callable[[Tensor, State | None, bool], tuple[Tensor, State | None]],
    x: Tensor,
    state: State | None,
    cu_seqlens: Tensor,
    return_state: bool,
) -> tuple[Tensor, State | None]:
    """Run `mix` on packed sequences, batching those of equal length, without padding or masks.

    Arguments and results are those of `Mixer.forward`. Raises ValueError for offsets that do not fit x.
    """
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
