"""Bodies of MLflow's scoring protocol to arrays with the types of a plan.

Decoders made for the plan read what is as it should be; whatever they do not take is read again value by value, which
either knows better or says what is wrong, where, and what was expected. No body raises anything but `ServingError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.runtime import parsing_fast_columns, parsing_fast_tensors
from serving.runtime.exchange import Array, BadRequestError, MediaTypeError, Raw, Rows
from serving.runtime.parsing_columns import ColumnReader
from serving.runtime.parsing_fast import FastReader, Format
from serving.runtime.parsing_json import JsonReader, Reader
from serving.runtime.parsing_params import ParamReader
from serving.runtime.parsing_tensors import TensorReader
from serving.runtime.plan import Plan

_JSON, _CSV, _PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
_MEDIA_TYPES = (_CSV, _JSON, _PARQUET)


class Parser:
    """Reads the requests to one model."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._params = ParamReader(plan.params)
        self._slow = JsonReader(_reader(plan), self._params) if plan.typed else None
        self._fast = FastReader(_formats(plan), self._params) if plan.typed else None

    def parse(self, body: bytes, content_type: str) -> Rows | Raw:
        """A request as it came over HTTP; `BadRequestError` or `MediaTypeError` where it is none."""
        kind = _JSON if content_type == _JSON else media_type(content_type)
        if self._slow is None or kind == _PARQUET:
            return Raw(body, content_type)
        if kind == _CSV:
            return self._slow.csv(body)
        return (self._fast and self._fast.json(body)) or self._slow.json(body, content_type)

    def of_arrays(self, arrays: Mapping[str, Array], params: Mapping[str, Any] | None = None) -> Rows:
        """A request that came as arrays, by the same rules; `BadRequestError` where it does not fit."""
        if self._slow is None:
            raise BadRequestError("the model has no signature that tells how its inputs are to be read")
        return self._slow.arrays(arrays, params)


def media_type(content_type: str) -> str:
    """The media type of a request that MLflow's scoring server takes; `MediaTypeError` for any other."""
    kind, *parts = (part.strip() for part in content_type.split(";"))
    parameters = dict(part.partition("=")[::2] for part in parts)
    if parameters.pop("charset", "utf-8").lower() != "utf-8":
        raise MediaTypeError("The scoring server only supports UTF-8")
    if parameters:
        raise MediaTypeError(f"Unrecognized content type parameters: {', '.join(parameters)}.")
    if kind not in _MEDIA_TYPES:
        raise MediaTypeError(
            f"Expected one of the content types {', '.join(_MEDIA_TYPES)}, got {content_type[:100]!r}."
        )
    return kind


def _formats(plan: Plan) -> Mapping[str, Format]:
    return parsing_fast_columns.formats(plan.columns) if plan.columns else parsing_fast_tensors.formats(plan.tensors)


def _reader(plan: Plan) -> Reader:
    return ColumnReader(plan.columns) if plan.columns else TensorReader(plan.tensors)
