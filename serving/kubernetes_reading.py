"""How a revision is doing, from what a cluster tells of its Deployment, its pods, and what it warned of them.

Pure. Kubernetes starts by itself what died, and at once. So that the death of a candidate is seen all the same, a
revision has failed from then on until `start` is called for it, which acknowledges: an annotation of the Deployment
says how many deaths of which pod are known. A container that had run well for a while may die without that, and so
may one of several replicas while another that has not died answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime

from serving.kubernetes_objects import (
    CONTAINER,
    NAME,
    OF,
    ClusterSettings,
    address_of,
)
from serving.local_state import parse_revision
from serving.pod_parts import (
    INSTALLATION,
    PREFIX,
    Object,
    condition,
    container,
    how_ended,
    pod_ended,
    starved,
    unplaced,
    waits,
)
from serving.revision import Revision, RevisionState, RevisionStatus

KNOWN = f"{PREFIX}known-deaths"
"""Annotation of a Deployment: the deaths that were acknowledged."""
SETTLED_SECONDS = 600.0
"""A container that ran for so long before it died may be started again without a word."""

_CANNOT = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
}
"""Why a container waits that will not be there soon; of pulling, only once it has failed more than once."""
_UNSTARTABLE = {"ContainerCannotRun", "StartError"}
"""Why a container ended that had not begun."""
_WORDS = 600
"""So many characters are kept of what the cluster says."""


@dataclass(frozen=True, slots=True)
class Known:
    """The deaths of a revision that were acknowledged."""

    before: int = 0
    """Of pods that are gone."""
    pods: Mapping[str, int] = field(default_factory=dict, hash=False)
    """By the pod's name."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a model server says of itself."""

    ready: bool = False
    at: str = ""
    """What one is at that is not ready."""
    fetched: int | None = None
    """Percent of a model that is not in its image; None where it fetches none, or has it."""
    warning: str = ""
    """What is wrong with one that is ready all the same."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is seen of one revision."""

    deployment: Object
    pods: Sequence[Object] = ()
    """Those of the Deployment, ended ones too."""
    warnings: Mapping[str, Sequence[Object]] = field(default_factory=dict, hash=False)
    """The cluster's events of pods, by the pod's uid."""
    words: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    """The last lines of containers that died, by the pod's uid; of those that are `fallen`."""
    settled_seconds: float = SETTLED_SECONDS
    said: Mapping[str, Said] = field(default_factory=dict, hash=False)
    """What servers say of themselves, by the pod's uid, as far as they were asked."""

    @property
    def alive(self) -> list[Object]:
        """Pods that nobody is taking away."""
        return [pod for pod in self.pods if "deletionTimestamp" not in pod["metadata"]]

    @property
    def failed(self) -> list[Object]:
        """Pods that died and that nobody has acknowledged."""
        known = known_of(self.deployment)
        return [
            pod
            for pod in self.alive
            if deaths(pod) > known.pods.get(pod["metadata"]["name"], 0) and not _settled(pod, self.settled_seconds)
        ]

    @property
    def fallen(self) -> list[Object]:
        """Those, and pods that died and do not answer again yet: what they said last is worth telling."""
        failed = self.failed
        return [pod for pod in self.alive if pod in failed or (deaths(pod) and not is_ready(pod))]


def revision_of(deployment: Object) -> Revision | None:
    """Which revision it is; None where its annotations do not say that any more."""
    try:
        return parse_revision(json.loads(deployment["metadata"]["annotations"][OF]))
    except (KeyError, TypeError, ValueError):
        return None


def read(revision: Revision, seen: Seen, settings: ClusterSettings) -> RevisionStatus:
    """How the revision is doing."""
    state, reason = _judged(revision, seen)
    changed = "" if state is RevisionState.STOPPING else altered(revision, seen.deployment, settings)
    started = datetime.fromisoformat(seen.deployment["metadata"]["creationTimestamp"])
    addresses = (address_of(revision.id, settings),)
    restarts, fetched = _restarts(seen, state), _fetched(seen)
    told = "; ".join(filter(None, [changed, reason]))
    return RevisionStatus(revision, state, addresses, started, restarts, told, fetched, altered=bool(changed))


def stopping(deployment: Object) -> bool:
    """Whether it is being deleted: it stays until all of its pods are gone."""
    return "deletionTimestamp" in deployment["metadata"]


def unfinished(deployment: Object) -> bool:
    """Whether whoever made it got no further than to its first object."""
    has_pods = deployment.get("status", {}).get("replicas", 0) > 0
    return bool(deployment["spec"].get("paused")) and not has_pods


