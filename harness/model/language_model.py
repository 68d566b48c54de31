"""The language model around a mixer: embedding, pre-norm blocks, head.

A block computes x + mixer(norm(x)), then x + SwiGLU(norm(x)) unless its MLP has width 0. With a `leading_conv`, a short
convolution comes first: x + conv(norm(x)). The layout decides the mixer of each block: `recurrent` uses the mixer in
all blocks, `hybrid` alternates it with sliding-window attention, `attention` uses attention in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from mixers import State, build_mixer
from mixers.backends import TORCH, convolution
from mixers.identity import Neutral
from mixers.interface import Mixer, index_state
from mixers.parts.common import RMSNorm, ShortConvolution
from mixers.parts.local_convolution import CONV_TAIL, LocalConvolution
from mixers.registry import stored_options

Layout = Literal["recurrent", "hybrid", "attention"]
ModelState = list[State]
"""The state of each block, batch first."""

InitGain = PositiveFloat | Literal["upstream"]
LINEAR_GAIN = 2**-2.5
"""Xavier-uniform gain of every linear layer (paper, training recipe)."""


class ModelConfig(BaseModel):
    """Everything that determines a model's shape and initialisation, with all values resolved."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    layout: Layout
    """Which blocks hold the mixer: all (`recurrent`), every other one (`hybrid`), or none (`attention`)."""

    mixer: str
    """Registered name of the token mixer."""

    mixer_options: dict[str, Any] = {}
    """Options of the token mixer, as its configuration names them."""

    attention_options: dict[str, Any] = {}
    """Options of the attention blocks of a hybrid."""

    d_model: PositiveInt
    """Width of the residual stream."""

    mlp_widths: list[NonNegativeInt]
    """Inner width of each block's SwiGLU, one per block; a block of width 0 has neither MLP nor its norm."""

    vocab_size: PositiveInt
    """Number of rows of the embedding."""

    tie_embeddings: bool = False
    """Whether the head uses the weights of the embedding."""

    embedding_std: PositiveFloat = 0.02
    """Standard deviation of the embedding at initialisation."""

    norm_eps: PositiveFloat = 1e-5
    """Epsilon of the RMSNorms around the mixers and the MLPs and before the head."""

    leading_conv: Annotated[NonNegativeInt, Neutral(0)] = 0
    """Taps of the short convolution that each block has before its mixer (mixers.parts.local_convolution); 0 for
    none."""

    @model_validator(mode="after")
    def _layout_fits(self) -> ModelConfig:
        """Raise ValueError if the layout contradicts the mixer or the number of blocks."""
        if self.layout == "hybrid" and self.layers % 2:
            raise ValueError(
                f"mlp_widths: a hybrid alternates two kinds of block, so it needs an even number of widths, "
                f"got {self.layers}"
            )
        if (self.layout == "attention") != (self.mixer == "attention"):
            raise ValueError(
                f"layout: {self.layout!r} does not go with mixer {self.mixer!r}; attention is a layout of its own"
            )
        return self

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.mlp_widths)

    def block_mixer(self, index: int) -> tuple[str, dict[str, Any]]:
        """Name and options of the mixer in block `index`."""
        if self.layout == "hybrid" and index % 2:
            return "attention", self.attention_options
        return self.mixer, self.mixer_options


