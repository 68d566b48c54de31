"""GDN-2's operator: its contract, its relation to KDA and Gated DeltaNet, and when it launches which kernels."""

import re

import pytest
import torch

from mixers.gated_deltanet import gated_delta_rule
from mixers.gdn2 import gated_delta_rule_2
from mixers.gdn2.kernels.launch import recording
from mixers.gdn2.operator import resolve
from mixers.kda import kimi_delta_rule
from tests.mixers.gdn2.cases import DEVICE, OUTPUT, inputs
from tests.mixers.parts.cases import F32, F64
from tests.mixers.parts.cases import inputs as torch_inputs


def test_auto_is_the_kernels_on_a_gpu_and_chunks_elsewhere_and_in_float64() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert resolve("auto", gpu, torch.float32) == "triton"
    assert resolve("auto", gpu, torch.float64) == resolve("auto", cpu, torch.float32) == "chunked"
    assert resolve("recurrent", gpu, torch.float32) == "recurrent"


def test_one_launch_a_decoding_step_and_five_a_training_step() -> None:
    x = {name: t.to("meta") for name, t in inputs(1, batch=8, K=16, V=16).items()}
    with recording() as launches, torch.no_grad():
        gated_delta_rule_2(**x, output_final_state=True, backend="triton")
    assert [launch.kernel.name for launch in launches] == ["recurrent_steps"]
    x = {name: t.to("meta").requires_grad_() for name, t in inputs(100, batch=8, K=16, V=16).items()}
    with recording() as launches:
        o, _ = gated_delta_rule_2(**x, backend="triton")
        o.backward(torch.empty_like(o))
    names = [launch.kernel.name for launch in launches]
    assert names == ["intra_chunk", "scan_forward", "scan_backward", "state_gradients", "chunk_gradients"]


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


