"""The replay gate on model servers that really run, and on the prediction log that one of them wrote."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from monitoring.logged_requests import last_requests
from monitoring.replay_gate_policy import ReplayGatePolicy
from pipelines.replaying import Replays
from pipelines.rollout import GateResult, Goal, Intent, Origin, Phase, Rollout, RolloutPolicy
from registry_hooks.model_version import Channel, ModelVersion
from serving import prediction_log
from serving.local import LocalTarget
from serving.revision import Revision, RevisionSettings, RevisionStatus
from tests.fixtures.revisions import START_SECONDS, LocalInstallation, end_revisions

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STABLE, LOGGED = 41, 60
"""Version, and requests that it answered."""
MOODS = ["fine"] * 50 + ["other"] * 10


def waited(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def installation(local_installation: LocalInstallation) -> Iterator[LocalInstallation]:
    yield local_installation
    end_revisions(local_installation.home)


@pytest.fixture(scope="module")
def revisions(installation: LocalInstallation) -> dict[int, RevisionStatus]:
    """The stable version, which nothing moves, and a candidate that is moved; the stable one has answered requests."""
    target = LocalTarget(installation.home, installation.log_url)
    calm = RevisionSettings(environment=(("MOOD", "calm"),))
    started = [installation.revision("moody", STABLE, calm), installation.revision("moody", STABLE + 1)]
    for revision in started:
        target.start(revision)
    waited(lambda: all(target.status()[revision.id].ready for revision in started), "both are ready")
    found = {revision.version.version: target.status()[revision.id] for revision in started}
    ask(found[STABLE], *MOODS)
    waited(lambda: rows(installation, STABLE) == LOGGED, "the requests are in the log")
    return found


def ask(revision: RevisionStatus, *moods: str, value: float = 0.75) -> None:
    for mood in moods:
        body = {"dataframe_records": [{"mood": mood, "value": value}]}
        httpx.post(f"http://{revision.addresses[0]}/invocations", json=body, timeout=30).raise_for_status()


def rows(installation: LocalInstallation, version: int, mode: str = "live") -> int:
    return len(prediction_log.read(installation.log_url, "moody", version=version, mode=mode))


def rollout(policy: ReplayGatePolicy, stable: Revision, *, goal: Goal = Goal.LIVE) -> Rollout:
    intent = Intent("i", goal, Channel.parse("Production"), "moody", STABLE + 1, Origin.COMMAND, NOW)
    return Rollout("r", intent, RolloutPolicy(replay=policy), Phase.PROVING, NOW, NOW, stable)


def replayed(
    log_url: str, revisions: dict[int, RevisionStatus], policy: ReplayGatePolicy | None = None, goal: Goal = Goal.LIVE
) -> GateResult | None:
    """What the gate says in the end; None where there is no such gate."""
    stable, candidate = revisions[STABLE], revisions[STABLE + 1]
    tried = rollout(policy or ReplayGatePolicy(), stable.revision, goal=goal)
    with closing(Replays(log_url)) as replays:
        waited(lambda: replays.results(tried, candidate, stable) is not None, "the replay is over")
        results = replays.results(tried, candidate, stable)
        assert replays.progress(tried) == ""
    return results[0] if results else None


def test_a_candidate_that_answers_everything_passes_and_what_is_different_is_told(
    installation: LocalInstallation, revisions: dict[int, RevisionStatus]
) -> None:
    found = replayed(installation.log_url, revisions)
    assert found is not None
    assert found.passed, found.detail
    assert found.detail.startswith("60 logged requests, ")
    assert found.detail.endswith("16.7% of 60 decisions are other ones")
    strict = replayed(installation.log_url, revisions, ReplayGatePolicy(most_changed=0.1))
    assert strict is not None
    assert not strict.passed


def test_what_is_replayed_is_no_traffic_for_anybody(
    installation: LocalInstallation, revisions: dict[int, RevisionStatus]
) -> None:
    replayed(installation.log_url, revisions)
    waited(lambda: rows(installation, STABLE + 1, "replay") >= LOGGED, "the candidate logs what was replayed")
    assert rows(installation, STABLE + 1) == 0
    assert rows(installation, STABLE) == LOGGED


def test_only_the_newest_requests_are_sent(
    installation: LocalInstallation, revisions: dict[int, RevisionStatus]
) -> None:
    found = replayed(installation.log_url, revisions, ReplayGatePolicy(requests=20))
    assert found is not None
    assert found.detail.startswith("20 logged requests")
    assert "50.0% of 20 decisions" in found.detail


def test_a_candidate_that_raises_or_hangs_is_found_with_the_request(
    installation: LocalInstallation, revisions: dict[int, RevisionStatus], tmp_path: Path
) -> None:
    for mood, words in {"raise": "a bad mood", "sleep 9": "timed out"}.items():
        log = logged(tmp_path / mood, ["fine"] * 20 + [mood])
        found = replayed(log, revisions, ReplayGatePolicy(request_seconds=0.5))
        assert found is not None
        assert not found.passed
        assert found.detail.startswith("it failed on 1 of 21 requests that the stable version answers; request 20: ")
        assert words in found.detail
        kept = json.loads(json.dumps(found.data))["failed"]
        assert [one["inputs"] for one in kept] == [{"mood": [mood], "value": [0.75]}]


def logged(folder: Path, moods: list[str]) -> str:
    """A log of the stable version in which these requests stand."""
    log = prediction_log.PredictionLog(str(folder), prediction_log.Origin("moody", STABLE, "stable"))
    for number, mood in enumerate(moods):
        columns = {"mood": [mood], "value": [0.75]}
        log.put(prediction_log.Served(str(number), time.time(), "live", None, 1.0, columns, [0.75], 1))
    log.close()
    return str(folder)


def test_a_request_that_the_stable_version_does_not_take_back_counts_for_nothing(
    revisions: dict[int, RevisionStatus], tmp_path: Path
) -> None:
    log = prediction_log.PredictionLog(str(tmp_path), prediction_log.Origin("moody", STABLE, "stable"))
    log.put(prediction_log.Served("1", time.time(), "live", None, 1.0, {"dropped": [1]}, [0.75], 1))
    log.close()
    found = replayed(str(tmp_path), revisions)
    assert found is not None
    assert found.passed
    assert found.detail.startswith("none of 1 logged requests could be sent again")


def test_without_a_log_or_where_it_is_not_wanted_nothing_is_sent(
    revisions: dict[int, RevisionStatus], tmp_path: Path
) -> None:
    empty = replayed(str(tmp_path / "nowhere"), revisions)
    assert empty == GateResult("replay", passed=True, detail="no requests of moody 41 are logged; nothing was sent")
    assert replayed(str(tmp_path), revisions, ReplayGatePolicy(requests=0)) is None
    assert replayed(str(tmp_path), revisions, goal=Goal.RESTORE) is None


def test_a_log_that_cannot_be_read_is_read_again(
    installation: LocalInstallation, revisions: dict[int, RevisionStatus], tmp_path: Path
) -> None:
    broken = Path(logged(tmp_path / "log", ["fine"]))
    (file,) = broken.rglob("*.parquet")
    whole = file.read_bytes()
    file.write_bytes(b"no parquet")
    stable, candidate = revisions[STABLE], revisions[STABLE + 1]
    tried = rollout(ReplayGatePolicy(), stable.revision)
    with closing(Replays(str(broken))) as replays:
        for _ in range(20):
            assert replays.results(tried, candidate, stable) is None
            time.sleep(0.01)
        file.write_bytes(whole)
        waited(lambda: replays.results(tried, candidate, stable) is not None, "it is read again")


def test_a_rollout_that_goes_on_or_back_ends_its_replay(revisions: dict[int, RevisionStatus], tmp_path: Path) -> None:
    stable, candidate = revisions[STABLE], revisions[STABLE + 1]
    log = logged(tmp_path, ["sleep 0.3"] * 100)
    tried = rollout(ReplayGatePolicy(), stable.revision)
    with closing(Replays(log)) as replays:
        assert replays.results(tried, candidate, stable) is None
        waited(lambda: replays.progress(tried) == "0 of 100 logged requests replayed", "it is under way")
        replays.forget(tried)
        assert replays.progress(tried) == ""
        began = time.monotonic()
    assert time.monotonic() - began < 10


def test_requests_of_many_rows_are_read_whole(tmp_path: Path) -> None:
    log = prediction_log.PredictionLog(str(tmp_path), prediction_log.Origin("moody", STABLE, "stable"))
    for number in range(40):
        columns = {"mood": ["fine"] * 30, "value": [number + row / 100 for row in range(30)]}
        log.put(prediction_log.Served(f"r{number}", time.time(), "live", None, 1.0, columns, [0.5] * 30, 30))
    log.close()
    found = last_requests(str(tmp_path), ModelVersion("moody", STABLE), datetime.now(UTC), 6)
    assert [request.id for request in found] == ["r37", "r38", "r39"]
    assert all(request.columns["value"] == [int(request.id[1:]) + row / 100 for row in range(30)] for request in found)
