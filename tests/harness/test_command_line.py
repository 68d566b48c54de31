"""The frame of the command line: how errors become one line and an exit code, and results text or JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from harness.command_line import errors, load_mixers, print_result, this_command
from harness.files import CHECKOUT


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("lr: -1 is\n  negative; give more than 0"), 2, "error: lr: -1 is negative; give more than 0\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (RuntimeError("step 3: loss nan"), 1, "error: step 3: loss nan\n"),
        (ZeroDivisionError("division by zero"), 1, "error: ZeroDivisionError: division by zero\n"),
        (KeyboardInterrupt(), 1, "interrupted; the same command continues\n"),
    ],
)
def test_an_error_is_one_line_on_stderr_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(typer.Exit) as stopped, errors():
        raise error
    said = capsys.readouterr()
    assert (stopped.value.exit_code, said.out, said.err) == (code, "", line)


def test_an_exit_that_a_command_has_chosen_is_left_alone() -> None:
    with pytest.raises(typer.Exit) as stopped, errors():
        raise typer.Exit(3)
    assert stopped.value.exit_code == 3


def test_a_result_is_printed_as_text_or_as_json(capsys: pytest.CaptureFixture) -> None:
    value = {"path": Path("a"), "rows": [1, 2]}
    print_result(value, False, "two rows")
    print_result(value, True, "two rows")
    text, _, rest = capsys.readouterr().out.partition("\n")
    assert text == "two rows" and json.loads(rest) == {"path": "a", "rows": [1, 2]}


def test_the_command_is_recorded_as_it_could_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "generate", "It is"])
    assert this_command() == "python run.py generate 'It is'"


def test_files_of_mixers_are_loaded_before_a_command_runs(tmp_path: Path) -> None:
    assert load_mixers(None) == []
    with pytest.raises(ValueError, match="mixer_file: .*none.py is missing"):
        load_mixers([tmp_path / "none.py"])


def test_a_shell_completes_the_names_of_shipped_experiments() -> None:
    asked = {"_MIXERBENCH_COMPLETE": "complete_bash", "COMP_WORDS": "mixerbench table de", "COMP_CWORD": "2"}
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'mixerbench'; import run; run.main()"]
    done = subprocess.run(command, env=os.environ | asked, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["decode", "demo"], done.stderr
