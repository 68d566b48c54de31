"""The identity of a configuration: which fields tell two configurations apart, today and after new fields came.

A run's folder is named by a hash of its configuration. Its identity holds every field, with two exceptions:

    threads: Annotated[int | None, INCIDENTAL] = None      # how a run is made, not what is trained: never part of it
    gain: Annotated[float, Neutral(0.177)] = 0.177         # added later: part of it where it differs from 0.177

The neutral value of a field is what the code did before the field existed. It is frozen when the field is added: a
later change of the field's default changes identities, as it must, and the new field itself changes none. Fields of
the first version have no neutral value; they always count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Neutral:
    """Marks a field that was added after runs existed. value: what the code did before, as JSON holds it."""

    value: Any


@dataclass(frozen=True)
class Incidental:
    """Marks a field that changes how a run is made and not, but for rounding, what is trained."""


INCIDENTAL = Incidental()


def identity(config: BaseModel) -> dict[str, Any]:
    """The fields that identify a configuration, as JSON values, nested configurations likewise."""
    return _values(config, with_incidental=False)


def compact(config: BaseModel) -> dict[str, Any]:
    """All values of a configuration but neutral ones, which `completed` puts back.

    A hash of them does not change when a field is added.
    """
    return _values(config, with_incidental=True)


def completed(kind: type[BaseModel], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a stored configuration, with the neutral value of every field that was added since.

    Reading stored configurations through this keeps them what they were when a default changes.
    """
    values = dict(stored)
    for name, field in kind.model_fields.items():
        neutral = _mark(field, Neutral)
        if name in values:
            values[name] = _completed(field.annotation, values[name])
        elif neutral is not None:
            values[name] = neutral.value
    return values


def _mark(field: FieldInfo, kind: type) -> Any:
    return next((mark for mark in field.metadata if isinstance(mark, kind)), None)


def _values(config: BaseModel, with_incidental: bool) -> dict[str, Any]:
    dumped = config.model_dump(mode="json")
    content: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value, neutral = _content(getattr(config, name), dumped[name], with_incidental), _mark(field, Neutral)
        if _mark(field, Incidental) is not None and not with_incidental:
            continue
        if neutral is None or value != neutral.value:
            content[name] = value
    return content


def _content(value: Any, dumped: Any, with_incidental: bool) -> Any:
    if isinstance(value, BaseModel):
        return _values(value, with_incidental)
    if isinstance(value, list | tuple):
        return [_content(*pair, with_incidental) for pair in zip(value, dumped, strict=True)]
    return dumped


def _completed(annotation: Any, value: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and isinstance(value, Mapping):
        return completed(annotation, value)
    kinds = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _completed(kinds[0], value)
    if get_origin(annotation) is UnionType and isinstance(value, Mapping):  # the one that has these fields
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        fitting = next((model for model in models if value.keys() <= model.model_fields.keys()), None)
        return value if fitting is None else completed(fitting, value)
    if get_origin(annotation) in (list, tuple) and isinstance(value, list):
        return [_completed(kinds[0], item) for item in value]
    return value
