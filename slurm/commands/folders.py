"""Commands on folders of runs: runs list, runs du, runs prune."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from harness.command_line import RUNS, AsJson, RunsRoot, errors, print_result, runs_app
from harness.run_folder import RunFolder, started_runs


@runs_app.command("list")
def list_(runs: RunsRoot = RUNS, as_json: AsJson = False) -> None:
    """List the runs of a folder. Says whether each is trained, and what disk space it takes."""
    from harness.run_folder.disk import size

    with errors():
        folders = [RunFolder(runs / name) for name in started_runs(runs)]
        rows = [{"run": f.path.name, "trained": f.summary.is_file(), "bytes": size([f.path])} for f in folders]
        lines = [
            f"{row['run']:44} {'trained' if row['trained'] else 'unfinished':10} {_mb(row['bytes'])}" for row in rows
        ]
        total = f"{len(rows)} runs, {_mb(sum(row['bytes'] for row in rows)).strip()}"
    print_result(rows, as_json, "\n".join([*lines, total]))


@runs_app.command()
def du(runs: RunsRoot = RUNS, as_json: AsJson = False) -> None:
    """Show what takes the disk space of a folder of runs. Each run by kind, the largest first, and what lies beside
    them."""
    from harness.run_folder.disk import beside, by_kind

    with errors():
        if not runs.is_dir():
            raise ValueError(f"--runs: {runs} is no folder; give the one where runs live")
        rows = []
        for name in started_runs(runs):
            sizes = by_kind(RunFolder(runs / name))
            rows.append({"run": name, "bytes": sum(sizes.values())} | sizes)
        rows.sort(key=lambda row: -row["bytes"])
        kinds = list(rows[0])[2:] if rows else []
        lines = [f"{'MB':44} {'all':>12}" + "".join(f"{kind:>13}" for kind in kinds)]
        for row in [*rows, {"run": "all runs"} | {k: sum(row[k] for row in rows) for k in ("bytes", *kinds)}]:
            lines.append(f"{row['run']:44}" + "".join(f"{row[kind] / 1e6:13,.1f}" for kind in ("bytes", *kinds)))
        others = [{"name": name, "bytes": taken} for name, taken in beside(runs).items()]
        lines += [f"{row['name']:44}{row['bytes'] / 1e6:13,.1f}" for row in others]
    print_result({"runs": rows, "beside": others}, as_json, "\n".join(lines))


@runs_app.command()
def prune(
    keep: Annotated[
        str, typer.Option(help="last: the weights for evaluations to come; milestones: those, too; none: nothing.")
    ],
    runs: RunsRoot = RUNS,
) -> None:
    """Remove checkpoints of trained runs. Runs with work in progress keep theirs. With `--keep none` only records are
    left: the run can be neither evaluated nor exported any more."""
    from harness.run_folder.disk import Keep
    from harness.run_folder.disk import prune as remove
    from slurm.queue import Queue

    with errors():
        if keep not in get_args(Keep):
            raise ValueError(f"--keep: {keep!r} is unknown; give last, milestones or none")
        queue, freed = Queue.read(), 0
        for folder in (RunFolder(runs / name) for name in started_runs(runs)):
            statuses = {place: folder.read_status(place) for place in folder.attempted()}
            busy = any(status and queue.holds(folder.path, place, status) for place, status in statuses.items())
            if folder.summary.is_file() and not busy:
                freed += remove(folder, keep)
    typer.echo(f"{_mb(freed).strip()} freed")


def _mb(size: int) -> str:
    return f"{size / 1e6:12,.1f} MB"
