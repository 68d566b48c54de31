"""The benchmark of training throughput: rows of a preset's models, windows in turns, refusals and omissions."""

import time

import pytest
import torch
from typer.testing import CliRunner

from run import app
from suites.bench import training
from suites.bench.training import OURS, time_in_turns
from suites.shared.timing import Shape
from suites.throughput import Config

cli = CliRunner()
CPU = torch.device("cpu")
SHORT = Config(shapes=[Shape(batch=1, length=16)], steps=2, windows=3, warm_up=1)


def test_training_throughput_of_two_mixers() -> None:
    lines: list[str] = []
    rows = training.run("cpu-600k", ["gated_deltanet", "attention"], "hybrid", 32, 1, 1, "cpu", 12, lines.append)
    assert [(r["mixer"], r["layout"]) for r in rows] == [("gated_deltanet", "hybrid"), ("attention", "attention")]
    for r in rows:
        assert r["refused"] is None and r["left_out"] is None and 1 <= r["windows"] <= Config().windows
        assert (r["length"], r["batch"], r["steps"], r["dtype"]) == (32, 1, 1, "float32")
        assert r["tokens_per_s"] > 0 and r["peak_memory_bytes"] is None and r["version_torch"] == torch.__version__
        if r["windows"] > 1:
            assert r["tokens_per_s_p20"] <= r["tokens_per_s"] <= r["tokens_per_s_p80"]
    small, large = sorted(r["non_embedding_params"] for r in rows)
    assert large / small < 1.01  # each is matched within 0.5% of the target
    assert len(lines) == 2 and lines[0].startswith("gated_deltanet: ")
    text = training.render(rows)
    assert "Gated DeltaNet" in text and "Transformer" in text and "optimiser step included" in text


def test_mixers_without_time_are_left_out_and_said_to_be() -> None:
    rows = training.run("cpu-600k", ["kda", "mamba2"], "recurrent", 32, 1, 1, "cpu", 1e-6, lambda _: None)
    assert [r["tokens_per_s"] for r in rows] == [None, None]
    assert all("used up" in r["left_out"] for r in rows) and "KDA: left out" in training.render(rows)


def test_torch_in_place_of_kernels_is_said_beside_the_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mixers.Mixer.fallback", lambda *args: "fla: it is too old")  # as on a GPU
    rows = training.run("cpu-600k", ["kda"], "recurrent", 16, 1, 1, "cpu", 12, lambda _: None)
    line = "kda runs on torch, which is slower than its kernels: fla: it is too old"
    assert f"FALLBACK, {line}" in training.render(rows).splitlines() and line in caplog.messages


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"preset": "nano"}, "preset: unknown name 'nano'"),
        ({"mixers": ["gdn3"]}, "mixer: unknown name 'gdn3'"),
        ({"mixers": []}, "mixers: an empty list"),
        ({"length": 0}, "length: expected more than 0, got 0"),
        ({"batch": -1}, "batch: expected"),
        ({"steps": 0}, "steps: expected"),
        ({"layout": "attention"}, "layout: .attention. is none of recurrent, hybrid"),
        ({"seconds": 0}, "seconds: expected"),
        ({"device": "abacus"}, "device: 'abacus'"),
        ({"device": "meta"}, "device: training runs on"),
    ],
)
def test_arguments_that_cannot_be_measured_are_refused(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training.run(**({"preset": "cpu-600k", "device": "cpu"} | changed))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_nothing_is_measured_on_it() -> None:
    with pytest.raises(ValueError, match="device: torch sees no cuda"):
        training.run("cpu-600k", device="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_fla_is_not_compared() -> None:
    result = cli.invoke(app, ["bench", "throughput", "--preset", "cpu-600k", "--against-fla"])
    assert result.exit_code == 2 and result.output.count("\n") == 1
    assert "error: against_fla: fla's chunk kernels are Triton's, tuned on a GPU" in result.output


def test_windows_are_taken_in_turns_and_the_first_is_the_last_of_the_next() -> None:
    taken: list[str] = []
    builders = {name: lambda name=name: lambda: taken.append(name) for name in "ab"}
    found = time_in_turns(builders, SHORT, CPU)
    assert taken == ["a", "b"] + [*"aabb", *"bbaa", *"aabb"]  # warm-up, then windows of two steps
    assert all(len(times) == 3 and peak is None for times, peak in found.values())


def test_a_failing_step_has_its_reason_and_no_number_and_the_others_are_measured() -> None:
    calls = iter(range(100))

    def third_call_fails() -> None:
        if next(calls) == 2:
            raise RuntimeError("out of\nluck")

    def unbuildable() -> None:
        raise ImportError("install it first")

    builders = {"late": lambda: third_call_fails, "never": unbuildable, "works": lambda: lambda: None}
    found = time_in_turns(builders, SHORT, CPU)
    assert found["late"] == {"refused": "RuntimeError: out of luck"}
    assert found["never"] == {"refused": "ImportError: install it first"}
    assert len(found["works"][0]) == SHORT.windows


def test_a_step_without_time_for_one_window_is_left_out() -> None:
    (found,) = time_in_turns({"late": lambda: lambda: None}, SHORT, CPU, until=time.perf_counter()).values()
    assert "did not last for warm-up" in found["left_out"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_flas_models_have_numbers_beside_ours_or_the_reason() -> None:
    mixers = ["gdn2", "gated_deltanet", "mamba2"]
    rows = training.run("125m", mixers, "recurrent", 512, 1, 2, "cuda", 150, lambda _: None, against_fla=True)
    assert [(row["mixer"], row["implementation"]) for row in rows] == [(m, i) for m in mixers for i in (OURS, "fla")]
    assert not [row["refused"] for row in rows[::2] if row["refused"]]
    assert "no causal language model class" in rows[1]["refused"]
    for ours, theirs in zip(rows[2::2], rows[3::2], strict=True):
        if theirs["tokens_per_s"] is None:  # a package is missing, or the time did not last for tuning
            assert theirs["refused"] or theirs["left_out"]
            assert "speed_ratio" not in theirs and "utilisation" not in theirs
            continue
        # At least weights, gradients and both moments in fp32; the other model's are not counted.
        least = 16 * (theirs["non_embedding_params"] + ours["embedding_params"])
        assert least < theirs["peak_memory_bytes"] < 10 * least
        assert ("utilisation" in theirs) == (theirs["differs"] is None)
    assert "Gated DeltaNet-2, fla's: refused: fla 0.6.0 has no" in training.render(rows)
