"""How records become blocks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.blocks import Arm, ArmCount, Block, Scale
from monitoring.filling import Folding, Part, Record
from monitoring.folder import Folder
from monitoring.ruler import LEAST, History

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


class Kept:
    """What is kept of a folder, as JSON, and only as long as it is needed."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._settled: list[tuple[float, list[str]]] = []

    def restart(self, folder: Folder, now: float) -> Folder:
        """Keep everything, and a folder made of that."""
        part = folder.take_part()
        self._parts.append(json.dumps(asdict(part)))
        parts = [Part(**json.loads(text)) for text in self._parts]
        self._parts = [text for text, old in zip(self._parts, parts, strict=True) if old.number >= part.first_needed]
        self._settled.append((now, folder.take_settled()))
        self._settled = [(at, keys) for at, keys in self._settled if at >= now - POLICY.memory_seconds]
        needed = [old for old in parts if old.number >= part.first_needed]
        return Folder.restore(json.loads(json.dumps(folder.state())), needed, self._settled, POLICY)


def reference(requests: int) -> History:
    """Latencies of 1 to 100 ms, and predictions of 0 and 1 in turn."""
    return History((1.0 + number % 100, (float(number % 2),)) for number in range(requests))


def ruled() -> Folder:
    folder = Folder("ro", POLICY)
    folder.measure(Scale(), reference(LEAST))
    return folder


def test_slow_requests_are_told_by_rank_and_by_cut() -> None:
    folder = ruled()
    for n, (arm, took) in enumerate([(S, 0.0505), (C, 0.0505), (S, 0.2), (C, 0.115)]):
        folder.add(record(n, arm, 0.0, took))
    (block,) = folder.advance(100.0)
    assert block.latency is not None
    stable, candidate = block.latency
    assert (sum(stable.ranks), stable.ranks[16], stable.ranks[31]) == (2, 1, 1)
    assert (stable.slow, stable.beyond) == ((2, 1, 1, 1), (2, 1, 1, 1))
    assert candidate.ranks[14] == 1, "45.9 ms after its tolerance"
    assert candidate.slow == (1, 1, 1, 1), "104.5 ms is beyond all cuts"
    assert candidate.beyond == (1, 1, 0, 0), "92 ms is beyond p90"


def test_a_hanging_candidate_is_slow_long_before_its_time_is_over() -> None:
    folder = ruled()
    for n, arm in enumerate([S, C, S, C]):
        folder.add(record(n, arm, 0.0, None if arm is C else 0.01))
    (early,) = folder.advance(2.1)
    assert (early.id, early.stable, early.candidate, early.predictions) == (1, ArmCount(), ArmCount(), None)
    assert early.latency is not None
    assert [arm.ranks[31] for arm in early.latency] == [0, 2]
    (late,) = folder.advance(5.1)
    assert (late.id, late.stable, late.candidate, late.latency) == (2, ArmCount(2, 0), ArmCount(2, 2), None)


def test_a_client_that_left_before_anything_was_known_says_nothing_of_latency() -> None:
    folder = ruled()
    for n, (arm, took) in enumerate([(S, 0.01), (C, 0.05), (C, 0.5), (C, 0.02)]):
        folder.add(replace(record(n, arm, 0.0, took), abandoned=n in (1, 2)))
    (block,) = folder.advance(10.0)
    assert block.candidate == ArmCount(1, 0)
    assert block.latency is not None
    assert (sum(block.latency[1].ranks), block.latency[1].ranks[31]) == (2, 1), "one left when it was slow already"


def test_a_request_of_many_rows_predicts_in_parts() -> None:
    folder = ruled()
    values = [(0.0,), (1.0, 1.0, 0.0, 7.0), None, (1.0,)]
    for n, arm in enumerate([S, C, S, C]):
        folder.add(replace(record(n, arm, 0.0), prediction=values[n]))
    (block,) = folder.advance(10.0)
    assert block.predictions == ((1.0, 0.0, 0.0), (0.25, 1.5, 0.25))


def test_refusals_are_counted_apart_from_errors() -> None:
    records = [record(n, arm, 0.0) for n, arm in enumerate([S, C, S, C])]
    records[1] = replace(records[1], refused=True)
    assert [(block.stable, block.candidate) for block in fold(records)] == [(ArmCount(2), ArmCount(2, 0, 1))]


def test_the_stable_revisions_answer_to_a_shielded_request_counts_for_no_arm() -> None:
    folder = Folder("ro", POLICY)
    for n, arm in enumerate([S, C, S, C]):
        folder.add(record(n, arm, 0.0, error=arm is C))
    for n in (1, 3):
        folder.add(record(n, S, 0.0, None))
        folder.add(record(n, S, 0.0, 0.2))
    (block,) = folder.advance(10.0)
    assert (block.stable, block.candidate, folder.counts["shielded"]) == (ArmCount(2), ArmCount(2, 2), 2)


