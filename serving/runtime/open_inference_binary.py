"""Tensors as bytes: the binary data extension over HTTP and raw contents over gRPC are the same bytes.

Values follow each other in row-major order, little-endian; a value of BYTES stands behind its length in four bytes. A
missing text has no bytes of its own: it is written as an empty one.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any

import numpy as np

from serving.runtime.exchange import Array, BadRequestError
from serving.runtime.open_inference_tensors import Output, dtype_of, size_of

_LENGTH = Struct("<I")


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: memoryview) -> Array:
    """The array of a tensor whose values are these bytes; those of BYTES are bytes."""
    dtype, size = dtype_of(name, datatype), size_of(name, shape)
    if datatype == "BYTES":
        return _of_texts(name, _texts(name, data), shape, size)
    if len(data) != size * dtype.itemsize:
        raise BadRequestError(f"tensor {name!r}: {len(data)} bytes, but {datatype} of {list(shape)} has {size} values")
    if datatype == "BOOL":
        truths: Array = np.frombuffer(data, np.uint8) != 0
        return truths.reshape(shape)
    array: Array = np.frombuffer(data, dtype.newbyteorder("<"))
    if not (array.flags.aligned and array.dtype.isnative):
        array = array.astype(dtype)
    return array.reshape(shape)


def to_bytes(output: Output) -> bytes:
    if output.datatype == "BYTES":
        return b"".join(_behind_length(as_bytes(value)) for value in output.values.ravel().tolist())
    return output.values.astype(output.values.dtype.newbyteorder("<"), copy=False).tobytes()


def as_bytes(value: str | bytes | None) -> bytes:
    """A value of BYTES."""
    return value.encode() if isinstance(value, str) else value or b""


def _behind_length(value: bytes) -> bytes:
    return _LENGTH.pack(len(value)) + value


def _texts(name: str, data: memoryview) -> list[bytes]:
    texts, place = [], 0
    while place < len(data):
        start = place + _LENGTH.size
        if start > len(data):
            raise BadRequestError(f"tensor {name!r}: the bytes end within a length")
        place = start + _LENGTH.unpack_from(data, start - _LENGTH.size)[0]
        if place > len(data):
            raise BadRequestError(f"tensor {name!r}: the bytes end within a value")
        texts.append(bytes(data[start:place]))
    return texts


def _of_texts(name: str, texts: list[Any], shape: Sequence[int], size: int) -> Array:
    if len(texts) != size:
        raise BadRequestError(f"tensor {name!r}: {len(texts)} values, but shape {list(shape)} has {size}")
    array = np.empty(size, dtype=object)
    array[:] = texts
    return array.reshape(shape)
