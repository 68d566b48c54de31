"""The folder of one run: its configuration, training, records, and the state of each unit of work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from harness.files import read_json, write_atomic, write_json
from harness.yaml_files import read_yaml

T = TypeVar("T")
State = Literal["queued", "running", "requeued", "stopped", "failed", "done"]
TRAIN = "train"
"""The unit of work that trains a run."""
ACCURACY = "accuracy/"
"""Prefix of the metrics of training that hold a recall task's share of right answers since the last line, if any."""


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
    def inputs(self) -> Path:
        """Hashes of the inputs of the training: data, tokenizer and mixer files."""
        return self.path / "inputs.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def mixer_files(self) -> Path:
        """Copies of the file that defines the mixer and of those that it imports from beside it."""
        return self.path / "mixer"

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

    def history(self, unit: str) -> Path:
        return self.path / "history" / f"{unit}.jsonl"

    def answers(self, unit: str, key: str) -> Path:
        """Answers of the evaluation with this key."""
        return self.path / "answers" / f"{unit}-{key[:12]}.jsonl"

    def all_answers(self, unit: str) -> list[Path]:
        """Answers of a unit, whatever the evaluation's key."""
        return sorted((self.path / "answers").glob(f"{unit}-{'?' * 12}.jsonl"))

    def status(self, unit: str) -> Path:
        return self.path / "state" / f"{unit}.json"

    def attempts(self, unit: str) -> Path:
        return self.path / "state" / f"{unit}.jsonl"

    def lock(self, unit: str) -> Path:
        return self.path / "state" / f"{unit}.lock"

    def attempted(self) -> list[str]:
        """Units that have been started at least once."""
        return sorted(path.stem for path in (self.path / "state").glob("*.jsonl"))

    def portable(self) -> list[Path]:
        """The files that tell all about a trained run but its weights."""
        files = [self.config, self.inputs, self.summary, self.metrics]
        folders = [self.tokenizer, self.mixer_files, self.path / "records", self.path / "history"]
        files += [file for folder in folders for file in folder.rglob("*") if "__pycache__" not in file.parts]
        return [file for file in files if file.is_file() and not file.name.endswith(".partial")]

    def read_config(self) -> dict[str, Any]:
        """The stored configuration as plain values; `harness.experiments.run_config.read_config` makes a RunConfig of
        them. Raises ValueError if there is none or it is damaged."""
        if not self.config.is_file():
            raise ValueError(f"{self.path}: no run lies there (config.yaml is missing); give the folder of a run")
        try:
            return read_yaml(self.config)
        except ValueError as error:
            raise ValueError(f"{error}; {REWRITE}") from None

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Store a configuration, as plain values."""
        write_atomic(self.config, yaml.safe_dump(dict(config), sort_keys=False).encode())

    def read_inputs(self) -> dict[str, Any]:
        """Keys: data and tokenizer, their hashes, and mixer_files, hashes by name.

        Raises FileNotFoundError if none were kept, and ValueError if they are damaged.
        """
        content = read_json(self.inputs, _RESUME)
        kinds = {"tokenizer": str, "mixer_files": dict}
        sound = isinstance(content, dict) and "data" in content
        if not sound or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
            raise ValueError(f"{self.inputs}: damaged, no hashes of a run's inputs; {_RESUME}")
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in content["mixer_files"]):
            raise ValueError(f"{self.inputs}: damaged, it names files outside of the run; {_RESUME}")
        return content

    def write_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Written after the files that it describes."""
        write_json(self.inputs, dict(inputs))

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
        """Key of the evaluation whose records lie here; None if there are none, or not those that were marked."""
        try:
            mark = self.done(unit).read_text(encoding="utf-8", errors="replace").split()
        except FileNotFoundError:
            return None
        sizes = self._sizes(unit)
        # A damaged key matches no evaluation. Marks of earlier versions hold the key alone.
        return mark[0] if mark and mark[1:] in ([], sizes) and sizes[0] not in ("none", "0") else None

    def write_done(self, unit: str, key: str) -> None:
        """Mark the records of a unit as those of the evaluation with this key. Written last."""
        write_atomic(self.done(unit), " ".join([key, *self._sizes(unit)]).encode())

    def _sizes(self, unit: str) -> list[str]:
        """Sizes in bytes of the records of a unit and of their scores: a file that was cut off or lost is noticed."""
        paths = (self.records(unit), self.samples(unit))
        return [str(path.stat().st_size) if path.is_file() else "none" for path in paths]

    def forget(self, unit: str) -> None:
        """Remove the results of a unit, the mark first, and its answers; its history stays."""
        for path in (self.done(unit), self.records(unit), self.samples(unit), *self.all_answers(unit)):
            path.unlink(missing_ok=True)

    def read_history(self, unit: str) -> list[dict[str, Any]]:
        """The starts of a unit (harness.records.provenance.entry), oldest first."""
        return _read_lines(self.history(unit))

    def append_history(self, unit: str, entry: Mapping[str, Any]) -> None:
        _append_line(self.history(unit), entry)

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
        return [line for line in _read_lines(self.attempts(unit)) if isinstance(line.get("event"), str)]

    def append_attempt(self, unit: str, event: Mapping[str, Any]) -> None:
        _append_line(self.attempts(unit), event)

    def _read_training(self) -> dict[str, Any] | None:
        try:
            content = read_json(self.summary, _RESUME)
        except FileNotFoundError:
            return None
        if not isinstance(content, dict):
            raise ValueError(f"{self.summary}: damaged, no JSON object; {_RESUME}")
        return content


