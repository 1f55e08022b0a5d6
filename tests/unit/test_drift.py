"""What a check concludes, what it advises, and when it is due: tables over plain values."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta

import pytest

from monitoring.drift import (
    Aspect,
    Comparison,
    DriftPolicy,
    DriftState,
    Finding,
    Role,
    Samples,
    calibrate,
    conclude,
    next_run,
)
from pipelines.drift_schedule import next_cron

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)


def samples(reference: int = 1000, current: int = 1000) -> Samples:
    return Samples(NOW, "the training data", reference, current)


def column(name: str, distance: float, role: Role = Role.INPUT, chance: float = 0.04) -> Comparison:
    return Comparison(name, role, Aspect.VALUES, "wasserstein", distance, chance, 0.1)


def prediction(distance: float) -> Comparison:
    return column("output.prediction", distance, Role.PREDICTION)


STILL = [column(f"input.{n}", 0.01) for n in range(9)]


@pytest.mark.parametrize(("reference", "current"), [(499, 5000), (5000, 499), (0, 0), (5000, 0)])
def test_too_few_rows_are_never_called_stable(reference: int, current: int) -> None:
    finding = conclude(DriftPolicy(), samples(reference, current), [prediction(0.9)])
    assert finding.state is DriftState.NOT_ENOUGH_DATA
    assert not finding.rollback_helps
    assert "500" in finding.diagnosis


def test_the_minimum_itself_is_enough() -> None:
    assert conclude(DriftPolicy(), samples(500, 500), [prediction(0.01)]).state is DriftState.STABLE


def test_nothing_in_common_is_an_error_and_not_stable() -> None:
    assert conclude(DriftPolicy(), samples(), []).state is DriftState.ERROR


@pytest.mark.parametrize(
    ("comparisons", "state", "helps", "says"),
    [
        ([prediction(0.01), *STILL], DriftState.STABLE, False, "Neither predictions nor inputs changed"),
        ([prediction(0.5), *STILL], DriftState.DRIFTED, True, "may help"),
        ([prediction(0.5), *STILL, column("input.x", 0.5)], DriftState.DRIFTED, False, "customers changed"),
        ([prediction(0.5), *STILL, column("input.x", 0.06)], DriftState.DRIFTED, False, "moved a little (input.x)"),
        ([prediction(0.5)], DriftState.DRIFTED, False, "cannot be told why"),
        ([prediction(0.01), *STILL, column("input.x", 0.5)], DriftState.DRIFTED, False, "predictions did not"),
        ([prediction(0.01), *STILL, column("input.x", 0.05)], DriftState.STABLE, False, "Neither"),
        ([*STILL, column("input.x", 0.5)], DriftState.DRIFTED, False, "predictions were not compared"),
        (STILL, DriftState.STABLE, False, "Predictions were not compared; no input changed"),
    ],
)
def test_diagnosis(comparisons: list[Comparison], state: DriftState, helps: bool, says: str) -> None:
    finding = conclude(DriftPolicy(), samples(), comparisons)
    assert (finding.state, finding.rollback_helps) == (state, helps)
    assert says in finding.diagnosis


def test_inputs_alone_count_by_their_share() -> None:
    one_of_twenty = [*(column(f"input.{n}", 0.01) for n in range(19)), column("input.x", 0.5)]
    seen = [prediction(0.01), *one_of_twenty]
    assert conclude(DriftPolicy(share=0.1), samples(), seen).state is DriftState.STABLE
    assert conclude(DriftPolicy(share=0.05), samples(), seen).state is DriftState.DRIFTED


def test_a_column_that_vanished_and_changed_counts_once() -> None:
    gone = Comparison("input.0", Role.INPUT, Aspect.MISSING, "jensenshannon", 0.5, 0.05, 0.1)
    finding = conclude(DriftPolicy(), samples(), [column("input.0", 0.5), gone, column("input.1", 0.0)])
    assert "1 of 2 inputs" in finding.diagnosis
    assert finding.drifted == ("input.0",)


def test_predictions_are_named_first_and_the_furthest_next() -> None:
    finding = conclude(DriftPolicy(), samples(), [column("input.a", 0.2), column("input.b", 0.9), prediction(0.11)])
    assert finding.drifted == ("output.prediction", "input.b", "input.a")


def test_what_could_not_be_compared_is_named_where_a_rollback_is_advised() -> None:
    finding = conclude(DriftPolicy(), samples(), [prediction(0.5), *STILL], {"input.note": "text"})
    assert finding.rollback_helps
    assert "input.note" in finding.diagnosis


def test_distance_has_to_matter_and_to_exceed_chance() -> None:
    assert not column("input.a", 0.09, chance=0.01).drifted
    assert not column("input.a", 0.19, chance=0.2).drifted
    assert column("input.a", 0.2, chance=0.2).drifted


def furthest_by_chance(columns: int, rng: random.Random, draws: int) -> dict[str, list[float]]:
    return {f"c{n}": [abs(rng.gauss(0.0, 1.0 + n)) for _ in range(draws)] for n in range(columns)}


@pytest.mark.parametrize("columns", [1, 14])
def test_calibration_bounds_the_false_alarms_of_the_whole_check(columns: int) -> None:
    rng = random.Random(7)
    checks, alarms = 400, 0
    for _ in range(checks):
        drawn = furthest_by_chance(columns, rng, 100)
        observed = {name: values.pop() for name, values in drawn.items()}
        chance = calibrate(drawn, 0.05)
        alarms += any(observed[name] > chance[name] for name in observed)
    # 5 % of 400 is 20; 35 is what a true rate of 5 % exceeds less than once in 1,000 times.
    assert 5 <= alarms <= 35


def test_calibration_of_a_constant_column() -> None:
    assert calibrate({"c": [0.0] * 99}, 0.01) == {"c": 0.0}
    assert calibrate({}, 0.01) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "every day"},
        {"schedule": 0},
        {"jitter_seconds": -1},
        {"minimum_rows": 0},
        {"most_rows": 100},
        {"reference_rows": 100},
        {"false_alarms": 0.001},
        {"false_alarms": 1.0},
        {"distance": 0},
        {"share": -0.1},
        {"window_seconds": 0},
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(wrong: dict[str, float | str]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DriftPolicy(**wrong)  # type: ignore[arg-type]


HOURLY = DriftPolicy(schedule=3600.0, jitter_seconds=0)
DAILY = DriftPolicy(schedule="30 6 * * *", jitter_seconds=0)


@pytest.mark.parametrize(
    ("policy", "last", "now", "due"),
    [
        (HOURLY, None, NOW + timedelta(minutes=5), NOW + timedelta(hours=1)),
        (HOURLY, NOW, NOW + timedelta(minutes=5), NOW + timedelta(hours=1)),
        (HOURLY, NOW + timedelta(minutes=7), NOW + timedelta(minutes=8), NOW + timedelta(hours=1)),
        (HOURLY, NOW - timedelta(hours=9), NOW + timedelta(minutes=5), NOW + timedelta(minutes=5)),
        (HOURLY, NOW + timedelta(minutes=5), NOW + timedelta(minutes=6), NOW + timedelta(hours=1)),
        (DAILY, None, NOW, datetime(2026, 3, 11, 6, 30, tzinfo=UTC)),
        (DAILY, datetime(2026, 3, 10, 6, 30, tzinfo=UTC), NOW, datetime(2026, 3, 11, 6, 30, tzinfo=UTC)),
        (DAILY, datetime(2026, 3, 8, 6, 30, tzinfo=UTC), NOW, NOW),
    ],
    ids=["never", "on time", "late", "missed many", "caught up", "cron never", "cron on time", "cron missed two"],
)
def test_when_a_check_is_due(policy: DriftPolicy, last: datetime | None, now: datetime, due: datetime) -> None:
    assert next_run(policy, last, now, "churn", next_cron) == due


def test_jitter_is_the_models_own_and_does_not_move_the_grid() -> None:
    policy = DriftPolicy(schedule=3600.0, jitter_seconds=600)
    due = {model: next_run(policy, None, NOW, model, next_cron) for model in (f"model {n}" for n in range(50))}
    again = {model: next_run(policy, when, when, model, next_cron) for model, when in due.items() if when}
    assert all(again[model] == when + timedelta(hours=1) for model, when in due.items() if when)
    offsets = [(when - NOW).total_seconds() % 3600 for when in due.values() if when]
    assert all(0 <= offset < 600 for offset in offsets)
    assert len({math.floor(offset / 60) for offset in offsets}) == 10


@pytest.mark.parametrize(
    ("expression", "timezone", "due"),
    [
        ("0 6 * * 0", "UTC", datetime(2026, 3, 15, 6, tzinfo=UTC)),
        ("0 6 * * 7", "UTC", datetime(2026, 3, 15, 6, tzinfo=UTC)),
        ("0 6 * * 1-5", "UTC", datetime(2026, 3, 11, 6, tzinfo=UTC)),
        ("0 6 * * sat,sun", "UTC", datetime(2026, 3, 14, 6, tzinfo=UTC)),
        ("0 6 * * 6-7", "UTC", datetime(2026, 3, 14, 6, tzinfo=UTC)),
        ("0 6 * * */3", "UTC", datetime(2026, 3, 11, 6, tzinfo=UTC)),
        ("0 6 20 * fri", "UTC", datetime(2026, 3, 13, 6, tzinfo=UTC)),
        ("0 6 12 * fri", "UTC", datetime(2026, 3, 12, 6, tzinfo=UTC)),
        ("*/20 * * * *", "UTC", datetime(2026, 3, 10, 12, 20, tzinfo=UTC)),
        ("0 14 * * *", "Europe/Berlin", datetime(2026, 3, 10, 13, tzinfo=UTC)),
    ],
)
def test_cron_means_what_cron_means(expression: str, timezone: str, due: datetime) -> None:
    assert next_cron(expression, timezone, NOW) == due


@pytest.mark.parametrize("expression", ["0 6 * * 8", "0 6 * * foo", "61 * * * *", "0 6 * *", "0 6 * * 1-"])
def test_what_is_no_cron_expression_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        next_cron(expression, "UTC", NOW)


def test_a_finding_says_nothing_drifted_without_comparisons() -> None:
    assert Finding(DriftState.STABLE, samples(), "").drifted == ()
