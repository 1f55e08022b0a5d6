"""How latencies and predictions are measured against a frozen reference."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.blocks import CUTS, LEVELS, Arm, Scale
from monitoring.ruler import BINS, KEPT, LEAST, MOST_CATEGORIES, History, Prediction, Ruler, Value

S, C = Arm.STABLE, Arm.CANDIDATE


def ruler(
    latencies: list[float], predictions: list[Prediction | None] | None = None, scale: Scale | None = None
) -> Ruler:
    told = predictions if predictions is not None else [None for _ in latencies]
    found = Ruler.from_history(History(zip(latencies, told, strict=True)), scale or Scale())
    assert found is not None
    return found


def of_values(values: list[Value]) -> Ruler:
    return ruler([1.0] * len(values), [(value,) for value in values])


HUNDREDS = [float(number) for number in range(1, 101)] * 10
some_latencies = st.lists(st.integers(0, 40).map(float), min_size=LEAST, max_size=LEAST + 100)


@given(some_latencies, st.floats(0, 50))
def test_the_level_is_that_of_the_mid_distribution(latencies: list[float], asked: float) -> None:
    ascending = sorted(latencies)
    middle = (bisect_left(ascending, asked) + bisect_right(ascending, asked)) / 2 / len(ascending)
    assert ruler(latencies).level(asked) == min(int(middle * LEVELS), LEVELS - 1)


@given(st.lists(st.floats(0, 1000), min_size=LEAST, max_size=LEAST, unique=True))
def test_without_ties_the_reference_fills_every_level_alike(latencies: list[float]) -> None:
    counts = Counter(map(ruler(latencies).level, latencies))
    assert set(counts) == set(range(LEVELS))
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize(("asked", "level"), [(7.9, 0), (8.0, 16), (8.1, 31), (inf, 31)])
def test_equal_latencies_share_the_middle(asked: float, level: int) -> None:
    assert ruler([8.0] * LEAST).level(asked) == level


def test_cuts_are_quantiles_and_the_cap_is_beyond_them() -> None:
    measure = ruler(HUNDREDS)
    assert measure.cuts == (50.0, 90.0, 95.0, 99.0)
    assert measure.cap == 100.0
    assert [measure.cuts_passed(asked) for asked in (50.0, 50.1, 95.1, 99.1)] == [0, 1, 3, 4]


@given(some_latencies)
def test_no_more_than_its_share_of_the_reference_is_beyond_a_cut(latencies: list[float]) -> None:
    measure = ruler(latencies)
    for place, share in enumerate(CUTS):
        assert sum(measure.cuts_passed(each) > place for each in latencies) <= (1 - share) * len(latencies) + 1e-9


def test_the_candidate_alone_is_given_the_tolerance_and_the_margin() -> None:
    measure = ruler(HUNDREDS, scale=Scale(0.10, 0.25))
    level, passed, by_far = measure.score(S, 110.0)
    assert (level, passed, by_far) == (31, 4, 4)
    level, passed, by_far = measure.score(C, 104.0)
    assert (level, passed, by_far) == (measure.level(104.0 / 1.1), 2, 1)
    assert measure.score(C, 110.0) == (31, 4, 1), "100 and 88"


@given(some_latencies, st.floats(0, 1), st.floats(0, 1), st.floats(1.000001, 100), st.sampled_from([S, C]))
def test_beyond_the_longest_all_latencies_are_the_same(
    latencies: list[float], tolerance: float, margin: float, times: float, arm: Arm
) -> None:
    measure = ruler(latencies, scale=Scale(tolerance, margin))
    assert measure.score(arm, measure.longest * times + 1e-6) == (LEVELS - 1, len(CUTS), len(CUTS))


@pytest.mark.parametrize(("requests", "enough"), [(LEAST - 1, False), (LEAST, True)])
def test_a_short_history_gives_no_ruler(requests: int, enough: bool) -> None:
    assert (Ruler.from_history(History([(1.0, None)] * requests), Scale()) is not None) is enough


def test_a_history_is_bounded_and_keeps_the_last() -> None:
    history = History()
    for number in range(KEPT + 10):
        history.add(float(number), None)
    assert (len(history), history.latencies()[0]) == (KEPT, 10.0)


@pytest.mark.parametrize(
    ("reference", "asked", "place"),
    [
        ([0.0, 1.0], 0.0, 0),
        ([0.0, 1.0], 1, 1),
        ([0.0, 1.0], 2.0, 2),
        ([0.0, 1.0], True, 2),
        ([0.0, 1.0], "1", 2),
        ([0.0, 1.0], None, 2),
        ([False, True], True, 1),
        ([False, True], 1.0, 2),
        ([None, 1.0], None, 0),
        (["b", "a"], "a", 0),
        (["b", "a"], "c", 2),
    ],
)
def test_few_values_are_a_category_each(reference: list[Value], asked: Value, place: int) -> None:
    measure = of_values(reference * LEAST)
    assert measure.categories == 3
    assert measure.place(asked) == place


def test_many_numbers_are_binned_by_deciles() -> None:
    measure = of_values([float(number % 1000) for number in range(3000)])
    assert measure.categories == BINS + 1
    assert [measure.place(asked) for asked in (-5.0, 0.0, 99.0, 100.0, 899.5, 999.0, 1e9)] == [0, 0, 0, 1, 8, 9, 9]
    assert {measure.place(asked) for asked in ("x", None, True, inf, float("nan"))} == {BINS}


def test_a_value_that_nearly_all_requests_have_does_not_hide_the_others() -> None:
    measure = of_values([*([0.0] * 970), *(float(number) for number in range(1, 31))])
    assert measure.categories == 3
    assert [measure.place(asked) for asked in (-1.0, 0.0, 0.5, 30.0)] == [0, 0, 1, 1]


def test_of_many_strings_the_commonest_are_kept() -> None:
    names: list[Value] = [f"c{number:02}" for number in range(30) for _ in range(30 - number)]
    measure = of_values(names)
    assert measure.categories == MOST_CATEGORIES + 1
    assert (measure.place("c00"), measure.place("c19"), measure.place("c20")) == (0, 19, 20)


@given(st.permutations([float(number % 3) for number in range(LEAST)]))
def test_the_order_of_the_requests_does_not_matter(values: list[Value]) -> None:
    assert of_values(values) == of_values(sorted(values, key=str))


def test_the_rows_of_a_request_share_one_unit() -> None:
    measure = of_values([0.0, 1.0] * LEAST)
    assert measure.shares((0.0, 1.0, 1.0, 5.0)) == (0.25, 0.5, 0.25)
    assert (measure.shares(None), measure.shares(())) == (None, None)
    assert ruler(HUNDREDS).shares((1.0,)) is None, "no prediction was ever told"


@pytest.mark.parametrize("values", [[0.0, 1.0], ["a", "b"], [True, False], [float(n) for n in range(100)]])
def test_what_is_kept_of_a_ruler_measures_the_same(values: list[Value]) -> None:
    measure = ruler([number / 7 for number in range(400)], [(values[n % len(values)],) for n in range(400)])
    again = Ruler.restore(json.loads(json.dumps(measure.state())))
    assert again == measure
    assert [again.place(value) for value in values] == [measure.place(value) for value in values]


def test_a_limit_counts_what_is_longer_after_what_is_tolerated() -> None:
    measure = ruler(HUNDREDS, scale=Scale(0.10, 0.25, 2.0, latency_slo_ms=50.0))
    assert [measure.over(Arm.STABLE, latency) for latency in (50.0, 50.1)] == [False, True]
    assert [measure.over(Arm.CANDIDATE, latency) for latency in (56.9, 57.1)] == [False, True]
    assert not ruler(HUNDREDS).over(Arm.CANDIDATE, inf)
    assert ruler(HUNDREDS, scale=Scale(latency_slo_ms=10_000.0)).longest >= 10_000.0
    assert Ruler.restore(json.loads(json.dumps(measure.state()))) == measure
