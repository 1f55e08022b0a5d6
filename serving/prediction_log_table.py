"""Served requests as one table of the prediction log.

What was packed is arrays, which Arrow takes as they are. Whatever could not be packed is taken value by value. Both
ways give the same columns of the same types.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from serving.prediction_log_entry import NOTHING_PRIVATE, Columns, Privacy, Served, as_text
from serving.prediction_log_pack import Packed, pack, rows_of
from serving.stacked_columns import Array

SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("row", pa.int64()),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("revision", pa.string()),
        ("mode", pa.string()),
        ("entity", pa.string()),
        ("latency_ms", pa.float64()),
    ]
)
"""The columns of every row; ``input.<column>`` and ``output.<column>`` follow."""

_INPUT, _OUTPUT = "0", "prediction"
"""Names of an input and an output that have none."""

_WIDE = {"b": np.bool_, "i": np.int64, "f": np.float64}
"""One type for all numbers of a kind, whichever path of the server they came from."""

_Layout = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, type and shape of every column."""


def tabulate(
    packs: Sequence[Packed], loose: Sequence[Served], revision: str, privacy: Privacy = NOTHING_PRIVATE
) -> pa.Table:
    """One table of requests, packed or not; a column that a request does not have is null in its rows."""
    odd: list[list[Served]] = []
    packs = list(packs)
    for part in _grouped(loose, lambda served: (_layout(served.inputs), _layout(served.outputs))):
        packed = pack(part)
        if packed is None:
            odd.append(part)
        else:
            packs.append(packed)
    columns = [_columns(packed) for packed in packs]
    layouts: dict[_Layout, list[int]] = {}
    for index, arrays in enumerate(columns):
        layouts.setdefault(_layout_of(arrays), []).append(index)
    tables = [
        _of_packed([packs[index] for index in same], [columns[index] for index in same], revision, privacy)
        for same in layouts.values()
    ]
    return joined([*tables, *(_of_values(part, revision, privacy) for part in odd)])


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """One table; a column whose types do not go together becomes text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        mixed = {name for table in tables for name in table.column_names if not _go_together(tables, name)}
        return pa.concat_tables([_as_text(table, mixed) for table in tables], promote_options="permissive")


def columns_of(value: Any, unnamed: str) -> Columns:
    """A model's input or output as named columns of plain values; `unnamed` names the only column of a plain list."""
    if hasattr(value, "columns") and hasattr(value, "iloc"):
        return {str(name): value.iloc[:, i].tolist() for i, name in enumerate(value.columns)}
    if isinstance(value, Mapping) and "" in value:
        return columns_of({k: v for k, v in value.items() if k != ""}, unnamed) | columns_of(value[""], unnamed)
    if isinstance(value, Mapping):
        return {str(name): _listed(part) for name, part in value.items()}
    if getattr(value, "ndim", 0) == 2:
        return {str(i): part for i, part in enumerate(value.T.tolist())}
    values = _listed(value)
    if values and all(isinstance(v, Mapping) for v in values):
        return {str(name): [v.get(name) for v in values] for name in dict.fromkeys(n for v in values for n in v)}
    return {str(getattr(value, "name", None) or unnamed): values}


def _layout(value: Any) -> object:
    return tuple(value) if isinstance(value, Mapping) else type(value)


def _grouped(batch: Sequence[Served], key: Callable[[Served], object]) -> Iterable[list[Served]]:
    groups: dict[object, list[Served]] = {}
    for served in batch:
        groups.setdefault(key(served), []).append(served)
    return groups.values()


def _columns(packed: Packed) -> dict[str, Array]:
    """By full name."""
    inputs = {f"input.{name}": array for name, array in _named(packed.inputs, _INPUT)}
    return inputs | {f"output.{name}": array for name, array in _named(packed.outputs, _OUTPUT)}


def _named(columns: Mapping[str, Array], unnamed: str) -> Iterator[tuple[str, Array]]:
    for name, array in columns.items():
        if name == "" and array.ndim == 2:
            yield from ((str(i), array[:, i]) for i in range(array.shape[1]))
        else:
            yield str(name) or unnamed, array


def _layout_of(columns: Mapping[str, Array]) -> _Layout:
    return tuple((name, array.dtype.char, array.shape[1:]) for name, array in columns.items())


def _of_packed(
    packs: Sequence[Packed], columns: Sequence[Mapping[str, Array]], revision: str, privacy: Privacy
) -> pa.Table:
    """Of packs with the same layout; `columns` are theirs."""
    kept = [name for name in columns[0] if not privacy.drops(name)]
    table = {name: array for name, array in _told(packs, revision).items() if not privacy.drops(name)}
    table |= {name: _arrow(np.concatenate([arrays[name] for arrays in columns])) for name in kept}
    return pa.table({name: _hashed(array, privacy) if privacy.hashes(name) else array for name, array in table.items()})


