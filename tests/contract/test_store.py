"""One suite for every store: in memory, SQLite, PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest

from monitoring.analysis import Evidence
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.label_policy import LabelMode
from pipelines.live import Live, Warm
from pipelines.rollout import Event, GateResult, Goal, Intent, Origin, Phase, Rollout, RolloutPolicy
from pipelines.sql_store import SqlStore
from pipelines.store import (
    Approved,
    ApprovedFiles,
    Conflict,
    DriftRuns,
    History,
    Inbox,
    Lease,
    Lookup,
    RolloutStore,
    StoreError,
)
from registry_hooks.model_version import Channel, Holding, ModelVersion, Snapshot
from serving.revision import Revision, RevisionSettings
from serving.runtime.model_files import File
from tests.fakes.store import FakeStore

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, UTC)
LIVE_CHANNEL, PRE_LIVE = Channel.parse("Production"), Channel.parse("Staging")
CHAMPION = Channel.parse("@champion")


class Store(RolloutStore, ApprovedFiles, Lookup, Inbox, History, DriftRuns, Lease, Protocol):
    """Every port in one."""


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield FakeStore()
        return
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'store.db'}"
    else:
        url = request.getfixturevalue("postgres_database")()
    opened = SqlStore(url)
    yield opened
    opened.close()


def intent(name: str = "i1", model: str = "churn", at: datetime = NOW, **more: object) -> Intent:
    given = Intent(name, Goal.LIVE, LIVE_CHANNEL, model, 7, Origin.COMMAND, at, actor="ann")
    return replace(given, **more)  # type: ignore[arg-type]


def rollout(name: str = "r1", model: str = "churn", begun: datetime = NOW, **more: object) -> Rollout:
    begins = Rollout(name, intent(f"of-{name}", model), RolloutPolicy(), Phase.CHECKING, begun, begun, None)
    return replace(begins, **more)  # type: ignore[arg-type]


def revision(model: str = "churn", version: int = 6) -> Revision:
    settings = RevisionSettings(2, 512, 1.5, 12.5, (("A", "1"), ("B", "ü\x00")))
    return Revision(ModelVersion(model, version), "sha256:abc", settings)


def rich(name: str = "r1") -> Rollout:
    """A rollout in which nothing has its default."""
    analysis = AnalysisPolicy(alpha_rollback=0.02, margin_points=0.01)
    policy = RolloutPolicy((10, 100), 1.5, settings=revision().settings, analysis=analysis, require_signature=True)
    evidence = Evidence.start(analysis, policy.steps, labels=LabelMode.GATE)
    odd = replace(evidence.errors.worse, log_capital=(float("-inf"), 0.1 + 0.2, -1e-300))
    lost = replace(evidence.errors, worse=odd)
    return replace(
        rollout(name),
        intent=intent(channel=CHAMPION, reason="a 'reason'\nof two lines", came_from="Staging"),
        policy=policy,
        phase=Phase.PAUSED,
        stable=revision(version=6),
        candidate=revision(version=7),
        step=1,
        resume=Phase.PROGRESSING,
        held=True,
        claimed=True,
        superseded=True,
        reason="held",
        trouble="none\x00",
        gates=(GateResult("signature", passed=True, detail="fine"), GateResult("warm-up", passed=False)),
        evidence=replace(evidence, errors=lost, block=42),
        lock="sha256:def",
        annotated="digest",
    )


def event(text: str, model: str = "churn", kind: str = "phase", at: datetime = NOW) -> Event:
    return Event(model, at, kind, text, 7, "r1", "ann", {"weight": 5, "rates": [0.1, None], "deep": {"a": "b"}})


def holding(model: str, version: int, channel: Channel = LIVE_CHANNEL, since: datetime = NOW) -> Holding:
    return Holding(ModelVersion(model, version), channel, since)


def snapshot(models: Sequence[str], *holdings: Holding, gone: Sequence[str] = ()) -> Snapshot:
    return Snapshot(frozenset(models), frozenset(holdings), frozenset(gone), NOW)


def since(store: Store) -> dict[tuple[str, int, str], datetime]:
    held = store.before().holdings
    return {(h.version.model, h.version.version, str(h.channel)): h.since for h in held}


def texts(found: Sequence[Event]) -> list[str]:
    return [event.text for event in found]


def attempted(work: Callable[[], object]) -> bool:
    """Whether `work` went through without a conflict."""
    try:
        work()
    except Conflict:
        return False
    return True


# Rollouts


def test_an_empty_store(store: Store) -> None:
    collections = (store.active(), store.rollouts("churn"), store.lives(), store.pending(), store.read())
    assert not any(collections)
    assert store.before() == Snapshot(frozenset(), frozenset())
    single = (store.holder(), store.rollout("r1"), store.outcome("i1"), store.last_drift("churn"))
    assert single == (None, None, None, None)


@pytest.mark.parametrize("given", [rollout(), rich()], ids=["plain", "rich"])
def test_a_rollout_is_read_as_it_was_saved(store: Store, given: Rollout) -> None:
    saved = store.save(given)
    assert saved == replace(given, serial=1)
    assert store.active() == store.rollouts("churn") == (saved,)
    assert store.rollout("r1") == saved
    if saved.candidate is not None and given.candidate is not None:
        assert saved.candidate.id == given.candidate.id


def test_a_revision_keeps_its_id(store: Store) -> None:
    store.save(rich())
    assert [saved.candidate.id for saved in store.active() if saved.candidate] == [revision(version=7).id]


def test_moments_are_aware(store: Store) -> None:
    store.save(rollout(begun=NOW.astimezone()))
    store.observe(snapshot(["churn"], holding("churn", 7)), [intent()])
    store.append([event("one")])
    moments = [
        store.active()[0].begun,
        store.pending()[0].at,
        store.read()[0].at,
        since(store)["churn", 7, "Production"],
    ]
    assert moments == [NOW] * 4
    assert all(moment.utcoffset() is not None for moment in moments)


def test_each_save_needs_the_serial_before_it(store: Store) -> None:
    first = store.save(rollout())
    second = store.save(replace(first, phase=Phase.BUILDING))
    assert second.serial == 2
    for stale in (rollout(), first, replace(second, serial=3), replace(first, serial=-1)):
        with pytest.raises(Conflict) as refused:
            store.save(stale)
        assert not refused.value.retryable
    assert store.active() == (second,)


def test_a_rollout_that_was_never_saved_cannot_be_replaced(store: Store) -> None:
    with pytest.raises(Conflict):
        store.save(rollout(serial=1))
    assert store.active() == ()


def test_one_active_rollout_per_model_and_channel(store: Store) -> None:
    first = store.save(rollout("r1"))
    with pytest.raises(Conflict):
        store.save(rollout("r2"))
    other_channel = store.save(rollout("r3", intent=intent(channel=PRE_LIVE)))
    other_model = store.save(rollout("r4", model="fraud"))
    done = store.save(replace(first, settled=True))
    second = store.save(rollout("r2", begun=NOW + timedelta(seconds=1)))
    with pytest.raises(Conflict):
        store.save(replace(done, settled=False))
    assert set(store.active()) == {other_channel, other_model, second}


def test_active_rollouts_come_oldest_first_and_the_rest_newest_first(store: Store) -> None:
    for age in (3, 1, 2):
        store.save(rollout(f"a{age}", model=f"m{age}", begun=NOW - timedelta(hours=age)))
        store.save(rollout(f"s{age}", begun=NOW - timedelta(hours=age), settled=True))
    assert [r.id for r in store.active()] == ["a3", "a2", "a1"]
    assert [r.id for r in store.rollouts("churn")] == ["s1", "s2", "s3"]
    assert [r.id for r in store.rollouts("churn", limit=2)] == ["s1", "s2"]


def test_a_settled_rollout_is_still_found(store: Store) -> None:
    saved = store.save(rollout(settled=True, phase=Phase.FAILED))
    assert (store.active(), store.rollout("r1")) == ((), saved)


# The files of versions


def approved(version: int = 7, source: str = "runs:/1/model", content: str = "1" * 64) -> Approved:
    return Approved(
        ModelVersion("churn", version), source, {"MLmodel": File(content, 5), "data/ü": File("2" * 64, 0)}, NOW
    )


def test_the_first_record_of_a_version_stays(store: Store) -> None:
    first, later = approved(), replace(approved(content="3" * 64), at=NOW + timedelta(days=1))
    assert store.approved(first.version, first.source) is None
    assert store.approve(first) == first
    assert store.approve(later) == first
    assert store.approved(first.version, first.source) == first


def test_each_version_and_source_has_a_record_of_its_own(store: Store) -> None:
    others = [approved(), approved(version=8), approved(source="runs:/2/model")]
    assert [store.approve(other) for other in others] == others
    assert [store.approved(other.version, other.source) for other in others] == others


def test_many_threads_record_the_same(store: Store) -> None:
    seen = [approved(content=str(number) * 64) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        recorded = list(pool.map(store.approve, seen))
    assert len({dict(one.files)["MLmodel"] for one in recorded}) == 1


# What is live


def test_what_is_live_is_read_as_it_was_kept(store: Store) -> None:
    live = Live("churn", CHAMPION, revision(), NOW, (Warm(revision(version=5), NOW + timedelta(minutes=30)),))
    kept = store.keep(live, [event("kept")])
    assert kept == replace(live, serial=1)
    assert store.lives() == (kept,)
    retired = store.keep(replace(kept, stable=None, warm=()))
    assert store.lives() == (retired,)
    assert texts(store.read()) == ["kept"]


def test_what_is_live_per_model_and_channel(store: Store) -> None:
    wanted = [("churn", CHAMPION), ("churn", LIVE_CHANNEL), ("fraud", LIVE_CHANNEL)]
    for model, channel in reversed(wanted):
        store.keep(Live(model, channel, None, NOW))
    assert [(live.model, live.channel) for live in store.lives()] == wanted


def test_keeping_needs_the_serial_before_it(store: Store) -> None:
    kept = store.keep(Live("churn", LIVE_CHANNEL, None, NOW))
    for stale in (replace(kept, serial=0), replace(kept, serial=2)):
        with pytest.raises(Conflict):
            store.keep(stale, [event("never")])
    assert store.lives() == (kept,)
    assert store.read() == ()


def test_rollout_live_and_events_are_saved_together_or_not_at_all(store: Store) -> None:
    live = Live("churn", LIVE_CHANNEL, revision(), NOW)
    saved = store.save(rollout(), live, [event("first")])
    with pytest.raises(Conflict):
        store.save(replace(saved, step=1), live, [event("live is stale")])
    with pytest.raises(Conflict):
        store.save(rollout(), replace(live, serial=1, stable=None), [event("rollout is stale")])
    assert store.active() == (saved,)
    assert store.lives() == (replace(live, serial=1),)
    assert texts(store.read()) == ["first"]


def test_one_of_many_threads_saves_each_serial(store: Store) -> None:
    """Eight threads, ten rounds: each round starts together, and exactly one save goes through."""
    threads, current = 8, store.save(rollout())
    with ThreadPoolExecutor(threads) as pool:
        for step in range(10):
            start = threading.Barrier(threads)

            def race(name: int, start: threading.Barrier = start, step: int = step) -> bool:
                wanted = replace(current, reason=f"{step} by {name}")  # noqa: B023
                start.wait(20)
                return attempted(lambda: store.save(wanted, events=[event(wanted.reason)]))

            won = [name for name, through in enumerate(pool.map(race, range(threads))) if through]
            assert len(won) == 1
            (current,) = store.active()
            assert (current.serial, current.reason) == (step + 2, f"{step} by {won[0]}")
    assert len(store.read()) == 10


def test_one_of_many_threads_begins_a_rollout(store: Store) -> None:
    start = threading.Barrier(8)

    def race(name: int) -> bool:
        start.wait(20)
        return attempted(lambda: store.save(rollout(f"r{name}")))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(race, range(8))) == 1
    assert len(store.active()) == 1


# What the registry showed, and the intents


def test_observing_replaces_only_what_was_read(store: Store) -> None:
    store.observe(snapshot(["a", "b", "c", "d"], holding("a", 1), holding("b", 1), holding("c", 1)), [])
    later = snapshot(["a", "e"], holding("a", 2), holding("a", 3, CHAMPION), holding("e", 1), gone=["c", "unknown"])
    store.observe(later, [])
    before = store.before()
    assert before.models == {"a", "b", "d", "e"}
    assert before.holdings == {holding("a", 2), holding("a", 3, CHAMPION), holding("b", 1), holding("e", 1)}
    assert before.gone == frozenset()


def test_a_model_that_came_back_starts_anew(store: Store) -> None:
    store.observe(snapshot(["a"], holding("a", 1)), [])
    store.observe(snapshot([], gone=["a"]), [])
    assert store.before() == Snapshot(frozenset(), frozenset())
    store.observe(snapshot(["a"]), [])
    assert store.before() == snapshot(["a"])


def test_since_when_a_stage_is_held_follows_the_registry_and_an_alias_stays(store: Store) -> None:
    later = NOW + timedelta(hours=1)
    store.observe(snapshot(["a"], holding("a", 1), holding("a", 1, CHAMPION)), [])
    store.observe(snapshot(["a"], holding("a", 1, since=later), holding("a", 1, CHAMPION, later)), [])
    assert since(store) == {("a", 1, "Production"): later, ("a", 1, "@champion"): NOW}


def test_ten_thousand_models_are_remembered(store: Store) -> None:
    models = [f"model-{number}" for number in range(10_000)]
    everything = snapshot(models, *(holding(model, version) for model in models for version in (1, 2)))
    store.observe(everything, [])
    store.observe(everything, [])
    assert store.before() == everything
    store.observe(replace(everything, holdings=everything.holdings - {holding("model-7", 1)}), [])
    assert everything.holdings - store.before().holdings == {holding("model-7", 1)}


def test_observation_intents_and_events_are_one(store: Store) -> None:
    store.observe(snapshot(["a"], holding("a", 1)), [intent("i1"), intent("i2")], [event("seen")])
    assert [waiting.id for waiting in store.pending()] == ["i1", "i2"]
    assert texts(store.read()) == ["seen"]


def test_an_intent_is_read_as_it_was_submitted(store: Store) -> None:
    given = intent(version=None, reason="why", came_from="Staging", origin=Origin.DRIFT, goal=Goal.ABORT)
    store.submit(given)
    assert store.pending() == (given,)


def test_the_same_intent_again_changes_nothing(store: Store) -> None:
    store.submit(intent())
    store.submit(intent(reason="again"))
    store.observe(snapshot([]), [intent(reason="and again")])
    assert store.pending() == (intent(),)
    store.settle(["i1"], "done")
    store.submit(intent())
    assert store.pending() == ()


def test_intents_wait_in_the_order_of_their_time(store: Store) -> None:
    for name, seconds in (("late", 9), ("early", 1), ("first of two", 5), ("another of two", 5)):
        store.submit(intent(name, at=NOW + timedelta(seconds=seconds)))
    assert [waiting.id for waiting in store.pending()] == ["early", "first of two", "another of two", "late"]


def test_a_settled_intent_waits_no_more_and_keeps_its_first_outcome(store: Store) -> None:
    store.submit(intent("i1"))
    store.submit(intent("i2"))
    store.settle(["i1", "nobody's"], "rollout r1")
    store.settle(["i1"], "something else")
    store.settle([], "nothing")
    assert [waiting.id for waiting in store.pending()] == ["i2"]
    assert (store.outcome("i1"), store.outcome("i2"), store.outcome("nobody's")) == ("rollout r1", None, None)


# History


def test_an_event_is_read_as_it_was_told(store: Store) -> None:
    plain = Event("churn", NOW, "alert", "empty")
    store.append([event("rich \x00 ü"), plain])
    assert store.read() == (event("rich \x00 ü"), plain)


def test_the_newest_events_come_oldest_first(store: Store) -> None:
    store.append([event("1"), event("2", model="fraud"), event("3", at=NOW - timedelta(days=1))])
    store.append([event("4")])
    store.append([])
    assert texts(store.read()) == ["1", "2", "3", "4"]
    assert texts(store.read(limit=2)) == ["3", "4"]
    assert texts(store.read("churn", limit=2)) == ["3", "4"]
    assert texts(store.read("churn")) == ["1", "3", "4"]
    assert store.read("unknown") == ()


def test_the_last_drift_check_is_the_newest_by_time(store: Store) -> None:
    later = NOW + timedelta(hours=1)
    drifts = [event("new", kind="drift", at=later), event("late to tell", kind="drift")]
    store.append([*drifts, event("no check", at=later + timedelta(hours=1))])
    assert store.last_drift("churn") == later
    assert store.last_drift("fraud") is None


# The lease


def test_the_lease_has_one_holder(store: Store) -> None:
    assert store.acquire("first", 60)
    assert not store.acquire("second", 60)
    assert store.acquire("first", 60)
    held = store.holder()
    assert held is not None
    assert held[0] == "first"
    assert 30 < (held[1] - datetime.now(UTC)).total_seconds() < 90


def test_a_released_lease_is_free(store: Store) -> None:
    store.acquire("first", 60)
    store.release("second")
    assert not store.acquire("second", 60)
    store.release("first")
    assert store.holder() is None
    assert store.acquire("second", 60)


def test_a_lease_that_ran_out_is_taken_over(store: Store) -> None:
    asked = time.monotonic()
    assert store.acquire("first", 0.5)
    while not store.acquire("second", 60):
        assert time.monotonic() < asked + 30
        time.sleep(0.02)
    assert time.monotonic() - asked > 0.4
    assert not store.acquire("first", 60)


def test_nobody_holds_a_lease_that_ran_out(store: Store) -> None:
    store.acquire("first", -1)
    assert store.holder() is None


def test_one_of_many_threads_takes_the_lease(store: Store) -> None:
    start = threading.Barrier(8)

    def race(name: int) -> bool:
        start.wait(20)
        return store.acquire(f"holder {name}", 60)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(race, range(8))) == 1


# The fake's own


def test_a_broken_fake_fails_as_an_unreachable_database_does() -> None:
    store = FakeStore()
    store.broken = True
    with pytest.raises(StoreError) as failure:
        store.save(rollout())
    assert failure.value.retryable
    store.broken = False
    assert store.active() == ()


def test_the_lease_of_the_fake_runs_by_the_given_clock() -> None:
    now = NOW
    store = FakeStore(lambda: now)
    assert store.acquire("first", 10)
    now = NOW + timedelta(seconds=10)
    assert store.acquire("second", 10)
    assert store.holder() == ("second", NOW + timedelta(seconds=20))
