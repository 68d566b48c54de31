"""Commands that are killed at any moment: the same command, given again, ends with the results of one that was not.

MIXERBENCH_KILLS is the number of kills (a handful by default), MIXERBENCH_KILLS_SEED what their moments are drawn from.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness.files import file_sha256
from harness.records.store import load, load_samples
from harness.run_folder import RunFolder
from tests.killable import run

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("MIXERBENCH_KILLS", "6"))
SEED = int(os.environ.get("MIXERBENCH_KILLS_SEED", "0"))
MOMENTS = ("time", "command", "seconds", "tokens_per_second", "file")
"""Fields that tell when and how fast, in which two sound runs differ."""


class Place:
    """A folder in which all stages of a small comparison are done one after another; `data` is prepared apart."""

    def __init__(self, folder: Path, data: Path, prose: Path):
        self.folder, self.data, self.prose = folder, data, prose
        self.runs, self.log = folder / "runs", folder / "log"
        folder.mkdir()

    def command(self, stage: str) -> list[str]:
        experiment, runs = str(self.data.parent / "killed.yaml"), ["--runs", str(self.runs)]
        if stage == "prepare":
            return ["data", "prepare", str(self.prose), "--out", str(self.folder / "data"), "--processes", "1"]
        if stage == "export":
            return ["export", "--run", str(self.run), "--out", str(self.folder / "exported")]
        if stage == "pack":
            return ["runs", "pack", str(self.run), "--out", str(self.folder / "packed.tar")]
        return [stage, experiment, *runs, *(["--cluster", "debug"] if stage == "submit" else [])]

    @property
    def run(self) -> Path:
        (found,) = self.runs.glob("gdn2-*")
        return found

    def results(self, stage: str) -> dict[str, object]:
        """The results of a stage, but for MOMENTS."""
        if stage in ("prepare", "export"):
            folder = self.folder / ("data" if stage == "prepare" else "exported")
            files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
            # verified.json holds times of last change.
            return {name: file_sha256(path) for name, path in files.items() if name != "verified.json"}
        if stage == "pack":
            return {"packed": file_sha256(self.folder / "packed.tar")}
        if stage == "submit":
            summary = RunFolder(self.run).read_summary()
            return {
                "weights": summary.weights_sha256,
                "loss": summary.train_loss,
                "records": plain(load(self.run)),
                "scores": {str(key): list(scores) for key, scores in load_samples(self.run).items()},
                "steps": [json.loads(line)["step"] for line in RunFolder(self.run).metrics.read_text().splitlines()],
            }
        collected = self.runs / "collected" / "killed"
        if stage == "collect":
            return {"records": plain(load(collected)), "curves": plain(pd.read_parquet(collected / "curves.parquet"))}
        return {path.name: path.read_text() for path in sorted(collected.glob("table.*"))}


def plain(frame: pd.DataFrame) -> str:
    return frame.drop(columns=[name for name in MOMENTS if name in frame]).to_json(orient="records")


STAGES = ("prepare", "submit", "collect", "table", "export", "pack")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, dict[str, float], dict[str, object]]]:
    """A place where nothing was killed: the seconds and the results of each stage."""
    from harness.data.corpus import documents

    folder = tmp_path_factory.mktemp("whole")
    prose = folder / "prose.jsonl"
    texts = [d.text for d, _ in zip(documents("train", ["austen"]), range(12), strict=False)]
    prose.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    content = {
        "name": "killed",
        "preset": "cpu-600k",
        "mixers": [{"mixer": "gdn2", "options": {"heads": 2, "head_dim": 16}}],
        "data": {"source": "data", "phases": [{"tokens": 128 * 12, "seq_len": 64, "rows": {"text": 1, "mqar": 1}}]},
        "train": {"threads": 1, "checkpoint_every": 2},
        "suites": {"recall": {"pairs": [2, 4], "samples": 12}},
    }
    place = Place(folder / "place", folder / "data", prose)
    (folder / "killed.yaml").write_text(yaml.safe_dump(content))
    seconds: dict[str, float] = {}
    results: dict[str, object] = {}
    run(["list"], place.log)  # starts the fork server, whose imports are not to be timed
    for stage in STAGES:
        code, seconds[stage] = run(place.command(stage), place.log)
        assert code == 0, place.log.read_text()
        if stage == "prepare":
            shutil.copytree(place.folder / "data", place.data)
        results[stage] = place.results(stage)
    yield place, seconds, results


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_command_given_again_ends_with_the_same_results_and_leaves_no_temporary_file(
    whole: tuple[Place, dict[str, float], dict[str, object]],
    number: int,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    reference, seconds, results = whole
    moment = random.Random(f"{SEED}/{number}")
    stage = STAGES[number % len(STAGES)] if number % 2 == 0 else moment.choice(STAGES)
    place = Place(tmp_path / "place", reference.data, reference.prose)
    if stage not in ("prepare", "submit"):  # later stages begin where the reference's run has ended
        ignored = ("collected",) if stage == "collect" else ("table.*",)
        shutil.copytree(reference.runs, place.runs, ignore=shutil.ignore_patterns(*ignored))
    kills = 0
    for _ in range(3):  # a command that is killed, and when given again
        after = moment.uniform(0.0, 1.1) * seconds[stage]
        code, _ = run(place.command(stage), place.log, after)
        kills += code == -9
        assert code in (0, -9), f"{stage} after {kills} kills:\n{place.log.read_text()}"
    record_property("kills", kills)  # for --junitxml
    code, _ = run(place.command(stage), place.log)
    assert code == 0, f"{stage} after {kills} kills:\n{place.log.read_text()}"
    assert place.results(stage) == results[stage]
    left = [
        path for path in tmp_path.rglob("*") if path.name.endswith((".partial", ".tmp")) or ".partial-" in path.name
    ]
    assert not left, f"{stage} after {kills} kills left {left}"
