"""The parts of a preparation done by this process, or by several that it starts and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any

from harness.data.sources import cpus
from harness.data.tokenise import ENOUGH, PLAN, Work, work_through
from harness.files import CHECKOUT

POLL = 0.1  # seconds between two looks at the workers

Say = Callable[[str], None]


def do_parts(work: Work, processes: int | None = None, progress: Say = lambda line: None) -> bool:
    """Do parts of a work folder until none is free or the output needs no more; False if none was. Raises what
    `harness.data.prepare.prepare` does."""
    processes = processes or cpus()
    try:
        work.refresh()
        count = work.free(processes)
        meter = _Meter(work, progress)
        if count > 1:
            _in_workers(work, count, meter)
        elif count:
            with threads(processes > 1):
                work_through(work, meter)
    except FileNotFoundError:
        if (work.folder / PLAN).exists():
            raise
        return True  # somebody else has put it together
    return count > 0


class _Meter:
    """Says about once a second how far a preparation is: of all who work on it, with the rate since this began."""

    def __init__(self, work: Work, say: Say):
        self.work, self.say = work, say
        self.began = self.said = time.monotonic()
        self.tokens = work.standing()[1]

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self.said < 1:
            return
        self.said = now
        self.work.refresh()
        read, tokens = self.work.standing()
        rate = (tokens - self.tokens) / (now - self.began)
        parts = f"{len(self.work.results)} of {len(self.work.parts)} parts"
        self.say(
            f"prepare: {parts}, {read:,} documents, {tokens:,} tokens, {rate:,.0f} tokens/s{self._left(tokens, rate)}"
        )

    def _left(self, tokens: int, rate: float) -> str:
        """About how long the rest takes, in words: by the tokens of the parts that are done, or by max_tokens."""
        work, totals = self.work, []
        if work.results:
            done = sum(shard["tokens"] for result in work.results.values() for shard in result["shards"])
            size = sum(work.parts[index].size for index in work.results)
            totals.append(done / max(1, size) * sum(part.size for part in work.parts))
        if work.max_tokens is not None:
            totals.append(work.max_tokens)
        if not totals or rate <= 0:
            return ""
        seconds = max(0, int((min(totals) - tokens) / rate))
        return f", {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"


def _in_workers(work: Work, count: int, meter: _Meter) -> None:
    """Run `count` workers until they have ended or the output needs no more. They end with this process, however it
    does: their stdin is a pipe from it. Where one fails, the others finish the parts that they are at."""
    paths = [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-P", "-m", "harness.data.tokenise", str(work.folder)]
    # A group of its own: what is typed in a terminal reaches this process alone, which ends them.
    options: dict[str, Any] = {
        "env": os.environ | variables,
        "stdin": subprocess.PIPE,
        "bufsize": 0,
        "process_group": 0,
    }
    workers: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    with ExitStack() as files:
        try:
            for _ in range(count):
                errors = files.enter_context(tempfile.TemporaryFile())
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, **options)
                workers.append((process, errors))
            running, failure = True, None
            while running and not work.complete():
                running = any(process.poll() is None for process, _ in workers)
                failed = [(process, errors) for process, errors in workers if process.poll()]
                if failed and failure is None:
                    failure = _failure(work, *failed[0])
                    meter.say(f"prepare: {failure}; the other processes finish their parts first")
                    for process, _ in workers:
                        with suppress(BrokenPipeError):
                            process.stdin.write(ENOUGH)
                meter()
                time.sleep(POLL)
            if failure is not None:
                raise failure
        finally:
            for process, _ in workers:
                process.kill()
            for process, _ in workers:
                process.wait()
                process.stdin.close()


def _failure(work: Work, process: subprocess.Popen[bytes], errors: IO[bytes]) -> Exception:
    """Why a worker has ended."""
    errors.seek(0)
    said = errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    if process.returncode == 2:
        return ValueError(said[0])
    if process.returncode == 1:
        return RuntimeError(said[0])
    part = work.claimed_by(process.pid)
    where = work.plan["name"] if part is None else work.named(part)
    name = signal.Signals(-process.returncode).name if process.returncode < 0 else f"exit code {process.returncode}"
    return RuntimeError(
        f"{where}: its process was ended by {name}; run the same command again to go on, with fewer --processes if "
        "memory was short"
    )


@contextmanager
def threads(on: bool) -> Iterator[None]:
    """Let the tokenizers library use all CPUs, or one."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true" if on else "false"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
