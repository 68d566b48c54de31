"""How a run is made and read: data, model, training, records, tables, figures.

The names below are what exported models import (harness/lm/hf); they are imported on first use, so that commands that
need no torch, such as `status`, start at once.
"""

from importlib import import_module

_PUBLIC = {
    "LanguageModel": "harness.model.language_model",
    "ModelConfig": "harness.model.language_model",
    "ModelState": "harness.model.language_model",
    "advance": "harness.lm.generate",
    "read": "harness.lm.generate",
}


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
