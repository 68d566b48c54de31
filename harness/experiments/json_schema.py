"""JSON schema of configuration files, and the same as text: what `run.py schema` writes and prints."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from harness.experiments.presets import PRESETS
from harness.experiments.schema import Experiment

NAMES = {"integer": "int", "number": "float", "string": "text", "boolean": "true or false", "null": "none"}


@dataclass(frozen=True)
class FieldRow:
    """A field of a configuration. name: dotted, `[]` after a list. default: as JSON holds it; None if required."""

    name: str
    type: str
    required: bool
    default: Any
    description: str


def experiment_schema(suites: Mapping[str, type[BaseModel]], mixers: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """JSON schema of an experiment file, with the options of the given suites and mixers.

    An editor that knows it completes fields and shows their documentation. Names outside the given ones stay valid:
    suites and mixers can come from files and packages.
    """
    schema = Experiment.model_json_schema()
    definitions, properties = schema["$defs"], schema["properties"]
    for kind, models in (("Suite", suites), ("Mixer", mixers)):
        for name, model in models.items():
            options = model.model_json_schema(ref_template="#/$defs/" + f"{kind} {name}" + " {model}")
            for inner, definition in options.pop("$defs", {}).items():
                definitions[f"{kind} {name} {inner}"] = definition
            options.pop("title", None)
            if kind == "Mixer":  # a preset gives the geometry
                options.pop("required", None)
            definitions[f"{kind} {name}"] = options
    properties["suites"]["properties"] = {name: {"$ref": f"#/$defs/Suite {name}"} for name in suites}
    scale = {"enum": list(PRESETS)}
    properties["preset"]["anyOf"] = [scale, {"type": "null"}]
    properties["presets"]["items"] = scale
    spec = definitions["MixerSpec"]
    spec["properties"]["mixer"]["examples"] = list(mixers)
    spec["allOf"] = [
        {
            "if": {"properties": {"mixer": {"const": name}}},
            "then": {"properties": {"options": {"$ref": f"#/$defs/Mixer {name}"}}},
        }
        for name in mixers
    ]
    properties["mixers"]["items"] = {
        "anyOf": [{"enum": list(mixers)}, {"type": "string"}, {"$ref": "#/$defs/MixerSpec"}]
    }
    changeable = {name: value for name, value in properties.items() if name not in ("name", "scales", "expected")}
    # A scale states what differs, so that nothing in it is required.
    for name in ("Tuning", "Choice"):
        definitions[f"{name} of a scale"] = _of_a_scale({k: v for k, v in definitions[name].items() if k != "required"})
    changeable["tuning"] = _of_a_scale(changeable["tuning"])
    properties["scales"]["additionalProperties"] = {"type": "object", "properties": changeable}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _of_a_scale(schema: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(schema)
    for name in ("Tuning", "Choice"):
        text = text.replace(f'"#/$defs/{name}"', f'"#/$defs/{name} of a scale"')
    return json.loads(text)


def field_rows(kind: type[BaseModel]) -> list[FieldRow]:
    """All fields of a configuration, nested ones after the field that holds them."""
    schema = kind.model_json_schema()
    return list(_rows(schema, schema.get("$defs", {}), ""))


def render(kind: type[BaseModel]) -> str:
    """The fields of a configuration as text: name, type and default in one line, the documentation under it."""
    lines = [" ".join((kind.__doc__ or "").strip().split("\n\n")[0].split()), ""]
    for row in field_rows(kind):
        default = "required" if row.required else f"default {_plain(row.default)}"
        if row.type == "mapping" and row.default:  # its fields follow, each with its default
            default = "as follows"
        lines.append(f"{row.name}: {row.type}, {default}")
        if row.description:
            lines.append(textwrap.fill(row.description, 100, initial_indent="    ", subsequent_indent="    "))
    return "\n".join(lines)


def _rows(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> Iterator[FieldRow]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        description = " ".join(field.get("description", "").split())
        yield FieldRow(
            f"{prefix}{name}", _type(field, definitions), name in required, field.get("default"), description
        )
        for nested, many in _nested(field):
            if "properties" in definitions[nested]:
                yield from _rows(definitions[nested], definitions, f"{prefix}{name}{'[]' if many else ''}.")


def _nested(field: Mapping[str, Any], many: bool = False) -> Iterator[tuple[str, bool]]:
    """The definitions that a field, or each item of a list, may refer to; for each whether it is a list."""
    for option in _options(field):
        if "$ref" in option:
            yield option["$ref"].rpartition("/")[2], many
        elif "items" in option:
            yield from _nested(option["items"], True)


def _options(field: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The alternatives of a field; the field itself if there are none."""
    return field.get("anyOf", field.get("oneOf", [field]))


def _type(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if len(options := _options(field)) > 1:
        return " or ".join(dict.fromkeys(_type(option, definitions) for option in options))
    if "$ref" in field:
        definition = definitions[field["$ref"].rpartition("/")[2]]
        return "mapping" if "properties" in definition else _type(definition, definitions)
    if field.get("type") == "array":
        return "list" if "items" not in field else f"list of {_type(field['items'], definitions)}"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return "mapping" if not isinstance(values, dict) or not values else f"mapping to {_type(values, definitions)}"
    return NAMES.get(field.get("type", ""), "any")


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool) or value == "":
        return {None: "none", True: "true", False: "false", "": "empty"}[value]
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
