"""The same requests to MLflow's own parsing and to ours: the same arrays, but for the documented differences."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.runtime.exchange import Rows, ServingError
from serving.runtime.parsing import Parser
from serving.runtime.plan import Column, Param, Plan, Tensor
from tests.unit.test_parsing_fast import FORMS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns while it is imported
    from mlflow.exceptions import MlflowException
    from mlflow.models.utils import _enforce_params_schema, _enforce_schema
    from mlflow.pyfunc import scoring_server
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

JSON, CSV = "application/json", "text/csv"
DOCUMENT = Path(__file__).parents[2] / "docs" / "serving-protocol.md"
OVERFLOW = "1e999 as a number"
"""Stands for it until the body is text: Python has no such number to write."""

GOOD = {"long": 3, "integer": 3, "double": 1.5, "float": 1.5, "boolean": True, "string": "a"}
GOOD |= {"datetime": "2024-05-31T12:30:00", "binary": "YWI="}
WHOLE, REAL = ("long", "integer"), ("double", "float")

REFUSED, ANSWERED, OTHER = "refused", "answered", "other values"
"""What we do where MLflow answers, refuses, answers."""


@dataclass(frozen=True)
class Case:
    """Values that are odd in columns of these kinds, and how we then differ from MLflow."""

    kinds: tuple[str, ...]
    values: tuple[Any, ...]
    differences: frozenset[str] = frozenset()
    forms: tuple[str, ...] = ("split", "records", "inputs", "inputs by row", "instances", "csv")


def case(kinds: Iterable[str], values: Iterable[Any], *differences: str, **more: Any) -> Case:
    return Case(tuple(kinds), tuple(values), frozenset(differences), **more)


NO_CSV = {"forms": ("split", "records", "inputs", "inputs by row", "instances")}
VALUES = {
    "what is as it should be": case(("long", "integer", "double", "float", "boolean", "string"), ()),
    "a whole number written as a float, in an integer column": case(WHOLE, [2.0, -3.0, 1e3]),
    "a fraction in an integer column": case(WHOLE, [1.5, -0.1], REFUSED),
    "a number out of the range of an integer column": case(WHOLE, [2**63, -(2**63) - 1, 1e300], REFUSED),
    "a boolean in a column of numbers": case(WHOLE + REAL, [True, False], REFUSED),
    "null in an integer column": case(WHOLE, [None, float("nan")]),
    "an infinity in an integer column": case(WHOLE, [float("inf")]),
    "null or NaN in a boolean column": case(["boolean"], [None, float("nan")], REFUSED),
    "anything but true and false in a boolean column": case(["boolean"], [0, 1, 2.5, "yes", ""], REFUSED, **NO_CSV),
    "an integer in a column of floats": case(REAL, [3, -3, 0]),
    "null in a column of floats": case(REAL, [None, float("nan")]),
    "an infinity in a column of floats": case(REAL, [float("inf"), -float("inf")]),
    "a number too large for its column": case(REAL, [OVERFLOW, 10**400], REFUSED),
    "a number too large for 32 bits": case(["float"], [1e39, -1e300], REFUSED),
    "text that spells a number, in a column of numbers": case(REAL, ["3.5", "-2", "1e3"]),
    "text that spells an integer, in an integer column": case(WHOLE, ["3", "-2"]),
    "text that spells a whole number as a float, in an integer column": case(WHOLE, ["3.0", "1e3"], ANSWERED),
    "text in a column of numbers": case(WHOLE + REAL, ["many", "3,5", "0x10"]),
    "text that only Python takes for a number": case(REAL, ["1_000", " 1", "nan", ".5"], REFUSED),
    "anything but text in a string column": case(["string"], [1, 1.5, True], REFUSED),
    "null in a string column": case(["string"], [None, float("nan")], OTHER),
    "text of all sorts": case(["string"], ["", "ü", "東京", "1", "a,b", 'a"b']),
    "text that ends in a null character": case(["string"], ["a\0"], OTHER, **NO_CSV),
    "half a surrogate pair": case(["string"], ["\ud800"], REFUSED, **NO_CSV),
    "a list or an object for a value": case(["string", "boolean", *REAL], [[1], {"a": 1}], REFUSED, **NO_CSV),
    "a date and time": case(["datetime"], [GOOD["datetime"], "2024-05-31T10:00:00"], **NO_CSV),
    "dates in CSV": case(["datetime"], [GOOD["datetime"], "2024-05-31"], ANSWERED, forms=("csv",)),
    "dates of several forms together": case(["datetime"], ["2024-05-31", "2024-05-31 10:00"], ANSWERED, **NO_CSV),
    "whole nanoseconds beside dates": case(["datetime"], [1_700_000_000_000_000_000], ANSWERED, **NO_CSV),
    "NaN in a datetime column": case(["datetime"], [float("nan")], ANSWERED, **NO_CSV),
    "null in a datetime column": case(["datetime"], [None], **NO_CSV),
    "another number, a boolean or no text in a datetime column": case(["datetime"], [True, "3", ""], REFUSED, **NO_CSV),
    "a date without a day, or not of ISO 8601": case(["datetime"], ["2024-05", "31 May 2024"], REFUSED, **NO_CSV),
    "a time with a zone": case(["datetime"], ["2024-05-31T12:30:00Z", "2024-05-31T12:30:00+02:00"], REFUSED, **NO_CSV),
    "a date that nanoseconds cannot hold": case(["datetime"], ["3000-01-01"], REFUSED, **NO_CSV),
    "a date that is none": case(["datetime"], ["2024-02-30", "soon"], **NO_CSV),
    "base64": case(["binary"], ["YWI=", "", "YW\nI="], forms=("split", "records")),
    "characters that are not of base64": case(["binary"], ["YW!I="], REFUSED, forms=("split", "records")),
    "anything but text in a binary column": case(["binary"], [1, None, True], REFUSED, **NO_CSV),
    "binary values in CSV": case(["binary"], ["YWI="], REFUSED, forms=("csv",)),
}


@dataclass(frozen=True)
class Shape:
    """A request to the columns `a` (double) and `b` (string), or to others, and how we differ from MLflow on it."""

    body: Any
    differences: frozenset[str] = frozenset()
    columns: tuple[Column, ...] = (Column("a", "double"), Column("b", "string"))


def shape(body: Any, *differences: str, **more: Any) -> Shape:
    return Shape(body, frozenset(differences), **more)


ONE = (Column("a", "double"),)
SOME = (Column("a", "double"), Column("b", "string", required=False))
ROW = {"a": 1.5, "b": "x"}
SHAPES = {
    "a missing column": shape({"dataframe_records": [{"a": 1.5}]}),
    "an extra column": shape({"dataframe_records": [ROW | {"c": [1]}]}),
    "columns in another order": shape({"dataframe_split": {"columns": ["b", "a"], "data": [["x", 1.5]]}}),
    "a column twice": shape({"dataframe_split": {"columns": ["a", "b", "c", "c"], "data": [[1, "x", 1, 2]]}}, REFUSED),
    "a name twice in an object": shape('{"dataframe_records": [{"a": 1, "b": "x", "a": 2}]}'),
    "a row that is too short": shape({"dataframe_split": {"columns": ["b", "a"], "data": [["x", 1], ["y"]]}}, REFUSED),
    "a row that is too long": shape({"dataframe_split": {"columns": ["a", "b"], "data": [[1.5, "x", 1]]}}),
    "no rows": shape({"dataframe_split": {"columns": ["a", "b"], "data": []}}, REFUSED),
    "no records": shape({"dataframe_records": []}),
    "dataframe_split without columns": shape({"dataframe_split": {"data": [[1.5, "x"]]}}),
    "dataframe_split with an index": shape(
        {"dataframe_split": {"index": [5], "columns": ["a", "b"], "data": [[1.5, "x"]]}}
    ),
    "an index of another length": shape(
        {"dataframe_split": {"index": [5, 6], "columns": ["a", "b"], "data": [[1.5, "x"]]}}, REFUSED
    ),
    "dataframe_split with another key": shape({"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"]], "c": 1}}),
    "rows of dataframe_split as objects": shape({"dataframe_split": {"columns": ["a", "b"], "data": [ROW]}}, REFUSED),
    "data of dataframe_split as an object": shape(
        {"dataframe_split": {"columns": ["a", "b"], "data": {"a": [1.5], "b": ["x"]}}}, REFUSED
    ),
    "the values of the only column": shape({"dataframe_split": {"columns": ["a"], "data": [1, 2.5]}}, columns=ONE),
    "a record without a column that others have": shape({"dataframe_records": [ROW, {"a": 2.5}]}),
    "an instance without a column that others have": shape({"instances": [{"a": 1.5}, {"b": "x"}]}, REFUSED),
    "records as lists": shape({"dataframe_records": [[1.5, "x"]]}),
    "records as an object": shape({"dataframe_records": ROW}),
    "values by name, for one row": shape({"inputs": ROW}),
    "lists and values by name": shape({"inputs": {"a": [1.5, 2.5], "b": "x"}}, REFUSED),
    "columns of different lengths": shape({"inputs": {"a": [1.5, 2.5], "b": ["x"]}}),
    "columns by name as instances": shape({"instances": {"a": [1.5, 2.5], "b": ["x", "y"]}}),
    "lists without names": shape({"inputs": [[1.5, "x"]]}),
    "a list for the only column": shape({"inputs": [1, 2.5, None]}, columns=ONE),
    "instances of the only column": shape({"instances": [1, 2.5]}, columns=ONE),
    "nested lists for the only column": shape({"inputs": [[1], [2.5]]}, columns=ONE),
    "a value without a name": shape({"inputs": 1.5}, columns=ONE),
    "an optional column left out": shape({"dataframe_records": [{"a": 1.5}]}, columns=SOME),
    "an optional column left out of a record": shape({"dataframe_records": [ROW, {"a": 1.5}]}, columns=SOME),
    "nothing but optional columns left out": shape(
        {"dataframe_records": [{"c": 1}]}, REFUSED, columns=(Column("a", "double", False),)
    ),
    "no format": shape({"data": [ROW]}),
    "two formats": shape({"inputs": [ROW], "instances": [ROW]}),
    "a key that means nothing": shape({"dataframe_records": [ROW], "more": 1}),
    "no object": shape([ROW]),
    "UTF-16": shape(json.dumps({"inputs": ROW}).encode("utf-16")),
    "a CSV row with more cells than names": shape(b"a,b\n1,2,y\n", REFUSED),
    "a CSV row with fewer cells than names": shape(b"b,a\nx,1\ny\n", REFUSED),
    "CSV as pandas writes it": shape(b"a,b\n1.5,x\n2.5,y\n"),
    "CSV with its index": shape(b",a,b\n0,1.5,x\n1,2.5,y\n"),
    "CSV with what pandas reads as missing": shape(b"a,b\n,NA\nnan,\nNULL,null\n"),
    "CSV with quotes, blank lines and a mark of byte order": shape(b'\xef\xbb\xbfa,b\n\n1.5,"x,\ny"\n'),
    "CSV with numbers written oddly": shape(b"a,b\n 1.5 ,x\n+2,y\ninf,z\n-Infinity,z\n1e3,z\n.5,z\n01.,z\n"),
    "CSV with plain numbers": shape(b"a,b\n1.5,x\n-2,y\n1e3,z\n.5,z\n01.,z\n+1,z\n"),
    "CSV with integers written oddly": shape(b"a\n01\n 2\n+3\n4.0\n1e3\n", columns=(Column("a", "long"),)),
    "CSV with an overflow": shape(b"a,b\n1e999,x\n"),
    "a name twice in CSV": shape(b"a,b,a\n1.5,x,2\n", REFUSED),
    "CSV without rows": shape(b"a,b\n", REFUSED),
    "no CSV": shape(b""),
    "a CSV number of many digits": shape(b"a,b\n9223372036854775808,x\n", OTHER),
    "booleans in CSV": shape(b"a\nTrue\nfalse\nTRUE\n", columns=(Column("a", "boolean"),)),
    "booleans in CSV as numbers": shape(b"a\n1\n0\n", columns=(Column("a", "boolean"),)),
}

FOUR = (Tensor("", "float64", (-1, 2)),)
WHOLES = (Tensor("", "int32", (-1,)),)
EMPTY = (Tensor("y", "int32", (-1,)),)
CUBES = (Tensor("", "float32", (-1, 2, 2)),)
NAMED = (Tensor("x", "float64", (-1, 2)), Tensor("y", "int64", (-1,)))
ALONE = (Tensor("x", "float32", (-1, 2)),)


@dataclass(frozen=True)
class Nested:
    """A request to tensors, and how we differ from MLflow on it."""

    tensors: tuple[Tensor, ...]
    body: Any
    differences: frozenset[str] = frozenset()


def nested(tensors: tuple[Tensor, ...], body: Any, *differences: str) -> Nested:
    return Nested(tensors, body, frozenset(differences))


TENSORS = {
    "a tensor": nested(FOUR, {"inputs": [[1, 2.5], [None, 3]]}),
    "a tensor as instances": nested(FOUR, {"instances": [[1, 2.5], [2, 3]]}),
    "a tensor of another shape": nested(FOUR, {"inputs": [[1, 2.5, 3]]}),
    "a tensor of another depth": nested(FOUR, {"inputs": [1, 2.5]}),
    "a tensor of uneven lists": nested(FOUR, {"inputs": [[1, 2.5], [1]]}),
    "a tensor that is a value": nested(FOUR, {"inputs": 1}),
    "a tensor without rows": nested(FOUR, {"inputs": []}),
    "a tensor of three dimensions": nested(CUBES, {"inputs": [[[1, 2], [3, 4]]]}),
    "a tensor by a name that it has not": nested(FOUR, {"inputs": {"x": [[1, 2]]}}),
    "no rows in a tensor": nested(EMPTY, {"inputs": {"y": []}}, REFUSED),
    "a fraction in a tensor of integers": nested(WHOLES, {"inputs": [1.5]}, REFUSED),
    "a number out of the range of a tensor of integers": nested(WHOLES, {"inputs": [2**31]}),
    "null in a tensor of integers": nested(WHOLES, {"inputs": [None]}),
    "a boolean in a tensor of numbers": nested(FOUR, {"inputs": [[True, 1]]}, REFUSED),
    "a number too large for a tensor": nested(CUBES, {"inputs": [[[1e39, 2], [3, 4]]]}, REFUSED),
    "text that spells a number, in a tensor": nested(FOUR, {"inputs": [["1", "2.5"]]}),
    "text in a tensor": nested(FOUR, {"inputs": [["a", 2]]}),
    "a tensor as dataframe_split": nested(FOUR, {"dataframe_split": {"columns": ["p", "q"], "data": [[1, 2.5]]}}),
    "a tensor as dataframe_split without columns": nested(FOUR, {"dataframe_split": {"data": [[1, 2.5], [3, 4]]}}),
    "a tensor as records": nested(FOUR, {"dataframe_records": [{"p": 1, "q": 2.5}, {"q": 4, "p": 3}]}),
    "a tensor in one column": nested(FOUR, {"dataframe_split": {"columns": ["p"], "data": [[[1, 2.5]], [[3, 4]]]}}),
    "a flat row of a tensor in one column": nested(CUBES, {"dataframe_records": [{"p": [1, 2, 3, 4]}]}),
    "a nested row of a tensor in one column": nested(CUBES, {"dataframe_records": [{"p": [[1, 2], [3, 4]]}]}, ANSWERED),
    "a frame with too many columns for a tensor": nested(FOUR, {"dataframe_records": [{"p": 1, "q": 2, "r": 3}]}),
    "tensors by name": nested(NAMED, {"inputs": {"x": [[1, 2.5]], "y": [3], "z": 1}}),
    "tensors by name as instances": nested(NAMED, {"instances": [{"x": [1, 2.5], "y": 3}, {"x": [3, 4], "y": 5}]}),
    "tensors by name as records of inputs": nested(NAMED, {"inputs": [{"x": [1, 2.5], "y": 3}]}),
    "tensors by name in a frame": nested(NAMED, {"dataframe_records": [{"x": [1, 2.5], "y": 3}]}),
    "a missing tensor": nested(NAMED, {"inputs": {"x": [[1, 2.5]]}}),
    "tensors with different numbers of rows": nested(NAMED, {"inputs": {"x": [[1, 2.5]], "y": [3, 4]}}, REFUSED),
    "the only tensor without its name": nested(ALONE, {"inputs": [[1, 2.5]]}),
    "the only tensor by its name": nested(ALONE, {"instances": [{"x": [1, 2.5]}]}),
    "tensors in CSV": nested(FOUR, b"p,q\n1,2.5\n"),
}


def theirs(body: bytes, content_type: str, schema: Schema) -> dict[str, Any] | None:
    """What the model would be given by MLflow; None where the request is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if content_type == CSV:
                parsed = scoring_server.parse_csv_input(io.StringIO(body.decode()), schema)
            else:
                data, _ = scoring_server._split_data_and_params(body)  # type: ignore[no-untyped-call]
                parsed = scoring_server.infer_and_parse_data(data, schema)
            given = _enforce_schema(parsed, schema)
        except Exception:  # noqa: BLE001 - whatever MLflow's code raises here is an error 400 or 500 of its server
            return None
    if isinstance(given, np.ndarray):
        return {"": given}
    return {name: np.asarray(given[name]) for name in given}


