"""What is measured. A suite takes any lm-eval model and yields measurements."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:  # who asks for names alone, as `status` does, shall not wait for it
    from transformers import PreTrainedTokenizerBase

SUITES = ("language", "ruler", "retrieval", "recall", "throughput", "decode")
FRESH = ("throughput", "decode")
"""Those that measure a fresh model, by `measure`, and for which nothing is trained; the others' is `run`."""


def suite(name: str) -> ModuleType:
    """The module of a suite, with its `Config` and `run` or `measure`. Raises ValueError listing the known ones."""
    if name not in SUITES:
        raise ValueError(f"suites: unknown name {name!r}; known: {', '.join(SUITES)}")
    return import_module(f"suites.{name}")


def suite_config(name: str, options: dict[str, Any]) -> BaseModel:
    """Validated options of a suite; ValueError naming suite, field and value otherwise."""
    module = suite(name)
    try:
        return module.Config(**options)
    except ValidationError as error:
        from mixers.interface import one_line  # imports torch, which readers of names alone do not wait for

        raise ValueError(one_line(error, f"suites.{name}.", module.Config.model_fields)) from None


def parts(name: str, config: BaseModel) -> dict[str, BaseModel]:
    """A suite in parts that can be measured apart, by their names: its own, or SUITE@LENGTH for every context length
    where its module says so by a function `by_length`."""
    module = suite(name)
    if not hasattr(module, "by_length"):
        return {name: config}
    return {f"{name}@{length}": part for length, part in module.by_length(config).items()}


def limited(name: str, options: dict[str, Any], limit: int) -> dict[str, Any]:
    """Options with at most `limit` samples of each task. Raises ValueError where they say so themselves."""
    field = next((field for field in ("limit", "samples") if field in suite(name).Config.model_fields), None)
    if field is None:
        raise ValueError(f"--limit: {name} takes no samples; leave it out")
    if field in options:
        raise ValueError(f"--limit: suites.{name}.{field} is set to {options[field]!r} already; give one of them")
    return options | {field: limit}


def check(name: str, config: BaseModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """What a suite can tell before there is a model: data at hand, prompts that fit. ValueError naming the suite."""
    module = suite(name)
    try:
        if hasattr(module, "check"):
            module.check(config, tokenizer)
    except ValueError as error:
        raise ValueError(f"suites.{name}: {error}") from None
