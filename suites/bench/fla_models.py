"""flash-linear-attention's own language models in the shapes of ours, for the training benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.experiments.matching import meta_model
from harness.model.language_model import ModelConfig
from mixers.backends import mamba_ssm, mamba_ssm_absent
from mixers.upstream import COUNTERPARTS

CLASSES = {
    "gated_deltanet": "GatedDeltaNet",
    "kda": "KDA",
    "mamba2": "Mamba2",
    "mamba3_siso": "Mamba3",
    "mamba3_mimo": "Mamba3",
    "attention": "Transformer",
}
"""Mixer → the name, before `Config` and `ForCausalLM`, of its classes in fla.models 0.6.0."""
WITHOUT_MLP = ("mamba2", "mamba3_siso", "mamba3_mimo")
KERNELS_OF_MAMBA_SSM = WITHOUT_MLP  # fla's layers call these kernels; without them they loop in torch or fail
STEP = 8  # of MLP widths: bf16 rows then start at multiples of 16 bytes, else matrix products are slower


@dataclass(frozen=True)
class FlaModel:
    """A model of fla, built.

    name: its class. mlp_width: the width of every block's MLP, None if blocks have none. differs: the part of our
    architecture that it lacks, or None. non_embedding_params: parameters without embeddings, counted from the model.
    """

    model: nn.Module
    name: str
    mlp_width: int | None
    differs: str | None
    non_embedding_params: int

    def loss(self, tokens: Tensor) -> Tensor:
        """Return the mean cross-entropy of tokens [B, T + 1] in fla's fused form.

        The model shifts its targets itself, so each row has T - 1 of them; logits are computed for all T.
        """
        return self.model(input_ids=tokens[:, :-1], labels=tokens[:, :-1], use_cache=False).loss


def fla_absent(mixer: str) -> str | None:
    """Return the reason why fla has no model to compare a mixer with, or None if it has one."""
    if mixer in CLASSES:
        return None
    return f"fla 0.6.0 has no causal language model class for {mixer}"


def load_kernels() -> None:
    """Import the mamba-ssm kernels before fla is first imported, which is when fla's Mamba layers look for them.

    Without them the layers run as loops in torch, and `build_fla` refuses to time that as fla's speed.
    """
    if mamba_ssm_absent(torch.device("cuda"), torch.bfloat16, None) is None:
        mamba_ssm("ops.triton.ssd_combined")


def build_fla(config: ModelConfig, device: torch.device) -> FlaModel:
    """Build fla's model with our configuration's width, depth, heads, key and value widths, vocabulary and tying.

    Weights are in fp32. fla's configuration allows one MLP width for all blocks: the mean of ours, rounded to a
    multiple of STEP. Raises ValueError if fla has no class for the mixer or one of its options, for blocks
    without an MLP or with a convolution of their own, ImportError if a
    package is not installed, and RuntimeError for a Mamba on a GPU without mamba-ssm's kernels.
    """
    if (reason := fla_absent(config.mixer)) is not None:
        raise ValueError(reason)
    if config.leading_conv or not all(config.mlp_widths):
        raise ValueError("model: fla's models have an MLP in every block and no convolution before a mixer")
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
    """Return width, heads, and key and value widths under the names of fla's configuration, which are its layer's."""
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
