"""How records become blocks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.blocks import Arm, ArmCount, Block
from monitoring.filling import Folding, Record
from monitoring.folder import Folder

POLICY = Folding(
    requests=4,
    least_seconds=0.0,
    seconds=1.0,
    most_requests=20,
    most_seconds=10.0,
    late_seconds=2.0,
    flush_seconds=0.25,
    timeout_seconds=5.0,
    memory_seconds=60.0,
)
S, C = Arm.STABLE, Arm.CANDIDATE


def record(number: int, arm: Arm, at: float, took: float | None = 0.1, *, error: bool = False, step: int = 0) -> Record:
    return Record(f"r{number}", "ro", step, arm, at, None if took is None else at + took, error)


def fold(records: Iterable[Record], now: float = 1000.0) -> tuple[Block, ...]:
    folder = Folder("ro", POLICY)
    for each in records:
        folder.add(each)
    return folder.advance(now)


def shape(blocks: Iterable[Block]) -> list[tuple[int, int]]:
    return [(block.stable.requests, block.candidate.requests) for block in blocks]


@pytest.mark.parametrize(
    ("arms", "gap", "expected"),
    [
        ([S, C, S, C, S, C, S, C], 0.01, [(2, 2), (2, 2)]),
        ([S, S, S, S, S, C], 0.01, [(5, 1)]),
        ([S, C, S, C, S], 0.6, [(1, 1), (1, 1), (1, 0)]),
        ([S, S, S, C, S, C], 0.6, [(3, 1), (1, 1)]),
        ([S] * 45, 0.01, [(20, 0), (20, 0), (5, 0)]),
        ([S] * 12, 1.0, [(10, 0), (2, 0)]),
        ([C, S], 20.0, [(0, 1), (1, 0)]),
    ],
    ids=["count", "waits for the other arm", "time", "time and other arm", "most requests", "most time", "idle"],
)
def test_blocks_close_by_count_and_time_with_both_arms(
    arms: list[Arm], gap: float, expected: list[tuple[int, int]]
) -> None:
    assert shape(fold(record(n, arm, n * gap) for n, arm in enumerate(arms))) == expected


def test_counts_and_times_of_a_block() -> None:
    first = [record(0, S, 5.0, error=True), record(1, S, 5.1), record(2, C, 5.2, error=True), record(3, C, 5.3)]
    assert fold(first) == (Block(1, "ro", 0, 5.0, 5.3, ArmCount(2, 1), ArmCount(2, 1)),)


def test_a_change_of_weights_ends_a_block() -> None:
    records = [record(n, S if n % 2 else C, n * 0.01, step=n // 3) for n in range(6)]
    assert [(block.id, block.step) for block in fold(records)] == [(1, 0), (2, 1)]


def test_requests_are_put_in_order_of_assignment_not_of_news() -> None:
    records = [record(n, S if n % 2 else C, n * 0.1, 0.01) for n in range(8)]
    folder = Folder("ro", POLICY)
    for each in (*records[3:], *records[:3]):
        folder.add(each)
    assert shape(folder.advance(100.0)) == [(2, 2), (2, 2)]


def test_a_refused_connection_heard_of_late_still_counts() -> None:
    folder = Folder("ro", POLICY)
    folder.add(record(0, S, 0.0))
    folder.add(record(1, C, 0.1))
    assert shape(folder.advance(10.0)) == [(1, 1)]
    folder.add(record(2, C, 1.0, 6.0, error=True))
    assert [block.candidate for block in folder.advance(100.0)] == [ArmCount(1, 1)]


def test_a_block_settles_when_its_last_request_is_decided() -> None:
    folder = Folder("ro", POLICY)
    for n, arm in enumerate([S, C, S, C]):
        folder.add(record(n, arm, 0.0, None if n == 1 else 0.1))
    assert folder.advance(4.0) == ()
    folder.add(record(1, C, 0.0, 4.2))
    assert [block.candidate for block in folder.advance(4.5)] == [ArmCount(2, 0)]


def test_a_request_that_never_ends_is_an_error_after_its_time() -> None:
    folder = Folder("ro", POLICY)
    for n, arm in enumerate([S, C, S, C]):
        folder.add(record(n, arm, 0.0, None if n == 1 else 0.1))
    assert folder.advance(4.9) == ()
    assert [block.candidate for block in folder.advance(5.1)] == [ArmCount(2, 1)]
    folder.add(record(1, C, 0.0, 9.0))
    assert folder.advance(50.0) == (), "its end comes too late to count again"


def test_a_hanging_request_holds_back_later_blocks_but_not_their_order() -> None:
    folder = Folder("ro", POLICY)
    folder.add(record(99, C, 0.0, None))
    for n in range(8):
        folder.add(record(n, S if n % 2 else C, 0.1 + n * 0.01))
    assert folder.advance(4.0) == ()
    assert [block.id for block in folder.advance(6.0)] == [1, 2]


def test_abandoned_requests_are_left_out_of_the_counts() -> None:
    records = [record(n, arm, 0.0) for n, arm in enumerate([S, C, S, C])]
    records[1] = replace(records[1], error=True, abandoned=True)
    assert [block.candidate for block in fold(records)] == [ArmCount(1, 0)]


def test_what_was_under_way_when_the_gateway_died_is_left_out() -> None:
    folder = Folder("ro", POLICY)
    for n, arm in enumerate([S, C, S, C]):
        folder.add(record(n, arm, 0.0, None if n < 2 else 0.1))
    folder.abandon(1.0)
    assert shape(folder.advance(3.0)) == [(1, 1)]


def test_repetitions_are_dropped_however_late() -> None:
    folder = Folder("ro", POLICY)
    records = [record(n, arm, 0.0, error=True) for n, arm in enumerate([S, C, S, C])]
    total: list[Block] = []
    for now in (10.0, 59.0, 1000.0):
        for each in (*records, *reversed(records), *(replace(r, decided=None, error=False) for r in records)):
            folder.add(each)
        total += folder.advance(now)
    assert shape(total) == [(2, 2)]
    for each in records:
        folder.add(each)
    assert folder.counts == {"late": 0, "repeated": 28, "disordered": 4, "stale": 4}


events = st.lists(
    st.tuples(
        st.sampled_from([S, S, S, C]), st.floats(0.0, 0.9), st.one_of(st.none(), st.floats(0.0, 4.0)), st.booleans()
    ),
    max_size=80,
)


def stream(drawn: list[tuple[Arm, float, float | None, bool]]) -> list[tuple[float, Record]]:
    """Lines in the order in which they are written: one when a request starts, one when it ends."""
    lines, at = [], 100.0
    for number, (arm, gap, took, error) in enumerate(drawn):
        at += gap
        whole = record(number, arm, at, took, error=error, step=number // 30)
        lines.append((at, replace(whole, decided=None, error=False)))
        if whole.decided is not None:
            lines.append((whole.decided, whole))
    return sorted(lines, key=lambda line: line[0])


@given(events)
def test_every_request_counts_once_and_ids_have_no_gaps(drawn: list[tuple[Arm, float, float | None, bool]]) -> None:
    blocks = fold([each for _, each in stream(drawn)], now=10_000.0)
    assert [block.id for block in blocks] == list(range(1, len(blocks) + 1))
    for arm, of in ((S, "stable"), (C, "candidate")):
        mine = [(took, error) for a, _, took, error in drawn if a is arm]
        assert sum(getattr(block, of).requests for block in blocks) == len(mine)
        assert sum(getattr(block, of).errors for block in blocks) == sum(took is None or error for took, error in mine)


@given(events, st.sets(st.integers(0, 160)), st.booleans())
def test_blocks_do_not_depend_on_when_the_log_is_read_nor_on_restarts(
    drawn: list[tuple[Arm, float, float | None, bool]], pauses: set[int], restart: bool
) -> None:
    lines = stream(drawn)
    folder = Folder("ro", POLICY)
    blocks: list[Block] = []
    for number, (written, each) in enumerate(lines):
        folder.add(each)
        if number in pauses:
            blocks += folder.advance(written)
            if restart:
                folder = Folder.restore(json.loads(json.dumps(folder.state())), POLICY)
    blocks += folder.advance(10_000.0)
    assert tuple(blocks) == fold([each for _, each in lines], now=10_000.0)