def ours(body: bytes, content_type: str, plan: Plan) -> dict[str, Any] | None:
    try:
        rows = Parser(plan).parse(body, content_type)
    except ServingError:
        return None
    assert isinstance(rows, Rows)
    assert {len(array) for array in rows.columns.values()} == {rows.count}
    return dict(rows.columns)


def difference(one: dict[str, Any] | None, other: dict[str, Any] | None) -> set[str]:
    if one is None or other is None:
        return set() if one is other else {REFUSED} if one is None else {ANSWERED}
    return set() if list(one) == list(other) and all(_same(one[name], other[name]) for name in one) else {OTHER}


def _same(one: Any, other: Any) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype.kind != "O":
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fM"))
    return [_plain(value) for value in one] == [_plain(value) for value in other]


def _plain(value: Any) -> Any:
    """pandas has NaN for a missing text."""
    return None if value is None or value != value else value


def bodies(kind: str, value: Any, forms: Iterable[str]) -> Iterator[tuple[bytes, str]]:
    """The value in a column `a` of one row, and behind a good value in a column of two."""
    for values in ([value], [GOOD[kind], value]):
        records = [{"a": each, "b": 1.0} for each in values]
        written = {
            "split": {"dataframe_split": {"columns": ["a", "b"], "data": [[each, 1.0] for each in values]}},
            "records": {"dataframe_records": records},
            "inputs": {"inputs": {"a": values, "b": [1.0] * len(values)}},
            "inputs by row": {"inputs": records},
            "instances": {"instances": records},
        }
        for form in forms:
            yield (_csv(values), CSV) if form == "csv" else (_json(written[form]), JSON)


