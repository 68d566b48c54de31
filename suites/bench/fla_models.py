"""flash-linear-attention's own language models of the shapes of ours, to be timed beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.experiments.matching import meta_model
from harness.model.language_model import ModelConfig
from mixers.backends import mamba_ssm, mamba_ssm_absent
from mixers.upstream import COUNTERPARTS

# The first part of the names of a configuration and a model class in fla.models, 0.6.0.
CLASSES = {
    "gated_deltanet": "GatedDeltaNet",
    "kda": "KDA",
    "mamba2": "Mamba2",
    "mamba3_siso": "Mamba3",
    "mamba3_mimo": "Mamba3",
    "attention": "Transformer",
}
WITHOUT_MLP = ("mamba2", "mamba3_siso", "mamba3_mimo")
KERNELS_OF_MAMBA_SSM = WITHOUT_MLP  # fla's layers call them, and have a loop in torch or nothing in their place
STEP = 8  # of MLP widths: bf16 rows that start at multiples of 16 bytes, without which matrix products are slower


@dataclass(frozen=True)
class FlaModel:
    """A model class of fla as built.

    mlp_width: of every block; None where its blocks have no MLP. differs: what it has not that ours has, else None.
    non_embedding_params: counted from the model.
    """

    model: nn.Module
    name: str
    mlp_width: int | None
    differs: str | None
    non_embedding_params: int

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of tokens [B, T + 1] by its fused form. It shifts its targets itself, so that each row has
        T - 1 of them; logits are computed for all T."""
        return self.model(input_ids=tokens[:, :-1], labels=tokens[:, :-1], use_cache=False).loss


def fla_absent(mixer: str) -> str | None:
    """Why fla has no model to compare a mixer with; None where it has one."""
    if mixer in CLASSES:
        return None
    return f"fla 0.6.0 has no causal language model class for {mixer}"


def load_kernels() -> None:
    """Import what fla's Mamba layers look for once, when fla is first imported. Without it they run as loops in torch
    for good, which `build_fla` refuses to pass for fla's speed."""
    if mamba_ssm_absent(torch.device("cuda"), torch.bfloat16, None) is None:
        mamba_ssm("ops.triton.ssd_combined")


def build_fla(config: ModelConfig, device: torch.device) -> FlaModel:
    """fla's class with the width, depth, heads, key and value widths, vocabulary and tied embeddings of a configuration
    of ours, weights in fp32. All that its configuration allows is one MLP width for all blocks: the mean of ours, to
    the next multiple of STEP.

    Raises ValueError for a mixer or an option that fla has no class for, ImportError for what is not installed, and
    RuntimeError for a Mamba on a GPU without mamba-ssm's kernels.
    """
    if (reason := fla_absent(config.mixer)) is not None:
        raise ValueError(reason)
    import fla.models

    if device.type == "cuda" and config.mixer in KERNELS_OF_MAMBA_SSM:
        _require_kernels(config.mixer)
    width = None if config.mixer in WITHOUT_MLP else STEP * round(sum(config.mlp_widths) / config.layers / STEP)
    arguments = _shape(config) | {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.layers,
        "norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if width is not None:
        arguments["intermediate_size"] = width
    name = CLASSES[config.mixer]
    with torch.device(device):
        model = getattr(fla.models, f"{name}ForCausalLM")(getattr(fla.models, f"{name}Config")(**arguments))
    embeddings = {id(p): p for p in (model.get_input_embeddings().weight, model.lm_head.weight)}
    parameters = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in embeddings.values())
    differs = "its blocks have no MLP" if width is None else None
    return FlaModel(model, f"fla {name}ForCausalLM", width, differs, parameters)


def _shape(config: ModelConfig) -> dict[str, object]:
    """Width, heads and key and value widths, as fla's configuration names them: as its layer does."""
    mixer = meta_model(config).blocks[0].mixer
    if config.mixer == "attention":
        options = mixer.config
        if options.head_dim is not None and options.head_dim * options.heads != config.d_model:
            raise ValueError(
                f"attention.head_dim: {options.head_dim} × {options.heads} heads is not the width {config.d_model}, "
                "the only one that fla's Transformer has"
            )
        return {
            "hidden_size": config.d_model,
            "num_heads": options.heads,
            "num_kv_heads": options.kv_heads,
            "window_size": options.window,
            "rope_theta": options.rope_base,
        }
    arguments = next(c.arguments for c in COUNTERPARTS if (c.library, c.mixer) == ("fla", config.mixer))
    return {key: value for key, value in arguments(mixer).items() if key != "layer_idx"}


def _require_kernels(mixer: str) -> None:
    import fla.layers.mamba2
    import fla.layers.mamba3

    layer = fla.layers.mamba2 if mixer == "mamba2" else fla.layers.mamba3
    if not layer.is_fast_path_available:
        missing = mamba_ssm_absent(torch.device("cuda"), torch.bfloat16, None)
        raise RuntimeError(
            "fla's layer found no mamba-ssm and would not run on kernels: " + (missing or "fla was imported before it")
        )
