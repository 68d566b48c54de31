"""The GDN-2 layer and a model of it: the same function through the Triton kernels and through torch."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mixers import build_mixer
from tests.mixers.gdn2.cases import DEVICE, GRADIENT
from tests.mixers.interpreter import upstream_kernels


@pytest.mark.parametrize(
    "options", [{}, {"erase_range": 2}, {"erase_gate": "scalar"}, {"erase_gate": "scalar", "write_gate": "scalar"}]
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
