"""Writes ``docs/configuration.md`` and ``docs/serving.md`` from the code: names, defaults and meaning of every setting.

    python -m docs.reference

What a setting means is written once, beside the setting, and reaches its JSON Schema from there, or is read from the
source where there is none; the pages are that as tables, and a test holds them to the code.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.policy_file import schema
from pipelines.settings import PREFIX, Settings
from serving.runtime import settings as server

PAGE = Path(__file__).with_name("configuration.md")
TEMPLATE = Path(__file__).with_name("configuration.in.md")
"""The page with ``{policy}`` and ``{settings}`` in place of the tables."""

SERVING = Path(__file__).with_name("serving.md")
SERVING_TEMPLATE = Path(__file__).with_name("serving.in.md")
"""The page with ``{server}`` in place of the table."""

_VARIABLE = re.compile(r"([A-Z][A-Z_]+)(?:: |$)")
"""How the docstring of a setting begins that is made by an environment variable."""

Schema = Mapping[str, Any]

_WORDS = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "null": "null"}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a table."""

    name: str
    kind: str
    default: str
    meaning: str


def page() -> str:
    """The whole page."""
    settings = Settings.model_json_schema(by_alias=False)
    tables = {
        "{policy}": table("key", entries(schema(), schema())),
        "{settings}": table("setting", entries(settings, settings)),
    }
    text = TEMPLATE.read_text()
    for place, written in tables.items():
        text = text.replace(place, written)
    return text.replace("{prefix}", PREFIX)


def serving_page() -> str:
    """The whole page about the model server."""
    return SERVING_TEMPLATE.read_text().replace("{server}", "\n".join(_server_table()))


def _server_table() -> Iterator[str]:
    """A line for each variable of the environment, with what its words mean where it takes words."""
    yield from ("| variable | default | meaning |", "|---|---|---|")
    said = dict(_docstrings(server.Settings))
    for name, field in server.Settings.__dataclass_fields__.items():
        variable = _VARIABLE.match(said[name])
        if variable is not None:
            words = "; ".join(_words(field.default)) if isinstance(field.default, Enum) else ""
            meaning = words or said[name][variable.end() :]
            yield f"| `{variable[1]}` | {_plain(field.default)} | {_capital(meaning)} |"


def _plain(value: object) -> str:
    """A default as it would be written in a variable; empty where it is nothing."""
    text = f"{value:g}" if isinstance(value, float) else str(value.value if isinstance(value, Enum) else value)
    return f"`{text}`" if text else ""


def _capital(text: str) -> str:
    text = " ".join(text.split()).replace("``", "`")
    return text[:1].upper() + text[1:]


def _words(default: Enum) -> Iterator[str]:
    said = dict(_docstrings(type(default)))
    for member in type(default):
        meaning = said[member.name].rstrip(".")
        yield f"`{member.value}`: {meaning[:1].lower()}{meaning[1:]}"


def _docstrings(kind: type) -> Iterator[tuple[str, str]]:
    """Each name in the class with the string that stands below it."""
    (found,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(found, ast.ClassDef)
    for line, below in pairwise(found.body):
        target = line.target if isinstance(line, ast.AnnAssign) else getattr(line, "targets", [None])[0]
        text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
        if isinstance(target, ast.Name):
            yield target.id, str(text)


def entries(part: Schema, whole: Schema, path: str = "") -> Iterator[Entry]:
    """Every property of `part`, a section of the schema `whole`, with those of the sections below it."""
    for name, described in part["properties"].items():
        section = _section(described, whole)
        if section is None:
            said = described.get("description") or _resolved(described, whole).get("description", "")
            yield Entry(path + name, kind(described, whole), _default(described), said)
        else:
            said = described.get("description") or section.get("description", "")
            yield Entry(path + name, "section" + (" or null" if _nullable(described) else ""), "", said)
            yield from entries(section, whole, f"{path}{name}.")


def kind(described: Schema, whole: Schema) -> str:
    """The type in words."""
    described = _resolved(described, whole)
    if "enum" in described:
        return " or ".join(f"`{value}`" for value in described["enum"])
    if "const" in described:
        return f"`{described['const']}`"
    if "anyOf" in described:
        words = dict.fromkeys(
            kind(choice, whole) for choice in described["anyOf"] if not _is_seconds(choice, described)
        )
        return " or ".join(words)
    if described.get("type") == "array":
        return f"list of {kind(described.get('items', {}), whole)}"
    if described.get("type") == "object":
        return "names and values"
    return _word(described)


def _word(described: Schema) -> str:
    if "pattern" in described:
        return "duration"
    word = _WORDS.get(str(described.get("type")), "text")
    bounds = [f"{said} {described[key]}" for key, said in _BOUNDS.items() if key in described]
    return f"{word}, {', '.join(bounds)}" if bounds else word


def _resolved(described: Schema, whole: Schema) -> Schema:
    reference = described.get("$ref")
    return whole["$defs"][reference.rpartition("/")[2]] if reference else described


def _section(described: Schema, whole: Schema) -> Schema | None:
    """The section that a property opens, where it does."""
    choices = [_resolved(choice, whole) for choice in described.get("anyOf", [described])]
    return next((choice for choice in choices if "properties" in choice), None)


def _nullable(described: Schema) -> bool:
    return any(choice.get("type") == "null" for choice in described.get("anyOf", []))


def _is_duration(described: Schema) -> bool:
    return any("pattern" in choice for choice in described.get("anyOf", ()))


def _is_seconds(choice: Schema, described: Schema) -> bool:
    """The number that a duration may be written as goes without saying."""
    return _is_duration(described) and choice.get("type") == "number"


def _default(described: Schema) -> str:
    if "default" not in described:
        return ""
    value = described["default"]
    if _is_duration(described) and isinstance(value, float):
        return f"`{_duration(value)}`"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _duration(seconds: float) -> str:
    """The largest unit that needs no fraction, and hours rather than one day."""
    unit, size = next((u, s) for u, s in (("h", 3600.0), ("m", 60.0), ("s", 1.0)) if seconds % s == 0 and seconds >= s)
    return f"{seconds / size:g}{unit}"


def table(first: str, lines: Iterator[Entry]) -> str:
    rows = [
        f"| `{e.name}` | {e.kind} | {e.default} | {' '.join(e.meaning.split()).replace('``', '`')} |" for e in lines
    ]
    return "\n".join([f"| {first} | type | default | meaning |", "|---|---|---|---|", *rows])


if __name__ == "__main__":
    PAGE.write_text(page())
    SERVING.write_text(serving_page())
