"""What the paths that predict take and give, in the OpenAPI document: made from the plan of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI

from serving.runtime.open_inference_tensors import datatype_of
from serving.runtime.plan import KINDS, Column, Param, Plan, Tensor
from serving.runtime.service import Service

Schema = dict[str, Any]

_JSON = "application/json"

_WHOLE = {"integer": 2**31, "long": 2**63}
"""Integers are smaller than this."""

_SCALARS = {"b": "boolean", "i": "integer", "u": "integer", "f": "number"}
"""By NumPy's kind of a type; all others are texts."""

_ERRORS = {
    "400": "The request is wrong; the message names the column, the row and what was expected.",
    "408": "The request took too long to come.",
    "413": "The body is too large.",
    "415": "The content type is unknown.",
    "500": "The model failed.",
    "503": "Too many requests wait, or no model is loaded; see `Retry-After`.",
    "504": "The time of the request was over before there was a prediction.",
}


def described(app: FastAPI, service: Service) -> None:
    """Add to the document of `app` what stands in front of it."""
    made = app.openapi

    def openapi() -> Schema:
        if app.openapi_schema is None:
            name = service.settings.origin.model
            made()["paths"] |= {
                "/invocations": {"post": _invocations(service.plan)},
                f"/v2/models/{name}/infer": {"post": _infer(service.plan)},
            }
        return made()

    app.openapi = openapi  # type: ignore[method-assign]


def _invocations(plan: Plan) -> Schema:
    content = {_JSON: {"schema": scoring_schema(plan)}, "text/csv": {"schema": {"type": "string"}}}
    answer = _object({"predictions": {}}, ["predictions"]) if plan.typed else {}
    error = _object({"error_code": {"type": "string"}, "message": {"type": "string"}}, ["error_code", "message"])
    return _operation("MLflow's scoring protocol", "invocations", content, answer, error)


def _infer(plan: Plan) -> Schema:
    parts: tuple[Column | Tensor, ...] = (*plan.columns, *plan.tensors)
    inputs = [_v2_tensor(part) for part in parts]
    tensors = {"type": "array", "minItems": 1, "items": {"oneOf": inputs} if len(inputs) > 1 else (inputs or [{}])[0]}
    request = _object({"id": {"type": "string"}, "inputs": tensors}, ["inputs"])
    answer = _object({"model_name": {"type": "string"}, "outputs": {"type": "array"}}, ["model_name", "outputs"])
    error = _object({"error": {"type": "string"}}, ["error"])
    operation = _operation("The Open Inference Protocol v2", "infer", {_JSON: {"schema": request}}, answer, error)
    operation["tags"] = ["Open Inference Protocol"]
    return operation


def scoring_schema(plan: Plan) -> Schema:
    """Of the bodies of ``/invocations`` in JSON."""
    params = {"params": _object({param.name: _of_param(param) for param in plan.params}, [])} if plan.params else {}
    return {"oneOf": [_object({name: form, **params}, [name]) for name, form in _forms(plan).items()]}


def _forms(plan: Plan) -> dict[str, Schema]:
    if plan.columns:
        record = _record(plan.columns)
        split = _object({"columns": _names(plan.columns), "data": _rows({"type": "array"})}, ["columns", "data"])
        by_column = {column.name: _rows(_of_column(column)) for column in plan.columns}
        inputs = _object(by_column, [column.name for column in plan.columns if column.required])
        records = _rows(record)
        return {"dataframe_records": records, "dataframe_split": split, "instances": records, "inputs": inputs}
    if plan.tensors:
        return _of_tensors(plan.tensors)
    return {name: {} for name in ("dataframe_records", "dataframe_split", "instances", "inputs")}


def _of_tensors(tensors: Sequence[Tensor]) -> dict[str, Schema]:
    if not tensors[0].name:
        form = _nested(tensors[0].shape, tensors[0].dtype)
        return {"instances": form, "inputs": form}
    named = {tensor.name: _nested(tensor.shape, tensor.dtype) for tensor in tensors}
    record = {tensor.name: _nested(tensor.shape[1:], tensor.dtype) for tensor in tensors}
    return {"inputs": _object(named, list(named)), "instances": _rows(_object(record, list(record)))}


def _record(columns: Sequence[Column]) -> Schema:
    properties = {column.name: _of_column(column) for column in columns}
    return _object(properties, [column.name for column in columns if column.required])


def _names(columns: Sequence[Column]) -> Schema:
    return {"type": "array", "items": {"enum": [column.name for column in columns]}}


def _rows(row: Schema) -> Schema:
    return {"type": "array", "items": row}


def _of_column(column: Column) -> Schema:
    if column.categories is not None:
        return {"enum": [*column.categories, None] if column.nulls else list(column.categories)}
    schema = _of_kind(column.kind)
    if schema.get("type") == "number" and column.largest is not None:
        schema |= {"minimum": -column.largest, "maximum": column.largest}
    whole = column.kind in ("boolean", "integer", "long")
    return {"anyOf": [schema, {"type": "null"}]} if column.nulls and not whole else schema


def _of_kind(kind: str) -> Schema:
    if kind in _WHOLE:
        return {"type": "integer", "minimum": -_WHOLE[kind], "maximum": _WHOLE[kind] - 1}
    texts = {"string": {}, "datetime": {"format": "date-time"}, "binary": {"contentEncoding": "base64"}}
    if kind in texts:
        return {"type": "string", **texts[kind]}
    return {"type": "boolean" if kind == "boolean" else "number"}


def _nested(shape: Sequence[int], dtype: str) -> Schema:
    if not shape:
        return {"type": _SCALARS.get(np.dtype(dtype).kind, "string")}
    size = {} if shape[0] < 0 else {"minItems": shape[0], "maxItems": shape[0]}
    return {"type": "array", "items": _nested(shape[1:], dtype), **size}


def _of_param(param: Param) -> Schema:
    schema = _of_kind(param.kind)
    return schema if param.shape is None else {"type": "array", "items": schema}


def _v2_tensor(part: Column | Tensor) -> Schema:
    dtype = np.dtype(KINDS[part.kind] if isinstance(part, Column) else part.dtype)
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    properties = {
        "name": {"enum": [part.name]} if part.name else {"type": "string"},
        "datatype": {"type": "string", "example": datatype_of(dtype)},
        "shape": shape,
        "data": {"type": "array"},
    }
    return _object(properties, list(properties))


def _object(properties: Mapping[str, Any], required: list[str]) -> Schema:
    return {"type": "object", "properties": dict(properties), "required": required}


def _operation(summary: str, name: str, content: Schema, answer: Schema, error: Schema) -> Schema:
    refusals = {status: _told(text, error) for status, text in _ERRORS.items()}
    return {
        "tags": ["Predictions"],
        "summary": summary,
        "operationId": name,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": _told("Predictions", answer), **refusals},
    }


def _told(text: str, schema: Schema) -> Schema:
    return {"description": text, "content": {_JSON: {"schema": schema}}}
