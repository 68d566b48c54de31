"""The benchmark of training throughput: our models of a preset, and fla's own model classes beside them."""

import time

import fla.layers.attn
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from typer.testing import CliRunner

from harness.experiments.matching import matched_config, meta_model
from harness.model.language_model import ModelConfig
from run import app
from suites.bench import training as throughput_bench
from suites.bench.fla_models import CLASSES, WITHOUT_MLP, build_fla
from suites.bench.training import OURS, time_in_turns
from suites.shared.timing import Shape
from suites.throughput import Config

cli = CliRunner()
CPU = torch.device("cpu")
SHORT = Config(shapes=[Shape(batch=1, length=16)], steps=2, windows=3, warm_up=1)


def test_training_throughput_of_two_mixers() -> None:
    said: list[str] = []
    rows = throughput_bench.bench(
        "cpu-600k", ["gated_deltanet", "attention"], "hybrid", 32, 1, 1, "cpu", 12, said.append
    )
    assert [(r["mixer"], r["layout"]) for r in rows] == [("gated_deltanet", "hybrid"), ("attention", "attention")]
    for r in rows:
        assert r["refused"] is None and r["left_out"] is None and 1 <= r["windows"] <= Config().windows
        assert (r["length"], r["batch"], r["steps"], r["dtype"]) == (32, 1, 1, "float32")
        assert r["tokens_per_s"] > 0 and r["peak_memory_bytes"] is None and r["version_torch"] == torch.__version__
        if r["windows"] > 1:
            assert r["tokens_per_s_p20"] <= r["tokens_per_s"] <= r["tokens_per_s_p80"]
    small, large = sorted(r["non_embedding_params"] for r in rows)
    assert large / small < 1.01  # matched, each within 0.5% of the target
    assert len(said) == 2 and said[0].startswith("gated_deltanet: ")
    text = throughput_bench.render(rows)
    assert "Gated DeltaNet" in text and "Transformer" in text and "optimiser step included" in text


def test_throughput_says_what_the_time_did_not_suffice_for() -> None:
    rows = throughput_bench.bench("cpu-600k", ["kda", "mamba2"], "recurrent", 32, 1, 1, "cpu", 1e-6, lambda _: None)
    assert [r["tokens_per_s"] for r in rows] == [None, None]
    assert all("used up" in r["left_out"] for r in rows) and "KDA: left out" in throughput_bench.render(rows)


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
def test_what_bench_cannot_measure_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        throughput_bench.bench(**({"preset": "cpu-600k", "device": "cpu"} | changed))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_nothing_is_measured_on_it() -> None:
    with pytest.raises(ValueError, match="device: torch sees no cuda"):
        throughput_bench.bench("cpu-600k", device="cuda")


def config_of(preset: str, mixer: str) -> ModelConfig:
    return matched_config(preset, "attention" if mixer == "attention" else "recurrent", mixer)


@pytest.mark.parametrize("preset", ["cpu-600k", "125m"])
@pytest.mark.parametrize("mixer", CLASSES)
def test_flas_model_has_our_parameters_but_for_what_is_stated(
    mixer: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its Transformer refuses to be built without flash-attn, which a CPU has no use for; nothing is computed here.
    monkeypatch.setattr(fla.layers.attn, "flash_attn_func", lambda *_: None)
    config = config_of(preset, mixer)
    found = build_fla(config, torch.device("meta"))
    ours = meta_model(config).cost(16).non_embedding_params
    if mixer in WITHOUT_MLP:
        assert found.differs == "its blocks have no MLP" and found.mlp_width is None
        mlps = sum(3 * config.d_model * width + config.d_model for width in config.mlp_widths)  # and the norm before it
        assert found.non_embedding_params == ours - mlps
    else:
        assert found.differs is None and abs(found.mlp_width - sum(config.mlp_widths) / config.layers) <= 4
        widths = {"mlp_widths": [found.mlp_width] * config.layers}
        assert found.non_embedding_params == meta_model(config.model_copy(update=widths)).cost(16).non_embedding_params
        assert abs(found.non_embedding_params / ours - 1) < 0.005  # as near as our own models are to each other
    assert found.model.lm_head.weight is found.model.get_input_embeddings().weight
    assert found.model.lm_head.weight.shape == (config.vocab_size, config.d_model)
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.float32}


def test_flas_loss_is_that_of_next_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    found, hidden = build_fla(config_of("cpu-600k", "mamba2"), CPU), torch.randn(2, 8, 64)
    # Its norms and its fused loss are kernels: behind them stand its own head, shift of targets and unfused loss.
    monkeypatch.setattr(found.model.backbone, "forward", lambda **_: BaseModelOutputWithPast(hidden))
    monkeypatch.setattr(found.model.config, "fuse_cross_entropy", False)
    tokens = torch.randint(4096, (2, 9))
    logits = hidden @ found.model.lm_head.weight.mT
    wanted = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:-1].flatten())
    torch.testing.assert_close(found.loss(tokens), wanted)


def test_fla_has_no_model_for_gdn2() -> None:
    with pytest.raises(ValueError, match="fla 0.6.0 has no causal language model class for gdn2"):
        build_fla(config_of("cpu-600k", "gdn2"), CPU)


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


def test_what_fails_has_its_reason_and_no_number_and_the_other_is_measured() -> None:
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


def test_what_the_time_does_not_suffice_for_is_left_out() -> None:
    (found,) = time_in_turns({"late": lambda: lambda: None}, SHORT, CPU, until=time.perf_counter()).values()
    assert "did not last for warm-up" in found["left_out"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_flas_models_have_numbers_beside_ours_or_the_reason() -> None:
    mixers = ["gdn2", "gated_deltanet", "mamba2"]
    rows = throughput_bench.bench("125m", mixers, "recurrent", 512, 1, 2, "cuda", 150, lambda _: None, against_fla=True)
    assert [(row["mixer"], row["implementation"]) for row in rows] == [(m, i) for m in mixers for i in (OURS, "fla")]
    assert not [row["refused"] for row in rows[::2] if row["refused"]]
    assert "no causal language model class" in rows[1]["refused"]
    for ours, theirs in zip(rows[2::2], rows[3::2], strict=True):
        if theirs["tokens_per_s"] is None:  # what it needs is not installed, or the time did not last for its tuning
            assert theirs["refused"] or theirs["left_out"]
            assert "speed_ratio" not in theirs and "utilisation" not in theirs
            continue
        # Weights, gradients and both moments in fp32 are there at least, and those of the other model are not counted.
        least = 16 * (theirs["non_embedding_params"] + ours["embedding_params"])
        assert least < theirs["peak_memory_bytes"] < 10 * least
        assert ("utilisation" in theirs) == (theirs["differs"] is None)
    assert "Gated DeltaNet-2, fla's: refused: fla 0.6.0 has no" in throughput_bench.render(rows)
