"""The names that `harness` itself hands on: those that exported models import, resolved on first use."""

import subprocess
import sys

import pytest

import harness
from harness.files import CHECKOUT
from harness.lm.generate import advance, read
from harness.model.language_model import LanguageModel, ModelConfig, ModelState


def test_exported_models_find_what_they_import() -> None:
    assert (harness.LanguageModel, harness.ModelConfig, harness.ModelState) == (LanguageModel, ModelConfig, ModelState)
    assert (harness.advance, harness.read) == (advance, read)


def test_any_other_name_is_missing_as_from_any_module() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Trainer' from 'harness'"):
        from harness import Trainer  # noqa: F401
    assert not hasattr(harness, "nothing")


def test_importing_harness_imports_no_torch() -> None:
    code = "import sys, harness; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_what_earlier_exports_import_asks_to_export_again() -> None:
    with pytest.raises(ImportError, match="export the run again with `python run.py export`"):
        import harness.generate  # noqa: F401