def _json(told: Any) -> bytes:
    return json.dumps(told).replace(json.dumps(OVERFLOW), "1e999").encode()


def _csv(values: list[Any]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["a", "b"])
    writer.writerows([["" if value is None else value, 1.0] for value in values])
    return text.getvalue().replace(OVERFLOW, "1e999").encode()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """MLflow warns of every extra column."""
    logger = logging.getLogger("mlflow.models.utils")
    logger.disabled = True
    yield
    logger.disabled = False


@pytest.mark.parametrize("title", VALUES)
def test_values(title: str) -> None:
    asked, seen = VALUES[title], set()
    for kind in asked.kinds:
        plan = Plan("sklearn", True, (Column("a", kind), Column("b", "double")))
        schema = Schema([ColSpec(kind, "a"), ColSpec("double", "b")])
        for value in asked.values or (GOOD[kind],):
            for body, content_type in bodies(kind, value, asked.forms):
                found = difference(ours(body, content_type, plan), theirs(body, content_type, schema))
                assert found <= asked.differences, (kind, body, found)
                seen |= found
    assert seen == asked.differences


PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "long": st.integers(-(2**63), 2**63 - 1),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "double": st.none() | st.floats() | st.integers(-(2**70), 2**70),
    "float": st.none() | st.floats(width=32) | st.integers(-(2**30), 2**30),
    "boolean": st.booleans(),
    "string": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4),
}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_generated_requests(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(PLAIN)), min_size=1, max_size=5))
    columns = [Column(f"c{position}", kind) for position, kind in enumerate(kinds)]
    count = data.draw(st.integers(1, 3))
    table = {c.name: data.draw(st.lists(PLAIN[c.kind], min_size=count, max_size=count)) for c in columns}
    order = data.draw(st.permutations(list(table)))
    body = json.dumps(data.draw(st.sampled_from(FORMS))(table, order)).encode()
    schema = Schema([ColSpec(column.kind, column.name) for column in columns])
    found = ours(body, JSON, Plan("sklearn", True, tuple(columns)))
    assert found is not None
    assert difference(found, theirs(body, JSON, schema)) == set()


