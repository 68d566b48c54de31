"""Freezing what an experiment's jobs would read from outside, for nodes without internet.

Afterwards its jobs run with HF_HUB_OFFLINE=1 where the project's cache and the Hub's are shared.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import suites
from harness.data.tokenizer import load_tokenizer, tokenizer_hash
from harness.experiments.schema import Experiment
from harness.files import cache_dir, write_atomic
from harness.training.batches import data_sha256, open_data
from suites.shared.items import Item, hashed_item

MANIFEST = "prefetch.json"


def prefetch(experiment: Experiment, say: Callable[[str], None] = lambda line: None) -> tuple[Path, list[Item]]:
    """Freeze tokenizer, training data and every suite's data; returns the manifest and all items.

    A suite takes part by a function `prefetch(config, tokenizer, progress)` that yields items; tokenizer is None where
    there is none. An item that cannot be had does not stop the others; the manifest lists those that can. Raises
    ValueError for suites or options that are not known.
    """
    configs = {name: suites.suite_config(name, options) for name, options in experiment.suites.items()}
    items: list[Item] = []

    def keep(item: Item) -> None:
        items.append(item)
        say(str(item))

    keep(
        hashed_item(
            f"tokenizer {experiment.data.tokenizer}", lambda: tokenizer_hash(load_tokenizer(experiment.data.tokenizer))
        )
    )
    tokenizer = load_tokenizer(experiment.data.tokenizer) if items[0].sha256 else None

    def data() -> str:
        open_data(experiment.data)
        return data_sha256(experiment.data)

    if experiment.data.phases:
        keep(hashed_item(f"training data {experiment.data.source}", data))
    for name, config in configs.items():
        module = suites.suite(name)
        if hasattr(module, "prefetch"):
            for item in module.prefetch(config, tokenizer, say):
                keep(item)
    path = cache_dir() / MANIFEST
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[experiment.name] = {item.name: item.sha256 for item in items if item.sha256}
    write_atomic(path, (json.dumps(known, indent=1, ensure_ascii=False) + "\n").encode())
    return path, items
