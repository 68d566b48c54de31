"""The choices of tuned values in a folder of runs, one file each, written once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.files import read_json, write_json


@dataclass(frozen=True)
class ChoiceFile:
    """The file of one choice: the chosen values, and the scores of all trials that decided."""

    path: Path

    def read(self) -> dict[str, Any] | None:
        """Keys: values, and trials with run, values, score, loss and reason. None if nothing is chosen yet.

        Raises ValueError if it is damaged.
        """
        remedy = "delete it; `submit` chooses again from the same trials"
        try:
            content = read_json(self.path, remedy)
        except FileNotFoundError:
            return None
        sound = isinstance(content, dict) and isinstance(content.get("values"), dict)
        trials = content.get("trials") if sound else None
        keys = {"run", "values", "score", "loss", "reason"}
        if not isinstance(trials, list) or not all(isinstance(t, dict) and keys <= t.keys() for t in trials):
            raise ValueError(f"{self.path}: damaged, no chosen values; {remedy}")
        return content

    def write(self, content: Mapping[str, Any]) -> None:
        write_json(self.path, dict(content))


def choice_file(runs_root: Path, key: str) -> ChoiceFile:
    """The file of the choice with this key (harness.experiments.tuning.Tuned.key)."""
    return ChoiceFile(runs_root / "choices" / f"{key[:16]}.json")
