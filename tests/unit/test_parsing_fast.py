"""Decoders made for a plan answer as reading value by value does, and no body raises anything unforeseen."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from serving.runtime import parsing_fast_columns, parsing_fast_tensors
from serving.runtime.exchange import Raw, Rows, ServingError
from serving.runtime.parsing import Parser
from serving.runtime.parsing_columns import ColumnReader
from serving.runtime.parsing_fast import FastReader
from serving.runtime.parsing_json import JsonReader
from serving.runtime.parsing_params import ParamReader
from serving.runtime.parsing_tensors import TensorReader
from serving.runtime.plan import KINDS, Column, Param, Plan, Tensor

JSON, CSV = "application/json", "text/csv"
NAMES = ("a", "b", "ü", "a b", "", "data", "c0", "\U0001f600")
PARAMS = (Param("p", "double", 1.0), Param("many", "long", [1], (-1,)), Param("when", "datetime", "2024-01-01"))

GOOD: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6),
    "double": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70),
    "string": st.text(max_size=5),
    "binary": st.binary(max_size=6).map(lambda value: base64.b64encode(value).decode()),
    "datetime": st.integers(-(10**17), 10**17).map(lambda seconds: str(np.datetime64(seconds // 10**8, "s"))),
}
ODD = st.one_of(
    st.sampled_from([None, True, 0, 1, -1, 2.0, 1.5, -0.0, 2**31, -(2**63) - 1, 2**63, 2**64, 10**400, 1e39, 1e308]),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), "3", "3.5", "1e400", "", "x", "\ud800", "ab=="]),
    st.sampled_from(["2024-05-31T12:30:00", "2024-02-30", "1677-12-31", "2262-01-01", "2024-05-31T10", "0", "nan"]),
    st.sampled_from([[], [1], {}, {"a": 1}, [[1.0]]]),
    st.floats(),
    st.integers(),
    st.text(max_size=3),
)


@st.composite
def columns(draw: st.DrawFn) -> tuple[Column, ...]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    return tuple(draw(column(name)) for name in names)


@st.composite
def column(draw: st.DrawFn, name: str) -> Column:
    kind = draw(st.sampled_from(sorted(KINDS)))
    required, nulls, infinite = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    limited = draw(st.integers(0, 2)) == 0
    if not limited or kind not in LIMITED:
        return Column(name, kind, required, nulls, infinite)
    largest = draw(st.sampled_from([None, 2.5, 1e6, 1e30])) if kind in LIMITED[1:5] else None
    categories = None if largest else tuple(draw(st.lists(GOOD[kind], max_size=3)))
    return Column(name, kind, required, nulls, infinite, largest, categories)


LIMITED = ("string", "long", "integer", "double", "float", "boolean")


@st.composite
def requests(draw: st.DrawFn, asked: tuple[Column, ...]) -> Any:
    """Requests to a signature of columns; some of them have something odd."""
    rows = draw(st.integers(1, 3))
    table = {c.name: draw(_values(c, rows)) for c in asked if c.required or draw(st.booleans())}
    if draw(st.integers(0, 3)) == 0:
        table["extra"] = draw(st.lists(ODD, min_size=rows, max_size=rows))
    if draw(st.integers(0, 2)) == 0 and table:
        table[draw(st.sampled_from(list(table)))][0] = draw(ODD)
    order = draw(st.permutations(list(table)))
    body = draw(st.sampled_from(FORMS))(table, order)
    if draw(st.integers(0, 9)) == 0:
        body["params"] = draw(st.sampled_from([None, {}, {"p": 2}, {"many": [1, 2]}, {"p": "x"}, {"unknown": 1}, 3]))
    if draw(st.integers(0, 9)) == 0:
        body[draw(st.sampled_from(["more", "inputs", "messages", "dataframe_split"]))] = draw(ODD)
    return body


def _values(asked: Column, rows: int) -> st.SearchStrategy[list[Any]]:
    good = st.sampled_from(asked.categories) if asked.categories else GOOD[asked.kind]
    if asked.largest:
        good = st.sampled_from([0, 1, -2])
    if asked.nulls and asked.kind not in ("boolean", "long", "integer", "binary"):
        good = good | st.none()
    return st.lists(good, min_size=rows, max_size=rows)


def _split(table: dict[str, list[Any]], order: list[str]) -> dict[str, Any]:
    rows = [list(row) for row in zip(*(table[name] for name in order), strict=True)]
    return {"dataframe_split": {"columns": order, "index": list(range(len(rows))), "data": rows}}


def _records(table: dict[str, list[Any]], order: list[str]) -> dict[str, Any]:
    rows = zip(*(table[name] for name in order), strict=True)
    return {"dataframe_records": [dict(zip(order, row, strict=True)) for row in rows]}


def _by_column(table: dict[str, list[Any]], order: list[str]) -> dict[str, Any]:
    return {"inputs": {name: table[name] for name in order}}


def _by_row(key: str) -> Any:
    return lambda table, order: {key: _records(table, order)["dataframe_records"]}


FORMS = (_split, _records, _by_column, _by_row("inputs"), _by_row("instances"))


def same(one: Rows, other: Rows) -> bool:
    """The same columns in the same order, of the same types, with the same values."""
    if list(one.columns) != list(other.columns) or one.count != other.count or one.params != other.params:
        return False
    pairs = [(one.columns[name], other.columns[name]) for name in one.columns]
    return all(a.dtype == b.dtype and a.shape == b.shape and _equal(a, b) for a, b in pairs)


def _equal(a: Any, b: Any) -> bool:
    if a.dtype.kind == "O":
        return bool(a.tolist() == b.tolist() and list(map(type, a)) == list(map(type, b)))
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fM"))


FAST = [
    {"dataframe_split": {"columns": ["s", "a", "b"], "data": [["x", 1.5, 2], ["y", None, 3]]}, "params": {"p": 2}},
    {"dataframe_split": {"columns": ["s", "a"], "index": [7], "data": [["x", 1]]}, "more": [1e300, {}]},
    {"dataframe_split": {"columns": ["s", "a", "more"], "data": [["x", 1, {"any": "thing"}]]}},
    {"dataframe_records": [{"a": 1.5, "b": 2, "s": "x", "more": None}]},
    {"dataframe_records": [{"a": 1.5, "s": "x"}, {"s": "y", "a": None}]},
    {"inputs": {"a": [1.5], "b": [2], "s": ["x"]}},
    {"inputs": [{"a": 1.5, "b": 2, "s": "x"}]},
    {"instances": [{"a": 1.5, "b": 2, "s": "x"}]},
]


@pytest.mark.parametrize("told", FAST)
def test_what_is_as_it_should_be_takes_the_fast_way(told: Any) -> None:
    assert check(PLAN, json.dumps(told).encode()) == "fast"


@pytest.mark.parametrize(
    "told", [{"inputs": [[1, 2.5]]}, {"instances": [[1, None]]}, {"dataframe_split": {"data": [[1, 2]]}}]
)
def test_a_tensor_takes_the_fast_way(told: Any) -> None:
    plan = Plan("sklearn", True, (), (Tensor("", "float32", (-1, 2)),))
    assert check(plan, json.dumps(told).encode()) == "fast"


def check(plan: Plan, body: bytes) -> str:
    """Where the decoders answer, reading value by value gives the same. Tells which way it went."""
    params = ParamReader(plan.params)
    formats = parsing_fast_columns.formats(plan.columns) if plan.columns else parsing_fast_tensors.formats(plan.tensors)
    reader = ColumnReader(plan.columns) if plan.columns else TensorReader(plan.tensors)
    found = outcome(lambda: FastReader(formats, params).json(body))
    if found is None:
        return "slow"
    other = outcome(lambda: JsonReader(reader, params).json(body, JSON))
    assert same(found, other) if isinstance(found, Rows) and isinstance(other, Rows) else found == other
    return "fast" if isinstance(found, Rows) else "refused"


def outcome(read: Callable[[], Any]) -> Any:
    """What was read, or the text of the refusal."""
    try:
        return read()
    except ServingError as error:
        return str(error)


MANY = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))


@MANY
@given(st.data())
def test_columns_are_the_same_by_both_ways(data: st.DataObject) -> None:
    asked = data.draw(columns())
    body = data.draw(requests(asked))
    event(check(Plan("sklearn", True, asked, params=PARAMS), json.dumps(body).encode()))


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Tensor, ...]:
    names = draw(st.just([""]) | st.lists(st.sampled_from(NAMES[:4]), min_size=1, max_size=2, unique=True))
    return tuple(draw(tensor(name)) for name in names)


@st.composite
def tensor(draw: st.DrawFn, name: str) -> Tensor:
    dtype = draw(st.sampled_from(["bool", "int8", "uint8", "int64", "uint64", "float16", "float32", "float64"]))
    shape = draw(st.sampled_from([(-1,), (-1, 1), (-1, 2), (2, 2), (-1, -1), (-1, 2, 2)]))
    largest = draw(st.none() | st.sampled_from([2.5, 1e6])) if dtype != "bool" else None
    return Tensor(name, dtype, shape, draw(st.booleans()), draw(st.booleans()), largest)


@st.composite
def tensor_requests(draw: st.DrawFn, asked: tuple[Tensor, ...]) -> Any:
    """Requests to a signature of tensors; some of them have something odd."""
    rows = draw(st.integers(1, 3))
    nested = {part.name: draw(_nested(part, rows)) for part in asked}
    if draw(st.integers(0, 2)) == 0:
        nested[asked[0].name][0] = draw(ODD)
    only = nested[asked[0].name]
    records = [dict(zip(nested, row, strict=True)) for row in zip(*nested.values(), strict=False)]
    key = draw(st.sampled_from(["inputs", "instances"]))
    named = [{key: nested}, {key: records}, {"dataframe_records": records}]
    frame = {"dataframe_split": {"columns": ["a", "b"], "data": only}}
    plain = [{key: only}, {"dataframe_split": {"data": only}}, frame] if len(asked) == 1 else []
    return draw(st.sampled_from(plain * 2 + named))


def _nested(asked: Tensor, rows: int) -> st.SearchStrategy[list[Any]]:
    value: st.SearchStrategy[Any] = {
        "b": st.booleans(),
        "i": st.integers(-100, 100),
        "u": st.integers(0, 100),
        "f": st.sampled_from([0.5, 1, -7, 1.1, None]) if asked.nulls else st.sampled_from([0.5, 1, -7, 1.1]),
    }[np.dtype(asked.dtype).kind]
    for size in reversed((rows, *asked.shape[1:])):
        value = st.lists(value, min_size=abs(size) or 2, max_size=abs(size) or 2)
    return value


@MANY
@given(st.data())
def test_tensors_are_the_same_by_both_ways(data: st.DataObject) -> None:
    asked = data.draw(tensors())
    event(check(Plan("sklearn", True, (), asked), json.dumps(data.draw(tensor_requests(asked))).encode()))


PLAN = Plan(
    "sklearn",
    True,
    (Column("a", "double"), Column("b", "long", False), Column("s", "string", categories=("x", "y"))),
    params=PARAMS,
)
PARSERS = [
    Parser(PLAN),
    Parser(Plan("sklearn", True, (Column("a", "datetime"), Column("b", "binary"), Column("c", "boolean")))),
    Parser(Plan("sklearn", True, (), (Tensor("", "float32", (-1, 2)),))),
    Parser(Plan("sklearn", True, (), (Tensor("a", "int64", (-1, 2, 2)), Tensor("b", "bool", (-1,))))),
]
VALID = (
    {"dataframe_split": {"columns": ["a", "b", "s"], "data": [[1.5, 2, "x"], [None, 3, "y"]]}, "params": {"p": 2}},
    {"dataframe_records": [{"a": 1.5, "b": 2, "s": "x"}]},
    {"inputs": {"a": [1.5], "b": [2], "s": ["x"]}},
    {"inputs": [[1.5, 2.5]]},
    {"instances": [{"a": [[1, 2], [3, 4]], "b": True}]},
)
VALUES = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "s", "x"]), inner)
)
KEYS = ("dataframe_split", "dataframe_records", "inputs", "instances", "params", "messages", "columns", "data", "a")


def refused_or_read(body: bytes, content_type: str) -> None:
    for parser in PARSERS:
        try:
            read = parser.parse(body, content_type)
        except ServingError as error:
            refusal = error
        else:
            assert isinstance(read, Raw) or read.count > 0
            continue
        assert 400 <= refusal.status < 500
        assert 0 < len(str(refusal).encode()) < 5000


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([JSON, CSV]))
def test_no_bytes_raise_anything_else(body: bytes, content_type: str) -> None:
    refused_or_read(body, content_type)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3) | VALUES)
def test_no_json_raises_anything_else(told: Any) -> None:
    refused_or_read(json.dumps(told).encode(), JSON)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(VALID), st.integers(0, 200), st.integers(0, 8), st.binary(max_size=4))
def test_no_damaged_request_raises_anything_else(told: Any, start: int, length: int, instead: bytes) -> None:
    body = json.dumps(told).encode()
    start %= len(body)
    refused_or_read(body[:start] + instead + body[start + length :], JSON)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"inputs":' * 100_000,
        b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"inputs":[' + b"9" * 10_000 + b"]}",
        b'{"dataframe_records":[{"a":' + b"9" * 10_000 + b',"s":"x"}]}',
        b'{"dataframe_split":{"columns":["a","s"],"data":[["\\ud800","\\ud800"]]}}',
        b'{"dataframe_records":[{"\\ud800":1}]}',
        json.dumps({"inputs": [[1.5, 2.5]]}).encode("utf-16"),
        b'\xef\xbb\xbf{"inputs": [[1.5, 2.5]]}',
        b'{"inputs":[[1,2]],"more":"\xff"}',
        b"a,b\n\x00,1\n",
        b'a,s\n"1,x\n',
        b"a,s\n" + b"1" * 200_000 + b",x\n",
    ],
)
@pytest.mark.parametrize("content_type", [JSON, CSV])
def test_nasty_bodies_are_refused_or_read(body: bytes, content_type: str) -> None:
    refused_or_read(body, content_type)


def test_many_names_do_not_take_longer_than_they_are_long() -> None:
    records = [{f"n{number}": 1} for number in range(50_000)]
    refused_or_read(json.dumps({"dataframe_records": records}).encode(), JSON)


def test_orders_of_columns_are_forgotten_when_there_are_many() -> None:
    parser = Parser(PLAN)
    for number in range(200):
        told = {"columns": ["a", "s", f"extra {number}"], "data": [[1, "x", 0]]}
        rows = parser.parse(json.dumps({"dataframe_split": told}).encode(), JSON)
        assert isinstance(rows, Rows)
        assert rows.columns["a"].tolist() == [1.0]
