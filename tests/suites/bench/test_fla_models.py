"""Our matched configurations as models of fla: the same sizes, the stated differences, and their loss."""

import fla.layers.attn
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from harness.experiments.matching import matched_config, meta_model
from harness.model.language_model import ModelConfig
from suites.bench.fla_models import CLASSES, WITHOUT_MLP, build_fla

CPU = torch.device("cpu")


def config_of(preset: str, mixer: str) -> ModelConfig:
    return matched_config(preset, "attention" if mixer == "attention" else "recurrent", mixer)


@pytest.mark.parametrize("preset", ["cpu-600k", "125m"])
@pytest.mark.parametrize("mixer", CLASSES)
def test_flas_model_has_our_parameters_but_for_what_is_stated(
    mixer: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # fla's Transformer refuses to be built without flash-attn, which no CPU supports; nothing is computed here.
    monkeypatch.setattr(fla.layers.attn, "flash_attn_func", lambda *_: None)
    config = config_of(preset, mixer)
    built = build_fla(config, torch.device("meta"))
    ours = meta_model(config).cost(16).non_embedding_params
    if mixer in WITHOUT_MLP:
        assert built.differs == "its blocks have no MLP" and built.mlp_width is None
        mlps = sum(3 * config.d_model * width + config.d_model for width in config.mlp_widths)  # with their norms
        assert built.non_embedding_params == ours - mlps
    else:
        assert built.differs is None and abs(built.mlp_width - sum(config.mlp_widths) / config.layers) <= 4
        widths = {"mlp_widths": [built.mlp_width] * config.layers}
        assert built.non_embedding_params == meta_model(config.model_copy(update=widths)).cost(16).non_embedding_params
        assert abs(built.non_embedding_params / ours - 1) < 0.005  # as close as our own models are matched
    assert built.model.lm_head.weight is built.model.get_input_embeddings().weight
    assert built.model.lm_head.weight.shape == (config.vocab_size, config.d_model)
    assert {parameter.dtype for parameter in built.model.parameters()} == {torch.float32}


def test_flas_loss_is_that_of_next_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    built, hidden = build_fla(config_of("cpu-600k", "mamba2"), CPU), torch.randn(2, 8, 64)
    # fla's norms and fused loss are Triton kernels; its head, target shift and unfused loss run on a CPU.
    monkeypatch.setattr(built.model.backbone, "forward", lambda **_: BaseModelOutputWithPast(hidden))
    monkeypatch.setattr(built.model.config, "fuse_cross_entropy", False)
    tokens = torch.randint(4096, (2, 9))
    logits = hidden @ built.model.lm_head.weight.mT
    wanted = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:-1].flatten())
    torch.testing.assert_close(built.loss(tokens), wanted)


def test_fla_has_no_model_for_gdn2() -> None:
    with pytest.raises(ValueError, match="fla 0.6.0 has no causal language model class for gdn2"):
        build_fla(config_of("cpu-600k", "gdn2"), CPU)
