"""Transitions as tables, and what a look asks the registry for."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import pytest

from registry_hooks.model_version import Channel, Holding, ModelVersion, Snapshot
from registry_hooks.registry import RegistryError
from registry_hooks.watcher import Watcher, transitions
from tests.fakes.registry import FakeRegistry

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def snapshot(*held: str, read: float = 100, models: str = "churn", gone: str = "", idle: str = "") -> Snapshot:
    """``"7 Production 20"`` is churn 7 in Production since second 20; `idle` ``"6 15"`` is 6, in no stage since 15."""
    since = {ModelVersion("churn", int(v)): at(float(t)) for v, t in [text.split() for text in filter(None, [idle])]}
    return Snapshot(frozenset(models.split()), frozenset(map(holding, held)), frozenset(gone.split()), at(read), since)


def holding(text: str) -> Holding:
    version, channel, since = text.split()
    return Holding(ModelVersion("churn", int(version)), Channel.parse(channel), at(float(since)))


def happened(before: Snapshot, after: Snapshot) -> list[str]:
    return [
        f"{t.version.version} {t.change.value} {t.channel} at {(t.at - START).total_seconds():.0f}"
        + (f" from {t.came_from}" if t.came_from else "")
        for t in transitions(before, after)
    ]


NONE = snapshot(read=0)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param(NONE, NONE, [], id="nothing"),
        pytest.param(
            snapshot("7 Production 1"), snapshot("7 Production 50"), [], id="another time stamp is no transition"
        ),
        pytest.param(NONE, snapshot("7 Production 20"), ["7 entered Production at 20"], id="entered"),
        pytest.param(
            snapshot("7 Staging 1"),
            snapshot("7 Production 20"),
            ["7 left Staging at 20", "7 entered Production at 20 from Staging"],
            id="moved between stages",
        ),
        pytest.param(
            snapshot("7 Production 1"),
            snapshot(idle="7 30"),
            ["7 left Production at 30"],
            id="left to no stage, dated by the version",
        ),
        pytest.param(
            snapshot("7 Production 1"), snapshot(), ["7 left Production at 100"], id="deleted, dated by the look"
        ),
        pytest.param(
            snapshot("6 Production 1", "7 Staging 2"),
            snapshot("6 Archived 20", "7 Production 20"),
            [
                "6 left Production at 20",
                "7 left Staging at 20",
                "6 entered Archived at 20 from Production",
                "7 entered Production at 20 from Staging",
            ],
            id="archive box: all leave before any enters",
        ),
        pytest.param(
            snapshot("6 Production 1"),
            snapshot("6 Production 1", "7 Production 20", "8 Production 10"),
            ["8 entered Production at 10", "7 entered Production at 20"],
            id="several holders, in the order of time",
        ),
        pytest.param(
            snapshot("6 Production 1"),
            snapshot("7 Production 20", idle="6 10"),
            ["6 left Production at 10", "7 entered Production at 20"],
            id="while nobody looked, in order",
        ),
        pytest.param(
            snapshot("6 @champion 1"),
            snapshot("7 @champion 100"),
            ["6 left @champion at 100", "7 entered @champion at 100"],
            id="an alias moves",
        ),
        pytest.param(
            snapshot("7 @champion 1", "7 Staging 1"),
            snapshot("7 @champion 100", "7 @challenger 100", "7 Staging 1"),
            ["7 entered @challenger at 100"],
            id="an alias tells no stage to come from",
        ),
        pytest.param(
            snapshot("7 @champion 1", "7 Production 1"),
            snapshot(models="", gone="churn"),
            ["7 left @champion at 100", "7 left Production at 100"],
            id="a model that is gone",
        ),
        pytest.param(snapshot("7 Production 1"), snapshot(models="other"), [], id="a model that was not read"),
    ],
)
def test_transitions(before: Snapshot, after: Snapshot, expected: list[str]) -> None:
    assert happened(before, after) == expected


def test_a_snapshot_without_a_time_dates_a_departure_by_the_newest_time_it_knows() -> None:
    after = Snapshot(frozenset({"churn"}), frozenset({holding("8 Staging 40")}))
    assert happened(snapshot("7 @champion 1", "8 Staging 40"), after) == ["7 left @champion at 40"]


def test_what_was_read_later_replaces_only_its_own_models() -> None:
    first = snapshot("7 Production 1", models="churn fraud", gone="old")
    later = snapshot(models="old", gone="churn")
    merged = first.then(later)
    assert merged == snapshot(models="fraud old", gone="churn")


class Reader(FakeRegistry):
    """A second connection to `other` that writes down what was read by name; ``*`` is everything."""

    def __init__(self, other: FakeRegistry) -> None:
        super().__init__(other.clock)
        self.models = other.models
        self.read: list[str] = []

    def snapshot(self, models: Collection[str] | None = None) -> Snapshot:
        self.read += ["*"] if models is None else sorted(models)
        return super().snapshot(models)


class Installation:
    """A registry with models ``m00``, ``m01`` ... and a watcher over it."""

    def __init__(self, models: int, aliased: int = 0, per_minute: int = 60, full: float = 600) -> None:
        self.now = START
        self.registry = FakeRegistry(lambda: self.now)
        self.names = [self.registry.register(f"m{n:02}").model for n in range(models)]
        self.reader = Reader(self.registry)
        self.watcher = Watcher(self.reader, self.registry, lambda: self.names[:aliased], per_minute, full)
        self.watcher.look(self.now)

    def look(self, after: float, hints: Collection[str] = (), known: Collection[str] = ()) -> Snapshot:
        self.now += timedelta(seconds=after)
        return self.watcher.look(self.now, hints, known)

    def read(self) -> list[str]:
        """What was read by name since the last time."""
        names, self.reader.read = self.reader.read, []
        return names


def test_the_first_look_shows_everything() -> None:
    registry = FakeRegistry()
    names = {registry.register(name).model for name in ("churn", "fraud")}
    assert Watcher(registry, registry, lambda: (), 60, 600).look(START).models == names


def test_a_look_costs_nothing_by_name_when_nothing_changed_and_nobody_uses_aliases() -> None:
    world = Installation(models=5)
    assert world.look(5).known == frozenset()
    assert world.read() == []


def test_a_stage_change_is_seen_by_the_next_look() -> None:
    world = Installation(models=3)
    world.registry.transition_stage("m01", 1, "Production")
    assert world.look(5).models == {"m01"}


def test_a_hinted_model_is_read_at_once_unless_it_just_was() -> None:
    world = Installation(models=3)
    world.registry.transition_stage("m01", 1, "Production")
    world.registry.set_alias("m02", "champion", 1)
    seen = world.look(0, hints=["m01", "m02", "gone"])
    assert world.read() == ["gone", "m02"]
    assert (seen.models, seen.gone) == (frozenset({"m01", "m02"}), frozenset({"gone"}))


def test_aliased_models_are_read_in_turns_within_the_budget() -> None:
    world = Installation(models=25, aliased=20, per_minute=60)
    turns = []
    for _ in range(8):
        world.look(5)
        turns.append(world.read())
    assert {len(turn) for turn in turns} == {2, 3}
    assert sorted(name for turn in turns for name in turn) == world.names[:20]
    world.look(5)
    assert set(world.read()) < set(turns[0] + turns[1])


def test_every_alias_is_seen_within_the_stated_delay() -> None:
    world = Installation(models=12, aliased=12, per_minute=60)
    delay = world.watcher.worst_alias_delay()
    before = world.registry.snapshot()
    for name in world.names:
        world.registry.set_alias(name, "champion", 1)
    seen = before
    for _ in range(int(delay)):
        seen = seen.then(world.look(1))
    assert len(transitions(before, seen)) == 12


def test_the_budget_of_a_long_pause_is_not_saved_up() -> None:
    world = Installation(models=90, aliased=90, per_minute=60, full=1e6)
    world.look(3600)
    assert len(world.read()) == 30


def test_a_budget_below_one_model_still_comes_round() -> None:
    world = Installation(models=2, aliased=2, per_minute=1, full=1e6)
    for _ in range(4):
        world.look(60)
    assert world.read() == ["m00", "m01"]


@pytest.mark.parametrize(
    ("aliased", "per_minute", "expected"), [(0, 60, 0), (10, 60, 20), (10, 120, 10), (90, 6, 600), (10, 0, 600)]
)
def test_the_worst_delay_follows_from_models_and_budget(aliased: int, per_minute: int, expected: float) -> None:
    assert Installation(90, aliased, per_minute, full=600).watcher.worst_alias_delay() == expected


def test_everything_is_read_once_in_a_while_and_shows_what_is_gone() -> None:
    world = Installation(models=3, full=600)
    world.registry.delete_model("m01")
    assert world.look(599, known=world.names).known == frozenset()
    seen = world.look(1, known=world.names)
    assert world.read() == ["*", "m01"]
    assert (seen.models, seen.gone) == (frozenset({"m00", "m02"}), frozenset({"m01"}))
    world.look(5, known=world.names)
    assert world.read() == []


def test_what_was_deleted_while_nobody_looked_is_gone_at_the_first_look() -> None:
    registry = FakeRegistry()
    registry.register("churn")
    seen = Watcher(registry, registry, lambda: (), 60, 600).look(START, known=["churn", "fraud"])
    assert seen.gone == {"fraud"}


def test_a_look_that_fails_loses_nothing() -> None:
    world = Installation(models=3)
    world.registry.transition_stage("m01", 1, "Production")
    world.reader.broken = True
    with pytest.raises(RegistryError):
        world.look(5, hints=["m02"])
    world.reader.broken = False
    assert world.look(5).models == {"m01"}
    assert world.look(5).models == frozenset()


def test_a_look_that_could_not_be_saved_comes_again() -> None:
    world = Installation(models=3)
    world.registry.transition_stage("m01", 1, "Staging")
    world.watcher.put_back(world.look(5))
    world.registry.transition_stage("m01", 1, "Production")
    world.registry.transition_stage("m02", 1, "Staging")
    seen = world.look(5)
    assert sorted(str(h.channel) for h in seen.holdings) == ["Production", "Staging"]
    assert seen.models == {"m01", "m02"}
