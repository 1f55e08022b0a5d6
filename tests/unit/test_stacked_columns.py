"""Columns of one type in one array are the same mapping to everybody, and go together as single arrays do."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from serving.stacked_columns import StackedColumns, Stacking, alike, end_to_end, stack

STACKING = Stacking(["a", "word", "b", "n"], [["a", "b"], ["word"], ["n"]])
DOUBLE = np.dtype("float64")


def request(first: float, rows: int = 1, stacking: Stacking = STACKING) -> StackedColumns:
    numbers = np.arange(2.0 * rows).reshape(2, rows) + first
    words = np.full((1, rows), f"w{first}", object)
    return StackedColumns(stacking, [numbers, words, np.full((1, rows), int(first))])


def plain(columns: StackedColumns) -> dict[str, list[object]]:
    return {name: array.tolist() for name, array in columns.items()}


def test_it_is_a_mapping_in_the_order_of_the_plan() -> None:
    columns = request(1.0, 2)

    assert plain(columns) == {"a": [1.0, 2.0], "word": ["w1.0", "w1.0"], "b": [3.0, 4.0], "n": [1, 1]}
    assert list(columns) == ["a", "word", "b", "n"]
    assert "word" in columns
    assert "other" not in columns


@pytest.mark.parametrize(
    "names", [("a", "b"), ("a", "b", "n"), ("n", "a", "b"), ("b", "a"), ("a",), ("a", "b", "a", "b")]
)
def test_any_columns_are_stacked_in_the_order_asked_for(names: tuple[str, ...]) -> None:
    columns = request(1.0, 3)

    for _ in range(2):
        found = stack(columns, names, DOUBLE)
        assert found.tolist() == [value for name in names for value in columns[name].tolist()]
        assert found.dtype == DOUBLE


def test_what_is_stacked_is_a_copy() -> None:
    columns = request(1.0)
    stack(columns, ("a", "b"), DOUBLE)[:] = 9

    assert columns["a"].tolist() == [1.0]


def test_rows_go_end_to_end() -> None:
    parts = [request(1.0, 2), request(5.0)]
    whole = end_to_end(parts, ["a"])

    assert isinstance(whole, StackedColumns)
    assert plain(whole) == {name: plain(parts[0])[name] + plain(parts[1])[name] for name in STACKING.names}


def test_only_the_same_stacking_is_alike_and_others_go_together_by_name() -> None:
    same, other = [request(1.0), request(2.0)], Stacking(STACKING.names, STACKING.groups)
    mixed = [request(1.0), request(2.0, stacking=other)]

    assert alike(same) is STACKING
    assert alike(mixed) is None
    assert alike([{"a": np.zeros(1)}]) is None
    assert {name: array.tolist() for name, array in end_to_end(mixed, ["a", "n"]).items()} == {"a": [1, 2], "n": [1, 2]}


def test_a_stacking_knows_what_it_has() -> None:
    assert STACKING.has(frozenset({"a", "n"}))
    assert not STACKING.has(frozenset({"a", "other"}))


def test_a_model_process_gets_the_same_columns() -> None:
    columns = request(1.0, 2)

    assert plain(pickle.loads(pickle.dumps(columns, protocol=5))) == plain(columns)
