"""A real Slurm on one machine, for tests: munge, MariaDB, slurmdbd, slurmctld and some slurmd, all below one folder.

    bash tests/slurm/cluster/install.sh                      # once, as root
    python3 tests/slurm/cluster/minislurm.py up /tmp/s1      # options: NODES=2 CPUS=16 GPUS=2 ACCOUNTING=1 PORT0=20000
    export SLURM_CONF=/tmp/s1/etc/slurm.conf                 # all that sbatch, squeue, sacct and submitit need
    sinfo; srun -N2 hostname
    python3 tests/slurm/cluster/minislurm.py down /tmp/s1    # stops what it started and removes the folder

Runs as root or as a user, who then is the cluster's administrator; without PORT0 it takes ports that are free, so that
several run side by side. Nothing is read or written in /etc/slurm, /etc/munge, /run and /var. GPUs are character
devices that nobody drives: Slurm counts them and sets CUDA_VISIBLE_DEVICES. Partitions: debug (the default), short (at
most 30 minutes), low and high (whose jobs requeue those of low). Accounting knows the account `lab` and the QOS `long`
and refuses others. Needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Debian keeps the daemons in sbin, which is not on an ordinary user's PATH.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
LONGEST_BASE = 60  # characters: the path of a unix socket ends at 107, and slurmstepd's has 40 of its own


def installed() -> bool:
    """Whether install.sh has run."""
    return all(shutil.which(name, path=PATH) for name in ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"))


@dataclass(frozen=True)
class MiniSlurm:
    """A cluster below `base`, an absolute and short path, with `nodes` nodes n1, n2, ... of `cpus` CPUs and `gpus` fake
    GPUs each. port: the first of ten ports and one a node. Nothing runs before `start`."""

    base: Path
    nodes: int = 2
    cpus: int = 16
    gpus: int = 2
    accounting: bool = True
    port: int = 20000

    @property
    def conf(self) -> str:
        """What SLURM_CONF must be for every client."""
        return str(self.base / "etc/slurm.conf")

    @property
    def env(self) -> dict[str, str]:
        """The environment for subprocesses: this process' without traces of another Slurm, and with SLURM_CONF."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return kept | {"SLURM_CONF": self.conf, "PATH": PATH}

    def run(self, *command: str, timeout: float = 60, **options: object) -> str:
        """What a command writes to stdout, on this cluster; RuntimeError with its stderr when it fails."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout, **options)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def squeue(self) -> list[dict[str, str]]:
        """A row a job or array task that has not ended: id (`7` or `7_0`), name, state and reason."""
        rows = self.run("squeue", "-h", "-r", "-o", "%i|%j|%T|%r").splitlines()
        return [dict(zip(("id", "name", "state", "reason"), row.split("|"), strict=True)) for row in rows]

    def sacct(self, job: str) -> dict[str, str]:
        """The accounted state of a job, or of each task of an array that has started, by id; seconds behind the
        truth."""
        rows = self.run("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", job).splitlines()
        return dict(row.split("|") for row in rows)

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Until the condition holds; TimeoutError with `what`, the queue and the controller's last words."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}\n{self._last_words()}")
            time.sleep(0.1)

    def start(self) -> MiniSlurm:
        """Bring everything up and wait until all nodes are idle. What was started before a failure still runs then:
        `stop` ends it."""
        if len(str(self.base)) > LONGEST_BASE:
            raise ValueError(f"base: {self.base} is longer than {LONGEST_BASE} characters; use a folder in /tmp")
        for folder in ("etc", "run", "log", "state", "munge", *(f"spool/n{i + 1}" for i in range(self.nodes))):
            (self.base / folder).mkdir(parents=True)
        self._resolve_nodes()
        self._start_munge()
        self._configure()
        if self.accounting:
            self._start_accounting()
        self._daemon("slurmctld", "-c")
        for i in range(self.nodes):
            self._daemon("slurmd", "-N", f"n{i + 1}")
        self.wait(self._all_idle, f"{self.nodes} idle nodes", 30)
        return self

    def stop_controller(self) -> None:
        """End slurmctld; jobs go on, and clients get no answer until `start_controller`."""
        _end(self.base / "run/slurmctld.pid", "slurmctld")

    def start_controller(self) -> None:
        """Start slurmctld again with the state that it has saved."""
        self._daemon("slurmctld")
        self.wait(self._all_known, "the controller to answer and the nodes to register", 30)

    def restart_controller(self) -> None:
        self.stop_controller()
        self.start_controller()

    def cut_off(self, node: str) -> None:
        """End a node's slurmd alone: the controller cannot reach the node, whose jobs go on without hearing of it."""
        _end(self.base / f"run/slurmd.{node}.pid", "slurmd")

    def switch_off(self, node: str) -> None:
        """End a node with everything on it at once, as a loss of power does: nothing says a last word or cleans up."""
        name = f"SLURMD_NODENAME={node}".encode()
        daemon = _alive_of(self.base / f"run/slurmd.{node}.pid", "slurmd")
        of_jobs = [pid for pid in self.processes() if name in _environment(pid)]
        # Their slurmstepd has not the node's name in its own environment.
        steps = {parent for pid in of_jobs if _read(parent := _parent(pid), "comm").strip() == b"slurmstepd"}
        ending = [*([daemon] if daemon else []), *steps, *of_jobs]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none sees another one end
            for pid in ending:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def give_up(self, node: str) -> None:
        """Call a node down, as an operator does, or the controller itself after minutes of silence."""
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def bring_back(self, node: str) -> None:
        """Start the slurmd of a node that was lost; ReturnToService puts it back to use."""
        self._daemon("slurmd", "-N", node)
        self.wait(lambda: not any("down" in state for state in self._node_states()), f"{node} to return", 30)

    def processes(self) -> list[int]:
        """Everything alive that was started for this cluster, jobs included: by its SLURM_CONF or its command line."""
        conf, below = f"SLURM_CONF={self.conf}".encode(), f"{self.base}/".encode()
        return [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if pid != os.getpid() and _alive(pid) and (conf in _environment(pid) or below in _read(pid, "cmdline"))
        ]

    def _daemon(self, *command: str, **env: str) -> None:
        # Into a file, not a pipe: a daemon that keeps its stderr would keep the pipe, and with it us, waiting.
        with open(self.base / "log/start.log", "ab") as log:
            done = subprocess.run(
                command, env=self.env | env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=60
            )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{self._last_words()}")

    def _ok(self, *command: str) -> bool:
        return subprocess.run(command, env=self.env, capture_output=True, timeout=60).returncode == 0

    def _node_states(self) -> list[str]:
        done = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "debug", "-o", "%T"], env=self.env, capture_output=True, text=True
        )
        return done.stdout.split()

    def _all_idle(self) -> bool:
        return self._node_states() == ["idle"] * self.nodes

    def _all_known(self) -> bool:
        states = self._node_states()
        return len(states) == self.nodes and not any("unk" in s or s.endswith("*") for s in states)

    def _last_words(self) -> str:
        queue = subprocess.run(["squeue", "-a"], env=self.env, capture_output=True, text=True)
        logs = [*sorted((self.base / "log").glob("slurm*.log")), self.base / "log/start.log"]
        tails = [f"{p.name}: {line}" for p in logs if p.exists() for line in p.read_text().splitlines()[-5:]]
        return "\n".join([queue.stdout.rstrip() or queue.stderr.rstrip(), *tails])

    def _resolve_nodes(self) -> None:
        """torch's rendezvous connects to the first node by its name."""
        names = [f"n{i + 1}" for i in range(self.nodes)]
        unknown = [name for name in names if not _resolves(name)]
        if unknown and os.getuid() == 0:
            with open("/etc/hosts", "a") as hosts:
                hosts.write(f"127.0.0.1 {' '.join(unknown)}\n")
            warnings.warn(f"added to /etc/hosts: 127.0.0.1 {' '.join(unknown)}", stacklevel=2)
        elif unknown:
            warnings.warn(
                f"{' '.join(unknown)} do not resolve: jobs of several nodes cannot meet; add them to /etc/hosts",
                stacklevel=2,
            )

    def _start_munge(self) -> None:
        key = self.base / "munge/key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self._daemon(
            "munged",
            "--force",  # it would refuse a folder below /tmp, which everybody may write
            f"--key-file={key}",
            f"--seed-file={self.base}/munge/seed",
            f"--socket={self.base}/run/munge.sock",
            f"--pid-file={self.base}/run/munged.pid",
            f"--log-file={self.base}/log/munged.log",
        )

    def _configure(self) -> None:
        base, host, user = self.base, socket.gethostname().split(".")[0], _user()
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        memory = total // (self.nodes + 1)  # MiB a node
        gres = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        # slurmctld serves only under this machine's own name. Without cred_expire a requeued job waits 120 s before it
        # starts again; less than 5 counts as 120. config_overrides lets nodes have more CPUs than the machine.
        # slurmd loads a cgroup plugin even where nothing uses cgroups; v1 is the one that does nothing then.
        lines = f"""
            ClusterName=mini
            SlurmctldHost={host}(127.0.0.1)
            SlurmUser={user}
            SlurmdUser={user}
            AuthType=auth/munge
            CredType=cred/munge
            AuthInfo=socket={base}/run/munge.sock,cred_expire=5
            SlurmctldPort={self.port}
            CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
            SlurmctldPidFile={base}/run/slurmctld.pid
            SlurmdPidFile={base}/run/slurmd.%n.pid
            SlurmctldLogFile={base}/log/slurmctld.log
            SlurmdLogFile={base}/log/slurmd.%n.log
            StateSaveLocation={base}/state
            SlurmdSpoolDir={base}/spool/%n
            PlugStackConfig={base}/etc/plugstack.conf
            MailProg=/bin/true
            MpiDefault=none
            ProctrackType=proctrack/linuxproc
            TaskPlugin=task/none
            JobAcctGatherType=jobacct_gather/linux
            JobAcctGatherFrequency=task=2
            JobAcctGatherParams=OverMemoryKill
            SelectType=select/cons_tres
            SelectTypeParameters=CR_Core_Memory
            DefMemPerCPU={memory // self.cpus}
            SlurmdParameters=config_overrides
            ReturnToService=2
            SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
            KillWait=3
            JobRequeue=1
            PreemptType=preempt/partition_prio
            PreemptMode=REQUEUE
            SlurmctldParameters=preempt_send_user_signal
            GresTypes=gpu
            """.split()
        lines += (
            [
                "AccountingStorageType=accounting_storage/slurmdbd",
                "AccountingStorageHost=127.0.0.1",
                f"AccountingStoragePort={self.port + 1}",
                f"AccountingStoragePass={base}/run/munge.sock",  # AuthInfo is not read for talking to slurmdbd
                "AccountingStorageTRES=gres/gpu",
                "AccountingStorageEnforce=associations,limits,qos",
            ]
            if self.accounting
            else ["AccountingStorageType=accounting_storage/none"]
        )
        for i in range(self.nodes):
            address = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={self.port + 10 + i}"
            lines.append(f"NodeName=n{i + 1} {address} CPUs={self.cpus} RealMemory={memory} Feature=fake{gres}")
        lines += [
            "PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=OFF",
            "PartitionName=debug Default=YES",
            "PartitionName=short MaxTime=30",
            "PartitionName=low PreemptMode=REQUEUE GraceTime=10",
            "PartitionName=high PriorityTier=10",
        ]
        files = {"slurm.conf": lines, "plugstack.conf": [], "gres.conf": self._fake_gpus()}
        files["cgroup.conf"] = ["CgroupPlugin=cgroup/v1", "IgnoreSystemd=yes"]
        for name, content in files.items():
            (base / "etc" / name).write_text("".join(line + "\n" for line in content))

    def _fake_gpus(self) -> list[str]:
        """gres.conf: a GPU needs a character device of its own; a mere count registers none and the node is invalid."""
        if not self.gpus:
            return []
        device = f"{self.base}/run/gpu"
        try:
            for i in range(self.gpus):  # 240 to 254 are for local use; nothing answers there
                os.mknod(f"{device}{i}", 0o20600, os.makedev(240, i))
        except PermissionError:
            device = "/dev/tty"  # not opened, only counted
        return [f"NodeName=n{i + 1} Name=gpu File={device}[0-{self.gpus - 1}]" for i in range(self.nodes)]

    def _start_accounting(self) -> None:
        base, user = self.base, _user()
        data, sock, as_user = f"--datadir={base}/db", f"{base}/run/mysql.sock", f"--user={user}"
        self._daemon(
            "mariadb-install-db", "--no-defaults", data, as_user, "--skip-test-db",
            "--auth-root-authentication-method=normal",
        )  # fmt: skip
        # Memory and safety that a database of minutes can do without.
        self._daemon(
            "setsid", "--fork", "mariadbd", "--no-defaults", data, as_user, f"--socket={sock}", "--skip-networking",
            f"--pid-file={base}/run/mariadbd.pid", f"--log-error={base}/log/mariadbd.log", "--skip-name-resolve",
            "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--innodb-flush-log-at-trx-commit=0",
            "--innodb-lock-wait-timeout=900",
        )  # fmt: skip
        sql = ["mariadb", "--no-defaults", "-uroot", "-S", sock, "-e"]
        self.wait(lambda: self._ok(*sql, "select 1"), "MariaDB", 30)
        self._daemon(*sql, "create database acct; create user s@localhost; grant all on acct.* to s@localhost")
        dbd = base / "etc/slurmdbd.conf"  # found beside slurm.conf; slurmdbd refuses one that others can read
        dbd.touch(mode=0o600)
        dbd.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={base}/run/munge.sock\nDbdHost=localhost\nDbdAddr=127.0.0.1\n"
            f"DbdPort={self.port + 1}\nSlurmUser={user}\nLogFile={base}/log/slurmdbd.log\n"
            f"PidFile={base}/run/slurmdbd.pid\nStorageType=accounting_storage/mysql\nStorageHost=localhost\n"
            "StorageLoc=acct\nStorageUser=s\n"
        )
        self._daemon("slurmdbd", MYSQL_UNIX_PORT=sock)  # the client library's; slurmdbd.conf has no key for a socket
        # slurmctld dies when it comes before slurmdbd does. sacctmgr would take seconds to find that nobody answers.
        self.wait(lambda: _answers(self.port + 1), "slurmdbd", 60)
        for what in ("cluster mini", "qos long", "account lab", f"user {user} account=lab qos=normal,long"):
            self._daemon("sacctmgr", "-i", "add", *what.split())
        # Slurm gives root an account of its own.
        self._daemon("sacctmgr", "-i", "modify", "user", user, "set", "defaultaccount=lab")