class SwiGLU(nn.Module):
    """The MLP of a block: down(silu(gate(x)) ⊙ up(x)), without biases."""

    def __init__(self, d_model: int, width: int):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, width, bias=False)
        self.up_proj = nn.Linear(d_model, width, bias=False)
        self.down_proj = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, D] → [B, T, D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """A convolution if there is one, a token mixer, and an MLP if it has a width.

    Each has its norm before it and a residual connection around it.
    """

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        name, options = config.block_mixer(index)
        options = stored_options(name, options)
        width = config.mlp_widths[index]
        norm = partial(RMSNorm, config.d_model, config.norm_eps)
        self.conv_norm = norm() if config.leading_conv else None
        self.conv = LocalConvolution(config.d_model, config.leading_conv) if config.leading_conv else None
        self.mixer_norm = norm()
        self.mixer = build_mixer(name, config.d_model, options)
        self.mlp_norm = norm() if width else None
        self.mlp = SwiGLU(config.d_model, width) if width else None

    @property
    def mixers(self) -> list[Mixer]:
        """The convolution, if there is one, and the token mixer."""
        return [self.mixer] if self.conv is None else [self.conv, self.mixer]

    def forward(
        self,
        x: Tensor,
        state: State | None,
        cu_seqlens: Tensor | None,
        return_state: bool,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, State | None]:
        """x: [B, T, D] → ([B, T, D], the block's state after the last token if `return_state`).

        The state is the mixer's, and the tail of the convolution under CONV_TAIL. wanted: [N] positions among the B · T
        tokens. If given, the output is [N, D], for these tokens alone.
        """
        tail = None
        if self.conv is not None:
            if state is not None:
                tail, state = _apart(state)
            y, tail = self.conv(self.conv_norm(x), tail, cu_seqlens, return_state)
            x = x + y
        y, state = self.mixer(self.mixer_norm(x), state, cu_seqlens, return_state)
        if tail is not None and state is not None:
            state = state | tail
        x = x + y
        if wanted is not None:
            x = x.flatten(0, 1)[wanted]
        return x if self.mlp is None else x + self.mlp(self.mlp_norm(x)), state

    def cat_states(self, states: list[State]) -> State:
        """Join states along the batch dimension, in order."""
        if self.conv is None:
            return self.mixer.cat_states(states)
        tails, rest = zip(*map(_apart, states), strict=True)
        return self.mixer.cat_states(list(rest)) | self.conv.cat_states(list(tails))


def _apart(state: State) -> tuple[State, State]:
    """Split a block's state into the convolution's and the mixer's."""
    return {CONV_TAIL: state[CONV_TAIL]}, {key: value for key, value in state.items() if key != CONV_TAIL}


@dataclass(frozen=True)
class ModelCost:
    """Size of a model and its work at one sequence length.

    flops_per_token: of training, counted as three forward passes. state_floats_per_layer: of the first block.
    """

    non_embedding_params: int
    embedding_params: int
    state_floats_per_layer: int
    flops_per_token: float


class LanguageModel(nn.Module):
    """Maps tokens to logits. Its state after any token lets it resume there."""

    def __init__(self, config: ModelConfig, gain: InitGain = LINEAR_GAIN):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if gain != "upstream":
            self._initialise_linear(gain)
        nn.init.normal_(self.embedding.weight, std=config.embedding_std)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def _initialise_linear(self, gain: float) -> None:
        """Draw the weights of all linear layers Xavier-uniformly, and set their biases to 0 but where the mixer keeps
        its own."""
        keep_bias = {id(m) for block in self.blocks if block.mixer.keeps_biases for m in block.mixer.modules()}
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=gain)
                if module.bias is not None and id(module) not in keep_bias:
                    nn.init.zeros_(module.bias)

    def hidden(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        cu_seqlens: Tensor | None = None,
        return_state: bool = False,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, ModelState | None]:
        """tokens: [B, T] int64 → (input of the head [B, T, D], state after the last token if `return_state`).

        wanted: [N] positions among the B · T tokens. If given, the output is [N, D], and the last MLP computes only
        these. See `mixers.Mixer.forward` for the other arguments.
        """
        x = self.embedding(tokens)
        after: ModelState = []
        for i, block in enumerate(self.blocks):
            positions = wanted if i == self.config.layers - 1 else None
            x, s = block(x, None if state is None else state[i], cu_seqlens, return_state, positions)
            if s is not None:
                after.append(s)
        return self.norm(x), after if return_state else None

    def forward(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        cu_seqlens: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, ModelState | None]:
        """tokens: [B, T] int64 → (logits [B, T, V], state or None). See `mixers.Mixer.forward` for the arguments."""
        hidden, state = self.hidden(tokens, state, cu_seqlens, return_state)
        return self.head(hidden), state

    def index_state(self, state: ModelState, index: Tensor | slice | list[int]) -> ModelState:
        """Pick, repeat or reorder the sequences of a state."""
        return [index_state(s, index) for s in state]

    def cat_states(self, states: list[ModelState]) -> ModelState:
        """Join states along the batch dimension, in order."""
        return [block.cat_states([s[i] for s in states]) for i, block in enumerate(self.blocks)]

    def backend(self, dtype: torch.dtype, gradients: bool = True) -> str:
        """Names of the implementations that compute in `dtype` on the model's device, with or without gradients.

        Joined by "+" as in records: `torch`, `conv:fla+torch+triton`.
        """
        device = next(self.parameters()).device
        names = {mixer.serving(device, dtype, gradients) for block in self.blocks for mixer in block.mixers}
        if names != {TORCH.name} and any(isinstance(m, ShortConvolution) for m in self.modules()):
            names.add(f"conv:{convolution()}")
        return "+".join(sorted(names))

    def fallbacks(self, dtype: torch.dtype, gradients: bool = True) -> list[str]:
        """A line for each kind of mixer that torch computes on a GPU for which it has kernels, with the reason."""
        device = next(self.parameters()).device
        found = {}
        for index, block in enumerate(self.blocks):
            if (reason := block.mixer.fallback(device, dtype, gradients)) is not None:
                name = self.config.block_mixer(index)[0]
                found[name] = f"{name} runs on torch, which is slower than its kernels: {reason}"
        return list(found.values())

    def cost(self, seq_len: int) -> ModelCost:
        """Parameters, state and FLOPs, counted from the modules themselves. Works on the meta device."""
        embedding = self.embedding.weight.numel() * (1 if self.config.tie_embeddings else 2)
        total = sum(p.numel() for p in self.parameters())
        forward = sum(mixer.cost(seq_len).flops_per_token for block in self.blocks for mixer in block.mixers)
        mlps = (block.mlp for block in self.blocks if block.mlp is not None)
        forward += 2 * self.head.weight.numel() + sum(2 * p.numel() for mlp in mlps for p in mlp.parameters())
        return ModelCost(
            non_embedding_params=total - embedding,
            embedding_params=embedding,
            state_floats_per_layer=self.blocks[0].mixer.cost(seq_len).state_floats,
            flops_per_token=3 * forward,
        )


def build_model(config: ModelConfig, seed: int, gain: InitGain = LINEAR_GAIN) -> LanguageModel:
    """Build and initialise a model. The weights depend on the arguments alone, not on the global generator.

    gain: of the recipe (TrainConfig.init_gain); the paper's by default.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LanguageModel(config, gain)
