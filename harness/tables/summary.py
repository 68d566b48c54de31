"""The answer first: at most ten lines above a table, written from its numbers alone.

They say which row leads in what and by how much, whether the data allow saying so, at what scale it was measured, what
was tuned, which truths were met, and what none of this shows. A cause is never named: a table compares, and explains
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.records.record import BASELINE
from harness.records.significance import holm
from harness.records.stats import ALPHA, Comparison
from harness.tables.cells import Column, Row, Tested, count, gap_text, unlabelled
from harness.tables.forms import Table
from harness.tables.marks import paired
from harness.tables.verdicts import MET, NOT_MET, UNDECIDED, Verdict, tally

MOST = 10
"""Lines of a summary."""
FIELDS = 4
"""Lines about who leads, one for each suite and group of rows; the last one names the others if there are more."""


@dataclass(frozen=True)
class Contest:
    """One group of rows in one column.

    leaders: the best row first, then those that are not significantly worse, the best of them first, after Holm's
    correction over all pairs of the group in the columns of the suite. next: the row that the best one's lead is stated
    over, the best of those that are worse than it; if none is, the second.
    """

    group: str
    column: Column
    tested: Tested
    leaders: list[Row]
    next: Row

    @property
    def best(self) -> Row:
        return self.leaders[0]

    @property
    def tied(self) -> bool:
        """Whether no row is worse than the best one."""
        return len(self.leaders) == len(self.tested.rows)


def summary(table: Table, runs: pd.DataFrame | None, verdicts: Sequence[Verdict]) -> list[str]:
    """Sum up a table in at most MOST lines. runs: as for `comparison`. verdicts: on the experiment's truths."""
    numbers = {row for (row, _), cell in table.cells.items() if cell.estimate is not None}
    rows = [row for row in table.rows if row in numbers and row.layout != BASELINE]
    lines = [
        scale_line(table, rows),
        *lead_lines(table),
        missing_line(table, rows, runs),
        tuned_line(rows, runs),
        truths_line(verdicts),
        limits_line(table, rows),
        reading_line(table),
    ]
    return list(filter(None, lines))


def scale_line(table: Table, rows: Sequence[Row]) -> str:
    """The models, their scale, their seeds, and what the seeds allow to speak of."""
    parts = [f"{len(rows)} model{'s' * (len(rows) != 1)}"]
    for key, what in (("non_embedding_params", "non-embedding parameters"), ("tokens_seen", "training tokens")):
        values = [e.value for row in rows if (e := table.model.get(row, {}).get(key))]
        if values:
            texts = dict.fromkeys((count(min(values)), count(max(values))))
            parts.append(f"{' to '.join(texts)} {what}")
    seeds = {cell.estimate.seeds for (row, _), cell in table.cells.items() if row in rows and cell.estimate is not None}
    if seeds == {1}:
        parts.append("one seed: what follows is about these checkpoints, not about the mixers")
    elif seeds:
        parts.append(f"{' to '.join(str(n) for n in dict.fromkeys((min(seeds), max(seeds))))} seeds a row")
    return "scale: " + ", ".join(parts)


def contests(table: Table) -> list[Contest]:
    """Every group and column whose rows were tested, in the order of the columns."""
    families: dict[tuple[str, str], list[tuple[tuple[str, Column], tuple[int, int], float]]] = {}
    for (group, column), tested in table.tested.items():
        family = families.setdefault((group, column.suite), [])
        pairs = tested.comparisons.items()
        family += [((group, column), pair, each.p) for pair, each in pairs if each.p is not None]
    apart = set()
    for family in families.values():
        adjusted = holm([p for *_, p in family])
        apart |= {(key, pair) for (key, pair, _), p in zip(family, adjusted, strict=True) if p < ALPHA}
    found = []
    for (group, column), tested in table.tested.items():
        sign = -1 if column.unit.higher_is_better else 1
        order = np.argsort([sign * table.cells[row, column].estimate.value for row in tested.rows], kind="stable")
        best = order[0]
        worse = [i for i in order[1:] if ((group, column), (max(best, i), min(best, i))) in apart]
        leaders = [tested.rows[i] for i in order if i not in worse]
        found.append(Contest(group, column, tested, leaders, tested.rows[worse[0] if worse else order[1]]))
    return found


def lead_lines(table: Table) -> Iterator[str]:
    """Who leads, by suite and group of rows."""
    fields: dict[tuple[str, str], list[Contest]] = {}
    for contest in contests(table):
        fields.setdefault((contest.column.suite, contest.group), []).append(contest)
    if not fields:
        yield "no two rows of a layout have numbers with errors in the same column: nothing is compared"
        return
    several = len({group for _, group in fields}) > 1
    names = {key: f"{key[0]} ({key[1]})" if several else key[0] for key in fields}
    # Most rows first: two variants of one mixer are compared after all mixers were.
    ranked = sorted(fields, key=lambda key: -max(len(c.tested.rows) for c in fields[key]))
    shown = ranked if len(ranked) <= FIELDS else ranked[: FIELDS - 1]
    for key in shown:
        yield f"{names[key]}: " + "; ".join(field_parts(table, fields[key]))
    if len(shown) < len(ranked):
        yield f"in the tables: {', '.join(names[key] for key in ranked[len(shown) :])}"


