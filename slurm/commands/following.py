"""Commands that follow experiments: status, logs, cancel, collect."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from harness.command_line import (
    RUNS,
    AsJson,
    Experiment,
    MixerFiles,
    Overrides,
    RunsRoot,
    Scale,
    SuiteFiles,
    app,
    errors,
    this_command,
)
from harness.progress import working
from harness.run_folder import Collection, collection_of
from slurm.commands.sweeps import planned


@app.command()
def status(
    experiment: Experiment,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    state: Annotated[str | None, typer.Option(help="Only runs in this state: failed, training, …")] = None,
    mixer: Annotated[str | None, typer.Option(help="Only runs of this mixer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only runs with this seed.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every two seconds, until ^C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the state of every run, as submitted. If nothing was, the runs that the experiment plans."""
    from slurm.queue import Queue
    from slurm.status import Filter, overview, report, runs_of

    with errors():
        root, asked = runs.resolve(), Filter(state, mixer, seed)
        name, known = runs_of(root, experiment, scale)
        if as_json:
            typer.echo(json.dumps([asdict(row) for row in asked.rows(overview(known, Queue.read()))], indent=1))
        elif watch:
            from rich.console import Console
            from rich.live import Live
            from rich.text import Text

            with Live("", console=Console(), auto_refresh=False) as live:
                while True:
                    shown = Text(report(root, name, known, asked))  # a string would be read as markup
                    live.update(shown, refresh=True)
                    time.sleep(2)
        else:
            typer.echo(report(root, name, known, asked))


@app.command()
def logs(
    run: Annotated[str, typer.Argument(help="A run, by its id.")],
    unit: Annotated[str | None, typer.Option(help="train, or what `status` calls an evaluation.")] = None,
    lines: Annotated[int, typer.Option(help="Number of lines from the end.")] = 40,
    runs: RunsRoot = RUNS,
) -> None:
    """Show the end of the log of a run's last attempt."""
    from slurm.status import logs as read_logs

    with errors():
        typer.echo(read_logs(runs.resolve(), run, unit, lines))


@app.command()
def cancel(experiment: Experiment, runs: RunsRoot = RUNS, scale: Scale = None) -> None:
    """Stop all jobs of an experiment. Its results stay; `submit` resumes it."""
    from slurm.status import cancel as stop
    from slurm.status import runs_of

    with errors():
        name, _ = runs_of(runs.resolve(), experiment, scale)
        stopped = stop(runs.resolve(), name)
    typer.echo("\n".join(stopped) or "nothing is at work")


@app.command("collect")
def collect_(
    experiment: Experiment,
    out: Annotated[Path | None, typer.Option(help="Output folder; collected/NAME in --runs by default.")] = None,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    overrides: Overrides = None,
    mixer_file: MixerFiles = None,
    suite_file: SuiteFiles = None,
) -> None:
    """Collect the records of an experiment into one data frame."""
    from slurm.collect import collect

    with errors():
        loaded, plans = planned(experiment, scale, overrides, mixer_file, suite_file, runs)
        target = out or collection_of(runs.resolve(), loaded.name).path
        with Collection(target).replacing(), working(f"collecting {loaded.name}") as at:
            frame, lacking = collect(plans, loaded, target, this_command(), at)
    typer.echo(f"{target}: {len(frame)} records of {frame['run'].nunique()} runs")
    for run_id in lacking:
        typer.echo(f"incomplete: {run_id}", err=True)
