"""Commands that run experiments: submit, retry, train, bench sweep."""

from __future__ import annotations

import os
import shutil
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
    errors,
    load_mixers,
    print_result,
    this_command,
)
from harness.progress import working
from slurm.commands.options import After, Parallel, SetProfile, Where


@app.command()
def submit(
    experiment: Experiment,
    cluster: Where = "local",
    set_profile: SetProfile = None,
    parallel: Parallel = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its cost, and touch nothing.")] = False,
    only: Annotated[str | None, typer.Option(help="Only these runs, as mixer=gdn2,seed=0.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many of the runs that lack something.")] = None,
    after: After = None,
    runs: RunsRoot = RUNS,
    scale: Scale = None,
    overrides: Overrides = None,
    mixer_file: MixerFiles = None,
    suite_file: SuiteFiles = None,
) -> None:
    """Train and evaluate all runs of an experiment. Skips what is done, and what has failed: see `retry`."""
    from slurm.plan import part_of

    with errors():
        loaded, plans = planned(experiment, scale, overrides, mixer_file, suite_file, runs)
        plans = part_of(plans, only, limit)
        failures = _submit(loaded, plans, cluster, set_profile, parallel, runs.resolve(), dry_run, after)
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
        loaded, plans = planned(experiment, scale, overrides, mixer_file, suite_file, runs)
        work = failed_work(plans, run) if suite is None else measured_work(plans, run, suite)
        start_again(plans, work, again=suite is not None)
        count = sum(map(len, work.values()))
        typer.echo(f"{count} {'failed units are tried' if suite is None else 'evaluations are measured'} again")
        failures: dict[str, str] = {}
        if work:
            _, plans = planned(experiment, scale, overrides, mixer_file, suite_file, runs)
            chosen = only(plans, work)
            failures = _submit(loaded, chosen, cluster, set_profile, parallel, runs.resolve(), dry_run=False)
    if failures:
        raise typer.Exit(1)


def planned(
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
    with working(f"planning {experiment}"):
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
    after: str | None = None,
) -> dict[str, str]:
    """Submit what an experiment lacks; returns why runs failed, by run id, if they ran on this machine."""
    from slurm.plan import check

    if parallel < 1:
        raise ValueError(f"--parallel: {parallel} runs at a time; give at least 1")
    if any(run.missing for run in plans):
        with working("checking the runs and their data"):
            check(loaded, plans, runs)
    if cluster in ("local", "debug"):
        if set_profile:
            raise ValueError(f"--set-profile: {cluster} has no profile; give --cluster PROFILE")
        if after is not None:
            raise ValueError(f"--after: {cluster} has no queue; give --cluster PROFILE")
        return _run_here(loaded, plans, cluster, parallel, runs, dry_run)
    from slurm.dry_run import describe
    from slurm.probe import delays, problems
    from slurm.profile import load_profile
    from slurm.queue import job_ids
    from slurm.status import other_code
    from slurm.submission import submit

    profile = load_profile(cluster, set_profile or [])
    if shutil.which("sbatch") is None and dry_run:
        typer.echo("not checked against a cluster: sbatch is not on the PATH", err=True)
    elif refused := problems(profile):
        raise ValueError("; ".join(refused))
    for line in delays(profile):
        typer.echo(line, err=True)
    jobs = job_ids(after) if after is not None else []
    if dry_run:
        typer.echo(describe(loaded, plans, profile, runs, jobs))
        return {}
    if options := ", ".join(name for name in sorted(os.environ) if name.startswith("SBATCH_")):
        typer.echo(f"not used: {options}; a job gets what its profile says", err=True)
    ids, left_out = submit(loaded, plans, profile, runs, this_command(), jobs)
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
    """Train one run in this process, or in those of torchrun. The first ^C or SIGTERM saves and ends; the second ends
    without saving."""
    from slurm.local import train_here
    from suites.units import TRAIN

    with errors():
        if sharding not in ("ddp", "fsdp"):
            raise ValueError(f"--sharding: {sharding!r} is unknown; use ddp or fsdp")
        if sharding == "fsdp" and os.environ.get("WORLD_SIZE", "1") == "1":
            raise ValueError("--sharding: fsdp divides a model over processes, and this is one; start it with torchrun")
        _, plans = planned(experiment, scale, overrides, mixer_file, suite_file, runs)
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


@bench_app.command("sweep")
def bench_sweep(
    runs: Annotated[int, typer.Option(help="Runs of the synthetic experiment.")] = 2000,
    as_json: AsJson = False,
) -> None:
    """Time planning and status of an experiment of many runs."""
    from slurm.bench import render, run

    with errors():
        if runs < 5:
            raise ValueError(f"--runs: {runs} is no sweep; give at least 5")
        rows = run(runs)
    print_result(rows, as_json, render(rows))
