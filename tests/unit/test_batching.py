"""Which requests go together, and how many rows: values in, values out, and a small simulation."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from serving.runtime.batching import Queue, ServiceTime, Waiting, finite, merged, split, together
from serving.runtime.exchange import Predictions, Raw, Rows

BUDGET = 0.05


def rows(count: int = 1, start: float = 0.0, **more: Any) -> Rows:
    return Rows({"a": np.arange(start, start + count), "b": np.array(["x"] * count, dtype=object)}, count, **more)


def waiting(ask: Rows | Raw | None = None, name: str = "") -> Waiting[str]:
    return Waiting(ask or rows(), 0.0, 0.0, name)


def filled(*asks: Rows | Raw) -> Queue[str]:
    queue: Queue[str] = Queue()
    for number, ask in enumerate(asks):
        queue.put(waiting(ask, str(number)))
    return queue


def names(taken: list[Waiting[str]]) -> str:
    return "".join(request.caller for request in taken)


def learned(*observations: tuple[int, float]) -> ServiceTime:
    service = ServiceTime()
    for count, seconds in observations:
        service.observe(count, seconds)
    return service


def test_requests_are_taken_in_order_up_to_the_rows_of_a_batch() -> None:
    queue = filled(*(rows(2) for _ in range(5)))
    assert names(queue.take(5)) == "01"
    assert len(queue) == 3
    assert names(queue.take(1)) == "2"
    assert names(queue.take(100)) == "34"
    assert queue.take(100) == []


def test_a_request_that_is_larger_than_a_batch_goes_alone_and_small_ones_fill_up_past_a_large_one() -> None:
    queue = filled(rows(500), rows(1), rows(500), rows(2))
    assert names(queue.take(10)) == "0"
    assert names(queue.take(10)) == "13"
    assert names(queue.take(10)) == "2"


OTHER_COLUMNS = Rows({"a": np.zeros(1)}, 1)
TENSOR = Rows({"": np.zeros((1, 3))}, 1)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (rows(), rows(3), True),
        (rows(params={"x": 1}), rows(params={"x": 1}), True),
        (rows(params={"x": 1}), rows(params={"x": 2}), False),
        (rows(params={"x": 1}), rows(), False),
        (rows(), OTHER_COLUMNS, False),
        (rows(), rows(0), False),
        (TENSOR, Rows({"": np.zeros((2, 3))}, 2), True),
        (TENSOR, Rows({"": np.zeros((2, 4))}, 2), False),
        (rows(), Raw(b"", ""), False),
        (Raw(b"", ""), Raw(b"", ""), False),
    ],
)
def test_what_goes_together(one: Rows | Raw, other: Rows | Raw, expected: bool) -> None:
    assert together(one, other) is together(other, one) is expected
    assert names(filled(one, other).take(100)) == ("01" if expected else "0")


def test_those_that_fit_together_do_not_change_the_order_of_the_others() -> None:
    queue = filled(rows(), OTHER_COLUMNS, rows(), OTHER_COLUMNS, rows())
    assert names(queue.take(100)) == "024"
    assert names(queue.take(100)) == "13"


def test_whoever_left_is_not_taken_and_does_not_count() -> None:
    queue: Queue[str] = Queue()
    requests = [waiting(name=str(number)) for number in range(4)]
    for request in requests:
        queue.put(request)
    for number in (0, 2, 2):
        requests[number].leave()
    assert (len(queue), names(list(queue))) == (2, "13")
    (taken,) = queue.take(1)
    taken.leave()
    assert (len(queue), names(queue.take(9)), len(queue)) == (1, "3", 0)


def test_rows_of_several_requests_and_back() -> None:
    asks = [rows(2), rows(1, 7.0), rows(3, 9.0)]
    whole = merged(asks)
    assert whole.count == 6
    assert whole.columns["a"].tolist() == [0, 1, 7, 9, 10, 11]
    assert whole.columns["b"].dtype == object
    answer = Predictions({"y": whole.columns["a"] * 2, "z": whole.columns["b"]}, 6, frame=True)
    parts = split(answer, [2, 1, 3])
    assert [part.columns["y"].tolist() for part in parts] == [[0, 2], [14], [18, 20, 22]]
    assert [(part.count, part.frame, len(part.columns["z"])) for part in parts] == [
        (2, True, 2),
        (1, True, 1),
        (3, True, 3),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0], True),
        ([1.0, float("nan")], False),
        ([[1.0, float("-inf")]], False),
        ([1, 2], True),
        (["nan"], True),
        (np.array(["a", None, 1.5], dtype=object), True),
        (np.array(["a", float("nan")], dtype=object), False),
    ],
)
def test_nan_and_infinities_are_seen(values: Any, expected: bool) -> None:
    assert finite(Predictions({"": np.array(values)}, len(values))) is expected


def test_the_line_through_what_was_seen() -> None:
    service = learned(*((count, 0.003 + 0.0001 * count) for count in (1, 4, 16, 40, 7, 1, 25)))
    assert service.expected(20) == pytest.approx(0.005, rel=0.05)
    assert service.rows_within(0.013) == pytest.approx(100, abs=10)
    assert service.rows_within(0.001) == pytest.approx(30, abs=4)  # as long as twice a single row


def test_nothing_known_or_one_size_only_gives_small_batches() -> None:
    assert ServiceTime().rows_within(BUDGET) == 4
    assert learned((1, 0.02), (1, 0.02)).rows_within(BUDGET) == 2
    assert learned((1, 1.0)).rows_within(BUDGET) == 2


def test_the_line_is_trusted_for_few_times_more_rows_than_were_seen() -> None:
    assert learned((1, 0.001), (2, 0.001), (8, 0.001)).rows_within(BUDGET) == 32


def test_a_pause_teaches_little_and_a_slower_model_is_followed() -> None:
    usual = [(count, 0.002 + 0.0001 * count) for count in (1, 10, 20, 30)] * 10
    paused = learned(*usual, (5, 3.0))
    assert paused.expected(20) == pytest.approx(0.004, rel=0.25)
    slower = learned(*usual, *((count, seconds * 10) for count, seconds in usual[:20]))
    assert slower.expected(20) > 0.02


def simulated(
    fixed: float, each: float, clients: int, seconds: float, noise: float = 0.3
) -> tuple[float, list[int], list[float]]:
    """Clients that ask again once answered, and one server: requests per second, batches, times of batches."""
    chance, service, queue = random.Random(3), ServiceTime(), Queue[int]()
    now, answered, sizes, times = 0.0, 0, [], []
    for client in range(clients):
        queue.put(Waiting(rows(), 0.0, 0.0, client))
    while now < seconds:
        batch = queue.take(service.rows_within(BUDGET))
        took = (fixed + each * len(batch)) * (1 + noise * chance.random()) + (0.2 if chance.random() < 0.005 else 0)
        service.observe(len(batch), took)
        now += took
        answered += len(batch)
        sizes.append(len(batch))
        times.append(took)
        for request in batch:
            queue.put(Waiting(rows(), 0.0, now, request.caller))
    return answered / now, sizes, times


@pytest.mark.parametrize(
    ("fixed", "each"), [(0.003, 0.00002), (0.003, 0.002), (0.0, 0.004), (0.03, 0.001), (0.08, 0.001), (0.0, 0.2)]
)
def test_batches_stay_within_the_budget_and_use_it(fixed: float, each: float) -> None:
    rate, sizes, times = simulated(fixed, each, clients=64, seconds=40)
    budget = max(BUDGET, 2 * (fixed + each) * 1.15)
    possible = max(1, min(64, int((budget / 1.15 - fixed) / each)))
    sure = max(1, min(64, int((BUDGET / 1.15 - fixed) / each)))
    assert sure * 0.7 <= np.median(sizes[len(sizes) // 4 :]) <= possible * 1.3
    within = [took <= budget * 1.35 for took in times[len(times) // 4 :]]
    assert np.mean(within) > 0.97
    assert rate > 0.4 * possible / (fixed + each * possible) / 1.15


def test_one_client_is_never_made_to_wait() -> None:
    _, sizes, _ = simulated(0.003, 0.0001, clients=1, seconds=1)
    assert set(sizes) == {1}
