"""The notes under a table: errors, scale, stand-ins, samples, seeds, and the records behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from harness.code import DIGITS, code_text
from harness.records.published import PAPER, SCALE
from harness.records.record import BASELINE, SCHEMA
from harness.records.stats import ALPHA
from harness.run_folder import TRAIN
from harness.tables.blocks import without_numbers
from harness.tables.cells import AT, BEYOND, WITHIN, Column, count
from harness.tables.forms import Table
from harness.tables.marks import power_notes

Records = list[dict[str, Any]]
FILES = "content of its files"
"""The fact of a history that the rows of different mixers need not share."""


def reading_notes(table: Table, used: Records) -> list[str]:
    """Notes on how to read a table: its errors, the paper's numbers, and the data that would settle undecided pairs."""
    return [*error_notes(table, models_of(used)), *paper_notes(table), *power_notes(table)]


def table_notes(
    table: Table, used: Records, stand_ins: Mapping[str, str], mixed: list[str], runs: pd.DataFrame | None
) -> list[str]:
    """Notes on what was measured, one line each.

    table: the table of all measured columns. used: the records that it shows, as dictionaries. stand_ins: reasons by
    letter. mixed: disagreements that were allowed. runs: as for `comparison`.

    Notes on seeds, scale, machine and code are about the models, not about a baseline next to them.
    """
    models = models_of(used)
    return [
        scale_note(table, models),
        *matching_notes(runs),
        *(stand_in_note(table, letter, reason) for letter, reason in stand_ins.items()),
        samples_note(table, used),
        seeds_note(models),
        *incomplete_notes(table, models, runs),
        *without_numbers([row for row in table.rows if table.is_empty(row)], table.rows),
        *run_notes(runs),
        *(f"MIXED, not strictly comparable: {what}" for what in mixed),
        *fault_notes(runs),
        *recipe_notes(runs),
        *tuning_notes(runs),
        *training_notes(runs, "trained_on", "trained on"),
        *training_notes(runs, "mixture", "trained on mixture:"),
        *history_notes(runs),
        *fallback_notes(runs),
    ]


def provenance_notes(used: Records) -> list[str]:
    """Notes on the machine, code and runs that made the records."""
    models = models_of(used)
    return [
        "measured on " + "; ".join(environment(models)),
        f"code: {listed(code_text(r) for r in models)}",
        f"{len(used)} records (schema {SCHEMA}) of runs {listed(r['run'] for r in used)}",
    ]


def models_of(used: Records) -> Records:
    """Records of models; all of them if there are only baselines."""
    return [r for r in used if r["layout"] != BASELINE] or used


def error_notes(table: Table, used: Records) -> Iterable[str]:
    """Notes on the errors."""
    cells = table.cells.values()
    by_seed = len({r["seed"] for r in used}) > 1
    yield "mean ± standard error over " + (
        "seeds and samples, variances added; where a row has one seed, over samples alone"
        if by_seed
        else "samples; one seed, so an error says nothing of what another seed would give"
    )
    if any(c.parts for c in cells):
        yield (
            f"an average counts every task alike, its error adds theirs, in brackets its {1 - ALPHA:.0%} interval; "
            "averages are compared task by task and, where scores are kept, item by item"
        )
    if any(c.estimate and c.estimate.stderr is None for c in cells):
        yield "a number without ± has no known error, and its group of its column no marks"
    if any(c.agreed for c in cells):
        yield "at 0% or 100%, where the usual error would be zero, ± is 1/(n + 1)"


def paper_notes(table: Table) -> Iterable[str]:
    """Note on the printed numbers next to ours."""
    if any(cell.paper is not None and cell.estimate is not None for cell in table.cells.values()):
        yield (
            f"paper: {PAPER}, at {SCALE}, as ours; after it the difference, ours less the paper's, {WITHIN} within the "
            f"tolerance that the experiment states, {BEYOND} beyond it; no sign where it states none"
        )


def stand_in_note(table: Table, letter: str, reason: str) -> str:
    """Note on the columns that are not the paper's measurement for one reason."""
    columns = [column for column in table.columns if letter in column.stand_ins]
    return f"[{letter}] not the paper's measurement: {tasks_text(table, columns)}: {one_line(reason)}"


