"""The benchmark of planning and `status`: it measures what it says, on runs in every state."""

import json
from pathlib import Path

import pytest

from slurm import bench


def test_it_times_planning_and_the_status_of_as_many_runs_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []
    monkeypatch.setattr(bench.subprocess, "run", lambda command, **_: commands.append(show(command)))

    def show(command: list[str]) -> dict[str, int]:  # what the timed command would print, in this process
        from slurm.queue import Queue
        from slurm.status import overview, runs_of

        name, runs = runs_of(Path(command[-1]), command[3], None)
        assert name == "many"
        states = [row.state for row in overview(runs, Queue({f"12_{i}": ("PENDING", "", "") for i in range(10)}))]
        return {state: states.count(state) for state in states}

    rows = bench.run(10)
    what = ["plan, nothing done", "plan, tuned", "plan, partly done", "status, the command"]
    assert [row["what"] for row in rows] == what
    assert all(row["runs"] == 10 and row["units"] == 10 and row["seconds"] > 0 for row in rows)
    # Two runs per state: done, partly evaluated, training without a process, given up, untouched.
    assert commands == [{"done": 2, "queued": 2, "lost": 2, "failed": 2, "waiting": 2}]
    assert len(bench.render(rows).splitlines()) == 4 and json.dumps(rows)
