"""Hand-made records for the tests of figures, written and read through the real store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from harness.records.record import Record
from tests.harness.tables.table_records import record, store

VALUES = {"gdn2": (0.7, 0.9, 0.8), "kda": (0.5, 0.5, 0.5), "own": (0.1, 0.2, 0.3)}
"""Accuracy by mixer and seed on the difficulty that is scaled by one; `own` is not a mixer of the project."""
WIDTHS = ("cpu-recall-32", "cpu-recall-64")


def recall_frame(folder: Path) -> pd.DataFrame:
    """Three mixers with three seeds and two widths: two difficulties of mqar, one of overwrite with both metrics."""
    own = {"suite": "recall", "settings": {"length_unit": "key-value pairs"}}
    asked = [
        ("mqar", "acc", 8, 1.0),
        ("mqar", "acc", 4, 0.5),
        ("overwrite", "acc", 2, 1.0),
        ("overwrite", "stale", 2, 1.0),
    ]
    records = []
    for preset in WIDTHS:
        for mixer, values in VALUES.items():
            for seed, value in enumerate(values):
                run = {"preset": preset, "seed": seed, "mixer": mixer}
                made = [
                    record(mixer.upper(), task, metric, value * scale, 0.01, length=length, **run, **own)
                    for task, metric, length, scale in asked
                ]
                records += [replace(r, run=f"{mixer}-{preset}-{seed}") for r in made]
    other = record("GDN2", "piqa", "acc", 0.6, 0.01, mixer="gdn2", preset=WIDTHS[0])
    return store(folder, [*records, replace(other, run=f"gdn2-{WIDTHS[0]}-0")])


def reading(
    mixer: str, batch: int, length: int, state: float | None, layout: str = "recurrent", **run: Any
) -> list[Record]:
    """Records of the suite `decode` for one shape. state: bytes, or None if the shape ran out of memory."""
    where = {"suite": "decode", "mixer": mixer, "layout": layout, "length": length} | run
    label, task = mixer.upper(), f"batch_{batch}"
    if state is None:
        return [record(label, task, "decode_out_of_memory", 1.0, None, 1, **where)]
    return [
        record(label, task, "prefill_tokens_per_second", 1000.0 * batch, 10.0, 5, **where),
        record(label, task, "decode_tokens_per_second", 40.0 * batch, 1.0, 5, **where),
        record(label, task, "state_bytes", state, None, 1, **where),
    ]


def mqar_records(
    mixer: str, preset: str, seed: int, accuracy: dict[int, float], layout: str = "recurrent"
) -> list[Record]:
    """Records of the suite `mqar` for one run: `acc` by number of pairs, and details for the largest number.

    The pair listed last is never recalled, and nothing is from further away than 8 tokens.
    """
    run = {"mixer": mixer, "preset": preset, "seed": seed, "layout": layout, "suite": "mqar"}
    most, made = max(accuracy), []
    for pairs, value in accuracy.items():
        own = run | {"settings": {"chance": 1 / pairs, "length_unit": "key-value pairs"}, "length": pairs}
        made.append(record(mixer.upper(), "mqar", "acc", value, 0.01, **own))
    places = {place: accuracy[most] if place < most else 0.0 for place in range(1, most + 1)}
    distances = {4: accuracy[most], 8: accuracy[most], 16: 0.0}
    for metric, unit, values in (("acc_by_position", "place", places), ("acc_by_distance", "tokens", distances)):
        settings = {"settings": {"chance": 1 / most, "length_unit": unit}}
        made += [
            record(mixer.upper(), f"mqar@{most}", metric, value, 0.01, length=length, **run, **settings)
            for length, value in values.items()
        ]
    return [replace(r, run=f"{mixer}-{preset}-{seed}") for r in made]


def trial(mixer: str, seed: int, score: float | None, chosen: bool = False, **values: Any) -> dict[str, Any]:
    """A row of trials.json."""
    model = {"label": mixer.upper(), "mixer": mixer, "layout": "recurrent", "preset": "recall-64", "seed": seed}
    by = {"suite": "mqar", "task": "mqar", "metric": "acc", "lengths": [4, 8]}
    text = json.dumps({f"train.{name}": value for name, value in values.items()})
    return model | by | {"score": score, "share": 0.4, "values": text, "chosen": chosen}
