"""A cluster over its HTTP interface: as little of it as revisions need, and its objects as plain dicts.

The client library finds the cluster, keeps the credentials and has the connections; its models of objects are left
out, because they know one version of Kubernetes each and drop what they do not know. Every request has a time limit,
and none is repeated here: whether that can help is said by the error.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
from kubernetes.client import ApiClient, Configuration
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

from serving.pod_parts import Object

MANAGER = "mlflow-promote"
"""Under this name the cluster knows which fields are ours."""
FOLLOWED_SECONDS = 30
"""After so long a watch is begun anew, so that a connection that is lost without a word is noticed."""
GONE = 410
"""What was asked for, of the past, is not known any more."""

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
_PAGE = 500
"""Objects in one answer."""
_TOO_MANY = 429
_PASSING = (408, 409, _TOO_MANY)
_MOST_ALONE_SECONDS = 60.0
"""A cluster that asks for more is asked again after this."""
_KUBECONFIG = "~/.kube/config"
_IN_A_POD = "KUBERNETES_SERVICE_HOST"
"""Variable that every pod has."""


class ClusterError(Exception):
    """The cluster did not do as asked; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool, status: int | None = None, after: float | None = None) -> None:
        """`status`: of the answer, where there was one; `after`: seconds that the cluster wants to be left alone."""
        super().__init__(message)
        self.retryable = retryable
        self.status = status
        self.after = after


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of objects, and where the cluster has them."""

    api: str
    """Group and version: ``apps/v1``, or ``v1`` for those without a group."""
    plural: str

    def path(self, namespace: str, name: str = "", part: str = "") -> str:
        top = f"/apis/{self.api}" if "/" in self.api else f"/api/{self.api}"
        below = [top, "namespaces", namespace, self.plural, quote(name, safe=""), part]
        return "/".join(piece for piece in below if piece)


DEPLOYMENTS = Kind("apps/v1", "deployments")
PODS = Kind("v1", "pods")
EVENTS = Kind("v1", "events")
SERVICES = Kind("v1", "services")
CONFIG_MAPS = Kind("v1", "configmaps")
SECRETS = Kind("v1", "secrets")
_PLURALS = {
    "Deployment": "deployments",
    "Service": "services",
    "ConfigMap": "configmaps",
    "Secret": "secrets",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "Event": "events",
    "Lease": "leases",
    "Job": "jobs",
    "ServiceAccount": "serviceaccounts",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "NetworkPolicy": "networkpolicies",
    "HTTPRoute": "httproutes",
}
_BUDGETS = ("policy/v1", "policy/v1beta1")
"""Where clusters have budgets for disruptions, the newer ones first."""
_AUTOSCALERS = ("autoscaling/v2", "autoscaling/v1")
"""The same of autoscalers."""


@dataclass(frozen=True, slots=True)
class Event:
    """What became of an object: ``ADDED``, ``MODIFIED``, ``DELETED``; of a ``BOOKMARK`` only the version counts."""

    type: str
    object: Object


class Cluster:
    """One namespace of a cluster. Every method raises `ClusterError`."""

    def __init__(self, connection: Configuration, namespace: str) -> None:
        """`connection`: see `connect`."""
        self.namespace = namespace
        self._connection = connection
        self._pool: urllib3.PoolManager = ApiClient(connection).rest_client.pool_manager
        self._alone_until = 0.0
        """By the monotonic clock: the cluster has asked for no request before that."""

    def close(self) -> None:
        """Let the connections go."""
        self._pool.clear()

    def get(self, kind: Kind, name: str) -> Object | None:
        """The object; None where there is none."""
        try:
            return self._json(f"read {kind.plural} {name}", "GET", kind.path(self.namespace, name))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    def apply(self, wanted: Object, *, dry_run: bool = False) -> Object:
        """See that the object is there and has these fields; the object as it is then.

        `dry_run`: say whether that can be, and change nothing.
        """
        kind = Kind(wanted["apiVersion"], _PLURALS[wanted["kind"]])
        name = wanted["metadata"]["name"]
        return self._json(
            f"apply {wanted['kind']} {name}",
            "PATCH",
            kind.path(self.namespace, name),
            {"fieldManager": MANAGER, "force": "true", **({"dryRun": "All"} if dry_run else {})},
            wanted,
            "application/apply-patch+yaml",
        )

    def create(self, wanted: Object) -> Object:
        """Make an object that is not there yet, else it is refused with status 409; the object as it is then."""
        kind = Kind(wanted["apiVersion"], _PLURALS[wanted["kind"]])
        what, query = f"make {wanted['kind']} {wanted['metadata']['name']}", {"fieldManager": MANAGER}
        return self._json(what, "POST", kind.path(self.namespace), query, wanted)

    def change(self, kind: Kind, name: str, changes: Object) -> Object:
        """Set these fields of an object and nothing else; the object as it is then.

        Where they say which `resourceVersion` they are a change of, any other one is refused with status 409.
        """
        path, query = kind.path(self.namespace, name), {"fieldManager": MANAGER}
        return self._json(f"change {kind.plural} {name}", "PATCH", path, query, changes, "application/merge-patch+json")

    def annotate(self, kind: Kind, name: str, annotations: Mapping[str, str]) -> Object:
        """Set these annotations of an object and nothing else; the object as it is then."""
        return self.change(kind, name, {"metadata": {"annotations": dict(annotations)}})

    def delete(self, kind: Kind, name: str, uid: str) -> Object | None:
        """Begin to delete this very object: it is gone once all that it owns is. None where it is gone already."""
        how = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        try:
            said = self._json(f"delete {kind.plural} {name}", "DELETE", kind.path(self.namespace, name), body=how)
        except ClusterError as error:
            if error.status == 404:
                return None
            raise
        return said if said.get("kind") != "Status" else None

    def log(self, pod: str, container: str, lines: int, *, previous: bool = False) -> tuple[str, ...]:
        """The last lines of a container, or of the one before it; empty where there are none."""
        query = {"container": container, "tailLines": str(lines), "previous": str(previous).lower()}
        try:
            said = self._ask(f"read the log of {pod}", "GET", PODS.path(self.namespace, pod, "log"), query)
        except ClusterError as error:
            if error.status in (400, 404):  # no such pod, or no container of it has begun
                return ()
            raise
        return tuple(said.data.decode(errors="replace").splitlines())

    def through(
        self, kind: Kind, name: str, method: str, path: str, headers: Mapping[str, str], body: bytes, seconds: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """What a pod or a Service answers, by way of the cluster; `name`: with its port, as in ``churn:8080``.

        Status, headers by their small names, body. That nobody answers there is a `ClusterError` too.
        """
        what = f"reach {kind.plural} {name}"
        url = f"{self._connection.host}{kind.path(self.namespace, '')}/{name}/proxy{path}"
        self._leave_alone(what)
        with _translated(what):
            answer = self._pool.request(
                method,
                url,
                body=body or None,
                headers={**headers, **self._credentials()},
                timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=seconds),
                retries=False,
                decode_content=False,
            )
        if answer.status >= 400 and _own_words(answer):
            raise self._refused(what, answer)
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.data

    def budgets(self) -> str:
        """Group and version of the cluster's budgets for disruptions."""
        return self._newest(_BUDGETS)

    def autoscalers(self) -> str:
        """The same of its autoscalers."""
        return self._newest(_AUTOSCALERS)

    def _newest(self, apis: Sequence[str]) -> str:
        return next((api for api in apis if self.serves(api)), apis[0])

    def first_served(self, apis: Sequence[str]) -> str | None:
        """The first of these versions of one group that the cluster has; None where it does not know the group."""
        try:
            return next((api for api in apis if self.serves(api)), None)
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    def serves(self, api: str) -> bool:
        """Whether the cluster has this group and version."""
        group = api.partition("/")[0]
        said = self._json(f"ask for the versions of {group}", "GET", f"/apis/{group}")
        return api in [one["groupVersion"] for one in said["versions"]]

    def list(self, kind: Kind, **selectors: str) -> tuple[list[Object], str]:
        """What the selectors (`labelSelector`, `fieldSelector`) choose, and the version from which to follow it."""
        found: list[Object] = []
        query = {"limit": str(_PAGE), **selectors}
        while True:
            said = self._json(f"list {kind.plural}", "GET", kind.path(self.namespace), query)
            found.extend(said["items"])
            further = said["metadata"].get("continue")
            if not further:
                return found, said["metadata"]["resourceVersion"]
            query["continue"] = further

    @contextmanager
    def follow(self, kind: Kind, version: str, **selectors: str) -> Iterator[Iterator[Event]]:
        """What becomes of such objects after that version, for half a minute. Entered once the cluster has agreed."""
        what = f"follow {kind.plural}"
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(FOLLOWED_SECONDS),
            **selectors,
        }
        answer = self._ask(what, "GET", kind.path(self.namespace), query, seconds=FOLLOWED_SECONDS + 5, stream=True)
        try:
            yield _events(what, answer)
        finally:
            answer.close()

    def _json(self, *what: Any, **options: Any) -> Object:
        said = self._ask(*what, **options).data
        try:
            told: Object = json.loads(said)
        except ValueError as error:
            raise ClusterError(f"cannot {what[0]}: the answer is no JSON", retryable=True) from error
        return told

    def _ask(
        self,
        what: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content: str = "application/json",
        *,
        seconds: float = _ANSWER_SECONDS,
        stream: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        self._leave_alone(what)
        with _translated(what):
            answer = self._pool.request(
                method,
                f"{self._connection.host}{path}?{urlencode(query or {})}",
                body=None if body is None else json.dumps(body).encode(),
                headers=self._headers(content),
                timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=seconds),
                retries=False,
                preload_content=not stream,
            )
            if answer.status >= 300:
                raise self._refused(what, answer)
            return answer

    def _leave_alone(self, what: str) -> None:
        """Nothing is sent before the time that the cluster has asked for, whatever it is about."""
        left = self._alone_until - time.monotonic()
        if left > 0:
            words = f"cannot {what}: the cluster has asked for no request for another {left:.1f} s"
            raise ClusterError(words, retryable=True, status=_TOO_MANY, after=left)

    def _refused(self, what: str, answer: urllib3.BaseHTTPResponse) -> ClusterError:
        error = _refusal(what, answer)
        if error.status == _TOO_MANY and error.after is not None:
            self._alone_until = time.monotonic() + min(error.after, _MOST_ALONE_SECONDS)
        return error

    def _headers(self, content: str) -> dict[str, str]:
        told = {"accept": "application/json, */*", "content-type": content, "user-agent": MANAGER}
        return told | self._credentials()

    def _credentials(self) -> dict[str, str]:
        """They are asked for every time: those of a service account are renewed every hour."""
        shown: Iterable[Any] = self._connection.auth_settings().values()
        return {one["key"]: one["value"] for one in shown if one["in"] == "header" and one["value"]}


