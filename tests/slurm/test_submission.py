"""The job graph of an experiment, and what a submission leaves to others."""

import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.experiments.expand import expand
from harness.experiments.load import load_experiment
from run import app
from slurm.plan import RunPlan, plan
from slurm.profile import load_profile
from slurm.queue import Queue
from slurm.state import write_status
from slurm.submission import Pending, Work, describe, graph, to_do
from suites.registry import evaluations
from suites.units import TRAIN
from tests.slurm.conftest import FakeSlurm
from tests.slurm.experiments import PARENT, call, experiment

SUITES = {"recall": {"samples": 8}, "ruler": {"lengths": [256, 512], "haystack": "corpus"}}


@pytest.fixture
def plans(tmp_path: Path, small_data: Path) -> list[RunPlan]:
    path = experiment(tmp_path, small_data, mixers=["attention"], seeds=[0, 1, 2, 3, 4], suites=SUITES)
    return plan(load_experiment(path), tmp_path / "runs")


def arrays(plans: list[RunPlan], pending: list[Pending], limit: int = 1000) -> dict:
    work = Work([], pending, [], [], [])
    made = graph(load_experiment("demo"), work, Path("sub"), Path("runs"), "command", limit)
    assert [array.name for array in made][0] == "prepare" and [array.name for array in made][-1] == "collect"
    known: set[str] = set()
    for array in made:  # nothing waits for what is submitted after it
        assert {name for _, name in array.after} <= known | {"12_3"}
        known.add(array.name)
    return {array.name: array for array in made}


def test_a_suite_is_evaluated_by_length_with_the_tasks_that_have_it() -> None:
    paper = evaluations("ruler", {"samples": 3})
    assert list(paper) == ["ruler@1024", "ruler@2048", "ruler@4096", "ruler@8192"]
    assert paper["ruler@1024"].options["tasks"] == ["s_niah_1", "s_niah_2", "s_niah_3", "mk_niah_1"]
    longest = paper["ruler@8192"].options
    assert longest["tasks"] == ["s_niah_1", "s_niah_2"] and longest["lengths"] == [8192]
    assert list(evaluations("recall", {})) == ["recall"]


def test_evaluations_wait_task_by_task_for_the_training_of_their_run(plans: list[RunPlan]) -> None:
    found = arrays(plans, [Pending(p, p.missing) for p in plans])
    assert list(found) == ["prepare", "train-0", "recall-0", "ruler@256-0", "ruler@512-0", "collect"]
    assert found["train-0"].after == [("afterok", "prepare")]
    for name in ("recall-0", "ruler@256-0", "ruler@512-0"):
        assert found[name].after == [("aftercorr", "train-0")]
        assert [job.folder for job in found[name].tasks] == [job.folder for job in found["train-0"].tasks]
    assert {kind for kind, _ in found["collect"].after} == {"afterany"} and len(found["collect"].after) == 5


def test_arrays_are_no_longer_than_the_cluster_allows(plans: list[RunPlan]) -> None:
    found = arrays(plans, [Pending(p, p.missing) for p in plans], limit=2)
    assert [len(found[f"train-{part}"].tasks) for part in range(3)] == [2, 2, 1]
    for part in range(3):
        assert found[f"recall-{part}"].after == [("aftercorr", f"train-{part}")]


def test_what_is_trained_is_only_evaluated_and_what_another_job_trains_is_waited_for(plans: list[RunPlan]) -> None:
    pending = [
        Pending(plans[0], plans[0].missing),
        Pending(plans[1], ["ruler@256"]),
        Pending(plans[2], ["recall"], "12_3"),
    ]
    found = arrays(plans, pending)
    assert [job.folder for job in found["train-0"].tasks] == [plans[0].folder]
    assert [job.folder for job in found["ruler@256-trained-0"].tasks] == [plans[1].folder]
    assert found["ruler@256-trained-0"].after == [("afterok", "prepare")]
    assert found[f"recall-{plans[2].config.run_id}"].after == [("afterok", "prepare"), ("afterok", "12_3")]


def test_units_that_somebody_does_or_whose_training_has_failed_are_left_out(plans: list[RunPlan]) -> None:
    training, failed, evaluation, lost, untouched = plans
    write_status(training.folder, TRAIN, "running", job="7_0", updated=time.time())
    write_status(failed.folder, TRAIN, "failed", "loss nan")
    write_status(evaluation.folder, evaluation.place("recall"), "failed", "no data")
    write_status(lost.folder, TRAIN, "queued", job="7_9")
    todo, held, left_out = to_do(plans, Queue({"7_0": ("RUNNING", "n1", "")}))
    assert held == ["7_0"]
    assert [(run.plan, run.units, run.after) for run in todo] == [
        (training, training.missing[1:], "7_0"),
        (evaluation, evaluation.missing, ""),
        (lost, lost.missing, ""),
        (untouched, untouched.missing, ""),
    ]
    assert [line.partition(": ")[2] for line in left_out] == [
        "running already, job 7_0",
        "failed: loss nan",
    ]


