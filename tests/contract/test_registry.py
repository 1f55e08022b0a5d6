"""What every registry does, held against the one in memory and a real MLflow server.

`tests/mlflow_bounds.sh` runs this file with other releases of MLflow.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry_hooks.mlflow_registry import MlflowRegistry
from registry_hooks.model_version import Change, Channel, ModelVersion, Snapshot
from registry_hooks.registry import RegistryError, UnknownVersion
from registry_hooks.watcher import transitions
from tests.contract.mlflow_person import MlflowPerson
from tests.contract.people import Person, Registry
from tests.fakes.registry import FakeRegistry
from tests.fixtures.registry import MlflowServer

PRODUCTION, STAGING, ARCHIVED = (Channel.parse(name) for name in ("Production", "Staging", "Archived"))
CHAMPION, CHALLENGER = Channel.parse("@champion"), Channel.parse("@challenger")


@dataclass(frozen=True, slots=True)
class World:
    """A registry under test, who else works on it, and how to connect to it afresh."""

    registry: Registry
    person: Person
    again: Callable[[], Registry]

    def what_happened(self, before: Snapshot) -> list[tuple[str, int, str]]:
        """Transitions since `before`, short, of the models that `before` read."""
        after = self.registry.snapshot(before.models)
        return [(str(t.channel), t.version.version, t.change.value) for t in transitions(before, after)]


@pytest.fixture(params=["fake", "mlflow"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "fake":
        fake = FakeRegistry()
        return World(fake, fake, lambda: fake)
    return mlflow_world(request.getfixturevalue("mlflow_server"))


def mlflow_world(server: MlflowServer) -> World:
    return World(MlflowRegistry(server.uri), MlflowPerson.at(server), lambda: MlflowRegistry(server.uri))


@pytest.fixture
def churn() -> str:
    """A model name that no other test uses."""
    return f"churn-{uuid.uuid4().hex[:8]}"


def held(snapshot: Snapshot) -> set[tuple[int, str]]:
    return {(holding.version.version, str(holding.channel)) for holding in snapshot.holdings}


class TestSnapshot:
    def test_a_model_without_channels_is_there_and_holds_nothing(self, world: World, churn: str) -> None:
        world.person.register(churn)
        snapshot = world.registry.snapshot([churn])
        assert snapshot.models == {churn}
        assert not snapshot.gone | held(snapshot)

    def test_every_holder_of_a_stage_and_every_alias_is_seen(self, world: World, churn: str) -> None:
        for _ in range(3):
            world.person.register(churn)
        world.person.transition_stage(churn, 1, "Production")
        world.person.transition_stage(churn, 2, "Production")
        world.person.transition_stage(churn, 3, "Staging")
        world.person.set_alias(churn, "champion", 2)
        assert held(world.registry.snapshot([churn])) == {
            (1, "Production"),
            (2, "Production"),
            (3, "Staging"),
            (2, "@champion"),
        }

    def test_everything_holds_the_same_as_reading_by_name(self, world: World, churn: str) -> None:
        world.person.register(churn)
        world.person.transition_stage(churn, 1, "Staging")
        world.person.set_alias(churn, "challenger", 1)
        whole = world.registry.snapshot()
        assert churn in whole.models
        assert held(world.registry.snapshot([churn])) == {
            (h.version.version, str(h.channel)) for h in whole.holdings if h.version.model == churn
        }

    def test_a_model_that_is_not_there_is_gone(self, world: World, churn: str) -> None:
        world.person.register(churn)
        snapshot = world.registry.snapshot([churn, f"{churn}-not"])
        assert snapshot.models == {churn}
        assert snapshot.gone == {f"{churn}-not"}

    @pytest.mark.parametrize("name", ["it's", 'say "x"', "both ' and \"", "100% sure", "back\\new", "ünï, (code)"])
    def test_any_name_that_a_model_may_have(self, world: World, churn: str, name: str) -> None:
        odd = f"{churn} {name}"
        for model in (odd, churn, odd.replace("'", "x").replace('"', "x").replace("\\", "x") + "x"):
            world.person.register(model, run_id=None)
        world.person.transition_stage(odd, 1, "Production")
        snapshot = world.registry.snapshot([odd, churn])
        assert snapshot.models == {odd, churn}
        assert {h.version for h in snapshot.holdings} == {ModelVersion(odd, 1)}

    def test_more_models_than_one_request_takes(self, world: World, churn: str) -> None:
        names = [f"{churn}-{n}-{'long' * 20}" for n in range(70)]
        for name in names[:5]:
            world.person.register(name, run_id=None)
        snapshot = world.registry.snapshot(names)
        assert snapshot.models == set(names[:5])
        assert snapshot.gone == set(names[5:])


class TestTransitions:
    def test_entering_staging_then_production(self, world: World, churn: str) -> None:
        world.person.register(churn)
        before = world.registry.snapshot([churn])
        world.person.transition_stage(churn, 1, "Staging")
        assert world.what_happened(before) == [("Staging", 1, "entered")]
        between = world.registry.snapshot([churn])
        world.person.transition_stage(churn, 1, "Production")
        left, entered = transitions(between, world.registry.snapshot([churn]))
        assert (left.channel, left.change) == (STAGING, Change.LEFT)
        assert (entered.channel, entered.change, entered.came_from) == (PRODUCTION, Change.ENTERED, "Staging")

    @pytest.mark.parametrize("archive", [False, True])
    def test_the_archive_box_decides_whether_the_former_holder_leaves(
        self, world: World, churn: str, archive: bool
    ) -> None:
        for _ in range(2):
            world.person.register(churn)
        world.person.transition_stage(churn, 1, "Production")
        before = world.registry.snapshot([churn])
        world.person.transition_stage(churn, 2, "Production", archive)
        archived = [("Archived", 1, "entered"), ("Production", 1, "left")]
        happened = world.what_happened(before)
        assert sorted(happened) == sorted([("Production", 2, "entered"), *(archived if archive else [])])

    def test_an_old_version_enters_again(self, world: World, churn: str) -> None:
        for _ in range(2):
            world.person.register(churn)
        world.person.transition_stage(churn, 1, "Archived")
        world.person.transition_stage(churn, 2, "Production")
        before = world.registry.snapshot([churn])
        world.person.transition_stage(churn, 1, "Production", archive_existing=True)
        entered = [t for t in transitions(before, world.registry.snapshot([churn])) if t.channel == PRODUCTION]
        assert [(t.version.version, t.change, t.came_from) for t in entered] == [
            (2, Change.LEFT, None),
            (1, Change.ENTERED, "Archived"),
        ]

    def test_the_same_version_enters_again_after_it_was_taken_out(self, world: World, churn: str) -> None:
        version = world.person.register(churn)
        world.person.transition_stage(churn, 1, "Production")
        world.registry.assign(version, STAGING)
        before = world.registry.snapshot([churn])
        world.person.transition_stage(churn, 1, "Production")
        assert world.what_happened(before) == [("Staging", 1, "left"), ("Production", 1, "entered")]

    def test_a_candidate_is_withdrawn_and_the_channel_is_empty(self, world: World, churn: str) -> None:
        world.person.register(churn)
        world.person.transition_stage(churn, 1, "Production")
        before = world.registry.snapshot([churn])
        world.person.transition_stage(churn, 1, None)
        assert world.what_happened(before) == [("Production", 1, "left")]

    def test_an_alias_moves_in_one_step(self, world: World, churn: str) -> None:
        for _ in range(2):
            world.person.register(churn)
        world.person.set_alias(churn, "champion", 1)
        before = world.registry.snapshot([churn])
        world.person.set_alias(churn, "champion", 2)
        assert world.what_happened(before) == [("@champion", 1, "left"), ("@champion", 2, "entered")]

    def test_an_alias_is_removed(self, world: World, churn: str) -> None:
        world.person.register(churn)
        world.person.set_alias(churn, "champion", 1)
        before = world.registry.snapshot([churn])
        world.person.set_alias(churn, "champion", None)
        assert world.what_happened(before) == [("@champion", 1, "left")]

    def test_a_deleted_version_leaves_its_channels(self, world: World, churn: str) -> None:
        for _ in range(2):
            world.person.register(churn)
        world.person.transition_stage(churn, 1, "Production")
        world.person.set_alias(churn, "champion", 1)
        before = world.registry.snapshot([churn])
        world.person.delete_version(churn, 1)
        assert sorted(world.what_happened(before)) == [("@champion", 1, "left"), ("Production", 1, "left")]

    def test_a_deleted_model_leaves_its_channels(self, world: World, churn: str) -> None:
        world.person.register(churn)
        world.person.transition_stage(churn, 1, "Production")
        before = world.registry.snapshot([churn])
        world.person.delete_model(churn)
        assert world.what_happened(before) == [("Production", 1, "left")]

    def test_a_renamed_model_leaves_under_its_old_name_and_enters_under_its_new_one(
        self, world: World, churn: str
    ) -> None:
        world.person.register(churn)
        world.person.transition_stage(churn, 1, "Production")
        before = world.registry.snapshot([churn])
        world.person.rename_model(churn, f"{churn}-new")
        after = world.registry.snapshot([churn, f"{churn}-new"])
        assert {(t.version.model, t.change) for t in transitions(before, after)} == {
            (churn, Change.LEFT),
            (f"{churn}-new", Change.ENTERED),
        }

    def test_what_happened_while_nobody_looked_is_found_in_order(self, world: World, churn: str) -> None:
        for _ in range(3):
            world.person.register(churn)
        world.person.transition_stage(churn, 1, "Production")
        before = world.registry.snapshot([churn])
        world.person.transition_stage(churn, 3, "Staging")
        world.person.transition_stage(churn, 1, None)
        world.person.transition_stage(churn, 2, "Production")
        away = world.again().snapshot([churn])
        assert [(str(t.channel), t.version.version, t.change.value) for t in transitions(before, away)] == [
            ("Staging", 3, "entered"),
            ("Production", 1, "left"),
            ("Production", 2, "entered"),
        ]


class TestFeed:
    def test_the_first_answer_is_everything_and_then_only_what_changed(self, world: World, churn: str) -> None:
        feed = world.again()
        models = [f"{churn}-{n}" for n in range(3)]
        for model in models:
            world.person.register(model, run_id=None)
        assert feed.changed().models >= set(models)
        world.person.transition_stage(models[1], 1, "Production")
        changed = feed.changed()
        assert (1, "Production") in held(changed)
        assert models[1] in changed.models

    @pytest.mark.parametrize("what", ["archive", "delete", "register", "none"])
    def test_every_stage_change_is_in_it(self, world: World, churn: str, what: str) -> None:
        for _ in range(2):
            world.person.register(churn, run_id=None)
        world.person.transition_stage(churn, 1, "Production")
        before = world.registry.changed()
        acts: Mapping[str, Callable[[], object]] = {
            "archive": lambda: world.person.transition_stage(churn, 2, "Production", True),
            "delete": lambda: world.person.delete_version(churn, 1),
            "register": lambda: world.person.register(churn, run_id=None),
            "none": lambda: world.person.transition_stage(churn, 1, None),
        }
        acts[what]()
        changed = world.registry.changed()
        assert churn in changed.models
        left = {(t.version.version, t.change) for t in transitions(before, changed) if t.channel == PRODUCTION}
        assert ((1, Change.LEFT) in left) == (what != "register")

    def test_a_change_right_after_a_look_is_in_the_next_one(self, world: World, churn: str) -> None:
        world.person.register(churn, run_id=None)
        world.registry.changed()
        for stage in ["Staging", "Production"] * 5:
            world.person.transition_stage(churn, 1, stage)
            assert (1, stage) in held(world.registry.changed())

    def test_many_changes_at_once(self, world: World, churn: str) -> None:
        models = [f"{churn}-{n:02}" for n in range(25)]
        for model in models:
            world.person.register(model, run_id=None)
        world.registry.changed()
        for model in models:
            world.person.transition_stage(model, 1, "Production")
        changed = world.registry.changed()
        assert {h.version.model for h in changed.holdings if h.channel == PRODUCTION} >= set(models)

    def test_reading_more_models_never_costs_less(self, world: World) -> None:
        costs = [world.registry.cost(models) for models in range(300)]
        assert costs[0] == 0 < costs[1]
        assert costs == sorted(costs)


class TestDescribe:
    def test_everything_about_a_version(self, world: World, churn: str) -> None:
        version = world.person.register(churn)
        world.person.transition_stage(churn, 1, "Staging")
        world.person.set_alias(churn, "champion", 1)
        world.registry.annotate(version, {"promote.state": "live"})
        details = world.registry.describe(version)
        assert (details.version, details.stage, details.aliases) == (version, "Staging", ("champion",))
        assert (details.status, details.tags["promote.state"]) == ("READY", "live")
        assert details.run_id
        assert details.source
        assert details.created.tzinfo is not None

    def test_a_version_without_a_run(self, world: World, churn: str) -> None:
        details = world.registry.describe(world.person.register(churn, run_id=None))
        assert (details.run_id, details.stage, details.aliases) == (None, None, ())

    @pytest.mark.parametrize("act", ["describe", "assign", "annotate", "download"])
    def test_an_unknown_version(self, world: World, churn: str, act: str, tmp_path: Path) -> None:
        world.person.register(churn)
        for missing in (ModelVersion(churn, 9), ModelVersion(f"{churn}-not", 1)):
            acts: Mapping[str, Callable[[ModelVersion], object]] = {
                "describe": world.registry.describe,
                "assign": lambda version: world.registry.assign(version, PRODUCTION),
                "annotate": lambda version: world.registry.annotate(version, {"promote.state": "live"}),
                "download": lambda version: world.registry.download(version, tmp_path),
            }
            with pytest.raises(UnknownVersion) as raised:
                acts[act](missing)
            assert not raised.value.retryable


class TestAssign:
    def test_entering_a_stage_pushes_nobody_out(self, world: World, churn: str) -> None:
        first, second = (world.person.register(churn) for _ in range(2))
        for _ in range(2):
            world.registry.assign(first, PRODUCTION)
            world.registry.assign(second, PRODUCTION)
        assert held(world.registry.snapshot([churn])) == {(1, "Production"), (2, "Production")}

    def test_moving_between_stages(self, world: World, churn: str) -> None:
        version = world.person.register(churn)
        for channel, leave in ((STAGING, None), (PRODUCTION, STAGING), (ARCHIVED, PRODUCTION), (ARCHIVED, STAGING)):
            world.registry.assign(version, channel, leave=leave)
            assert held(world.registry.snapshot([churn])) == {(1, str(channel))}

    def test_leaving_a_stage_only_where_the_version_is_in_it(self, world: World, churn: str) -> None:
        version = world.person.register(churn)
        world.registry.assign(version, STAGING)
        world.registry.assign(version, None, leave=PRODUCTION)
        assert held(world.registry.snapshot([churn])) == {(1, "Staging")}
        for _ in range(2):
            world.registry.assign(version, None, leave=STAGING)
            assert held(world.registry.snapshot([churn])) == set()

    def test_moving_and_leaving_aliases(self, world: World, churn: str) -> None:
        first, second = (world.person.register(churn) for _ in range(2))
        world.registry.assign(first, CHAMPION)
        world.registry.assign(second, CHALLENGER)
        for _ in range(2):
            world.registry.assign(second, CHAMPION, leave=CHALLENGER)
            assert held(world.registry.snapshot([churn])) == {(2, "@champion")}
        world.registry.assign(first, None, leave=CHAMPION)
        assert held(world.registry.snapshot([churn])) == {(2, "@champion")}
        world.registry.assign(second, CHAMPION, leave=CHAMPION)
        assert held(world.registry.snapshot([churn])) == {(2, "@champion")}

    def test_from_a_stage_to_an_alias(self, world: World, churn: str) -> None:
        version = world.person.register(churn)
        world.registry.assign(version, STAGING)
        world.registry.assign(version, CHAMPION, leave=STAGING)
        assert held(world.registry.snapshot([churn])) == {(1, "@champion")}

    def test_repeating_it_leaves_no_mark(self, world: World, churn: str) -> None:
        version = world.person.register(churn)
        world.registry.assign(version, PRODUCTION)
        (before,) = world.registry.snapshot([churn]).holdings
        world.registry.assign(version, PRODUCTION)
        (after,) = world.registry.snapshot([churn]).holdings
        assert after.since == before.since


class TestAnnotate:
    def test_tags_are_set_changed_and_removed(self, world: World, churn: str) -> None:
        version = world.person.register(churn)
        for _ in range(2):
            world.registry.annotate(version, {"promote.state": "canary", "promote.weight": "5"})
        world.registry.annotate(version, {"promote.state": "live", "promote.weight": "", "promote.url": ""})
        assert dict(world.registry.describe(version).tags) == {"promote.state": "live"}

    def test_files_are_kept_with_the_run(self, world: World, churn: str) -> None:
        version = world.person.register(churn)
        for content in (b"{}", b'{"verdict": "pass"}'):
            world.registry.annotate(version, {}, {"promote/evidence.json": content, "promote/drift.html": b"<p>"})
        assert world.person.artifacts(version) == {
            "promote/evidence.json": b'{"verdict": "pass"}',
            "promote/drift.html": b"<p>",
        }

    def test_files_of_a_version_without_a_run_are_refused_after_its_tags_are_written(
        self, world: World, churn: str
    ) -> None:
        version = world.person.register(churn, run_id=None)
        with pytest.raises(RegistryError, match="no run") as raised:
            world.registry.annotate(version, {"promote.state": "live"}, {"promote/evidence.json": b"{}"})
        assert not raised.value.retryable
        assert world.registry.describe(version).tags["promote.state"] == "live"


class TestDownload:
    def test_the_model_comes_whole_and_stays(self, world: World, churn: str, tmp_path: Path) -> None:
        version = world.person.register(churn)
        folder = world.registry.download(version, tmp_path / "deep" / "er")
        assert (folder / "MLmodel").read_text() == "flavors: {}\n"
        assert world.registry.download(version, tmp_path / "deep" / "er") == folder
        assert [path for path in (tmp_path / "deep" / "er").iterdir() if path != folder] == []
