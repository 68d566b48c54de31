"""The collected results of an experiment: records, scores, runs, curves, and what is made from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.files import read_json, write_atomic

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Collection:
    """The collected results of an experiment, and the tables, figures and report made from them."""

    path: Path

    @property
    def records(self) -> Path:
        return self.path / "records.parquet"

    @property
    def samples(self) -> Path:
        return self.path / "samples.json"

    @property
    def runs(self) -> Path:
        return self.path / "runs.json"

    @property
    def curves(self) -> Path:
        return self.path / "curves.parquet"

    @property
    def trials(self) -> Path:
        """Trials of tuned values; there only if the experiment was tuned."""
        return self.path / "trials.json"

    @property
    def metrics(self) -> Path:
        """Descriptions of the metrics that suites from elsewhere declare; there only if such a suite was collected."""
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def table(self, name: str, form: Literal["md", "tex", "csv", "html"]) -> Path:
        """A table in one of its forms; `name` is `table`, or the paper's (`table2`)."""
        return self.path / f"{name}.{form}"

    def figure(self, name: str, form: Literal["png", "svg"]) -> Path:
        return self.path / f"{name}.{form}"

    def require(self) -> None:
        """Raises ValueError if nothing was collected here."""
        if not self.records.is_file():
            raise ValueError(f"{self.path}: nothing collected there; run collect first")

    def read_runs(self) -> pd.DataFrame:
        """One row per run. Raises ValueError if nothing was collected here or the file is damaged."""
        import pandas as pd

        return pd.DataFrame(self._rows(self.runs, dict))

    def read_curves(self) -> pd.DataFrame:
        """Training metrics of all runs. Raises ValueError if there are none."""
        if not self.curves.is_file():
            raise ValueError(f"{self.curves}: no training curves there; run collect again")
        return read_parquet(self.curves)

    def read_samples(self) -> list[Any]:
        """Pairs of a record's key and its per-sample scores; empty if none were collected."""
        return self._rows(self.samples, list) if self.samples.is_file() else []

    def read_trials(self) -> pd.DataFrame:
        """One row per trial (slurm.collect.trials_frame); empty if nothing was tuned."""
        import pandas as pd

        return pd.DataFrame(self._rows(self.trials, dict) if self.trials.is_file() else [])

    def write(
        self,
        records: pd.DataFrame,
        samples: Sequence[Any],
        runs: pd.DataFrame,
        curves: pd.DataFrame,
        trials: pd.DataFrame,
    ) -> None:
        """Replace the collected data."""
        write_atomic(self.records, records.to_parquet())
        write_atomic(self.curves, curves.to_parquet())
        write_atomic(self.samples, json.dumps(samples).encode())
        write_atomic(self.runs, runs.to_json(orient="records", indent=1).encode())
        if trials.empty:
            self.trials.unlink(missing_ok=True)
        else:
            write_atomic(self.trials, trials.to_json(orient="records", indent=1).encode())

    def _rows(self, path: Path, kind: type) -> list[Any]:
        try:
            rows = read_json(path, "run collect again")
        except FileNotFoundError:
            raise ValueError(f"{path}: nothing collected there; run collect first") from None
        if not isinstance(rows, list) or not all(isinstance(row, kind) for row in rows):
            raise ValueError(f"{path}: damaged, not a list of rows; run collect again")
        return rows


def read_parquet(path: Path) -> pd.DataFrame:
    """A collected data frame. Raises ValueError naming the file if it is damaged."""
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        raise ValueError(f"{path}: damaged ({' '.join(str(error).split())}); run collect again") from None


def collection_of(runs_root: Path, experiment: str) -> Collection:
    """Where `collect` puts an experiment by default."""
    return Collection(runs_root / "collected" / experiment)
