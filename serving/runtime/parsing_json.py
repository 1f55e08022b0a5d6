"""Requests read by Python's own parsers: the truth that the compiled decoders are held to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from serving.runtime.exchange import Array, BadRequestError, Raw, Rows
from serving.runtime.parsing_params import ParamReader
from serving.runtime.parsing_tables import Table, listed, of_records, of_split
from serving.runtime.parsing_values import Infinite, quoted

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")

CHAT = ("messages", "prompt", "input")
"""A request with one of these is given to the model as it is, and answered without ``predictions``."""

_REQUIRED = f"The input must be a JSON object with exactly one of {', '.join(FORMATS)}"

_DIGITS = 4000

_CONSTANTS = {"NaN": math.nan, "Infinity": Infinite("inf"), "-Infinity": Infinite("-inf")}


class Reader(Protocol):
    """Values of a request to the arrays of a signature; `BadRequestError` where they do not fit."""

    def frame(self, table: Table) -> dict[str, Array]: ...

    def csv(self, body: bytes) -> dict[str, Array]: ...

    def choose(self, names: Sequence[str]) -> Sequence[str]: ...

    def tensors(self, told: Any, by_row: bool) -> dict[str, Array]: ...

    def arrays(self, given: Mapping[str, Array]) -> dict[str, Array]: ...

    def check_chat(self, names: Sequence[str]) -> None: ...


class JsonReader:
    """Reads whole requests, whatever their format."""

    def __init__(self, reader: Reader, params: ParamReader) -> None:
        self._reader, self._params = reader, params

    def json(self, body: bytes, content_type: str) -> Rows | Raw:
        told = document(body)
        if any(key in told for key in CHAT):
            self._reader.check_chat(list(told))
            return Raw(body, content_type)
        formats = [key for key in FORMATS if key in told]
        if len(formats) != 1:
            raise BadRequestError(f"{_REQUIRED}, got {listed(told) or 'none'}.")
        arrays = self._arrays(formats[0], told[formats[0]])
        return rows(arrays, self._params.read(told.get("params")))

    def csv(self, body: bytes) -> Rows:
        return rows(self._reader.csv(body), None)

    def arrays(self, given: Mapping[str, Array], params: Mapping[str, Any] | None) -> Rows:
        return rows(self._reader.arrays(given), self._params.read(None if params is None else dict(params)))

    def _arrays(self, called: str, told: Any) -> dict[str, Array]:
        if called == "dataframe_split":
            return self._reader.frame(of_split(told))
        if called == "dataframe_records":
            return self._reader.frame(of_records(told, self._reader.choose))
        return self._reader.tensors(told, by_row=called == "instances")


def document(body: bytes) -> dict[str, Any]:
    """The object that a body is."""
    told = loaded(body)
    if not isinstance(told, dict):
        raise BadRequestError(f"{_REQUIRED}, got {quoted(told)}.")
    return told


def loaded(body: bytes) -> Any:
    """What the JSON says. An infinity that it spells is an `Infinite`."""
    try:
        return json.loads(body, parse_constant=_CONSTANTS.__getitem__, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"The body is not JSON in UTF-8: {error}") from error


def _integer(text: str) -> int | float:
    """Python refuses integers of thousands of digits; no number here may be so large, but what is ignored may."""
    return int(text) if len(text) < _DIGITS else float(text)


def rows(arrays: dict[str, Array], params: dict[str, Any] | None) -> Rows:
    """A request of these arrays; refused where they have no rows, or not the same number of them."""
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise BadRequestError(f"expected as many rows in every tensor, got {dict(list(counts.items())[:10])}")
    count = next(iter(counts.values()), 0)
    if count == 0:
        raise BadRequestError("expected at least one row, got none")
    return Rows(arrays, count, params)
