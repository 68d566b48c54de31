"""Freezing everything that an experiment's jobs read from outside, for nodes without internet.

Afterwards the jobs run with HF_HUB_OFFLINE=1, wherever the project's cache and the Hub's cache are shared.
"""

from __future__ import annotations

import json
from pathlib import Path

from harness.data.tokenizer import load_tokenizer, tokenizer_hash
from harness.experiments.schema import Experiment
from harness.files import cache_dir, write_atomic
from harness.training.batches import data_sha256, open_data
from suites.interface import Progress, silent
from suites.registry import load_files, suite, suite_config
from suites.shared.items import Item, hashed_item

MANIFEST = "prefetch.json"


def prefetch(experiment: Experiment, say: Progress = silent) -> tuple[Path, list[Item]]:
    """Freeze tokenizer, training data and every suite's data; return the path of the manifest and all items.

    A missing item does not stop the others; the manifest lists those that were frozen. Raises ValueError for unknown
    suites and options.
    """
    load_files(experiment.suite_files)
    configs = {name: suite_config(name, options) for name, options in experiment.suites.items()}
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
        for item in suite(name).prefetch(config, tokenizer, say):
            keep(item)
    path = cache_dir() / MANIFEST
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[experiment.name] = {item.name: item.sha256 for item in items if item.sha256}
    write_atomic(path, (json.dumps(known, indent=1, ensure_ascii=False) + "\n").encode())
    return path, items
