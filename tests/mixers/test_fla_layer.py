"""Layers of flash-linear-attention as mixers. Their kernels run under Triton's interpreter, on a CPU."""

import pytest
import torch

from harness.experiments.matching import matched_config, meta_model, target_parameters
from harness.model.language_model import ModelConfig, build_model
from mixers import build_mixer
from mixers.fla_layer import KNOWN
from mixers.interface import Mixer, index_state
from mixers.registry import get
from tests.mixers.interpreter import upstream_kernels

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="the interpreter is for CPUs; kernels are compiled or interpreted, not both"
    ),
]

D = 32
HEADS = {"num_heads": 2, "head_dim": 16}
OPTIONS = {
    "Comba": HEADS | {"expand_v": 1},
    "DeltaNet": {"num_heads": 2},
    "GatedDeltaNet": HEADS | {"expand_v": 1},
    "GatedDeltaProduct": HEADS | {"expand_v": 1},
    "GatedLinearAttention": {"num_heads": 2},
    "GatedSlotAttention": {"num_heads": 2, "num_slots": 8},
    "HGRN2Attention": {"expand_ratio": 16},
    "HGRNAttention": {},
    "KimiDeltaAttention": HEADS,
    "LinearAttention": {"num_heads": 2},
    "Mamba": {"state_size": 8, "intermediate_size": 48, "dt_rank": 4},
    "Mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "expand": 2},
    "MesaNet": HEADS,
    "MultiScaleRetention": {"num_heads": 2},
    "RWKV6Attention": {"num_heads": 2},
    "RWKV7Attention": {"head_dim": 16},
}
every_layer = pytest.mark.parametrize("layer", OPTIONS)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # fp32, sums in other orders


def mixer(layer: str, **more: object) -> Mixer:
    torch.manual_seed(3)
    built = build_mixer(f"fla:{layer}", D, OPTIONS[layer] | more)
    with torch.no_grad():
        for parameter in built.parameters():
            if not parameter.any():  # some start at zero, which hides much of a layer
                parameter.normal_(0, 0.1)
    return built.eval()


def close(layer: str) -> dict[str, float]:
    # MesaNet rounds q and k to fp16 in chunks but not in single steps: 2^-11 each, and a solver amplifies it.
    return {"rtol": 5e-3, "atol": 1e-2} if layer == "MesaNet" else CLOSE


def test_every_layer_whose_costs_are_known_is_tested() -> None:
    assert set(OPTIONS) == set(KNOWN)


@every_layer
def test_every_parameter_gets_a_finite_gradient(layer: str) -> None:
    built = mixer(layer).train()
    x = torch.randn(1, 6, D)
    if layer == "GatedDeltaProduct":  # its chunked kernels take no fp32
        built, x = built.half(), x.half()
    with upstream_kernels():
        built(x)[0].float().square().sum().backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@every_layer
@torch.no_grad()
def test_whole_equals_pieces_equals_token_by_token_and_a_state_is_left_as_it_was(layer: str) -> None:
    built, x = mixer(layer), torch.randn(2, 9, D)
    with upstream_kernels():
        whole, final = built(x, return_state=True)
        for cuts in ([0, 4, 5, 9], list(range(10))):
            state, outputs = None, []
            for a, b in zip(cuts, cuts[1:], strict=False):
                start, copy = state, None if state is None else {key: value.clone() for key, value in state.items()}
                y, state = built(x[:, a:b], start, return_state=True)
                outputs.append(y)
                assert start is None or all(torch.equal(start[key], value) for key, value in copy.items())
            torch.testing.assert_close(torch.cat(outputs, 1), whole, **close(layer))
            assert state.keys() == final.keys() and state["length"].tolist() == [9, 9]
            for key, value in final.items():
                torch.testing.assert_close(state[key], value, **close(layer))


# The excluded layers have only one form, or show both forms within twelve tokens.
@pytest.mark.parametrize("layer", sorted(set(OPTIONS) - {"Mamba", "Mamba2", "MesaNet"}))
@torch.no_grad()
def test_chunks_and_single_steps_share_a_state(layer: str) -> None:
    built, x = mixer(layer), torch.randn(1, 66, D)  # fla's layers run up to 64 tokens step by step
    # Chunks multiply and divide by products of decays, which costs some bits against single steps.
    loose = {"rtol": 1e-3, "atol": 1e-4}
    if KNOWN[layer].no_fp32:
        built, x, loose = built.half(), x.half(), {"rtol": 1e-2, "atol": 5e-3}  # 2^-11 per rounding
    with upstream_kernels():
        whole, final = built(x, return_state=True)
        first, state = built(x[:, :20], return_state=True)
        second, state = built(x[:, 20:], state, return_state=True)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, **loose)
    for key, value in final.items():
        torch.testing.assert_close(state[key], value, **loose)


