"""Served requests as one table of the prediction log.

At full speed all requests have the same columns as arrays, and then no value becomes a Python object: arrays are put
end to end, a few requests at a time where they were made, which is several times cheaper than handing the thousands of
small ones to another thread; and then handed to Arrow. Whatever is not like that (lists, frames, answers of another
length than the rows) is taken value by value. Both ways give the same columns of the same types.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from serving.prediction_log_entry import NOTHING_PRIVATE, Columns, Privacy, Served, as_text
from serving.stacked_columns import Array, StackedColumns, alike, end_to_end

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

_DAY = 86_400

_OBJECT = 100
"""About how many bytes an array or value takes besides what is in it."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Several requests of one day, with their arrays end to end, and no Python object for each of them: thousands that
    are kept for a second push out of the processor's caches what the server works with."""

    told: Mapping[str, pa.Array]
    """By column of `SCHEMA`, one value for each request."""
    first: float
    last: float
    """When the first and the last request came, in seconds since the epoch."""
    counts: Array
    """Rows of each request."""
    data: Mapping[str, Array | pa.Array]
    """By full name; texts and other objects as Arrow's arrays."""


def pack(batch: Sequence[Served]) -> Packed | None:
    """None where they do not have the same columns as arrays with a value for every row, or not the same day."""
    counts = [rows_of(served) for served in batch]
    at = [served.at for served in batch]
    try:
        inputs = _end_to_end([served.inputs for served in batch], counts, _INPUT, check=_guessed(batch))
        outputs = _end_to_end([served.outputs for served in batch], counts, _OUTPUT, check=True)
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    if day_of(min(at)) != day_of(max(at)):
        return None
    told: dict[str, Any] = {
        "request_id": [served.request_id for served in batch],
        "timestamp": (np.array(at) * 1e6).astype(np.int64),
        "mode": [served.mode for served in batch],
        "entity": [served.entity for served in batch],
        "latency_ms": [served.latency_ms for served in batch],
    }
    arrays = {name: pa.array(values, SCHEMA.field(name).type) for name, values in told.items()}
    data = {f"input.{name}": _without_objects(array) for name, array in inputs.items()}
    data |= {f"output.{name}": _without_objects(array) for name, array in outputs.items()}
    return Packed(arrays, min(at), max(at), np.array(counts), data)


def tabulate(
    packs: Sequence[Packed], loose: Sequence[Served], revision: str, privacy: Privacy = NOTHING_PRIVATE
) -> pa.Table:
    """One table of requests, packed or not; a column that a request does not have is null in its rows."""
    odd: list[list[Served]] = []
    layouts: dict[object, list[Packed]] = {}
    for part in _grouped(loose, lambda served: (_layout(served.inputs), _layout(served.outputs))):
        packed = pack(part)
        if packed is None:
            odd.append(part)
        else:
            packs = [*packs, packed]
    for packed in packs:
        layouts.setdefault(_layout_of(packed), []).append(packed)
    tables = [_of_packed(_merged(same), revision, privacy) for same in layouts.values()]
    return joined([*tables, *(_of_values(part, revision, privacy) for part in odd)])


