"""What readers do with tables and reports: LaTeX compiles them, a browser shows them, and neither obeys the data."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.experiments.load import load_experiment
from harness.figures.report import report
from harness.records.store import load
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


def shown(page: Path, profile: Path) -> str:
    """The document that a browser makes of a page, after its scripts, if it runs any."""
    browser = program("chromium", "chromium-browser", "google-chrome")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=2000",
    ]
    command = [browser, *options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_browser_shows_the_report_and_runs_nothing_in_it(tmp_path: Path) -> None:
    page = report(hostile_collection(tmp_path / "hostile"), load_experiment("demo"))
    text = page.read_text()
    dom = Page(shown(page, tmp_path / "profile"))
    tags = [tag for tag, _ in dom.elements]
    assert not {"script", "iframe", "form", "input", "object", "link"} & set(tags)
    written = [tag for tag, _ in Page(text).elements]
    assert all(tags.count(tag) == written.count(tag) for tag in ("h1", "h2", "img", "table", "td", "a"))
    labels = {" ".join(plain(label).split()) for label in HOSTILE}
    assert labels <= set(dom.texts())
    # A script that got into the page all the same is not run.
    intruder = text.replace("</body>", "<script>document.body.innerHTML = '<h6>run</h6>'</script></body>")
    (page.parent / "intruder.html").write_text(intruder)
    assert "h6" not in {tag for tag, _ in Page(shown(page.parent / "intruder.html", tmp_path / "profile")).elements}
    free = re.sub(r"<meta http-equiv[^>]*>", "", intruder)  # the policy is what stops it
    (page.parent / "free.html").write_text(free)
    assert "h6" in {tag for tag, _ in Page(shown(page.parent / "free.html", tmp_path / "profile")).elements}
