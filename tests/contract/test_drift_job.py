"""One drift check of one model, and the clock that starts it: real MLflow, Evidently, prediction log and webhook;
where a port has to fail or time has to pass, the fakes."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import DatasetInput
from prometheus_client import CollectorRegistry

from monitoring.drift import Action, DriftPolicy, DriftState
from monitoring.drift_gauges import DriftGauges
from monitoring.evidently_drift import EvidentlyDrift
from monitoring.logged_rows import LoggedRows
from monitoring.notify import Notifiers
from monitoring.webhook_notify import WebhookNotifier
from pipelines.drift_here import DriftChecksHere
from pipelines.drift_job import DriftJob, DriftOutcome
from pipelines.drift_reference import DriftCheck
from pipelines.drift_schedule import DriftSchedule
from registry_hooks.mlflow_reference import MlflowReference
from registry_hooks.mlflow_registry import MlflowRegistry
from registry_hooks.model_version import ModelVersion
from registry_hooks.reference import LoggedData
from tests.fakes.drift import FakeDriftReporter, FakeNotifier, FakeReferenceData, FakeServedRows
from tests.fakes.registry import FakeRegistry
from tests.fixtures.drift import Receiver, WriteLog, customers
from tests.fixtures.registry import MlflowServer

LIVE = datetime(2026, 3, 10, 0, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
POLICY = DriftPolicy(reference_rows=1000, window_seconds=3600, action=Action.ROLLBACK)


def as_trained(rows: pd.DataFrame) -> pd.DataFrame:
    """As a training set has it: bare names, a label under the prediction's name, an identifier."""
    inputs = rows.filter(like="input.").rename(columns=lambda name: name.partition(".")[2])
    return inputs.assign(prediction=rows["output.prediction"] > 0.5, customer=range(len(rows)))


@dataclass(slots=True)
class World:
    """One model whose check runs over the fakes, but for the numbers."""

    registry: FakeRegistry = field(default_factory=FakeRegistry)
    logged: FakeReferenceData = field(default_factory=FakeReferenceData)
    served: FakeServedRows = field(default_factory=FakeServedRows)
    notifier: FakeNotifier = field(default_factory=FakeNotifier)
    metrics: CollectorRegistry = field(default_factory=CollectorRegistry)
    version: ModelVersion = field(init=False)
    job: DriftJob = field(init=False)

    def __post_init__(self) -> None:
        self.version = self.registry.register("churn")
        gauges = DriftGauges(self.metrics)
        checks = DriftChecksHere(self.registry, self.logged, self.served, FakeDriftReporter())
        self.job = DriftJob(checks, self.registry, self.notifier, gauges)

    def train_on(self, rows: pd.DataFrame) -> None:
        self.logged.logged["run"] = LoggedData("the training data", rows)

    def serve(self, *parts: pd.DataFrame) -> datetime:
        """Serve the parts one after the other, a row a second; when the last was served."""
        rows = pd.concat(parts, ignore_index=True)
        times = pd.date_range(LIVE, periods=len(rows), freq="s")
        self.served.tables[self.version] = rows.assign(timestamp=times)
        return LIVE + len(rows) * SECOND

    def check(self, now: datetime, policy: DriftPolicy = POLICY) -> DriftOutcome:
        return self.job.run(DriftCheck(self.version, policy, LIVE), now)


@pytest.fixture
def world() -> World:
    return World()


# What the reference is.


def test_served_rows_are_the_reference_where_the_run_has_none(world: World) -> None:
    now = world.serve(customers(1000, 1), customers(1000, 2))
    finding = world.check(now).finding
    assert finding.state is DriftState.STABLE
    assert finding.samples.reference.startswith("the first 1000 rows served with all the traffic (no data set")
    assert (finding.samples.reference_rows, finding.samples.current_rows) == (1000, 1000)


def test_no_row_is_compared_with_itself(world: World) -> None:
    """While the reference is still being gathered there is nothing that it could be compared with."""
    now = world.serve(customers(999, 1))
    finding = world.check(now).finding
    assert finding.state is DriftState.NOT_ENOUGH_DATA
    assert finding.samples.current_rows == 0


