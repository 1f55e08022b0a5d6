"""Evidence from pairs: fair by enumeration, right often enough by simulation, and told in words."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from math import exp, inf, log

import pytest

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.betting import FRACTIONS, Bet, mean_interval, share_interval
from monitoring.judgement import Verdict
from monitoring.shadow_blocks import Answer, Paired, Row, ShadowBlock
from monitoring.shadow_evidence import (
    MOST_SEGMENTS,
    REST,
    ShadowEvidence,
    fold_pairs,
    log_e_by_metric,
    log_e_shadow,
    threshold_shadow,
)
from monitoring.shadow_judgement import ShadowJudgement, judge_pairs
from monitoring.shadow_policy import ShadowPolicy

POLICY, SHADOW = AnalysisPolicy(), ShadowPolicy()
LIMITED = ShadowPolicy(most_changed=0.2)
GRID = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)
ROUNDING = 1e-9
Chance = Iterator[tuple[float, Paired]]


def paired(
    stable: tuple[bool, bool] = (False, False),
    candidate: tuple[bool, bool] = (False, False),
    latencies: tuple[float, float] = (10.0, 10.0),
    rows: tuple[Row, ...] = (),
) -> Paired:
    """Errors and refusals of both revisions."""
    return Paired(Answer(*stable, latencies[0]), Answer(*candidate, latencies[1]), rows)


def folded(pairs: list[Paired], shadow: ShadowPolicy = SHADOW, policy: AnalysisPolicy = POLICY) -> ShadowEvidence:
    return fold_pairs(policy, shadow, ShadowEvidence.start(policy), [ShadowBlock(1, "r", tuple(pairs))])


def judged(pairs: list[Paired], shadow: ShadowPolicy = SHADOW) -> ShadowJudgement:
    return judge_pairs(POLICY, folded(pairs, shadow))


def discordant(bad: Callable[[bool, bool], Paired], stable: float, candidate: float, together: float) -> Chance:
    """Both bad with chance `together`, one alone with the rest of its own chance."""
    chances = {
        (True, True): together,
        (True, False): stable - together,
        (False, True): candidate - together,
        (False, False): 1 - stable - candidate + together,
    }
    yield from ((chance, bad(*ends)) for ends, chance in chances.items() if chance > 0)


def dependent(stable: float, candidate: float) -> Iterator[float]:
    """Chances of both being bad, from as seldom to as often as can be."""
    least, most = max(0.0, stable + candidate - 1), min(stable, candidate)
    yield from {least, stable * candidate, most}


def growth(before: ShadowEvidence, chances: Chance, of: Callable[[ShadowEvidence], float]) -> float:
    """Expected evidence after one more pair, in terms of that before."""
    after = [
        (chance, of(fold_pairs(POLICY, LIMITED, before, [ShadowBlock(9, "r", (pair,))]))) for chance, pair in chances
    ]
    assert sum(chance for chance, _ in after) == pytest.approx(1.0)
    return sum(chance * exp(log_e - of(before)) for chance, log_e in after)


PASTS: tuple[list[Paired], ...] = (
    [],
    [paired((True, False), (False, False))] * 3,
    [paired((False, False), (True, True))] * 4,
    [paired(latencies=(10.0, 40.0), rows=(Row("a", True, 0.5),))] * 5,
    [paired(latencies=(10.0, 14.0), rows=(Row("a", False, 0.0),))] * 30,
)


@pytest.mark.parametrize("past", PASTS, ids=range(len(PASTS)))
@pytest.mark.parametrize("metric", ["errors", "refusals"])
def test_failures_gain_nothing_where_the_candidate_has_no_more(past: list[Paired], metric: str) -> None:
    def bad(stable: bool, candidate: bool) -> Paired:
        kinds = [(one, False) if metric == "errors" else (False, one) for one in (stable, candidate)]
        return paired(kinds[0], kinds[1])

    before = folded(past, LIMITED)
    for stable, candidate in product(GRID, repeat=2):
        if candidate <= stable:
            for together in dependent(stable, candidate):
                for of in (lambda found: log_e_by_metric(found)[metric], lambda found: log_e_shadow(POLICY, found)):
                    assert growth(before, discordant(bad, stable, candidate, together), of) <= 1 + ROUNDING


@pytest.mark.parametrize("past", PASTS, ids=range(len(PASTS)))
@pytest.mark.parametrize("metric", ["errors", "refusals"])
def test_nothing_is_proved_of_a_candidate_beyond_the_margin(past: list[Paired], metric: str) -> None:
    def bad(stable: bool, candidate: bool) -> Paired:
        kinds = [(one, False) if metric == "errors" else (False, one) for one in (stable, candidate)]
        return paired(kinds[0], kinds[1])

    before = folded(past, LIMITED)
    for stable in GRID:
        edge = (1 + POLICY.margin_ratio) * stable + POLICY.margin_points
        for candidate in {edge, (edge + 1) / 2, 1.0}:
            if edge <= candidate <= 1:
                for together in dependent(stable, candidate):
                    chances = discordant(bad, stable, candidate, together)
                    assert growth(before, chances, lambda found: getattr(found.enough, metric).log_e) <= 1 + ROUNDING


def latencies(dice: random.Random, count: int) -> list[float]:
    return [10.0 * 4.0 ** dice.uniform(-1, 1) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_latency_gains_nothing_where_both_are_as_fast(seed: int) -> None:
    """Where either answer is as likely to be either revision's; and less so where the candidate is faster."""
    dice = random.Random(seed)
    before = folded(PASTS[seed % len(PASTS)], LIMITED)
    for one, other in (latencies(dice, 2) for _ in range(20)):
        slack, slower = POLICY.latency_slack_ms, 1 + LIMITED.latency_tolerance
        for faster in (1.0, 0.7):
            both = [(a, faster * (b * slower + slack)) for a, b in ((one, other), (other, one))]
            chances = ((0.5, paired(latencies=pair)) for pair in both)
            assert growth(before, chances, lambda found: log_e_by_metric(found)["latency"]) <= 1 + ROUNDING


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_proved_of_a_candidate_slower_than_the_margin(seed: int) -> None:
    dice = random.Random(seed)
    before = folded(PASTS[seed % len(PASTS)], LIMITED)
    for one, other in (latencies(dice, 2) for _ in range(20)):
        slack, margin = POLICY.latency_slack_ms, 1 + POLICY.latency_margin
        both = [(a, b * margin * 1.0001 + slack) for a, b in ((one, other), (other, one))]
        chances = ((0.5, paired(latencies=pair)) for pair in both)
        assert growth(before, chances, lambda found: found.enough.latency.log_e) <= 1 + ROUNDING


