"""Commands on runs and jobs: data prepare, submit, retry, train, status, logs, cancel, collect, bench sweep."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.command_line import (
    RUNS,
    AsJson,
    Experiment,
    MixerFiles,
    Overrides,
    RunsRoot,
    Scale,
    app,
    bench_app,
    data_app,
    errors,
    load_mixers,
    print_result,
    this_command,
)

Where = Annotated[
    str,
    typer.Option(
        "--cluster", help="local: processes of this machine; debug: this process; else a Slurm site's profile."
    ),
]
Parallel = Annotated[int, typer.Option("--parallel", help="Runs at a time, on this machine.")]


@data_app.command()
def prepare(
    source: Annotated[
        str | None, typer.Argument(help="`embedded`, a .txt, .jsonl or .parquet file, a folder, or a Hub name.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Instead of SOURCE: a data set's name on the Hub.")] = None,
    tokenizer: Annotated[str, typer.Option(help="`embedded`, a tokenizer.json, or a Hub name.")] = "embedded",
    out: Annotated[Path | None, typer.Option(help="Output folder; by default one of the cache.")] = None,
    text_field: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    max_tokens: Annotated[int | None, typer.Option(help="Stop the train split after so many tokens.")] = None,
    validation_fraction: Annotated[float | None, typer.Option(help="Of the documents; 0.01 by default.")] = None,
    test_fraction: Annotated[float | None, typer.Option(help="Of the documents; 0.01 by default.")] = None,
    shard_tokens: Annotated[int, typer.Option(help="Tokens after which a new shard begins.")] = 100_000_000,
    name: Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a Hub data set.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub data set.")] = None,
    processes: Annotated[int | None, typer.Option(help="CPUs to use here; all by default.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Tokenise in jobs of this Slurm site's profile.")] = None,
    jobs: Annotated[int, typer.Option(help="With --cluster: jobs that share the work.")] = 1,
    runs: RunsRoot = RUNS,
) -> None:
    """Tokenise text into shards with an index and checksums. Interrupted, the same command goes on."""
    from harness.data.prepare import account, finish, plan

    def say(line: str) -> None:
        typer.echo(line, err=True)

    with errors():
        if processes is not None and (processes < 1 or cluster is not None):
            raise ValueError(
                f"--processes: {processes} cannot be; give at least 1, and none with --cluster, whose profile has "
                "prepare.cpus_per_task"
            )
        from slurm.preparation import preparing_profile

        profile = preparing_profile(cluster, jobs)
        folder, data = plan(
            source,
            tokenizer,
            out,
            dataset=dataset,
            text_field=text_field,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            max_tokens=max_tokens,
            shard_tokens=shard_tokens,
            hub_config=name,
            hub_split=split,
            revision=revision,
            progress=say,
        )
        if data is None and profile is not None:
            from slurm.preparation import submit as submit_preparation

            typer.echo("\n".join(submit_preparation(folder, profile, jobs, runs.resolve())))
            return
        data = finish(folder, processes, say) if data is None else data
        counts = ", ".join(f"{split} {len(data.tokens(split)):,}" for split in ("train", "validation", "test"))
    typer.echo(f"{data.folder}: tokens {counts}\n{account(data.index)}")


@app.command()
def submit(
    experiment: Experiment,
    cluster: Where = "local",
    parallel: Parallel = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its cost, and touch nothing.")] = False,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    overrides: Overrides = None,
    mixer_file: MixerFiles = None,
) -> None:
    """Train and evaluate all runs of an experiment. What is done is not done again, what failed only by `retry`."""
    with errors():
        loaded, plans = _planned(experiment, scale, overrides, mixer_file, runs)
        failures = _submit(loaded, plans, cluster, parallel, runs.resolve(), dry_run)
    if failures:
        raise typer.Exit(1)


@app.command()
def retry(
    experiment: Experiment,
    failed: Annotated[bool, typer.Option("--failed", help="All runs that have failed.")] = False,
    run: Annotated[str | None, typer.Option(help="One run, by its id.")] = None,
    cluster: Where = "local",
    parallel: Parallel = 2,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    overrides: Overrides = None,
    mixer_file: MixerFiles = None,
) -> None:
    """Submit again what has failed."""
    from slurm.state import forgive, read_status

    with errors():
        if failed == (run is not None):
            raise ValueError("--failed, --run: give one of them: all runs that have failed, or one by its id")
        loaded, plans = _planned(experiment, scale, overrides, mixer_file, runs)
        chosen = [work for work in plans if run in (None, work.config.run_id)]
        if not chosen:
            ids = ", ".join(work.config.run_id for work in plans)
            raise ValueError(f"--run: {run!r} is not of this experiment; its runs: {ids}")
        forgiven = 0
        for work in chosen:
            for unit in work.missing:
                status = read_status(work.folder, unit)
                if status is not None and status.state == "failed":
                    forgive(work.folder, unit)
                    forgiven += 1
        typer.echo(f"{forgiven} failed units are tried again")
        failures = _submit(loaded, chosen, cluster, parallel, runs.resolve(), dry_run=False) if forgiven else {}
    if failures:
        raise typer.Exit(1)


def _planned(
    experiment: str, scale: str | None, overrides: list[str] | None, mixer_files: list[Path] | None, runs: Path
) -> tuple[Any, list[Any]]:
    """An experiment and the plan of its runs."""
    from harness.experiments.load import load_experiment
    from slurm.plan import plan

    load_mixers(mixer_files)
    loaded = load_experiment(experiment, overrides, scale)
    return loaded, plan(loaded, runs.resolve())


def _submit(loaded: Any, plans: list[Any], cluster: str, parallel: int, runs: Path, dry_run: bool) -> dict[str, str]:
    """Submit what is left of an experiment; why runs have failed, by run, where this process has seen them through."""
    from slurm.plan import check

    if parallel < 1:
        raise ValueError(f"--parallel: {parallel} runs at a time; give at least 1")
    if not dry_run and any(work.missing for work in plans):
        check(loaded)
    if cluster in ("local", "debug"):
        for work in plans:
            todo = " → ".join(work.missing) or "done"
            typer.echo(f"{work.config.run_id:40} {work.config.data.steps:6} steps  {todo}")
        if dry_run:
            from slurm.cost import cost_here

            typer.echo(f"{cost_here(plans, runs)}\nnothing submitted")
            return {}
        if not any(work.missing for work in plans):
            typer.echo("nothing submitted: everything is done")
            return {}
        # A terminated submit stops its jobs as ^C does. Both are set: a shell starts what it puts in the background
        # with ^C ignored, which jobs would inherit, and by ^C they are stopped.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler)
        failures = _run_local(loaded, plans, cluster, parallel, runs)
        for run_id, reason in failures.items():
            typer.echo(f"failed: {run_id}: {reason}", err=True)
        return failures
    from slurm.probe import problems
    from slurm.profile import load_profile
    from slurm.submission import describe, submit

    profile = load_profile(cluster)
    if dry_run:
        typer.echo(describe(loaded, plans, profile, runs))
        return {}
    if wrong := problems(profile):
        raise ValueError("; ".join(wrong))
    ids, left_out = submit(loaded, plans, profile, runs, this_command())
    for line in left_out:
        typer.echo(f"left out: {line}", err=True)
    for name, job in ids.items():
        typer.echo(f"{name:40} job {job}")
    typer.echo(f"`status {loaded.name}` shows how far it is" if ids else "nothing submitted")
    return {}


def _run_local(loaded: Any, plans: list[Any], cluster: str, parallel: int, runs: Path) -> dict[str, str]:
    from rich.console import Console
    from rich.live import Live

    from slurm.local import run_plan
    from slurm.queue import Queue
    from slurm.snapshot import open_submission, snapshot
    from slurm.status import Submitted, overview
    from suites.units import missing

    console, started, last = Console(), time.time(), 0.0
    total = sum(bool(work.missing) for work in plans)
    folder = open_submission(loaded, plans, runs, cluster)
    code = snapshot(runs) if cluster == "local" else None

    def text(active: list[Any]) -> str:
        left = sum(bool(missing(work.folder, work.units)) for work in plans)
        head = f"{total - left}/{total} runs finished, {time.time() - started:.0f} s"
        shown = [Submitted(loaded.name, w.config.run_id, w.folder, w.config.data.steps, w.units) for w in active]
        return "\n".join([head, *(f"  {row.line()}" for row in overview(shown, Queue(None)))])

    if console.is_terminal and cluster == "local":
        with Live("", console=console, refresh_per_second=2, auto_refresh=True) as live:

            def show(active: list[Any]) -> None:
                live.update(text(active))

            return run_plan(plans, folder / "logs", cluster, parallel, this_command(), show, code)

    def print_sometimes(active: list[Any]) -> None:
        nonlocal last
        if time.time() - last >= 15:
            last = time.time()
            typer.echo(text(active))

    failures = run_plan(plans, folder / "logs", cluster, parallel, this_command(), print_sometimes, code)
    typer.echo(text([]))
    return failures


@app.command()
def train(
    experiment: Experiment,
    run: Annotated[str, typer.Option(help="The run: its id, or a mixer that the experiment has once.")],
    sharding: Annotated[
        str, typer.Option(help="Under torchrun: ddp, every process the whole model; fsdp, a part of it.")
    ] = "ddp",
    profile: Annotated[
        Path | None, typer.Option(help="Write a profiler's trace and the costliest operators to this folder.")
    ] = None,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    overrides: Overrides = None,
    mixer_file: MixerFiles = None,
) -> None:
    """Train one run of an experiment in this process, or in those that torchrun has started. Told to end, it saves
    first; told twice, it does not."""
    from contextlib import ExitStack

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from harness.training.distributed import world
    from harness.training.train import train as train_run
    from harness.training.trainer import TrainingInterrupted
    from slurm.state import exclusively
    from suites.units import TRAIN

    with errors():
        if sharding not in ("ddp", "fsdp"):
            raise ValueError(f"--sharding: {sharding!r} is unknown; use ddp or fsdp")
        if sharding == "fsdp" and os.environ.get("WORLD_SIZE", "1") == "1":
            raise ValueError("--sharding: fsdp divides a model over processes, and this is one; start it with torchrun")
        _, plans = _planned(experiment, scale, overrides, mixer_file, runs)
        work = _one_run(plans, run)
        if not work.config.data.phases:
            raise ValueError(f"data.phases: none, so that {experiment} trains nothing; use submit")
        if profile is not None and TRAIN not in work.missing:
            raise ValueError(f"--profile: {work.config.run_id} is trained already; give another run, or other --runs")
        columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}")]
        with (
            world() as here,
            ExitStack() as held,
            Progress(*columns, TimeRemainingColumn(), disable=not here.first) as bar,
        ):
            with here.together():
                if here.first:
                    held.enter_context(exclusively(work.folder, TRAIN))
            task = bar.add_task(work.config.run_id, total=work.config.data.steps)

            def show(m: dict[str, float]) -> None:
                line = f"{work.config.run_id}  loss {m['loss']:.3f}  {m['tokens_per_second']:,.0f} tok/s"
                bar.update(task, completed=m["step"], description=line)

            told = []

            def hear(number: int, frame: Any) -> None:
                told.append(number)
                signal.signal(number, before[number])

            before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            for number in before:
                signal.signal(number, hear)
            try:
                summary = train_run(
                    work.config, work.folder, show, stop=lambda: bool(told), sharding=sharding, profile=profile
                )
            except TrainingInterrupted:
                raise KeyboardInterrupt from None
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
    if here.first:
        typer.echo(f"{work.folder}: loss {summary.train_loss:.3f} after {summary.tokens_seen:,} tokens")


def _one_run(plans: list[Any], run: str) -> Any:
    found = [work for work in plans if run in (work.config.run_id, work.config.mixer)]
    if len(found) != 1:
        ids = ", ".join(work.config.run_id for work in found or plans)
        raise ValueError(f"--run: {run!r} names {len(found)} runs; give one of: {ids}")
    return found[0]


@app.command()
def status(
    experiment: Experiment,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every few seconds, until ^C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say where each run of an experiment stands: those of its submissions, or where there is none what it would be."""
    from slurm.queue import Queue
    from slurm.status import overview, troubles

    with errors():
        name, known = _submitted(experiment, scale, runs.resolve())

        def text() -> str:
            rows = overview(known, Queue.read())
            finished = sum(row.state == "done" for row in rows)
            head = f"{name}: {finished} of {len(rows)} runs done"
            return "\n".join([head, *troubles(runs.resolve(), name), *(row.line() for row in rows)])

        if as_json:
            typer.echo(json.dumps([asdict(row) for row in overview(known, Queue.read())], indent=1))
        elif watch:
            from rich.live import Live

            with Live("", auto_refresh=False) as live:
                while True:
                    live.update(text(), refresh=True)
                    time.sleep(2)
        else:
            typer.echo(text())


