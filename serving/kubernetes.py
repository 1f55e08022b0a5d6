"""Revisions as Deployments of a cluster.

What runs is remembered by the cluster alone: annotations say which revision a Deployment is, its deletion says that it
is stopping. Kubernetes runs and heals the replicas, and its own probes say whether they are ready; what that means for
a revision is for `kubernetes_reading`. Logs are kept here once a revision is stopped, because they go with its pods.

A Deployment is made without pods first, then what it owns, then the pods. So nothing is left that nobody owns, and one
that was not made to its end is seen as such.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from serving.cluster import DEPLOYMENTS, Cluster, ClusterError
from serving.cluster_secrets import ServerSecrets
from serving.cluster_view import View
from serving.engine_errors import EngineError
from serving.kubernetes_models import fetched_of
from serving.kubernetes_objects import (
    CONTAINER,
    NAME,
    REVISION,
    ClusterSettings,
    autoscaler,
    budget,
    deployment,
    name_of,
    service,
)
from serving.kubernetes_reading import (
    SETTLED_SECONDS,
    Seen,
    acknowledging,
    altered,
    deaths,
    read,
    revision_of,
    runs_again,
    stopping,
    unfinished,
)
from serving.local_state import keep, tail
from serving.pod_health import PodHealth
from serving.pod_parts import INSTALLATION, Object
from serving.revision import Revision, RevisionStatus
from serving.target import TargetError

_logger = logging.getLogger(__name__)

_KEPT_LINES = 1000
"""So much of what each pod wrote is kept of a revision that is stopped."""
_LAST_LINES = 10
"""So many of them say why a container died."""


class KubernetesTarget:
    """`ServingTarget` in one namespace of a cluster."""

    def __init__(
        self,
        home: Path,
        cluster: Cluster,
        view: View,
        settings: ClusterSettings,
        holds: Callable[[str], bool],
        settled_seconds: float = SETTLED_SECONDS,
        *,
        labels: Callable[[str], Mapping[str, str]] = lambda _: {},
        secrets: ServerSecrets | None = None,
        health: PodHealth | None = None,
    ) -> None:
        """`view`: of the same cluster; `holds`: whether a registry from which the cluster pulls has an image.

        `labels`: of an image in that registry; raises `EngineError`. `secrets`: those that `settings` names. `health`:
        what asks servers how they are, besides the cluster's own probes.
        """
        self._home = home.absolute()
        self._cluster = cluster
        self._view = view
        self._settings = settings
        self._holds = holds
        self._settled_seconds = settled_seconds
        self._labels, self._secrets, self._health = labels, secrets, health
        self._guard = threading.RLock()
        self._words: dict[tuple[str, int], tuple[str, ...]] = {}
        """Last lines of containers that died, by their pod's uid and which death of it that was."""

    def start(self, revision: Revision) -> None:
        with self._guard, _translated(f"start {revision.id}"):
            there = self._cluster.get(DEPLOYMENTS, name_of(revision.id))
            if there is None or unfinished(self._own(there, revision.id)):
                self._check_image(revision)
                self._make(revision)
                return
            if stopping(there):
                raise TargetError(f"{revision.id} is still stopping", retryable=True)
            if changed := altered(revision, there, self._settings):
                _logger.warning("%s is put right: %s", revision.id, changed)
                self._check_image(revision)
                self._make(revision)
                return
            if known := acknowledging(self._seen(there)):
                self._check_image(revision)
                self._view.deployments.take(self._cluster.annotate(DEPLOYMENTS, name_of(revision.id), known))

    def status(self) -> Mapping[str, RevisionStatus]:
        with self._guard, _translated("read the state of the revisions"):
            pods, warnings = self._view.pods(NAME), self._view.warnings()
            found = [(revision_of(one), one) for one in self._view.deployments.all()]
            for one in (one for revision, one in found if revision is None):
                _logger.warning("the annotations of Deployment %s do not say what it is", one["metadata"]["name"])
            said = self._health.look([pod for some in pods.values() for pod in some]) if self._health else {}
            ours = [
                (revision, replace(self._seen(one, pods, warnings), said=said))
                for revision, one in found
                if revision is not None
            ]
            self._forget_words([seen for _, seen in ours])
            return {revision.id: read(revision, seen, self._settings) for revision, seen in ours}

    def stop(self, revision_id: str) -> None:
        with self._guard, _translated(f"stop {revision_id}"):
            there = self._cluster.get(DEPLOYMENTS, name_of(revision_id))
            if there is None or stopping(there) or not self._owns(there, revision_id):
                return
            self._put_away(revision_id)
            left = self._cluster.delete(DEPLOYMENTS, name_of(revision_id), there["metadata"]["uid"])
            if left is not None:
                self._view.deployments.take(left)

    def logs(self, revision_id: str, lines: int = 100) -> tuple[str, ...]:
        with _translated(f"read the log of {revision_id}"):
            pods = self._view.pods(NAME).get(name_of(revision_id), ())
            now = [line for pod in pods for line in self._cluster.log(_name(pod), CONTAINER, lines)][-lines:]
            return tuple(now) or tail(self._home / "logs" / f"{revision_id}.log", lines)

    def _make(self, revision: Revision) -> None:
        fetched = fetched_of(self._labels(revision.image))
        if self._secrets:
            self._secrets.ensure(fetches=fetched is not None)
        owner = self._cluster.apply(deployment(revision, self._settings, paused=True, fetched=fetched))
        self._cluster.apply(service(revision, self._settings, owner))
        if max(revision.settings.replicas, revision.settings.max_replicas or 1) > 1:
            self._cluster.apply(budget(revision, self._settings, owner, self._cluster.budgets()))
        if revision.settings.max_replicas is not None:
            self._cluster.apply(autoscaler(revision, self._settings, owner, self._cluster.autoscalers()))
        self._view.deployments.take(self._cluster.apply(deployment(revision, self._settings, fetched=fetched)))

    def _check_image(self, revision: Revision) -> None:
        if not self._holds(revision.image):
            raise TargetError(f"{revision.id}: its image {revision.image} is not in the registry", retryable=True)

    def _own(self, there: Object, revision_id: str) -> Object:
        """The Deployment, where it is the revision's and not somebody else's of that name."""
        if self._owns(there, revision_id):
            return there
        where = f"Deployment {_name(there)} in namespace {self._settings.namespace}"
        words = f"{where} is not of installation {self._settings.installation}; give each a namespace of its own"
        raise TargetError(f"cannot start {revision_id}: {words}", retryable=False)

    def _owns(self, there: Object, revision_id: str) -> bool:
        """Also where somebody took its label off: another installation's would be there."""
        labels, annotations = (there["metadata"].get(name) or {} for name in ("labels", "annotations"))
        ours = labels.get(INSTALLATION, self._settings.installation) == self._settings.installation
        return ours and annotations.get(REVISION) == revision_id

    def _seen(
        self,
        there: Object,
        pods: Mapping[str, Sequence[Object]] | None = None,
        warnings: Mapping[str, Sequence[Object]] | None = None,
    ) -> Seen:
        """`pods` by the name of their revision, and `warnings` by their pod's uid, where the caller has them."""
        own = (self._view.pods(NAME) if pods is None else pods).get(_name(there), ())
        seen = Seen(there, own, warnings or {}, settled_seconds=self._settled_seconds)
        words = {pod["metadata"]["uid"]: self._last_words(pod) for pod in seen.fallen}
        return Seen(there, own, warnings or {}, words, self._settled_seconds)

    def _last_words(self, pod: Object) -> tuple[str, ...]:
        """Asked for once for each death. That they cannot be had does not keep anybody from knowing of it."""
        key = (pod["metadata"]["uid"], deaths(pod))
        if key not in self._words:
            try:
                self._words[key] = self._cluster.log(_name(pod), CONTAINER, _LAST_LINES, previous=runs_again(pod))
            except ClusterError as error:
                _logger.warning("%s", error)
                return ()
        return self._words[key]

    def _forget_words(self, all_seen: Sequence[Seen]) -> None:
        there = {(pod["metadata"]["uid"], deaths(pod)) for seen in all_seen for pod in seen.fallen}
        self._words = {key: words for key, words in self._words.items() if key in there}

    def _put_away(self, revision_id: str) -> None:
        """Keep what its pods wrote so far. That it cannot be had keeps nobody from stopping it."""
        try:
            pods = self._view.pods(NAME).get(name_of(revision_id), ())
            lines = [line for pod in pods for line in self._cluster.log(_name(pod), CONTAINER, _KEPT_LINES)]
        except ClusterError as error:
            _logger.warning("what %s wrote is lost: %s", revision_id, error)
            return
        keep(revision_id, lines, self._home / "logs")


def _name(one: Object) -> str:
    return str(one["metadata"]["name"])


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (ClusterError, EngineError) as error:
        raise TargetError(f"cannot {what}: {error}", retryable=error.retryable) from error
    except OSError as error:
        raise TargetError(f"cannot {what}: {error}", retryable=True) from error
