"""What a model answers, held against what MLflow's own encoder writes of it."""

from __future__ import annotations

import datetime
import io
import json
import warnings
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from serving.runtime.exchange import ModelError, Predictions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns while it is imported
    from mlflow.pyfunc import scoring_server

    from serving.runtime.native_answers import from_response, predictions_of, written

DAYS = pd.DatetimeIndex([pd.Timestamp("2024-02-29"), pd.Timestamp("2024-03-01 12:30:00.000001")])

ARRAYS: list[Any] = [
    np.array([1, 0, 1]),
    np.array([1, 255], dtype=np.uint8),
    np.array([0.1, 2.5], dtype=np.float32),
    np.array([[0.25, 0.75], [1.0, 0.0]]),
    np.zeros((2, 2, 3)),
    np.array([True, False]),
    np.array(["stays", "leaves"]),
    np.array(["stays", "leaves"], dtype=object),
    np.array(["stays", None, 1, 2.5, True], dtype=object),
    DAYS.to_numpy(),
    [1, 2, 3],
    [1.0, 2.0],
    [1, 2.0],
    [True, False],
    ["a", "b"],
    [None, "a"],
    [np.float32(0.1), np.float64(0.1)],
    [np.int64(3), np.bool_(True), np.str_("a")],
    pd.Series([1, 2]),
    pd.Series([1.5, 2.5], name="score", index=[7, 8]),
    pd.DataFrame({"a": [1, 2], "b": [0.5, 1.0], "c": ["x", "y"], "d": [True, False]}),
    pd.DataFrame({0: [1, 2], 1: [0.5, 1.0]}),
    pd.DataFrame({"a": np.array([0.1], dtype=np.float32)}),
    pd.DataFrame({"when": DAYS, "there": DAYS.tz_localize("Europe/Berlin")}),
    pd.DataFrame({"a": pd.Series(["x", None]), "b": pd.Series([1, 2], dtype="Int64")}),
    pd.DataFrame({"a": pd.Series(["x", "y", "x"], dtype="category")}),
    pd.DataFrame({"a": pd.Series(["x", "y"], dtype="string")}),
]

OTHERS: list[Any] = [
    1.5,
    "text",
    None,
    [],
    {"a": [1, 2], "b": np.array([1.5, 2.5])},
    [[1, 2], [3, 4]],
    [{"a": 1}, {"a": 2}],
    [2**70],
    np.float64(1.5),
    np.array(3),
    np.array([b"ab", b"c"], dtype=object),
    np.array(["2024-02-29"], dtype="datetime64[D]"),
    np.array([[1, "a"]], dtype=object),
    [datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)],
    pd.DataFrame({"a": [[1, 2], [3]]}),
    pd.DataFrame({True: [1]}),
    pd.DataFrame({"a": [b"ab"]}),
]


def mlflow_writes(answer: Any) -> Any:
    text = io.StringIO()
    scoring_server.predictions_to_json(answer, text)  # type: ignore[no-untyped-call]
    return json.loads(text.getvalue())["predictions"]


def told(predictions: Predictions) -> Any:
    """The JSON value of predictions."""
    columns = {name: array.tolist() for name, array in predictions.columns.items()}
    if predictions.frame:
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return columns[""]


@pytest.mark.parametrize("answer", ARRAYS, ids=repr)
def test_answers_with_rows_are_arrays_of_the_values_that_mlflow_writes(answer: Any) -> None:
    predictions = predictions_of(answer)
    assert predictions is not None
    assert predictions.count == len(answer)
    assert repr(told(predictions)) == repr(mlflow_writes(answer))


@pytest.mark.parametrize("answer", OTHERS, ids=repr)
def test_other_answers_are_written_by_mlflow(answer: Any) -> None:
    assert predictions_of(answer) is None
    answered = written(answer, pd.DataFrame({"a": [1]}), log=True)
    assert json.loads(answered.predictions) == answered.outputs == mlflow_writes(answer)
    assert answered.inputs == {"a": [1]}
    assert not answered.whole


def test_columns_of_the_same_name_are_left_to_mlflow() -> None:
    assert predictions_of(pd.DataFrame([[1, 2]], columns=["a", "a"])) is None
    assert predictions_of(pd.DataFrame([[1, 2]], columns=["1", 1])) is None


@pytest.mark.parametrize("answer", [{"a": float("nan")}, [[float("inf")]], np.array(float("-inf"))], ids=repr)
def test_nan_and_infinities_are_no_answer(answer: Any) -> None:
    with pytest.raises(ModelError, match="NaN or an infinity"):
        written(answer, None, log=False)


def test_text_that_only_looks_like_them_is_one() -> None:
    assert written({"a": "NaN"}, None, log=False).predictions == b'{"a": "NaN"}'


def test_what_is_no_json_is_an_error_of_the_model() -> None:
    with pytest.raises(ModelError, match="cannot be written as JSON"):
        written({"a": object()}, None, log=False)


def test_inputs_are_told_in_types_that_the_front_knows() -> None:
    frame = pd.DataFrame({"when": DAYS[:1], "price": [Decimal("1.50")], "raw": [b"ab"], "n": [np.int32(1)]})
    inputs = written({}, frame, log=True).inputs
    assert inputs == {"when": ["2024-02-29T00:00:00"], "price": ["1.50"], "raw": ["YWI=\n"], "n": [1]}


def test_a_chat_answer_is_the_whole_body() -> None:
    answer = from_response('{"choices": []}', {"messages": []}, log=True)
    assert (answer.predictions, answer.whole) == (b'{"choices": []}', True)
    assert from_response('{"predictions": [1]}', None, log=False).predictions == b"[1]"