def place_name(unit: str, key: str) -> str:
    """Return the name under which a run's folder keeps the evaluation of a unit with this key."""
    return f"{unit}+{key[:8]}"


def unit_of(place: str) -> str:
    """Return the unit that a place belongs to; a unit is its own."""
    return place.partition("+")[0]


REWRITE = "delete it and submit the experiment again, which writes it again"
_RESUME = "delete it and submit again, which resumes training from the last checkpoint"


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a log, one a line. A line that a dying machine cut off is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(content, dict):
            found.append(content)
    return found


def _append_line(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # One write in append mode: the line is there or not, whoever else writes. It begins with a line's end, too, so that
    # it does not join a line that a dying machine cut off; empty lines are nothing.
    with open(path, "ab", buffering=0) as file:
        file.write(("\n" + json.dumps(content, ensure_ascii=False) + "\n").encode())


def record_files(folder: Path, unit: str = "*") -> list[Path]:
    """Files of records, of all units or of one, in a run, a folder of runs or a folder of folders of runs."""
    # Not deeper: snapshots of code may lie there.
    names = [f"{depth}records/{unit}{key}.jsonl" for depth in ("", "*/", "*/*/") for key in ("", "+*")]
    found = {path for name in names for path in folder.glob(name)}
    return sorted(path for path in found if not path.name.endswith(".samples.jsonl"))


def run_of_records(path: Path) -> Path:
    """The folder of the run that a file of records belongs to."""
    return path.parents[1]


def started_runs(runs_root: Path) -> list[str]:
    """Ids of the runs of a folder that have started."""
    return sorted(path.parent.name for path in runs_root.glob("*/state"))


def find_run(run: Path | str, runs_root: Path | str = "runs") -> RunFolder:
    """The folder of a run, given the folder, the run's id, or the beginning of an id that no other run shares.

    runs_root: the folder of runs that ids are looked up in. Raises ValueError if there is no such run, or several.
    """
    if (Path(run) / "config.yaml").is_file():
        return RunFolder(Path(run))
    root, name = Path(runs_root), Path(run).name
    known = sorted(path.parent.name for path in root.glob("*/config.yaml"))
    found = [run_id for run_id in known if run_id.startswith(name)] if str(run) == name != "" else []
    if name in found or len(found) == 1:
        return RunFolder(root / (name if name in found else found[0]))
    hint = f"several begin so: {', '.join(found)}" if found else f"there are {', '.join(known) or 'none'}"
    raise ValueError(
        f"{run}: no run lies there (config.yaml is missing), and none in {root} has that id; give the folder of a run, "
        f"or its id; {hint}"
    )


def runs_with_inputs(runs_root: Path) -> list[Path]:
    """The runs of a folder that kept the inputs of their training."""
    return sorted(path.parent for path in runs_root.glob("*/inputs.json"))


def _typed(kind: type[T], content: Any, path: Path, remedy: str) -> T:
    """A dataclass from JSON. Fields that a later version added are ignored. Raises ValueError if a field is missing or
    of a wrong type."""
    hints = _hints(kind)
    try:
        known = {name: value for name, value in content.items() if name in hints}
        if wrong := [name for name, value in known.items() if not _fits(value, hints[name])]:
            raise TypeError(f"{wrong[0]} is {known[wrong[0]]!r}")
        return kind(**known)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error}); {remedy}") from None


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a field's type."""
    kind, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind is Literal:
        return value in arguments
    if kind is UnionType:
        return any(_fits(value, each) for each in arguments)
    if kind is list:
        return isinstance(value, list) and all(_fits(each, arguments[0]) for each in value)
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, kind or hint)