def test_gdn2_with_tied_gates_is_kda_and_with_a_scalar_decay_gated_deltanet() -> None:
    x = torch_inputs(100, k=16, v=16)
    beta = torch.rand(2, 100, 2, dtype=F64)
    tied = beta[..., None].expand(2, 100, 2, 16)
    scalar = x["g"][..., :1]
    for backend in ("recurrent", "chunked"):
        o, s = gated_delta_rule_2(**(x | {"b": tied, "w": tied}), output_final_state=True, backend=backend)
        o_kda, s_kda = kimi_delta_rule(x["q"], x["k"], x["v"], x["g"], beta, backend=backend)
        torch.testing.assert_close(o, o_kda, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(s, s_kda, rtol=1e-12, atol=1e-13)
        o_kda, s_kda = kimi_delta_rule(x["q"], x["k"], x["v"], scalar.expand_as(x["g"]), beta, backend=backend)
        o_gdn, s_gdn = gated_delta_rule(x["q"], x["k"], x["v"], scalar.squeeze(-1), beta, backend=backend)
        torch.testing.assert_close(o_gdn, o_kda, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(s_gdn, s_kda, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
def test_one_value_for_all_channels_of_a_head_is_that_value_in_each_of_them(backend: str) -> None:
    x = torch_inputs(20)
    x["v"], x["w"] = x["v"].repeat(1, 1, 2, 1), x["w"].repeat(1, 1, 2, 1)  # two value heads per key head
    short = x | {name: x[name][..., :1].clone().requires_grad_() for name in "gbw"}
    spread = short | {"g": short["g"].expand_as(x["g"])} | {"b": short["b"].expand_as(x["b"])}
    spread["w"] = short["w"].expand_as(x["w"])
    results = []
    for arguments in (short, spread):
        o, state = gated_delta_rule_2(**arguments, output_final_state=True, backend=backend)
        loss = o.square().sum() + state.sum()
        results.append([o, state, *torch.autograd.grad(loss, [short[name] for name in "gbw"])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)  # float64, sums in another order


def test_packed_sequences_do_not_see_each_other() -> None:
    x = torch_inputs(60, batch=1)
    offsets = torch.tensor([0, 7, 8, 40, 60])
    state = torch.randn(4, 2, 16, 24, dtype=F64)
    o, s = gated_delta_rule_2(**x, initial_state=state, output_final_state=True, cu_seqlens=offsets)
    for i, (a, b) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        alone = {name: value[:, a:b] for name, value in x.items()}
        o_i, s_i = gated_delta_rule_2(**alone, initial_state=state[i : i + 1], output_final_state=True)
        torch.testing.assert_close(o[:, a:b], o_i, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(s[i : i + 1], s_i, rtol=1e-12, atol=1e-14)


def test_l2_normalisation_and_scale_are_what_they_say() -> None:
    x = torch_inputs(20)
    plain = gated_delta_rule_2(**x)[0]
    torch.testing.assert_close(gated_delta_rule_2(**x, scale=1.0)[0], plain * 4)  # 16^-1/2 is the default
    longer = x | {"q": 3 * x["q"], "k": 5 * x["k"]}
    # 1e-5: normalisation adds eps = 1e-6 under the root.
    torch.testing.assert_close(gated_delta_rule_2(**longer, use_qk_l2norm=True)[0], plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 5, 2, 8)}, r"k: expected \[2, 5, 2, 16\].*got \[2, 5, 2, 8\]"),
        ({"w": torch.zeros(2, 5, 2, 16)}, r"w: expected \[2, 5, 2, 24\] like v, or 1 as its last size"),
        ({"g": torch.zeros(2, 5, 1, 1)}, r"g: expected \[2, 5, 2, 16\] like q, or 1 as its last size"),
        ({"v": torch.zeros(2, 5, 3, 24)}, r"v: expected .* HV a multiple of 2"),
        ({"g": torch.zeros(2, 5, 2, 16, dtype=torch.long)}, r"g: expected a floating dtype, got torch.int64"),
        ({"q": torch.zeros(2, 0, 2, 16)}, r"q: expected a non-empty"),
        ({"chunk_size": 48}, r"chunk_size: expected a power of two, got 48"),
        ({"backend": "fast"}, r"backend: expected auto, recurrent, chunked or triton, got 'fast'"),
        ({"initial_state": torch.zeros(1, 2, 16, 24)}, r"initial_state: expected \[2, 2, 16, 24\]"),
        ({"cu_seqlens": torch.tensor([0, 5])}, r"cu_seqlens: packed sequences need a batch of 1, got 2"),
    ],
)
def test_input_outside_the_contract_is_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gated_delta_rule_2(**(torch_inputs(5, dtype=F32) | change))


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_a_second_derivative_is_refused_rather_than_wrong(backend: str) -> None:
    x = inputs(5, value_heads=1, K=16, V=16, device=DEVICE)
    q = x["q"].requires_grad_()
    o, _ = gated_delta_rule_2(**x, backend=backend)
    # The sum's gradient does not depend on anything, which is where torch's own guard would let zeros pass.
    with pytest.raises(RuntimeError, match="create_graph=True: this gradient is written by hand"):
        torch.autograd.grad(o.sum(), q, create_graph=True)


def test_the_recurrence_in_torch_has_second_derivatives() -> None:
    x = torch_inputs(3, k=2, v=2)
    k = x["k"].requires_grad_()

    def output(k: torch.Tensor) -> torch.Tensor:
        return gated_delta_rule_2(**(x | {"k": k}), backend="recurrent")[0]

    assert torch.autograd.gradgradcheck(output, [k])


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_transforms_of_torch_func_are_refused_in_one_line(backend: str) -> None:
    x = inputs(2, value_heads=1, K=16, V=16, device=DEVICE)

    def loss(q: torch.Tensor) -> torch.Tensor:
        return gated_delta_rule_2(**(x | {"q": q}), backend=backend)[0].sum()

    for transformed, q in ((torch.func.grad(loss), x["q"]), (torch.func.vmap(loss), x["q"][None])):
        with pytest.raises(RuntimeError, match="gated_delta_rule_2: torch.func's vmap, grad"):
            transformed(q)


@pytest.mark.parametrize("backend", ["recurrent", "chunked", "triton"])
def test_an_empty_sequence_keeps_its_state_and_passes_its_gradient(backend: str) -> None:
    offsets = torch.tensor([0, 0, 20, 20], device=DEVICE)
    x = inputs(20, value_heads=1, K=16, V=16, sequences=3, device=DEVICE)
    entering = x["initial_state"].requires_grad_()
    o, state = gated_delta_rule_2(**x, cu_seqlens=offsets, output_final_state=True, backend=backend)
    alone, last = gated_delta_rule_2(**(x | {"initial_state": entering[1:2]}), output_final_state=True, backend=backend)
    assert torch.equal(o, alone)
    assert torch.equal(state, torch.cat([entering[:1], last, entering[2:]]))
    (gradient,) = torch.autograd.grad(state[[0, 2]].sum(), entering)
    assert torch.equal(gradient[[0, 2]], torch.ones_like(gradient[[0, 2]])) and gradient[1].abs().max() == 0


def test_decoding_leaves_the_state_of_an_empty_sequence() -> None:
    offsets = torch.tensor([0, 0, 3], device=DEVICE)
    x = inputs(3, value_heads=1, K=16, V=16, sequences=2, device=DEVICE)
    with torch.no_grad():
        _, state = gated_delta_rule_2(**x, cu_seqlens=offsets, output_final_state=True, backend="triton")
    assert torch.equal(state[0], x["initial_state"][0]) and not torch.equal(state[1], x["initial_state"][1])
