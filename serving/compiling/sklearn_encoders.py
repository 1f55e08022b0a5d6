"""scikit-learn's encoders as tables: every category has a row, looked up as the encoder itself writes it.

The table is made by the fitted encoder, which transforms each of its categories, an unknown one and a missing one; so
dropped and infrequent categories, and what is made of unknown ones, come out as they are. Where the encoder refuses a
value, its position is beyond the table and the lookup fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from onnx import TensorProto, helper
from skl2onnx.common.data_types import DoubleTensorType, Int64TensorType, StringTensorType
from sklearn import preprocessing

from serving.compiling.conversion import NotConvertible
from serving.compiling.drawing import UNKNOWN
from serving.compiling.sklearn_writer import Writer
from serving.compiling.trees import ML
from serving.runtime.compiled import MISSING
from serving.runtime.exchange import Array

KINDS = tuple(
    getattr(preprocessing, name)
    for name in ("OneHotEncoder", "OrdinalEncoder", "TargetEncoder")
    if hasattr(preprocessing, name)
)
"""TargetEncoder came with scikit-learn 1.3."""

_KEYS = {StringTensorType: object, Int64TensorType: np.int64, DoubleTensorType: np.float64}


def _write(_: Any, operator: Any, container: Any) -> None:
    encoder, writer = operator.raw_operator, Writer(operator, container)
    parts = []
    for position, (name, dtype) in enumerate(_columns(writer)):
        keys, rows = _table(encoder, position, dtype)
        found = writer.step("LabelEncoder", [name], f"found_{position}", ML, **_labels(keys))
        table = writer.constant(rows, f"table_{position}")
        parts.append(writer.step("Gather", [table, found], f"encoded_{position}", axis=0))
    if len(parts) != len(encoder.categories_):
        raise NotConvertible("an encoder's columns do not fit its input")
    deep = writer.step("Concat", parts, "encoded", axis=2) if len(parts) > 1 else parts[0]
    writer.node("Squeeze", [deep, writer.constant(np.array([1], np.int64), "axis")], writer.targets[0])


def _columns(writer: Writer) -> Iterator[tuple[str, Any]]:
    """Name and type of each column that goes into the encoder, (rows, 1)."""
    for number, part in enumerate(writer.inputs):
        dtype = next((dtype for kind, dtype in _KEYS.items() if isinstance(part.type, kind)), None)
        if dtype is None:
            raise NotConvertible(f"an encoder of {type(part.type).__name__} is not converted")
        width = part.type.shape[1]
        if width == 1:
            yield part.full_name, dtype
            continue
        for position in range(width):
            where = writer.constant(np.array([position], np.int64), f"where_{number}_{position}")
            yield writer.step("Gather", [part.full_name, where], f"column_{number}_{position}", axis=1), dtype


def _table(encoder: Any, position: int, dtype: Any) -> tuple[list[Any], Array]:
    """Keys, and a row for each; one row more where unknown values have one."""
    known = list(np.asarray(encoder.categories_[position]).tolist())
    if dtype is object and not all(value is None or isinstance(value, str) for value in known if value == value):
        raise NotConvertible("an encoder has categories of another type than its column")
    keys = [value for value in known if value is not None and value == value]
    if not keys:
        raise NotConvertible("an encoder knows no category of a column")
    rows, unknown = _encoded(encoder, position, keys), _tried(encoder, position, _unknown(keys))
    if dtype is not np.int64:  # integers are never missing
        missing = _tried(encoder, position, None if dtype is object else np.nan)
        if missing is None and unknown is not None:
            raise NotConvertible("an encoder takes unknown values and refuses missing ones")
        if missing is not None:
            keys, rows = [*keys, MISSING if dtype is object else np.nan], np.concatenate([rows, missing])
    return keys, rows if unknown is None else np.concatenate([rows, unknown])


def _unknown(keys: list[Any]) -> Any:
    return UNKNOWN if isinstance(keys[0], str) else max(keys) + 1


def _tried(encoder: Any, position: int, value: Any) -> Array | None:
    """None where the encoder refuses it."""
    try:
        return _encoded(encoder, position, [value])
    except (ValueError, TypeError):
        return None


def _encoded(encoder: Any, position: int, values: list[Any]) -> Array:
    """What the encoder makes of these values in this column, whatever stands in the others."""
    columns = [np.full(len(values), known[0], dtype=np.asarray(known).dtype) for known in encoder.categories_]
    columns[position] = np.array(values, dtype=object if columns[position].dtype.kind == "O" else None)
    names = getattr(encoder, "feature_names_in_", None)
    rows = pd.DataFrame(dict(enumerate(columns)))
    rows = rows.to_numpy() if names is None else rows.set_axis(names, axis=1)
    result = encoder.transform(rows)
    dense = np.asarray(result.toarray() if hasattr(result, "toarray") else result, dtype=np.float64)
    ends = np.cumsum(_widths(encoder, dense.shape[1]))
    return dense[:, ends[position - 1] if position else 0 : ends[position]]


def _widths(encoder: Any, total: int) -> list[int]:
    """Output columns of each input column."""
    columns = len(encoder.categories_)
    if isinstance(encoder, preprocessing.OneHotEncoder):
        return list(encoder._n_features_outs)
    return [total // columns] * columns


def _labels(keys: list[Any]) -> dict[str, Any]:
    """Attributes of the operator that finds a key's position; an unknown one is behind the last."""
    kind = {str: TensorProto.STRING, int: TensorProto.INT64, float: TensorProto.DOUBLE}[type(keys[0])]
    values = [value.encode() for value in keys] if isinstance(keys[0], str) else keys
    return {
        "keys_tensor": helper.make_tensor("keys", kind, [len(keys)], values),
        "values_tensor": helper.make_tensor("values", TensorProto.INT64, [len(keys)], list(range(len(keys)))),
        "default_tensor": helper.make_tensor("default", TensorProto.INT64, [1], [len(keys)]),
    }


def _shape(operator: Any) -> None:
    encoder = operator.raw_operator
    width = len(encoder.get_feature_names_out())
    operator.outputs[0].type = DoubleTensorType([operator.inputs[0].type.shape[0], width])


CONVERTERS: dict[type, Callable[..., None]] = dict.fromkeys(KINDS, _write)
"""By class, for skl2onnx."""

SHAPES: dict[type, Callable[[Any], None]] = dict.fromkeys(KINDS, _shape)
"""By class, for skl2onnx."""
