"""The Triton kernels of GDN-2 against the float64 recurrence: on a GPU, or on a CPU under Triton's interpreter."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mixers import build_mixer
from mixers.gated_deltanet import gated_delta_rule
from mixers.gdn2 import gated_delta_rule_2
from mixers.gdn2.kernels.launch import recording
from mixers.kda import kimi_delta_rule
from tests.mixers.gdn2.cases import DECAYS, errors, evaluate, inputs, worst
from tests.mixers.interpreter import upstream_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DEVICE_RUNS = Path("runs")
# fp32 rounds at 6e-8, and a chunk adds and multiplies a few hundred times, in trees rather than in a row: measured 2e-7
# for outputs and 4e-7 for gradients. Ten times that is still far below what a clamp or a difference of sums costs.
OUTPUT, GRADIENT = 2e-6, 1e-5
# 16-bit inputs go through about five roundings in a row to an output and ten to a gradient. Triton's interpreter cuts
# off where hardware rounds, which doubles each: 2 and 4 of the dtype's steps.
OUTPUT_STEPS, GRADIENT_STEPS = 2, 4


def within_fp32(found: dict[str, float]) -> None:
    output, gradient = worst(found)
    assert output < OUTPUT, found
    assert gradient < GRADIENT, found


@pytest.mark.parametrize("decay", DECAYS)
def test_every_output_and_gradient_is_exact_at_any_decay(decay: str) -> None:
    within_fp32(errors(inputs(80, decay=decay, device=DEVICE)))


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_cost_their_own_rounding_and_no_more(decay: str, dtype: torch.dtype) -> None:
    # Behind a step of -50 the initial state's gradient is 1e-22, which fp16 does not have.
    found = errors(inputs(70, K=16, V=16, decay=decay, dtype=dtype, device=DEVICE), torch.finfo(dtype).smallest_normal)
    output, gradient = worst(found)
    assert output < OUTPUT_STEPS * torch.finfo(dtype).eps, found
    assert gradient < GRADIENT_STEPS * torch.finfo(dtype).eps, found


@pytest.mark.parametrize(
    "steps,chunk_size", [(1, 64), (2, 16), (15, 64), (16, 16), (17, 64), (33, 32), (64, 64), (65, 64), (130, 32)]
)
def test_any_length_and_chunk_size(steps: int, chunk_size: int) -> None:
    within_fp32(errors(inputs(steps, value_heads=1, K=16, V=16, decay="brutal", device=DEVICE), chunk_size=chunk_size))


@pytest.mark.parametrize(
    "batch,heads,value_heads,K,V",
    [(2, 2, 2, 16, 16), (2, 1, 3, 20, 24), (1, 2, 4, 80, 40), (1, 1, 1, 256, 16), (1, 1, 1, 16, 256)],
)
def test_any_head_shape_and_grouping(batch: int, heads: int, value_heads: int, K: int, V: int) -> None:
    x = inputs(21, batch=batch, heads=heads, value_heads=value_heads, K=K, V=V, device=DEVICE)
    within_fp32(errors(x, chunk_size=16))


@pytest.mark.parametrize("chunk_size", [16, 64])
def test_packed_sequences_see_nothing_of_each_other(chunk_size: int) -> None:
    # Of one token, shorter than a chunk, just over one, and with a border inside every chunk of the whole.
    offsets = torch.tensor([0, 1, 18, 35, 100], device=DEVICE)
    x = inputs(100, sequences=4, K=16, V=16, decay="brutal", device=DEVICE)
    within_fp32(errors(x, cu_seqlens=offsets, chunk_size=chunk_size))


@pytest.mark.parametrize("K,steps", [(16, 20), (48, 70)])
def test_normalisation_and_activations_inside(K: int, steps: int) -> None:
    x = inputs(steps, heads=2, value_heads=2, K=K, V=16, device=DEVICE, unit=False)
    x["g"], x["b"], x["w"] = x["g"] * 3 + 2, x["b"] * 8 - 4, x["w"] * 8 - 4  # as projections may be
    x["A_log"] = torch.tensor([0.1, 2.5], device=DEVICE)
    x["dt_bias"] = torch.linspace(-7, 1, 2 * K, device=DEVICE)
    found = errors(x, use_qk_l2norm=True, erase_range=2.0)
    assert {"d_A_log", "d_dt_bias"} <= set(found)
    within_fp32(found)


def test_a_scale_of_ones_choice_and_no_gradient_where_none_is_asked() -> None:
    x = inputs(20, value_heads=1, K=16, V=16, device=DEVICE)
    within_fp32(errors(x, scale=-3.0, use_qk_l2norm=True))
    q = x["q"].requires_grad_()
    o, state = gated_delta_rule_2(**x, output_final_state=True, backend="triton")
    state.sum().backward()  # o has no part in it
    assert torch.isfinite(q.grad).all()
    assert q.grad.abs().max() == 0  # a state does not depend on who reads it
    assert x["k"].grad is None


def test_the_same_bits_every_time() -> None:
    x = inputs(70, K=16, V=16, device=DEVICE)
    first, second = (evaluate(x, backend="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_inputs_of_different_dtypes_and_strides() -> None:
    x = inputs(20, value_heads=1, K=16, V=16, device=DEVICE)
    x["q"] = x["q"].bfloat16()
    x["v"] = x["v"].transpose(1, 3).contiguous().transpose(1, 3)
    found = errors(x)
    assert max(error for name, error in found.items() if name != "d_q") < GRADIENT
    assert found["d_q"] < torch.finfo(torch.bfloat16).eps  # rounded once, on the way out


@pytest.mark.parametrize("decay", DECAYS)
def test_decoding_is_exact_and_goes_on_where_it_stopped(decay: str) -> None:
    x = inputs(7, batch=3, heads=2, value_heads=4, K=20, V=40, decay=decay, device=DEVICE)
    exact, last = gated_delta_rule_2(
        **{name: t.double() for name, t in x.items()}, output_final_state=True, backend="recurrent"
    )
    state = x.pop("initial_state")
    outputs = []
    with torch.no_grad():
        for span in (slice(0, 3), slice(3, 4), slice(4, 7)):
            piece = {name: t[:, span] for name, t in x.items()}
            o, state = gated_delta_rule_2(**piece, initial_state=state, output_final_state=True, backend="triton")
            outputs.append(o)
    assert ((torch.cat(outputs, 1) - exact).norm() / exact.norm()).item() < OUTPUT
    assert ((state - last).norm() / last.norm()).item() < OUTPUT


def test_decoding_packed_with_activations_equals_the_chunks() -> None:
    x = inputs(12, sequences=3, K=16, V=16, device=DEVICE, unit=False)
    x |= {"A_log": torch.tensor([0.5], device=DEVICE), "dt_bias": torch.linspace(-3, 1, 16, device=DEVICE)}
    options = dict(cu_seqlens=torch.tensor([0, 1, 9, 12], device=DEVICE), use_qk_l2norm=True, output_final_state=True)
    with torch.no_grad():
        o, state = gated_delta_rule_2(**x, **options, backend="triton")
    chunks, left = gated_delta_rule_2(**x | {"q": x["q"].requires_grad_()}, **options, backend="triton")
    assert ((o - chunks).norm() / chunks.norm()).item() < OUTPUT
    assert ((state - left).norm() / left.norm()).item() < OUTPUT


@pytest.mark.parametrize("steps", [1, 40])
def test_a_state_is_updated_in_place_only_when_asked(steps: int) -> None:
    x = inputs(steps, K=16, V=16, device=DEVICE)
    before = x["initial_state"].clone()
    with torch.no_grad():
        _, fresh = gated_delta_rule_2(**x, output_final_state=True, backend="triton")
        assert torch.equal(x["initial_state"], before)
        _, same = gated_delta_rule_2(**x, output_final_state=True, update_state=True, backend="triton")
    assert same is x["initial_state"]
    assert torch.equal(same, fresh)


def test_one_launch_a_decoding_step_and_four_a_training_step() -> None:
    x = {name: t.to("meta") for name, t in inputs(1, batch=8, K=16, V=16).items()}
    with recording() as launches, torch.no_grad():
        gated_delta_rule_2(**x, output_final_state=True, backend="triton")
    assert [launch.kernel.name for launch in launches] == ["recurrent_steps"]
    x = {name: t.to("meta").requires_grad_() for name, t in inputs(100, batch=8, K=16, V=16).items()}
    with recording() as launches:
        o, _ = gated_delta_rule_2(**x, backend="triton")
        o.backward(torch.empty_like(o))
    names = [launch.kernel.name for launch in launches]
    assert names == ["intra_chunk", "scan_forward", "scan_backward", "chunk_gradients"]


def test_with_one_gate_it_is_kda_and_with_one_decay_gated_deltanet() -> None:
    x = inputs(70, heads=2, value_heads=2, K=16, V=16, device=DEVICE)
    beta = torch.rand(1, 70, 2, device=DEVICE)
    tied = x | {"b": beta[..., None].expand_as(x["b"]), "w": beta[..., None].expand_as(x["w"])}
    q, k, v, state = (x[name].double() for name in ("q", "k", "v", "initial_state"))
    o, _ = gated_delta_rule_2(**{n: t.requires_grad_() for n, t in tied.items()}, backend="triton")
    o_kda, _ = kimi_delta_rule(q, k, v, x["g"].double(), beta.double(), initial_state=state, backend="recurrent")
    assert ((o - o_kda).norm() / o_kda.norm()).item() < OUTPUT
    g = x["g"][..., :1].detach()
    tied = {n: t.detach() for n, t in tied.items()} | {"g": g.expand_as(x["g"])}
    o, _ = gated_delta_rule_2(**tied, backend="triton")
    o_gdn, _ = gated_delta_rule(q, k, v, g[..., 0].double(), beta.double(), initial_state=state, backend="recurrent")
    assert ((o - o_gdn).norm() / o_gdn.norm()).item() < OUTPUT


@pytest.mark.parametrize(
    "change,message",
    [
        ({"q": torch.zeros(1, 4, 1, 300), "K": 300}, r"q: the kernels serve K up to 256, got 300"),
        ({"v": torch.zeros(1, 4, 1, 257), "V": 257}, r"v: the kernels serve V up to 256, got 257"),
        ({"g": torch.zeros(1, 4, 1, 16, dtype=torch.float64)}, r"g: the kernels serve bfloat16, float16 and float32"),
        ({"chunk_size": 128}, r"chunk_size: the kernels serve 16, 32 and 64, got 128"),
        ({"scale": 0.0}, r"scale: expected a finite number other than 0, got 0.0"),
        ({"A_log": torch.zeros(1)}, r"A_log, dt_bias: give both"),
        ({"A_log": torch.zeros(2), "dt_bias": torch.zeros(16)}, r"A_log: expected \[1\], got \[2\]"),
        ({"initial_state": torch.zeros(1, 1, 16, 8)}, r"initial_state: expected \[1, 1, 16, 16\]"),
        ({"erase_range": 2.0}, r"erase_range: 2.0 without A_log would be ignored"),
        (
            {"update_state": True, "q": torch.zeros(1, 4, 1, 16, requires_grad=True)},
            r"update_state: an input requires a gradient",
        ),
        ({"update_state": True, "initial_state": None}, r"update_state: needs a contiguous fp32 initial_state"),
    ],
)
def test_out_of_contract_input_is_refused_before_any_launch(change: dict, message: str) -> None:
    change = dict(change)
    x = inputs(4, value_heads=1, K=change.pop("K", 16), V=change.pop("V", 16))
    arguments = {n: t.to(DEVICE) if isinstance(t, torch.Tensor) else t for n, t in (x | change).items()}
    with recording() as launches, pytest.raises(ValueError, match=message):
        gated_delta_rule_2(**arguments, backend="triton")
    assert launches == []


def test_without_a_gpu_or_the_interpreter_the_kernels_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixers.gdn2.operator.interpreted", lambda: False)
    with pytest.raises(ValueError, match=re.escape("backend: 'triton' needs a GPU")):
        gated_delta_rule_2(**inputs(4), backend="triton")


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

    config = next(w.config for w in plan(load_experiment("demo"), DEVICE_RUNS) if w.config.mixer == "gdn2")
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
