"""Tensors of the Open Inference Protocol: its datatypes, and their values in JSON as arrays and back.

Values are as strict as the protocol's types: no fraction is an integer, no number is text, nothing overflows. Two
things JSON can say go beyond it: null is a missing value in floats and in BYTES, and data may be nested or flat.
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import msgspec
import numpy as np

from serving.runtime.exchange import Array, BadRequestError

DATATYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("bool"),
    **{f"{sign}{bits}": np.dtype(f"{sign.lower()}{bits}") for sign in ("INT", "UINT") for bits in (8, 16, 32, 64)},
    "FP16": np.dtype("float16"),
    "FP32": np.dtype("float32"),
    "FP64": np.dtype("float64"),
    "BYTES": np.dtype("object"),
}
"""The protocol's names, and what such values are here; those of BYTES are text in JSON, and bytes otherwise."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}

_MOST_DIMENSIONS = 32
"""As many as arrays have in every NumPy."""

_TEXTS = (str, bytes, type(None))

_NESTED = re.compile(rb"\s*\[\s*\[")


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of an answer."""

    name: str
    datatype: str
    values: Array
    """Of the datatype's dtype, contiguous; those of BYTES are text, bytes or None."""


def dtype_of(name: str, datatype: str) -> np.dtype[Any]:
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        raise _unknown(name, datatype)
    return dtype


def _unknown(name: str, datatype: str) -> BadRequestError:
    return BadRequestError(f"tensor {name!r}: datatype {datatype!r} is not one of {', '.join(DATATYPES)}")


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name; BYTES where it has none of its own."""
    return _NAMES.get(dtype, "BYTES")


def from_json(name: str, datatype: str, shape: Sequence[int], data: msgspec.Raw) -> Array:
    """The array of a tensor whose values are this JSON."""
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        raise _unknown(name, datatype)
    try:
        array = np.array(_decoder(datatype, 1).decode(data), dtype)
    except msgspec.ValidationError as error:
        if len(shape) > 1 and _NESTED.match(data):
            return _nested(name, datatype, shape, data)
        raise BadRequestError(f"tensor {name!r}, {datatype}: {_told(error)}") from error
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise BadRequestError(f"tensor {name!r}, {datatype}: {error}") from error
    return shaped(name, array, shape)


def shaped(name: str, array: Array, shape: Sequence[int]) -> Array:
    """A flat array in that shape."""
    if not shape or len(array) != math.prod(shape):
        raise BadRequestError(f"tensor {name!r}: {len(array)} values do not make shape {list(shape)}")
    if not len(array) and 0 in shape[1:]:  # or else a few bytes could announce billions of empty rows
        raise BadRequestError(f"tensor {name!r}: the rows of shape {list(shape)} are empty")
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError) as error:
        raise BadRequestError(f"tensor {name!r}: there is no shape {list(shape)}") from error


def _nested(name: str, datatype: str, shape: Sequence[int], data: msgspec.Raw) -> Array:
    if len(shape) > _MOST_DIMENSIONS:
        raise BadRequestError(f"tensor {name!r}: a shape has at most {_MOST_DIMENSIONS} dimensions")
    try:
        array = np.array(_decoder(datatype, len(shape)).decode(data), dtype=DATATYPES[datatype])
    except msgspec.ValidationError as error:
        raise BadRequestError(f"tensor {name!r}, {datatype}: {_told(error)}") from error
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise BadRequestError(f"tensor {name!r}, {datatype}: {error}") from error
    if array.shape != tuple(shape):
        raise BadRequestError(f"tensor {name!r}: the nested data is not of shape {list(shape)}")
    return array


@cache
def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    kind = _kind(datatype)
    for _ in range(depth):
        kind = list[kind]  # type: ignore[valid-type]
    return msgspec.json.Decoder(kind)


def _kind(datatype: str) -> Any:
    """What one value of a datatype is in JSON."""
    dtype = DATATYPES[datatype]
    if datatype == "UINT64":
        return Annotated[int, msgspec.Meta(ge=0)]  # msgspec knows no larger bound, and NumPy refuses the rest
    if dtype.kind in "iu":
        whole = np.iinfo(dtype)
        return Annotated[int, msgspec.Meta(ge=int(whole.min), le=int(whole.max))]
    if datatype in ("FP16", "FP32"):
        largest = np.finfo(dtype).max
        step = largest - np.nextafter(largest, dtype.type(0))
        beyond = float(largest) + float(step) / 2  # what is less is rounded to the largest, and not to infinity
        return Annotated[float, msgspec.Meta(gt=-beyond, lt=beyond)] | None
    return {"b": bool, "f": float | None, "O": str | None}[dtype.kind]


def _told(error: msgspec.ValidationError) -> str:
    """msgspec's message without its own notation: ``$[3]`` is value 3 of the data."""
    return str(error).replace("`", "").replace("at $", "at data")


def to_wire(name: str, values: Array) -> Output:
    """A model's answer as the protocol has it: dates are ISO text, and what is no single value is JSON text."""
    kind = values.dtype.kind
    if kind == "f" and values.dtype.itemsize > np.dtype(np.float64).itemsize:
        values = values.astype(np.float64)
    elif kind == "M":
        values = np.datetime_as_string(values).astype(object)
    elif kind not in "biuf":
        values = _of_objects(values.astype(object, copy=False))
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    return Output(name, datatype_of(values.dtype), np.ascontiguousarray(values))


def _of_objects(values: Array) -> Array:
    """Numbers where all are numbers, with NaN for a missing one; else texts, bytes and None."""
    flat = values.ravel().tolist()
    kinds = {type(value) for value in flat}
    if kinds <= set(_TEXTS):
        return values
    if dtype := _dtype(kinds):
        try:
            return np.array(flat, dtype=dtype).reshape(values.shape)
        except OverflowError:
            pass  # they stay what they are: text
    texts = np.empty(len(flat), dtype=object)
    texts[:] = [value if isinstance(value, _TEXTS) else json.dumps(value, default=str) for value in flat]
    return texts.reshape(values.shape)


def _dtype(kinds: Set[type]) -> type[np.generic] | None:
    """What arrays of Python values of these types are; None where they have nothing in common."""
    if kinds == {bool}:
        return np.bool_
    if kinds == {int}:
        return np.int64
    return np.float64 if kinds <= {float, int, type(None)} else None


def json_data(output: Output) -> Any:
    """The values as orjson writes them with its option for NumPy's."""
    flat = output.values.ravel()
    if output.datatype == "FP16":
        return flat.astype(np.float32)
    if output.datatype == "BYTES":
        return [b64encode(value).decode() if isinstance(value, bytes) else value for value in flat.tolist()]
    return flat