def tasks_text(table: Table, columns: Sequence[Column]) -> str:
    """Columns as text, each task once and tasks of the same lengths together: `PIQA, BoolQ and S-NIAH-1 @320/512`.

    A task's metrics are named if the table has other metrics of it at the same length.
    """
    tasks: dict[tuple[str, str], list[Column]] = {}
    for column in columns:
        tasks.setdefault((column.suite, column.task), []).append(column)
    groups: dict[tuple[str, str], list[str]] = {}
    for (suite, task), own in tasks.items():
        lengths = sorted({c.length for c in own if c.length is not None})
        others = [c for c in table.columns if (c.suite, c.task) == (suite, task) and c not in own]
        partly = {c.length for c in others} & {c.length for c in own}
        metrics = f" ({', '.join(dict.fromkeys(c.unit.display for c in own))})" if partly else ""
        at = f" @{'/'.join(map(str, lengths))}{own[0].short_unit}" if lengths else ""
        groups.setdefault((suite, at), []).append(own[0].title + metrics)
    return " and ".join(", ".join(names) + at for (_, at), names in groups.items())


def scale_note(table: Table, used: Records) -> str:
    """Note on the scale of the models: preset, parameters, tokens."""
    parts = [f"scale: preset {listed(r['preset'] for r in used)}"]
    for key, what in (("non_embedding_params", "non-embedding parameters"), ("tokens_seen", "tokens seen")):
        values = [e.value for cells in table.model.values() if (e := cells[key])]
        if values:
            least, most = count(min(values)), count(max(values))
            parts.append(f"{least if least == most else f'{least} to {most}'} {what}")
    return ", ".join(parts)


def matching_notes(runs: pd.DataFrame | None) -> Iterable[str]:
    """Note on models that are not matched in parameters. runs: as for `comparison`, with `match` since there is a
    choice."""
    modes = set() if runs is None or "match" not in runs else set(runs["match"])
    if "flops" in modes:
        flops = ranges(runs, "flops_per_token")
        yield f"models match in training FLOPs per token, not in parameters; in rows as trained: {flops}"
    if "mlp" in modes:
        sizes = ranges(runs, "non_embedding_params")
        yield f"models do not match: all have their preset's MLP width; non-embedding parameters: {sizes}"


def ranges(runs: pd.DataFrame, key: str) -> str:
    """Smallest and largest value of a key of `runs` in each preset, and by how much the largest is larger."""
    known = runs.dropna(subset=key) if key in runs else runs[:0]
    texts = []
    for name, values in known.groupby("preset", sort=False)[key]:
        least, most = values.min(), values.max()
        texts.append(f"{name} {count(least)} to {count(most)} (+{most / least - 1:.1%})")
    return ", ".join(texts) or "not known"


def samples_note(table: Table, used: Records) -> str:
    """Note on the samples behind each column, and on columns with a limit."""
    columns: dict[str, list[Column]] = {}
    counts: dict[tuple, set[tuple[int, int | None]]] = {}
    for r in used:
        counts.setdefault((r["suite"], r["task"], r["metric"], r["length"]), set()).add((r["n"], r["limit"]))
    for column in table.columns:
        found = counts[column.key]
        text = " or ".join(
            f"{n:,}" + (f" (limit {limit:,}, not the whole set)" if limit is not None else "")
            for n, limit in sorted(found, key=str)
        )
        columns.setdefault(text, []).append(column)
    return "samples a run: " + "; ".join(f"{text}: {tasks_text(table, own)}" for text, own in columns.items())