def _told(packs: Sequence[Packed], revision: str) -> dict[str, pa.Array]:
    """The columns of `SCHEMA`."""
    counts = np.fromiter(chain.from_iterable(packed.counts for packed in packs), np.int64)
    at = np.fromiter(chain.from_iterable(packed.at for packed in packs), np.float64, len(counts))
    of_request: dict[str, Any] = {
        "request_id": [request for packed in packs for request in packed.request_ids],
        "timestamp": (at * 1e6).astype(np.int64),
        "mode": [mode for packed in packs for mode in packed.modes],
        "entity": [entity for packed in packs for entity in packed.entities],
        "latency_ms": [latency for packed in packs for latency in packed.latencies],
    }
    columns = {name: pa.array(values, SCHEMA.field(name).type) for name, values in of_request.items()}
    row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    if len(row) != len(counts):
        rows = pa.array(np.repeat(np.arange(len(counts)), counts))
        columns = {name: array.take(rows) for name, array in columns.items()}
    columns |= {"row": pa.array(row, pa.int64()), "revision": pa.repeat(revision, len(row))}
    return {name: columns[name] for name in SCHEMA.names}


def _arrow(array: Array) -> pa.Array:
    if array.ndim > 1:
        inner = _arrow(array.reshape(len(array) * array.shape[1], *array.shape[2:]))
        return pa.ListArray.from_arrays(np.arange(len(array) + 1, dtype=np.int32) * array.shape[1], inner)
    if wide := _WIDE.get(array.dtype.kind):
        return pa.array(array.astype(wide, copy=False))
    return _array(array.tolist() if array.dtype.kind == "O" else _listed(array))


def _hashed(array: pa.Array, privacy: Privacy) -> pa.Array:
    values = array.to_pylist()
    if pa.types.is_nested(array.type):
        return pa.array([privacy.hash(value) for value in values], pa.string())
    known = {value: privacy.hash(value) for value in set(values)}
    return pa.array([known[value] for value in values], pa.string())


def _of_values(batch: Sequence[Served], revision: str, privacy: Privacy) -> pa.Table:
    parts = [privacy.apply(_rows(served, revision)) for served in batch]
    counts = [rows_of(served) for served in batch]
    names = dict.fromkeys(name for part in parts for name in part)
    gathered = {
        name: [v for part, rows in zip(parts, counts) for v in part.get(name, [None] * rows)]  # noqa: B905
        for name in names
    }
    return pa.table({name: _array(values, name) for name, values in gathered.items()})


def _rows(served: Served, revision: str) -> Columns:
    inputs = {f"input.{name}": values for name, values in columns_of(served.inputs, _INPUT).items()}
    outputs = {f"output.{name}": values for name, values in columns_of(served.outputs, _OUTPUT).items()}
    rows = rows_of(served)
    same = {
        "request_id": served.request_id,
        "timestamp": int(served.at * 1e6),
        "revision": revision,
        "mode": served.mode,
        "entity": served.entity,
        "latency_ms": served.latency_ms,
    }
    data = {name: _fitted(values, rows) for name, values in (inputs | outputs).items()}
    return {"row": list(range(rows))} | {name: [value] * rows for name, value in same.items()} | data


def _fitted(values: list[Any], rows: int) -> list[Any]:
    """Values of another number than the rows belong to no single row: all of them stand in the first one."""
    return values if len(values) == rows else [as_text(values)] + [None] * (rows - 1)


def _listed(value: Any) -> list[Any]:
    if getattr(getattr(value, "dtype", None), "kind", "") == "M" and hasattr(value, "astype"):
        value = value.astype("datetime64[us]")
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _array(values: list[Any], name: str = "") -> pa.Array:
    if name in SCHEMA.names:
        return pa.array(values, SCHEMA.field(name).type)
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else as_text(value) for value in values], pa.string())


def _go_together(tables: Sequence[pa.Table], name: str) -> bool:
    schemas = [pa.schema([table.schema.field(name)]) for table in tables if name in table.column_names]
    try:
        pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return False
    return True


def _as_text(table: pa.Table, names: Collection[str]) -> pa.Table:
    for index, field in enumerate(table.schema):
        if field.name in names and not pa.types.is_null(field.type):
            values = [None if v is None else as_text(v) for v in table.column(index).to_pylist()]
            table = table.set_column(index, field.name, pa.array(values, pa.string()))
    return table