def test_without_a_reference_the_first_requests_of_the_rollout_are_one() -> None:
    folder = Folder("ro", POLICY)
    for n in range(800):
        folder.add(record(n, C if n % 4 == 0 else S, n * 0.05, 0.01))
    blocks = folder.advance(1000.0)
    assert folder.ruler is not None
    before = sum(block.stable.requests for block in blocks if block.latency is None)
    assert LEAST <= before < LEAST + 60, "as many as are needed, and what was under way when they were there"
    after = [block for block in blocks if block.latency is not None]
    assert {block.latency is None for block in blocks[: -len(after)]} == {True}
    assert sum(sum(block.latency[0].ranks) for block in after if block.latency) == 600 - before


events = st.lists(
    st.tuples(
        st.sampled_from([S, S, S, C]), st.floats(0.0, 0.9), st.one_of(st.none(), st.floats(0.0, 4.0)), st.booleans()
    ),
    max_size=80,
)
pauses_in = st.one_of(st.sets(st.integers(0, 160)), st.integers(1, 9).map(lambda n: set(range(0, 160, n))))
"""Lines after which the log is read no further for a while."""


def stream(drawn: list[tuple[Arm, float, float | None, bool]]) -> list[tuple[float, Record]]:
    """Lines in the order in which they are written: one when a request starts, one when it ends."""
    lines, at = [], 100.0
    for number, (arm, gap, took, error) in enumerate(drawn):
        at += gap
        told = None if error else (float(number % 2),)
        whole = replace(record(number, arm, at, took, error=error, step=number // 30), prediction=told)
        lines.append((at, replace(whole, decided=None, error=False, prediction=None)))
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


@given(events)
def test_every_request_is_ranked_once_and_predicts_once(drawn: list[tuple[Arm, float, float | None, bool]]) -> None:
    folder = ruled()
    for _, each in stream(drawn):
        folder.add(each)
    blocks = folder.advance(10_000.0)
    for arm, place in ((S, 0), (C, 1)):
        mine = [(took, error) for a, _, took, error in drawn if a is arm]
        ranked = [block.latency[place] for block in blocks if block.latency is not None]
        assert sum(sum(each.ranks) for each in ranked) == len(mine)
        slower = sum(took is None or took * 1000 > 100 * (1.1 if arm is C else 1.0) for took, _ in mine)
        assert sum(each.slow[3] for each in ranked) in range(slower, slower + 2), "100 ms is the last of the reference"
        told = sum(sum(block.predictions[place]) for block in blocks if block.predictions is not None)
        assert told == sum(took is not None and not error for took, error in mine)


@given(events, pauses_in, st.booleans(), st.sampled_from([0, LEAST - 10, LEAST]))
def test_blocks_do_not_depend_on_when_the_log_is_read_nor_on_restarts(
    drawn: list[tuple[Arm, float, float | None, bool]], pauses: set[int], restart: bool, known: int
) -> None:
    lines = stream(drawn)
    folder, kept, whole = Folder("ro", POLICY), Kept(), Folder("ro", POLICY)
    folder.measure(Scale(), reference(known))
    whole.measure(Scale(), reference(known))
    blocks: list[Block] = []
    for number, (written, each) in enumerate(lines):
        folder.add(each)
        whole.add(each)
        if number in pauses:
            blocks += folder.advance(written)
            if restart:
                folder = kept.restart(folder, written)
    blocks += folder.advance(10_000.0)
    assert tuple(blocks) == whole.advance(10_000.0)
    assert folder.ruler == whole.ruler


def test_what_was_settled_is_known_again_after_a_restart() -> None:
    folder = Folder("ro", POLICY)
    records = [record(n, arm, 0.0) for n, arm in enumerate([S, C, S, C])]
    for each in records:
        folder.add(each)
    assert shape(folder.advance(10.0)) == [(2, 2)]
    folder = Kept().restart(folder, 10.0)
    for each in records:
        folder.add(each)
    assert folder.advance(100.0) == ()
    assert folder.counts["repeated"] == 4


def test_under_heavy_traffic_blocks_are_larger() -> None:
    folder = Folder("ro", replace(POLICY, least_seconds=0.05, most_requests=1000))
    for n in range(512):
        folder.add(record(n, S if n % 2 else C, n / 2048))
    assert [sum(pair) for pair in shape(folder.advance(10.0))] == [104, 104, 104, 104, 96]
