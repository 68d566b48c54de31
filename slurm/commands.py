"""Commands on runs and jobs: data prepare, submit, retry, train, status, logs, cancel, collect, bench sweep."""

from __future__ import annotations

import json
import os
import shutil
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
    SuiteFiles,
    app,
    bench_app,
    data_app,
    errors,
    load_mixers,
    print_result,
    runs_app,
    this_command,
)
from harness.run_folder import Collection, RunFolder, collection_of, started_runs

Where = Annotated[
    str,
    typer.Option(
        "--cluster", help="local: processes on this machine; debug: this process; PROFILE: Slurm.", metavar="PROFILE"
    ),
]
SetProfile = Annotated[
    list[str] | None, typer.Option("--set-profile", help="Override a field of PROFILE, as train.minutes=2880.")
]
Parallel = Annotated[int, typer.Option("--parallel", help="Runs at the same time, on this machine.")]


@data_app.command()
def prepare(
    source: Annotated[
        str | None, typer.Argument(help="`embedded`, a file of text, JSON or parquet, a folder, or a Hub name.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of a data set on the Hub, instead of SOURCE.")] = None,
    tokenizer: Annotated[str, typer.Option(help="`embedded`, a tokenizer.json, or a Hub name.")] = "embedded",
    out: Annotated[Path | None, typer.Option(help="Output folder; by default one in the cache.")] = None,
    text_field: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    max_tokens: Annotated[int | None, typer.Option(help="Stop the train split after this many tokens.")] = None,
    validation_fraction: Annotated[float | None, typer.Option(help="Share of documents; 0.01 by default.")] = None,
    test_fraction: Annotated[float | None, typer.Option(help="Share of documents; 0.01 by default.")] = None,
    shard_tokens: Annotated[int, typer.Option(help="Tokens after which a new shard begins.")] = 100_000_000,
    name: Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a Hub data set.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub data set.")] = None,
    processes: Annotated[int | None, typer.Option(help="CPUs to use on this machine; all by default.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Tokenise in Slurm jobs.", metavar="PROFILE")] = None,
    set_profile: SetProfile = None,
    jobs: Annotated[int, typer.Option(help="Number of jobs that share the work, with --cluster.")] = 1,
    runs: RunsRoot = RUNS,
) -> None:
    """Tokenise text into shards with an index and checksums. After an interruption, the same command resumes."""
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

        profile = preparing_profile(cluster, jobs, set_profile or [])
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
    set_profile: SetProfile = None,
    parallel: Parallel = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its cost, and touch nothing.")] = False,
    only: Annotated[str | None, typer.Option(help="Only these runs, as mixer=gdn2,seed=0.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many of the runs that lack something.")] = None,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    overrides: Overrides = None,
    mixer_file: MixerFiles = None,
    suite_file: SuiteFiles = None,
) -> None:
    """Train and evaluate all runs of an experiment. Skips what is done, and what has failed: see `retry`."""
    from slurm.plan import part_of

    with errors():
        loaded, plans = _planned(experiment, scale, overrides, mixer_file, suite_file, runs)
        plans = part_of(plans, only, limit)
        failures = _submit(loaded, plans, cluster, set_profile, parallel, runs.resolve(), dry_run)
    if failures:
        raise typer.Exit(1)


