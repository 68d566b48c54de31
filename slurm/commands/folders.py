"""Commands on folders of runs: runs list, runs prune."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.command_line import RUNS, AsJson, RunsRoot, errors, print_result, runs_app
from harness.run_folder import RunFolder, started_runs


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