@pytest.mark.parametrize(("current", "state"), [(499, DriftState.NOT_ENOUGH_DATA), (500, DriftState.STABLE)])
def test_the_minimum_of_rows(world: World, current: int, state: DriftState) -> None:
    outcome = world.check(world.serve(customers(1000, 1), customers(current, 2)))
    assert outcome.finding.state is state
    assert world.registry.describe(world.version).tags["promote.drift"] == state


def test_logged_inputs_and_served_predictions(world: World) -> None:
    world.train_on(as_trained(customers(3000, 3)))
    now = world.serve(customers(1000, 1), customers(800, 2))
    finding = world.check(now).finding
    assert finding.state is DriftState.STABLE
    assert "output.prediction" in {c.column for c in finding.comparisons}
    assert "predictions of the first 1000 rows" in finding.samples.reference
    assert finding.samples.current_rows == 800
    assert finding.left_out["input.customer"] == "not in the current rows"


def test_labels_of_a_logged_data_set_are_not_predictions(world: World) -> None:
    world.train_on(as_trained(customers(3000, 3)))
    finding = world.check(world.serve(customers(600, 2))).finding
    assert finding.state is DriftState.STABLE
    assert "no predictions yet" in finding.samples.reference
    assert finding.left_out["output.prediction"] == "not in the reference"


def test_a_data_set_in_the_words_of_the_log_has_predictions(world: World) -> None:
    world.train_on(customers(2000, 3))
    finding = world.check(world.serve(customers(600, 2, lifted=0.2))).finding
    assert finding.drifted == ("output.prediction",)
    assert finding.samples.current_rows == 600


def test_a_data_set_of_something_else_is_no_reference(world: World) -> None:
    world.train_on(pd.DataFrame({"embedding": [0.0] * 3000}))
    finding = world.check(world.serve(customers(1000, 1), customers(600, 2))).finding
    assert finding.state is DriftState.STABLE
    assert "has none of the model's inputs" in finding.samples.reference


def test_only_the_window_is_current(world: World) -> None:
    changed = customers(600, 2, fibre=0.75)
    now = world.serve(customers(1000, 1), changed, customers(3600, 3))
    assert world.check(now).finding.state is DriftState.STABLE
    assert world.check(LIVE + 1600 * SECOND).finding.state is DriftState.DRIFTED


def test_a_window_of_rows(world: World) -> None:
    policy = DriftPolicy(reference_rows=1000, window_rows=700)
    finding = world.check(world.serve(customers(1000, 1), customers(3000, 2)), policy).finding
    assert finding.samples.current_rows == 700


# What follows.


@pytest.mark.parametrize(
    ("fibre", "lifted", "action", "rollback"),
    [
        (0.4, 0.2, Action.ROLLBACK, True),
        (0.4, 0.2, Action.ALERT, False),
        (0.75, 0.0, Action.ROLLBACK, False),
        (0.4, 0.0, Action.ROLLBACK, False),
    ],
    ids=["model changed", "model changed, alert only", "customers changed", "nothing changed"],
)
def test_a_rollback_is_wished_for_only_where_it_helps(
    world: World, fibre: float, lifted: float, action: Action, rollback: bool
) -> None:
    policy = DriftPolicy(reference_rows=1000, window_seconds=3600, action=action)
    now = world.serve(customers(1000, 1), customers(1000, 2, fibre=fibre, lifted=lifted))
    assert world.check(now, policy).rollback is rollback


def test_drift_is_told_and_so_is_its_end(world: World) -> None:
    world.serve(customers(1000, 1), customers(600, 2, lifted=0.2), customers(3700, 3))
    for after in (1500, 1600, 5300, 5300):
        world.check(LIVE + after * SECOND)
    told = [(alert.title, alert.severity) for alert in world.notifier.told]
    assert told == [("predictions drifted", "warning")] * 2 + [("drift is over", "info")]


def test_nothing_is_told_of_too_few_rows(world: World) -> None:
    world.check(world.serve(customers(100, 1)))
    assert world.notifier.told == []


def test_the_history_gets_the_numbers(world: World) -> None:
    event = world.check(world.serve(customers(1000, 1), customers(1000, 2, lifted=0.2))).event
    assert (event.kind, event.model, event.version) == ("drift", "churn", 1)
    assert event.text.startswith("drifted: Predictions changed")
    assert json.loads(json.dumps(dict(event.data)))["drifted"] == ["output.prediction"]