@pytest.mark.parametrize("title", SHAPES)
def test_shapes(title: str) -> None:
    asked = SHAPES[title]
    body, content_type = _written(asked.body)
    schema = Schema([ColSpec(column.kind, column.name, required=column.required) for column in asked.columns])
    found = ours(body, content_type, Plan("sklearn", True, asked.columns))
    assert difference(found, theirs(body, content_type, schema)) == asked.differences, found


@pytest.mark.parametrize("title", TENSORS)
def test_tensors(title: str) -> None:
    asked = TENSORS[title]
    body, content_type = _written(asked.body)
    schema = Schema([TensorSpec(np.dtype(t.dtype), t.shape, t.name or None) for t in asked.tensors])
    found = ours(body, content_type, Plan("sklearn", True, (), asked.tensors))
    assert difference(found, theirs(body, content_type, schema)) == asked.differences, found


def _written(body: Any) -> tuple[bytes, str]:
    if isinstance(body, bytes):
        return body, JSON if body[:1] in b"{\xff" and body else CSV
    return body.encode() if isinstance(body, str) else json.dumps(body).encode(), JSON


PARAMS = {
    "double": 1.0,
    "float": 1.0,
    "long": 1,
    "integer": 1,
    "boolean": True,
    "string": "a",
    "datetime": "2024-05-31T12:30:00",
}
GIVEN = [1, 2.5, 2.0, True, "a", "3", None, [1], [1, 2.5], ["a", None], [], {}, "2024-05-31", "2024-05-31T10:00:00"]
GIVEN += [2**40, 10**400, "NaT", "soon", [[1]], "2024-05-31T10:00:00.123456789"]


