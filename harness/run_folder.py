"""The folders of runs, collections and submissions: every file in them, by name, read and written here alone.

    RUNS/                            a folder of runs, `runs/` by default
      <run>/                         RunFolder
        config.yaml                  the resolved configuration
        metrics.jsonl, tensorboard/  training metrics
        checkpoints/                 with index.json
        train.json                   Summary and provenance of the finished training
        answers/<unit>-<key>.jsonl   answers of an evaluation in progress
        records/<unit>.jsonl         records; <unit>.samples.jsonl, their per-sample scores; <unit>.done, the key
        state/<unit>.json            Status; <unit>.jsonl, its attempts; <unit>.lock, held by the process at work
      collected/<experiment>/        Collection
      submissions/<name>-<time>/     Submission
      code/                          snapshots of the code of submissions
      submitting.lock                held while a submission decides what to do

Nothing here imports torch or pandas before it needs them: the status of thousands of runs must be quick.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml

from harness.files import read_json, write_atomic, write_json

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
State = Literal["queued", "running", "requeued", "stopped", "failed", "done"]


@dataclass(frozen=True)
class Summary:
    """Result of a finished training.

    tokens_per_second: of all processes together. train_loss: mean loss of the last steps, in nats per token.
    world_size: number of processes when training ended. sharding: `ddp` or `fsdp`, None for one process. skipped:
    steps left out because their loss or gradient was not finite. spikes: steps whose loss stood out.
    """

    run: str
    label: str
    mixer: str
    layout: str
    preset: str
    seed: int
    non_embedding_params: int
    embedding_params: int
    state_floats_per_layer: int
    flops_per_token: float
    mlp_widths: list[int]
    steps: int
    tokens_seen: int
    train_loss: float
    tokens_per_second: float
    weights_sha256: str
    world_size: int = 1
    sharding: str | None = None
    skipped: int = 0
    spikes: int = 0


@dataclass(frozen=True)
class Status:
    """Where a unit of a run stands.

    state: `queued` (its job waits), `running`, `requeued` (its job starts again by itself), `stopped` (ended from
    outside; submitting again resumes it), `failed` (given up; only `retry` starts it again) or `done`.
    detail: what it is doing, or why it is not, in one line. step of steps, loss (nats per token), tokens_per_second,
    seconds_left: training progress. job: Slurm's id, empty for a process of this machine. updated: seconds since the
    epoch.
    """

    state: State
    detail: str = ""
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    job: str = ""
    node: str = ""
    pid: int = 0
    updated: float = 0.0


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. A submission keeps the status of its own units in the same form."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        return self.path / "train.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def checkpoint_index(self) -> Path:
        return self.checkpoints / "index.json"

    def records(self, unit: str) -> Path:
        return self.path / "records" / f"{unit}.jsonl"

    def samples(self, unit: str) -> Path:
        return self.path / "records" / f"{unit}.samples.jsonl"

    def done(self, unit: str) -> Path:
        return self.path / "records" / f"{unit}.done"

    def answers(self, unit: str, key: str) -> Path:
        """Answers of the evaluation with this key."""
        return self.path / "answers" / f"{unit}-{key[:12]}.jsonl"

    def all_answers(self, unit: str) -> list[Path]:
        """Answers of a unit, whatever the evaluation's key."""
        return sorted((self.path / "answers").glob(f"{unit}-*.jsonl"))

    def status(self, unit: str) -> Path:
        return self.path / "state" / f"{unit}.json"

    def attempts(self, unit: str) -> Path:
        return self.path / "state" / f"{unit}.jsonl"

    def lock(self, unit: str) -> Path:
        return self.path / "state" / f"{unit}.lock"

    def attempted(self) -> list[str]:
        """Units that have been started at least once."""
        return sorted(path.stem for path in (self.path / "state").glob("*.jsonl"))

    def read_config(self) -> dict[str, Any]:
        """The stored configuration as plain values; `harness.experiments.run_config.read_config` makes a RunConfig of
        them. Raises ValueError if there is none or it is damaged."""
        if not self.config.is_file():
            raise ValueError(f"{self.path}: no run lies there (config.yaml is missing); give the folder of a run")
        try:
            values = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.config}: damaged ({' '.join(str(error).split())}); {REWRITE}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{self.config}: damaged, no mapping of fields; {REWRITE}")
        return values

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Store a configuration, as plain values."""
        write_atomic(self.config, yaml.safe_dump(dict(config), sort_keys=False).encode())

    def read_summary(self) -> Summary | None:
        """Summary of the finished training; None while it is not finished. Raises ValueError if it is damaged."""
        content = self._read_training()
        return None if content is None else _typed(Summary, content, self.summary, _RESUME)

    def read_training_provenance(self) -> dict[str, Any]:
        """Provenance of the finished training. Raises ValueError if there is none."""
        content = self._read_training()
        if content is None or "provenance" not in content:
            raise ValueError(f"{self.summary}: no provenance of a finished training; {_RESUME}")
        return content["provenance"]

    def write_summary(self, summary: Summary, provenance: Mapping[str, Any]) -> None:
        """Mark the training as finished. Written last: whatever else the run needs is on disk by then."""
        write_json(self.summary, asdict(summary) | {"provenance": dict(provenance)})

    def weights_sha256(self) -> str | None:
        """Hash of the weights that the finished training left; None while it is not finished."""
        content = self._read_training()
        if content is not None and not isinstance(content.get("weights_sha256"), str):
            raise ValueError(f"{self.summary}: damaged, no weights_sha256; {_RESUME}")
        return None if content is None else content["weights_sha256"]

    def read_done(self, unit: str) -> str | None:
        """Key of the evaluation whose records lie here; None if there are none."""
        try:
            return self.done(unit).read_text(errors="replace").strip()  # a damaged key matches no evaluation
        except FileNotFoundError:
            return None

    def write_done(self, unit: str, key: str) -> None:
        write_atomic(self.done(unit), key.encode())

    def read_status(self, unit: str) -> Status | None:
        """Last status of a unit; None before its first. Raises ValueError if it is damaged."""
        path, remedy = self.status(unit), "delete it; `submit` continues the run"
        try:
            content = read_json(path, remedy)
        except FileNotFoundError:
            return None
        return _typed(Status, content, path, remedy)

    def write_status(self, unit: str, status: Status) -> None:
        write_json(self.status(unit), asdict(status))

    def read_attempts(self, unit: str) -> list[dict[str, Any]]:
        """Events of a unit's attempts, oldest first. A line that a dying machine cut off is left out."""
        try:
            lines = self.attempts(unit).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        events = []
        for line in lines:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(event, dict):
                events.append(event)
        return events

    def append_attempt(self, unit: str, event: Mapping[str, Any]) -> None:
        path = self.attempts(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        # One write in append mode: the line is there or not, whoever else writes. It begins with a line's end, too, so
        # that it does not join a line that a dying machine cut off; empty lines are no events.
        with open(path, "ab", buffering=0) as file:
            file.write(("\n" + json.dumps(event, ensure_ascii=False) + "\n").encode())

    def _read_training(self) -> dict[str, Any] | None:
        try:
            content = read_json(self.summary, _RESUME)
        except FileNotFoundError:
            return None
        if not isinstance(content, dict):
            raise ValueError(f"{self.summary}: damaged, no JSON object; {_RESUME}")
        return content


REWRITE = "delete it and submit the experiment again, which writes it again"
_RESUME = "delete it and submit again, which resumes training from the last checkpoint"


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

        return pd.DataFrame(self._rows(self.runs))

    def read_curves(self) -> pd.DataFrame:
        """Training metrics of all runs. Raises ValueError if there are none."""
        import pandas as pd

        if not self.curves.is_file():
            raise ValueError(f"{self.curves}: no training curves there; run collect again")
        return pd.read_parquet(self.curves)

    def read_samples(self) -> list[Any]:
        """Pairs of a record's key and its per-sample scores; empty if none were collected."""
        return self._rows(self.samples) if self.samples.is_file() else []

    def write(self, records: pd.DataFrame, samples: Sequence[Any], runs: pd.DataFrame, curves: pd.DataFrame) -> None:
        """Replace the collected data."""
        write_atomic(self.records, records.to_parquet())
        write_atomic(self.curves, curves.to_parquet())
        write_atomic(self.samples, json.dumps(samples).encode())
        write_atomic(self.runs, runs.to_json(orient="records", indent=1).encode())

    def _rows(self, path: Path) -> list[Any]:
        try:
            rows = read_json(path, "run collect again")
        except FileNotFoundError:
            raise ValueError(f"{path}: nothing collected there; run collect first") from None
        if not isinstance(rows, list):
            raise ValueError(f"{path}: damaged, not a list; run collect again")
        return rows


@dataclass(frozen=True)
class Submission:
    """One submission: the resolved experiment, its plan, and the jobs that it put into a queue."""

    path: Path

    @property
    def experiment(self) -> Path:
        return self.path / "experiment.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def jobs(self) -> Path:
        return self.path / "jobs.json"

    @property
    def prepared(self) -> Path:
        return self.path / "prepared"

    @property
    def logs(self) -> Path:
        """Scripts, pickles and output of submitit."""
        return self.path / "logs"

    def array(self, name: str) -> Path:
        """The folder and the unit of every task of a job array."""
        return self.path / "arrays" / f"{name}.json"

    def write_experiment(self, experiment: Mapping[str, Any]) -> None:
        """Store the resolved experiment, as plain values."""
        write_atomic(self.experiment, yaml.safe_dump(dict(experiment), sort_keys=False).encode())

    def read_plan(self) -> dict[str, Any]:
        """Keys: experiment, cluster, host, pid, time, and runs with their units. Raises ValueError if it is damaged."""
        remedy = f"delete {self.path} and submit again"
        plan = read_json(self.plan, remedy)
        named = isinstance(plan, dict) and {"experiment", "cluster", "host", "pid", "time", "runs"} <= plan.keys()
        if not named or not isinstance(plan["runs"], list):
            raise ValueError(f"{self.plan}: damaged, no plan of a submission; {remedy}")
        return plan

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        write_json(self.plan, dict(plan))

    def read_jobs(self) -> dict[str, str]:
        """Slurm's job id by array name; empty while nothing was put into a queue."""
        remedy = f"see `squeue` for its jobs, then delete {self.path}"
        try:
            ids = read_json(self.jobs, remedy)
        except FileNotFoundError:
            return {}
        if not isinstance(ids, dict):
            raise ValueError(f"{self.jobs}: damaged, no mapping of job ids; {remedy}")
        return ids

    def write_jobs(self, ids: Mapping[str, str]) -> None:
        write_json(self.jobs, dict(ids))

    def write_array(self, name: str, tasks: Sequence[tuple[Path, str]]) -> Path:
        """List the (folder, unit) of every task of a job array."""
        write_json(self.array(name), [[str(folder), unit] for folder, unit in tasks])
        return self.array(name)


def collection(runs_root: Path, experiment: str) -> Collection:
    """Where `collect` puts an experiment by default."""
    return Collection(runs_root / "collected" / experiment)


def submissions_folder(runs_root: Path) -> Path:
    return runs_root / "submissions"


def submissions(runs_root: Path, experiment: str) -> list[Submission]:
    """Submissions of an experiment, oldest first. Raises ValueError for a damaged plan."""
    dated = []
    for path in submissions_folder(runs_root).glob(f"{experiment}-*/plan.json"):
        submission = Submission(path.parent)
        plan = submission.read_plan()
        if plan["experiment"] == experiment:
            dated.append((plan["time"], str(path.parent), submission))
    return [submission for *_, submission in sorted(dated, key=lambda item: item[:2])]


def code_folder(runs_root: Path) -> Path:
    """Snapshots of the code of submissions, and copies of the files that define mixers."""
    return runs_root / "code"


def submitting_lock(runs_root: Path) -> Path:
    return runs_root / "submitting.lock"


def started_runs(runs_root: Path) -> list[str]:
    """Ids of the runs of a folder that have started."""
    return sorted(path.parent.name for path in runs_root.glob("*/state"))


def _typed(kind: type[T], content: Any, path: Path, remedy: str) -> T:
    """A dataclass from JSON. Fields that a later version added are ignored."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: value for name, value in content.items() if name in names})
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error}); {remedy}") from None