@app.command()
def retry(
    experiment: Experiment,
    failed: Annotated[bool, typer.Option("--failed", help="What has failed, and nothing else.")] = False,
    suite: Annotated[
        str | None, typer.Option(help="Measure this suite, or unit, again, even where it is done.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="One run, by its id: what failed of it, or its --suite.")] = None,
    cluster: Where = "local",
    set_profile: SetProfile = None,
    parallel: Parallel = 2,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    overrides: Overrides = None,
    mixer_file: MixerFiles = None,
    suite_file: SuiteFiles = None,
) -> None:
    """Do again what has failed, or measure a suite again. Evaluations that wait for a failed training come with it."""
    from slurm.plan import failed_work, measured_work, only, start_again

    with errors():
        if failed == (run is not None or suite is not None):
            raise ValueError("--failed, --suite, --run: give --failed, or one or both of the others")
        loaded, plans = _planned(experiment, scale, overrides, mixer_file, suite_file, runs)
        work = failed_work(plans, run) if suite is None else measured_work(plans, run, suite)
        start_again(plans, work, again=suite is not None)
        count = sum(map(len, work.values()))
        typer.echo(f"{count} {'failed units are tried' if suite is None else 'evaluations are measured'} again")
        failures: dict[str, str] = {}
        if work:
            _, plans = _planned(experiment, scale, overrides, mixer_file, suite_file, runs)
            chosen = only(plans, work)
            failures = _submit(loaded, chosen, cluster, set_profile, parallel, runs.resolve(), dry_run=False)
    if failures:
        raise typer.Exit(1)


def _planned(
    experiment: str,
    scale: str | None,
    overrides: list[str] | None,
    mixer_files: list[Path] | None,
    suite_files: list[Path] | None,
    runs: Path,
) -> tuple[Any, list[Any]]:
    """The experiment, with its overrides applied, and the plan of its runs."""
    from slurm.plan import asked_for, plan
    from suites.registry import load_files

    load_mixers(mixer_files)
    load_files(suite_files or [])
    loaded = asked_for(experiment, overrides, scale, runs.resolve())
    return loaded, plan(loaded, runs.resolve())


def _submit(
    loaded: Any,
    plans: list[Any],
    cluster: str,
    set_profile: list[str] | None,
    parallel: int,
    runs: Path,
    dry_run: bool,
) -> dict[str, str]:
    """Submit what an experiment lacks; returns why runs failed, by run id, if they ran on this machine."""
    from slurm.plan import check

    if parallel < 1:
        raise ValueError(f"--parallel: {parallel} runs at a time; give at least 1")
    if any(run.missing for run in plans):
        check(loaded, plans, runs)
    if cluster in ("local", "debug"):
        if set_profile:
            raise ValueError(f"--set-profile: {cluster} has no profile; give --cluster PROFILE")
        return _run_here(loaded, plans, cluster, parallel, runs, dry_run)
    from slurm.probe import problems
    from slurm.profile import load_profile
    from slurm.status import other_code
    from slurm.submission import describe, submit

    profile = load_profile(cluster, set_profile or [])
    if shutil.which("sbatch") is None and dry_run:
        typer.echo("not checked against a cluster: sbatch is not on the PATH", err=True)
    elif refused := problems(profile):
        raise ValueError("; ".join(refused))
    if dry_run:
        typer.echo(describe(loaded, plans, profile, runs))
        return {}
    if options := ", ".join(name for name in sorted(os.environ) if name.startswith("SBATCH_")):
        typer.echo(f"not used: {options}; a job gets what its profile says", err=True)
    ids, left_out = submit(loaded, plans, profile, runs, this_command())
    for line in other_code(plans):
        typer.echo(line)
    for line in left_out:
        typer.echo(f"left out: {line}", err=True)
    for name, job in ids.items():
        typer.echo(f"{name:40} job {job}")
    typer.echo(f"`status {loaded.name}` shows how far it is" if ids else "nothing submitted")
    return {}


def _run_here(loaded: Any, plans: list[Any], cluster: str, parallel: int, runs: Path, dry_run: bool) -> dict[str, str]:
    """Run what an experiment lacks on this machine; returns why runs failed, by run id."""
    from slurm.plan import trials
    from slurm.status import other_code

    tried = trials(plans)
    for run in (*tried, *plans):
        todo = " → ".join(run.missing) or "done"
        name = f"{run.config.run_id} (trial)" if run.trial else run.config.run_id
        typer.echo(f"{name:40} {run.config.data.steps:6} steps  {todo}")
    if dry_run:
        from harness.training.cost import cost_here
        from suites.units import TRAIN

        untrained = [run.config for run in (*tried, *plans) if TRAIN in run.missing]
        typer.echo(f"{cost_here(untrained, runs)}\nnothing submitted")
        return {}
    for line in other_code(plans):
        typer.echo(line)
    if not any(run.missing for run in plans):
        typer.echo("nothing submitted: everything is done")
        return {}
    from slurm.local import run_experiment

    failures = run_experiment(loaded, plans, runs, cluster, parallel, this_command())
    for run_id, reason in failures.items():
        typer.echo(f"failed: {run_id}: {reason}", err=True)
    return failures


@app.command()
def train(
    experiment: Experiment,
    run: Annotated[str, typer.Option(help="The run: its id, or a mixer that the experiment has once.")],
    sharding: Annotated[
        str, typer.Option(help="Under torchrun, ddp: each process holds the whole model; fsdp: a part.")
    ] = "ddp",
    profile: Annotated[
        Path | None, typer.Option(help="Write a profiler's trace and the costliest operators to this folder.")
    ] = None,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    overrides: Overrides = None,
    mixer_file: MixerFiles = None,
    suite_file: SuiteFiles = None,
) -> None:
    """Train one run of an experiment in this process, or in those that torchrun started. On the first ^C or SIGTERM it
    saves and ends; on the second it ends without saving."""
    from slurm.local import train_here
    from suites.units import TRAIN

    with errors():
        if sharding not in ("ddp", "fsdp"):
            raise ValueError(f"--sharding: {sharding!r} is unknown; use ddp or fsdp")
        if sharding == "fsdp" and os.environ.get("WORLD_SIZE", "1") == "1":
            raise ValueError("--sharding: fsdp divides a model over processes, and this is one; start it with torchrun")
        _, plans = _planned(experiment, scale, overrides, mixer_file, suite_file, runs)
        chosen = _one_run(plans, run)
        if not chosen.config.data.phases:
            raise ValueError(f"data.phases: none, so that {experiment} trains nothing; use submit")
        if profile is not None and TRAIN not in chosen.missing:
            raise ValueError(f"--profile: {chosen.config.run_id} is trained already; give another run, or other --runs")
        summary = train_here(chosen, sharding, profile)
    if summary is not None:
        typer.echo(f"{chosen.folder}: loss {summary.train_loss:.3f} after {summary.tokens_seen:,} tokens")


def _one_run(plans: list[Any], name: str) -> Any:
    """The one run with this id or mixer. Raises ValueError if there is none or several."""
    matches = [run for run in plans if name in (run.config.run_id, run.config.mixer)]
    if len(matches) != 1:
        ids = ", ".join(run.config.run_id for run in matches or plans)
        raise ValueError(f"--run: {name!r} names {len(matches)} runs; give one of: {ids}")
    return matches[0]


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
    """Show the state of every run: of the experiment's submissions, or of its plan if there are none."""
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
        loaded, plans = _planned(experiment, scale, overrides, mixer_file, suite_file, runs)
        target = out or collection_of(runs.resolve(), loaded.name).path
        with Collection(target).replacing():
            frame, lacking = collect(plans, loaded, target, this_command())
    typer.echo(f"{target}: {len(frame)} records of {frame['run'].nunique()} runs")
    for run_id in lacking:
        typer.echo(f"incomplete: {run_id}", err=True)


@runs_app.command("list")
def list_(runs: RunsRoot = RUNS, as_json: AsJson = False) -> None:
    """List the runs of a folder: whether they are trained, and the disk space of each and of its checkpoints."""
    from harness.run_folder.disk import size

    with errors():
        rows = []
        for folder in (RunFolder(runs / name) for name in started_runs(runs)):
            known = folder.summary.is_file()
            row = {"run": folder.path.name, "trained": known, "bytes": size([folder.path])}
            rows.append(row | {"checkpoint_bytes": size([folder.checkpoints])})
        sizes = [f"{r['bytes'] / 1e6:12,.1f} MB {r['checkpoint_bytes'] / 1e6:12,.1f} MB checkpoints" for r in rows]
        states = ["trained" if r["trained"] else "unfinished" for r in rows]
        lines = [f"{r['run']:44} {s:10} {mb}" for r, s, mb in zip(rows, states, sizes, strict=True)]
        total = sum(r["bytes"] for r in rows) / 1e6
        print_result(rows, as_json, "\n".join([*lines, f"{len(rows)} runs, {total:,.1f} MB"]))


@runs_app.command()
def prune(
    keep: Annotated[str, typer.Option(help="last: the weights for evaluations to come; none: nothing.")],
    runs: RunsRoot = RUNS,
) -> None:
    """Remove checkpoints of trained runs on which nothing is at work. With `--keep none` their records are all that is
    left: they can be neither evaluated nor exported any more."""
    from harness.run_folder.disk import prune as remove
    from slurm.queue import Queue

    with errors():
        if keep not in ("last", "none"):
            raise ValueError(f"--keep: {keep!r} is unknown; give last or none")
        queue, freed = Queue.read(), 0
        for folder in (RunFolder(runs / name) for name in started_runs(runs)):
            statuses = {place: folder.read_status(place) for place in folder.attempted()}
            busy = any(status and queue.holds(folder.path, place, status) for place, status in statuses.items())
            if folder.summary.is_file() and not busy:
                freed += remove(folder, keep == "last")
    typer.echo(f"{freed / 1e6:,.1f} MB freed")


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
