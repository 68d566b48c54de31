"""The documented commands that need a cluster, executed on one in the order of docs/slurm.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.experiments.load import load_experiment
from harness.run_folder import RunFolder
from slurm.plan import plan
from tests.documented import commands
from tests.slurm.cluster.client import Client
from tests.slurm.cluster.minislurm import MiniSlurm
from tests.slurm.experiments import data_config, experiment

pytestmark = pytest.mark.slurm

AFTER_IT = ["python run.py logs RUN", "python run.py cancel EXPERIMENT"]


def test_the_documented_commands_work_on_a_cluster(slurm_cluster: MiniSlurm, tmp_path: Path, small_data: Path) -> None:
    client = Client(slurm_cluster, tmp_path)
    path = experiment(tmp_path, small_data, mixers=["attention"], data=data_config(small_data, 4))
    path.write_text(path.read_text() + "scales: {125m: {description: of the same size}}\n")
    (run,) = plan(load_experiment(path), client.runs)
    # Not what reads a data set of the Hub: tests/slurm/test_preparation.py has a file instead.
    shown = [c.text for c in commands() if "--cluster PROFILE" in c.text and "HuggingFaceFW/" not in c.text]
    texts = list(dict.fromkeys(shown))
    assert {text.split()[2] for text in texts} == {"doctor", "submit", "retry", "debug"}
    other = slurm_cluster.run("sbatch", "--parsable", "--hold", "--wrap", "true", cwd=tmp_path).strip()
    slurm_cluster.run("scancel", other)
    called = []
    for text in sorted(texts, key=lambda text: "--dry-run" not in text) + AFTER_IT:
        words = text.split()[2:]
        if words[0] in ("submit", "retry", "cancel"):
            words[1] = str(path)
        names = {"PROFILE": "profile.yaml", "RUN": run.config.run_id, "JOBID": other}
        words = [names.get(word, word) for word in words]
        if words in called:  # documented for several experiments
            continue
        called.append(words)
        runs = [] if words[0] == "doctor" else ["--runs", str(client.runs)]
        if words[0] in ("logs", "debug"):
            client.finish()
        if words[0] == "debug":  # all is done by now
            RunFolder(run.folder).forget(run.place("recall"))
        output = client.call(*words, *runs)
        if words[0] == "debug":
            assert "finished: recall" in output
        if words[0] == "submit" and "--dry-run" in words:
            assert re.search(r"^train-0 +1 ", output, re.MULTILINE)
    assert {row["state"] for row in client.rows(path).values()} == {"done"}