def altered(revision: Revision, deployment: Object, settings: ClusterSettings) -> str:
    """What somebody else has changed of it that decides what runs; empty where nothing is.

    Whatever else was added to it or set is left alone, as others may have reasons for that.
    """
    if unfinished(deployment):
        return ""
    spec, wanted = deployment["spec"], revision.settings
    images = [one["image"] for one in spec["template"]["spec"]["containers"] if one["name"] == CONTAINER]
    if images != [revision.image]:
        return f"its image was changed to {', '.join(images) or 'none'}"
    least, most = wanted.replicas, max(wanted.replicas, wanted.max_replicas or 0)
    if not least <= spec.get("replicas", 1) <= most:
        return f"it was scaled to {spec.get('replicas', 1)} replicas"
    labels = deployment["metadata"].get("labels") or {}
    ours = {INSTALLATION: settings.installation, NAME: deployment["metadata"]["name"]}
    if changed := [name for name, value in ours.items() if labels.get(name) != value]:
        return f"its label {changed[0]} was changed"
    return "" if revision_of(deployment) == revision else "the annotations that say which revision it is were changed"


def known_of(deployment: Object) -> Known:
    """What was acknowledged; nothing where the annotation was made unreadable."""
    try:
        told = json.loads(deployment["metadata"]["annotations"][KNOWN])
        return Known(int(told["before"]), {str(name): int(count) for name, count in told["pods"].items()})
    except (KeyError, TypeError, ValueError, AttributeError):
        return Known()


def acknowledging(seen: Seen) -> Mapping[str, str]:
    """Annotations that acknowledge every death so far; empty where there is none to acknowledge."""
    if not seen.failed:
        return {}
    known, there = known_of(seen.deployment), {pod["metadata"]["name"]: deaths(pod) for pod in seen.alive}
    before = known.before + sum(count for name, count in known.pods.items() if name not in there)
    return {KNOWN: json.dumps(asdict(Known(before, {name: count for name, count in there.items() if count})))}


def deaths(pod: Object) -> int:
    """How often its container, or the pod as a whole, ended by itself."""
    told = _container(pod)
    state = told.get("state", {})
    waits = state.get("waiting", {}).get("reason") == "CrashLoopBackOff"
    ended = waits or "terminated" in state or pod["status"].get("phase") == "Failed"
    return int(told.get("restartCount", 0)) + ended


def runs_again(pod: Object) -> bool:
    """Whether a container has taken the place of the one that died."""
    return "terminated" not in _container(pod).get("state", {})


def _judged(revision: Revision, seen: Seen) -> tuple[RevisionState, str]:
    """A revision is ready once all its replicas are, and stays so while one of them answers."""
    if stopping(seen.deployment):
        return RevisionState.STOPPING, ""
    if unfinished(seen.deployment):
        return RevisionState.FAILED, "whoever started it did not come to an end"
    wanted, failed = revision.settings.replicas, seen.failed
    answering = [pod for pod in seen.alive if is_ready(pod)]
    well = [pod for pod in answering if pod not in failed]
    if len(well) >= wanted:
        return RevisionState.READY, next(filter(None, (_said(pod, seen).warning for pod in well)), "")
    if well and _was_ready(seen.deployment):
        return RevisionState.READY, _partly(revision, seen, len(answering), len(well))
    if failed:
        return RevisionState.FAILED, _why_ended(revision, failed[0], seen)
    cannot = _cannot_be(seen)
    return (RevisionState.FAILED, cannot) if cannot else (RevisionState.STARTING, _not_yet(revision, seen))


def _partly(revision: Revision, seen: Seen, answering: int, well: int) -> str:
    wanted = revision.settings.replicas
    why = _why_ended(revision, seen.failed[0], seen) if seen.failed else _cannot_be(seen) or _not_yet(revision, seen)
    if answering >= wanted:
        return f"{wanted - well} of {wanted} replicas died and answer again: {why}"
    return f"{answering} of {wanted} replicas answer: {why}"


def _restarts(seen: Seen, state: RevisionState) -> int:
    """One that has failed is not started again before somebody asks for that, whatever the cluster did meanwhile."""
    known = known_of(seen.deployment)
    names = {pod["metadata"]["name"] for pod in seen.alive}
    gone = sum(count for name, count in known.pods.items() if name not in names)
    waits = seen.failed if state is RevisionState.FAILED else []
    there = sum(known.pods.get(pod["metadata"]["name"], 0) if pod in waits else deaths(pod) for pod in seen.alive)
    return known.before + gone + there


def _was_ready(deployment: Object) -> bool:
    """Whether all replicas were ready at one time, as the cluster remembers it."""
    return condition(deployment, "Progressing").get("reason") == "NewReplicaSetAvailable"


def is_ready(pod: Object) -> bool:
    """Whether the cluster has found its server ready."""
    return condition(pod, "Ready").get("status") == "True"


