"""A real Slurm cluster on one machine, for tests, with all its daemons and files in one folder.

It consists of munge, MariaDB, slurmdbd, slurmctld and one slurmd per node.

    bash tests/slurm/cluster/install.sh                      # once, as root
    python3 tests/slurm/cluster/minislurm.py up /tmp/s1      # options: NODES=2 CPUS=16 GPUS=2 ACCOUNTING=1 PORT0=20000
    export SLURM_CONF=/tmp/s1/etc/slurm.conf                 # all that sbatch, squeue, sacct and submitit need
    sinfo; srun -N2 hostname
    python3 tests/slurm/cluster/minislurm.py down /tmp/s1    # stops what it started and removes the folder

It runs as root or as an ordinary user, who becomes the cluster's administrator. Without PORT0 it takes free ports, so
that several clusters can run side by side. It reads and writes nothing in /etc/slurm, /etc/munge, /run and /var. GPUs
are character devices without a driver: Slurm counts them and sets CUDA_VISIBLE_DEVICES. Partitions: debug (the
default), short (at most 30 minutes), low, and high (whose jobs preempt those of low by requeueing them). Accounting
knows the account `lab` and the QOS `long` and refuses others. The module needs only the standard library.
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
LONGEST_BASE = 60  # characters: a unix socket's path has at most 107, and slurmstepd appends 40


def installed() -> bool:
    """Whether all of Slurm's programs are installed."""
    return all(shutil.which(name, path=PATH) for name in ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"))


@dataclass(frozen=True)
class MiniSlurm:
    """A cluster in the folder `base`. Nothing runs before `start`.

    base: short absolute path. nodes: number of nodes, called n1, n2, ... cpus, gpus: per node; the GPUs are fake.
    port: first of 10 + `nodes` consecutive ports.
    """

    base: Path
    nodes: int = 2
    cpus: int = 16
    gpus: int = 2
    accounting: bool = True
    port: int = 20000

    @property
    def conf(self) -> str:
        """The value of SLURM_CONF for every client."""
        return str(self.base / "etc/slurm.conf")

    @property
    def env(self) -> dict[str, str]:
        """The environment for subprocesses: this process's, with this cluster's SLURM_CONF and no other Slurm's."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return variables | {"SLURM_CONF": self.conf, "PATH": PATH}

    def run(self, *command: str, timeout: float = 60, **options: object) -> str:
        """Run a command on this cluster and return its stdout. Raises RuntimeError with its stderr if it fails."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout, **options)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def squeue(self) -> list[dict[str, str]]:
        """One row per unfinished job or array task: id (`7` or `7_0`), name, state and reason."""
        rows = self.run("squeue", "-h", "-r", "-o", "%i|%j|%T|%r").splitlines()
        return [dict(zip(("id", "name", "state", "reason"), row.split("|"), strict=True)) for row in rows]

    def sacct(self, job: str) -> dict[str, str]:
        """The state of a job, or of each started task of an array, in the accounting, by id. It lags by seconds."""
        rows = self.run("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", job).splitlines()
        return dict(row.split("|") for row in rows)

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Wait until the condition holds.

        Raises TimeoutError with `what`, the queue and the end of the daemons' logs.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}\n{self._last_words()}")
            time.sleep(0.1)

    def start(self) -> MiniSlurm:
        """Start everything and wait until all nodes are idle. After a failure, `stop` ends what did start."""
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
        """End slurmctld. Jobs continue, and clients get no answer until `start_controller`."""
        _end(self.base / "run/slurmctld.pid", "slurmctld")

    def start_controller(self) -> None:
        """Start slurmctld again, from its saved state."""
        self._daemon("slurmctld")
        self.wait(self._all_known, "the controller to answer and the nodes to register", 30)

    def restart_controller(self) -> None:
        """Stop and start slurmctld."""
        self.stop_controller()
        self.start_controller()

    def cut_off(self, node: str) -> None:
        """End only a node's slurmd: the controller cannot reach the node, whose jobs continue unaware."""
        _end(self.base / f"run/slurmd.{node}.pid", "slurmd")

    def switch_off(self, node: str) -> None:
        """Kill a node with everything on it at once, as a power failure does: nothing can clean up."""
        name = f"SLURMD_NODENAME={node}".encode()
        daemon = _alive_of(self.base / f"run/slurmd.{node}.pid", "slurmd")
        of_jobs = [pid for pid in self.processes() if name in _environment(pid)]
        # A slurmstepd does not have the node's name in its own environment.
        steps = {parent for pid in of_jobs if _read(parent := _parent(pid), "comm").strip() == b"slurmstepd"}
        ending = [*([daemon] if daemon else []), *steps, *of_jobs]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none sees another one die
            for pid in ending:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def give_up(self, node: str) -> None:
        """Mark a node as down, as an operator does, or the controller itself after minutes of silence."""
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def bring_back(self, node: str) -> None:
        """Start the slurmd of a lost node again; ReturnToService puts the node back into service."""
        self._daemon("slurmd", "-N", node)
        self.wait(lambda: not any("down" in state for state in self._node_states()), f"{node} to return", 30)

    def processes(self) -> list[int]:
        """Pids of all live processes of this cluster, jobs included, found by SLURM_CONF or command line."""
        conf, below = f"SLURM_CONF={self.conf}".encode(), f"{self.base}/".encode()
        return [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if pid != os.getpid() and _alive(pid) and (conf in _environment(pid) or below in _read(pid, "cmdline"))
        ]

    def _daemon(self, *command: str, **env: str) -> None:
        # Output goes to a file: a daemon that keeps its stderr open would make us wait for the end of a pipe.
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
        """Make the nodes' names resolve: torch's rendezvous connects to the first node by its name."""
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
            "--force",  # otherwise it refuses a folder in /tmp, which everybody may write to
            f"--key-file={key}",
            f"--seed-file={self.base}/munge/seed",
            f"--socket={self.base}/run/munge.sock",
            f"--pid-file={self.base}/run/munged.pid",
            f"--log-file={self.base}/log/munged.log",
        )

    def _configure(self) -> None:
        base, host, user = self.base, socket.gethostname().split(".")[0], _user()
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        memory = total // (self.nodes + 1)  # MiB per node
        gres = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        # slurmctld runs only under this machine's own name. Without cred_expire a requeued job waits 120 s before it
        # starts again; values below 5 count as 120. config_overrides lets nodes have more CPUs than the machine.
        # slurmd loads a cgroup plugin even if nothing uses cgroups; only v1 then does nothing.
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
            SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
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
        """The lines of gres.conf. Each GPU needs a character device: with a mere count, the node is invalid."""
        if not self.gpus:
            return []
        device = f"{self.base}/run/gpu"
        try:
            for i in range(self.gpus):  # major numbers 240 to 254 are for local use; they have no driver
                os.mknod(f"{device}{i}", 0o20600, os.makedev(240, i))
        except PermissionError:
            device = "/dev/tty"  # counted, never opened
        return [f"NodeName=n{i + 1} Name=gpu File={device}[0-{self.gpus - 1}]" for i in range(self.nodes)]

    def _start_accounting(self) -> None:
        base, user = self.base, _user()
        data, sock, as_user = f"--datadir={base}/db", f"{base}/run/mysql.sock", f"--user={user}"
        self._daemon(
            "mariadb-install-db", "--no-defaults", data, as_user, "--skip-test-db",
            "--auth-root-authentication-method=normal",
        )  # fmt: skip
        # A database that lives for minutes needs little memory and no durability.
        self._daemon(
            "setsid", "--fork", "mariadbd", "--no-defaults", data, as_user, f"--socket={sock}", "--skip-networking",
            f"--pid-file={base}/run/mariadbd.pid", f"--log-error={base}/log/mariadbd.log", "--skip-name-resolve",
            "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--innodb-flush-log-at-trx-commit=0",
            "--innodb-lock-wait-timeout=900",
        )  # fmt: skip
        sql = ["mariadb", "--no-defaults", "-uroot", "-S", sock, "-e"]
        self.wait(lambda: self._ok(*sql, "select 1"), "MariaDB", 30)
        self._daemon(*sql, "create database acct; create user s@localhost; grant all on acct.* to s@localhost")
        dbd = base / "etc/slurmdbd.conf"  # read from next to slurm.conf; slurmdbd refuses a file that others can read
        dbd.touch(mode=0o600)
        dbd.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={base}/run/munge.sock\nDbdHost=localhost\nDbdAddr=127.0.0.1\n"
            f"DbdPort={self.port + 1}\nSlurmUser={user}\nLogFile={base}/log/slurmdbd.log\n"
            f"PidFile={base}/run/slurmdbd.pid\nStorageType=accounting_storage/mysql\nStorageHost=localhost\n"
            "StorageLoc=acct\nStorageUser=s\n"
        )
        self._daemon("slurmdbd", MYSQL_UNIX_PORT=sock)  # read by the client library; slurmdbd.conf has no socket option
        # slurmctld dies if it starts before slurmdbd answers, and sacctmgr takes seconds to notice that nobody does.
        self.wait(lambda: _answers(self.port + 1), "slurmdbd", 60)
        for what in ("cluster mini", "qos long", "account lab", f"user {user} account=lab qos=normal,long"):
            self._daemon("sacctmgr", "-i", "add", *what.split())
        # Slurm gives root its own account.
        self._daemon("sacctmgr", "-i", "modify", "user", user, "set", "defaultaccount=lab")


