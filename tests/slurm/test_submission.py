"""The job graph of an experiment, and what a submission leaves to others."""

import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from submitit.core.utils import DelayedSubmission
from typer.testing import CliRunner

from harness.experiments.load import load_experiment
from harness.files import write_atomic
from harness.records.record import read_lines
from harness.run_folder import RunFolder, Submission
from run import app
from slurm.bench import synthetic_summary
from slurm.jobs import EvaluateJob, Job, PrepareJob, TrainJob
from slurm.plan import RunPlan, plan, trials
from slurm.submission import ReleaseJob
from tests.slurm.conftest import FakeSlurm
from tests.slurm.experiments import PARENT, call, experiment
from tests.slurm.test_trials import tuned


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


def test_a_sweep_starts_after_other_jobs(tmp_path: Path, small_data: Path, fake_slurm: FakeSlurm) -> None:
    experiment(tmp_path, small_data, mixers=["attention"])
    options = ["--cluster", "slurm", "--after", "7_3,8"]
    dry = call(tmp_path, "submit", *options, "--dry-run")
    (line,) = (line for line in dry.splitlines() if line.startswith("prepare"))
    assert line.endswith("afterany:7_3, afterany:8")
    call(tmp_path, "submit", *options)
    prepare, *others = fake_slurm.scripts()
    assert "#SBATCH --dependency=afterany:7_3,afterany:8\n" in prepare and "#SBATCH --hold" in prepare
    assert not any("7_3" in script for script in others)
    assert all(re.search(r"--dependency=after(ok|corr|any):10\d", script) for script in others)  # on what waits for it