def day_of(at: float) -> int:
    """Days since the epoch."""
    return int(at // _DAY)


def size_of(served: Served) -> int:
    """About how many bytes a request keeps."""
    return sum(_bytes_of(value) for value in (served.inputs, served.outputs))


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """One table; a column whose types do not go together becomes text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        mixed = {name for table in tables for name in table.column_names if not _go_together(tables, name)}
        return pa.concat_tables([_as_text(table, mixed) for table in tables], promote_options="permissive")


def count_rows(value: Any) -> int:
    """Into how many rows of the log a request's inputs fall."""
    if isinstance(value, Mapping):
        return max((count_rows(v) for v in value.values()), default=1)
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0:
        return 1
    return max(1, len(value))


def rows_of(served: Served) -> int:
    return count_rows(served.inputs) if served.rows is None else served.rows


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


def _bytes_of(value: Any) -> int:
    if isinstance(value, StackedColumns):
        return sum(map(_bytes_of, value.arrays))
    if isinstance(value, Mapping):
        return sum(map(_bytes_of, value.values()))
    return _OBJECT + int(getattr(value, "nbytes", count_rows(value) * _OBJECT))


def _layout(value: Any) -> object:
    return tuple(value) if isinstance(value, Mapping) else type(value)


def _layout_of(packed: Packed) -> object:
    return tuple(
        (name, array.type) if isinstance(array, pa.Array) else (name, array.dtype.char, array.shape[1:])
        for name, array in packed.data.items()
    )


def _grouped(batch: Sequence[Served], key: Callable[[Served], object]) -> Iterable[list[Served]]:
    groups: dict[object, list[Served]] = {}
    for served in batch:
        groups.setdefault(key(served), []).append(served)
    return groups.values()


def _merged(packs: Sequence[Packed]) -> Packed:
    one = packs[0]
    return Packed(
        {name: pa.concat_arrays([packed.told[name] for packed in packs]) for name in one.told},
        min(packed.first for packed in packs),
        max(packed.last for packed in packs),
        np.concatenate([packed.counts for packed in packs]),
        {name: _merged_arrays([packed.data[name] for packed in packs]) for name in one.data},
    )


def _merged_arrays(arrays: Sequence[Any]) -> Array | pa.Array:
    return pa.concat_arrays(arrays) if isinstance(arrays[0], pa.Array) else np.concatenate(arrays)


def _of_packed(packed: Packed, revision: str, privacy: Privacy) -> pa.Table:
    columns = _told(packed, revision)
    columns |= {name: _arrow(array) for name, array in packed.data.items() if not privacy.drops(name)}
    return pa.table(
        {
            name: _hashed(array, privacy) if privacy.hashes(name) else array
            for name, array in columns.items()
            if not privacy.drops(name)
        }
    )


def _guessed(batch: Sequence[Served]) -> bool:
    """Whether it was not told how many rows each request has."""
    return any(served.rows is None for served in batch)


def _end_to_end(values: Sequence[Any], counts: list[int], unnamed: str, *, check: bool) -> dict[str, Array]:
    """Arrays of several requests as one; any of several exceptions where they are no arrays that go together.

    `check` looks at every array's length: that takes as long as all the rest.
    """
    first = values[0]
    if not isinstance(first, Mapping):
        return _spread("", _one(values, counts, check), unnamed)
    if alike(values):
        return {name or unnamed: array for name, array in end_to_end(values, ()).items()}
    if any(len(value) != len(first) for value in values):
        raise ValueError("not the same columns")
    columns: dict[str, Array] = {}
    for name in first:
        columns |= _spread(name, _one([value[name] for value in values], counts, check), unnamed)
    return columns


def _one(arrays: Sequence[Array], counts: list[int], check: bool) -> Array:
    dtype = arrays[0].dtype
    together = np.concatenate(arrays) if dtype.kind == "U" else np.concatenate(arrays, dtype=dtype, casting="no")
    if len(together) != sum(counts) or (check and list(map(len, arrays)) != counts):
        raise ValueError("not a value for every row")
    return together


def _spread(name: str, array: Array, unnamed: str) -> dict[str, Array]:
    if name == "" and array.ndim == 2:
        return {str(i): array[:, i] for i in range(array.shape[1])}
    return {str(name) or unnamed: array}


def _told(packed: Packed, revision: str) -> dict[str, pa.Array]:
    """The columns of `SCHEMA`."""
    counts, columns = packed.counts, dict(packed.told)
    of_request = np.repeat(np.arange(len(counts)), counts)
    if len(of_request) != len(counts):
        columns = {name: array.take(pa.array(of_request)) for name, array in columns.items()}
    row = np.arange(len(of_request)) - (np.cumsum(counts) - counts)[of_request]
    columns |= {"row": pa.array(row, pa.int64()), "revision": pa.repeat(revision, len(of_request))}
    return {name: columns[name] for name in SCHEMA.names}


def _without_objects(array: Array) -> Array | pa.Array:
    return _array(array.tolist()) if array.dtype.kind == "O" and array.ndim == 1 else array


def _arrow(array: Array | pa.Array) -> pa.Array:
    if isinstance(array, pa.Array):
        return array
    if array.ndim > 1:
        inner = _arrow(array.reshape(len(array) * array.shape[1], *array.shape[2:]))
        return pa.ListArray.from_arrays(np.arange(len(array) + 1, dtype=np.int32) * array.shape[1], inner)
    if wide := _WIDE.get(array.dtype.kind):
        return pa.array(array.astype(wide, copy=False))
    return _array(_listed(array))


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
