"""The language model: its layouts, its state, its initialisation and its cost."""

import pytest
import torch

from harness.model.language_model import LanguageModel, ModelConfig, build_model

DELTA = {"heads": 2, "head_dim": 16, "chunk_size": 16}


def config(**changes: object) -> ModelConfig:
    base = {
        "layout": "hybrid",
        "mixer": "gdn2",
        "mixer_options": DELTA,
        "attention_options": {"heads": 2, "window": 6},
        "d_model": 32,
        "mlp_widths": [32, 64, 32, 32],
        "vocab_size": 50,
    }
    return ModelConfig(**(base | changes))


def test_a_hybrid_alternates_the_mixer_with_sliding_window_attention() -> None:
    model = build_model(config(), seed=0)
    names = [type(block.mixer).__name__ for block in model.blocks]
    assert names == ["GatedDeltaNet2", "Attention", "GatedDeltaNet2", "Attention"]
    assert [block.mixer.config.window for block in model.blocks[1::2]] == [6, 6]
    assert [block.mlp.down_proj.in_features for block in model.blocks] == [32, 64, 32, 32]


@pytest.mark.parametrize("tie", [False, True])
def test_a_text_read_whole_in_pieces_and_packed_gives_the_same_logits(tie: bool) -> None:
    model = build_model(config(tie_embeddings=tie), seed=0).double()
    tokens = torch.randint(0, 50, (1, 24))
    whole, _ = model(tokens)
    head, state = model(tokens[:, :10], return_state=True)
    tail, _ = model(tokens[:, 10:], state)
    # In float64, sums in a different order differ by about 1e-15.
    torch.testing.assert_close(torch.cat([head, tail], 1), whole, rtol=1e-9, atol=1e-11)
    other = torch.randint(0, 50, (1, 7))
    packed, _ = model(torch.cat([tokens, other], 1), cu_seqlens=torch.tensor([0, 24, 31]))
    torch.testing.assert_close(packed[:, :24], whole, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(packed[:, 24:], model(other)[0], rtol=1e-9, atol=1e-11)


def test_initialisation_follows_the_recipe_and_depends_on_the_seed_alone() -> None:
    torch.rand(7)
    first = build_model(config(d_model=256, mlp_widths=[256, 256], mixer_options=DELTA | {"heads": 8}), seed=3)
    torch.rand(1)
    second = build_model(config(d_model=256, mlp_widths=[256, 256], mixer_options=DELTA | {"heads": 8}), seed=3)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    mlp = first.blocks[0].mlp.gate_proj.weight
    bound = 2**-2.5 * (6 / 512) ** 0.5  # Xavier uniform: gain · √(6 / (fan in + fan out))
    assert mlp.abs().max() <= bound and mlp.abs().max() > 0.99 * bound
    assert abs(first.embedding.weight.std() - 0.02) < 0.001
    assert torch.equal(first.blocks[0].mixer.g_proj[1].bias, torch.zeros(8 * 16))


def test_cost_counts_the_parameters_and_three_forward_passes_per_training_token() -> None:
    for tie in (False, True):
        model = LanguageModel(config(tie_embeddings=tie))
        cost = model.cost(64)
        assert cost.embedding_params == 50 * 32 * (1 if tie else 2)
        assert cost.non_embedding_params + cost.embedding_params == sum(p.numel() for p in model.parameters())
        assert cost.state_floats_per_layer == 2 * 16 * 16
        # Every matrix weight is used once per token, with 2 operations forward and 4 backward; mixers add to that.
        matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
        assert 6 * matrices < cost.flops_per_token < 6 * matrices * 1.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_widths": [32, 32, 32]}, "mlp_widths: a hybrid alternates two kinds of block"),
        ({"layout": "attention"}, "layout: 'attention' does not go with mixer 'gdn2'"),
    ],
)
def test_a_contradictory_configuration_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
