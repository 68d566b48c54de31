"""Loading of experiment files: scales, overrides, and errors that name the file."""

import json
from pathlib import Path

import pytest

from harness.experiments.load import load_experiment
from harness.files import CHECKOUT
from tests.harness.experiments.experiment_files import BASE, write


def test_a_file_that_is_missing_or_not_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"experiment: no file tabel2; give a path, or one of: based-mqar, decode"):
        load_experiment("tabel2")
    path = tmp_path / "broken.yaml"
    path.write_text("name: [")
    with pytest.raises(ValueError, match=r"broken.yaml: not YAML"):
        load_experiment(path)


def test_a_scale_changes_the_fields_it_names_deeply_and_overrides_come_last(tmp_path: Path) -> None:
    data = BASE["data"] | {"tokenizer": "own.json"}
    phases = [{"tokens": 500, "seq_len": 32, "rows": {"text": 2}}]
    scale = {
        "preset": "cpu-600k",
        "data": {"phases": phases},
        "train": {"lr": 1e-2},
        "suites": {"ruler": {"samples": 9}},
    }
    changes = {"train": {"lr": 1e-3, "clip": 0.5}, "suites": {"ruler": {"lengths": [320]}}, "scales": {"tiny": scale}}
    path = write(tmp_path, data=data, **changes)
    whole, tiny = load_experiment(path), load_experiment(path, scale="tiny")
    assert (whole.name, whole.preset, whole.train.lr) == ("small", "cpu-1m", 1e-3)
    assert (tiny.name, tiny.preset, tiny.train.lr, tiny.train.clip) == ("small-tiny", "cpu-600k", 1e-2, 0.5)
    assert (tiny.data.tokenizer, len(tiny.data.phases), tiny.data.tokens) == (str(tmp_path / "own.json"), 1, 512)
    assert tiny.suites == {"ruler": {"lengths": [320], "samples": 9}}
    assert load_experiment(path, ["train.lr=3e-4"], "tiny").train.lr == 3e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", r"--set: expected a.b=value, got 'train.lr'"),
        ("name.first=a", r"--set: 'name.first' goes through 'name', which is not a mapping"),
        ("train.lr=[1", r"--set: 'train.lr=\[1': not YAML: .*; quote or correct the value after the ="),
        ("train.lr=.inf", r"--set: 'train.lr=.inf': inf is not finite; give a number; quote or correct"),
        ("train={lr: 1, lr: 2}", r"--set: 'train={lr: 1, lr: 2}': lr: given twice, in lines 1 and 1; keep one of them"),
        ("train.rate=1", r"small.yaml: train.rate: unknown field"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_experiment(write(tmp_path), [override])


def test_an_override_may_make_a_mapping_and_later_ones_win(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path), ["suites.recall.lengths=[64]", "seeds=[1]", "seeds=[2, 3]"])
    assert experiment.suites == {"recall": {"lengths": [64]}} and experiment.seeds == [2, 3]


def test_files_of_mixers_and_suites_lie_relative_to_the_experiment(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, mixer_files=["mine/mixer.py"], suite_files=["suite.py"]))
    assert experiment.mixer_files == [str(tmp_path / "mine" / "mixer.py")]
    assert experiment.suite_files == [str(tmp_path / "suite.py")]


def test_a_file_that_is_not_a_mapping_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- gdn2\n")
    with pytest.raises(ValueError, match=r"list.yaml: expected a mapping of fields, got list"):
        load_experiment(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr='inf'", r"train.lr: Input should be a finite number"),
        ("train.warmup_ratio=3", r"train.warmup_ratio: Input should be less than or equal to 1 \(got 3\)"),
        ("train.final_lr_ratio=1.5", r"train.final_lr_ratio: Input should be less than or equal to 1"),
        ("seeds=[0, 9223372036854775808]", r"seeds.1: Input should be less than 9223372036854775808"),
        ("seeds=[-1]", r"seeds.0: Input should be greater than or equal to 0 \(got -1\)"),
    ],
)
def test_a_number_out_of_range_is_named_with_field_and_value(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"small.yaml: {message}"):
        load_experiment(write(tmp_path), [override])


def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    inf = float("inf")
    for changes, place in (
        ({"train": {"weight_decay": inf}}, "train.weight_decay"),
        ({"mixers": [{"mixer": "gdn2", "options": {"norm_eps": inf}}]}, "mixers.0.options.norm_eps"),
        ({"suites": {"recall": {"samples": inf}}}, "suites.recall.samples"),
        ({"scales": {"tiny": {"train": {"clip": float("nan")}}}}, "scales.tiny.train.clip"),
    ):
        with pytest.raises(ValueError, match=rf"small.yaml: {place}: (inf|nan) is not finite; give a number"):
            load_experiment(write(tmp_path, **changes))


def test_a_key_given_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text() + "train:\n  lr: 1e-3\n  lr: 2e-3\n")
    lines = path.read_text().splitlines()
    first = lines.index("  lr: 1e-3") + 1
    with pytest.raises(ValueError, match=f"small.yaml: lr: given twice, in lines {first} and {first + 1}; keep one"):
        load_experiment(path)


def test_paths_of_a_file_are_relative_to_it_and_those_of_overrides_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "tok").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    scales = {"big": {"data": {"source": "more"}}}
    path = write(there, data=BASE["data"] | {"source": "data", "tokenizer": "tok"}, mixer_files=["m.py"], scales=scales)
    loaded, big = load_experiment(path), load_experiment(path, scale="big")
    assert loaded.data.source == str(there / "data") and loaded.data.tokenizer == str(there / "tok")
    assert loaded.mixer_files == [str(there / "m.py")] and big.data.source == str(there / "more")
    changed = load_experiment(
        path, ["data.source=../x", "data.tokenizer=TinyLlama/TinyLlama_v1.1", "mixer_files=[o.py]"]
    )
    assert changed.data.source == str(tmp_path / "x") and changed.mixer_files == [str(here / "o.py")]
    assert changed.data.tokenizer == "TinyLlama/TinyLlama_v1.1"
    assert load_experiment(write(there)).data.source == "embedded"


def test_the_demo_trains_with_values_that_the_tuning_of_recall_chose_for_most_mixers() -> None:
    trials = json.loads((CHECKOUT / "results" / "recall" / "trials.json").read_text("utf-8"))
    demo = load_experiment("demo").train
    own = {"train.lr": demo.lr, "train.init_gain": demo.init_gain}
    scores: dict[str, dict[bool, list[float]]] = {}
    for trial in trials:
        if trial["chosen"] or json.loads(trial["values"]) == own:
            by_choice = scores.setdefault(trial["mixer"], {True: [], False: []})
            by_choice[trial["chosen"]].append(trial["score"])
    chosen = {mixer for mixer, found in scores.items() if not found[False]}
    assert chosen == {"attention", "mamba3_siso", "gated_deltanet", "gdn2"}
    best, taken = (sum(scores["kda"][key]) / 2 for key in (True, False))
    assert 0 < best - taken < 0.001