def test_the_tail_proves_nothing_where_it_is_longer_than_the_margin() -> None:
    before = folded(PASTS[4], LIMITED)
    for stable, candidate in product((0.0, 0.02, 0.2), (0.02, 0.05, 0.3, 0.8)):
        if candidate - stable >= POLICY.latency_tail_points:
            alike = 1 - stable - candidate
            chances = ((stable, (100.0, 10.0)), (candidate, (10.0, 100.0)), (alike, (10.0, 10.0)))
            pairs = ((chance, paired(latencies=pair)) for chance, pair in chances if chance)
            assert growth(before, pairs, lambda found: found.enough.tail.log_e) <= 1 + ROUNDING


@pytest.mark.parametrize("past", PASTS, ids=range(len(PASTS)))
def test_decisions_gain_nothing_below_the_limit(past: list[Paired]) -> None:
    before = folded(past, LIMITED)
    for all_rows in (0.0, 0.05, 0.1, 0.2):
        half = 2 * (0.2 - all_rows)
        shares = ((all_rows, (True, True)), (half, (True, False)), (1 - all_rows - half, (False, False)))
        pairs = (
            (chance, paired(rows=tuple(Row("a", one, None) for one in changed))) for chance, changed in shares if chance
        )
        assert growth(before, pairs, lambda found: log_e_by_metric(found)["predictions"]) <= 1 + ROUNDING


