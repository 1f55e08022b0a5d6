"""Labels: how bad they make an answer, which requests wait for them and for how long, and what follows from them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitoring import labels as rules
from monitoring.analysis import Evidence, fold, fold_labels
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.block_store import BlockStore, Progress
from monitoring.blocks import Arm, ArmCount, Block
from monitoring.filling import Folding, Record
from monitoring.folder import Folder
from monitoring.judgement import Judgement, Verdict, judge
from monitoring.label_policy import LabelMode, LabelPolicy
from monitoring.label_store import EARLY_SECONDS, LabelStore
from monitoring.labels import Awaited, Awaiting, Kept, Label, LabelBlock, Labelled, complete, mean_loss

ANALYSIS = AnalysisPolicy(require_latency=False)
GATE = LabelPolicy(LabelMode.GATE, wait_seconds=60.0)


def answer(*prediction: Any) -> Awaited:
    return Awaited("a", Arm.STABLE, 0.0, prediction or None)


@pytest.mark.parametrize(
    ("predicted", "label", "scale", "loss"),
    [
        (("yes",), Label("a", 0, "yes"), None, 0.0),
        (("yes",), Label("a", 0, "no"), None, 1.0),
        ((1,), Label("a", 0, 1.0), None, 0.0),
        ((1,), Label("a", 0, "1"), None, 0.0),
        ((True,), Label("a", 0, 1), None, 0.0),
        ((0.123457,), Label("a", 0, 0.1234567891), None, 0.0),
        ((2.0,), Label("a", 0, 2.00001), None, 1.0),
        (("x" * 64,), Label("a", 0, "x" * 100), None, 0.0),
        ((0.75,), Label("a", 0, 1), 1.0, 0.25),
        ((3.0,), Label("a", 0, 10.0), 4.0, 1.0),
        (("yes",), Label("a", 0, "no"), 4.0, 1.0),
        ((None,), Label("a", 0, "no"), None, 1.0),
        (("yes",), Label("a", 0, loss=0.3), None, 0.3),
        ((), Label("a", 0, loss=0.3), None, 0.3),
        ((), Label("a", 0, "yes"), None, None),
        (("yes",), Label("a", 1, "yes"), None, None),
    ],
)
def test_how_bad_a_label_makes_an_answer(
    predicted: tuple[Any, ...], label: Label, scale: float | None, loss: float | None
) -> None:
    assert mean_loss(answer(*predicted), [label], scale) == (None if loss is None else pytest.approx(loss))


def test_rows_are_told_together() -> None:
    both = [Label("a", 0, "x"), Label("a", 1, "x")]
    assert mean_loss(answer("x", "y"), both, None) == 0.5
    assert not complete(answer("x", "y"), both[:1])
    assert complete(answer("x", "y"), both)
    assert complete(answer(), both[:1])


def record(number: int, arm: Arm = Arm.STABLE, **more: Any) -> Record:
    return Record(f"r{number}", "ro", 0, arm, float(number), number + 0.1, prediction=("a",), **more)


def numbers(awaiting: Awaiting) -> dict[str, int]:
    return {one.request_id: block for block, one in awaiting.take_new()}


def test_blocks_are_made_of_requests_and_never_of_labels() -> None:
    awaiting = Awaiting()
    for first in range(0, 250, 10):
        awaiting.add(0, float(first), [record(number) for number in range(first, first + 10)])
    made = numbers(awaiting)
    assert [made[f"r{number}"] for number in (0, 99, 100, 199, 200, 249)] == [1, 1, 2, 2, 3, 3]
    assert awaiting.number == 3
    awaiting.add(1, 250.0, [record(250)])
    assert numbers(awaiting) == {"r250": 4}
    restored = Awaiting.restore(awaiting.state(), awaiting.pending)
    restored.add(1, 250.0 + rules.SECONDS, [record(251)])
    assert numbers(restored) == {"r251": 5}


@pytest.mark.parametrize("how", [{"error": True}, {"refused": True}, {"abandoned": True}, {"decided": None}])
def test_only_answers_are_waited_for(how: dict[str, Any]) -> None:
    awaiting = Awaiting()
    awaiting.add(0, 0.0, [replace(record(1), **how), record(2)])
    assert numbers(awaiting) == {"r2": 1}


def test_values_of_some_rows_are_not_taken_for_those_of_the_first() -> None:
    awaiting = Awaiting()
    awaiting.add(0, 0.0, [record(1, sampled=True)])
    ((_, one),) = awaiting.take_new()
    assert one.prediction is None


def test_no_more_are_waited_for_than_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MOST", 15)
    awaiting = Awaiting()
    awaiting.add(0, 0.0, [record(number) for number in range(10)])
    awaiting.add(0, 1.0, [record(number) for number in range(10, 20)])
    assert (len(numbers(awaiting)), awaiting.passed_over) == (10, 10)
    awaiting.pending -= 10
    awaiting.add(0, 2.0, [record(number) for number in range(20, 30)])
    assert set(numbers(awaiting)) == {f"r{number}" for number in range(20, 30)}


def test_a_folder_notes_what_it_settles_and_entities_once() -> None:
    awaiting = Awaiting()
    folder = Folder("ro", Folding(), awaiting=awaiting)
    for number in range(30):
        entity = f"e{number % 15}"
        arm = Arm.CANDIDATE if number % 15 < 5 else Arm.STABLE
        folder.add(record(number, arm, entity=entity))
    folder.advance(300.0)
    assert set(numbers(awaiting)) == {f"r{number}" for number in range(15)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "blocks.sqlite3"


def waits(file: Path, awaited: Iterable[tuple[int, Awaited]], rollout: str = "ro") -> LabelStore:
    """A store in which these wait, by block."""
    blocks, store = BlockStore(file), LabelStore(file)
    blocks.save(blocks.load().serial, Progress({}, awaited=[(rollout, block, one) for block, one in awaited]))
    return store


def waiting(count: int, block: int, arm: Arm = Arm.STABLE, at: float = 0.0) -> Iterator[tuple[int, Awaited]]:
    for number in range(count):
        yield block, Awaited(f"{block}-{arm}-{number}", arm, at, ("good",))


def labelled(requests: Iterable[tuple[int, Awaited]], value: str = "good") -> list[Label]:
    return [Label(one.request_id, 0, value) for _, one in requests]


def test_a_block_is_told_once_all_its_labels_are_there(file: Path) -> None:
    both = [*waiting(3, 1), *waiting(2, 1, Arm.CANDIDATE)]
    store = waits(file, both)
    assert store.keep(labelled(both[:3]), 1.0) == Kept(3, 0, 3)
    assert store.settle("ro", 2, GATE, 1.0) == 0
    store.keep(labelled(both[3:], "bad"), 2.0)
    assert store.settle("ro", 1, GATE, 2.0) == 0, "the block is still open"
    assert store.settle("ro", 2, GATE, 2.0) == 5
    told = (LabelBlock(1, "ro", Labelled(3, 3, 0.0), Labelled(2, 2, 2.0)),)
    assert store.labelled("ro", 0) == LabelStore(file).labelled("ro", 0) == told
    assert store.labelled("ro", 1) == ()
    assert store.pending("ro") == 0


def test_labels_are_waited_for_so_long_and_told_in_order(file: Path) -> None:
    first, second = [*waiting(2, 1, at=10.0)], [*waiting(2, 2, at=20.0)]
    store = waits(file, first + second)
    store.keep(labelled(second), 21.0)
    assert store.settle("ro", 3, GATE, 69.9) == 0, "the first block waits, so the second does"
    store.keep(labelled(first[:1]), 69.9)
    assert store.settle("ro", 3, GATE, 70.0) == 4
    assert [block.stable for block in store.labelled("ro", 0)] == [Labelled(2, 1, 0.0), Labelled(2, 2, 0.0)]
    store.keep(labelled(first[1:]), 71.0)
    assert store.settle("ro", 3, GATE, 80.0) == 0, "too late"


def test_the_first_label_of_a_row_counts(file: Path) -> None:
    (one,) = waiting(1, 1)
    store = waits(file, [one])
    store.keep(labelled([one], "bad"), 1.0)
    assert store.keep(labelled([one], "good") * 2, 2.0) == Kept(0, 2, 0)
    store.settle("ro", 2, GATE, 3.0)
    assert store.labelled("ro", 0)[0].stable == Labelled(1, 1, 1.0)


@pytest.mark.parametrize(("seconds", "counts"), [(EARLY_SECONDS - 1, 1), (EARLY_SECONDS + 1, 0)])
def test_a_label_may_come_before_its_request_has_ended(file: Path, seconds: float, counts: int) -> None:
    (one,) = waiting(1, 1)
    store = waits(file, ())
    assert store.keep(labelled([one]), 0.0) == Kept(1, 0, 0)
    store.keep([Label("another", 0, "x")], seconds)
    store = waits(file, [one])
    store.settle("ro", 2, GATE, 1000.0)
    assert store.labelled("ro", 0)[0].stable.labelled == counts


def test_what_is_forgotten_is_gone(file: Path) -> None:
    store = waits(file, [*waiting(2, 1), *waiting(2, 2)])
    store.keep(labelled(waiting(2, 1)), 1.0)
    store.settle("ro", 2, GATE, 2.0)
    blocks = BlockStore(file)
    blocks.save(blocks.load().serial, Progress({}, forget=["ro"]))
    assert (store.pending("ro"), store.labelled("ro", 0)) == (0, ())


def seen(mode: LabelMode = LabelMode.GATE, policy: AnalysisPolicy = ANALYSIS) -> Evidence:
    """Requests of two equal revisions, enough for all traffic."""
    blocks = (Block(number, "ro", 0, number, number, ArmCount(50), ArmCount(50)) for number in range(1, 200))
    return fold(policy, Evidence.start(policy, (50, 80, 100), labels=mode), blocks)


def blocks(count: int, stable: Callable[[], Labelled], candidate: Callable[[], Labelled]) -> Iterator[LabelBlock]:
    for number in range(1, count + 1):
        yield LabelBlock(number, "ro", stable(), candidate())


def arm(chance: random.Random, answers: int, share: float, bad: float) -> Labelled:
    """`answers` of which a share is labelled, and a share of those turned out bad."""
    known = sum(chance.random() < share for _ in range(answers))
    return Labelled(answers, known, float(sum(chance.random() < bad for _ in range(known))))


def judged(mode: LabelMode, told: Iterable[LabelBlock], policy: AnalysisPolicy = ANALYSIS) -> Judgement:
    return judge(policy, fold_labels(policy, seen(mode, policy), told), 100)


def test_all_traffic_waits_for_labels() -> None:
    assert judged(LabelMode.OFF, ()).verdict is judged(LabelMode.REPORT, ()).verdict is Verdict.PASS
    said = judged(LabelMode.GATE, ())
    assert said.verdict is Verdict.MORE
    assert "mean loss by labels below 1.5 times the stable one plus 0.5 points" in said.reason
    assert judge(ANALYSIS, seen(), 80).verdict is Verdict.PASS, "lower weights do not"


@pytest.mark.parametrize(("bad", "verdict"), [(0.05, Verdict.PASS), (0.15, Verdict.MORE)])
def test_labels_prove_a_candidate_good_enough_or_do_not(bad: float, verdict: Verdict) -> None:
    chance = random.Random(1)
    told = blocks(300, lambda: arm(chance, 50, 0.3, 0.05), lambda: arm(chance, 50, 0.3, bad))
    said = judged(LabelMode.GATE, told)
    assert said.verdict is verdict, said.reason
    (reading,) = [reading for reading in said.metrics if reading.name == "labels"]
    assert reading.candidate.requests == pytest.approx(300 * 50 * 0.3, rel=0.05)
    assert reading.candidate.errors / reading.candidate.requests == pytest.approx(bad, rel=0.2)


def test_labels_take_a_candidate_back_where_the_policy_says_so() -> None:
    weighed = replace(ANALYSIS, weight_latency=0.2, weight_labels=0.2)
    worse = [*blocks(300, lambda: Labelled(50, 50, 2.0), lambda: Labelled(50, 50, 9.0))]
    said = judged(LabelMode.REPORT, worse, weighed)
    assert said.verdict is Verdict.FAIL
    assert said.reason.startswith("Worse: mean loss by labels above the stable one, 0.18")
    assert judged(LabelMode.REPORT, worse).verdict is Verdict.PASS, "without a weight it is only told"
    assert next(one for one in judged(LabelMode.REPORT, worse).metrics if one.name == "labels").log_e_worse > 4.6


def test_where_one_revision_is_labelled_more_often_nothing_is_compared() -> None:
    chance = random.Random(2)
    uneven = [*blocks(300, lambda: arm(chance, 50, 0.3, 0.05), lambda: arm(chance, 50, 0.2, 0.05))]
    said = judged(LabelMode.GATE, uneven)
    assert said.verdict is Verdict.MORE
    assert said.reason.startswith(
        "Held up: labels cannot be compared: 20% of the candidate's answers are labelled and 30%"
    )
    reported = judged(LabelMode.REPORT, uneven)
    assert reported.verdict is Verdict.PASS
    assert any("labels cannot be compared" in remark for remark in reported.remarks)


def test_labels_of_equal_revisions_rarely_cry_wolf() -> None:
    chance, weighed = random.Random(3), replace(ANALYSIS, weight_latency=0.0, weight_labels=0.4)
    found = []
    for _ in range(100):
        told = blocks(100, lambda: arm(chance, 60, 0.5, 0.1), lambda: arm(chance, 40, 0.5, 0.1))
        evidence = fold_labels(weighed, Evidence.start(weighed, (50, 100), labels=LabelMode.REPORT), told)
        assert evidence.labels is not None
        found.append(evidence.failed is not None or evidence.labels.unlike)
    assert sum(found) <= 4


def test_what_was_taken_in_is_not_taken_in_again() -> None:
    told = [*blocks(20, lambda: Labelled(50, 50, 2.0), lambda: Labelled(50, 50, 2.0))]
    evidence = fold_labels(ANALYSIS, seen(), told)
    assert fold_labels(ANALYSIS, evidence, told) == evidence
    assert fold_labels(ANALYSIS, fold_labels(ANALYSIS, seen(), told[:7]), told) == evidence