def test_a_dry_run_says_what_each_process_of_training_holds(tmp_path: Path) -> None:
    loaded = load_experiment("table2")
    (config, *_) = expand(loaded, 32000, "0" * 64).runs
    plans = [RunPlan(config, tmp_path / config.run_id, {}, [TRAIN])]
    template = load_profile("template")
    for sharding, held in (("ddp", "23.2"), ("fsdp", "3.8")):  # 16 bytes a parameter, and see harness.training.estimate
        train = template.train.model_copy(update={"nodes": 2, "gpus_per_node": 8, "tasks_per_node": None})
        profile = template.model_copy(update={"train": train, "sharding": sharding})
        said = describe(loaded, plans, profile, tmp_path)
        assert (
            f" {held} GB of memory for weights, gradients and optimiser of each of 16 processes ({sharding}), act"
            in said
        )
        # 1.4e9 parameters on 1e11 tokens at 0.4 of 989 TFLOP/s: 8.6e20 FLOPs, 603 GPU hours
        assert f"one run of {config.label}, recurrent, {config.preset}: " in said
        assert " h, started again 1 times of 1440 minutes" in said
    single = template.model_copy(update={"train": train.model_copy(update={"nodes": 1, "gpus_per_node": 1})})
    assert "23.2 GB of memory for weights, gradients and optimiser of one process, act" in describe(
        loaded, plans, single, tmp_path
    )


def test_jobs_inherit_nothing_of_the_job_that_submits_them(
    tmp_path: Path, small_data: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment(tmp_path, small_data, mixers=["attention"])
    for name, value in (PARENT | {"SLURM_CONF": "/site/slurm.conf"}).items():
        monkeypatch.setenv(name, value)
    said = call(tmp_path, "submit", "--cluster", "slurm")
    assert "not used: SBATCH_PARTITION; a job gets what its profile says" in said
    found = fake_slurm.environments()
    assert len(found) == 4  # prepare, train-0, recall-0, collect
    for environment in found:
        assert not PARENT.keys() & environment.keys() and environment["SLURM_CONF"] == "/site/slurm.conf"
    assert all("#SBATCH --signal=USR2@120" in script for script in fake_slurm.scripts())


@pytest.mark.parametrize("signal_name", ["HUP", "TERM"])
def test_a_submission_that_is_interrupted_leaves_nothing_in_the_queue(
    tmp_path: Path, small_data: Path, fake_slurm: FakeSlurm, signal_name: str
) -> None:
    experiment(tmp_path, small_data, mixers=["attention"])
    accepted = (tmp_path / "slurm" / "bin" / "sbatch").read_text()
    # The session ends when Slurm has taken the third job and its id is not known yet.
    interrupted = f"if [ -e $LOG/script-2 ]; then kill -{signal_name} $PPID; sleep 1; fi\n"
    (tmp_path / "slurm" / "bin" / "sbatch").write_text(accepted + interrupted)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)]
    command = ["submit", str(tmp_path / "tiny.yaml"), "--runs", f"{tmp_path}/runs", "--cluster", "slurm"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "interrupted" in result.output
    (cancelled,) = fake_slurm.calls("scancel")
    assert set(cancelled.split()) == {"100", "101", "102"}
    assert not list((tmp_path / "runs" / "submissions").iterdir())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)] == before


def test_jobs_are_named_after_their_experiment_and_array(
    tmp_path: Path, small_data: Path, fake_slurm: FakeSlurm
) -> None:
    experiment(tmp_path, small_data, mixers=["attention"])
    call(tmp_path, "submit", "--cluster", "slurm")
    names = [line for script in fake_slurm.scripts() for line in script.splitlines() if "job-name" in line]
    arrays = ("prepare", "train-0", "recall-0", "collect")
    assert names == [f"#SBATCH --job-name=tiny:{array}@mixerbench" for array in arrays]
    assert (tmp_path / "runs" / "submitting.lock").stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set-profile", "partition=moon"], "partition: unknown partition 'moon'; use one of: main"),
        (["--set-profile", "train.nodes=3", "--set-profile", "train.gpus_per_node=0"], "train.nodes: 3 is above the 1"),
        (["--set", "suites.ruler={lengths: [150], haystack: corpus}"], "suites.ruler: "),
        (["--set-profile", "train.gpus_per_node=3"], "rows"),
    ],
)
def test_a_dry_run_refuses_what_a_submission_refuses(
    tmp_path: Path, small_data: Path, fake_slurm: FakeSlurm, options: list[str], message: str
) -> None:
    experiment(tmp_path, small_data, mixers=["attention"])
    command = ["submit", str(tmp_path / "tiny.yaml"), "--runs", f"{tmp_path}/runs", "--cluster", "slurm", *options]
    dry, real = [CliRunner().invoke(app, [*command, *more]) for more in (["--dry-run"], [])]
    assert dry.exit_code == real.exit_code == 2 and dry.output == real.output
    assert message in dry.output and not (tmp_path / "slurm" / "script-0").exists()


def test_a_limit_on_submitted_jobs_is_told_with_the_remedy(
    tmp_path: Path, small_data: Path, fake_slurm: FakeSlurm
) -> None:
    experiment(tmp_path, small_data, mixers=["attention"])
    limit = "sbatch: error: AssocMaxSubmitJobLimit"
    fake_slurm.answer("sbatch", f'case "$*" in --test-only*) cat > /dev/null;; *) echo "{limit}" >&2; exit 1;; esac')
    command = ["submit", str(tmp_path / "tiny.yaml"), "--runs", f"{tmp_path}/runs", "--cluster", "slurm"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "AssocMaxSubmitJobLimit" in result.output
    assert "submit a part of them with --limit or --only" in result.output
    assert not list((tmp_path / "runs" / "submissions").iterdir())
