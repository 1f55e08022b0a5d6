"""Requests to a model whose signature has tensors, value by value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from serving.runtime import parsing_arrays
from serving.runtime.exchange import Array, BadRequestError
from serving.runtime.parsing_tables import Table, listed, missing_inputs, of_records
from serving.runtime.parsing_values import Problems, of_tensor, quoted
from serving.runtime.plan import Tensor


class TensorReader:
    """Reads requests to one signature of tensors."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._only = tensors[0] if len(tensors) == 1 else None

    def frame(self, table: Table) -> dict[str, Array]:
        """Of ``dataframe_split`` or ``dataframe_records``: a column for each tensor, or each value of the only one."""
        problems = Problems()
        names = self.choose(list(table.columns))
        for name in self._tensors:
            _check_frame(self._tensors[name])
        if self._only and not self._only.name and len(names) > 1:
            rows = [list(row) for row in zip(*(table.columns[name] for name in names), strict=True)]
            arrays = {"": _array(self._only, rows, problems)}
        else:
            cells = {tensor: table.columns[name] for tensor, name in zip(self._tensors, names, strict=True)}
            arrays = {
                name: _array(self._tensors[name], _shaped(self._tensors[name], cells[name]), problems) for name in cells
            }
        problems.check()
        return arrays

    def csv(self, body: bytes) -> dict[str, Array]:  # noqa: ARG002
        """Refused: MLflow reads no tensors from CSV either."""
        raise BadRequestError("This model takes tensors, which CSV cannot carry: expected JSON.")

    def choose(self, names: Sequence[str]) -> Sequence[str]:
        """Those columns of a frame that are wanted; refused where one is missing or there are too many."""
        if self._only and not self._only.name:
            width = self._only.shape[-1] if len(self._only.shape) == 2 else 1
            if not names or len(names) not in (1, width):
                raise BadRequestError(
                    f"expected {_described(self._only)}: a frame with {width} columns, got {len(names)}"
                )
            return names
        there = frozenset(names)
        if missing := [name for name in self._tensors if name not in there]:
            raise BadRequestError(missing_inputs(missing))
        return list(self._tensors)

    def tensors(self, told: Any, by_row: bool) -> dict[str, Array]:
        """Of ``inputs``, or of ``instances`` where `by_row`."""
        called = "instances" if by_row else "inputs"
        problems = Problems()
        arrays = {
            name: _array(self._tensors[name], value, problems) for name, value in self._named(told, by_row, called)
        }
        problems.check()
        return arrays

    def arrays(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Of arrays by name; the name of the only tensor does not matter where the signature gives it none."""
        if self._only and not self._only.name and len(given) == 1:
            given = {"": next(iter(given.values()))}
        problems, arrays = Problems(), {}
        if missing := [name for name in self._tensors if name not in given]:
            raise BadRequestError(missing_inputs(missing))
        for name, tensor in self._tensors.items():
            _check_shape(tensor, given[name].shape)
            arrays[name] = parsing_arrays.tensor(of_tensor(tensor, _width(given[name].shape)), given[name], problems)
        problems.check()
        return arrays

    def check_chat(self, names: Sequence[str]) -> None:
        """Refused: an object of plain values is no tensor."""
        raise BadRequestError(f"expected {', '.join(map(_described, self._tensors.values()))}, got {listed(names)}")

    def _named(self, told: Any, by_row: bool, called: str) -> list[tuple[str, Any]]:
        records = isinstance(told, list) and any(isinstance(value, dict) for value in told)
        if self._only and isinstance(told, list) and not records:
            return [(self._only.name, told)]
        if self._only and not self._only.name:
            raise BadRequestError(f"{called}: expected {_described(self._only)}, got {quoted(told)}")
        if records and by_row:
            return list(of_records(told, self.choose, True, called).columns.items())
        if not isinstance(told, dict):
            raise BadRequestError(f"{called}: expected tensors by name, {', '.join(self._tensors)}, got {quoted(told)}")
        return [(name, told[name]) for name in self.choose(list(told))]


def _array(tensor: Tensor, nested: Any, problems: Problems) -> Array:
    flat, shape = _flat(tensor, nested)
    _check_shape(tensor, shape)
    array = of_tensor(tensor, _width(shape)).array(flat, problems)
    return array.reshape(shape) if array.size == math.prod(shape) else array


def _check_shape(tensor: Tensor, shape: tuple[int, ...]) -> None:
    expected = tensor.shape
    if len(shape) != len(expected) or any(size not in (-1, found) for size, found in zip(expected, shape, strict=True)):
        raise BadRequestError(f"expected {_described(tensor)}, got shape {shape}")


def _width(shape: tuple[int, ...]) -> int:
    """Values in a row."""
    return max(math.prod(shape[1:]), 1)


def _flat(tensor: Tensor, nested: Any) -> tuple[list[Any], tuple[int, ...]]:
    """The values of nested lists, and their shape."""
    level, shape = [nested], []
    for _ in tensor.shape:
        sizes = {len(part) if isinstance(part, list) else -1 for part in level}
        if len(sizes) != 1 or -1 in sizes:
            raise BadRequestError(f"expected {_described(tensor)}, got {_nesting(nested)}")
        shape.append(sizes.pop())
        level = list(chain.from_iterable(level))
        if not level:
            return [], (*shape, *([0] * (len(tensor.shape) - len(shape))))
    if any(isinstance(value, list | dict) for value in level):
        raise BadRequestError(f"expected {_described(tensor)}, got {_nesting(nested)}")
    return level, tuple(shape)


def _nesting(nested: Any) -> str:
    depth, value = 0, nested
    while isinstance(value, list):
        depth, value = depth + 1, value[0] if value else None
    if depth == 0:
        return quoted(nested)
    return f"lists nested {depth} deep, or of different lengths"


def _check_frame(tensor: Tensor) -> None:
    if tensor.shape[0] != -1 or -1 in tensor.shape[1:]:
        raise BadRequestError(f"expected {_described(tensor)} as 'inputs' or 'instances': no frame can carry it")


def _shaped(tensor: Tensor, cells: Sequence[Any]) -> list[Any]:
    """A frame's column as nested lists: its cells are values, or lists with all values of a row."""
    inner = tensor.shape[1:]
    if not any(isinstance(cell, list) for cell in cells):
        return [[cell] for cell in cells] if inner == (1,) else list(cells)
    if len(inner) < 2:
        return [cell[0] if not inner and isinstance(cell, list) and len(cell) == 1 else cell for cell in cells]
    return [_folded(cell, inner) for cell in cells]


def _folded(cell: Any, shape: tuple[int, ...]) -> Any:
    """A flat list as nested ones; anything else as it is, to be refused."""
    if not isinstance(cell, list) or len(cell) != math.prod(shape) or any(isinstance(value, list) for value in cell):
        return cell
    for size in reversed(shape[1:]):
        cell = [cell[start : start + size] for start in range(0, len(cell), size)]
    return cell


def _described(tensor: Tensor) -> str:
    called = f"tensor {quoted(tensor.name)}" if tensor.name else "a tensor"
    return f"{called} of shape {tensor.shape}"
