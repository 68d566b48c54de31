"""The collected results of an experiment: records, scores, runs, curves, and what is made from them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from harness.files import atomic_folder, read_json
from harness.yaml_files import read_yaml

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
    def answers(self) -> Path:
        """Questions and answers of the first items; there only if a suite kept texts."""
        return self.path / "answers.json"

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
    def experiment(self) -> Path:
        """The resolved experiment that was collected. Written last: a collection without it is not whole."""
        return self.path / "experiment.yaml"

    @property
    def lock(self) -> Path:
        return self.path / "collection.lock"

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

    def read_experiment(self) -> dict[str, Any]:
        """The resolved experiment, as plain values.

        Raises ValueError if nothing was collected here, or by a version that did not keep the experiment, or if
        collecting was killed halfway.
        """
        self.require()
        try:
            return read_yaml(self.experiment)
        except FileNotFoundError:
            raise ValueError(
                f"{self.experiment}: missing; the collection is of an earlier version or not whole; run collect again"
            ) from None
        except ValueError as error:
            raise ValueError(f"{error}; run collect again") from None

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Hold the collection alone, from reading its runs to writing its files; others wait."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.lock, "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the collection as it is: it is not replaced before the block ends."""
        try:
            lock = open(self.lock, encoding="utf-8")  # noqa: SIM115
        except FileNotFoundError:  # nobody has collected here, or the folder is a copy: nobody replaces it
            yield
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

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

    def read_answers(self) -> list[Any]:
        """Questions with every run's answers (harness.records.answers.grouped); empty if no texts were kept."""
        return self._rows(self.answers, dict) if self.answers.is_file() else []

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
        experiment: Mapping[str, Any],
        metrics: Mapping[str, Any],
        answers: Sequence[Any] = (),
    ) -> None:
        """Replace the collected data as one; call it inside `replacing`.

        All files are on disk before the first takes its place, so that what can fail fails with the old data whole.
        experiment: resolved, as plain values. metrics, answers: as for the files of these names.
        """
        content = {
            self.records: records.to_parquet(),
            self.curves: curves.to_parquet(),
            self.samples: json.dumps(samples).encode(),
            self.answers: json.dumps(list(answers), ensure_ascii=False).encode() if answers else b"",
            self.runs: runs.to_json(orient="records", indent=1).encode(),
            self.trials: b"" if trials.empty else trials.to_json(orient="records", indent=1).encode(),
            self.metrics: json.dumps(dict(metrics), indent=1).encode() if metrics else b"",
            self.experiment: yaml.safe_dump(dict(experiment), sort_keys=False, allow_unicode=True).encode(),
        }
        staged = self.path / ".replacement"
        shutil.rmtree(staged, ignore_errors=True)  # of a process that was killed
        with atomic_folder(staged) as folder:
            for path, data in content.items():
                if data:
                    (folder / path.name).write_bytes(data)
        self.experiment.unlink(missing_ok=True)
        for path, data in content.items():
            if data:
                os.replace(staged / path.name, path)
            else:
                path.unlink(missing_ok=True)
        staged.rmdir()

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


def collections(runs_root: Path) -> list[Collection]:
    """Everything that was collected by default in a folder of runs, by name."""
    return [Collection(path.parent) for path in sorted((runs_root / "collected").glob("*/records.parquet"))]


def index_file(runs_root: Path) -> Path:
    """The page over all collections of a folder of runs."""
    return runs_root / "collected" / "index.html"
