"""The shipped experiment files (harness/experiments/*.yaml): what they train and measure, at every scale."""

from itertools import pairwise

import pytest
import yaml

from harness.data.tokenizer import ids_count
from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from harness.experiments.matching import TOLERANCE, meta_model, target_parameters
from harness.experiments.names import EXPERIMENTS
from harness.experiments.run_config import RunConfig
from harness.experiments.schema import Experiment
from harness.records.published import column_name, published
from suites.registry import suite_config

PAPER = ("table2", "table3", "table4", "table5")
SCALES = (None, "360m", "125m")
NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def every_scale() -> list[tuple[str, str | None]]:
    files = {name: yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text()) for name in NAMES}
    return [(name, scale) for name, values in files.items() for scale in (None, *values.get("scales", {}))]


def runs_of(experiment: Experiment) -> list[RunConfig]:
    """Runs of an experiment without loading its tokenizer: the embedded one has 4,096 tokens, the paper's 32,000."""
    size = ids_count(experiment.data.tokenizer) or (4096 if experiment.data.tokenizer == "embedded" else 32000)
    return expand(experiment, size, "0" * 64, {"unit": {}}).runs


@pytest.mark.parametrize(("name", "scale"), every_scale())
def test_every_experiment_expands_at_every_scale_and_its_suites_know_their_options(
    name: str, scale: str | None
) -> None:
    experiment = load_experiment(name, scale=scale)
    assert experiment.name == (f"{name}-{scale}" if scale else name)
    assert runs_of(experiment)
    for suite, options in experiment.suites.items():
        suite_config(suite, options)


@pytest.mark.parametrize("scale", SCALES)
def test_tables_2_to_4_are_measured_on_the_same_runs_and_table_5s_whole_model_is_one_of_them(scale: str | None) -> None:
    first, *others = ([r.run_id for r in runs_of(load_experiment(t, scale=scale))] for t in PAPER)
    assert len(first) == 13  # six mixers in two layouts, and attention
    assert others[0] == others[1] == first
    assert [run_id in first for run_id in others[2]] == [True, False, False, False]


def test_a_suite_has_the_same_options_in_all_tables_so_that_none_undoes_anothers_evaluation() -> None:
    options: dict[str, list[object]] = {}
    for table in PAPER:
        for suite, stated in load_experiment(table).suites.items():
            options.setdefault(suite, []).append(suite_config(suite, stated))
    assert all(config == same[0] for same in options.values() for config in same)


@pytest.mark.parametrize("scale", SCALES)
def test_every_model_of_the_tables_is_matched_at_every_scale(scale: str | None) -> None:
    experiment = load_experiment("table2", scale=scale)
    target = target_parameters(experiment.preset)
    for run in runs_of(experiment):
        parameters = meta_model(run.model).cost(4096).non_embedding_params
        assert abs(parameters / target - 1) <= TOLERANCE


def test_the_papers_scale_follows_the_papers_recipe() -> None:
    experiment = load_experiment("table2")
    (phase,) = experiment.data.phases
    assert (phase.tokens, phase.seq_len, phase.tokens_per_step) == (100_000_000_000, 4096, 2**19)
    train = experiment.train
    assert (train.lr, train.weight_decay, train.clip, train.betas) == (4e-4, 0.1, 1.0, (0.9, 0.95))
    assert train.warmup_ratio * phase.tokens == 1e9
    assert train.final_lr_ratio == 0.1


@pytest.mark.parametrize("table", PAPER)
def test_the_rows_of_a_table_are_the_papers(table: str) -> None:
    runs = runs_of(load_experiment(table))
    if table == "table5":
        gates = published(table)[["erase_gate", "write_gate", "erase_range"]].drop_duplicates()
        configs = [gates_of(run) for run in runs]
        assert sorted(configs) == sorted(gates.itertuples(index=False, name=None))
    else:
        rows = published(table)[["mixer", "layout"]].drop_duplicates()
        assert {(r.mixer, r.layout) for r in runs} == set(rows.itertuples(index=False, name=None))


def test_one_change_leads_from_gated_deltanet_to_gdn2_one_option_a_row() -> None:
    runs = {run.label: run for run in runs_of(load_experiment("one-change")) if run.seed == 0}
    options = [run.model.mixer_options for run in runs.values()]
    differing = [{key for key in a if a[key] != b[key]} for a, b in pairwise(options)]
    assert differing[:6] == [
        {"initial_rate_min"},
        {"output_gate_projection"},
        {"decay"},
        {"write_gate"},
        {"erase_gate"},
        {"write_gate"},
    ]
    whole = options[6]
    dropped = {label: run.model.mixer_options for label, run in runs.items() if "without" in label}
    found = {label[-1]: {key for key in whole if whole[key] != given[key]} for label, given in dropped.items()}
    assert found == {"1": differing[0], "2": differing[1], "3": differing[2], "5": differing[4]}
    target = target_parameters("recall-64-quarter")
    widths = set()
    for run in runs.values():
        widths.add(tuple(run.model.mlp_widths))
        assert abs(meta_model(run.model).cost(64).non_embedding_params / target - 1) <= TOLERANCE
    fixed = runs_of(load_experiment("one-change", scale="fixed-mlp"))
    assert len(widths) > 5 and {tuple(run.model.mlp_widths) for run in fixed} == {(128, 128)}


def gates_of(run: RunConfig) -> tuple[str, str, int]:
    """The options that table 5 varies, from the mixer as it is built."""
    config = meta_model(run.model).blocks[0].mixer.config
    return config.erase_gate, config.write_gate, config.erase_range


@pytest.mark.parametrize("table", PAPER)
def test_every_printed_column_has_a_tolerance_at_the_papers_scale_and_none_at_others(table: str) -> None:
    expected = load_experiment(table).expectation
    cells = published(table)[["task", "metric", "length"]].drop_duplicates().fillna({"length": 0})
    names = [column_name(task, metric, length or None) for task, metric, length in cells.itertuples(index=False)]
    assert all(expected.allowed(name) for name in names)
    assert [load_experiment(table, scale=scale).expectation for scale in SCALES[1:]] == [None, None]
    fewer = "data.phases=[{tokens: 1_000_000, seq_len: 4096, rows: {text: 128}}]"
    assert load_experiment(table, [fewer]).expectation is None
