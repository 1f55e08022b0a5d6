"""What answers look like: equal, as JSON, to what MLflow's scoring server writes of the same predictions."""

from __future__ import annotations

import datetime
import io
import json
import uuid
import warnings
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serving.runtime.answers import error, write
from serving.runtime.exchange import ModelError, Predictions, Written

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns while it is imported
    from mlflow.pyfunc.scoring_server import predictions_to_json

FINITE: dict[str, Any] = {"allow_nan": False, "allow_infinity": False}
NUMBERS = ["float64", "float32", "float16", "int64", "int32", "int8", "uint64", "uint8", "bool", ">f8", ">i4"]
OBJECTS = st.one_of(
    st.text(max_size=5),
    st.none(),
    st.integers(),
    st.booleans(),
    st.floats(**FINITE),
    st.sampled_from(["\ud800", np.float32(1.1), np.int8(3), b"bytes", np.str_("s"), [1, "a"], {"k": [None]}]),
    st.datetimes() | st.dates() | st.times(),
)


def mlflow_writes(answer: Any) -> Any:
    text = io.StringIO()
    predictions_to_json(answer, text)  # type: ignore[no-untyped-call]
    return json.loads(text.getvalue())


def of_array(array: Any) -> Predictions:
    return Predictions({"": array}, len(array))


def of_frame(frame: pd.DataFrame) -> Predictions:
    return Predictions({str(name): frame[name].to_numpy() for name in frame}, len(frame), frame=True)


def objects(values: list[Any]) -> Any:
    array = np.empty(len(values), object)
    for position, value in enumerate(values):
        array[position] = value
    return array


def values(dtype: str) -> st.SearchStrategy[Any]:
    kind = np.dtype(dtype)
    return arrays.from_dtype(kind, **FINITE) if kind.kind == "f" else arrays.from_dtype(kind)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(NUMBERS))
def test_arrays_of_numbers(data: st.DataObject, dtype: str) -> None:
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
    array = data.draw(arrays.arrays(dtype, shape, elements=values(dtype)))
    for given_array in (array, array.T, array[::-1]):
        assert json.loads(write(of_array(given_array))) == mlflow_writes(given_array)


@settings(max_examples=200, deadline=None)
@given(st.lists(OBJECTS, max_size=4))
def test_arrays_of_objects(told: list[Any]) -> None:
    assert json.loads(write(of_array(objects(told)))) == mlflow_writes(objects(told))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)), min_size=1, max_size=3))  # noqa: DTZ001
@pytest.mark.parametrize("unit", ["ns", "us", "s", "D"])
def test_dates(unit: str, told: list[datetime.datetime]) -> None:
    array = np.array(told, f"datetime64[{unit}]")
    assert json.loads(write(of_array(array))) == mlflow_writes(array)
    if unit != "D":
        frame = pd.DataFrame({"when": array})
        assert json.loads(write(of_frame(frame))) == mlflow_writes(frame)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_frames(data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 3))
    columns: dict[str, Any] = {}
    for name in data.draw(st.lists(st.text(max_size=3), min_size=1, max_size=4, unique=True)):
        dtype = data.draw(st.sampled_from(NUMBERS[:-2]) | st.none())
        if dtype:
            columns[name] = data.draw(arrays.arrays(dtype, rows, elements=values(dtype)))
        else:
            columns[name] = objects(data.draw(st.lists(OBJECTS, min_size=rows, max_size=rows)))
    frame = pd.DataFrame({name: pd.Series(column, dtype=column.dtype) for name, column in columns.items()})
    assert json.loads(write(of_frame(frame))) == mlflow_writes(frame)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "object"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_the_models_error(dtype: str, value: float) -> None:
    for told in ([value], [1.5, value]):
        array = np.array(told, dtype)
        for predictions in (of_array(array), of_array(array.reshape(1, -1)), of_frame(pd.DataFrame({"a": array}))):
            with pytest.raises(ModelError):
                write(predictions)


@pytest.mark.parametrize(
    "value", [1 + 2j, {1, 2}, object(), uuid.uuid4(), Decimal(1), [float("nan")], datetime.timedelta(1)]
)
def test_what_json_does_not_know_is_the_models_error(value: Any) -> None:
    with pytest.raises(ModelError):
        write(of_array(objects([value])))
    with pytest.raises(ModelError):
        write(Predictions({"a": objects([value])}, 1, frame=True))


def test_a_frame_keeps_the_order_of_its_columns() -> None:
    frame = Predictions({"b": np.array([1, 2]), "a": np.array(["x", None], object)}, 2, frame=True)
    assert write(frame) == b'{"predictions":[{"b":1,"a":"x"},{"b":2,"a":null}]}'


def test_what_is_written_already_stays_as_it_is() -> None:
    assert write(Written(b'{"a": 1}')) == b'{"predictions":{"a": 1}}'
    assert write(Written(b'{"choices": []}', whole=True)) == b'{"choices": []}'


def test_errors() -> None:
    told = json.loads(error("BAD_REQUEST", 'a "quoted" ü \ud800'))
    assert told == {"error_code": "BAD_REQUEST", "message": 'a "quoted" ü ?'}
