"""How a revision is doing, from what a cluster tells."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from registry_hooks.model_version import ModelVersion
from serving.kubernetes_objects import CONTAINER, NAME, OF, ClusterSettings, deployment
from serving.kubernetes_reading import KNOWN, Said, Seen, acknowledging, altered, deaths, read, revision_of
from serving.pod_parts import INSTALLATION, Object
from serving.revision import Revision, RevisionSettings, RevisionState, RevisionStatus

SETTINGS = ClusterSettings("models", "one")
STARTING, READY, FAILED, STOPPING = (
    RevisionState.STARTING,
    RevisionState.READY,
    RevisionState.FAILED,
    RevisionState.STOPPING,
)
BEGAN, SOON, LATE = "2026-11-29T08:00:00Z", "2026-11-29T08:00:03Z", "2026-11-29T08:10:00Z"
RUNNING: Object = {"running": {"startedAt": SOON}}
CRASHING: Object = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
ONE = Revision(ModelVersion("churn", 7), "registry/churn@sha256:1", RevisionSettings(memory_mb=40))
TWO = replace(ONE, settings=RevisionSettings(replicas=2))


def ended(code: int = 1, reason: str = "Error", over: str = SOON, message: str = "") -> Object:
    told = {"exitCode": code, "reason": reason, "startedAt": BEGAN, "finishedAt": over, "message": message}
    return {"terminated": told}


def pod(
    name: str = "a",
    state: Object | None = None,
    *,
    last: Object | None = None,
    restarts: int = 0,
    ready: bool = False,
    **status: Any,
) -> Object:
    container = {"name": CONTAINER, "state": state or {}, "lastState": last or {}, "restartCount": restarts}
    conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True" if ready else "False"}]
    told = {"phase": "Running", "conditions": conditions, "containerStatuses": [container], **status}
    return {"metadata": {"name": name, "uid": f"uid-{name}"}, "status": told}


def well(name: str = "a") -> Object:
    return pod(name, RUNNING, ready=True)


def there(revision: Revision = ONE, *, was_ready: bool = False, **conditions: str) -> Object:
    made = json.loads(json.dumps(deployment(revision, SETTINGS)))
    made["metadata"] |= {"creationTimestamp": BEGAN, "uid": "u"}
    told = [{"type": kind, "status": "True", "message": message} for kind, message in conditions.items()]
    reason = "NewReplicaSetAvailable" if was_ready else "ReplicaSetUpdated"
    made["status"] = {"conditions": [{"type": "Progressing", "status": "True", "reason": reason}, *told]}
    return dict(made)


def event(reason: str, message: str, at: str = SOON) -> Object:
    return {"reason": reason, "message": message, "lastTimestamp": at, "metadata": {"name": f"{reason}.{at}"}}


def said(*pods: Object, revision: Revision = ONE, was_ready: bool = False, **seen: Any) -> RevisionStatus:
    return read(revision, Seen(there(revision, was_ready=was_ready), pods, **seen), SETTINGS)


def acknowledged(of: Object, pods: Sequence[Object], **seen: Any) -> Object:
    """The Deployment after `start` was called for it."""
    told = acknowledging(Seen(of, pods, **seen))
    return {**of, "metadata": {**of["metadata"], "annotations": {**of["metadata"]["annotations"], **told}}}


def test_it_says_which_where_and_since_when() -> None:
    status = said(well())
    assert (status.revision, status.state, status.reason) == (ONE, READY, "")
    assert status.started == datetime(2026, 11, 29, 8, tzinfo=UTC)
    assert [str(address) for address in status.addresses] == [f"{ONE.id}.models.svc:8080"]


@pytest.mark.parametrize(
    ("pods", "revision", "was_ready", "state", "words"),
    [
        ([], ONE, False, STARTING, "has no pod yet"),
        ([pod(state=RUNNING)], ONE, False, STARTING, "does not say that it is ready"),
        ([well()], ONE, False, READY, ""),
        ([well()], TWO, False, STARTING, "is not ready yet"),
        ([well(), pod("b", RUNNING)], TWO, False, STARTING, "does not say that it is ready"),
        ([well(), well("b")], TWO, False, READY, ""),
        ([well(), pod("b", RUNNING)], TWO, True, READY, "1 of 2 replicas answer: does not say that it is ready"),
        ([pod(state=RUNNING), pod("b", RUNNING)], TWO, True, STARTING, "does not say that it is ready"),
        ([well(), pod("b", ended())], TWO, True, READY, "1 of 2 replicas answer: ended with status 1"),
        ([well(), pod("b", ended())], TWO, False, FAILED, "ended with status 1"),
        ([pod(state=ended()), pod("b", ended())], TWO, True, FAILED, "ended with status 1"),
        (
            [well(), pod("b", RUNNING, last=ended(), restarts=1, ready=True)],
            TWO,
            True,
            READY,
            "1 of 2 replicas died and answer again: ended with status 1",
        ),
    ],
)
def test_it_is_ready_once_all_replicas_are_and_while_one_of_them_answers(
    pods: Sequence[Object], revision: Revision, was_ready: bool, state: RevisionState, words: str
) -> None:
    status = said(*pods, revision=revision, was_ready=was_ready)
    assert (status.state, status.reason) == (state, words)


def test_what_a_server_is_at_and_how_much_it_has_fetched_is_told_in_its_own_words() -> None:
    at = Said(at="fetching the model: 41 % of 2.1 GB", fetched=41)
    status = said(pod(state=RUNNING), said={"uid-a": at})
    assert (status.state, status.reason, status.fetched) == (STARTING, at.at, 41)
    again = said(pod(state=RUNNING, last=ended(), restarts=1), said={"uid-a": at})
    assert again.state is FAILED
    waits = pod(state={"waiting": {"reason": "ContainerCreating"}})
    assert said(waits, said={"uid-b": at}).reason == "ContainerCreating"


@pytest.mark.parametrize(
    ("other", "fetched"),
    [
        (Said(at="fetching the model: 60 % of 2.1 GB", fetched=60), 41),
        (Said(at="fetching the model: 7 % of 2.1 GB", fetched=7), 7),
        (Said(at="the model is being loaded"), 41),
        (Said(ready=True), 41),
        (Said(), 0),
    ],
)
def test_two_replicas_have_fetched_as_much_as_the_one_that_has_least(other: Said, fetched: int) -> None:
    at = Said(at="fetching the model: 41 % of 2.1 GB", fetched=41)
    status = said(pod(state=RUNNING), pod("b", RUNNING), revision=TWO, said={"uid-a": at, "uid-b": other})
    assert status.fetched == fetched
    assert said(pod(state=RUNNING), well("b"), revision=TWO, said={"uid-a": at}).fetched == 41
    loading = Said(at="the model is being loaded")
    assert said(pod(state=RUNNING), pod("b", RUNNING), said={"uid-a": loading, "uid-b": loading}).fetched == 0


def test_what_is_wrong_with_a_server_that_is_ready_is_told_and_keeps_nobody_from_being_ready() -> None:
    warned = Said(ready=True, warning="the compiled model is not used any more")
    status = said(well(), said={"uid-a": warned})
    assert (status.state, status.reason, status.fetched) == (READY, warned.warning, 0)
    assert said(well(), well("b"), revision=TWO, said={"uid-b": warned}).reason == warned.warning


@pytest.mark.parametrize(
    ("dead", "words"),
    [
        (pod(state=ended(0, "Completed")), "ended with status 0"),
        (pod(state=ended(7)), "ended with status 7"),
        (pod(state=ended(137)), "was ended by signal 9"),
        (pod(state=ended(137, "OOMKilled")), "was ended by the system for want of memory (the limit is 40 MiB)"),
        (pod(state=CRASHING, last=ended(3), restarts=2), "ended with status 3"),
        (pod(state=RUNNING, last=ended(4), restarts=1), "ended with status 4"),
        (pod(state=RUNNING, last=ended(4), restarts=1, ready=True), "ended with status 4"),
        (pod(state=ended(128, "ContainerCannotRun", message="no such file")), "cannot be started: no such file"),
        (
            pod(
                phase="Failed", reason="Evicted", message="The node was low on resource: memory.", containerStatuses=[]
            ),
            "its pod was ended: Evicted: The node was low on resource: memory.",
        ),
    ],
)
def test_one_whose_container_died_has_failed_although_the_cluster_starts_it_again(dead: Object, words: str) -> None:
    for was_ready in (False, True):
        status = said(dead, was_ready=was_ready)
        assert (status.state, status.reason, status.restarts) == (FAILED, words, 0)


def test_the_last_lines_of_what_died_are_told() -> None:
    words = {"uid-a": ("Traceback", "RuntimeError: no model")}
    assert said(pod(state=ended()), words=words).reason == "ended with status 1\nTraceback\nRuntimeError: no model"


def test_one_that_the_cluster_ended_because_it_did_not_answer_says_so() -> None:
    told = [event("Unhealthy", "Liveness probe failed: timeout"), event("Unhealthy", "Readiness probe failed", BEGAN)]
    status = said(pod(state=RUNNING, last=ended(137), restarts=1), warnings={"uid-a": told})
    assert status.reason == "was ended by signal 9; Liveness probe failed: timeout"
    status = said(pod(state=RUNNING, last=ended(1), restarts=1), warnings={"uid-a": told})
    assert status.reason == "ended with status 1"


def test_starting_it_again_acknowledges_the_death_and_counts_it() -> None:
    dead = pod(state=CRASHING, last=ended(), restarts=0)
    after = acknowledged(there(), [dead])
    status = read(ONE, Seen(after, [dead]), SETTINGS)
    assert (status.state, status.restarts) == (STARTING, 1)
    assert (
        status.reason
        == "CrashLoopBackOff: back-off 10s restarting failed container; the one before ended with status 1"
    )
    again = pod(state=RUNNING, last=ended(), restarts=1, ready=True)
    status = read(ONE, Seen(after, [again]), SETTINGS)
    assert (status.state, status.restarts, status.reason) == (READY, 1, "")
    assert acknowledging(Seen(after, [again])) == {}


def test_another_death_after_that_is_a_failure_again() -> None:
    after = acknowledged(there(), [pod(state=CRASHING, last=ended(), restarts=0)])
    dead = [pod(state=ended(5), last=ended(), restarts=1)]
    status = read(ONE, Seen(after, dead), SETTINGS)
    assert (status.state, status.reason, status.restarts) == (FAILED, "ended with status 5", 1)
    assert read(ONE, Seen(acknowledged(after, dead), dead), SETTINGS).restarts == 2


def test_deaths_of_pods_that_are_gone_still_count() -> None:
    first = [pod(state=CRASHING, last=ended(), restarts=1)]
    after = acknowledged(there(), first)
    assert read(ONE, Seen(after, [well("b")]), SETTINGS).restarts == 2
    second = [pod("b", RUNNING, last=ended(), restarts=1)]
    twice = acknowledged(after, second)
    assert read(ONE, Seen(twice, [well("c")]), SETTINGS).restarts == 3
    assert json.loads(twice["metadata"]["annotations"][KNOWN]) == {"before": 2, "pods": {"b": 1}}


def test_deaths_of_one_of_several_replicas_are_counted_without_being_acknowledged() -> None:
    crashing = pod("b", RUNNING, last=ended(), restarts=3, ready=True)
    assert said(well(), crashing, revision=TWO, was_ready=True).restarts == 3


@pytest.mark.parametrize(("over", "state"), [(SOON, FAILED), (LATE, READY)])
def test_one_that_had_run_well_for_a_while_may_be_started_again_without_a_word(over: str, state: RevisionState) -> None:
    back = pod(state=RUNNING, last=ended(137, "OOMKilled", over), restarts=1, ready=True)
    assert said(back, was_ready=True).state is state
    assert bool(acknowledging(Seen(there(), [back]))) == (state is FAILED)


def test_while_it_comes_back_it_is_starting_and_says_why() -> None:
    status = said(pod(state=RUNNING, last=ended(137, "OOMKilled", LATE), restarts=1), was_ready=True)
    assert (status.state, status.restarts) == (STARTING, 1)
    assert "for want of memory (the limit is 40 MiB)" in status.reason


def test_how_long_is_a_while_can_be_said() -> None:
    back = pod(state=RUNNING, last=ended(), restarts=1, ready=True)
    assert said(back, settled_seconds=3.0).state is READY
    assert said(back, settled_seconds=3.1).state is FAILED


UNPLACED = [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient cpu."}]
PULL = "Back-off pulling image"


@pytest.mark.parametrize(
    ("waits", "told", "state", "words"),
    [
        (
            pod(phase="Pending", conditions=UNPLACED, containerStatuses=[]),
            [],
            STARTING,
            "no node takes it: 0/1 nodes are available: 1 Insufficient cpu.",
        ),
        (
            pod(state={"waiting": {"reason": "ErrImagePull", "message": "rpc error"}}),
            [
                event("Failed", "Failed to pull image x: manifest unknown", BEGAN),
                event("Failed", "Error: ErrImagePull"),
            ],
            STARTING,
            "ErrImagePull: Failed to pull image x: manifest unknown",
        ),
        (
            pod(state={"waiting": {"reason": "ImagePullBackOff", "message": PULL}}),
            [event("Failed", "Failed to pull image x: manifest unknown", BEGAN), event("BackOff", PULL)],
            FAILED,
            "ImagePullBackOff: Failed to pull image x: manifest unknown",
        ),
        (
            pod(state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "keys" not found'}}),
            [],
            FAILED,
            'CreateContainerConfigError: secret "keys" not found',
        ),
        (
            pod(state={"waiting": {"reason": "ContainerCreating"}}),
            [event("FailedMount", "no such volume", BEGAN), event("FailedMount", "still no such volume")],
            STARTING,
            "ContainerCreating: still no such volume",
        ),
        (
            pod(state=RUNNING),
            [event("Unhealthy", "Startup probe failed: HTTP probe failed with statuscode: 503")],
            STARTING,
            "does not say that it is ready: Startup probe failed: HTTP probe failed with statuscode: 503",
        ),
    ],
)
def test_what_it_waits_for_is_said_in_the_words_of_the_cluster(
    waits: Object, told: Sequence[Object], state: RevisionState, words: str
) -> None:
    status = said(waits, warnings={"uid-a": told, "uid-other": [event("Failed", "of another", LATE)]})
    assert (status.state, status.reason) == (state, words)


def test_a_quota_that_is_used_up_is_a_failure_in_its_own_words() -> None:
    message = 'pods "x" is forbidden: exceeded quota: few, requested: pods=1, used: pods=2, limited: pods=2'
    status = read(ONE, Seen(there(ReplicaFailure=message)), SETTINGS)
    assert (status.state, status.reason) == (FAILED, f"its pods cannot be made: {message}")


def test_what_is_being_deleted_is_stopping_whatever_its_pods_do() -> None:
    going = there()
    going["metadata"]["deletionTimestamp"] = LATE
    for pods in ([], [well()], [pod(state=ended())]):
        status = read(ONE, Seen(going, pods), SETTINGS)
        assert (status.state, status.reason) == (STOPPING, "")


def test_a_pod_that_is_taken_away_counts_no_more() -> None:
    gone = pod(state=ended(0))
    gone["metadata"]["deletionTimestamp"] = LATE
    assert said(gone, well("b"), was_ready=True).state is READY
    assert said(gone, was_ready=True).state is STARTING


def test_one_that_was_not_made_to_its_end_has_failed_so_that_it_is_started_once_more() -> None:
    half = there()
    half["spec"]["paused"] = True
    assert read(ONE, Seen(half), SETTINGS).state is FAILED
    half["status"]["replicas"] = 1
    assert read(ONE, Seen(half, [well()]), SETTINGS).state is READY


@pytest.mark.parametrize("broken", ["", "{", "{}", "[]", '{"version": {}}'])
def test_what_a_person_made_unreadable_is_no_revision_and_no_trouble(broken: str) -> None:
    made = there()
    made["metadata"]["annotations"] = {OF: broken, KNOWN: broken}
    assert revision_of(made) is None
    assert read(ONE, Seen(made, [pod(state=ended())]), SETTINGS).state is FAILED
    made["metadata"].pop("annotations")
    assert revision_of(made) is None


@pytest.mark.parametrize(
    ("of", "count"),
    [
        (pod(), 0),
        (pod(state=RUNNING), 0),
        (pod(state=RUNNING, restarts=2), 2),
        (pod(state=ended(), restarts=2), 3),
        (pod(state=CRASHING, restarts=2), 3),
        (pod(state={"waiting": {"reason": "ContainerCreating"}}), 0),
        (pod(phase="Failed", containerStatuses=[]), 1),
    ],
)
def test_a_death_is_counted_once_from_the_moment_it_is_there(of: Object, count: int) -> None:
    assert deaths(of) == count


ANSWERS = Path(__file__).parent / "cluster_answers"
"""What Kubernetes 1.20 answered, without what is not read."""


@pytest.mark.parametrize(
    ("case", "state", "restarts", "words"),
    [
        ("ready", READY, 0, ""),
        ("ended", FAILED, 0, "ended with status 0"),
        ("ended-and-back", FAILED, 0, "ended with status 0"),
        ("memory", FAILED, 0, "was ended by the system for want of memory (the limit is 40 MiB)"),
        (
            "memory-again",
            STARTING,
            1,
            "does not say that it is ready: Startup probe failed: .*connection refused; "
            "the one before was ended by the system for want of memory (the limit is 40 MiB)",
        ),
        ("no-image", FAILED, 0, "ImagePullBackOff: Failed to pull image .*manifest for .* not found.*"),
        (
            "no-node",
            STARTING,
            0,
            "no node takes it: 0/1 nodes are available: 1 node(s) didn't match Pod's node affinity.",
        ),
        ("stopping", STOPPING, 1, ""),
    ],
)
def test_what_a_cluster_really_answered_is_understood(
    case: str, state: RevisionState, restarts: int, words: str
) -> None:
    told = json.loads((ANSWERS / f"{case}.json").read_text())
    revision = revision_of(told["deployment"])
    assert revision is not None
    status = read(revision, Seen(told["deployment"], told["pods"], told["warnings"]), SETTINGS)
    assert (status.state, status.restarts) == (state, restarts)
    wanted = ".*".join(re.escape(part) for part in words.split(".*"))
    assert re.fullmatch(wanted, status.reason), status.reason


GROWING = replace(ONE, settings=RevisionSettings(max_replicas=3))
OTHER = json.dumps({"version": {"model": "churn", "version": 8}, "image": "x"})


def container_of(one: Object) -> Object:
    (found,) = one["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize(
    ("revision", "change", "words"),
    [
        (ONE, lambda one: None, ""),
        (ONE, lambda one: one["spec"].update(replicas=0), "it was scaled to 0 replicas"),
        (TWO, lambda one: one["spec"].update(replicas=1), "it was scaled to 1 replicas"),
        (TWO, lambda one: one["spec"].update(replicas=3), "it was scaled to 3 replicas"),
        (GROWING, lambda one: one["spec"].update(replicas=3), ""),
        (GROWING, lambda one: one["spec"].update(replicas=4), "it was scaled to 4 replicas"),
        (
            ONE,
            lambda one: one["spec"]["template"]["spec"].update(containers=[container_of(one) | {"image": "other:1"}]),
            "its image was changed to other:1",
        ),
        (
            ONE,
            lambda one: one["spec"]["template"]["spec"]["containers"].append({"name": "proxy", "image": "mesh:1"}),
            "",
        ),
        (ONE, lambda one: one["metadata"]["labels"].update(team="ada"), ""),
        (ONE, lambda one: one["metadata"]["labels"].update({NAME: "x"}), f"its label {NAME} was changed"),
        (ONE, lambda one: one["metadata"]["labels"].pop(INSTALLATION), f"its label {INSTALLATION} was changed"),
        (
            ONE,
            lambda one: one["metadata"]["annotations"].update({OF: OTHER}),
            "the annotations that say which revision it is were changed",
        ),
        (ONE, lambda one: one["spec"].update(paused=True, replicas=0), ""),
    ],
)
def test_what_somebody_else_has_changed_is_told_where_it_decides_what_runs(
    revision: Revision, change: Callable[[Object], object], words: str
) -> None:
    one = there(revision)
    change(one)
    assert altered(revision, one, SETTINGS) == words


def test_a_revision_that_was_changed_says_so_before_what_else_there_is_to_say() -> None:
    one = there(was_ready=True)
    one["spec"]["replicas"] = 0
    status = read(ONE, Seen(one), SETTINGS)
    assert (status.state, status.altered) == (STARTING, True)
    assert status.reason == "it was scaled to 0 replicas; has no pod yet"
    assert not said(well(), was_ready=True).altered
    one["metadata"]["deletionTimestamp"] = LATE
    assert not read(ONE, Seen(one), SETTINGS).altered


def test_of_one_that_is_started_again_the_last_words_of_the_one_before_are_told() -> None:
    """Whoever decides that it crash-loops does so while the next one starts."""
    again = pod("a", RUNNING, last=ended(), restarts=3)
    of = acknowledged(there(), [again])
    said_last = "RuntimeError: this model cannot be loaded"
    seen = Seen(of, [again], words={"uid-a": (said_last,)})
    assert [one["metadata"]["name"] for one in seen.fallen] == ["a"]
    status = read(ONE, seen, SETTINGS)
    assert status.state is STARTING
    assert status.reason == f"does not say that it is ready; the one before ended with status 1\n{said_last}"
    assert Seen(of, [pod("a", RUNNING, last=ended(), restarts=3, ready=True)]).fallen == []
