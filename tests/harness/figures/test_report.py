"""The report is one page that needs no other file."""

import re
import shutil
from pathlib import Path

import yaml
from typer.testing import CliRunner

from harness.experiments.load import load_experiment
from harness.figures.report import POLICY, report
from harness.files import CHECKOUT
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
    links = re.findall(r'href="([^"]+)"', page)
    assert links and all((folder / link).is_file() for link in links)
    assert not re.search(r"<(script|link|iframe)", page) and "@import" not in page
    assert "kernels" in page.partition("No data, or no columns, for: ")[2].partition("<")[0]


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
    assert {tag for tag, _ in page.elements} <= tags | {"summary", "caption", "pre", "dl", "dt", "dd", "a"}
    assert sum(tag in ("h1", "title") for tag, _ in page.elements) == 2
    assert ("meta", ("http-equiv=Content-Security-Policy", f"content={POLICY}")) in page.elements


def test_nothing_collected_is_said(tmp_path: Path) -> None:
    result = cli.invoke(app, ["report", "demo", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "nothing collected there; run collect first" in result.output
