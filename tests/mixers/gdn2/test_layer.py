"""The GDN-2 layer and a model of it: the same function through the Triton kernels and through torch."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mixers import build_mixer
from mixers.gdn2 import gated_delta_rule_2
from mixers.interface import Mixer
from tests.mixers.gdn2.cases import DEVICE, GRADIENT
from tests.mixers.interpreter import upstream_kernels

KDA = {"erase_gate": "head", "write_gate": "tied", "output_gate": "sigmoid"}
GATED_DELTANET = {
    "initial_rate_min": 0,
    "output_gate_projection": "full",
    "decay": "head",
    "erase_gate": "head",
    "write_gate": "tied",
}
GEOMETRY = {"heads": 2, "head_dim": 8, "value_dim": 12}
"""The tests run with one value head per key head: with more, the gates of the other two mixers are per value head."""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"erase_range": 2},
        {"decay": "head", "erase_gate": "scalar", "write_gate": "scalar"},
        {"erase_gate": "head", "write_gate": "tied"},
        {"lower_bound": -5},
    ],
)
def test_the_layer_computes_the_same_through_the_kernels(options: dict) -> None:
    mixer = build_mixer("gdn2", 24, {"heads": 1, "head_dim": 16, "value_heads": 2} | options).to(DEVICE)
    x = torch.randn(1, 21, 24, device=DEVICE)
    results = {}
    for backend in ("torch", "triton"):
        mixer.backend = backend
        mixer.zero_grad()
        with upstream_kernels():  # the layer's convolutions and norms are fla's
            y, state = mixer(x, return_state=True)
            y.square().sum().backward()
            with torch.no_grad():
                step, _ = mixer(x[:, :1], state, return_state=True)
        results[backend] = [y, state["recurrent"], step, *(p.grad for p in mixer.parameters())]
    for a, b in zip(results["triton"], results["torch"], strict=True):
        assert ((a - b).norm() / b.norm().clamp_min(1e-30)).item() < GRADIENT


@pytest.mark.long
def test_a_model_trains_alike_through_the_kernels_and_through_torch() -> None:
    from harness.experiments.load import load_experiment
    from harness.model.language_model import LanguageModel
    from slurm.plan import plan

    config = next(w.config for w in plan(load_experiment("demo"), Path("runs")) if w.config.mixer == "gdn2")
    tokens = torch.randint(config.model.vocab_size, (3, 1, 49), device=DEVICE)
    curves = {}
    for backend in ("torch", "triton"):
        torch.manual_seed(0)
        model = LanguageModel(config.model).to(DEVICE)
        for block in model.blocks:
            block.mixer.backend = backend
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        curves[backend] = []
        for batch in tokens:
            with upstream_kernels():  # the layer's convolutions and norms are fla's
                logits, _ = model(batch[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            curves[backend].append(loss.item())
    assert curves["triton"] == pytest.approx(curves["torch"], rel=1e-5)
    assert curves["triton"][0] != curves["triton"][-1]


@pytest.mark.parametrize("gate", ["erase_gate", "write_gate"])
def test_a_scalar_gate_depends_on_the_mean_of_its_channels_alone(gate: str) -> None:
    options = {"heads": 2, "head_dim": 8}
    channel, scalar = build_mixer("gdn2", 16, options), build_mixer("gdn2", 16, options | {gate: "scalar"})
    scalar.load_state_dict(channel.state_dict())
    x = torch.randn(1, 20, 16)
    assert not torch.allclose(channel(x)[0], scalar(x)[0])
    proj = "b_proj" if gate == "erase_gate" else "w_proj"
    with torch.no_grad():  # equal rows give each head's channels equal gates, and a mean changes nothing
        for m in (channel, scalar):
            weight = getattr(m, proj).weight.unflatten(0, (2, 8))
            weight.copy_(weight[:, :1].expand_as(weight).clone())
    torch.testing.assert_close(channel(x)[0], scalar(x)[0])


def test_the_output_gate_is_silu_unless_a_sigmoid_is_asked_for() -> None:
    options = {"heads": 1, "head_dim": 8}
    silu, sigmoid = build_mixer("gdn2", 16, options), build_mixer("gdn2", 16, options | {"output_gate": "sigmoid"})
    sigmoid.load_state_dict(silu.state_dict())
    with torch.no_grad():  # a gate of 0 closes SiLU and leaves half of a sigmoid
        for m in (silu, sigmoid):
            m.g_proj[1].weight.zero_()
            m.g_proj[1].bias.zero_()
    x = torch.randn(1, 5, 16)
    assert silu(x)[0].abs().max() == 0 < sigmoid(x)[0].abs().max()


def seeded(name: str, options: dict) -> Mixer:
    torch.manual_seed(0)
    return build_mixer(name, 16, GEOMETRY | options)


def gradients(mixer: Mixer, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    y.square().sum().backward()
    return {"x": x.grad} | {name: p.grad for name, p in mixer.named_parameters()}


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("gated_deltanet", {}, GATED_DELTANET),
        ("gated_deltanet", {"output_gate": "sigmoid"}, GATED_DELTANET | {"output_gate": "sigmoid"}),
        ("gated_deltanet", {"beta_range": 2}, GATED_DELTANET | {"erase_range": 2}),
        ("kda", {}, KDA),
        ("kda", {"beta_range": 2}, KDA | {"erase_range": 2}),
    ],
)
def test_with_every_change_undone_it_is_the_other_mixer_bit_for_bit(name: str, theirs: dict, ours: dict) -> None:
    one, other = seeded("gdn2", ours), seeded(name, theirs)
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
    assert one.cost(64) == other.cost(64)
    results = []
    for mixer in (one, other):
        x = torch.randn(2, 37, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        first, state = mixer(x[:, :21], return_state=True)
        y, after = mixer(x[:, 21:], state, return_state=True)
        step, _ = mixer(x[:, :1].detach(), after, return_state=True)
        found = {"first": first, "y": y, **after} | gradients(mixer, x, torch.cat([first, y], 1))
        results.append((found, step))
    (found, step), (wanted, expected) = results
    assert {key for key in wanted if not torch.equal(found[key], wanted[key])} == set()
    # A single token follows the recurrence, w v - Sᵀ(b k) here and β (v - Sᵀk) there: fp32 rounds them differently.
    torch.testing.assert_close(step, expected, rtol=1e-5, atol=1e-6)


def test_without_options_it_computes_as_it_did_before_it_had_them() -> None:
    mixer = seeded("gdn2", {})

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            conv(projection(x))[0].unflatten(-1, (2, -1))
            for conv, projection in (
                (mixer.q_conv1d, mixer.q_proj),
                (mixer.k_conv1d, mixer.k_proj),
                (mixer.v_conv1d, mixer.v_proj),
            )
        )
        gates = (projection(x).unflatten(-1, (2, -1)) for projection in (mixer.f_proj, mixer.b_proj, mixer.w_proj))
        activation = {"A_log": mixer.A_log, "dt_bias": mixer.dt_bias}
        o, _ = gated_delta_rule_2(q, k, v, *gates, **activation, use_qk_l2norm=True, backend="chunked")
        return mixer.o_proj(mixer.o_norm(o, mixer.g_proj(x).unflatten(-1, (2, -1))).flatten(-2))

    results = []
    for run in (by_hand, lambda x: mixer(x)[0]):
        mixer.zero_grad()
        x = torch.randn(2, 37, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = run(x)
        results.append({"y": y} | gradients(mixer, x, y))
    # Bits of the gradient of x depend on the order of the projections. Stored runs resume with it.
    assert {key for key, value in results[0].items() if not torch.equal(value, results[1][key])} == set()


CHANGES = [
    {"initial_rate_min": 0},
    {"output_gate_projection": "full"},
    {"output_gate": "sigmoid"},
    {"decay": "head"},
    {"erase_gate": "head"},
    {"write_gate": "head"},
    {"erase_gate": "head", "write_gate": "head"},
    {"erase_gate": "head", "write_gate": "tied"},
    {"erase_gate": "scalar", "write_gate": "head"},
    {"erase_range": 2},
    GATED_DELTANET,
    KDA,
]


@pytest.mark.parametrize("options", CHANGES, ids=str)
def test_each_option_changes_the_function_and_has_gradients_for_all_its_parameters(options: dict) -> None:
    mixer = seeded("gdn2", options | {"value_heads": 4})
    x = torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y, _ = mixer(x)
    assert not torch.allclose(y, seeded("gdn2", {"value_heads": 4})(x)[0], atol=1e-3)
    assert all(grad.abs().max() > 0 for grad in gradients(mixer, x, y).values())
    assert mixer.cost(20).parameters == sum(p.numel() for p in mixer.parameters())


def test_initial_rates_start_at_one_or_at_zero() -> None:
    options = {"heads": 2000, "head_dim": 1}
    rates = {low: build_mixer("gdn2", 8, options | {"initial_rate_min": low}).A_log.exp() for low in (0, 1)}
    assert 1 <= rates[1].min() < 1.1 and 0 < rates[0].min() < 0.1 and min(r.max() for r in rates.values()) > 15.9


@pytest.mark.parametrize("erase_gate", ["channel", "scalar"])
def test_a_tied_write_gate_needs_one_erase_gate_per_head(erase_gate: str) -> None:
    with pytest.raises(ValueError, match=f"gdn2: write_gate: 'tied' .* erase_gate is '{erase_gate}'; set erase_gate: "):
        build_mixer("gdn2", 16, GEOMETRY | {"erase_gate": erase_gate, "write_gate": "tied"})
