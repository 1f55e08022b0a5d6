"""Parity at run time: which answers are kept, what counts as the same, and what a check leads to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from serving.prediction_log_entry import NOTHING_PRIVATE, Privacy
from serving.runtime.exchange import (
    Event,
    Health,
    ModelError,
    NotReadyError,
    Predictions,
    Raw,
    Rows,
    Written,
)
from serving.runtime.parity import NEVER, Pace, Parity, difference_of, shown
from serving.runtime.plan import Column, Compiled, Plan
from tests.fixtures.pools import Figures

COMPILED = Compiled("model.onnx", "", (), (), frame=False, tolerance=1e-3, rows=0)
PLAN = Plan("sklearn", signature=True, columns=(Column("x", "double"),), batching=True, compiled=COMPILED)
QUICK = Pace(first=0.01, shortest=0.01, longest=0.02, awake=0.01)


@dataclass
class Doubling:
    """A native path whose model answers twice what it is given, or does what it is told."""

    does: Callable[[Rows], Predictions | Written] = field(default=lambda rows: answer(rows.columns["x"] * 2))
    asked: int = 0

    async def start(self) -> None: ...

    async def predict(self, ask: Rows | Raw, deadline: float) -> Predictions | Written:
        assert isinstance(ask, Rows)
        return await self.recompute(ask)

    async def recompute(self, rows: Rows) -> Predictions | Written:
        self.asked += 1
        await asyncio.sleep(0)
        return self.does(rows)

    def health(self) -> Health:
        return Health(ready=True)

    async def close(self) -> None: ...


def rows(*values: float) -> Rows:
    return Rows({"x": np.array(values, float)}, len(values))


def answer(values: Any, **columns: Any) -> Predictions:
    arrays = {name: np.asarray(array) for name, array in (columns or {"": values}).items()}
    return Predictions(arrays, len(next(iter(arrays.values()))), frame=bool(columns))


def parity(
    native: Doubling, figures: Figures, share: float = 1.0, pace: Pace = QUICK, privacy: Privacy = NOTHING_PRIVATE
) -> Parity:
    return Parity(native, PLAN, figures, share, privacy, pace)


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def checked(native: Doubling, *pairs: tuple[Rows, Predictions], checks: int = 1, **how: Any) -> tuple[Parity, Figures]:
    """After so many calls of the native path and the turn after them."""
    figures = Figures()
    made = parity(native, figures, **how)

    async def check() -> None:
        made.start()
        for ask, told in pairs:
            made.keep(ask, told)
        await until(lambda: native.asked >= checks)
        await asyncio.sleep(0.005)
        await made.close()

    asyncio.run(check())
    return made, figures


def test_answers_that_are_the_same_are_counted_and_nothing_else() -> None:
    made, figures = checked(Doubling(), (rows(1, 2), answer([2.0, 4.0])), (rows(3), answer([6.0005])), checks=2)
    assert (made.verdict, made.trouble) == ("", "")
    assert figures.events == [Event.PARITY_CHECKED] * 2


def test_one_answer_that_is_not_is_enough() -> None:
    made, figures = checked(Doubling(), (rows(1), answer([2.0])), (rows(3, 4), answer([6.0, 8.5])), checks=3)
    expected = (
        "the compiled model answered otherwise than the model itself: the answer differs in 1 of 2 rows, by up to 0.5"
    )
    assert made.verdict == expected
    assert figures.events.count(Event.PARITY_MISMATCH) == 1
    assert made.keep(rows(1), answer([2.0])) == NEVER


def test_a_model_that_does_not_answer_the_same_twice_is_no_mismatch() -> None:
    answers = iter([answer([2.5]), answer([2.0])])
    made, figures = checked(Doubling(lambda _: next(answers)), (rows(1), answer([2.0])), checks=2)
    assert made.verdict == ""
    assert figures.events == [Event.PARITY_CHECKED]


@pytest.mark.parametrize(
    ("does", "verdict"),
    [
        (ModelError("no such category: secret"), "the model itself raises"),
        (Written(b"1"), "the model itself answers what is no array"),
    ],
)
def test_a_model_that_answers_nothing_that_can_be_compared_is_a_mismatch(does: Any, verdict: str) -> None:
    def do(_: Rows) -> Predictions | Written:
        if isinstance(does, Exception):
            raise does
        assert isinstance(does, Written)
        return does

    made, _ = checked(Doubling(do), (rows(1), answer([2.0])), checks=2)
    assert made.verdict.endswith(f": {verdict}")


def test_what_cannot_be_checked_is_trouble_until_it_can_be() -> None:
    def do(ask: Rows) -> Predictions:
        if native.asked == 1:
            raise NotReadyError("no memory")
        return answer(ask.columns["x"] * 2)

    native, figures = Doubling(do), Figures()
    made = parity(native, figures)

    async def check() -> None:
        made.start()
        made.keep(rows(1), answer([2.0]))
        await until(lambda: bool(made.trouble))
        assert made.trouble == "answers of the compiled model could not be checked: no memory"
        assert figures.events == []
        made.keep(rows(1), answer([2.0]))
        await until(lambda: not made.trouble)
        await made.close()

    asyncio.run(check())
    assert made.verdict == ""
    assert figures.events == [Event.PARITY_CHECKED]


def test_the_native_path_is_kept_awake_once_it_serves() -> None:
    made, _ = checked(Doubling(), (rows(1), answer([3.0])), checks=5)
    assert made.verdict


def test_nothing_is_kept_where_no_share_is_wanted() -> None:
    native = Doubling()
    made = parity(native, Figures(), share=0.0)
    assert made.first() == NEVER


def test_the_first_answers_are_kept_and_then_a_share() -> None:
    made = parity(Doubling(), Figures(), share=0.01, pace=Pace(head=5))
    assert made.first() == 0
    gaps = [made.keep(rows(1), answer([2.0])) for _ in range(2005)]
    assert gaps[:4] == [0, 0, 0, 0]
    assert 94 < np.mean(gaps[4:]) < 104
    assert len(set(gaps[4:])) > 100


def test_what_is_kept_is_bounded_and_spread_over_the_time() -> None:
    seen: list[float] = []

    def do(ask: Rows) -> Predictions:
        seen.append(ask.columns["x"][0])
        return answer(ask.columns["x"] * 2)

    many = [(rows(i), answer([2.0 * i])) for i in range(1000)]
    checked(Doubling(do), *many, checks=50, pace=Pace(first=0.01, kept=50))
    assert len(set(seen)) == 50
    assert 350 < np.mean(seen) < 650


def test_of_a_large_request_some_rows_are_checked() -> None:
    sizes: list[int] = []

    def do(ask: Rows) -> Predictions:
        sizes.append(ask.count)
        return answer(ask.columns["x"] * 2)

    values = np.arange(10_000.0)
    made, _ = checked(Doubling(do), (rows(*values), answer(values * 2)), (rows(), answer([])))
    assert sizes == [100]
    assert made.verdict == ""


def test_what_is_kept_is_a_copy() -> None:
    values = np.array([1.0])
    native, figures = Doubling(), Figures()
    made = parity(native, figures)
    ask, told = Rows({"x": values}, 1), answer([2.0])

    async def check() -> None:
        made.keep(ask, told)
        values[0] = 7
        made.start()
        await until(lambda: bool(figures.events))
        await made.close()

    asyncio.run(check())
    assert made.verdict == ""


def test_pauses_between_checks_grow() -> None:
    times: list[float] = []

    def do(ask: Rows) -> Predictions:
        times.append(asyncio.get_running_loop().time())
        made.keep(ask, answer(ask.columns["x"] * 2))
        return answer(ask.columns["x"] * 2)

    made = parity(Doubling(do), Figures(), pace=Pace(first=0.01, shortest=0.03, longest=0.1))

    async def check() -> None:
        made.keep(rows(1), answer([2.0]))
        made.start()
        await until(lambda: len(times) == 5)
        await made.close()

    asyncio.run(check())
    pauses = [after - before for before, after in pairwise(times)]
    assert all(pause >= least for pause, least in zip(pauses, (0.03, 0.06, 0.1, 0.1), strict=True))


@pytest.mark.parametrize(
    ("ours", "own", "difference"),
    [
        (answer([1, 2]), answer([1, 2]), ""),
        (answer([1, 2]), answer([1, 3]), "the answer differs in 1 of 2 rows"),
        (answer([1]), answer([1.0]), "the answer is int64(1,) and not float64(1,)"),
        (answer(np.array([1.5], np.float32)), answer([1.5]), "the answer is float32(1,) and not float64(1,)"),
        (answer([1.0]), answer([1.0, 2.0]), "the answer is float64(1,) and not float64(2,)"),
        (answer([1.0, 0.0]), answer([1.0009, 0.0009]), ""),
        (answer([1.0]), answer([1.0011]), "the answer differs in 1 of 1 rows, by up to 0.0011"),
        (answer([5000.0]), answer([5004.0]), ""),
        (answer([5000.0]), answer([5006.0]), "the answer differs in 1 of 1 rows, by up to 6"),
        (answer([1.0]), answer([np.nan]), "the answer differs in 1 of 1 rows, by up to nan"),
        (
            answer([[0.1, 0.9], [0.5, 0.5]]),
            answer([[0.1, 0.9], [0.4, 0.6]]),
            "the answer differs in 1 of 2 rows, by up to 0.1",
        ),
        (answer(np.array(["a"], object)), answer(["a"]), ""),
        (answer(np.array(["a"], object)), answer(["b"]), "the answer differs in 1 of 1 rows"),
        (answer(None, a=[1], b=[1.5]), answer(None, a=[1], b=[1.6]), "b differs in 1 of 1 rows, by up to 0.1"),
        (answer(None, a=[1]), answer(None, b=[1]), "it is a frame of a and not a frame of b"),
        (answer([1]), Predictions({"": np.array([1])}, 1, frame=True), "it is an array and not a frame of "),
    ],
)
def test_labels_are_the_same_or_not_and_scores_within_the_tolerance(
    ours: Predictions, own: Predictions, difference: str
) -> None:
    assert difference_of(ours, own, 1e-3) == difference


def test_what_is_private_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    ask = Rows(
        {"x": np.array([4.5]), "email": np.array(["ann@example.org"], object), "name": np.array(["Ann"], object)}, 1
    )
    privacy = Privacy(frozenset({"email"}), frozenset({"input.name"}))
    with caplog.at_level(logging.DEBUG):
        checked(Doubling(), (ask, answer([1.0])), checks=2, privacy=privacy)
    assert "ann@" not in caplog.text
    assert "Ann" not in caplog.text
    assert "{'x': [4.5]}" in caplog.text
    assert all("4.5" not in record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG)
    assert shown(ask, privacy) == {"x": [4.5]}