def in_a_pod() -> bool:
    """Whether this runs in a cluster itself, so that it reaches that cluster's pods."""
    return _IN_A_POD in os.environ and "KUBECONFIG" not in os.environ


def connect(kubeconfig: Path | None = None, context: str | None = None) -> Configuration:
    """The way to a cluster: a context of a kubeconfig, or the service account of the pod that this runs in.

    Without `kubeconfig` it is the file that KUBECONFIG names, else, in a pod, the service account, else the usual file.
    """
    connection = Configuration()
    named = str(kubeconfig) if kubeconfig is not None else os.environ.get("KUBECONFIG")
    with _translated("find the cluster"):
        if kubeconfig is None and context is None and in_a_pod():
            load_incluster_config(client_configuration=connection)
        else:
            load_kube_config(named or _KUBECONFIG, context, connection, persist_config=False)
    return connection


def _events(what: str, answer: urllib3.BaseHTTPResponse) -> Iterator[Event]:
    rest = b""
    with _translated(what):
        for part in answer.stream(None):
            *whole, rest = (rest + part).split(b"\n")
            for line in filter(None, whole):
                told = json.loads(line)
                if told["type"] == "ERROR":
                    raise _error(what, told["object"].get("code"), told["object"].get("message", ""))
                yield Event(told["type"], told["object"])


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except ConfigException as error:
        raise ClusterError(f"cannot {what}: {error}", retryable=False) from error
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise ClusterError(f"cannot {what}: {error}", retryable=True) from error


def _own_words(answer: urllib3.BaseHTTPResponse) -> bool:
    """Whether the cluster itself has answered, and not whoever it was to ask."""
    try:
        said = json.loads(answer.data)
    except ValueError:
        return False
    return isinstance(said, dict) and said.get("kind") == "Status" and "apiVersion" in said


def _refusal(what: str, answer: urllib3.BaseHTTPResponse) -> ClusterError:
    said = answer.data.decode(errors="replace")
    try:
        words = json.loads(said)["message"]
    except (ValueError, KeyError, TypeError):
        words = said[:200].strip() or str(answer.reason)
    after = answer.headers.get("retry-after", "")
    return _error(what, answer.status, words, float(after) if after.isdigit() else None)


def _error(what: str, status: int | None, words: str, after: float | None = None) -> ClusterError:
    retryable = status is None or status >= 500 or status in _PASSING
    return ClusterError(f"cannot {what}: {words}", retryable=retryable, status=status, after=after)
