"""Tables: golden forms, what is marked, what is refused, and what a reader is told."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import pytest

from harness.records.provenance import Provenance
from harness.records.published import printed_values
from harness.records.significance import items_to_settle_paired, seeds_to_settle
from harness.records.stats import mean_stderr
from harness.records.store import load, load_samples, write_records
from harness.tables.cells import Column, power_of_ten
from harness.tables.comparison import comparison
from suites import retrieval
from tests.harness.tables.table_records import CERTIFICATE, RUNS, golden_records, record, store
from tests.suites.retriever import SearchingLM


def marks(table, column: str) -> dict[str, str | None]:
    return {row.label: cell.mark for (row, c), cell in table.cells.items() if c.name == column}


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


def test_a_clear_winner_and_a_clear_second_are_marked(tmp_path):
    values = {"gdn2": 0.9, "kda": 0.7, "mamba2": 0.5, "mamba3_siso": 0.4}
    records = [record(label, "piqa", "acc", v, 0.05) for label, v in values.items()]
    table = comparison(store(tmp_path, records))
    # 0.5 and 0.4 are 0.1 apart with an error of 0.07: neither is the third, and both are worse than 0.7.
    assert marks(table, "piqa_acc") == {"gdn2": "bold", "kda": "underlined", "mamba2": None, "mamba3_siso": None}
    assert "**90.0 ± 5.0**" in table.markdown() and "<u>70.0 ± 5.0</u>" in table.markdown()


def test_rows_that_cannot_be_told_apart_share_the_mark_or_have_none(tmp_path):
    close = [record(label, "piqa", "acc", v, 0.05) for label, v in {"gdn2": 0.9, "kda": 0.85, "mamba2": 0.5}.items()]
    assert marks(comparison(store(tmp_path, close)), "piqa_acc") == {"gdn2": "bold", "kda": "bold", "mamba2": None}
    level = comparison(store(tmp_path, close[:2]))
    assert marks(level, "piqa_acc") == {"gdn2": None, "kda": None}
    assert "bold" not in level.markdown()


def test_many_rows_that_equal_are_not_marked_for_their_extremes(tmp_path):
    # 0.50 and 0.62 are 2.4 errors apart: p = 0.018 alone, and one of 45 pairs of which some would be as far by chance.
    values = np.linspace(0.50, 0.62, 10)
    many = [record(f"m{i}", "piqa", "acc", v, 0.035, n=5000) for i, v in enumerate(values)]
    table = comparison(store(tmp_path / "a", many))
    assert set(marks(table, "piqa_acc").values()) == {None}
    alone = comparison(store(tmp_path / "b", [many[0], many[-1]]))
    assert marks(alone, "piqa_acc") == {"m0": None, "m9": "bold"}
    assert "Holm's correction over all pairs of a group in a column; Welch's t)" in alone.markdown()


def test_what_would_settle_the_nearest_open_pairs_is_said_once(tmp_path):
    rng = np.random.default_rng(0)
    easy = rng.random(100) < 0.5
    other = easy.copy()
    other[np.flatnonzero(easy)[:4]] = False
    scores = {"gdn2": easy.astype(float), "kda": other.astype(float)}
    records = [record(k, "piqa", "acc", *mean_stderr(s), 100, samples=tuple(s)) for k, s in scores.items()]
    records += [
        record(label, "boolq", "acc", value, 0.01, 1000, seed=seed)
        for label, values in {"gdn2": (0.60, 0.70, 0.65), "kda": (0.62, 0.66, 0.64)}.items()
        for seed, value in enumerate(values)
    ]
    frame = store(tmp_path, records)
    (note,) = [n for n in comparison(frame, samples=load_samples(tmp_path)).notes if n.startswith("not told apart")]
    needed = items_to_settle_paired(0.04, 0.04)
    assert f"piqa_acc gdn2 − kda (4): {needed} samples, now 100" in note
    # Standard deviations of 0.05 and 0.02 about a gap of 0.01.
    seeds = seeds_to_settle(0.01, math.sqrt((0.05**2 + 0.02**2) / 2))
    assert f"boolq_acc gdn2 − kda (1): {seeds} seeds a row, now 3" in note
    settled = [record(k, "piqa", "acc", v, 0.01) for k, v in {"gdn2": 0.9, "kda": 0.1}.items()]
    assert not any("not told apart" in n for n in comparison(store(tmp_path / "b", settled)).notes)


def test_low_is_best_where_the_metric_says_so(tmp_path):
    records = [record(label, "lambada", "perplexity", v, 0.1) for label, v in {"gdn2": 11.0, "kda": 12.0}.items()]
    assert marks(comparison(store(tmp_path, records)), "lambada_ppl") == {"gdn2": "bold", "kda": None}


def test_layouts_are_marked_apart(tmp_path):
    records = [
        record(label, "piqa", "acc", value, 0.01, layout=layout)
        for layout, shift in (("recurrent", 0.0), ("hybrid", 0.2))
        for label, value in (("gdn2", 0.5 + shift), ("kda", 0.4 + shift))
    ]
    table = comparison(store(tmp_path, records))
    found = {(row.layout, row.label): cell.mark for (row, _), cell in table.cells.items()}
    assert found["recurrent", "gdn2"] == found["hybrid", "gdn2"] == "bold"
    assert found["recurrent", "kda"] is found["hybrid", "kda"] is None


def test_nothing_is_marked_where_an_error_is_unknown(tmp_path):
    records = [record("gdn2", "piqa", "acc", 0.9, None), record("kda", "piqa", "acc", 0.1, 0.01)]
    table = comparison(store(tmp_path, records))
    assert set(marks(table, "piqa_acc").values()) == {None}
    assert any("without ±" in note for note in table.notes)


def test_samples_on_the_same_items_sharpen_the_comparison_and_others_do_not(tmp_path):
    rng = np.random.default_rng(0)
    easy = rng.random(200) < 0.5
    # kda fails on ten items that gdn2 solves and agrees on the rest: p = 0.001 paired, 0.3 unpaired.
    scores = {"gdn2": easy.astype(float), "kda": np.where(np.cumsum(easy) <= 10, 0.0, easy)}

    def table(settings: dict[str, dict]):
        records = [
            record(label, "piqa", "acc", *mean_stderr(s), 200, samples=tuple(s), settings=settings[label])
            for label, s in scores.items()
        ]
        frame = store(tmp_path, records)
        return frame, load_samples(tmp_path)

    frame, samples = table({"gdn2": {"items": "x"}, "kda": {"items": "x"}})
    assert marks(comparison(frame, samples=samples), "piqa_acc") == {"gdn2": "bold", "kda": None}
    assert marks(comparison(frame), "piqa_acc") == {"gdn2": None, "kda": None}
    frame, samples = table({"gdn2": {"items": "x"}, "kda": {"items": "y"}})
    mixed = comparison(frame, samples=samples, allow_mixed=True)
    assert marks(mixed, "piqa_acc") == {"gdn2": None, "kda": None}


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


def test_a_baseline_changes_no_note_about_the_models(tmp_path):
    changes = {"version_torch": "2.12.0", "device": "Other CPU", "dtype": "float64", "git_commit": "f" * 40}
    other = Provenance(**{**vars(CERTIFICATE), **changes, "git_dirty": True})
    models = [record("gdn2", "novels", "word_perplexity", 40.0, 1.0, seed=seed) for seed in (1, 2)]
    unigram = record(
        "unigram", "novels", "word_perplexity", 900.0, None, layout="baseline", preset="none", certificate=other
    )
    alone, beside = (comparison(store(tmp_path / str(len(r)), r)) for r in (models, [*models, unigram]))
    about_errors = "a number without ± has no known error, and its group of its column no marks"
    assert [note for note in beside.notes if note != about_errors] == alone.notes
    assert beside.provenance[:-1] == alone.provenance[:-1]
    assert "seeds: 1, 2" in beside.notes and beside.provenance[-1].startswith("3 records")


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


def test_columns_can_be_chosen_and_unknown_ones_are_named(tmp_path):
    frame = store(tmp_path, golden_records())
    table = comparison(frame, columns=["s_niah_2@512", "piqa_acc"])
    assert [column.name for column in table.columns] == ["s_niah_2@512", "piqa_acc"]
    with pytest.raises(ValueError, match="no records of boolq_acc; there are piqa_acc"):
        comparison(frame, columns=["boolq_acc"])


def test_a_cell_with_fewer_seeds_than_its_row_is_named(tmp_path):
    records = [record("gdn2", "piqa", "acc", 0.5, 0.1, seed=s) for s in (0, 1)] + [
        record("kda", "piqa", "acc", 0.5, 0.1, seed=s) for s in (0, 1)
    ]
    records.append(record("kda", "boolq", "acc", 0.6, 0.1, seed=0))
    assert "fewer seeds: kda (recurrent) boolq_acc has 1 of 2" in comparison(store(tmp_path, records)).notes


def test_one_bad_seed_does_not_hide_in_an_average(tmp_path):
    records = [record("gdn2", "lambada", "perplexity", v, 0.1, seed=s) for s, v in enumerate((12.0, math.nan))]
    table = comparison(store(tmp_path, records))
    assert "| not finite (seed 1)<br>paper 11.41 |" in table.markdown()
    assert "nan" not in table.markdown()


def test_variants_of_a_mixer_do_not_carry_its_printed_number(tmp_path):
    records = [record(label, "piqa", "acc", 0.5, 0.1, mixer="gdn2") for label in ("gdn2", "gdn2-expanded")]
    table = comparison(store(tmp_path / "both", records))
    assert {row.label: cell.paper for (row, _), cell in table.cells.items()} == {"gdn2": 0.728, "gdn2-expanded": None}
    alone = comparison(store(tmp_path / "alone", records[1:]))
    assert [cell.paper for cell in alone.cells.values()] == [None]


def test_a_mixer_under_its_display_name_carries_its_printed_number(tmp_path):
    labels = {"Gated DeltaNet-2": "gdn2", "Gated DeltaNet": "gdn2", "KDA": "kda"}
    records = [record(label, "piqa", "acc", 0.5, 0.1, mixer=mixer) for label, mixer in labels.items()]
    table = comparison(store(tmp_path, records))
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


def test_a_stand_in_has_neither_the_papers_name_nor_its_number(tmp_path):
    paper = comparison(store(tmp_path / "a", [record("gdn2", "wikitext", "word_perplexity", 20.0, 1.0)]))
    stand_in = record("gdn2", "wikitext", "word_perplexity", 20.0, 1.0, stand_in="105 articles")
    other = comparison(store(tmp_path / "b", [stand_in]))
    assert "Wiki. ppl ↓ |" in paper.markdown() and "paper 15.9 |" in paper.markdown()
    assert "wikitext ppl ↓ [a] |" in other.markdown() and "paper 15.9" not in other.markdown()
    assert "[a] not the paper's measurement: wikitext: 105 articles" in other.notes


def test_wide_suites_are_split_by_metric(tmp_path):
    records = [
        record("gdn2", "s_niah_1", metric, 0.5, 0.1, suite="ruler", length=length)
        for metric in ("contains", "needle_gain")
        for length in range(100, 800, 100)
    ]
    titles = [title for title, _ in comparison(store(tmp_path, records)).sections()]
    assert titles == ["ruler: contains", "ruler: needle gain, nats/token"]


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


def test_a_bar_in_a_label_does_not_break_the_table(tmp_path):
    text = comparison(store(tmp_path, [record("a|b", "piqa", "acc", 0.5, 0.1, mixer="gdn2")])).markdown()
    assert "| recurrent | a\\|b | 50.0 ± 10.0" in text


def test_notes_name_each_task_once(tmp_path):
    records = [
        record("gdn2", task, metric, 0.5, 0.1, 12, suite="ruler", length=length, stand_in="novels")
        for task in ("s_niah_2", "mk_niah_1")
        for length in (320, 512)
        for metric in ("contains", "needle_logprob", "needle_gain")
    ]
    records += [record("gdn2", task, "acc", 0.5, 0.1, 12, stand_in="novels") for task in ("piqa", "boolq")]
    records.append(record("gdn2", "piqa", "acc_norm", 0.5, 0.1, 9, stand_in="fewer"))
    notes = comparison(store(tmp_path, records)).notes
    everything = "piqa (acc), boolq and s_niah_2, mk_niah_1 @320/512"
    assert f"[a] not the paper's measurement: {everything}: novels" in notes
    assert "[b] not the paper's measurement: piqa (acc_n): fewer" in notes
    assert f"samples a run: 12: {everything}; 9: piqa (acc_n)" in notes


def test_lengths_that_are_not_tokens_say_what_they_count(tmp_path):
    settings = {"length_unit": "key-value pairs"}
    frame = store(
        tmp_path, [record("gdn2", "mqar", "acc", 0.5, 0.1, suite="recall", length=n, settings=settings) for n in (4, 8)]
    )
    table = comparison(frame)
    assert [(column.title, column.detail) for column in table.columns] == [
        ("mqar", "acc @4 pairs ↑"),
        ("mqar", "acc @8 pairs ↑"),
    ]
    assert [column.name for column in table.columns] == ["mqar_acc@4", "mqar_acc@8"]
    assert "samples a run: 100: mqar @4/8 pairs" in table.notes


def test_what_runs_were_trained_on_is_said_and_marked_where_it_differs(tmp_path):
    frame = store(tmp_path, [record(label, "piqa", "acc", 0.5, 0.1) for label in ("gdn2", "kda")])
    runs = RUNS.assign(trained_on=["CPU, float32"] * 2 + ["GPU, bfloat16", None], mixture="90% prose, 10% recall")
    notes = comparison(frame, runs=runs).notes
    # The GPU run has failed, and no number of it is shown.
    assert "trained on CPU, float32" in notes and "trained on mixture: 90% prose, 10% recall" in notes
    runs["trained_on"] = ["CPU, float32", "GPU, bfloat16", "GPU, bfloat16", "CPU, float32"]
    said = "MIXED, trained on CPU, float32: gdn2 (recurrent), attention (attention); GPU, bfloat16: kda (recurrent)"
    assert said in comparison(frame, runs=runs).notes
    assert not any("trained on" in note for note in comparison(frame, runs=RUNS).notes)


def test_huge_perplexities_are_powers_of_ten_to_read_and_exact_in_csv(tmp_path):
    values = {"gdn2": (153934115.0, 67540947.0), "kda": (99999.0, 10.0), "mamba2": (9.97e8, 2e5)}
    table = comparison(store(tmp_path, [record(k, "novels", "word_perplexity", *v) for k, v in values.items()]))
    text = table.markdown()
    assert "1.5e8 ± 0.7e8" in text and "99999 ± 10" in text and "10.0e8" not in text
    assert "9.970e8 ± 0.002e8" in text and "153934115,67540947" in table.csv()
    assert power_of_ten(9.97e8, 6e7) == "1.00e9 ± 0.06e9"
    assert power_of_ten(2e5, None) == "2.0e5"


def test_names_and_headings_are_the_papers():
    needle = Column("ruler", "s_niah_2", "contains", 4096)
    assert (needle.title, needle.detail, needle.name) == ("S-NIAH-2", "@4096 ↑", "s_niah_2@4096")
    assert Column("language", "hellaswag", "acc_norm", None).name == "hellaswag_acc_norm"
    wikitext = Column("language", "wikitext", "word_perplexity", None)
    assert (wikitext.title, wikitext.detail) == ("Wiki.", "ppl ↓")


def test_ten_thousand_records_load_and_compare_in_seconds(tmp_path):
    for label in range(20):
        for seed in range(5):
            own = [record(f"m{label}", f"t{t}", "acc", 0.5, 0.1, seed=seed) for t in range(100)]
            write_records(tmp_path / own[0].run, "language", own)
    start = time.perf_counter()
    table = comparison(load(tmp_path))
    # Half a second on an idle core; the bound only catches a cost that grows with the square of the records.
    assert time.perf_counter() - start < 10
    assert len(table.cells) == 20 * 100
