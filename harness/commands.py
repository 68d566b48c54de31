"""Commands on models and results: params, check, generate, export, table, compare, figure, report, index."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.command_line import (
    RUNS,
    AsJson,
    Collection,
    Experiment,
    MixerFiles,
    RunsRoot,
    Scale,
    Trust,
    app,
    errors,
    load_mixers,
    print_result,
    runs_app,
)
from harness.progress import working
from harness.run_folder import Collection as CollectionFolder
from harness.run_folder import collection_of

if TYPE_CHECKING:
    from harness.tables.forms import Table
    from harness.tables.verdicts import Verdict

Form = Literal["md", "terminal", "tex", "csv", "html"]
"""How `table` and `compare` print."""
Format = Annotated[
    Form | None,
    typer.Option("--format", help="By default md or terminal, as the output is.", show_default=False),
]


@app.command()
def params(
    preset: Annotated[str, typer.Option(help="A scale; see `list`.")],
    length: Annotated[
        int | None, typer.Option(help="Tokens a sequence, for FLOPs; the preset's context by default.")
    ] = None,
    mixer_file: MixerFiles = None,
    as_json: AsJson = False,
) -> None:
    """Show the matched models of a scale: parameters, state, FLOPs."""
    from harness.experiments.matching import parameter_table

    with errors():
        if length is not None and length < 1:
            raise ValueError(f"--length: {length} is no length; give at least 1 token")
        own = load_mixers(mixer_file)  # first: a file may give its mixers a geometry in PRESETS
        rows = parameter_table(preset, length)
        lacking = sorted(set(own) - {row["mixer"] for row in rows})
        reason = f"PRESETS[{preset!r}].mixers has no options for it; add them in its file, or use an experiment"
        rows += [{"mixer": name, "layout": "recurrent", "refused": reason} for name in lacking]
    header = (
        f"{'mixer':16}{'layout':12}{'non-embedding':>15}{'embedding':>13}{'state/layer':>13}{'FLOPs/token':>13}  MLP"
    )
    lines = [
        f"{r['mixer']:16}{r['layout']:12}{r['non_embedding_params']:15,}{r['embedding_params']:13,}"
        f"{r['state_floats_per_layer']:13,}{r['flops_per_token']:13.3g}  "
        + " ".join(f"{w}×{r['mlp_widths'].count(w)}" for w in sorted(set(r["mlp_widths"])))
        if "refused" not in r
        else f"{r['mixer']:16}{r['layout']:12}refused: {r['refused']}"
        for r in rows
    ]
    print_result(rows, as_json, "\n".join([header, *lines]))


@app.command()
def check(
    mixer: Annotated[str, typer.Argument(help="The mixer; see `list`.")],
    backend: Annotated[str, typer.Option(help="What computes bf16 activations; see `doctor`.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is one by default.")] = None,
    preset: Annotated[str | None, typer.Option(help="Take the mixer's geometry from this scale; see `list`.")] = None,
    options: Annotated[list[str] | None, typer.Option("--set", help="An option of the mixer: a=value.")] = None,
    d_model: Annotated[int | None, typer.Option(help="The width; by default the preset's, else 64.")] = None,
    long_tokens: Annotated[int, typer.Option(help="Length of the longest input.")] = 65536,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Of weights and inputs.")] = 0,
    mixer_file: MixerFiles = None,
    as_json: AsJson = False,
) -> None:
    """Try a mixer on everything that the interface promises.

    Exit code 1 if it breaks one promise.
    """
    import torch

    from harness.experiments.load import parse_value
    from harness.experiments.presets import preset as scale
    from harness.records.provenance import provenance
    from mixers import build_mixer
    from mixers.conformance import HEADER, SMALL, Finding, conform, counts, row

    with errors():
        load_mixers(mixer_file)
        pairs = [option.partition("=") for option in options or []]
        given = scale(preset).mixers.get(mixer, {}) if preset else SMALL.get(mixer, {})
        given = given | {key: parse_value(value, f"{key}={value}") for key, _, value in pairs}
        width = d_model or (scale(preset).d_model if preset else 64)
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if place.partition(":")[0] not in ("cpu", "cuda") or (place != "cpu" and not torch.cuda.is_available()):
            raise ValueError(f"--device: {place!r} is not on this machine; take cpu, or cuda where there is one")
        head = [f"{mixer} at width {width}, {given}, on {place}", HEADER]  # above the first row, not above an error

        def show(finding: Finding) -> None:
            typer.echo("\n".join([*head, row(finding)]))
            head.clear()

        findings = conform(
            lambda: build_mixer(mixer, width, given),
            device=place,
            backend=backend,
            seed=seed,
            long_tokens=long_tokens,
            progress=None if as_json else show,
        )
    report = {"mixer": mixer, "d_model": width, "options": given, "seed": seed, "long_tokens": long_tokens}
    report["findings"] = [asdict(finding) for finding in findings]
    report["provenance"] = asdict(provenance("", place, torch.bfloat16, backend))
    print_result(report, as_json, counts(findings))
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


@app.command()
def generate(
    run: Annotated[Path, typer.Option(help="The folder of a trained run.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Of the sampling.")] = 0,
    trust: Trust = False,
) -> None:
    """Continue a text with a trained run."""
    from harness.lm.generate import generate_text
    from harness.lm.load import load_lm

    with errors():
        lm = load_lm(run, trust)
        typer.echo(generate_text(lm.model, lm.tokenizer, prompt, max_new_tokens, temperature=temperature, seed=seed))


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="The folder of a trained run.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    trust: Trust = False,
) -> None:
    """Write a trained run as a folder that transformers loads.

    AutoModelForCausalLM and AutoTokenizer read it.
    """
    from harness.lm.export import export as write

    with errors():
        typer.echo(write(run, out, trust))


@runs_app.command("pack")
def pack_(
    run: Annotated[Path, typer.Argument(help="The folder of a trained run.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; <run>.tar by default.")] = None,
) -> None:
    """Pack a run into one file, to evaluate it elsewhere.

    It holds weights, tokenizer, code of the mixer, configuration, records and provenance.
    """
    from harness.lm.pack import pack

    with errors():
        typer.echo(pack(run, out))


@runs_app.command("unpack")
def unpack_(
    file: Annotated[Path, typer.Argument(help="A file made by `runs pack`.")],
    runs: RunsRoot = RUNS,
) -> None:
    """Unpack a packed run into a folder of runs.

    No code is run: see --trust of `eval`, `generate` and `export`.
    """
    from harness.lm.pack import unpack

    with errors():
        typer.echo(unpack(file, runs))


@app.command()
def table(
    experiment: Experiment,
    out: Collection = None,
    columns: Annotated[str | None, typer.Option(help="Only these columns, separated by commas.")] = None,
    allow_mixed: Annotated[bool, typer.Option("--allow-mixed", help="Mix records whose settings differ.")] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's own numbers instead, with their sampling noise.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 unless every truth of the experiment is met.")
    ] = False,
    runs: RunsRoot = RUNS,
    form: Format = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Print every row less this one, over layouts: a label or mixer, or /hybrid after it."),
    ] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Print the answer in a few lines, and no table.")] = False,
    scale: Scale = None,
) -> None:
    """Print the comparison, and write it in every form.

    Markdown, LaTeX, CSV and HTML lie beside the records. An experiment that measures a table of the paper is also
    written in the paper's layout, beside its numbers.
    """
    from harness.experiments.load import load_experiment, stored_experiment
    from harness.experiments.names import experiment_name
    from harness.tables.collection import read_table, write_forms, write_table
    from harness.tables.differences.rows import differences
    from harness.tables.paper import PAPER_TABLES, printed_table

    with errors():
        if baseline is not None:
            if paper or strict or summary:
                raise ValueError("--baseline: prints differences; leave out --paper, --strict and --summary")
            target = out or collection_of(runs.resolve(), experiment_name(experiment, scale)).path
            with CollectionFolder(target).reading(), working(f"comparing the rows of {target}"):
                compared = read_table(target, columns.split(",") if columns else None, allow_mixed)
            typer.echo(_shown(differences(compared, baseline), form))
            return
        if summary and (paper or form):
            raise ValueError("--summary: is of our results, in one form; leave out --paper and --format")
        if strict and (paper or columns):
            raise ValueError(
                f"--strict: judges all of our results, and {'--paper' if paper else '--columns'} leaves some out; "
                "give one of the two"
            )
        if not paper:
            target = out or collection_of(runs.resolve(), experiment_name(experiment, scale)).path
            with CollectionFolder(target).reading(), working(f"writing the tables of {target}"):
                loaded = stored_experiment(target)
                found = write_table(target, columns.split(",") if columns else None, allow_mixed, loaded)
            typer.echo("\n".join(f"- {line}" for line in found.summary) if summary else _shown(found, form))
            if strict:
                require_met(found.truths, loaded.name)
            return
        loaded = load_experiment(experiment, scale=scale)
        if loaded.expected is None or loaded.expected.table not in PAPER_TABLES:
            raise ValueError(f"--paper: {loaded.name} measures no table of the paper; use {', '.join(PAPER_TABLES)}")
        found = printed_table(loaded.expected.table)
        if out:
            write_forms(out, f"{loaded.expected.table}-printed", found)
        typer.echo(_shown(found, form))


def _shown(table: Table, form: Form | None) -> str:
    """A table for a terminal if the output is one, else markdown, unless a form is asked for."""
    if form in (None, "terminal") and (form or sys.stdout.isatty()):
        return table.terminal(shutil.get_terminal_size((120, 0)).columns)
    write = {"tex": lambda: table.latex("table"), "csv": table.csv, "html": table.html}
    return write.get(form, table.markdown)()


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A folder of collected results, or an experiment's name.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one, from which A is subtracted.")],
    columns: Annotated[str | None, typer.Option(help="Only these columns, separated by commas.")] = None,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Compare what was measured differently, too.")
    ] = False,
    runs: RunsRoot = RUNS,
    form: Format = None,
) -> None:
    """Print what differs between two collections, B less A.

    Rows and columns that both have are compared.
    """
    from harness.experiments.names import experiment_name
    from harness.tables.differences.collections import compare_collections

    with errors():
        names = [None if Path(name).is_dir() else experiment_name(name) for name in (a, b)]
        folders = [
            Path(given) if name is None else collection_of(runs, name).path
            for given, name in zip((a, b), names, strict=True)
        ]
        reading = CollectionFolder(folders[0]).reading(), CollectionFolder(folders[1]).reading()
        with reading[0], reading[1], working(f"comparing {folders[0]} and {folders[1]}"):
            found = compare_collections(*folders, columns.split(",") if columns else None, allow_mixed)
        typer.echo(_shown(found, form))


def require_met(verdicts: list[Verdict], name: str) -> None:
    """Exit with 1, naming them, if truths are not met or undecided. Raises ValueError if there are none to judge."""
    from harness.tables.verdicts import MET, tally

    if not verdicts:
        raise ValueError(f"--strict: {name} states no truths; add some and collect again, or leave --strict out")
    unmet = [verdict for verdict in verdicts if verdict.outcome != MET]
    typer.echo(f"truths: {tally(verdicts)}", err=True)
    for verdict in unmet:
        typer.echo(f"{verdict.outcome}: {verdict.truth}: {verdict.numbers}", err=True)
    if unmet:
        raise typer.Exit(1)


@app.command()
def figure(
    experiment: Experiment,
    what: Annotated[
        str,
        typer.Option(
            help="curves, recall, mqar, state, positions, learning, tuning, ruler, scores, pareto, ablations, "
            "throughput, decode, kernels or gates."
        ),
    ],
    column: Annotated[
        list[str] | None, typer.Option(help="A column of table.csv, where the figure takes some: mqar_acc@16.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="gates: the folder of a trained Gated DeltaNet-2 run.")] = None,
    prompt: Annotated[str, typer.Option(help="gates: needle, or a task of recall.")] = "needle",
    size: Annotated[int, typer.Option(help="gates: the prompt's tokens, or the task's difficulty.")] = 64,
    trust: Trust = False,
    out: Collection = None,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
) -> None:
    """Draw a figure of what was collected, or of a run's gates.

    As PNG and SVG, beside the records.
    """
    from harness.experiments.names import experiment_name
    from harness.figures import GATES, write_figure, write_gates

    with errors():
        target = out or collection_of(runs.resolve(), experiment_name(experiment, scale)).path
        if what == GATES:
            from harness.lm.load import load_lm

            if run is None:
                raise ValueError("--run: gates are drawn from a model; give the folder of a trained gdn2 run")
            paths = write_gates(target, load_lm(run, trust), prompt, size)
        else:
            with CollectionFolder(target).reading(), working(f"drawing {what} of {target}"):
                paths = write_figure(target, what, column)
        for path in paths:
            typer.echo(path)


@app.command()
def report(
    experiment: Experiment,
    column: Annotated[
        list[str] | None, typer.Option(help="Columns of table.csv for the figures that take some: mqar_acc@16.")
    ] = None,
    out: Collection = None,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
) -> None:
    """Write one HTML page of all that was collected.

    Summary, tables, answers, figures, configuration and provenance; it needs no other file.
    """
    from harness.experiments.load import stored_experiment
    from harness.experiments.names import experiment_name
    from harness.report.page import report as write
    from harness.tables.collection import write_table

    with errors():
        target = out or collection_of(runs.resolve(), experiment_name(experiment, scale)).path
        with CollectionFolder(target).reading(), working(f"writing the tables of {target}") as at:
            loaded = stored_experiment(target)
            write_table(target, None, False, loaded)
            at(f"drawing the figures of {target}")
            typer.echo(write(target, loaded, column))


@app.command()
def index(runs: RunsRoot = RUNS) -> None:
    """Write one HTML page over all experiments in --runs.

    Each one's summary, and the way to its report.
    """
    from harness.report.index import write_index

    with errors(), working("reading the collections"):
        typer.echo(write_index(runs.resolve()))
