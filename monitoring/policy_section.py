"""A part of a policy file as a pydantic model, made from the dataclass that holds its values.

The dataclass stays the one place for a field, its default and its words; the model adds what people need who
write by hand: durations, strictness, and an error that names the key.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from itertools import pairwise
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from monitoring.written import Duration, Mistake

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
SUFFIX = "_seconds"
"""Fields that end like this are durations, and their keys do without it."""
Positive = Annotated[Duration, Field(gt=0)]
_AT_LEAST_ZERO = Field(ge=0)
_GENERAL: Mapping[Any, Any] = {
    int: Annotated[int, _AT_LEAST_ZERO],
    float: Annotated[float, _AT_LEAST_ZERO],
    int | None: Annotated[int, _AT_LEAST_ZERO] | None,
    float | None: Annotated[float, _AT_LEAST_ZERO] | None,
}
"""No number in a policy is negative."""

Given = tuple[Any, Any, str]
"""Type, default and words of a key."""


def model(name: str, /, **keys: Given) -> Any:
    """A strict model with these keys."""
    parts = {key: (kind, Field(default=default, description=words)) for key, (kind, default, words) in keys.items()}
    made_of: Any = parts
    return create_model(name, __config__=STRICT, **made_of)


def section(
    name: str,
    cls: type[Any],
    /,
    *,
    without: Collection[str] = (),
    more: Mapping[str, Given] | None = None,
    **kinds: Any,
) -> Any:
    """A strict model with the fields of the dataclass `cls`, where a type of `kinds` says more than the field's."""
    hints, words = get_type_hints(cls), _words(cls)
    assert kinds.keys() <= hints.keys()
    given: dict[str, Given] = {
        _key(field.name): (
            kinds.get(field.name) or _kind(field.name, hints[field.name]),
            field.default if field.default_factory is MISSING else field.default_factory(),
            words.get(field.name, ""),
        )
        for field in fields(cls)
        if field.name not in without
    }
    return model(name, **given, **(more or {}))


def made(cls: type[T], given: BaseModel, path: str, wrong: list[Mistake]) -> T:
    """A `cls` of what was given in the section.

    Where `cls` refuses it, its words go to `wrong`, and its defaults stand in.
    """
    names = {_key(field.name): field.name for field in fields(cls)}  # type: ignore[arg-type]
    values = {names[key]: getattr(given, key) for key in given.model_fields_set if key in names}
    try:
        return cls(**values)
    except ValueError as error:
        wrong.append(_refused(str(error), path, names))
        return cls()


def _refused(words: str, path: str, names: Mapping[str, str]) -> Mistake:
    """A dataclass begins with the field that it refuses."""
    field, _, rule = words.partition(" ")
    key = next((key for key, name in names.items() if name == field), None)
    return Mistake(f"{path}.{key}", rule) if key else Mistake(path, words)


def _key(field: str) -> str:
    return field.removesuffix(SUFFIX)


def _kind(field: str, hint: Any) -> Any:
    if field.endswith(SUFFIX):
        return (
            Annotated[Duration, _AT_LEAST_ZERO] | None if hint == float | None else Annotated[Duration, _AT_LEAST_ZERO]
        )
    return _GENERAL.get(hint, hint)


def _words(cls: type[Any]) -> dict[str, str]:
    """What stands below each field of a class, in its source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(body.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