def test_gauges_show_the_last_version_only(world: World) -> None:
    world.check(world.serve(customers(1000, 1), customers(1000, 2, lifted=0.2)))
    own = {"model": "churn", "version": "1"}
    score = world.metrics.get_sample_value("promote_drift_score", {**own, "column": "output.prediction"})
    line = world.metrics.get_sample_value("promote_drift_threshold", {**own, "column": "output.prediction"})
    assert score is not None
    assert line is not None
    assert score > line
    assert world.metrics.get_sample_value("promote_drift_state", {**own, "state": "drifted"}) == 1
    assert world.metrics.get_sample_value("promote_drift_state", {**own, "state": "stable"}) == 0
    world.version = world.registry.register("churn")
    world.check(LIVE)
    assert world.metrics.get_sample_value("promote_drift_state", {**own, "state": "drifted"}) is None
    assert not [s for metric in world.metrics.collect() for s in metric.samples if s.labels["version"] == "1"]


@pytest.mark.parametrize("port", ["registry", "logged", "served"])
def test_a_check_that_fails_is_a_finding_and_is_told(world: World, port: str) -> None:
    now = world.serve(customers(1000, 1), customers(1000, 2))
    getattr(world, port).broken = True
    outcome = world.check(now)
    assert outcome.finding.state is DriftState.ERROR
    assert not outcome.rollback
    assert [alert.title for alert in world.notifier.told] == ["drift check failed"]
    assert outcome.event.text.startswith("error: ")


def test_a_version_without_a_run_is_checked_too(world: World) -> None:
    world.version = world.registry.register("churn", run_id=None)
    outcome = world.check(world.serve(customers(1000, 1), customers(1000, 2)))
    assert outcome.finding.state is DriftState.STABLE
    assert outcome.documents == ()
    assert world.registry.describe(world.version).tags["promote.drift"] == "stable"


# With everything real.


@dataclass(frozen=True, slots=True)
class Registered:
    """A version in a real registry, and the run that made it."""

    client: MlflowClient
    version: ModelVersion
    run_id: str


@pytest.fixture
def registered(mlflow_server: MlflowServer, tmp_path: Path) -> Registered:
    client = MlflowClient(tracking_uri=mlflow_server.uri)
    run_id = str(client.create_run(client.create_experiment(uuid.uuid4().hex)).info.run_id)
    table = as_trained(customers(3000, 3))
    table.to_parquet(tmp_path / "train.parquet")
    data = from_pandas(table, source=str(tmp_path / "train.parquet"), name="customers of 2025")
    client.log_inputs(run_id, [DatasetInput(data._to_mlflow_entity(), [])])
    model = f"churn-{uuid.uuid4().hex[:8]}"
    client.create_registered_model(model)
    made = client.create_model_version(model, source=f"runs:/{run_id}/model", run_id=run_id)
    return Registered(client, ModelVersion(model, int(made.version)), run_id)


@pytest.mark.filterwarnings("ignore:The specified dataset source can be interpreted:UserWarning")
def test_drift_noticed_end_to_end(
    mlflow_server: MlflowServer, registered: Registered, receiver: Receiver, write_log: WriteLog, tmp_path: Path
) -> None:
    begin = LIVE
    version = registered.version
    url = write_log(version, customers(1000, 1), begin, timedelta(seconds=10))
    write_log(version, customers(800, 2, fibre=0.75), begin + timedelta(hours=1), timedelta(seconds=10))
    registry = MlflowRegistry(mlflow_server.uri)
    job = DriftJob(
        DriftChecksHere(registry, MlflowReference(mlflow_server.uri), LoggedRows(url), EvidentlyDrift()),
        registry,
        Notifiers([WebhookNotifier(receiver.url)]),
        DriftGauges(CollectorRegistry()),
    )
    outcome = job.run(DriftCheck(version, POLICY, begin), begin + timedelta(hours=2))

    assert outcome.finding.state is DriftState.DRIFTED
    assert outcome.finding.samples.reference.startswith("data set customers of 2025, logged with the run; predictions")
    assert {"output.prediction", "input.internet"} <= set(outcome.finding.drifted)
    assert not outcome.rollback
    tags = registered.client.get_model_version(version.model, str(version.version)).tags
    assert (tags["promote.drift"], tags["promote.drift_at"]) == ("drifted", "2026-03-10T02:00:00+00:00")
    [alert] = receiver.bodies
    assert (alert["title"], alert["model"]) == ("predictions drifted", version.model)
    kept = {file.path for file in registered.client.list_artifacts(registered.run_id, "promote/drift")}
    stem = "promote/drift/2026-03-10T02-00-00Z"
    assert kept == {f"{stem}.html", f"{stem}.json", "promote/drift/latest.html"} == set(outcome.documents)
    told = json.loads(Path(registered.client.download_artifacts(registered.run_id, f"{stem}.json")).read_text())
    assert (told["state"], told["current_rows"]) == ("drifted", 800)
    assert any("ValueDrift" in metric["metric_name"] for metric in told["measured"]["metrics"])


