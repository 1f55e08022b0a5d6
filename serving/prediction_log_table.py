"""Served requests as one table of the prediction log.

At full speed all requests have the same columns as arrays, and then no value becomes a Python object: arrays are put
end to end and handed to Arrow. Whatever is not like that (lists, frames, answers of another length than the rows) is
taken value by value. Both ways give the same columns of the same types.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from serving.prediction_log_entry import NOTHING_PRIVATE, Columns, Privacy, Served, as_text

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

_Array = np.ndarray[Any, Any]


def tabulate(batch: Sequence[Served], revision: str, privacy: Privacy = NOTHING_PRIVATE) -> pa.Table:
    """One table of several requests; a column that a request does not have is null in its rows."""
    table = _of_arrays(batch, revision, privacy)
    if table is not None:
        return table
    alike: dict[object, list[Served]] = {}
    for served in batch:
        alike.setdefault((_layout(served.inputs), _layout(served.outputs)), []).append(served)
    return joined([_of_alike(part, revision, privacy, several=len(alike) > 1) for part in alike.values()])


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
    return count_rows(served.inputs) if served.count is None else served.count


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


def _of_alike(batch: Sequence[Served], revision: str, privacy: Privacy, *, several: bool) -> pa.Table:
    table = _of_arrays(batch, revision, privacy) if several else None
    return _of_values(batch, revision, privacy) if table is None else table


def _of_arrays(batch: Sequence[Served], revision: str, privacy: Privacy) -> pa.Table | None:
    """The table, where all requests have the same columns as arrays with a value for every row."""
    counts = [rows_of(served) for served in batch]
    try:
        inputs = _end_to_end([served.inputs for served in batch], counts, _INPUT, check=_guessed(batch))
        outputs = _end_to_end([served.outputs for served in batch], counts, _OUTPUT, check=True)
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    data = {f"input.{name}": array for name, array in inputs.items()}
    data |= {f"output.{name}": array for name, array in outputs.items()}
    told = _told(batch, counts, revision)
    columns = told | {name: _arrow(array) for name, array in data.items() if not privacy.drops(name)}
    return pa.table(
        {
            name: _hashed(array, privacy) if privacy.hashes(name) else array
            for name, array in columns.items()
            if not privacy.drops(name)
        }
    )


def _guessed(batch: Sequence[Served]) -> bool:
    """Whether it was not told how many rows each request has."""
    return any(served.count is None for served in batch)


def _end_to_end(values: Sequence[Any], counts: list[int], unnamed: str, *, check: bool) -> dict[str, _Array]:
    """Arrays of several requests as one; any of several exceptions where they are no arrays that go together.

    `check` looks at every array's length: that takes as long as all the rest.
    """
    first = values[0]
    if not isinstance(first, Mapping):
        return _spread("", _one(values, counts, check), unnamed)
    if any(len(value) != len(first) for value in values):
        raise ValueError("not the same columns")
    columns: dict[str, _Array] = {}
    for name in first:
        columns |= _spread(name, _one([value[name] for value in values], counts, check), unnamed)
    return columns


def _one(arrays: Sequence[_Array], counts: list[int], check: bool) -> _Array:
    dtype = arrays[0].dtype
    together = np.concatenate(arrays) if dtype.kind == "U" else np.concatenate(arrays, dtype=dtype, casting="no")
    if len(together) != sum(counts) or (check and list(map(len, arrays)) != counts):
        raise ValueError("not a value for every row")
    return together


def _spread(name: str, array: _Array, unnamed: str) -> dict[str, _Array]:
    if name == "" and array.ndim == 2:
        return {str(i): array[:, i] for i in range(array.shape[1])}
    return {str(name) or unnamed: array}


def _told(batch: Sequence[Served], counts: list[int], revision: str) -> dict[str, pa.Array]:
    """The columns of `SCHEMA`."""
    ends = np.cumsum(counts)
    rows = int(ends[-1])
    seconds = np.fromiter((served.at for served in batch), np.float64, len(batch))
    each = {
        "request_id": [served.request_id for served in batch],
        "timestamp": (seconds * 1e6).astype(np.int64),
        "mode": [served.mode for served in batch],
        "entity": [served.entity for served in batch],
        "latency_ms": [served.latency_ms for served in batch],
    }
    columns = {name: pa.array(values, SCHEMA.field(name).type) for name, values in each.items()}
    if rows != len(batch):
        of_row = pa.array(np.repeat(np.arange(len(batch)), counts))
        columns = {name: array.take(of_row) for name, array in columns.items()}
    row = np.arange(rows) - np.repeat(ends - counts, counts)
    return {"row": pa.array(row, pa.int64()), "revision": pa.repeat(revision, rows)} | columns


def _arrow(array: _Array) -> pa.Array:
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
