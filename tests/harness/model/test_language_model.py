"""The language model: its layouts, its state, its initialisation and its cost."""

import pytest
import torch

from harness.model.language_model import LINEAR_GAIN, InitGain, LanguageModel, ModelConfig, build_model
from mixers.conformance import SMALL

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


BARE = {"leading_conv": 3, "mlp_widths": [0, 32, 32, 0]}


def test_a_block_of_width_0_has_no_mlp_and_a_conv_width_puts_a_convolution_first() -> None:
    model = build_model(config(**BARE), seed=0)
    assert [block.mlp is None for block in model.blocks] == [True, False, False, True]
    assert [block.mlp_norm is None for block in model.blocks] == [True, False, False, True]
    block, x = model.blocks[0], torch.randn(2, 9, 32)
    convolved = x + block.conv(block.conv_norm(x))[0]
    y, _ = block(x, None, None, False)
    torch.testing.assert_close(y, convolved + block.mixer(block.mixer_norm(convolved))[0])


@pytest.mark.parametrize("mixer", SMALL)
def test_with_convolutions_and_without_mlps_all_ways_of_reading_give_the_same_logits(mixer: str) -> None:
    layout = "attention" if mixer == "attention" else "hybrid"
    model = build_model(config(mixer=mixer, mixer_options=SMALL[mixer], layout=layout, d_model=64, **BARE), 0).double()
    torch.manual_seed(0)
    first, second = torch.randint(0, 50, (1, 24)), torch.randint(0, 50, (1, 7))
    close = {"rtol": 1e-9, "atol": 1e-11}  # float64, sums in another order
    with torch.no_grad():
        whole, other = model(first)[0], model(second)[0]
        packed, ends = model(torch.cat([first, second], 1), None, torch.tensor([0, 24, 31]), True)
        torch.testing.assert_close(packed, torch.cat([whole, other], 1), **close)
        state, logits = None, []
        for token in first[0, :20]:
            y, state = model(token.view(1, 1), state, return_state=True)
            logits.append(y)
        torch.testing.assert_close(torch.cat(logits, 1), whole[:, :20], **close)
        torch.testing.assert_close(model(first[:, 20:], state)[0], whole[:, 20:], **close)
        # States of different lengths are joined, reordered and resumed, packed and not.
        apart = [model(tokens, return_state=True)[1] for tokens in (first, second)]
        joined = model.index_state(model.cat_states(apart), [1, 0])
        after = torch.cat([model(torch.cat([t, second], 1))[0][:, -7:] for t in (second, first)])
        torch.testing.assert_close(model(second.repeat(2, 1), joined)[0], after, **close)
        resumed = model(torch.cat([second, second], 1), ends, torch.tensor([0, 7, 14]))[0]
        torch.testing.assert_close(resumed.view(2, 7, -1), after.flip(0), **close)
        hidden = model.hidden(first, wanted=torch.tensor([3, 23]))[0]
        torch.testing.assert_close(model.head(hidden), whole[0, [3, 23]], **close)


@pytest.mark.parametrize("gain", [LINEAR_GAIN, 0.7, "upstream"])
@pytest.mark.parametrize("mixer", SMALL)
def test_linear_layers_start_as_the_gain_says(mixer: str, gain: InitGain) -> None:
    layout = "attention" if mixer == "attention" else "recurrent"
    shape = config(mixer=mixer, mixer_options=SMALL[mixer], layout=layout, d_model=64, mlp_widths=[96, 96])
    model = build_model(shape, 0, gain)
    linear = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert len(linear) > 8
    for name, module in linear.items():
        out, into = module.weight.shape
        variance = 1 / (3 * into) if gain == "upstream" else gain**2 * 2 / (into + out)
        # The deviation of n uniform numbers scatters by 0.45/√n of itself; four times that is no chance.
        assert module.weight.std().item() == pytest.approx(variance**0.5, rel=1.8 * module.weight.numel() ** -0.5), name
        if module.bias is not None:
            assert bool(module.bias.any()) == (gain == "upstream"), name
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)


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


def test_cost_counts_convolutions_and_leaves_out_absent_mlps() -> None:
    plain, bare = (LanguageModel(config(**changes)).cost(64) for changes in ({"mlp_widths": [32] * 4}, BARE))
    mlps, convolutions = 2 * 3 * 32 * 32, 4 * 3 * 32
    # Norms: two MLPs' fewer, four convolutions' more. They cost no FLOPs.
    assert bare.non_embedding_params - plain.non_embedding_params == convolutions - mlps + 2 * 32
    assert bare.flops_per_token - plain.flops_per_token == 6 * (convolutions - mlps)
    assert bare.state_floats_per_layer == plain.state_floats_per_layer


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