def _submitted(experiment: str, scale: str | None, runs: Path) -> tuple[str, list[Any]]:
    """An experiment's name, and the runs that were submitted under it, or would be."""
    from slurm.status import Submitted, submitted

    bare = re.fullmatch(r"[\w.-]+", experiment) and not Path(experiment).exists()
    if bare and (known := submitted(runs, experiment if scale is None else f"{experiment}-{scale}")):
        return known[0].experiment, known  # without reading the experiment, and so without torch: at once
    from harness.experiments.load import load_experiment

    loaded = load_experiment(experiment, scale=scale)
    if known := submitted(runs, loaded.name):
        return loaded.name, known
    _, plans = _planned(experiment, scale, None, None, runs)
    return loaded.name, [Submitted(loaded.name, w.config.run_id, w.folder, w.config.data.steps, w.units) for w in plans]


@app.command()
def logs(
    run: Annotated[str, typer.Argument(help="A run, by its id.")],
    unit: Annotated[str | None, typer.Option(help="train, or what `status` calls an evaluation.")] = None,
    lines: Annotated[int, typer.Option(help="How many, from the end.")] = 40,
    runs: RunsRoot = RUNS,
) -> None:
    """Show the end of what the last attempt at a run has printed."""
    from slurm.status import logs as read_logs

    with errors():
        typer.echo(read_logs(runs.resolve(), run, unit, lines))


