"""How requests are read, and what is said of those that are refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serving.runtime.exchange import BadRequestError, MediaTypeError, Raw, Rows, ServingError
from serving.runtime.parsing import Parser
from serving.runtime.plan import Column, Param, Plan, Tensor
from tests.unit.test_parsing_fast import same

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"


def parser(*columns: Column, **more: Any) -> Parser:
    return Parser(Plan("sklearn", True, columns, **more))


def read(asked: Parser, told: Any, content_type: str = JSON) -> Rows:
    body = told if isinstance(told, bytes) else json.dumps(told).encode()
    rows = asked.parse(body, content_type)
    assert isinstance(rows, Rows)
    return rows


def refusal(asked: Parser, told: Any, content_type: str = JSON) -> str:
    with pytest.raises(BadRequestError) as raised:
        read(asked, told, content_type)
    return str(raised.value)


def records(*values: Any, name: str = "a") -> Any:
    return {"dataframe_records": [{name: value} for value in values]}


class TestRows:
    PARSER = parser(Column("a", "double"), Column("s", "string", False), Column("n", "integer"))

    @pytest.mark.parametrize(
        "told",
        [
            {"dataframe_split": {"columns": ["n", "s", "a", "extra"], "data": [[1, "x", 2, 0], [3, None, None, 0]]}},
            {"dataframe_records": [{"n": 1, "s": "x", "a": 2.0}, {"n": 3, "a": None, "s": None}]},
            {"inputs": {"n": [1, 3], "s": ["x", None], "a": [2, float("nan")]}},
            {"instances": [{"s": "x", "n": 1, "a": 2}, {"n": 3.0, "s": None, "a": None}]},
            b"n,s,a\n1,x,2.0\n3,,NA\n",
        ],
    )
    def test_arrays_have_the_order_and_the_types_of_the_plan(self, told: Any) -> None:
        rows = read(self.PARSER, told, CSV if isinstance(told, bytes) else JSON)
        assert [(name, str(array.dtype)) for name, array in rows.columns.items()] == [
            ("a", "float64"),
            ("s", "object"),
            ("n", "int32"),
        ]
        np.testing.assert_array_equal(rows.columns["a"], [2.0, np.nan])
        assert rows.columns["s"].tolist() == ["x", None]
        assert rows.columns["n"].tolist() == [1, 3]
        assert (rows.count, rows.params) == (2, None)

    def test_an_optional_column_may_be_left_out(self) -> None:
        rows = read(self.PARSER, {"dataframe_records": [{"n": 1, "a": 2}]})
        assert list(rows.columns) == ["a", "n"]

    def test_a_model_without_types_gets_the_body_as_it_came(self) -> None:
        untyped = Parser(Plan("python_function", False))
        assert untyped.parse(b"anything", JSON) == Raw(b"anything", JSON)
        with pytest.raises(MediaTypeError):
            untyped.parse(b"{}", "text/html")
        with pytest.raises(BadRequestError):
            untyped.of_arrays({"a": np.array([1.0])})

    def test_parquet_and_chat_are_for_mlflow(self) -> None:
        assert self.PARSER.parse(b"PAR1", PARQUET) == Raw(b"PAR1", PARQUET)
        asked = parser(Column("prompt", "string"))
        body = b'{"prompt": "hello", "temperature": 1}'
        assert asked.parse(body, JSON) == Raw(body, JSON)
        assert "missing inputs ['a', 'n']" in refusal(self.PARSER, {"messages": []})
        assert "tensor" in refusal(Parser(Plan("sklearn", True, (), (Tensor("", "int8", (-1,)),))), {"input": [1]})


@pytest.mark.parametrize(
    "content_type",
    [
        JSON,
        CSV,
        PARQUET,
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "text/csv ; charset=utf-8",
    ],
)
def test_content_types_that_are_read(content_type: str) -> None:
    body = b"a\n1\n" if content_type.startswith(CSV) else b'{"inputs": {"a": [1]}}'
    assert parser(Column("a", "double")).parse(body, content_type)


@pytest.mark.parametrize(
    ("content_type", "words"),
    [
        ("", "text/csv, application/json"),
        ("text/html", "text/html"),
        ("application/json; charset=latin-1", "UTF-8"),
        ("application/json; format=pandas", "format"),
        ("Application/JSON", "content types"),
        (";;==", "Unrecognized"),
    ],
)
def test_content_types_that_are_not(content_type: str, words: str) -> None:
    with pytest.raises(MediaTypeError, match=words):
        parser(Column("a", "double")).parse(b"{}", content_type)


REFUSED: list[tuple[Column, Any, str]] = [
    (Column("a", "long"), 1.5, 'column "a", row 0: expected a whole number, got 1.5'),
    (Column("a", "long"), None, "expected a whole number, not null, got null"),
    (Column("a", "long"), 2**63, "expected a whole number from -9223372036854775808 to 9223372036854775807"),
    (Column("a", "integer"), True, "expected a whole number, got true"),
    (Column("a", "double"), "many", 'expected a number, got "many"'),
    (Column("a", "double", nulls=False), None, "expected a number, not null, got null"),
    (Column("a", "double", nulls=False), float("nan"), "expected a number, not null, got nan"),
    (Column("a", "double", infinite=False), float("inf"), "expected a finite number, got inf"),
    (Column("a", "double", largest=100.0), -101, "expected a number from -100 to 100, got -101"),
    (Column("a", "long", largest=100.0), 101, "expected a number from -100 to 100, got 101"),
    (Column("a", "float"), 1e39, "expected a number from -3.40282e+38 to 3.40282e+38, got 1e+39"),
    (Column("a", "boolean"), 1, "expected true or false, got 1"),
    (Column("a", "string"), [1], "expected a string, got a list"),
    (Column("a", "string", nulls=False), None, "expected a string, not null"),
    (Column("a", "string"), {"b": 1}, "expected a string, got an object"),
    (Column("a", "string", categories=("x", "y")), "z", 'expected one of "x", "y", got "z"'),
    (Column("a", "long", categories=(1, 2)), 3, "expected one of 1, 2, got 3"),
    (Column("a", "double", categories=(0.5,)), 0.25, "expected one of 0.5, got 0.25"),
    (Column("a", "float", categories=(0.1,)), 0.2, "expected one of 0.1, got 0.2"),
    (Column("a", "boolean", categories=(True,)), False, "expected one of true, got false"),
    (Column("a", "string", categories=tuple("abcdefghijklm")), "z", '"j" and 3 more, got "z"'),
    (Column("a", "datetime"), "soon", "expected a date and time without a zone such as 2024-05-31T12:30:00"),
    (Column("a", "datetime", nulls=False), None, "not null"),
    (Column("a", "binary"), "?", 'expected base64, got "?"'),
    (Column("a" * 60, "double"), "x" * 60, f'column "{"a" * 50}"..., row 0: expected a number, got "{"x" * 50}"...'),
]


@pytest.mark.parametrize(("column", "value", "words"), REFUSED)
def test_a_refusal_names_column_row_and_what_was_expected(column: Column, value: Any, words: str) -> None:
    assert words in refusal(parser(column), records(value, name=column.name))


TAKEN: list[tuple[Column, Any, Any]] = [
    (Column("a", "double", largest=100.0), -100, -100.0),
    (Column("a", "double", largest=100.0), float("inf"), float("inf")),
    (Column("a", "double", infinite=False), 1e308, 1e308),
    (Column("a", "float", categories=(0.1,)), 0.1, np.float32(0.1)),
    (Column("a", "double", categories=(0.5, 1.0)), 1, 1.0),
    (Column("a", "string", categories=("x",)), None, None),
    (Column("a", "binary"), "YWI=", b"ab"),
    (Column("a", "datetime"), "2024-05-31 12:30:00.000000001", np.datetime64("2024-05-31T12:30:00.000000001")),
    (Column("a", "datetime"), 1, np.datetime64(1, "ns")),
]


@pytest.mark.parametrize(("column", "value", "expected"), TAKEN)
def test_limits_of_the_plan_take_what_the_model_takes(column: Column, value: Any, expected: Any) -> None:
    assert read(parser(column), records(value)).columns["a"][0] == expected


def test_a_few_problems_are_told_and_the_others_counted() -> None:
    told = refusal(parser(Column("a", "long")), records(1, *["x"] * 50))
    assert told.count("expected a whole number") == 5
    assert 'column "a", row 1: ' in told
    assert told.endswith("; and 45 more")
    assert refusal(parser(Column("a", "long")), records(*["x"] * 1000)).endswith("; and at least 95 more")


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (b"{", "not JSON"),
        ({}, "exactly one of dataframe_split, dataframe_records, instances, inputs, got none"),
        ({"inputs": [1], "instances": [1]}, 'got "inputs", "instances"'),
        ([1], "got a list"),
        ({"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}}, '"a" more than once'),
        ({"dataframe_split": {"columns": ["a"], "data": [[1], [1, 2]]}}, "row 1: expected 1 values"),
        ({"dataframe_split": {"columns": ["b"], "data": [[1]]}}, "missing inputs ['a']. Note that there were extra"),
        ({"dataframe_split": {"columns": ["a"], "rows": [[1]]}}, 'got "rows" too'),
        ({"dataframe_records": [{"a": 1}, 2]}, "row 1: expected an object, got 2"),
        ({"inputs": {"a": []}}, "at least one row"),
        ({"inputs": {"a": "x"}}, "expected a number"),
        ({"inputs": 1}, "expected columns by name"),
    ],
)
def test_what_is_said_of_requests_of_another_form(told: Any, words: str) -> None:
    assert words in refusal(parser(Column("a", "double")), told)


TENSORS = Parser(Plan("sklearn", True, (), (Tensor("x", "float32", (-1, 2), nulls=False), Tensor("y", "uint8", (-1,)))))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"x": [[1, 2]], "y": [300]}, 'tensor "y", row 0: expected a whole number from 0 to 255, got 300'),
        ({"x": [[1, 2], [3, None]], "y": [1, 2]}, 'tensor "x", row 1, value 1: expected a number, not null'),
        ({"x": [[1, 2, 3]], "y": [1]}, 'expected tensor "x" of shape (-1, 2), got shape (1, 3)'),
        ({"x": [1, 2], "y": [1]}, "got lists nested 1 deep"),
        ({"x": [[1, 2]], "y": [1, 2]}, "as many rows in every tensor"),
        ({"x": [[1, 2]]}, "missing inputs ['y']"),
    ],
)
def test_what_is_said_of_tensors(told: Any, words: str) -> None:
    assert words in refusal(TENSORS, {"inputs": told})


class TestParams:
    PARSER = parser(Column("a", "double"), params=(Param("p", "long", 1), Param("many", "double", [1.0], (-1,))))

    @pytest.mark.parametrize(
        ("told", "expected"),
        [
            (None, None),
            ({}, None),
            ({"other": 1}, None),
            ({"p": 5, "other": 1}, {"p": 5}),
            ({"p": None}, {"p": None}),
            ({"many": [1, 2.5]}, {"many": [1.0, 2.5]}),
        ],
    )
    def test_only_what_the_request_sets(self, told: Any, expected: Any) -> None:
        assert read(self.PARSER, records(1.5) | {"params": told}).params == expected
        assert read(self.PARSER, records(float("nan")) | {"params": told}).params == expected
        assert self.PARSER.of_arrays({"a": np.array([1.5])}, told).params == expected

    @pytest.mark.parametrize(
        ("told", "words"),
        [
            ([], "params: expected an object"),
            ({"p": 1.5}, 'param "p": expected a whole number, got 1.5'),
            ({"many": 1}, 'param "many": expected a list'),
            ({"many": ["x"]}, 'param "many": expected a number, got "x"'),
        ],
    )
    def test_what_does_not_fit_is_refused(self, told: Any, words: str) -> None:
        assert words in refusal(self.PARSER, records(1.5) | {"params": told})

    def test_are_ignored_where_the_signature_has_none(self) -> None:
        assert read(parser(Column("a", "double")), records(1) | {"params": [1]}).params is None


KINDS = ("integer", "long", "float", "double", "boolean")
DTYPES = ["bool", "int8", "int32", "int64", "uint8", "uint64", "float16", "float32", "float64", ">f8", ">i4"]


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(KINDS), st.sampled_from(DTYPES), st.booleans(), st.sampled_from([None, 2.5]))
def test_arrays_are_read_as_the_same_numbers_in_json(
    data: st.DataObject, kind: str, dtype: str, takes: bool, largest: float | None
) -> None:
    limit = largest if kind != "boolean" else None
    asked = parser(Column("a", kind, nulls=takes, infinite=takes, largest=limit))
    given_array = data.draw(arrays.arrays(dtype, st.integers(1, 3)))
    assert_same(asked, {"a": given_array}, {"inputs": {"a": given_array.tolist()}})
    tensor = Parser(
        Plan("sklearn", True, (), (Tensor("a", data.draw(st.sampled_from(DTYPES[:9])), (-1,), takes, takes),))
    )
    assert_same(tensor, {"a": given_array}, {"inputs": {"a": given_array.tolist()}})


def assert_same(asked: Parser, given_arrays: Any, told: Any) -> None:
    try:
        expected = read(asked, told)
    except ServingError as refused:
        with pytest.raises(BadRequestError) as raised:
            asked.of_arrays(given_arrays)
        assert str(raised.value) == str(refused)  # noqa: PT017 - both refusals are compared
    else:
        assert same(asked.of_arrays(given_arrays), expected)


class TestArrays:
    def test_text_comes_as_text_or_bytes(self) -> None:
        asked = parser(Column("s", "string"), Column("d", "datetime"), Column("b", "binary"))
        words = np.array(["ü", "ü".encode(), None], object)
        dates = np.array(["2024-05-31", b"2024-05-31", None], object)
        rows = asked.of_arrays({"b": np.array([b"\xff", "YWI=", b""], object), "s": words, "d": dates, "more": words})
        assert list(rows.columns) == ["s", "d", "b"]
        assert rows.columns["s"].tolist() == ["ü", "ü", None]
        assert rows.columns["b"].tolist() == [b"\xff", b"ab", b""]
        np.testing.assert_array_equal(rows.columns["d"], np.array(["2024-05-31", "2024-05-31", "NaT"], "M8[ns]"))
        with pytest.raises(BadRequestError, match='column "s", row 0: expected a string'):
            asked.of_arrays({"s": np.array([b"\xff"], object), "d": dates[:1], "b": words[:1]})

    def test_columns_may_stand_upright(self) -> None:
        rows = parser(Column("a", "double")).of_arrays({"a": np.array([[1], [2]])})
        assert rows.columns["a"].tolist() == [1.0, 2.0]

    @pytest.mark.parametrize(
        ("given_arrays", "words"),
        [
            ({"b": np.array([1])}, "missing inputs"),
            ({"a": np.array([[1, 2]])}, r"expected shape \[n\] or \[n, 1\], got \[1, 2\]"),
            ({"a": np.array(1.0)}, "expected shape"),
            ({"a": np.empty(0)}, "at least one row"),
            ({"a": np.array([1, 2]), "c": np.array([1])}, "as many rows"),
            ({"a": np.array(["x"], object)}, "expected a number"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, given_arrays: Any, words: str) -> None:
        with pytest.raises(BadRequestError, match=words):
            parser(Column("a", "double"), Column("c", "long", False)).of_arrays(given_arrays)

    def test_tensors(self) -> None:
        only = Parser(Plan("sklearn", True, (), (Tensor("", "float32", (-1, 2)),)))
        rows = only.of_arrays({"whatever": np.array([[1.5, 2]])})
        assert (rows.columns[""].dtype, rows.columns[""].tolist()) == (np.float32, [[1.5, 2.0]])
        with pytest.raises(BadRequestError, match="of shape"):
            only.of_arrays({"whatever": np.array([[1.5, 2, 3]])})
        with pytest.raises(BadRequestError, match="missing inputs"):
            TENSORS.of_arrays({"x": np.array([[1, 2]])})