# By the clock.


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@dataclass(slots=True)
class Clock:
    """What the schedule calls."""

    policies: dict[str, DriftPolicy]
    last: dict[str, datetime] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)

    def run(self, model: str) -> None:
        self.runs.append(model)
        if model == "slow":
            self.hold.wait(20)
        if model == "broken":
            raise RuntimeError(model)

    def schedule(self, workers: int = 1) -> DriftSchedule:
        return DriftSchedule(self.run, lambda: self.policies, self.last.get, workers)


OFTEN = DriftPolicy(schedule=0.2, jitter_seconds=0)
RARELY = DriftPolicy(schedule=864_000.0, jitter_seconds=0)


def test_checks_are_made_again_and_again_and_an_error_ends_nothing() -> None:
    clock = Clock({"churn": OFTEN, "broken": OFTEN})
    schedule = clock.schedule()
    schedule.start()
    eventually(lambda: clock.runs.count("churn") >= 3 and clock.runs.count("broken") >= 3)
    schedule.stop()
    assert schedule.next_runs() == {}
    assert not [thread for thread in threading.enumerate() if "APScheduler" in thread.name]


def test_missed_checks_are_caught_up_once() -> None:
    long_ago = datetime.now(UTC) - timedelta(days=100)
    clock = Clock({"missed": RARELY, "recent": RARELY, "never": RARELY}, {"missed": long_ago})
    clock.last["recent"] = datetime.now(UTC)
    schedule = clock.schedule()
    schedule.start()
    eventually(lambda: clock.runs == ["missed"])
    eventually(lambda: schedule.next_runs()["missed"] > datetime.now(UTC))
    due = schedule.next_runs()
    schedule.stop()
    assert clock.runs == ["missed"]
    assert due["missed"] == due["recent"] == due["never"]


def test_a_long_check_is_not_started_again_and_holds_nobody_up() -> None:
    clock = Clock({"slow": OFTEN, "churn": OFTEN})
    schedule = clock.schedule(workers=2)
    schedule.start()
    eventually(lambda: "slow" in clock.runs and clock.runs.count("churn") >= 4)
    assert clock.runs.count("slow") == 1
    clock.hold.set()
    schedule.stop()


def test_the_schedule_follows_the_policies() -> None:
    clock = Clock({"churn": RARELY, "gone": RARELY, "unclear": DriftPolicy(schedule="99 * * * *")})
    schedule = clock.schedule()
    schedule.start()
    assert schedule.next_runs().keys() == {"churn", "gone"}
    before = schedule.next_runs()
    clock.policies = {"churn": DriftPolicy(schedule="0 6 * * *", jitter_seconds=0), "new": RARELY}
    schedule.sync()
    after = schedule.next_runs()
    assert after.keys() == {"churn", "new"}
    assert (after["churn"].hour, after["churn"].minute) == (6, 0)
    assert after["churn"] != before["churn"]
    clock.policies["churn"] = DriftPolicy(schedule="0 6 * * foo")
    schedule.sync()
    assert schedule.next_runs().keys() == {"new"}
    schedule.stop()


def test_a_controller_that_leads_again_checks_again() -> None:
    clock = Clock({"churn": OFTEN})
    schedule = clock.schedule()
    for _ in range(2):
        made = len(clock.runs)
        schedule.start()
        eventually(lambda made=made: len(clock.runs) > made)  # type: ignore[misc]
        schedule.stop()
