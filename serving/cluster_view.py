"""What a cluster has of one installation, kept up to date by the cluster itself: one watch for each kind of objects.

However many revisions there are, looking at all of them costs no request. What is written is taken in from the answer
to the writing, so whoever wrote sees it at once. That takes an order of versions, which the cluster promises for
`resourceVersion` as of Kubernetes 1.35 and has always had with etcd. While a kind cannot be followed nothing is said
of it but why, for what was true a minute ago is no state to decide on.

The informer of the client library does not hold up here: it asks again without a pause while the cluster is away, has
no limit of time for a connection that is lost without a word, and does not tell whether what it has is still true.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from serving.cluster import DEPLOYMENTS, EVENTS, GONE, PODS, Cluster, ClusterError, Event, Kind
from serving.kubernetes_objects import NAME
from serving.pod_parts import Object

_logger = logging.getLogger(__name__)

_FIRST_SECONDS = 15.0
"""How long the first look waits for the first list."""
_PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0)
"""Between attempts at a cluster that does not answer; the last one from then on."""


class Watched:
    """The objects of one kind. They are shared: whoever gets one must not change it."""

    def __init__(self, cluster: Cluster, kind: Kind, **selectors: str) -> None:
        """`selectors`: `labelSelector`, `fieldSelector`."""
        self._cluster, self._kind, self._selectors = cluster, kind, selectors
        self._changed = threading.Condition()
        self._objects: dict[str, Object] = {}
        self._version: int | None = None
        """What the cluster has told up to here is known; None before anything is."""
        self._trouble: ClusterError | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {kind.plural}", daemon=True)
        self._thread.start()

    def all(self) -> list[Object]:
        """All there are. `ClusterError` while that is not known."""
        with self._changed:
            self._changed.wait_for(lambda: self._version is not None or self._trouble is not None, _FIRST_SECONDS)
            if self._trouble is not None:
                trouble = self._trouble
                raise ClusterError(str(trouble), retryable=trouble.retryable, status=trouble.status) from trouble
            if self._version is None:
                raise ClusterError(f"cannot list {self._kind.plural}: no answer yet", retryable=True)
            return list(self._objects.values())

    def take(self, written: Object) -> None:
        """What the cluster answered to a writing, unless it is known already."""
        with self._changed:
            if self._version is not None and _version_of(written) > self._version:
                self._put(written)

    def close(self) -> None:
        """No more is followed once the present connection has ended, within half a minute."""
        self._closed.set()

    def _run(self) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                if self._version is None:
                    self._list()
                self._follow()
                failures = 0
            except ClusterError as error:
                failures = self._failed(error, failures)
            self._closed.wait(_PAUSES[min(failures, len(_PAUSES) - 1)])

    def _failed(self, error: ClusterError, failures: int) -> int:
        with self._changed:
            if error.status == GONE:
                self._version = None
                return 0
            if self._trouble is None:
                _logger.warning("%s are not followed: %s", self._kind.plural, error)
            self._trouble = error
            self._changed.notify_all()
        if error.after is not None:
            self._closed.wait(error.after)
        return failures + 1

    def _list(self) -> None:
        found, version = self._cluster.list(self._kind, **self._selectors)
        with self._changed:
            newer = {key: one for key, one in self._objects.items() if _version_of(one) > int(version)}
            self._objects = {}
            for one in found:
                self._put(one)
            self._objects |= newer
            self._version = int(version)
            self._well()

    def _follow(self) -> None:
        with self._cluster.follow(self._kind, str(self._version), **self._selectors) as events:
            with self._changed:
                self._well()
            try:
                for event in events:
                    self._take(event)
                    if self._closed.is_set():
                        return
            except ClusterError as error:
                if error.status is not None:
                    raise
                _logger.debug("the connection is made again: %s", error)

    def _well(self) -> None:
        if self._trouble is not None:
            _logger.info("%s are followed again", self._kind.plural)
        self._trouble = None
        self._changed.notify_all()

    def _take(self, event: Event) -> None:
        version, name = _version_of(event.object), event.object["metadata"].get("name", "")
        with self._changed:
            known = self._objects.get(name)
            told = known is not None and _version_of(known) > version
            if event.type == "DELETED" and not told:
                self._objects.pop(name, None)
            elif event.type in ("ADDED", "MODIFIED") and not told:
                self._put(event.object)
            self._version = version

    def _put(self, one: Object) -> None:
        """Without what says who wrote which field, which is most of an object and nobody's business here."""
        one["metadata"].pop("managedFields", None)
        self._objects[one["metadata"]["name"]] = one


class View:
    """Deployments of revisions and all pods of one installation, and the warnings about pods of its namespace."""

    def __init__(self, cluster: Cluster, selector: str) -> None:
        """`selector`: of the installation's labels."""
        self.deployments = Watched(cluster, DEPLOYMENTS, labelSelector=f"{selector},{NAME}")
        self._pods = Watched(cluster, PODS, labelSelector=selector)
        self._events = Watched(cluster, EVENTS, fieldSelector="type=Warning,involvedObject.kind=Pod")

    def pods(self, label: str) -> Mapping[str, list[Object]]:
        """By what the label says."""
        found: dict[str, list[Object]] = {}
        for pod in self._pods.all():
            found.setdefault(pod["metadata"]["labels"].get(label, ""), []).append(pod)
        return found

    def warnings(self) -> Mapping[str, list[Object]]:
        """By the uid of their pods."""
        found: dict[str, list[Object]] = {}
        for event in self._events.all():
            found.setdefault(event["involvedObject"].get("uid", ""), []).append(event)
        return found

    def close(self) -> None:
        for watched in (self.deployments, self._pods, self._events):
            watched.close()


def _version_of(one: Object) -> int:
    return int(one["metadata"]["resourceVersion"])