def seeds_of(used: Records) -> dict[tuple[str, str], list[int]]:
    """Seeds by (layout, label), sorted."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for r in used:
        seeds.setdefault((r["layout"], r["label"]), set()).add(r["seed"])
    return {row: sorted(values) for row, values in seeds.items()}


def seeds_note(used: Records) -> str:
    """Note on the seeds, by row if rows differ."""
    rows: dict[str, list[str]] = {}
    for (layout, label), seeds in seeds_of(used).items():
        rows.setdefault(", ".join(map(str, seeds)), []).append(f"{label} ({layout})")
    if len(rows) == 1:
        return f"seeds: {next(iter(rows))}"
    return "seeds: " + "; ".join(f"{seeds}: {', '.join(labels)}" for seeds, labels in rows.items())


def incomplete_notes(table: Table, used: Records, runs: pd.DataFrame | None) -> Iterable[str]:
    """Notes on cells with fewer seeds than their row has records or runs of."""
    seeds = {row: set(values) for row, values in seeds_of(used).items()}
    if runs is not None and "seed" in runs:
        for layout, label, seed in runs[["layout", "label", "seed"]].itertuples(index=False):
            seeds.setdefault((layout, label), set()).add(seed)
    found: dict[str, list[str]] = {}
    for (row, column), cell in table.cells.items():
        expected = len(seeds.get((row.layout, row.label), ()))
        if cell.estimate is not None and cell.estimate.seeds < expected:
            who = f"{row.label} ({row.layout}) has {cell.estimate.seeds} of {expected}"
            found.setdefault(who, []).append(column.words)
    yield from (f"fewer seeds: {who}: {', '.join(columns)}" for who, columns in found.items())


def run_notes(runs: pd.DataFrame | None) -> Iterable[str]:
    """Notes on runs that failed and records that cannot be read."""
    for run in [] if runs is None else runs.to_dict("records"):
        known = "".join(f", {key} {run[key]}" for key in ("seed", "run") if key in run)
        who = f"{run['label']} ({run['layout']}{known})"
        if isinstance(run.get("failure"), str):
            yield f"FAILED: {who}: {one_line(run['failure'])}"
        if isinstance(run.get("unreadable"), dict):
            yield from (f"UNREADABLE: {who}, {unit}: {one_line(why)}" for unit, why in run["unreadable"].items())


def fault_notes(runs: pd.DataFrame | None) -> Iterable[str]:
    """Notes on runs that left out steps or whose loss rose at once, with how often."""
    for key, words in (
        ("skipped", "training steps left out because loss or gradient was not finite"),
        ("spikes", "training steps whose loss was a spike"),
    ):
        found = [
            f"{run['label']} ({run['layout']}, seed {run['seed']}) {run[key]:.0f} of {run['steps']:,.0f}"
            for run in ([] if runs is None or key not in runs else runs[runs[key] > 0].to_dict("records"))
        ]
        if found:
            yield f"{words}: {', '.join(found)}"


def tuning_notes(runs: pd.DataFrame | None) -> Iterable[str]:
    """Notes on the tuned values of each row, with the number of its trials, and on rows that were not tuned."""
    if runs is None or "tuned" not in runs:
        return
    rows: dict[str, list[str]] = {}
    untuned, edges = [], []
    for run in runs.to_dict("records"):
        # Chosen at one preset for all: a row is named once.
        who = f"{run['label'].removesuffix(AT + str(run.get('preset')))} ({run['layout']})"
        if not isinstance(run["tuned"], dict):
            if pd.isna(run["trials"]):  # else its values are not chosen yet
                untuned.append(who)
            continue
        values = ", ".join(f"{name.partition('.')[2]} {value_text(value)}" for name, value in run["tuned"].items())
        share = "" if run["tuned_share"] == 1 else f" with {run['tuned_share']:.0%} of the tokens"
        rows.setdefault(f"{values} by {run['trials']:.0f} trials at {run['tuned_at']}{share}", []).append(who)
        edges += [f"{who} {name.partition('.')[2]}" for name in run["at_edge"] or []]
    if rows:
        yield "tuned: " + "; ".join(f"{values}: {listed(labels)}" for values, labels in rows.items())
    if edges:
        yield f"tuned to the least or largest value that was tried, so that a wider grid may do better: {listed(edges)}"
    if rows and untuned:
        yield f"MIXED, not tuned, beside rows that are: {listed(untuned)}"


def recipe_notes(runs: pd.DataFrame | None) -> Iterable[str]:
    """Note on the fields of the recipe that the experiment sets differently for different rows."""
    rows: dict[str, list[str]] = {}
    for run in [] if runs is None or "recipe" not in runs else runs[runs["recipe"].notna()].to_dict("records"):
        values = ", ".join(f"{name} {value_text(value)}" for name, value in run["recipe"].items())
        rows.setdefault(values, []).append(f"{run['label']} ({run['layout']})")
    if rows:
        yield "recipes differ: " + "; ".join(f"{values}: {listed(labels)}" for values, labels in rows.items())


def value_text(value: Any) -> str:
    """A tuned value as text, numbers with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def training_notes(runs: pd.DataFrame | None, key: str, words: str) -> Iterable[str]:
    """Note on a key of `runs`, over the runs that have not failed; by row and marked MIXED if they differ."""
    rows: dict[str, list[str]] = {}
    for run in [] if runs is None or key not in runs else runs[runs[key].notna()].to_dict("records"):
        if pd.isna(run.get("failure")):
            rows.setdefault(one_line(run[key]), []).append(f"{run['label']} ({run['layout']})")
    if len(rows) == 1:
        yield f"{words} {next(iter(rows))}"
    elif rows:
        yield f"MIXED, {words} " + "; ".join(f"{value}: {listed(labels)}" for value, labels in rows.items())