def runs(pod: Object) -> bool:
    """Whether its server runs, be it ready or not, so that it can be asked."""
    return "running" in _container(pod).get("state", {}) and "deletionTimestamp" not in pod["metadata"]


def _settled(pod: Object, seconds: float) -> bool:
    """Whether its last container had run well for a while before it died. Both times are of the same clock."""
    begun, over = (_ending(pod).get(name) for name in ("startedAt", "finishedAt"))
    if not begun or not over:
        return False
    return (datetime.fromisoformat(over) - datetime.fromisoformat(begun)).total_seconds() >= seconds


def _why_ended(revision: Revision, pod: Object, seen: Seen) -> str:
    uid = pod["metadata"]["uid"]
    return "\n".join([_how_ended(revision, pod, seen), *seen.words.get(uid, ())])


def _how_ended(revision: Revision, pod: Object, seen: Seen) -> str:
    ended = _ending(pod)
    if not ended:
        return pod_ended(pod)[:_WORDS]
    code, reason = int(ended.get("exitCode", 0)), ended.get("reason", "")
    if reason == "OOMKilled":
        return starved(revision.settings.memory_mb)
    if reason in _UNSTARTABLE:
        return f"cannot be started: {str(ended.get('message', reason))[:_WORDS]}"
    return "; ".join(filter(None, [how_ended(code), _unhealthy(pod, ended, seen)]))


def _unhealthy(pod: Object, ended: Object, seen: Seen) -> str:
    """What the cluster says where it ended a container because that did not answer any more."""
    told = [event["message"] for event in _warnings(pod, seen) if event.get("reason") == "Unhealthy"]
    killed = int(ended.get("exitCode", 0)) in (0, 137, 143)
    last = next((message for message in reversed(told) if message.startswith("Liveness")), "")
    return last[:_WORDS] if killed else ""


def _cannot_be(seen: Seen) -> str:
    """Why it will not run soon, in the cluster's words; empty where it may."""
    refused = condition(seen.deployment, "ReplicaFailure")
    if refused.get("status") == "True":
        return f"its pods cannot be made: {refused.get('message', '')[:_WORDS]}"
    for pod in seen.alive:
        waiting = _container(pod).get("state", {}).get("waiting", {})
        if waiting.get("reason") in _CANNOT:
            return _waits(pod, waiting, seen)
    return ""


def _not_yet(revision: Revision, seen: Seen) -> str:
    """What the first pod that is not ready waits for."""
    pod = next((pod for pod in seen.alive if not is_ready(pod) and pod["status"].get("phase") != "Failed"), None)
    if pod is None:
        return "has no pod yet" if not seen.alive else "is not ready yet"
    if told := unplaced(pod):
        return told[:_WORDS]
    at = _at(pod, seen)
    return f"{at}; the one before {_why_ended(revision, pod, seen)}" if deaths(pod) and _ending(pod) else at


def _at(pod: Object, seen: Seen) -> str:
    waiting = _container(pod).get("state", {}).get("waiting")
    if waiting is not None:
        return _waits(pod, waiting, seen)
    if at := _said(pod, seen).at:
        return at
    told = _warnings(pod, seen)
    probed = told[-1]["message"] if told and told[-1].get("reason") == "Unhealthy" else ""
    return f"does not say that it is ready: {probed[:_WORDS]}" if probed else "does not say that it is ready"


def _waits(pod: Object, waiting: Object, seen: Seen) -> str:
    told = [event for event in _warnings(pod, seen) if event.get("reason") != "Unhealthy"]
    return waits(waiting, told)[:_WORDS]


def _fetched(seen: Seen) -> int:
    """As much as the replica that has least, while one fetches: what is waited for is that one."""
    told = [_said(pod, seen) for pod in seen.alive if not is_ready(pod)]
    if all(said.fetched is None for said in told):
        return 0
    return min((100 if said.at or said.ready else 0) if said.fetched is None else said.fetched for said in told)


def _said(pod: Object, seen: Seen) -> Said:
    return seen.said.get(pod["metadata"]["uid"], Said())


def _warnings(pod: Object, seen: Seen) -> list[Object]:
    """The latest last."""
    return sorted(seen.warnings.get(pod["metadata"]["uid"], ()), key=_when)


def _when(event: Object) -> str:
    """One that comes again and again is counted by its series, one that came once may have its first time alone."""
    series = event.get("series") or {}
    known = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return str(next(filter(None, known), event["metadata"].get("creationTimestamp", "")))


def _container(pod: Object) -> Object:
    return container(pod, CONTAINER)


def _ending(pod: Object) -> Object:
    """How its container came to its end the last time; empty where it never did."""
    told = _container(pod)
    ended: Object = told.get("state", {}).get("terminated") or told.get("lastState", {}).get("terminated") or {}
    return ended