def field_parts(table: Table, own: list[Contest]) -> Iterator[str]:
    """The clauses about one suite and group of rows."""
    alone: dict[Row, list[Contest]] = {}
    for contest in own:
        if len(contest.leaders) == 1:
            alone.setdefault(contest.best, []).append(contest)
    of = f" of {len(own)} column{'s' * (len(own) > 1)}"
    for row, led in sorted(alone.items(), key=lambda item: -len(item[1])):
        yield f"{named(row, table, led)} leads in {len(led)}{of} ({example(table, led)})"
    ahead: dict[Row, list[Contest]] = {}
    for contest in own:
        if len(contest.leaders) > 1 and not contest.tied:
            ahead.setdefault(contest.best, []).append(contest)
    for row, shared in sorted(ahead.items(), key=lambda item: -len(item[1])):
        same = len({frozenset(c.leaders) for c in shared}) == 1
        others = ", ".join(map(unlabelled, shared[0].leaders[1:])) if same else "some others"
        who = f"{named(row, table, shared)} is best in {len(shared)}{of}, not told apart from {others}"
        yield f"{who} ({example(table, shared)})"
    if tied := [c for c in own if c.tied]:
        yield f"no row is told apart from the best in {len(tied)}{of} ({example(table, tied)})"


def named(row: Row, table: Table, own: Sequence[Contest]) -> str:
    """Name of a row; with one seed, of its checkpoint."""
    several = all(table.cells[row, contest.column].estimate.seeds > 1 for contest in own)
    return unlabelled(row) if several else f"this checkpoint of {unlabelled(row)}"


def example(table: Table, own: Sequence[Contest]) -> str:
    """The clearest of some contests in numbers: the best row over `next`."""

    def certainty(contest: Contest) -> float:
        found = compared(contest, contest.next)
        return 1.0 if found.p is None else found.p

    clearest = min(own, key=certainty)
    other, column = clearest.next, clearest.column
    rows = clearest.tested.rows
    sign = 1 if rows.index(clearest.best) > rows.index(other) else -1
    sign *= 1 if column.unit.higher_is_better else -1
    in_nats = column.unit.logarithmic and paired(table.cells[clearest.best, column], table.cells[other, column])
    gap = gap_text(compared(clearest, other), sign, column, in_nats)
    who = f"{unlabelled(clearest.best)} " if clearest.tied else ""
    most = "clearest: " if len(own) > 1 else ""
    return f"{most}{column.words}: {who}{gap} over {unlabelled(other)}"


def compared(contest: Contest, other: Row) -> Comparison:
    """The comparison of a contest's best row with another one, whichever way round it was made."""
    i, j = contest.tested.rows.index(contest.best), contest.tested.rows.index(other)
    return contest.tested.comparisons[max(i, j), min(i, j)]


def reading_line(table: Table) -> str:
    """The meaning of intervals and of `leads`; empty if nothing was tested."""
    return (
        f"in brackets: {1 - ALPHA:.0%} intervals; who leads: Holm's correction over all pairs of a group of "
        "rows in a suite's columns"
        if table.tested
        else ""
    )


def missing_line(table: Table, rows: Sequence[Row], runs: pd.DataFrame | None) -> str:
    """Rows without numbers and failed runs; empty if there are none."""
    lacking = [row for row in table.rows if row not in rows and row.layout != BASELINE]
    failed = 0 if runs is None or "failure" not in runs else int(runs["failure"].notna().sum())
    parts = [f"{len(lacking)} of {len(lacking) + len(rows)} rows have no numbers yet"] if lacking else []
    parts += [f"{failed} run{'s' * (failed > 1)} failed"] if failed else []
    return f"missing: {', '.join(parts)}" if parts else ""


def tuned_line(rows: Sequence[Row], runs: pd.DataFrame | None) -> str:
    """The values that were tuned for the rows, and how; empty if the runs are not known."""
    if runs is None:
        return ""
    shown = {(row.layout, unlabelled(row), row.preset) for row in rows}
    tuned, untuned, edges, trials = [], set(), set(), set()
    for run in runs.to_dict("records"):
        row = next((r for r in shown if r[:2] == (run["layout"], run["label"]) and r[2] in (None, run["preset"])), None)
        if row is not None and isinstance(run.get("tuned"), dict):
            tuned.append(run)
            trials.add(int(run["trials"]))
            edges |= {row} if run.get("at_edge") else set()
        elif row is not None:
            untuned.add(row)
    if not tuned:
        return "tuned: nothing; all rows have the experiment's values, which may suit one mixer and not another"
    values = dict.fromkeys(key.partition(".")[2] for run in tuned for key in run["tuned"])
    at = ", ".join(dict.fromkeys(str(run["tuned_at"]) for run in tuned))
    spread = " to ".join(map(str, dict.fromkeys((min(trials), max(trials)))))
    text = f"tuned: {', '.join(values)}, by {spread} trials at {at}"
    text += f"; at the edge of the grid, where a wider one may do better, for {len(edges)} rows" if edges else ""
    return text + (f"; {len(untuned)} rows were not tuned" if untuned else "")


def truths_line(verdicts: Sequence[Verdict]) -> str:
    """How many truths were met, and the first of each outcome."""
    if not verdicts:
        return "truths: none is stated"
    first = {v.outcome: v.truth for v in reversed(verdicts)}
    shown = [f"{outcome}: {first[outcome]}" for outcome in (NOT_MET, MET, UNDECIDED) if outcome in first]
    return f"truths: {tally(verdicts)} ({'; '.join(shown)})"


def limits_line(table: Table, rows: Sequence[Row]) -> str:
    """The questions that the table does not answer."""
    parts = ["why a row leads", "other scales"]
    if len({row.layout for row in rows}) > 1:
        parts.append("one layout against another")
    if all(cell.estimate is None or cell.estimate.seeds == 1 for cell in table.cells.values()):
        parts.append("other seeds")
    stand_ins = sum(bool(column.stand_ins) for column in table.columns)
    if stand_ins:
        parts.append(f"the paper's measurements in {stand_ins} of {len(table.columns)} columns, which have stand-ins")
    return f"not shown: {', '.join(parts)}"
