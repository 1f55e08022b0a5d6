"""Sticky traffic: of an entity its first request counts, and what becomes of known ones is looked at as a fact."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest

from monitoring.analysis import Evidence, fold
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import Arm, ArmCount, Block, Familiar
from monitoring.entities import TELLINGS, Entities, broken
from monitoring.filling import Part, Record
from monitoring.folder import Folder
from monitoring.judgement import Judgement, Verdict, judge
from tests.unit.test_blocks import POLICY, C, S, record

ANALYSIS = AnalysisPolicy(require_latency=False, weight_latency=0.0, weight_predictions=0.0, weight_errors=0.9)


def of(entity: str, number: int, arm: Arm = S, *, error: bool = False, took: float | None = 0.1) -> Record:
    return replace(record(number, arm, 0.1 * number, took, error=error), entity=entity)


def counted(folder: Folder, now: float = 1000.0) -> tuple[ArmCount, ArmCount]:
    blocks = folder.advance(now)
    arms = [[block.stable for block in blocks], [block.candidate for block in blocks]]
    stable, candidate = (ArmCount(sum(a.requests for a in arm), sum(a.errors for a in arm)) for arm in arms)
    return stable, candidate


def test_the_first_request_of_an_entity_counts_and_no_later_one() -> None:
    folder = Folder("ro", POLICY)
    for number in range(20):
        folder.add(of("ada", 2 * number, C, error=number == 0))
        folder.add(of("", 2 * number + 1))
    assert counted(folder) == (ArmCount(20), ArmCount(1, 1))
    assert folder.counts["familiar"] == 19


def test_first_is_who_was_assigned_first_not_who_was_told_of_first() -> None:
    folder = Folder("ro", POLICY)
    folder.add(of("ada", 5, C))
    folder.add(of("ada", 3, C, error=True))
    assert counted(folder) == (ArmCount(), ArmCount(1, 1))


@pytest.mark.parametrize("moments", [1, 3, 10])
def test_a_crash_at_any_moment_counts_nobody_twice(moments: int) -> None:
    entities, kept = Entities(), list[str]()
    folder, counts = Folder("ro", POLICY, entities), [0, 0]
    parts, settled = list[Part](), list[tuple[float, list[str]]]()
    for number in range(60):
        one = of(f"entity {number % 7}", number, C if number % 2 else S, took=0.05)
        folder.add(replace(one, decided=None))
        folder.add(one)
        for block in folder.advance(0.1 * number):
            counts = [counts[0] + block.stable.requests, counts[1] + block.candidate.requests]
        if number % moments == 0:
            parts.append(msgspec.json.decode(msgspec.json.encode(folder.take_part()), type=Part))
            settled.append((0.1 * number, folder.take_settled()))
            kept += entities.take_new()
            state = json.loads(json.dumps(folder.state()))
            entities = Entities()
            entities.recall(kept)
            folder = Folder.restore(state, parts, settled, POLICY, entities)
    for block in folder.advance(1000.0):
        counts = [counts[0] + block.stable.requests, counts[1] + block.candidate.requests]
    assert sum(counts) == 7


def test_entities_that_come_after_too_many_others_do_not_count() -> None:
    entities = Entities(most=2)
    folder = Folder("ro", POLICY, entities)
    for number, name in enumerate("abacad"):
        folder.add(of(name, number))
    folder.add(of("", 9))
    assert counted(folder) == (ArmCount(3), ArmCount())
    assert folder.counts["familiar"] == 4


def test_an_entity_counts_once_on_two_gateways() -> None:
    entities = Entities()
    gateways = [Folder("ro", POLICY, entities), Folder("ro", POLICY, entities)]
    for number in range(6):
        gateways[number % 2].add(of("ada", number))
    assert [counted(folder) for folder in gateways] == [(ArmCount(1), ArmCount()), (ArmCount(), ArmCount())]


def test_only_entities_that_were_answered_well_before_tell_of_a_change() -> None:
    entities = Entities()
    for name in ("well", "never", "lately"):
        entities.meet(name)
    entities.hear(C, "well", 1.0, bad=False)
    entities.hear(C, "never", 1.0, bad=True)
    assert entities.tell(20.0) is None
    entities.hear(C, "well", 21.0, bad=True)
    entities.hear(C, "never", 21.0, bad=True)
    entities.hear(C, "stranger", 21.0, bad=True)
    assert entities.tell(22.0) == (Familiar(), Familiar(1, 1))
    entities.hear(C, "well", 23.0, bad=False)
    assert entities.tell(24.0) is None, "it was told a moment ago"
    assert entities.tell(33.0) == (Familiar(), Familiar(1, 0))
    assert entities.tell(90.0) is None, "that was long ago"


@pytest.mark.parametrize(
    ("stable", "candidate", "expected"),
    [
        ((100, 0), (20, 20), True),
        ((100, 10), (20, 11), True),
        ((100, 11), (20, 20), False),
        ((100, 0), (20, 10), False),
        ((100, 0), (9, 9), False),
        ((0, 0), (20, 20), False),
    ],
)
def test_only_what_is_gross_takes_a_candidate_back(
    stable: tuple[int, int], candidate: tuple[int, int], expected: bool
) -> None:
    assert broken((Familiar(*stable), Familiar(*candidate))) == expected
    found = (Familiar(*stable), Familiar(*candidate))
    told = [Block(n, "ro", -1, 0.0, 0.0, ArmCount(), ArmCount(), familiar=found) for n in range(1, TELLINGS + 1)]
    before = judge(ANALYSIS, fold(ANALYSIS, Evidence.start(ANALYSIS, (5, 100)), told[:-1]), 100)
    said = judge(ANALYSIS, fold(ANALYSIS, Evidence.start(ANALYSIS, (5, 100)), told), 100)
    assert before.verdict is not Verdict.FAIL, "a stumble of a moment is none"
    assert (said.verdict is Verdict.FAIL) == expected
    assert ("entities that were answered well before get no good answer now" in said.reason) == expected
    assert said.remarks


def test_a_candidate_that_dies_when_all_entities_are_known_is_taken_back() -> None:
    assert followed(dies_after=3_000, seed=1).verdict is Verdict.FAIL
    assert followed(dies_after=3_000, seed=1, shared=True).verdict is not Verdict.FAIL


def test_customers_who_fail_on_everything_take_hardly_any_candidate_back() -> None:
    """And did where their requests counted one by one."""
    assert sum(followed(bad=0.1, seed=seed).verdict is Verdict.FAIL for seed in range(12)) <= 1
    assert sum(followed(bad=0.1, seed=seed, named=False).verdict is Verdict.FAIL for seed in range(12)) >= 3


def followed(
    *, seed: int, bad: float = 0.0, dies_after: int = 10**9, shared: bool = False, named: bool = True
) -> Judgement:
    """A hundred customers, a fifth of them with the candidate, ask 6,000 times; both arms may die, or one."""
    folder, evidence = Folder("ro", POLICY), Evidence.start(ANALYSIS, (20, 100))
    for one in _requests(random.Random(seed), bad, dies_after, shared=shared):
        folder.add(one if named else replace(one, entity=""))
        evidence = fold(ANALYSIS, evidence, folder.advance(one.assigned))
    return judge(ANALYSIS, evidence, 100)


def _requests(dice: random.Random, bad: float, dies_after: int, *, shared: bool) -> Iterator[Record]:
    customers = [(f"customer {n}", dice.choices((S, C), (0.8, 0.2))[0], dice.random() < bad) for n in range(100)]
    for number in range(6_000):
        name, arm, fails = dice.choice(customers)
        dead = number > dies_after and (shared or arm is C)
        yield of(name, number, arm, error=fails or dead, took=0.01)
