"""Tensors as bytes: the binary data extension over HTTP and raw contents over gRPC are the same bytes.

Values follow each other in row-major order, little-endian; a value of BYTES stands behind its length in four bytes. A
missing text has no bytes of its own: it is written as an empty one.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

import numpy as np

from serving.runtime.exchange import Array, BadRequestError
from serving.runtime.open_inference_tensors import DATATYPES, Output, dtype_of, shaped

_LENGTH = Struct("<I")

_LITTLE = {datatype: dtype.newbyteorder("<") for datatype, dtype in DATATYPES.items()}


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: memoryview) -> Array:
    """The array of a tensor whose values are these bytes; those of BYTES are bytes."""
    dtype = dtype_of(name, datatype)
    if datatype == "BYTES":
        flat = _objects(_texts(name, data))
    elif len(data) % dtype.itemsize:
        raise BadRequestError(f"tensor {name!r}: {len(data)} bytes are no whole number of {datatype}")
    elif datatype == "BOOL":
        flat = np.frombuffer(data, np.uint8) != 0
    else:
        flat = np.frombuffer(data, _LITTLE[datatype])
        if not (flat.flags.aligned and flat.dtype.isnative):
            flat = flat.astype(dtype)
    return shaped(name, flat, shape)


def to_bytes(output: Output) -> bytes:
    if output.datatype == "BYTES":
        return b"".join(_behind_length(as_bytes(value)) for value in output.values.ravel().tolist())
    return output.values.astype(_LITTLE[output.datatype], copy=False).tobytes()


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


def _objects(texts: list[bytes]) -> Array:
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array
