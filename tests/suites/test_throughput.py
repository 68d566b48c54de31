"""Training throughput: what is measured and said of it, and that an experiment of it trains nothing."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from harness.experiments.matching import matched_config
from harness.experiments.schema import TrainConfig
from harness.model.language_model import LanguageModel, build_model
from harness.records.published import published
from harness.records.record import Measurement
from harness.records.store import load
from harness.training.cost import cost_of
from run import app
from slurm.graph.arrays import Sweep, collects, graph, prepares
from slurm.graph.work import Pending, Work
from slurm.plan import plan
from slurm.profile import Profile
from suites.registry import entries, suite_config
from suites.shared.timing import Shape
from suites.throughput import Config, Throughput

cli = CliRunner()
TINY = Config(shapes=[Shape(batch=2, length=16), Shape(batch=1, length=16)], steps=1, windows=2, warm_up=1)
OPTIONS = TINY.model_dump(mode="json")


def tiny(mixer: str = "gdn2") -> LanguageModel:
    layout = "attention" if mixer == "attention" else "hybrid"
    return build_model(matched_config("cpu-600k", layout, mixer), seed=0)


def by_key(found: list[Measurement]) -> dict[tuple[str, str, int | None], Measurement]:
    keyed = {(m.task, m.metric, m.length): m for m in found}
    assert len(keyed) == len(found)  # two shapes never share a record
    return keyed


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, str, int | None], Measurement]:
    return by_key(Throughput().measure(tiny(), TrainConfig(), TINY))


def test_every_shape_has_its_speed_and_the_part_of_the_ceiling_that_its_flops_are(measured: dict) -> None:
    ceiling = measured["device", "matmul_tflops", None].value * 1e12
    for task in ("batch_2", "batch_1"):
        speed, part = measured[task, "train_tokens_per_second", 16], measured[task, "mfu", 16]
        assert speed.value > 0 and speed.stderr >= 0 and speed.n == TINY.windows
        flops = tiny().cost(16).flops_per_token
        assert part.value == pytest.approx(speed.value * flops / ceiling)
        assert part.stderr == pytest.approx(speed.stderr * flops / ceiling)


def test_no_part_of_the_ceiling_above_1_is_recorded_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.throughput.matmul_rate", lambda *_: 1.0)  # measured on a device that was busy
    said: list[str] = []
    found = by_key(Throughput().measure(tiny(), TrainConfig(), TINY, said.append))
    assert ("batch_2", "train_tokens_per_second", 16) in found and not [key for key in found if key[1] == "mfu"]
    assert sum("no MFU: its FLOP/s are " in line for line in said) == 2


def test_on_a_cpu_no_peak_of_memory_is_claimed(measured: dict) -> None:
    assert not [key for key in measured if key[1] == "peak_memory_bytes"]


def test_records_say_how_they_were_timed_and_alike_for_every_mixer(measured: dict) -> None:
    other = by_key(Throughput().measure(tiny("attention"), TrainConfig(), TINY))
    assert {key: m.settings for key, m in measured.items()} == {key: m.settings for key, m in other.items()}
    assert measured["batch_2", "mfu", 16].settings == {
        "batch": 2,
        "steps": 1,
        "windows": 2,
        "warm_up": 1,
        "vocab_size": 4096,
        "optimizer_step": "included",
        "compile": "none",
    }


def test_a_shape_that_does_not_fit_the_memory_is_a_result_and_the_next_one_is_measured() -> None:
    # 8·10¹⁵ bytes of tokens: more than any address space, so that the allocator itself refuses.
    shapes = [Shape(batch=10**12, length=1000), Shape(batch=1, length=16)]
    said: list[str] = []
    found = by_key(Throughput().measure(tiny(), TrainConfig(), TINY.model_copy(update={"shapes": shapes}), said.append))
    assert found[f"batch_{10**12}", "train_out_of_memory", 1000].value == 1.0
    assert (f"batch_{10**12}", "train_tokens_per_second", 1000) not in found
    assert found["batch_1", "train_tokens_per_second", 16].value > 0
    assert said == [f"{10**12} × 1000: out of memory", "1 × 16"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": 1}, r"suites.throughput.windows: .*greater than or equal to 2 \(got 1\)"),
        ({"shapes": []}, r"suites.throughput.shapes: "),
        ({"shapes": [{"batch": 0, "length": 8}]}, r"suites.throughput.shapes.0.batch: .*\(got 0\)"),
        ({"shapes": [{"batch": 1, "length": 8}] * 2}, r"shapes: 1 × 8 is listed twice; list each shape once"),
        ({"length": 8}, r"suites.throughput.length: "),
    ],
)
def test_options_that_cannot_be_measured_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite_config("throughput", options)


def test_throughput_and_decoding_alone_measure_fresh_models() -> None:
    assert [name for name, known in entries().items() if known.fresh] == ["throughput", "decode"]


def experiment(folder: Path, **changes: object) -> Path:
    content = {
        "name": "speed",
        "preset": "cpu-600k",
        "mixers": ["gated_deltanet", "attention"],
        "layouts": ["hybrid"],
        "train": {"threads": 1, "dtype": "fp32"},
        "suites": {"throughput": OPTIONS},
    }
    path = folder / "speed.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def test_an_experiment_of_speed_trains_nothing_reads_no_data_and_is_done_once(tmp_path: Path) -> None:
    path, runs = experiment(tmp_path), tmp_path / "runs"
    options = ["--cluster", "debug", "--runs", str(runs)]
    first = cli.invoke(app, ["submit", str(path), *options])
    assert first.exit_code == 0, first.output
    assert "nothing submitted: everything is done" in cli.invoke(app, ["submit", str(path), *options]).output
    assert not list(runs.glob("*/train.json"))
    frame = load(runs)
    assert set(zip(frame["mixer"], frame["layout"], strict=True)) == {
        ("gated_deltanet", "hybrid"),
        ("attention", "attention"),
    }
    assert set(frame["backend"]) == {"torch"} and set(frame["dtype"]) == {"float32"} and set(frame["threads"]) == {1}
    rows = json.loads(cli.invoke(app, ["status", str(path), "--runs", str(runs), "--json"]).output)
    assert [row["state"] for row in rows] == ["done", "done"]
    assert cli.invoke(app, ["collect", str(path), "--runs", str(runs)]).exit_code == 0
    shown = cli.invoke(app, ["table", str(path), "--runs", str(runs)])
    assert shown.exit_code == 0, shown.output
    assert "batch_2 training tokens/s @16 ↑" in shown.output


def test_a_suite_of_trained_models_beside_it_trains_and_data_alone_do_not(tmp_path: Path, small_data: Path) -> None:
    (work, _) = plan(load_experiment(experiment(tmp_path)), tmp_path)
    assert work.missing == ["throughput"]
    phases = [{"tokens": 256, "seq_len": 64, "rows": {"text": 2}}]
    data = {"source": str(small_data), "phases": phases}
    (both, _) = plan(
        load_experiment(experiment(tmp_path, data=data, suites={"throughput": {}, "recall": {}})), tmp_path
    )
    assert both.missing == ["train", "recall", "throughput"]
    (alone, _) = plan(load_experiment(experiment(tmp_path, data=data)), tmp_path)
    assert alone.missing == ["throughput"] and alone.config.run_id == both.config.run_id


def test_on_slurm_its_array_waits_for_no_training(tmp_path: Path) -> None:
    loaded = load_experiment(experiment(tmp_path))
    todo = [Pending(work, work.missing) for work in plan(loaded, tmp_path)]
    work = Work([], todo, [], [], [])
    sweep = Sweep(loaded.name, tmp_path / "submission", tmp_path, "", 1000, Profile(), {})
    arrays = graph(work, sweep, prepares(sweep, work), collects(sweep))
    assert [(a.name, a.stage, len(a.tasks)) for a in arrays[:-1]] == [
        ("prepare", "prepare", 1),
        ("throughput-0", "evaluate", 2),
    ]
    assert arrays[1].after == [("afterok", "prepare")]


@pytest.mark.parametrize(
    ("suites", "message"),
    [
        ({"throughput": OPTIONS, "recall": {}}, "data.phases: none, and recall needs trained models"),
        ({}, "data.phases: none, and an experiment without suites needs trained models"),
    ],
)
def test_what_needs_trained_models_needs_something_to_train_them_on(tmp_path: Path, suites: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(load_experiment(experiment(tmp_path, suites=suites)), tmp_path)


def test_without_training_the_vocabulary_is_the_presets(tmp_path: Path) -> None:
    plans = plan(load_experiment("figure2", scale="125m"), tmp_path)
    assert {work.config.model.vocab_size for work in plans} == {32000}
    result = cli.invoke(app, ["train", "figure2", "--scale", "125m", "--run", "gdn2", "--runs", str(tmp_path / "runs")])
    assert result.exit_code == 2 and "data.phases: none, so that figure2 trains nothing; use submit" in result.output


@pytest.mark.parametrize("scale", [None, "360m", "125m"])
def test_figure_2_measures_what_the_paper_printed_under_the_same_names(scale: str | None) -> None:
    found = load_experiment("figure2", scale=scale)
    shapes = suite_config("throughput", found.suites["throughput"]).shapes
    rows = {(run.mixer, run.layout) for run in expand(found, None, "none").runs}
    printed = published("figure2")
    assert set(printed["metric"]) == {"train_tokens_per_second"}
    assert set(zip(printed["task"], printed["length"], strict=True)) == {(f"batch_{s.batch}", s.length) for s in shapes}
    assert set(zip(printed["mixer"], printed["layout"], strict=True)) == rows


def speeds(**changes: object) -> pd.DataFrame:
    row = {"suite": "throughput", "metric": "train_tokens_per_second", "device": "H100", "length": 64, "value": 2e3}
    row |= {"preset": "cpu-600k", "mixer": "attention", "layout": "attention"}
    return pd.DataFrame([row | changes])


def test_the_cost_of_training_says_whether_it_was_measured(tmp_path: Path) -> None:
    phases = [{"tokens": 7_200_000, "seq_len": 64, "rows": {"text": 2}}]
    path = experiment(tmp_path, mixers=["gated_deltanet", "attention"], data={"phases": phases})
    hybrid, attention = expand(load_experiment(path), 4096, "0" * 64).runs
    assert "1.0 GPU hours, 1 runs at the speed measured on H100, without" in cost_of(
        [attention], None, 0.4, speeds(), "H100"
    )
    assert "hours unknown" in cost_of([hybrid, attention], None, 0.4, speeds(), "H100")
    both = cost_of([hybrid, attention], 1.0, 0.4, speeds(), "H100")
    assert "1 runs at the speed measured on H100 and 1 runs at 40% of 1 TFLOP/s (from the FLOPs" in both
    other = cost_of([attention], 1.0, 0.4, speeds(), "A100")
    assert "at 40% of 1 TFLOP/s (from the FLOPs, not measured)" in other
    assert "hours unknown" in cost_of([attention], None, 0.4, speeds(), None)  # a profile without tflops
