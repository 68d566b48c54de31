"""Notes: what a reader is told about seeds, samples, baselines, training and failures."""

from __future__ import annotations

from harness.records.provenance import Provenance
from harness.tables.comparison import comparison
from harness.tables.notes import tasks_text
from tests.harness.tables.table_records import CERTIFICATE, RUNS, golden_records, record, store


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


def test_a_cell_with_fewer_seeds_than_its_row_is_named(tmp_path):
    records = [record("gdn2", "piqa", "acc", 0.5, 0.1, seed=s) for s in (0, 1)] + [
        record("kda", "piqa", "acc", 0.5, 0.1, seed=s) for s in (0, 1)
    ]
    records.append(record("kda", "boolq", "acc", 0.6, 0.1, seed=0))
    assert "fewer seeds: kda (recurrent) has 1 of 2: BoolQ acc" in comparison(store(tmp_path, records)).notes


def test_notes_name_each_task_once(tmp_path):
    records = [
        record("gdn2", task, metric, 0.0, 0.1, 12, suite="ruler", length=length, stand_in="novels")
        for task in ("s_niah_2", "mk_niah_1")
        for length in (320, 512)
        for metric in ("contains", "needle_logprob", "needle_gain")
    ]
    records += [record("gdn2", task, "acc", 0.5, 0.1, 12, stand_in="novels") for task in ("piqa", "boolq")]
    records.append(record("gdn2", "piqa", "acc_norm", 0.5, 0.1, 9, stand_in="fewer"))
    notes = comparison(store(tmp_path, records)).notes
    everything = "PIQA (stand-in) (acc), BoolQ (stand-in) and S-NIAH-2 (stand-in), MK-NIAH-1 (stand-in) @320/512"
    assert f"[a] not the paper's measurement: {everything}: novels" in notes
    assert "[b] not the paper's measurement: PIQA (stand-in) (acc_n): fewer" in notes
    assert f"samples a run: 12: {everything}; 9: PIQA (stand-in) (acc_n)" in notes


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


def test_what_differs_between_the_histories_of_rows_is_named_by_row(tmp_path):
    frame = store(tmp_path, [record(label, "piqa", "acc", 0.5, 0.1) for label in ("gdn2", "kda")])
    birth = {**vars(CERTIFICATE), "reached": 0, "processes": 1}
    newer = birth | {"reached": 400, "version_torch": "2.14.0", "backend": "triton", "processes": 2}
    same = {"train": [birth], "language": [birth]}
    others = [same] * (len(RUNS) - 2)
    equal = comparison(frame, runs=RUNS.assign(history=[same, same, *others])).notes
    assert equal == comparison(frame, runs=RUNS).notes
    continued = {"train": [birth, newer], "language": [birth | {"code_sha256": "f" * 64}]}
    notes = comparison(frame, runs=RUNS.assign(history=[same, continued, None, None])).notes
    one, two = "gdn2 (recurrent)", "kda (recurrent)"
    assert [note for note in notes if note not in equal] == [
        f"training differs between rows in version of torch: 2.13.0: {one}; 2.13.0, then 2.14.0: {two}",
        f"training differs between rows in backend: torch: {one}; torch, then triton: {two}",
        f"training differs between rows in processes: 1: {one}; 1, then 2: {two}",
        f"measuring language differs between rows in code: 0123456789: {one}; 0123456789, content ffffffffff: {two}",
    ]


def test_torch_in_place_of_kernels_is_said_under_the_numbers(tmp_path):
    frame = store(tmp_path, [record("gdn2", "piqa", "acc", 0.5, 0.1)])
    birth = {**vars(CERTIFICATE), "reached": 0, "processes": 1}
    line = "gdn2 runs on torch, which is slower than its kernels: triton: no"
    history = [{"train": [birth | {"fallbacks": [line]}], "language": None}, *[{"train": [birth]}] * (len(RUNS) - 1)]
    notes = comparison(frame, runs=RUNS.assign(history=history)).notes
    assert f"FALLBACK, {line}; so ran gdn2 (recurrent)" in notes


def test_files_of_different_mixers_may_differ_and_those_of_one_row_are_named(tmp_path):
    frame = store(tmp_path, [record("gdn2", "piqa", "acc", 0.5, 0.1, seed=seed) for seed in (0, 1)])
    births = [{**vars(CERTIFICATE), "files_sha256": letter * 64} for letter in "ab"]
    runs = RUNS.iloc[[0, 1]].assign(history=[{"train": [birth]} for birth in births])
    assert not any("differs between rows" in note for note in comparison(frame, runs=runs).notes)
    runs = runs.assign(label="gdn2", mixer="gdn2", seed=[0, 1], non_embedding_params=1, tokens_seen=1)
    said = "training differs between rows in content of its files: aaaaaaaaaa: gdn2 (recurrent); bbbbbbbbbb: gdn2"
    assert any(note.startswith(said) for note in comparison(frame, runs=runs).notes)


