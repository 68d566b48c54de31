"""Freezing everything that an experiment's jobs read from outside, for nodes without internet.

Afterwards the jobs run with HF_HUB_OFFLINE=1, wherever the project's cache and the Hub's cache are shared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.data.tokenizer import load_tokenizer, tokenizer_hash
from harness.experiments.schema import Experiment
from harness.files import cache_dir, read_json, write_json
from harness.training.batches import data_sha256, open_data
from harness.training.inputs import find_data
from suites.interface import Progress, silent
from suites.registry import load_files, suite, suite_config
from suites.shared.items import Item, hashed_item

MANIFEST = "prefetch.json"


def prefetch(experiment: Experiment, say: Progress = silent, trained: Path | None = None) -> tuple[Path, list[Item]]:
    """Freeze tokenizer, training data and every suite's data; return the path of the manifest and all items.

    A missing item does not stop the others; the manifest lists those that were frozen. trained: the folder of the
    experiment's runs if all are trained, so that the training data are not needed, and the tokenizer may come from one
    of the runs. Raises ValueError for unknown suites and options.
    """
    load_files(experiment.suite_files)
    configs = {name: suite_config(name, options) for name, options in experiment.suites.items()}
    items: list[Item] = []

    def keep(item: Item) -> None:
        items.append(item)
        say(str(item))

    def known_tokenizer() -> Any:
        return load_tokenizer(experiment.data.tokenizer) if trained is None else find_data(experiment.data, trained)[0]

    keep(hashed_item(f"tokenizer {experiment.data.tokenizer}", lambda: tokenizer_hash(known_tokenizer())))
    tokenizer = known_tokenizer() if items[0].sha256 else None

    def data() -> str:
        open_data(experiment.data)
        return data_sha256(experiment.data)

    if experiment.data.phases and trained is None:
        keep(hashed_item(f"training data {experiment.data.source}", data))
    for name, config in configs.items():
        for item in suite(name).prefetch(config, tokenizer, say):
            keep(item)
    path = cache_dir() / MANIFEST
    try:
        known = read_json(path, "")
    except (FileNotFoundError, ValueError):  # a damaged one is written anew
        known = {}
    known = known if isinstance(known, dict) else {}
    known[experiment.name] = {item.name: item.sha256 for item in items if item.sha256}
    write_json(path, known)
    return path, items
