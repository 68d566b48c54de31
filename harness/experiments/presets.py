"""Presets: model scales by name, and the geometry of each mixer at that scale.

A preset fixes width, depth, vocabulary and the heads of each mixer, so that every recurrent mixer has the same number
of state floats per layer. The MLP widths are left free; harness.experiments.matching solves for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Match = Literal["parameters", "flops", "mlp"]


@dataclass(frozen=True)
class Preset:
    """One scale.

    d_model: width of the model. layers: number of blocks. vocab_size: vocabulary, unless a tokenizer decides it.
    context: training length in tokens, at which FLOPs are stated. tie_embeddings: whether the head shares the
    embedding's weights.
    reference_mlp_width: MLP width of Gated DeltaNet-2 by layout. In the recurrent layout, its parameters or FLOPs are
    the target that all models match; 0 leaves out all MLPs, so that nothing can be matched. In another layout, its
    width is used as given if parameters are matched.
    width_step: MLP widths of matched models are multiples of it.
    mixers: options of each mixer. hybrid_attention: options of the attention blocks of the hybrid layout.
    embedding_std: standard deviation of the embedding at initialisation. The paper has 0.02 at width 2304, close to
    1/√2304. Small scales keep the rule 1/√d_model: without it, recall takes several times as many tokens to appear.
    """

    d_model: int
    layers: int
    vocab_size: int
    context: int
    tie_embeddings: bool
    reference_mlp_width: dict[str, int]
    mixers: dict[str, dict[str, Any]] = field(repr=False)
    hybrid_attention: dict[str, Any] = field(repr=False)
    embedding_std: float = 0.02
    width_step: int = 32

    @property
    def line(self) -> str:
        """The scale in a line of text."""
        delta = self.mixers["gdn2"]
        floats = delta["heads"] * delta["head_dim"] ** 2
        layers = f"{self.layers} layer{'s' * (self.layers > 1)}"
        return f"width {self.d_model}, {layers}, state {floats:,}/layer, context {self.context:,}"


def _geometry(
    heads: int, head_dim: int, d_inner: int, ssm_head_dim: int, d_state: int, attention_heads: int
) -> dict[str, dict[str, Any]]:
    """Options of every mixer with states of equal size: heads · head_dim² = d_inner · d_state floats per layer."""
    if heads * head_dim**2 != d_inner * d_state:
        raise ValueError(
            f"preset: states differ, {heads * head_dim**2} and {d_inner * d_state} floats per layer; make "
            "heads · head_dim² equal to d_inner · d_state"
        )
    delta = {"heads": heads, "head_dim": head_dim}
    ssm = {"d_inner": d_inner, "head_dim": ssm_head_dim, "d_state": d_state}
    return {
        "gdn2": delta,
        "gated_deltanet": delta,
        "kda": delta,
        "mamba2": ssm,
        "mamba3_siso": ssm,
        "mamba3_mimo": ssm | {"rank": 4},
        "attention": {"heads": attention_heads},
    }


def _bare(d_model: int, heads: int, head_dim: int, mlp_ratio: float = 2, layers: int = 2, vocab: int = 512) -> Preset:
    """A scale of the experiments on bare ids: a vocabulary of a synthetic task's size, and MLP ratios between a quarter
    and four for all mixers.

    heads, head_dim: of the delta rules and of attention. The state of heads · head_dim² floats per layer can be varied
    at one width: d_state follows it. mlp_ratio: MLP width of Gated DeltaNet-2 over d_model.
    """
    d_inner = 2 * d_model
    attention = {"heads": heads, "head_dim": head_dim}
    mixers = _geometry(
        heads,
        head_dim,
        d_inner=d_inner,
        ssm_head_dim=min(32, d_model // 2),
        d_state=heads * head_dim**2 // d_inner,
        attention_heads=heads,
    )
    return Preset(
        d_model=d_model,
        layers=layers,
        vocab_size=vocab,
        context=128,
        tie_embeddings=True,
        reference_mlp_width={"recurrent": int(mlp_ratio * d_model)},
        mixers=mixers | {"attention": attention},
        hybrid_attention=attention | {"window": 128},
        embedding_std=d_model**-0.5,
        width_step=1,
    )


def _without_mlps(d_model: int, layers: int, context: int) -> Preset:
    """A scale of Zoology (arXiv 2312.04927) and Based (arXiv 2402.18668): few blocks without MLPs, one head of the
    model's width."""
    return Preset(
        d_model=d_model,
        layers=layers,
        vocab_size=8192,
        context=context,
        tie_embeddings=True,
        reference_mlp_width={"recurrent": 0},
        mixers=_geometry(1, d_model, d_inner=2 * d_model, ssm_head_dim=64, d_state=d_model // 2, attention_heads=1),
        hybrid_attention={"heads": 1, "window": context // 2},
        embedding_std=d_model**-0.5,
    )


PRESETS: dict[str, Preset] = {
    # The paper's release configuration (arXiv 2605.22791, training recipe): 16 heads of 128, 262,144 floats per layer.
    # At width 2304, an expansion of 2 would give Mamba 294,912 floats; an inner width of 4096 restores the paper's.
    "release-1.3b": Preset(
        d_model=2304,
        layers=18,
        vocab_size=32000,
        context=4096,
        tie_embeddings=False,
        reference_mlp_width={"recurrent": 6208, "hybrid": 6784},
        mixers=_geometry(16, 128, d_inner=4096, ssm_head_dim=64, d_state=64, attention_heads=18),
        hybrid_attention={"heads": 18, "window": 2048},
    ),
    "360m": Preset(
        d_model=1024,
        layers=24,
        vocab_size=32000,
        context=4096,
        tie_embeddings=True,
        reference_mlp_width={"recurrent": 2304},
        mixers=_geometry(8, 128, d_inner=2048, ssm_head_dim=64, d_state=64, attention_heads=8),
        hybrid_attention={"heads": 8, "window": 2048},
    ),
    "125m": Preset(
        d_model=768,
        layers=12,
        vocab_size=32000,
        context=4096,
        tie_embeddings=True,
        reference_mlp_width={"recurrent": 2048},
        mixers=_geometry(6, 128, d_inner=1536, ssm_head_dim=64, d_state=64, attention_heads=12),
        hybrid_attention={"heads": 12, "window": 2048},
    ),
    # One GPU trains it in minutes. Its vocabulary is the embedded tokenizer's.
    "35m": Preset(
        d_model=512,
        layers=8,
        vocab_size=4096,
        context=512,
        tie_embeddings=True,
        reference_mlp_width={"recurrent": 1408},
        mixers=_geometry(4, 128, d_inner=1024, ssm_head_dim=64, d_state=64, attention_heads=8),
        hybrid_attention={"heads": 8, "window": 256},
        embedding_std=512**-0.5,
    ),
    # CPU scales. Their states are as small as their widths, so that recall still tells the mixers apart.
    "cpu-1m": Preset(
        d_model=128,
        layers=4,
        vocab_size=4096,
        context=256,
        tie_embeddings=True,
        reference_mlp_width={"recurrent": 544},
        mixers=_geometry(4, 32, d_inner=256, ssm_head_dim=32, d_state=16, attention_heads=4),
        hybrid_attention={"heads": 4, "window": 128},
        embedding_std=128**-0.5,
    ),
    "cpu-150k": Preset(
        d_model=64,
        layers=2,
        vocab_size=4096,
        context=256,
        tie_embeddings=True,
        reference_mlp_width={"recurrent": 256},
        mixers=_geometry(2, 32, d_inner=128, ssm_head_dim=32, d_state=16, attention_heads=2),
        hybrid_attention={"heads": 2, "window": 128},
        embedding_std=64**-0.5,
        width_step=1,
    ),
    "cpu-600k": Preset(
        d_model=64,
        layers=2,
        vocab_size=4096,
        context=256,
        tie_embeddings=True,
        reference_mlp_width={"recurrent": 1440},
        mixers=_geometry(2, 32, d_inner=128, ssm_head_dim=32, d_state=16, attention_heads=2),
        hybrid_attention={"heads": 2, "window": 128},
        embedding_std=64**-0.5,
    ),
    # An earlier width axis of recall. Their MLPs are the narrowest that can match all mixers in steps of 32.
    "cpu-recall-32": Preset(
        d_model=32,
        layers=2,
        vocab_size=4096,
        context=128,
        tie_embeddings=True,
        reference_mlp_width={"recurrent": 992},
        mixers=_geometry(2, 16, d_inner=64, ssm_head_dim=16, d_state=8, attention_heads=2),
        hybrid_attention={"heads": 2, "window": 128},
        embedding_std=32**-0.5,
    ),
    "cpu-recall-64": Preset(
        d_model=64,
        layers=2,
        vocab_size=4096,
        context=128,
        tie_embeddings=True,
        reference_mlp_width={"recurrent": 1024},
        mixers=_geometry(2, 32, d_inner=128, ssm_head_dim=32, d_state=16, attention_heads=2),
        hybrid_attention={"heads": 2, "window": 128},
        embedding_std=64**-0.5,
    ),
    "cpu-recall-128": Preset(
        d_model=128,
        layers=2,
        vocab_size=4096,
        context=128,
        tie_embeddings=True,
        reference_mlp_width={"recurrent": 800},
        mixers=_geometry(4, 32, d_inner=256, ssm_head_dim=32, d_state=16, attention_heads=4),
        hybrid_attention={"heads": 4, "window": 128},
        embedding_std=128**-0.5,
    ),
    # The width axis of recall.
    **{f"recall-{d}": _bare(d, heads, head_dim) for d, heads, head_dim in ((32, 2, 16), (64, 2, 32), (128, 4, 32))},
    # The state axis of recall. A quarter leaves Mamba-3 the smallest d_state that rotates: 4, with one pair. At four
    # times the state, Gated DeltaNet-2's projections outweigh attention's by an MLP of 3.5 times the model's width, so
    # its own is narrow. There MIMO takes more FLOPs without an MLP than Gated DeltaNet-2 with one: it matches in
    # parameters only.
    "recall-64-quarter": _bare(64, 2, 16),
    "recall-64-fourfold": _bare(64, 2, 64, mlp_ratio=0.5),
    # State tracking: Mamba-3's widths, one layer for parity and three for the other tasks.
    **{
        f"tracking-{d}{'' if layers == 1 else f'-{layers}'}": _bare(d, 2, d // 2, layers=layers, vocab=128)
        for d in (32, 64)
        for layers in (1, 3)
    },
    # The models of Zoology's and Based's recall experiments; Based has convolutions of width 3 before its mixers.
    **{f"zoology-{d}": _without_mlps(d, layers=2, context=512) for d in (64, 128, 256, 512)},
    **{f"based-{d}": _without_mlps(d, layers=1, context=1024) for d in (64, 128, 256)},
}


def preset(name: str) -> Preset:
    """The preset called `name`. Raises ValueError listing the known ones if there is none."""
    if name not in PRESETS:
        raise ValueError(f"preset: unknown name {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