def simulated(seed: int, count: int, stable: float, candidate: float, slower: float = 1.0) -> list[Paired]:
    """Independent failures, and latencies that depend on the request more than on the revision."""
    dice = random.Random(seed)
    pairs = []
    for _ in range(count):
        size = 20.0 * dice.lognormvariate(0, 1)
        took = (size * dice.lognormvariate(0, 0.2), size * slower * dice.lognormvariate(0, 0.2))
        pairs.append(paired((dice.random() < stable, False), (dice.random() < candidate, False), took))
    return pairs


def needed(pairs: list[Paired]) -> int:
    """Pairs until the candidate is taken back; more than there are where it is not."""
    evidence = ShadowEvidence.start(POLICY)
    for number, pair in enumerate(pairs, start=1):
        evidence = fold_pairs(POLICY, SHADOW, evidence, [ShadowBlock(number, "r", (pair,))])
        if evidence.worse:
            return number
    return len(pairs) + 1


def test_good_candidates_are_seldom_taken_back() -> None:
    """At most half of `alpha_rollback`: 2 of 300 have a chance of 1 in 2 at 0.56 %, 5 of 1 in 100."""
    wrong = sum(needed(simulated(seed, 400, 0.02, 0.02)) <= 400 for seed in range(300))
    assert wrong <= 4


@pytest.mark.parametrize(
    ("stable", "candidate", "slower", "most"),
    [(0.0, 1.0, 1.0, 14), (0.3, 1.0, 1.0, 22), (0.01, 0.1, 1.0, 200), (0.0, 0.0, 4.0, 25), (0.0, 0.0, 2.6, 90)],
    ids=["dead", "dead beside an ailing one", "ten times the errors", "four times as slow", "beyond what is tolerated"],
)
def test_worse_candidates_are_found_in_few_requests(stable: float, candidate: float, slower: float, most: int) -> None:
    found = [needed(simulated(seed, 1000, stable, candidate, slower)) for seed in range(20)]
    assert sum(found) / len(found) <= most
    assert max(found) <= 1000


def test_clean_pairs_prove_the_margin_in_hundreds_of_requests() -> None:
    pairs = simulated(1, 1200, 0.0, 0.0)
    assert judged(pairs[:300]).verdict is Verdict.MORE
    assert judged(pairs).verdict is Verdict.PASS
    assert judged(simulated(1, 1200, 0.0, 0.02)).verdict is not Verdict.PASS


def test_what_fails_on_both_says_nothing() -> None:
    bad = paired((True, False), (True, False))
    before, after = folded([]), folded([bad] * 500)
    assert log_e_shadow(POLICY, after) == pytest.approx(log_e_shadow(POLICY, before))


def test_once_proven_it_stays_as_it_was() -> None:
    worse = folded([paired((False, False), (True, False))] * 30)
    assert worse.worse
    better = fold_pairs(POLICY, SHADOW, worse, [ShadowBlock(2, "r", (paired((True, False)),) * 500)])
    assert replace(better, block=1) == worse


def test_blocks_read_twice_count_once() -> None:
    block = ShadowBlock(1, "r", (paired((False, False), (True, False)),) * 3, missing=2)
    once = fold_pairs(POLICY, SHADOW, ShadowEvidence.start(POLICY), [block])
    assert fold_pairs(POLICY, SHADOW, once, [block]) == once
    assert (once.pairs, once.missing, once.block) == (3, 2, 1)


