"""Limits on jobs in the queue: which ones a cluster sets, and the room that they leave."""

from pathlib import Path

import pytest

from slurm.graph.limits import Later, Limit, limits, room
from slurm.profile import Profile
from tests.slurm.cluster.minislurm import MiniSlurm
from tests.slurm.conftest import FakeSlurm

CONFIG = "AccountingStorageType = accounting_storage/slurmdbd\\nAccountingStorageEnforce = associations,limits,qos"
PARTITION = "PartitionName=main Default=YES QoS=part State=UP\\nPartitionName=other Default=NO QoS=N/A State=UP"


@pytest.fixture
def site(fake_slurm: FakeSlurm) -> FakeSlurm:
    """A cluster that limits the jobs of an association, of two QOS, and of a partition."""
    fake_slurm.answer("scontrol", f'case "$*" in *config) printf "{CONFIG}";; *) printf "{PARTITION}";; esac')
    answers = 'case "$*" in *qos\\ format*) printf "normal|\\nlong|20\\npart|30\\n";; *defaultaccount) echo lab;;'
    fake_slurm.answer("sacctmgr", answers + ' *account=lab*) echo "lab|long|50|";; *) echo "big||500|400";; esac')
    fake_slurm.answer("squeue", 'printf "lab|long|main\\nlab|long|main,other\\nlab|normal|other\\nbig|normal|other\\n"')
    return fake_slurm


def test_the_limits_are_those_of_the_account_the_qos_and_the_partition_that_jobs_use(site: FakeSlurm) -> None:
    account = Limit("MaxSubmitJobs of account lab", 50, account="lab")
    qos = Limit("MaxSubmitJobsPerUser of QOS long", 20, qos="long")
    partition = Limit("MaxSubmitJobsPerUser of partition main", 30, partition="main")
    assert limits(Profile()) == [account, qos, partition]
    assert limits(Profile(qos="normal", partition="other", max_jobs=9)) == [
        Limit("max_jobs of the profile", 9),
        account,
    ]
    other = Profile(account="big", partition="other", train={"qos": "long"})
    assert [(limit.name.split()[0], limit.most) for limit in limits(other)] == [
        ("MaxSubmitJobs", 500),
        ("GrpSubmitJobs", 400),
        ("MaxSubmitJobsPerUser", 20),
    ]


def test_each_limit_counts_its_own_jobs(site: FakeSlurm) -> None:
    assert room(limits(Profile())) == (18, "MaxSubmitJobsPerUser of QOS long: 20 jobs, of which 2 are in the queue")
    assert room([Limit("a", 9), Limit("b", 8, account="big"), Limit("c", 7, partition="other")]) == (
        4,
        "c: 7 jobs, of which 3 are in the queue",
    )
    assert room([]) is None


def test_limits_that_nobody_enforces_or_tells_are_none(site: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    site.answer("sacctmgr", "exit 1")
    assert limits(Profile()) == []
    site.answer("scontrol", f'printf "{CONFIG.replace("limits,", "")}"')
    site.answer("sacctmgr", 'echo "lab|long|50|"')
    assert limits(Profile()) == []
    site.answer("squeue", "exit 1")
    with pytest.raises(Later, match="squeue"):
        room([Limit("a", 9)])


@pytest.mark.slurm
def test_a_real_cluster_tells_its_limits(slurm_at_hand: MiniSlurm, tmp_path: Path) -> None:
    assert limits(Profile()) == []
    user = slurm_at_hand.run("id", "-un").strip()
    slurm_at_hand.run("sacctmgr", "-i", "modify", "user", user, "where", "account=lab", "set", "maxsubmitjobs=6")
    slurm_at_hand.run("sacctmgr", "-i", "modify", "qos", "long", "set", "maxsubmitjobsperuser=5")
    try:
        account, qos = limits(Profile(train={"qos": "long"}))
        assert account == Limit("MaxSubmitJobs of account lab", 6, account="lab")
        assert qos == Limit("MaxSubmitJobsPerUser of QOS long", 5, qos="long")
        job = slurm_at_hand.run("sbatch", "--parsable", "--array=0-3", "--hold", "--wrap", "true", cwd=tmp_path).strip()
        assert room([account, qos]) == (2, "MaxSubmitJobs of account lab: 6 jobs, of which 4 are in the queue")
        slurm_at_hand.run("scancel", job)
    finally:
        slurm_at_hand.run("sacctmgr", "-i", "modify", "user", user, "where", "account=lab", "set", "maxsubmitjobs=-1")
        slurm_at_hand.run("sacctmgr", "-i", "modify", "qos", "long", "set", "maxsubmitjobsperuser=-1")
