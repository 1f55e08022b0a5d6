"""Decoders for a signature of tensors: nested lists of numbers, as deep as the signature says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.json import Decoder

from serving.runtime.exchange import Array
from serving.runtime.parsing_fast import Arrays, Format, Split
from serving.runtime.parsing_types import of_tensor
from serving.runtime.plan import Tensor


def formats(tensors: Sequence[Tensor]) -> Mapping[str, Format]:
    """The formats that have decoders."""
    if len(tensors) > 1:
        by_name, by_row = _struct(tensors, 0), _struct(tensors, 1)
        return {
            "inputs": (by_name, lambda told: _named(tensors, told)),
            "instances": (list[by_row] | by_name, lambda told: _instances(tensors, told)),  # type: ignore[valid-type]
        }
    (only,) = tensors
    nested = of_tensor(only, len(only.shape))
    if only.name:
        either: Format = (nested | _struct(tensors, 0), lambda told: _either(only, told))
        return {"inputs": either, "instances": either}
    plain: Format = (nested, lambda told: _only(only, told))
    found = {"inputs": plain, "instances": plain}
    return found | {"dataframe_split": (Split, _Splits(only).read)} if _is_frame(only) else found


class _Splits:
    """``dataframe_split`` for a tensor that is a frame: its columns count by their positions."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._decode = tensor, Decoder(of_tensor(tensor, 2)).decode

    def read(self, told: Split) -> Arrays | None:
        names = bytes(told.columns)
        if names and len(set(msgspec.json.decode(names, type=list[str]))) != self._tensor.shape[1]:
            return None
        rows = self._decode(told.data)
        if told.index is not None and len(told.index) != len(rows):
            return None
        return _only(self._tensor, rows)


def _is_frame(tensor: Tensor) -> bool:
    return len(tensor.shape) == 2 and tensor.shape[0] == -1 and tensor.shape[1] > 1


def _struct(tensors: Sequence[Tensor], less: int) -> Any:
    """An object with the names of tensors, with so many dimensions less."""
    fields = [(f"c{i}", of_tensor(tensor, len(tensor.shape) - less)) for i, tensor in enumerate(tensors)]
    return msgspec.defstruct("Tensors", fields, rename={f"c{i}": tensor.name for i, tensor in enumerate(tensors)})


def _either(tensor: Tensor, told: Any) -> Arrays:
    return _named([tensor], told) if isinstance(told, Struct) else _only(tensor, told)


def _only(tensor: Tensor, nested: list[Any]) -> Arrays:
    return {tensor.name: _array(tensor, nested)}


def _named(tensors: Sequence[Tensor], told: Any) -> Arrays:
    arrays = {tensor.name: _array(tensor, getattr(told, f"c{i}")) for i, tensor in enumerate(tensors)}
    if len({len(array) for array in arrays.values()}) > 1:
        raise ValueError("numbers of rows differ")
    return arrays


def _instances(tensors: Sequence[Tensor], told: Any) -> Arrays:
    if not isinstance(told, list):
        return _named(tensors, told)
    return {tensor.name: _array(tensor, [getattr(row, f"c{i}") for row in told]) for i, tensor in enumerate(tensors)}


def _array(tensor: Tensor, nested: list[Any]) -> Array:
    """`ValueError` where lists differ in length or the shape is another one."""
    array = np.array(nested, tensor.dtype)
    shape = tensor.shape
    fits = array.ndim == len(shape) and all(size in (-1, found) for size, found in zip(shape, array.shape, strict=True))
    if not fits or not array.size:
        raise ValueError("another shape")
    return array
