"""The tables of a collection are written in every form, in the paper's layout where the experiment measures one."""

from __future__ import annotations

import shutil

import pytest

from harness.experiments.load import load_experiment, stored_experiment
from harness.experiments.schema import Experiment
from harness.files import CHECKOUT
from harness.records.store import load
from harness.run_folder import Collection
from harness.tables.collection import write_forms, write_table
from harness.tables.paper import printed_table
from harness.tables.summary import MOST
from tests.harness.tables.table_records import TOKENS, golden_records, of_table2, store


@pytest.fixture
def collected(tmp_path):
    """A collection of a small table 2."""
    frame, runs, _ = of_table2(tmp_path / "runs")
    out = tmp_path / "out"
    out.mkdir()
    frame.drop(columns="file").to_parquet(out / "records.parquet")
    runs.to_json(out / "runs.json", orient="records")
    return out


def written(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".md", ".tex", ".csv", ".html"))


def test_a_table_is_written_in_four_forms_and_returned_as_markdown(collected):
    table = write_table(collected, None, allow_mixed=False)
    assert written(collected) == ["table.csv", "table.html", "table.md", "table.tex"]
    shown = table.markdown()
    assert table.truths == [] and shown == (collected / "table.md").read_text() and "### language" in shown
    assert shown.startswith("### In short\n\n- scale: ") and len(table.summary) <= MOST
    assert (collected / "table.html").read_text().index("In short") < (collected / "table.html").read_text().index(
        "<table"
    )


def test_an_experiment_of_the_paper_is_also_laid_out_as_the_papers_table(collected):
    experiment = load_experiment("table2")
    shown = write_table(collected, None, allow_mixed=False, experiment=experiment).markdown()
    assert shown == (collected / "table2.md").read_text() and "Language modelling" in shown
    assert len(written(collected)) == 8
    only = write_table(collected, ["piqa_acc"], allow_mixed=False, experiment=experiment)
    assert only.truths == []  # of a part of the columns
    assert only.markdown() == (collected / "table.md").read_text() and "BoolQ" not in only.markdown()


def test_truths_and_the_papers_numbers_are_judged_in_one_list_that_every_readable_form_prints(collected):
    content = {"name": "small", "preset": "cpu-1m", "mixers": ["gdn2"]}
    content["truths"] = [{"threshold": "piqa_acc", "of": ["gdn2"], "at_least": 1, "why": "a test"}]
    content["expected"] = {"table": "table2", "preset": "cpu-1m", "tokens": TOKENS, "tolerance": {"piqa_acc": 12.0}}
    content["data"] = {"phases": [{"tokens": TOKENS, "seq_len": 64, "rows": {"text": 4}}]}
    experiment = Experiment.model_validate(content)
    table = write_table(collected, None, allow_mixed=False, experiment=experiment)
    shown, verdicts = table.markdown(), table.truths
    assert (verdicts[0].outcome, verdicts[0].why) == ("met", "a test")
    rows = {verdict.truth.partition(" is ")[0].removeprefix("piqa_acc of "): verdict for verdict in verdicts[1:]}
    outcomes = {row: verdict.outcome for row, verdict in rows.items()}
    assert outcomes == {
        "Mamba-2 (recurrent)": "not met",
        "Gated DeltaNet (recurrent)": "met",
        "KDA (recurrent)": "undecided",
        "Mamba-3 SISO (recurrent)": "undecided",
        "Gated DeltaNet-2 (recurrent)": "met",
        "Transformer (attention)": "not met",
        "Gated DeltaNet-2 (hybrid)": "undecided",
    }
    assert rows["KDA (recurrent)"].numbers == "failed"
    assert rows["Gated DeltaNet-2 (hybrid)"].numbers == "not trained at the paper's scale"
    assert "### Truths\n\n3 met, 2 not met, 3 undecided\n\n| verdict | truth | numbers |" in shown
    for name in ("table", "table2"):
        for form in ("md", "html", "tex"):
            text = (collected / f"{name}.{form}").read_text()
            assert "at least 1" in text and "a test" in text, (name, form)
        assert "at least 1" not in (collected / f"{name}.csv").read_text()


def test_a_folder_without_a_collection_is_refused(tmp_path):
    store(tmp_path / "runs", golden_records())
    with pytest.raises(ValueError, match="nothing collected there; run collect first"):
        write_table(tmp_path, None, allow_mixed=False)


def test_forms_are_named_after_the_table(tmp_path):
    write_forms(tmp_path, "table3-printed", printed_table("table3"))
    assert written(tmp_path) == [f"table3-printed.{form}" for form in ("csv", "html", "md", "tex")]
    assert (tmp_path / "table3-printed.md").read_text() == printed_table("table3").markdown()
    assert "tab:table3-printed" in (tmp_path / "table3-printed.tex").read_text()


@pytest.mark.parametrize("name", ["demo", "recall"])
def test_the_commands_of_committed_results_name_no_folder_of_the_machine_that_made_them(name):
    commands = load(CHECKOUT / "results" / name)["command"].unique()
    assert [command for command in commands if any(word.startswith("/") for word in command.split())] == []


@pytest.mark.parametrize("name", ["demo", "recall"])
def test_committed_results_are_written_again_to_the_same_bytes(name, tmp_path):
    committed = CHECKOUT / "results" / name
    read = Collection(committed)
    for path in (read.records, read.samples, read.runs, read.experiment):
        shutil.copy(path, tmp_path)
    write_table(tmp_path, None, allow_mixed=False, experiment=stored_experiment(tmp_path))
    forms = written(tmp_path)
    assert forms == written(committed) == ["table.csv", "table.html", "table.md", "table.tex"]
    assert [form for form in forms if (tmp_path / form).read_bytes() != (committed / form).read_bytes()] == []
