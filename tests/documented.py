"""The command lines of the documents, for the tests that execute them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from harness.files import CHECKOUT

DOCUMENTS = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
PROGRAMS = ("python", "python3", "mixerbench", "make", "bash", "pytest", "pip")
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
ASSIGNED = re.compile(r"[A-Z_]+=\S+")


@dataclass(frozen=True)
class Command:
    """A documented command line, without its comment and the variables set before it. ours: the words behind
    `python run.py`, or None for another program."""

    document: str
    text: str

    @property
    def ours(self) -> list[str] | None:
        words = shlex.split(self.text)
        if words[0] == "mixerbench":
            return words[1:]
        return words[2:] if words[:2] == ["python", "run.py"] else None


def commands() -> list[Command]:
    """Every command line in a code block without a language, or in a code span; each once."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        lines = [line for language, block in CODE.findall(text) if not language for line in block.splitlines()]
        lines += SPAN.findall(CODE.sub("", text))
        found += [Command(path.name, shown) for line in lines if (shown := _command(line))]
    return list({(command.document, command.text): command for command in found}.values())


def _command(line: str) -> str | None:
    words = re.sub(r"\s+#.*", "", line).split(" ")
    while words and ASSIGNED.fullmatch(words[0]):
        words = words[1:]
    # One word alone names a program; "…" stands for any command.
    return " ".join(words).strip() if len(words) > 1 and words[0] in PROGRAMS and words[-1] != "…" else None