@app.command()
def cancel(experiment: Experiment, runs: RunsRoot = RUNS, scale: Scale = None) -> None:
    """Stop everything that an experiment still does. What it has done stays; `submit` goes on from there."""
    from slurm.status import cancel as stop

    with errors():
        name, _ = _submitted(experiment, scale, runs.resolve())
        stopped = stop(runs.resolve(), name)
    typer.echo("\n".join(stopped) or "nothing is at work")


@app.command("collect")
def collect_(
    experiment: Experiment,
    out: Annotated[Path | None, typer.Option(help="Output folder; by default collected/NAME among the runs.")] = None,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    overrides: Overrides = None,
    mixer_file: MixerFiles = None,
) -> None:
    """Gather the records of an experiment into one data frame."""
    from slurm.collect import collect

    with errors():
        loaded, plans = _planned(experiment, scale, overrides, mixer_file, runs)
        target = out or runs.resolve() / "collected" / loaded.name
        frame, lacking = collect(plans, target, this_command())
    typer.echo(f"{target}: {len(frame)} records of {frame['run'].nunique()} runs")
    for run_id in lacking:
        typer.echo(f"incomplete: {run_id}", err=True)


@bench_app.command("sweep")
def bench_sweep(
    runs: Annotated[int, typer.Option(help="Runs of the synthetic experiment.")] = 2000,
    as_json: AsJson = False,
) -> None:
    """Time planning and status of an experiment of many runs, over synthetic markers."""
    from slurm.bench import render, run

    with errors():
        if runs < 5:
            raise ValueError(f"--runs: {runs} is no sweep; give at least 5")
        rows = run(runs)
    print_result(rows, as_json, render(rows))