@every_layer
@torch.no_grad()
def test_packed_equals_separate_and_states_can_be_joined_and_reordered(layer: str) -> None:
    built, x, step = mixer(layer), torch.randn(1, 12, D), torch.randn(2, 1, D)
    offsets = torch.tensor([0, 5, 12])
    with upstream_kernels():
        native, _ = built(x, cu_seqlens=offsets)
        grouped, after = built(x, cu_seqlens=offsets, return_state=True)
        first, short = built(x[:, :5], return_state=True)
        second, long = built(x[:, 5:], return_state=True)
        for y in (native, grouped):
            torch.testing.assert_close(y, torch.cat([first, second], 1), **CLOSE)
        # Rows that have seen 5 and 7 tokens, in one batch and in reversed order.
        y, _ = built(step, after)
        torch.testing.assert_close(y[:1], built(step[:1], short)[0], **CLOSE)
        torch.testing.assert_close(y[1:], built(step[1:], long)[0], **CLOSE)
        again, state = built(step[[1, 0, 1]], index_state(after, [1, 0, 1]), return_state=True)
        torch.testing.assert_close(again, y[[1, 0, 1]], **CLOSE)
        assert state["length"].tolist() == [8, 6, 8]


@every_layer
@torch.no_grad()
def test_cost_counts_what_exists_on_the_meta_device_too(layer: str) -> None:
    built = mixer(layer)
    with upstream_kernels():
        _, state = built(torch.randn(1, 4, D), return_state=True)
    cost = built.cost(64)
    carried = {key: value.numel() for key, value in state.items() if key != "length"}
    recurrent = sum(count for key, count in carried.items() if key.startswith("recurrent_state"))
    assert cost.state_floats == recurrent
    assert cost.decode_bytes == 2 * (4 * recurrent + 2 * (sum(carried.values()) - recurrent))
    assert cost.parameters == sum(p.numel() for p in built.parameters())
    with torch.device("meta"):
        assert build_mixer(f"fla:{layer}", D, OPTIONS[layer]).cost(64) == cost


@torch.no_grad()
def test_a_layer_that_this_module_does_not_know_is_cached_and_grouped_all_the_same() -> None:
    built = build_mixer("fla:YOCOGatedRetention", D, {"num_heads": 2, "state_floats": 512, "flops_per_state": 5})
    x, step = torch.randn(1, 12, D), torch.randn(2, 1, D)
    with upstream_kernels():
        _, after = built(x, cu_seqlens=torch.tensor([0, 5, 12]), return_state=True)
        y, _ = built(step, after)
        for row, part in enumerate((x[:, :5], x[:, 5:])):
            whole, _ = built(torch.cat([part, step[row : row + 1]], 1))
            torch.testing.assert_close(y[row : row + 1], whole[:, -1:], **CLOSE)
    assert built.cost(64).state_floats == 512 == after["recurrent_state"][0].numel()


@pytest.mark.parametrize(("features", "norm"), [("hedgehog", False), ("dpfp", False), ("elu", True)])
@torch.no_grad()
def test_linear_attention_carries_the_features_of_its_map_and_its_denominator(features: str, norm: bool) -> None:
    built, x = mixer("LinearAttention", feature_map=features, do_feature_map_norm=norm), torch.randn(1, 8, D)
    with upstream_kernels():
        whole, final = built(x, return_state=True)
        first, state = built(x[:, :5], return_state=True)
        second, _ = built(x[:, 5:], state, return_state=True)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, **CLOSE)
    assert built.cost(64).state_floats == sum(value.numel() for key, value in final.items() if key != "length")


@pytest.mark.parametrize(
    ("layer", "name", "options"),
    [
        ("GatedDeltaNet", "gated_deltanet", {"heads": 2, "head_dim": 16}),
        ("KimiDeltaAttention", "kda", {"heads": 2, "head_dim": 16}),
        ("Mamba2", "mamba2", {"d_inner": 64, "head_dim": 16, "d_state": 8}),
    ],
)
@torch.no_grad()
def test_where_a_layer_is_built_in_too_both_agree_on_the_same_weights(layer: str, name: str, options: dict) -> None:
    theirs, ours = mixer(layer), build_mixer(name, D, options)
    ours.load_state_dict({key.removeprefix("layer."): value for key, value in theirs.state_dict().items()})
    x = torch.randn(2, 20, D)
    with upstream_kernels():
        torch.testing.assert_close(theirs(x)[0], ours(x)[0], rtol=1e-3, atol=1e-4)
    assert theirs.cost(64).flops_per_token == ours.cost(64).flops_per_token
    assert theirs.cost(64).state_floats == ours.cost(64).state_floats