def test_a_limit_on_submitted_jobs_is_told_with_the_remedy(
    tmp_path: Path, small_data: Path, fake_slurm: FakeSlurm
) -> None:
    experiment(tmp_path, small_data, mixers=["attention"])
    limit = "sbatch: error: AssocMaxSubmitJobLimit"
    fake_slurm.answer("sbatch", f'case "$*" in --test-only*) cat > /dev/null;; *) echo "{limit}" >&2; exit 1;; esac')
    command = ["submit", str(tmp_path / "tiny.yaml"), "--runs", f"{tmp_path}/runs", "--cluster", "slurm"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "AssocMaxSubmitJobLimit" in result.output
    assert "set max_jobs in the profile to the jobs that you may have in the queue" in result.output
    assert not list((tmp_path / "runs" / "submissions").iterdir())


def job_of(folder: Path, number: int, index: int | None = None) -> DelayedSubmission:
    """The job that a submission to the fake Slurm put into the queue, as its process would load it."""
    task = "" if index is None else f"_{index}"
    (path,) = folder.glob(f"runs/submissions/*/logs/10{number}{task}_submitted.pkl")
    return DelayedSubmission.load(path)


def test_packed_evaluations_leave_what_separate_ones_leave_and_each_can_be_tried_again(
    tmp_path: Path, small_data: Path, fake_slurm: FakeSlurm
) -> None:
    suites = {"recall": {"pairs": [2], "samples": 4}, "language": {"tasks": ["heldout"], "limit": 2}}
    found, apart, packed = [], tmp_path / "apart", tmp_path / "packed"
    for folder in (apart, packed):
        folder.mkdir()
        experiment(folder, small_data, mixers=["attention"], suites=suites)
    call(apart, "submit", "--cluster", "debug")
    profile = ["--cluster", "slurm", "--set-profile", "evaluate.pack=true"]
    shown = call(packed, "submit", *profile, "--dry-run").splitlines()
    assert [line.split()[:2] for line in shown[2:6]] == [
        [name, "1"] for name in ("prepare", "train-0", "evaluations-0", "collect")
    ]
    call(packed, "submit", *profile)
    assert len(fake_slurm.scripts()) == 4
    (run,) = plan(load_experiment(packed / "tiny.yaml"), packed / "runs")
    for unit in run.units:
        assert RunFolder(run.folder).read_status(run.place(unit)).job == "102"
    for number in (1, 2):
        job_of(packed, number).result()
    for folder in (apart, packed):
        (run,) = plan(load_experiment(folder / "tiny.yaml"), folder / "runs")
        assert not run.missing
        rows = [row for unit in run.units for row in read_lines(RunFolder(run.folder).records(run.place(unit)))]
        found.append([(row["suite"], row["task"], row["metric"], row["value"], row["n"]) for row in rows])
        states = [RunFolder(run.folder).read_status(run.place(unit)).state for unit in run.units]
        events = [[e["event"] for e in RunFolder(run.folder).read_attempts(run.place(u))] for u in run.units]
        assert states == ["done"] * 2 and events == [["started"]] * 2
    assert found[0] == found[1] and len(found[0]) == 2
    fake_slurm.answer("squeue", "true")
    call(packed, "retry", "--suite", "recall", *profile)
    assert [job.unit for job in job_of(packed, 5).function.parts] == [run.place("recall")]


def test_runs_of_another_sweep_get_an_array_with_the_indices_of_its_tasks(
    tmp_path: Path, small_data: Path, fake_slurm: FakeSlurm
) -> None:
    experiment(tmp_path, small_data, mixers=["attention"], seeds=[0, 1, 2, 3])
    call(tmp_path, "submit", "--cluster", "slurm")
    runs = plan(load_experiment(tmp_path / "tiny.yaml"), tmp_path / "runs")
    queue = "\n".join(f"101_{index}|PENDING||None|tiny:train-0@mixerbench" for index in range(4))
    fake_slurm.answer("squeue", f"echo '{queue}'")
    options = ["--set", "seeds=[1,3]", "--set", "suites.recall.samples=5", "--set", "name=other"]
    said = call(tmp_path, "submit", "--cluster", "slurm", "--set-profile", "concurrency=2", *options)
    assert said.count("queued already, job 101_") == 2 and "recall-after-101-0" in said
    script = fake_slurm.scripts()[5]
    assert "#SBATCH --array=1,3%2" in script and "#SBATCH --dependency=afterok:104,aftercorr:101" in script
    for index in (1, 3):
        assert job_of(tmp_path, 5, index).function.folder == runs[index].folder


class Site:
    """A fake Slurm whose queue holds what was submitted, and whose jobs end as if they had worked."""

    def __init__(self, slurm: FakeSlurm, folder: Path):
        self.slurm, self.folder, self.most, self.over = slurm, folder, 0, 0
        rows = "|RUNNING|n1|None|tiny:x@mixerbench"
        counted = 'case "$*" in *%q*) sed "s/.*/lab|normal|main/" $LOG/queue;; *--me*) ;;'
        slurm.answer("squeue", f'{counted} *) sed "s/$/{rows}/" $LOG/queue;; esac')
        self.read()

    def read(self, *running: str) -> list[str]:
        """Put what was submitted and is not over into the queue, after jobs that run; returns all ids."""
        ids = list(running)
        for number, script in list(enumerate(self.slurm.scripts()))[self.over :]:
            array = re.search(r"^#SBATCH --array=.?(\d+)-(\d+)", script, re.MULTILINE)
            tasks = range(int(array[1]), int(array[2]) + 1) if array else ()
            ids += [f"10{number}_{index}" for index in tasks] or [f"10{number}"]
        (self.slurm.folder / "queue").write_text("".join(f"{job}\n" for job in ids))
        self.most = max(self.most, len(ids))
        return ids

    def finish_wave(self) -> tuple[str, Job]:
        """Let all jobs in the queue end but the last; returns its id and the job itself."""
        *jobs, last = self.read()
        for job in jobs:
            for part in job_of(self.folder, *map(int, job[2:].split("_"))).function.parts:
                pretend(part)
        self.over = int(last[2:]) + 1
        self.read(last)
        return last, job_of(self.folder, int(last[2:])).function


def pretend(job: Job) -> None:
    """Leave what a job leaves that has worked."""
    folder = RunFolder(job.folder)
    if isinstance(job, PrepareJob):
        Submission(job.folder).prepared.touch()
    elif isinstance(job, TrainJob):
        folder.write_summary(synthetic_summary(RunPlan(job.config, job.folder, {}, [])), {})
    elif isinstance(job, EvaluateJob):
        row = {"suite": "recall", "task": "mqar", "metric": "acc", "length": 2, "value": 0.5}
        write_atomic(folder.records(job.unit), (json.dumps(row) + "\n").encode())
        folder.write_done(job.unit, job.evaluation.key("0"))
    else:
        job()


def be_job(monkeypatch: pytest.MonkeyPatch, job: str, folder: Path) -> None:
    """Let this process pass for a job of ours."""
    for name, value in (("SUBMITIT_EXECUTOR", "slurm"), ("SUBMITIT_FOLDER", str(folder)), ("SLURM_JOB_ID", job)):
        monkeypatch.setenv(name, value)


SIX = ["--cluster", "slurm", "--set-profile", "evaluate.pack=true", "--set-profile", "max_jobs=6"]


@pytest.fixture
def site(tmp_path: Path, fake_slurm: FakeSlurm) -> Site:
    return Site(fake_slurm, tmp_path)


def test_a_sweep_passes_through_the_queue_in_waves_that_its_own_jobs_submit(
    tmp_path: Path, small_data: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tuned(tmp_path, small_data, seeds=list(range(5)))
    dry = call(tmp_path, "submit", *SIX, "--dry-run")
    assert not (tmp_path / "runs" / "submissions").exists()
    call(tmp_path, "submit", *SIX)
    site.read()
    assert {row["state"] for row in json.loads(call(tmp_path, "status", "--json"))} == {"queued"}
    assert "nothing submitted" in call(tmp_path, "submit", *SIX)  # what waits for its wave is somebody's, too
    waves = 1
    while isinstance((last := site.finish_wave())[1], ReleaseJob):
        be_job(monkeypatch, last[0], tmp_path)
        for _ in "ab":  # Slurm may start it again after it has submitted the wave
            last[1]()
        site.read(last[0])
        waves += 1
    plans = plan(load_experiment(path), tmp_path / "runs")
    assert not any(run.missing for run in (*trials(plans), *plans)) and plans[0].config.train.lr == 1e-3
    # Of four trials two a wave; the choice and a run; two runs a wave.
    assert waves == 5 and site.most == 6
    assert "then 4 more waves, each submitted by the last job of the one before" in dry
    calls = len(site.slurm.scripts())
    assert calls == 17 and f"{calls} calls of sbatch, at most 6 jobs in the queue at the same time" in dry
    dependencies = [re.search("--dependency=(.*)", script) for script in site.slurm.scripts()]
    assert all(found and found[1] for found in dependencies[1:])  # nothing starts before its wave is recorded


def test_a_wave_waits_for_room_and_comes_complete_or_not_at_all(
    tmp_path: Path, small_data: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment(tmp_path, small_data, mixers=["attention"], seeds=[0, 1, 2])
    call(tmp_path, "submit", *SIX)
    last, release = site.finish_wave()
    assert isinstance(release, ReleaseJob) and not release.done()
    be_job(monkeypatch, last, tmp_path)
    folder, accepted = RunFolder(release.folder), (site.slurm.folder / "bin" / "sbatch").read_text()
    refusals: list[str] = []

    def sleep(seconds: float) -> None:  # each time, what has stood in the way is gone
        refusals.append(folder.read_status(release.unit).detail)
        assert folder.read_status(release.unit).state == "running" and not release.done()
        if len(refusals) == 1:
            site.read(last)
        else:
            (site.slurm.folder / "bin" / "sbatch").write_text(accepted)

    monkeypatch.setattr("slurm.submission.time", SimpleNamespace(sleep=sleep))
    site.read(last, *(f"9_{n}" for n in range(4)))  # others of the user's
    before = len(site.slurm.scripts())
    refuse = "if ls $LOG | grep -q script-4; then echo AssocMaxSubmitJobLimit >&2; exit 1; fi\n"
    site.slurm.answer("sbatch", refuse + accepted.split("\n", 3)[3])
    release()
    first, second = refusals
    assert first == "waits: max_jobs of the profile: 6 jobs, of which 5 are in the queue"
    assert second.startswith("waits: sbatch refused evaluations-1: ") and "AssocMaxSubmitJobLimit" in second
    assert "104" in site.slurm.calls("scancel")[-1].split()  # the one that was accepted before
    assert release.done() and len(site.slurm.scripts()) == before + 4


def test_no_wave_follows_on_a_preparation_that_did_not_finish(tmp_path: Path, small_data: Path, site: Site) -> None:
    experiment(tmp_path, small_data, mixers=["attention"], seeds=[0, 1, 2])
    call(tmp_path, "submit", *SIX)
    release = job_of(tmp_path, 3).function
    with pytest.raises(RuntimeError, match="prepare did not finish, and nothing can be done without it"):
        release()


def test_a_queue_without_room_is_refused_with_the_limit(tmp_path: Path, small_data: Path, site: Site) -> None:
    experiment(tmp_path, small_data, mixers=["attention"])
    site.read(*(f"9_{n}" for n in range(4)))
    command = ["submit", str(tmp_path / "tiny.yaml"), "--runs", f"{tmp_path}/runs", *SIX]
    dry, real = [CliRunner().invoke(app, [*command, *more]) for more in (["--dry-run"], [])]
    assert dry.exit_code == real.exit_code == 2 and dry.output == real.output
    assert "max_jobs of the profile: 6 jobs, of which 4 are in the queue, and a sweep needs 3 more" in dry.output
