"""The command line's frame: its apps, the options that commands share, and how they print results and errors.

Every command parses, calls one function and prints. The commands stand with their floor, in `commands.py` of harness,
suites and slurm; run.py puts them together.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperArgument, TyperCommand

KINDS = {str: "TEXT", Path: "PATH", int: "N", float: "X"}
"""Values of options as `--help` shows them."""


class Command(TyperCommand):
    """A command whose help shows values in words, not as Python types."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        for param in self.params:
            described = param.type_descriptor
            if isinstance(param, TyperArgument):
                param.display_type_rich = lambda ctx: None
            elif param.metavar is None and described.is_choice:
                param.metavar = "|".join(map(str, described.choices))
            elif param.metavar is None and not param.is_flag:
                annotation = described.annotation
                param.metavar = KINDS[(get_args(annotation) or (annotation,))[0]]


class Commands(typer.Typer):
    """A group whose commands are of the class `Command`."""

    def command(self, name: str | None = None, **options: Any) -> Any:
        return super().command(name, cls=Command, **options)


def shipped(incomplete: str) -> list[str]:
    """Names of shipped experiments for a shell to complete."""
    from harness.experiments.names import EXPERIMENTS

    return sorted(path.stem for path in EXPERIMENTS.glob(f"{incomplete}*.yaml"))


app = Commands(
    name="mixerbench",
    help="Compare recurrent token mixers on equal terms.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = Commands(help="Training data and evaluation data.", no_args_is_help=True, rich_markup_mode=None)
runs_app = Commands(help="Folders of runs.", no_args_is_help=True, rich_markup_mode=None)
bench_app = Commands(help="Benchmarks.", no_args_is_help=True, rich_markup_mode=None)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a field of the experiment: a.b=value.")]
MixerFiles = Annotated[list[Path] | None, typer.Option("--mixer-file", help="A Python file that registers mixers.")]
SuiteFiles = Annotated[list[Path] | None, typer.Option("--suite-file", help="A Python file that registers suites.")]
RunsRoot = Annotated[Path, typer.Option("--runs", help="Where runs live.")]
Experiment = Annotated[str, typer.Argument(help="An experiment file, or the name of one.", autocompletion=shipped)]
Scale = Annotated[str | None, typer.Option("--scale", help="One of the experiment's other scales.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the code in the run's folder that defines its mixer; read it before.")
]
Collection = Annotated[Path | None, typer.Option("--out", help="Where collect wrote; what is made goes there.")]
RUNS = Path("runs")

app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")
app.add_typer(bench_app, name="bench")


@contextmanager
def errors() -> Iterator[None]:
    """Exit code 2 for wrong use and 1 for failure, each with one line that names what to change."""
    try:
        yield
    except typer.Exit:  # a RuntimeError: the command has said what it had to say
        raise
    except ValueError as error:
        fail(error, 2)
    except (OSError, RuntimeError) as error:
        fail(error, 1)
    except Exception as error:
        fail(RuntimeError(f"{type(error).__name__}: {error}"), 1)
    except SystemExit as error:  # code of a mixer, a suite or a library; commands end by typer.Exit
        fail(RuntimeError(f"code that the command ran called sys.exit({error.code!r}); let it raise an error"), 1)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues", err=True)
        raise typer.Exit(1) from None


def fail(error: Exception, code: int) -> None:
    """Print an error as one line and exit."""
    typer.echo(f"error: {' '.join(str(error).split())}", err=True)
    raise typer.Exit(code) from None


def print_result(value: Any, as_json: bool, text: str) -> None:
    """Print `value` as JSON, or else `text`."""
    typer.echo(json.dumps(value, indent=1, default=str) if as_json else text)


def this_command() -> str:
    """The command line of this process, for provenance."""
    return shlex.join(["python", *sys.argv])


def load_mixers(files: list[Path] | None) -> list[str]:
    """Register the mixers of `--mixer-file`; returns their names."""
    if not files:
        return []
    from harness.training.inputs import trusted
    from mixers.registry import load_file

    places = [file.resolve() for file in files]  # as Python treats a script: what it imports lies beside the target
    names = [name for place in places for name in load_file(place)]
    for place in places:
        trusted(place)
    return names
