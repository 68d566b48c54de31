"""LaTeX compiles tables, a browser shows reports, axe-core finds nothing in them, and none obeys the data."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.experiments.load import load_experiment
from harness.files import CHECKOUT, cache_dir
from harness.records.store import load
from harness.report.page import report
from harness.run_folder import Collection
from harness.tables.comparison import comparison
from harness.tables.escaping import in_latex, plain
from tests.harness.tables.table_records import HOSTILE, hostile_collection
from tests.harness.tables.test_escaping import Page
from tests.harness.tables.test_forms import NAMES, make

pytestmark = pytest.mark.pages
INSTALL = "is not installed; `make test-pages` installs it from Debian's packages (root)"
LATIN = "".join(map(chr, range(256)))
"""Every character that LaTeX is given as it is, and those below that must not reach it."""


def program(*names: str) -> str:
    """The first of these programs that is here; skips the test if none is."""
    found = next((path for name in names if (path := shutil.which(name))), None)
    return found or pytest.skip(f"{names[0]} {INSTALL}")


def test_latex_compiles_with_the_packages_that_it_names(tmp_path: Path) -> None:
    pdflatex = program("pdflatex")
    folder = hostile_collection(tmp_path / "hostile")
    hostile = comparison(load(folder), None, Collection(folder).read_runs(), {}, True, None)
    tables = {name: make(name, tmp_path / name) for name in NAMES} | {"hostile": hostile}
    bodies = [table.latex(name) for name, table in tables.items()]
    packages = re.findall(r"\\usepackage(?:\[\w+\])?\{\w+\}", bodies[0].splitlines()[0])
    assert len(packages) == 2
    head = ["\\documentclass{article}", *packages, "\\begin{document}"]
    paragraph = f"\\clearpage\n{in_latex(LATIN)}"
    text = "\n".join([*head, *("\\clearpage\n" + body for body in bodies), paragraph, "\\end{document}"])
    (tmp_path / "all.tex").write_text(text)
    command = [pdflatex, "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "undefined" not in done.stdout and "Missing character" not in done.stdout


def test_no_table_sticks_out_of_the_page(tmp_path: Path) -> None:
    pdflatex = program("pdflatex")
    bodies = [make(name, tmp_path / name).latex(name) for name in NAMES]
    packages = re.findall(r"\\usepackage(?:\[\w+\])?\{\w+\}", bodies[0].splitlines()[0])
    text = ["\\documentclass{article}", *packages, "\\begin{document}", *bodies, "\\end{document}"]
    (tmp_path / "all.tex").write_text("\n".join(text))
    command = [pdflatex, "-interaction=nonstopmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=300)
    # The longest lines of small print may stick out by a few points; a table must not.
    wide = [float(w) for w in re.findall(r"Overfull .hbox \((\S+)pt too wide", done.stdout)]
    assert max(wide, default=0) < 30


def shown(page: Path, profile: Path, milliseconds: int = 2000) -> str:
    """The document that a browser makes of a page, after its scripts have had some time."""
    browser = program("chromium", "chromium-browser", "google-chrome")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        f"--virtual-time-budget={milliseconds}",
    ]
    command = [browser, *options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def clicked(page: Path, folder: Path) -> Page:
    """The document after a click on a table's heading, by a script that the page lets in for this."""
    click = "document.querySelector('table.sortable thead th').click()"
    free = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    (page.parent / "clicked.html").write_text(free.replace("</body>", f"<script>{click}</script></body>"))
    return Page(shown(page.parent / "clicked.html", folder / "profile"))


def axe() -> str:
    """axe-core, which `make test-pages` fetches; skips the test where it is missing."""
    path = cache_dir() / "axe-core" / "package" / "axe.min.js"
    return path.read_text(encoding="utf-8") if path.is_file() else pytest.skip(f"axe-core {INSTALL}")


@pytest.mark.parametrize("kept", ["demo", "recall"])
def test_axe_core_finds_nothing_in_the_report(kept: str, tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "results" / kept, tmp_path / kept)
    page = report(tmp_path / kept, load_experiment(kept))
    ask = """axe.run().then(found => { const said = found.violations.map(
      v => v.id + ": " + v.nodes.slice(0, 3).map(n => n.html.slice(0, 120)).join(" | "));
      document.title = "axe: " + JSON.stringify(said) })"""
    free = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    page.write_text(free.replace("</body>", f"<script>{axe()}</script><script>{ask}</script></body>"))
    title = re.findall(r"<title>(.*?)</title>", shown(page, tmp_path / "profile", 60_000), re.DOTALL)[0]
    assert title == "axe: []"


def test_a_browser_shows_the_report_and_runs_nothing_in_it(tmp_path: Path) -> None:
    page = report(hostile_collection(tmp_path / "hostile"), load_experiment("demo"))
    text = page.read_text()
    dom = Page(shown(page, tmp_path / "profile"))
    tags = [tag for tag, _ in dom.elements]
    assert not {"iframe", "form", "object", "link"} & set(tags)
    written = [tag for tag, _ in Page(text).elements]
    # The report's own scripts ran: every sortable table has got its filter.
    assert tags.count("input") == text.count('class="plain sortable"') > 0
    assert tags.count("script") == written.count("script") == 2
    assert all(tags.count(tag) == written.count(tag) for tag in ("h1", "h2", "img", "table", "td", "a"))
    assert "aria-sort" in {a.partition("=")[0] for _, attrs in clicked(page, tmp_path).elements for a in attrs}
    labels = {" ".join(plain(label).split()) for label in HOSTILE}
    assert labels <= set(dom.texts())
    # A script that got into the page all the same is not run.
    intruder = text.replace("</body>", "<script>document.body.innerHTML = '<h6>run</h6>'</script></body>")
    (page.parent / "intruder.html").write_text(intruder)
    assert "h6" not in {tag for tag, _ in Page(shown(page.parent / "intruder.html", tmp_path / "profile")).elements}
    free = re.sub(r"<meta http-equiv[^>]*>", "", intruder)  # the policy is what stops it
    (page.parent / "free.html").write_text(free)
    assert "h6" in {tag for tag, _ in Page(shown(page.parent / "free.html", tmp_path / "profile")).elements}
