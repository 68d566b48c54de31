"""The report is one page that needs no other file."""

import html
import re
import shutil
from pathlib import Path

import yaml
from typer.testing import CliRunner

from harness.experiments.load import load_experiment
from harness.files import CHECKOUT
from harness.records.store import load, load_answers
from harness.report import explore
from harness.report.document import POLICY
from harness.report.page import report
from harness.run_folder import Collection
from run import app
from tests.harness.tables.table_records import hostile_collection
from tests.harness.tables.test_escaping import Page

DEMO = CHECKOUT / "results" / "demo"
cli = CliRunner()


def test_a_report_is_one_page_with_tables_figures_configuration_and_provenance(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(DEMO, folder)
    result = cli.invoke(app, ["report", "demo", "--out", str(folder), "--column", "mqar_acc@16"])
    assert result.exit_code == 0, result.output
    page = (folder / "report.html").read_text()
    for part in (
        "Gated DeltaNet-2",
        "Transformer",
        "cpu-150k",
        "warmup_ratio",
        "git_commit",
        "AMD EPYC",
        "<figcaption>",
    ):
        assert part in page
    # Nothing is fetched: images are in the page, and links lead to files beside it.
    assert page.count("<img") == page.count('src="data:image/svg+xml;base64,') >= 3
    links = re.findall(r'href="([^"]+)"', page[: page.index("<script>")])
    inner = [link for link in links if link.startswith("#")]
    assert len(inner) == len(set(inner)) >= 9 and all(f'id="{link[1:]}"' in page for link in inner)
    assert len(links) > len(inner) and all((folder / link).is_file() for link in links if link not in inner)
    assert not re.search(r"<(link|iframe)|<script [^>]|@import|src=\"http", page)
    # The answer first, then the contents of the rest.
    order = [page.index(text) for text in ("<h1>demo", "<nav", "<h3>In short</h3>", "<caption>model", 'id="Figures"')]
    assert order == sorted(order)
    assert "told models apart" in page and page.count('class="plain sortable"') >= 3
    body = page[: page.index("<script>")]
    heads = re.findall(r"<th(?: [^>]*)?>", body)
    assert all("scope=" in head for head in heads)
    assert all(text.endswith("<caption>") for text in re.findall(r"<table[^>]*>\s*<\w+>", body))
    assert "kernels" in page.partition("No data, or no columns, for: ")[2].partition("<")[0]


def test_five_questions_are_answered_where_the_documentation_says(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "demo")
    records, runs = load(tmp_path / "demo"), Collection(tmp_path / "demo").read_runs()
    column = records[(records["task"] == "mqar") & (records["metric"] == "acc") & (records["length"] == 4)]
    page = report(tmp_path / "demo", load_experiment("demo")).read_text()
    body = page[page.index("<main") : page.index("<script>")]
    sections = dict(re.findall(r'<section><h2 id="[^"]+">([^<]+)</h2>(.*?)(?=<section><h2|</main>)', body, re.DOTALL))
    recurrent = column[column["layout"] == "recurrent"].sort_values("value")
    documented = (CHECKOUT / "docs" / "results.md").read_text(encoding="utf-8")
    answers = iter([sections[section] for section in re.findall(r"^\| [^|]+\? \| (.+?): ", documented, re.MULTILINE)])
    best = next(answers)
    assert "<li>recall: this checkpoint of KDA is best in 4 of 8 columns, not told apart" in best and "points [" in best
    assert "<li>tuned: nothing; all rows have the experiment" in next(answers)
    differs = next(answers)
    for name in ("non_embedding_params", "flops_per_token", "state_floats_per_layer"):
        assert all(f"<td>{int(value):,}</td>" in differs for value in runs[name])
    assert "git_commit" in sections["Provenance"].partition("The same in all records")[0]
    words = next(answers)
    lowest = recurrent.iloc[0]
    own = load_answers(tmp_path / "demo")[(lowest["run"], "recall", "mqar", "acc", 4)]
    wrong = next(each for each in own if each.said != each.expected)
    assert html.escape(wrong.asked) in words
    assert f">{lowest['label']}, recurrent</th><td>{wrong.said}</td><td>wrong</td>" in words
    assert "1.151M training tokens" in next(answers) and next(answers, None) is None
    assert f"<td>{int(runs['tokens_seen'].iloc[0]):,}</td>" in sections["Models"]


def test_fields_in_which_records_differ_come_first_in_their_provenance(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "demo")
    page = report(tmp_path / "demo", load_experiment("demo")).read_text()
    differs, _, same = page[page.index("Differs between records") :].partition("The same in all records")
    assert "<dt>git_commit</dt>" in differs and "25fe4b0996" in differs and "<dt>version_torch</dt>" in same


def test_truths_stand_above_the_tables_and_once(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "demo")
    collected = Collection(tmp_path / "demo").experiment
    content = yaml.safe_load(collected.read_text(encoding="utf-8"))
    content["truths"] = [{"threshold": "mqar_acc", "of": ["attention"], "at": [4], "at_least": 0, "why": "a bound"}]
    collected.write_text(yaml.safe_dump(content))
    result = cli.invoke(app, ["report", "demo", "--out", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<h3>Truths</h3>") == 1 and "1 met" in page
    assert page.index("at least 0 at 4 (a bound)") < page.index("<caption>model")


def test_foreign_texts_add_no_element_or_attribute_to_the_page(tmp_path: Path) -> None:
    folder = hostile_collection(tmp_path / "hostile")
    result = cli.invoke(app, ["table", "demo", "--out", str(folder), "--allow-mixed"])
    assert result.exit_code == 0, result.output
    page = Page(report(folder, load_experiment("demo")).read_text())
    known = {
        *("id", "data-order", "aria-label"),
        "class",
        "colspan",
        "scope",
        "tabindex",
        "href",
        "src",
        "alt",
        "charset",
        "name",
        "content",
        "http-equiv",
        "lang",
    }
    assert {a.partition("=")[0] for _, attrs in page.elements for a in attrs} <= known
    tags = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "section", "table", "thead"}
    tags |= {
        "tbody",
        "tr",
        "th",
        "td",
        "b",
        "u",
        "ul",
        "li",
        "br",
        "span",
        "figure",
        "img",
        "figcaption",
        "details",
        "caption",
    }
    tags |= {"header", "nav", "main", "script"}
    assert {tag for tag, _ in page.elements} <= tags | {"summary", "caption", "pre", "dl", "dt", "dd", "a"}
    assert [attrs for tag, attrs in page.elements if tag == "script"] == [(), ()]  # the report's own
    assert sum(tag in ("h1", "title") for tag, _ in page.elements) == 2
    assert (
        "meta",
        ("http-equiv=Content-Security-Policy", f"content={POLICY.format(scripts=explore.scripts()[1])}"),
    ) in page.elements


def test_nothing_collected_is_said(tmp_path: Path) -> None:
    result = cli.invoke(app, ["report", "demo", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "nothing collected there; run collect first" in result.output
