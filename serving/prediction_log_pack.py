"""Served requests put together for the process that writes the prediction log.

At full speed all requests have the same columns as arrays, and then no value becomes a Python object: arrays are put
end to end, a hundred requests at a time, which is several times cheaper than handing over thousands of small ones.
Whatever is not like that (lists, frames, answers of another length than the rows) is handed over as it is.
Only NumPy is needed here: Arrow is the writer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.prediction_log_entry import Served
from serving.stacked_columns import Array, StackedColumns, alike, end_to_end

_DAY = 86_400

_OBJECT = 100
"""About how many bytes an array or value takes besides what is in it."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Several requests of one day, with their arrays end to end. By request, where nothing else is said."""

    request_ids: Sequence[str]
    at: Sequence[float]
    modes: Sequence[str]
    entities: Sequence[str | None]
    latencies: Sequence[float]
    counts: Sequence[int]
    """Rows of each."""
    inputs: Mapping[str, Array]
    """By column, for all rows; of a column without a name, the name is empty."""
    outputs: Mapping[str, Array]


def pack(batch: Sequence[Served]) -> Packed | None:
    """None where they do not have the same columns as arrays with a value for every row, or not the same day."""
    ids, at, modes, entities, latencies, inputs, outputs, told = zip(*batch)  # noqa: B905 - they are as long
    if day_of(min(at)) != day_of(max(at)):
        return None
    guessed = None in told
    counts = [rows_of(served) for served in batch] if guessed else told
    try:
        columns = _end_to_end(inputs, counts, check=guessed)
        answers = _end_to_end(outputs, counts, check=True)
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    return Packed(ids, at, modes, entities, latencies, counts, columns, answers)


def day_of(at: float) -> int:
    """Days since the epoch."""
    return int(at // _DAY)


def size_of(served: Served) -> int:
    """About how many bytes a request keeps."""
    return _bytes_of(served.inputs) + _bytes_of(served.outputs)


def rows_of(served: Served) -> int:
    return count_rows(served.inputs) if served.rows is None else served.rows


def count_rows(value: Any) -> int:
    """Into how many rows of the log a request's inputs fall."""
    if isinstance(value, Mapping):
        return max((count_rows(v) for v in value.values()), default=1)
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0:
        return 1
    return max(1, len(value))


def _bytes_of(value: Any) -> int:
    if isinstance(value, StackedColumns):
        return sum(map(_bytes_of, value.arrays))
    if isinstance(value, Mapping):
        return sum(map(_bytes_of, value.values()))
    return _OBJECT + int(getattr(value, "nbytes", count_rows(value) * _OBJECT))


def _end_to_end(values: Sequence[Any], counts: Sequence[int], *, check: bool) -> Mapping[str, Array]:
    """Arrays of several requests as one; any of several exceptions where they are no arrays that go together.

    `check` looks at every array's length: that takes as long as all the rest.
    """
    first = values[0]
    if not isinstance(first, Mapping):
        return {"": _one(values, counts, check)}
    if alike(values):
        return end_to_end(values, ())
    if any(len(value) != len(first) for value in values):
        raise ValueError("not the same columns")
    return {name: _one([value[name] for value in values], counts, check) for name in first}


def _one(arrays: Sequence[Array], counts: Sequence[int], check: bool) -> Array:
    dtype = arrays[0].dtype
    together = np.concatenate(arrays) if dtype.kind == "U" else np.concatenate(arrays, dtype=dtype, casting="no")
    if len(together) != sum(counts) or (check and list(map(len, arrays)) != list(counts)):
        raise ValueError("not a value for every row")
    return together