def test_decisions_are_told_by_segment() -> None:
    rows = [Row("true", False, 0.02)] * 60 + [Row("false", True, 0.4)] * 20 + [Row("false", False, 0.1)] * 20
    said = judged([paired(rows=(row,)) for row in rows])
    assert said.changed == pytest.approx(0.2)
    assert said.changed95 is not None
    assert said.changed95[0] < 0.2 < said.changed95[1]
    assert [(segment.name, segment.rows, segment.changed) for segment in said.segments] == [
        ("true", 60, 0.0),
        ("false", 40, 0.5),
    ]
    assert [segment.difference for segment in said.segments] == [pytest.approx(0.02), pytest.approx(0.25)]
    assert said.difference is not None
    assert said.difference.difference == pytest.approx(0.112)
    assert said.verdict is Verdict.MORE, "differing decisions are reported, not held against it"
    assert "20.0% of the decisions are other ones" in said.reason


def test_changed_decisions_take_back_beyond_a_limit_that_the_policy_sets() -> None:
    rows = [paired(rows=(Row("a", number % 2 == 0, None),)) for number in range(200)]
    said = judged(rows, ShadowPolicy(most_changed=0.2))
    assert said.verdict is Verdict.FAIL
    assert "of the decisions are other ones" in said.reason
    assert judged(rows, ShadowPolicy(most_changed=0.6)).verdict is Verdict.MORE


def test_many_segments_are_put_together() -> None:
    said = judged([paired(rows=(Row(f"class {number}", False, None),)) for number in range(100)])
    assert len(said.segments) == MOST_SEGMENTS + 1
    assert said.segments[-1].name == REST
    assert said.segments[-1].rows == 100 - MOST_SEGMENTS


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([], "No request was answered by both revisions yet"),
        ([paired()], "Nothing decided on copies of requests: of 1 requests 0 failed on the candidate alone"),
        ([paired((False, False), (True, False))] * 30, "failed on the candidate alone, 0 on the stable revision alone"),
        ([paired((False, False), (False, True))] * 60, "were refused on the candidate alone"),
        ([paired(latencies=(10.0, 100.0))] * 60, "slower than tolerated on"),
    ],
)
def test_the_reason_names_what_was_found(pairs: list[Paired], words: str) -> None:
    assert words in judged(pairs).reason


def test_only_what_both_answered_is_timed() -> None:
    slow_failure = paired((False, False), (True, False), (10.0, 30_000.0))
    assert folded([slow_failure] * 5).slower.candidate == 0
    assert folded([paired(latencies=(10.0, 30_000.0))] * 5).slower.candidate == 5


def test_a_bet_gains_at_most_what_is_staked() -> None:
    lost = Bet(inf).after([-1.0] * 50)
    assert lost.log_e > -inf
    won = Bet(log(20)).after([1.0] * 50)
    assert won.proven
    assert won.log_e == pytest.approx(log(sum((1 + part) ** 6 for part in FRACTIONS) / len(FRACTIONS)), abs=1.0)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_a_share_lies_within_its_interval_at_every_moment(share: float) -> None:
    """Not once outside in 200 sequences of 300 would be luck at 5 %; more than 10 % would be wrong."""
    outside = 0
    for seed in range(200):
        dice, count = random.Random(seed), 0
        for total in range(1, 301):
            count += dice.random() < share
            if total % 20 == 0:
                low, high = share_interval(count, total)
                if not low - ROUNDING <= share <= high + ROUNDING:
                    outside += 1
                    break
    assert outside <= 20


def test_intervals_shrink_and_hold_what_was_seen() -> None:
    assert share_interval(0, 0) == (0.0, 1.0)
    widths = []
    for total in (10, 100, 1000, 10_000):
        low, high = share_interval(0.3 * total, total)
        assert low < 0.3 < high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert mean_interval(1, 3.0, 9.0) == (-inf, inf)
    low, high = mean_interval(300, 30.0, 300 * (0.01 + 0.04))
    assert low < 0.1 < high
    assert high - low < 0.1


def test_thresholds_follow_the_policy() -> None:
    assert threshold_shadow(AnalysisPolicy(alpha_rollback=0.02)) == pytest.approx(log(100))