def test_a_matched_model_trains_and_decodes() -> None:
    config = matched_config("cpu-600k", "recurrent", "fla:DeltaNet", {"num_heads": 2})
    assert abs(meta_model(config).cost(256).non_embedding_params / target_parameters("cpu-600k") - 1) <= 0.005
    model = build_model(config, seed=0)
    tokens = torch.randint(config.vocab_size, (1, 7))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    with upstream_kernels():
        for _ in range(2):
            logits, _ = model(tokens[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[1] < losses[0]
        model.eval()
        with torch.no_grad():
            whole, _ = model(tokens)
            state, decoded = None, []
            for t in range(7):
                logits, state = model(tokens[:, t : t + 1], state, return_state=True)
                decoded.append(logits)
        torch.testing.assert_close(torch.cat(decoded, 1), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "fla:DeltaNat",
            {},
            r"unknown name 'fla:DeltaNat'; layers of flash-linear-attention: Comba, .*DeltaNet",
        ),
        ("fla:DeltaNet", {"heads": 2}, r"fla:DeltaNet.heads: .*\(got 2\); options: state_floats, .*num_heads"),
        ("fla:DeltaNet", {"hidden_size": 64}, r"fla:DeltaNet.hidden_size: unknown field"),
        ("fla:DeltaNet", {"num_heads": 5}, r"fla:DeltaNet: the layer refuses width 32 .*'num_heads': 5.*divisible"),
        ("fla:ForgettingAttention", {}, r"'fla:ForgettingAttention' is softmax attention.*use `attention`"),
        ("fla:BasedLinearAttention", {}, r"has no cache in fla"),
    ],
)
def test_what_cannot_be_a_mixer_is_refused_by_name(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_mixer(name, D, options)


def test_a_layer_of_unknown_cost_says_which_options_supply_it() -> None:
    built = build_mixer("fla:YOCOGatedRetention", D, {"num_heads": 2})
    with pytest.raises(ValueError, match=r"fla:YOCOGatedRetention.state_floats, flops_per_state: .*not known; give"):
        built.cost(64)


def test_without_a_gpu_or_without_fla_the_error_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    built = mixer("DeltaNet")
    built.backend = "torch"
    with pytest.raises(ValueError, match="backend: fla:DeltaNet has no form 'torch'; known: auto, fla"):
        built(torch.zeros(1, 4, D))
    built.backend = "auto"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="fla:DeltaNet: flash-linear-attention's layers need a CUDA device, not cpu"):
        built(torch.zeros(1, 4, D))
    monkeypatch.setattr("mixers.fla_layer.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="'fla:Mamba9' needs flash-linear-attention; pip install"):
        get("fla:Mamba9")


@torch.no_grad()
def test_layers_whose_chunked_kernels_take_no_fp32_are_evaluated_in_it_step_by_step() -> None:
    built, x = mixer("DeltaNet"), torch.randn(1, 66, D)
    with upstream_kernels():
        whole, _ = built(x)
        first, state = built(x[:, :33], return_state=True)
        torch.testing.assert_close(torch.cat([first, built(x[:, 33:], state)[0]], 1), whole, **CLOSE)
    assert built.layer.mode == "fused_recurrent"


def test_a_model_keeps_the_biases_in_which_a_layers_gates_start() -> None:
    config = ModelConfig(
        layout="recurrent", mixer="fla:RWKV7Attention", mixer_options={"head_dim": 16}, d_model=D, mlp_widths=[32],
        vocab_size=64,
    )  # fmt: skip
    torch.manual_seed(0)
    layer = build_mixer("fla:RWKV7Attention", D, {"head_dim": 16})
    started = {name: p for name, p in layer.named_parameters() if name.endswith("bias")}
    built = dict(build_model(config, 0).blocks[0].mixer.named_parameters())
    decays = [name for name, p in started.items() if p.abs().max() > 0.1]
    assert decays
    for name in decays:
        assert built[name].abs().max() > 0.1, name