def stop(base: Path) -> None:
    """End the jobs and daemons of the cluster in `base`, and every process that its jobs left behind."""
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
    # A slurmstepd outlives its slurmd. Processes that a job detached, or started while Slurm was killing it, outlive
    # the job. End only these: a user's shell may have our SLURM_CONF too.
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
    """A file of /proc; empty for a process that has just ended or belongs to another user."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _parent(pid: int) -> int:
    """The parent's pid; 0 for a process that has just ended."""
    return int((_read(pid, "stat").rpartition(b")")[2].split() or [0, 0])[1])


def _alive(pid: int) -> bool:
    """Whether a process runs. Zombies do not count: they stay if process 1 does not reap them."""
    state = _read(pid, "stat").rpartition(b")")[2].split()
    return bool(state) and state[0] not in (b"Z", b"X")


def _alive_of(pid_file: Path, name: str) -> int | None:
    """The pid in a pid file if a process of that name has it; a stale file's pid may belong to another process."""
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
    return pwd.getpwuid(os.getuid()).pw_name  # not $USER: Slurm goes by the user id


def _resolves(name: str) -> bool:
    try:
        return bool(socket.gethostbyname(name))
    except OSError:
        return False


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports, below the range of ephemeral ports."""
    for _ in range(1000):
        first = random.SystemRandom().randrange(15000, 32000 - count)
        with contextlib.ExitStack() as sockets, contextlib.suppress(OSError):
            for port in range(first, first + count):
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise RuntimeError(f"no {count} free ports in a row between 15000 and 32000")


@contextlib.contextmanager
def running(**options: object) -> Iterator[MiniSlurm]:
    """A cluster in a fresh folder, for the duration of the context.

    It also ends if this process is killed: a guard process stops it as soon as the pipe between the two closes.
    """
    base = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    # In a session of its own, out of reach of Ctrl-C in the terminal.
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
    """The command line: `up FOLDER`, `down FOLDER`, `installed`, and `guard FOLDER`, which `running` uses."""
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
