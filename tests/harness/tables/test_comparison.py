"""The comparison: order of rows and columns, what is refused, and which rows carry the paper's numbers."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from harness.records.provenance import Provenance
from harness.records.published import printed_values
from harness.records.store import load, write_records
from harness.tables.comparison import comparison
from suites import retrieval
from tests.harness.tables.table_records import CERTIFICATE, RUNS, expectation, golden_records, record, run_row, store
from tests.suites.retriever import SearchingLM


def test_rows_are_grouped_by_layout_and_baselines_come_last(tmp_path):
    layouts = {"unigram": "baseline", "attention": "attention", "kda": "hybrid", "gdn2": "recurrent"}
    frame = store(tmp_path, [record(label, "piqa", "acc", 0.5, 0.1, layout=at) for label, at in layouts.items()])
    assert [row.label for row in comparison(frame).rows] == ["gdn2", "kda", "attention", "unigram"]


def test_seeds_are_averaged_and_their_error_is_over_seeds_and_samples(tmp_path):
    values = [0.4, 0.5, 0.6]
    frame = store(tmp_path, [record("gdn2", "piqa", "acc", v, 0.03, seed=s) for s, v in enumerate(values)])
    table = comparison(frame)
    (cell,) = table.cells.values()
    assert cell.estimate.value == pytest.approx(0.5)
    assert cell.estimate.stderr == pytest.approx(math.sqrt(0.01 / 3 + 0.03**2))
    assert "seeds: 0, 1, 2" in table.notes


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"settings": {"prompts": 2}}, r"column piqa_acc: settings.prompts differs: 1 \(gdn2\), 2 \(kda\)"),
        ({"limit": 50}, r"column piqa_acc: limit differs: null \(gdn2\), 50 \(kda\)"),
        ({"stand_in": "other items"}, "column piqa_acc: stand_in differs"),
        ({"certificate": {"version_torch": "2.12.0"}}, "column piqa_acc: version_torch differs"),
        ({"certificate": {"dtype": "bfloat16"}}, "column piqa_acc: dtype differs"),
    ],
)
def test_records_measured_differently_are_not_mixed_unless_told_and_then_it_is_said(tmp_path, change, complaint):
    change = dict(change)
    certificate = Provenance(**{**vars(CERTIFICATE), **change.pop("certificate", {})})
    other = {"settings": {"prompts": 1}, **change, "certificate": certificate}
    records = [
        record("gdn2", "piqa", "acc", 0.5, 0.1, settings={"prompts": 1}),
        record("kda", "piqa", "acc", 0.5, 0.1, **other),
    ]
    frame = store(tmp_path, records)
    with pytest.raises(ValueError, match=complaint):
        comparison(frame)
    (said,) = [note for note in comparison(frame, allow_mixed=True).notes if note.startswith("MIXED")]
    assert "piqa_acc" in said and "differs" in said


def test_a_baseline_agrees_in_what_it_states_and_has_no_dtype(tmp_path):
    exact = Provenance(**{**vars(CERTIFICATE), "dtype": "float64"})
    model = record("gdn2", "novels", "word_perplexity", 40.0, 1.0, settings={"items": "x", "bos": True})
    same = {"layout": "baseline", "certificate": exact}
    unigram = record("unigram", "novels", "word_perplexity", 900.0, 9.0, settings={"items": "x"}, **same)
    frame = store(tmp_path / "a", [model, unigram])
    assert [row.label for row in comparison(frame).rows] == ["gdn2", "unigram"]
    elsewhere = record("unigram", "novels", "word_perplexity", 900.0, 9.0, settings={"items": "y"}, **same)
    with pytest.raises(ValueError, match="settings.items differs"):
        comparison(store(tmp_path / "b", [model, elsewhere]))


def test_speeds_of_different_devices_are_not_mixed_but_scores_are(tmp_path):
    elsewhere = Provenance(**{**vars(CERTIFICATE), "device": "Other CPU"})
    scores = [record("gdn2", "piqa", "acc", 0.5, 0.1), record("kda", "piqa", "acc", 0.5, 0.1, certificate=elsewhere)]
    assert "measured on Some CPU, Other CPU; float32" in comparison(store(tmp_path / "a", scores)).markdown()
    speeds = [
        record("gdn2", "train", "tokens_per_second", 5e3, 9.0, suite="throughput"),
        record("kda", "train", "tokens_per_second", 5e3, 9.0, suite="throughput", certificate=elsewhere),
    ]
    with pytest.raises(ValueError, match='device differs: "Some CPU"'):
        comparison(store(tmp_path / "b", speeds))


def test_a_label_is_one_mixer_and_a_seed_one_run(tmp_path):
    records = [record("x", "piqa", "acc", 0.5, 0.1, mixer=m, seed=s) for s, m in enumerate(("gdn2", "kda"))]
    with pytest.raises(ValueError, match="'x' .* stands for gdn2, kda"):
        comparison(store(tmp_path / "a", records))
    frame = store(tmp_path / "b", [record("gdn2", "piqa", "acc", 0.5, 0.1)])
    twice = pd.concat([frame, frame.assign(run="another")])
    with pytest.raises(ValueError, match="runs gdn2-recurrent-0, another of seed 0; give each variant its own label"):
        comparison(twice)
    with pytest.raises(ValueError, match="none to compare"):
        comparison(frame.iloc[:0])


def test_details_of_a_number_are_no_columns(tmp_path):
    records = [record("gdn2", "mqar", "acc", 0.5, 0.1, suite="mqar", length=8)]
    table = comparison(store(tmp_path / "a", records)).markdown()
    places = [
        record("gdn2", "mqar@8", "acc_by_position", 0.5, 0.1, suite="mqar", length=place, settings={"place": place})
        for place in range(1, 9)
    ]
    frame = store(tmp_path / "b", records + places)
    assert comparison(frame).markdown() == table
    with pytest.raises(ValueError, match="there are mqar_acc@8$"):
        comparison(frame, columns=["mqar@8_acc_by_position@1"])


def test_columns_can_be_chosen_and_unknown_ones_are_named(tmp_path):
    frame = store(tmp_path, golden_records())
    table = comparison(frame, columns=["s_niah_2@512", "piqa_acc"])
    assert [column.name for column in table.columns] == ["s_niah_2@512", "piqa_acc"]
    with pytest.raises(ValueError, match="no records of boolq_acc; there are piqa_acc"):
        comparison(frame, columns=["boolq_acc"])


def test_variants_of_a_mixer_do_not_carry_its_printed_number(tmp_path):
    records = [record(label, "piqa", "acc", 0.5, 0.1, mixer="gdn2") for label in ("gdn2", "gdn2-expanded")]
    runs = pd.DataFrame([run_row(r.label, "gdn2", "recurrent", 0) for r in records])
    table = comparison(store(tmp_path / "both", records), runs=runs, expected=expectation("table2", acc=1.0))
    assert {row.label: cell.paper for (row, _), cell in table.cells.items()} == {"gdn2": 0.728, "gdn2-expanded": None}
    alone = comparison(store(tmp_path / "alone", records[1:]), runs=runs[1:], expected=expectation("table2", acc=1.0))
    assert [cell.paper for cell in alone.cells.values()] == [None]


def test_a_mixer_under_its_display_name_carries_its_printed_number(tmp_path):
    labels = {"Gated DeltaNet-2": "gdn2", "Gated DeltaNet": "gdn2", "KDA": "kda"}
    records = [record(label, "piqa", "acc", 0.5, 0.1, mixer=mixer) for label, mixer in labels.items()]
    runs = pd.DataFrame([run_row(label, mixer, "recurrent", 0) for label, mixer in labels.items()])
    table = comparison(store(tmp_path, records), runs=runs, expected=expectation("table2", acc=1.0))
    found = {row.label: cell.paper for (row, _), cell in table.cells.items()}
    assert found == {"Gated DeltaNet-2": 0.728, "Gated DeltaNet": None, "KDA": pytest.approx(0.7209)}


def test_scores_of_the_retrieval_tasks_are_columns_of_the_papers_table():
    tasks = [task for task in retrieval.SPECS if task != "factbook"]
    prompt = retrieval.Prompt("Capital: Paris\nnothing more. Capital:", ("Paris",))
    config = retrieval.Config(tasks=tasks)
    found = [
        m for task in tasks for m in retrieval.score_prompts(SearchingLM(sees=True), task, [prompt], [9], None, config)
    ]
    assert all(m.stand_in is None for m in found)
    printed = {key[2:] for key in printed_values() if key[2] == "retrieval" and key[3] != "avg"}
    assert {(m.suite, m.task, m.metric, m.length) for m in found} == printed


def test_models_of_one_label_must_agree_and_speed_is_averaged(tmp_path):
    frame = store(tmp_path, [record("gdn2", "piqa", "acc", 0.5, 0.1)])
    same = {"label": "gdn2", "mixer": "gdn2", "layout": "recurrent"}
    runs = pd.DataFrame([same | {"flops_per_token": 7.5e6, "tokens_per_second": v} for v in (5000.0, 5200.0)])
    # Two seeds 200 apart: sd 200/√2, standard error 100.
    assert "| recurrent | gdn2 | 7.5M | 5,100 ± 100 |" in comparison(frame, runs=runs).markdown()
    runs["flops_per_token"] = [7.5e6, 8.5e6]
    with pytest.raises(ValueError, match="flops_per_token: runs of 'gdn2'"):
        comparison(frame, runs=runs)


def test_a_frame_kept_as_parquet_makes_the_same_table(tmp_path):
    frame = store(tmp_path, golden_records())
    frame.to_parquet(tmp_path / "records.parquet")
    again = pd.read_parquet(tmp_path / "records.parquet")
    assert comparison(again, runs=RUNS).markdown() == comparison(frame, runs=RUNS).markdown()


def test_ten_thousand_records_make_a_cell_for_every_row_and_task(tmp_path):
    for label in range(20):
        for seed in range(5):
            own = [record(f"m{label}", f"t{t}", "acc", 0.5, 0.1, seed=seed) for t in range(100)]
            write_records(tmp_path / own[0].run, "language", own)
    assert len(comparison(load(tmp_path)).cells) == 20 * 100
