"""The language model around a mixer: embedding, pre-norm blocks, head.

A block is x + mixer(norm(x)), then x + SwiGLU(norm(x)). The layout says which mixer each block holds:
`recurrent` the mixer in all, `hybrid` the mixer and sliding-window attention in turn, `attention` attention in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from mixers import State, build_mixer
from mixers.backends import TORCH, convolution
from mixers.interface import index_state
from mixers.parts.common import RMSNorm, ShortConvolution

Layout = Literal["recurrent", "hybrid", "attention"]
ModelState = list[State]

# Xavier-uniform gain of every linear layer (paper, training recipe).
LINEAR_GAIN = 2**-2.5


class ModelConfig(BaseModel):
    """Everything that fixes a model's shape. Closed, and resolved: nothing is decided after it.

    mixer, mixer_options: the token mixer. attention_options: those of the attention blocks of a hybrid.
    mlp_widths: inner width of each block's SwiGLU, one per block. vocab_size: rows of the embedding. embedding_std:
    standard deviation of the embedding at the start.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Layout
    mixer: str
    mixer_options: dict[str, Any] = {}
    attention_options: dict[str, Any] = {}
    d_model: PositiveInt
    mlp_widths: list[PositiveInt]
    vocab_size: PositiveInt
    tie_embeddings: bool = False
    embedding_std: PositiveFloat = 0.02
    norm_eps: PositiveFloat = 1e-5

    @model_validator(mode="after")
    def _layout_fits(self) -> ModelConfig:
        if self.layout == "hybrid" and self.layers % 2:
            raise ValueError(
                f"mlp_widths: a hybrid alternates two kinds of block, so it needs an even number of them, "
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
    """down(silu(gate(x)) ⊙ up(x)), no biases."""

    def __init__(self, d_model: int, width: int):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, width, bias=False)
        self.up_proj = nn.Linear(d_model, width, bias=False)
        self.down_proj = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One token mixer and one MLP, each behind its norm and around its residual."""

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        name, options = config.block_mixer(index)
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = build_mixer(name, config.d_model, options)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.mlp_widths[index])

    def forward(
        self,
        x: Tensor,
        state: State | None,
        cu_seqlens: Tensor | None,
        return_state: bool,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, State | None]:
        """wanted: [N] places among the B·T tokens; the result is then of these alone, [N, D]."""
        y, state = self.mixer(self.mixer_norm(x), state, cu_seqlens, return_state)
        x = x + y
        if wanted is not None:
            x = x.flatten(0, 1)[wanted]
        return x + self.mlp(self.mlp_norm(x)), state


@dataclass(frozen=True)
class ModelCost:
    """Size and work of a model at one sequence length; FLOPs per token are of training, three forward passes."""

    non_embedding_params: int
    embedding_params: int
    state_floats_per_layer: int
    flops_per_token: float


class LanguageModel(nn.Module):
    """Tokens to logits, with a state in which it can stop and continue."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        kept = {id(m) for block in self.blocks if block.mixer.keeps_biases for m in block.mixer.modules()}
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=LINEAR_GAIN)
                if module.bias is not None and id(module) not in kept:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=config.embedding_std)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def hidden(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        cu_seqlens: Tensor | None = None,
        return_state: bool = False,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, ModelState | None]:
        """tokens: [B, T] → what the head reads, [B, T, D], and the state after the last token if asked for.

        wanted: [N] places among the B·T tokens; then [N, D], and the last MLP computes nothing else.
        """
        x = self.embedding(tokens)
        after: ModelState = []
        for i, block in enumerate(self.blocks):
            places = wanted if i == self.config.layers - 1 else None
            x, s = block(x, None if state is None else state[i], cu_seqlens, return_state, places)
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
        """Join states along the batch, in order."""
        return [block.mixer.cat_states([s[i] for s in states]) for i, block in enumerate(self.blocks)]

    def backend(self, dtype: torch.dtype) -> str:
        """Which implementations compute activations of a dtype where the model is now, as records name them: `torch`,
        `torch+triton+conv:fla`."""
        device = next(self.parameters()).device
        names = {block.mixer.serving(device, dtype) for block in self.blocks}
        if names != {TORCH.name} and any(isinstance(m, ShortConvolution) for m in self.modules()):
            names.add(f"conv:{convolution()}")
        return "+".join(sorted(names))

    def cost(self, seq_len: int) -> ModelCost:
        """Counted from the modules themselves, so what is reported is what is built (works on the meta device)."""
        embedding = self.embedding.weight.numel() * (1 if self.config.tie_embeddings else 2)
        total = sum(p.numel() for p in self.parameters())
        costs = [block.mixer.cost(seq_len) for block in self.blocks]
        forward = sum(c.flops_per_token for c in costs) + 2 * self.head.weight.numel()
        forward += sum(2 * p.numel() for block in self.blocks for p in block.mlp.parameters())
        return ModelCost(
            non_embedding_params=total - embedding,
            embedding_params=embedding,
            state_floats_per_layer=costs[0].state_floats,
            flops_per_token=3 * forward,
        )


def build_model(config: ModelConfig, seed: int) -> LanguageModel:
    """A freshly initialised model; the same seed gives the same weights whatever else the process has drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LanguageModel(config)