def test_models_that_do_not_match_in_parameters_are_named(tmp_path):
    frame = store(tmp_path, [record(label, "piqa", "acc", 0.5, 0.1) for label in ("gdn2", "kda")])
    runs = RUNS.assign(preset="cpu-1m", flops_per_token=[8.0e6, 8.1e6, float("nan"), 8.01e6])
    unchanged = comparison(frame, runs=runs).notes
    assert comparison(frame, runs=runs.assign(match="parameters")).notes == unchanged
    flops = comparison(frame, runs=runs.assign(match="flops")).notes
    said = "models match in training FLOPs per token, not in parameters; in rows as trained: cpu-1m 8M to 8.1M (+1.2%)"
    assert [note for note in flops if note not in unchanged] == [said]
    mlp = comparison(frame, runs=runs.assign(match="mlp")).notes
    said = "models do not match: all have their preset's MLP width; non-embedding parameters: "
    said += "cpu-1m 1.18M to 1.184M (+0.3%)"
    assert [note for note in mlp if note not in unchanged] == [said]


def test_a_failed_run_is_named_with_its_reason_on_one_line(tmp_path):
    notes = comparison(store(tmp_path, golden_records()), runs=RUNS).notes
    assert "FAILED: mamba2 (recurrent, seed 0, run mamba2-recurrent-0): loss is nan at step 7" in notes


def test_skipped_steps_and_spikes_are_named_with_their_number_and_nothing_is_said_without_any(tmp_path):
    frame = store(tmp_path, [record(label, "piqa", "acc", 0.5, 0.1) for label in ("gdn2", "kda")])
    plain = comparison(frame, runs=RUNS).notes
    runs = RUNS.assign(steps=1000, skipped=[3, 0, float("nan"), 1], spikes=[0, 2, float("nan"), 0])
    assert [note for note in comparison(frame, runs=runs).notes if note not in plain] == [
        "training steps left out because loss or gradient was not finite: gdn2 (recurrent, seed 0) 3 of 1,000, "
        "attention (attention, seed 0) 1 of 1,000",
        "training steps whose loss was a spike: kda (recurrent, seed 0) 2 of 1,000",
    ]
    assert comparison(frame, runs=RUNS.assign(steps=9, skipped=0, spikes=0)).notes == plain


def test_uncommitted_changes_and_the_number_of_records_are_part_of_the_provenance(tmp_path):
    dirty = Provenance(**{**vars(CERTIFICATE), "git_dirty": True})
    provenance = comparison(store(tmp_path, [record("gdn2", "piqa", "acc", 0.5, 0.1, certificate=dirty)])).provenance
    assert "code: 0123456789 with uncommitted changes" in provenance
    assert "1 records (schema 1) of runs gdn2-recurrent-0" in provenance


def test_tasks_of_the_same_lengths_are_named_together(tmp_path):
    lengths = {"s_niah_1": (320, 512), "s_niah_2": (320, 512), "mk_niah_1": (320,)}
    records = [
        record("gdn2", task, "contains", 0.5, 0.1, suite="ruler", length=length)
        for task, own in lengths.items()
        for length in own
    ]
    table = comparison(store(tmp_path, records))
    assert tasks_text(table, table.columns) == "S-NIAH-1, S-NIAH-2 @320/512 and MK-NIAH-1 @320"


def test_recipes_that_differ_are_named_with_their_rows(tmp_path):
    frame = store(tmp_path, [record(label, "piqa", "acc", 0.5, 0.1) for label in ("gdn2", "kda")])
    assert not any("recipe" in note for note in comparison(frame, runs=RUNS.assign(recipe=None)).notes)
    runs = RUNS.assign(recipe=[{"lr": 0.03}, *[{"lr": 0.01}] * (len(RUNS) - 1)])
    (note,) = [note for note in comparison(frame, runs=runs).notes if note.startswith("recipes differ: ")]
    assert note.startswith(f"recipes differ: lr 0.03: {RUNS.label[0]} ({RUNS.layout[0]}); lr 0.01: ")


def test_tuned_values_trials_and_edges_are_named_and_rows_that_were_not_tuned(tmp_path):
    frame = store(tmp_path, [record(label, "piqa", "acc", 0.5, 0.1) for label in ("gdn2", "kda")])
    slow, fast = ({"train.lr": lr, "train.init_gain": gain} for lr, gain in ((0.003, "upstream"), (0.01, 2**-2.5)))
    runs = RUNS.assign(tuned=[slow, fast, slow, slow], trials=12.0, tuned_at="35m", tuned_share=0.4)
    runs["at_edge"] = [[], ["train.lr"], [], []]
    notes = comparison(frame, runs=runs).notes
    by = "by 12 trials at 35m with 40% of the tokens"
    one, two, *_ = [f"{label} ({layout})" for label, layout in zip(RUNS["label"], RUNS["layout"], strict=True)]
    assert any(f"lr 0.01, init_gain 0.177 {by}: {two}" in note for note in notes if note.startswith("tuned: "))
    assert any(f"lr 0.003, init_gain upstream {by}: {one}" in note for note in notes if note.startswith("tuned: "))
    assert f"tuned to the least or largest value that was tried, so that a wider grid may do better: {two} lr" in notes
    assert not any("not tuned" in note for note in notes)
    runs["trials"], runs["tuned"] = [12.0, None, 12.0, 12.0], [slow, None, slow, slow]
    assert f"MIXED, not tuned, beside rows that are: {two}" in comparison(frame, runs=runs).notes
    assert not any("tuned" in note for note in comparison(frame, runs=RUNS).notes)