@pytest.mark.parametrize("kind", PARAMS)
@pytest.mark.parametrize("shape", [None, (-1,)])
def test_params_are_read_as_mlflow_reads_them(kind: str, shape: tuple[int, ...] | None) -> None:
    default = PARAMS[kind] if shape is None else [PARAMS[kind]]
    schema = ParamSchema([ParamSpec("p", kind, default, shape)])
    parser = Parser(Plan("sklearn", True, (Column("a", "double"),), params=(Param("p", kind, None, shape),)))
    for value in GIVEN:
        body = json.dumps({"dataframe_records": [{"a": 1}], "params": {"p": value, "unknown": 1}}).encode()
        try:
            expected = _enforce_params_schema({"p": value, "unknown": 1}, schema)
        except MlflowException:
            expected = None
        except ValueError:  # uneven lists make MLflow answer 500
            expected = None
        try:
            rows = parser.parse(body, JSON)
        except ServingError:
            found = None
        else:
            assert isinstance(rows, Rows)
            found = rows.params
        assert found == expected, value
        assert repr(found) == repr(expected), value


def test_every_difference_is_documented() -> None:
    differ = {title for cases in (VALUES, SHAPES, TENSORS) for title, told in cases.items() if told.differences}
    documented = set(re.findall(r"^\| ([^|]+?) \| [^|]+ \| [^|]+ \|$", DOCUMENT.read_text(), re.MULTILINE))
    assert documented - {"a request with", "---"} == differ
