"""What goes into the pod of a drift check and what comes out of it, as text."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from monitoring.drift import Action, Aspect, Comparison, DriftPolicy, DriftState, Finding, Role, Samples
from pipelines.drift_checks import Checked
from pipelines.drift_reference import DriftCheck
from pipelines.drift_wire import Order, Refused, Result, is_result, printed, read_order, read_printed, written
from registry_hooks.model_version import ModelVersion

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
COLUMN = Comparison("input.größe", Role.INPUT, Aspect.MISSING, "wasserstein", 0.25, 0.5, 0.1)
FINDING = Finding(
    DriftState.DRIFTED, Samples(NOW, "the first", 1000, 900), "It changed.", (COLUMN,), {"input.id": "why"}, True
)
CHECKED = Result(checked=Checked(FINDING, "stable", ("promote/drift/latest.html",)))


@pytest.mark.parametrize(
    "policy",
    [
        DriftPolicy(),
        DriftPolicy("0 6 * * 1", "Europe/Berlin", distances={"a": 0.5}, ignore=("b",), action=Action.ROLLBACK),
    ],
)
def test_an_order_is_read_as_it_was_written(policy: DriftPolicy) -> None:
    order = Order(DriftCheck(ModelVersion("a b/ü", 7), policy, NOW), NOW, "s3://bucket/predictions")
    assert read_order(written(order)) == order


@pytest.mark.parametrize("result", [CHECKED, Result(refused=Refused("no bucket", retryable=True))])
def test_a_result_is_read_as_it_was_printed_whatever_else_is_printed(result: Result) -> None:
    lines = ["INFO hello", *(line for part in printed(result) for line in (part, "in between")), "goodbye"]
    assert read_printed(lines) == result


def many() -> Result:
    columns = tuple(replace(COLUMN, column=f"input.{n}", distance=math.sin(n)) for n in range(2000))
    return Result(checked=Checked(replace(FINDING, comparisons=columns), "", ()))


def test_a_large_one_is_printed_in_short_lines_and_none_may_be_missing() -> None:
    lines = list(printed(many()))
    assert len(lines) > 2
    assert all(len(line) < 5000 and is_result(line) for line in lines)
    assert read_printed(lines) == many()
    for missing in range(len(lines)):
        assert read_printed(lines[:missing] + lines[missing + 1 :]) is None


def test_of_two_the_last_one_counts() -> None:
    assert read_printed([*printed(many()), *printed(CHECKED)]) == CHECKED


def test_numbers_that_are_none_come_through() -> None:
    odd = replace(FINDING, comparisons=(replace(COLUMN, distance=math.nan, chance=math.inf),))
    read = read_printed(printed(Result(checked=Checked(odd, "", ()))))
    assert read is not None
    assert read.checked is not None
    (column,) = read.checked.finding.comparisons
    assert math.isnan(column.distance)
    assert column.chance == math.inf


@pytest.mark.parametrize("line", ["", "drift-result", "drift-result 1/1 not-base64", "drift-result 2/1 AAAA"])
def test_what_is_no_result_is_none(line: str) -> None:
    assert read_printed([line]) is None
