"""What people write: YAML files, durations, and one line for each mistake.

A mistake is told with the path of the field, what is allowed there and what was given, in that order, so that
whoever wrote it needs no other document. Keys that are written twice, which YAML passes over, are mistakes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"^(\d+(\.\d+)?(ms|s|m|h|d))+$"
_SUBJECT = re.compile(r"^\w+ should")
_RULES = {
    "dict_type": "must be keys and values (key: value)",
    "missing": "must be given",
    "model_type": "must be keys and values (key: value)",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
}
"""Where pydantic's own words speak of its classes."""
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong in what somebody wrote."""

    path: str
    """Where, for example ``rollout.steps[1]``; empty for the whole."""
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


class MalformedError(Exception):
    """A file that cannot be read, or is no mapping in YAML."""


def seconds(given: object, *, otherwise: str = "") -> object:
    """``90``, ``"90s"`` and ``"1m30s"`` as seconds; what is no text is left to be refused.

    `otherwise` names what else would be allowed.
    """
    if not isinstance(given, str):
        return given
    if re.fullmatch(_DURATION, given):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(given))
    try:
        return float(given)
    except ValueError:
        pass
    also = f", or {otherwise}" if otherwise else ""
    raise PydanticCustomError("duration", "must be seconds or a duration such as 30s, 10m or 24h{also}", {"also": also})


DURATION_SCHEMA = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": _DURATION}],
}
Duration = Annotated[float, BeforeValidator(seconds), WithJsonSchema(DURATION_SCHEMA)]
"""Seconds, written as a number or as ``30s``, ``10m``, ``24h``, ``1h30m``."""


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, empty for an empty file; `MalformedError`."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a safe loader)
    except (OSError, UnicodeDecodeError) as error:
        raise MalformedError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise MalformedError(_told(error)) from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise MalformedError("must hold keys and values (key: value), one below the other")
    return found


def _told(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"is not YAML: {' '.join(str(error).split())}"
    hint = '; an alias has to stand in quotes: "@champion"' if "'@'" in (error.problem or "") else ""
    return f"is not YAML: line {error.problem_mark.line + 1}: {error.problem}{hint}"


def mistakes(error: ValidationError, model: type[BaseModel], secret: Collection[str] = ()) -> Iterator[Mistake]:
    """Each mistake that `error` tells of input for `model`; what is given in fields of `secret` is not repeated."""
    for detail in error.errors(include_url=False):
        if detail["type"] != "default_factory_not_called":
            hidden = bool(detail["loc"]) and detail["loc"][0] in secret
            yield Mistake(_path(detail["loc"]), _sentence(detail, model, hidden=hidden))


def _path(location: Sequence[str | int]) -> str:
    """``rollout.steps[1]`` for ``("rollout", "steps", 1)``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")


def _sentence(detail: ErrorDetails, model: type[BaseModel], *, hidden: bool) -> str:
    if detail["type"] == "extra_forbidden":
        return unknown(str(detail["loc"][-1]), _allowed(model, detail["loc"][:-1]))
    rule = _RULES.get(detail["type"]) or _SUBJECT.sub("must", detail["msg"].removeprefix("Value error, "))
    rule = rule.partition(", unable")[0]
    if hidden or detail["type"] in ("value_error", "missing"):
        return rule
    return f"{rule}, not {_shown(detail['input'])}"


def unknown(key: str, allowed: Collection[str]) -> str:
    """The sentence about a key that does not exist."""
    close = difflib.get_close_matches(key, allowed, n=1, cutoff=0.6)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"is not known; {meant}Allowed here: {', '.join(sorted(allowed))}"


def _allowed(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    for part in location:
        inner = model.model_fields[str(part)].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        model = inner
    return list(model.model_fields)


def _shown(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."