def history_notes(runs: pd.DataFrame | None) -> Iterable[str]:
    """Notes on what differs between rows in how they were trained, and in how each unit was evaluated.

    A run that was continued, or evaluated in several pieces, counts with every start that its result rests on. What
    `trained_on` says already is left out.
    """
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for run in [] if runs is None or "history" not in runs else runs[runs["history"].notna()].to_dict("records"):
        for unit, entries in run["history"].items():
            if entries is None:  # another run has this unit
                continue
            facts = [facts_of(entry, unit) for entry in entries]
            for name in dict.fromkeys(name for each in facts for name in each):
                text = ", then ".join(dict.fromkeys(each[name] for each in facts if name in each))
                found.setdefault((unit, name), {}).setdefault(text, []).append(f"{run['label']} ({run['layout']})")
    for (unit, name), texts in found.items():
        if name == FILES:  # each row has its own, but only one
            every = [label for labels in texts.values() for label in dict.fromkeys(labels)]
            texts = {text: own for text, own in texts.items() if any(every.count(label) > 1 for label in own)}
        if len(texts) > 1:
            what = "training" if unit == TRAIN else f"measuring {unit}"
            rows = "; ".join(f"{text}: {listed(labels)}" for text, labels in texts.items())
            yield f"{what} differs between rows in {name}: {rows}"


def fallback_notes(runs: pd.DataFrame | None) -> Iterable[str]:
    """Notes on runs that torch computed on a GPU although there are kernels, which their times suffer from."""
    found: dict[str, list[str]] = {}
    for run in [] if runs is None or "history" not in runs else runs[runs["history"].notna()].to_dict("records"):
        for entries in run["history"].values():
            for text in (text for entry in entries or () for text in entry.get("fallbacks") or ()):
                found.setdefault(text, []).append(f"{run['label']} ({run['layout']})")
    for text, labels in found.items():
        yield f"FALLBACK, {text}; so ran {listed(labels)}"


def facts_of(entry: Mapping[str, Any], unit: str) -> dict[str, str]:
    """The facts of an entry of a history that are compared, in words, by name."""
    versions = {name.removeprefix("version_"): value for name, value in entry.items() if name.startswith("version_")}
    facts = {f"version of {name}": value or "none" for name, value in versions.items()}
    facts |= {"backend": entry["backend"], "plugins": entry.get("plugins") or "none"}
    facts[FILES] = (entry.get("files_sha256") or "none")[:DIGITS]
    if unit == TRAIN:
        return facts | {key: str(entry[key]) for key in ("processes", "sharding") if key in entry}
    return facts | {"code": code_text(entry), "device": entry["device"], "threads": str(entry["threads"])}


def environment(used: Records) -> Iterable[str]:
    """Devices, dtypes and versions of the records."""
    yield listed(r["device"] for r in used)
    yield listed(r["dtype"] for r in used)
    for package in ("python", "torch", "lm_eval"):
        yield f"{package} " + listed(r[f"version_{package}"] or "not installed" for r in used)


def listed(values: Iterable[str]) -> str:
    """Distinct values, in order, separated by commas."""
    return ", ".join(dict.fromkeys(values))


def one_line(text: str) -> str:
    """A text with its whitespace collapsed."""
    return " ".join(text.split())