def stop(base: Path) -> None:
    """End the jobs and the daemons of a cluster below `base`, by the pids recorded there, and what jobs left behind."""
    run, cluster = base / "run", MiniSlurm(base)
    if _alive_of(run / "slurmctld.pid", "slurmctld"):  # while the daemons can still end jobs
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired, TimeoutError):
            if ids := {row["id"].split("_")[0] for row in cluster.squeue()}:
                cluster.run("scancel", *ids, timeout=5)
            cluster.wait(lambda: not cluster.squeue(), "the jobs to end", 10)
    _end(run / "slurmctld.pid", "slurmctld")
    for pid_file in run.glob("slurmd.*.pid"):
        _end(pid_file, "slurmd")
    for name in ("slurmdbd", "mariadbd", "munged"):
        _end(run / f"{name}.pid", name)
    # A slurmstepd outlives its slurmd; what a job detached, or started while Slurm was killing it one by one, outlives
    # the job. Only these: a shell may well have our SLURM_CONF, too.
    end = time.monotonic() + 10
    while left := [pid for pid in cluster.processes() if _of_a_job(pid)]:
        for one in {one for pid in left for one in _tree(pid)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        if time.monotonic() > end:
            raise RuntimeError(f"{base}: processes of jobs survive SIGKILL: {left}")
        time.sleep(0.05)


def _of_a_job(pid: int) -> bool:
    return _read(pid, "comm").strip() == b"slurmstepd" or b"SLURM_CLUSTER_NAME=mini" in _environment(pid)


def _environment(pid: int) -> list[bytes]:
    return _read(pid, "environ").split(b"\0")


def _read(pid: int, name: str) -> bytes:
    """A file of /proc; empty for a process that has just ended or is another user's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _parent(pid: int) -> int:
    """0 for a process that has just ended."""
    return int((_read(pid, "stat").rpartition(b")")[2].split() or [0, 0])[1])


def _alive(pid: int) -> bool:
    """Not a zombie: where process 1 reaps nobody, what has ended stays one."""
    state = _read(pid, "stat").rpartition(b")")[2].split()
    return bool(state) and state[0] not in (b"Z", b"X")


def _alive_of(pid_file: Path, name: str) -> int | None:
    """The process of a pid file; its name is looked at, since a stale file's pid may be somebody else's by now."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return None
    return pid if _alive(pid) and _read(pid, "comm").strip().decode() == name else None


def _end(pid_file: Path, name: str) -> None:
    for attempt in (signal.SIGTERM, signal.SIGKILL):
        pid = _alive_of(pid_file, name)
        if pid is None:
            return
        os.kill(pid, attempt)
        end = time.monotonic() + 10
        while _alive(pid) and time.monotonic() < end:
            time.sleep(0.05)


def _tree(pid: int) -> Iterator[int]:
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        for child in _read(pid, f"task/{thread.name}/children").split():
            yield from _tree(int(child))
    yield pid


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name  # and not $USER: Slurm goes by the id


def _resolves(name: str) -> bool:
    try:
        return bool(socket.gethostbyname(name))
    except OSError:
        return False


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row, below those that connections take by themselves."""
    for _ in range(1000):
        first = random.SystemRandom().randrange(15000, 32000 - count)
        with contextlib.ExitStack() as sockets, contextlib.suppress(OSError):
            for port in range(first, first + count):
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise RuntimeError(f"no {count} free ports in a row between 15000 and 32000")


@contextlib.contextmanager
def running(**options: object) -> Iterator[MiniSlurm]:
    """A cluster of one's own in a fresh folder; gone in the end, even when this process is killed: a guard that reads
    from it stops the cluster when the pipe closes."""
    base = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    # A session of its own: Ctrl-C in a terminal reaches all processes of the session.
    guard = subprocess.Popen(
        [sys.executable, __file__, "guard", str(base)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield MiniSlurm(base, port=free_ports(20), **options).start()
    finally:
        guard.stdin.close()
        if guard.wait(timeout=120):
            raise RuntimeError(f"{base}: the cluster was not stopped; see minislurm.py down")


def main(arguments: list[str]) -> None:
    if arguments == ["installed"]:
        sys.exit(not installed())
    if len(arguments) != 2 or arguments[0] not in ("up", "down", "guard"):
        sys.exit("usage: minislurm.py up FOLDER | down FOLDER | installed")
    command, base = arguments[0], Path(arguments[1]).absolute()
    if command == "up":
        if base.exists():
            sys.exit(f"error: {base} exists; run minislurm.py down {base} first")
        if not installed():
            sys.exit("error: Slurm is not installed; run tests/slurm/cluster/install.sh as root")
        options = {key: int(os.environ[key.upper()]) for key in ("nodes", "cpus", "gpus") if key.upper() in os.environ}
        port = int(os.environ.get("PORT0") or free_ports(10 + options.get("nodes", 2)))
        cluster = MiniSlurm(base, accounting=os.environ.get("ACCOUNTING", "1") != "0", port=port, **options)
        try:
            cluster.start()
        except BaseException:
            stop(base)
            raise
        print(f"export SLURM_CONF={cluster.conf}")
    else:
        if command == "guard":
            sys.stdin.buffer.read()
        stop(base)
        shutil.rmtree(base)


if __name__ == "__main__":
    main(sys.argv[1:])
