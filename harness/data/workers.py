"""Tokenise the parts of a preparation in this process, or in several that it starts and ends."""

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
from harness.data.tokenise import ENOUGH, PLAN, Preparation, do_free_parts
from harness.files import CHECKOUT

POLL = 0.1  # seconds between two checks of the workers

Say = Callable[[str], None]
"""Takes one line of progress."""


def do_parts(preparation: Preparation, processes: int | None = None, progress: Say = lambda line: None) -> bool:
    """Tokenise free parts until none is left or the output needs no more. Returns False if none was free.

    processes: CPUs to use, all that this process may use if None. progress: called about once a second. Raises
    ValueError and RuntimeError as `harness.data.prepare.prepare` does.
    """
    processes = processes or cpus()
    try:
        preparation.refresh()
        count = preparation.free(processes)
        meter = _Meter(preparation, progress)
        if count > 1:
            _in_workers(preparation, count, meter)
        elif count:
            with threads(processes > 1):
                do_free_parts(preparation, meter)
    except FileNotFoundError:
        if (preparation.folder / PLAN).exists():
            raise
        return True  # another process has assembled the output
    return count > 0


class _Meter:
    """Reports a preparation's progress about once a second: all processes together, and their rate since the start."""

    def __init__(self, preparation: Preparation, say: Say):
        self.preparation, self.say = preparation, say
        self.began = self.said = time.monotonic()
        self.tokens = preparation.counts()[1]

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self.said < 1:
            return
        self.said = now
        self.preparation.refresh()
        read, tokens = self.preparation.counts()
        rate = (tokens - self.tokens) / (now - self.began)
        parts = f"{len(self.preparation.results)} of {len(self.preparation.parts)} parts"
        self.say(
            f"prepare: {parts}, {read:,} documents, {tokens:,} tokens, {rate:,.0f} tokens/s{self._left(tokens, rate)}"
        )

    def _left(self, tokens: int, rate: float) -> str:
        """Estimated time left, as text. It extrapolates the tokens of the finished parts, and stops at max_tokens."""
        preparation, totals = self.preparation, []
        if preparation.results:
            done = sum(shard["tokens"] for result in preparation.results.values() for shard in result["shards"])
            size = sum(preparation.parts[index].size for index in preparation.results)
            totals.append(done / max(1, size) * sum(part.size for part in preparation.parts))
        if preparation.max_tokens is not None:
            totals.append(preparation.max_tokens)
        if not totals or rate <= 0:
            return ""
        seconds = max(0, int((min(totals) - tokens) / rate))
        return f", {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"


def _in_workers(preparation: Preparation, count: int, meter: _Meter) -> None:
    """Run `count` workers until they have exited or the output needs no more.

    Their stdin is a pipe from this process, so they exit with it, even if it is killed. If one fails, the others finish
    their current parts, and its error is raised.
    """
    paths = [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-P", "-m", "harness.data.tokenise", str(preparation.folder)]
    # A process group of their own: Ctrl-C in a terminal reaches this process alone, which then ends them.
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
            while running and not preparation.complete():
                running = any(process.poll() is None for process, _ in workers)
                failed = [(process, errors) for process, errors in workers if process.poll()]
                if failed and failure is None:
                    failure = _failure(preparation, *failed[0])
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


def _failure(preparation: Preparation, process: subprocess.Popen[bytes], errors: IO[bytes]) -> Exception:
    """The error that explains why a worker ended."""
    errors.seek(0)
    said = errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    if process.returncode == 2:
        return ValueError(said[0])
    if process.returncode == 1:
        return RuntimeError(said[0])
    part = preparation.claimed_by(process.pid)
    where = preparation.plan["name"] if part is None else preparation.part_name(part)
    name = signal.Signals(-process.returncode).name if process.returncode < 0 else f"exit code {process.returncode}"
    return RuntimeError(
        f"{where}: its process was ended by {name}; run the same command again to resume, with fewer --processes if "
        "memory was short"
    )


@contextmanager
def threads(on: bool) -> Iterator[None]:
    """Let the tokenizers library use all CPUs (`on`) or one, within the block."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true" if on else "false"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
