"""What an answer says of itself: some of its values, whatever kind of answer it is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from monitoring.log_entry import is_sample, prediction
from serving.runtime.exchange import Predictions, Written
from serving.runtime.prediction_header import told, told_of


def values(header: tuple[tuple[bytes, bytes], ...]) -> Any:
    ((name, text),) = header
    assert name == b"x-promote-prediction"
    assert len(text) <= 1024
    return json.loads(text.decode("ascii").removesuffix("*"))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([0.1234567891]), [0.123457]),
        (np.array([3], np.int64), [3]),
        (np.array([True]), [True]),
        (np.array([1.5, -2e-9], np.float32), [1.5, -2e-9]),
        (np.array([[0.2, 0.8], [0.9, 0.1]]), [0.8, 0.1]),
        (np.array([[0.2, 0.7, 0.1]]), [1]),
        (np.array([[4.0], [5.0]]), [4, 5]),
        (np.array(["yes", None], object), ["yes", None]),
        (np.array(["no"]), ["no"]),
        (np.array(["x" * 100], object), ["x" * 64]),
    ],
)
def test_values_are_told_one_per_row(array: Any, expected: list[object]) -> None:
    assert values(told_of(array)) == expected


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 2, 2)), np.array([]), np.zeros((3, 0)), np.array(["2026-01-01"], "M8[ns]"), np.array([{}], object)],
)
def test_what_cannot_be_told_in_short_is_not_told(array: Any) -> None:
    assert told_of(array) == ()


def test_at_most_sixteen_values_from_all_over_the_rows() -> None:
    assert values(told_of(np.arange(1000.0))) == [63.0 * step for step in range(16)]
    assert len(values(told_of(np.arange(17)))) <= 16


def test_long_words_are_told_by_fewer_of_them() -> None:
    found = values(told_of(np.array(["\u00e4" * 100] * 16, object)))
    assert found == ["\u00e4" * 64] * len(found)
    assert 1 <= len(found) < 16


@pytest.mark.parametrize(
    ("array", "sample"),
    [
        (np.arange(16.0), False),
        (np.arange(17.0), True),
        (np.arange(17), True),
        (np.array(["a"] * 16, object), False),
        (np.array(["\u00e4" * 100] * 16, object), True),
    ],
)
def test_a_star_says_that_rows_were_left_out(array: Any, sample: bool) -> None:
    ((_, text),) = told_of(array)
    assert text.endswith(b"*") is sample
    assert is_sample(text.decode()) is sample
    assert prediction(text.decode()) == tuple(values(told_of(array)))


@pytest.mark.parametrize(
    ("losses", "text"),
    [
        (np.array([0.25]), b"0.25"),
        (np.array([0.0, 1.0, 1.0]), b"0.666667"),
        (np.array([True, False]), b"0.5"),
        (np.array([0.5, 1.5]), None),
        (np.array([-0.1]), None),
        (np.array([np.nan, 0.5]), None),
        (np.array(["0.5"]), None),
        (np.array([]), None),
    ],
)
def test_an_output_named_so_is_told_as_the_mean_loss(losses: Any, text: bytes | None) -> None:
    expected = () if text is None else ((b"x-promote-loss", text),)
    frame = Predictions({"score": np.array([0.5] * len(losses)), "promote_loss": losses}, len(losses), frame=True)
    assert told(frame)[-1:] == expected or (text is None and b"x-promote-loss" not in dict(told(frame)))
    written = told(Written(b"{}", outputs={"score": ["x"], "promote_loss": losses.tolist()}))
    assert tuple(header for header in written if header[0] == b"x-promote-loss") == expected


def test_the_first_output_is_told() -> None:
    frame = Predictions({"score": np.array([0.5]), "label": np.array([1])}, 1, frame=True)
    assert values(told(frame)) == [0.5]
    assert values(told(Written(b"[1]", outputs=[1, 2]))) == [1, 2]
    assert values(told(Written(b"{}", outputs={"a": ["x"], "b": [2]}))) == ["x"]
    assert told(Written(b"{}", outputs=None)) == ()
    assert told(Written(b"{}", outputs="text")) == ()
