"""The gateway as objects of a cluster: Envoys side by side, and how they are reached.

Pure. What the Envoys serve stands in a ConfigMap that nobody but the router writes; here is what is written once for an
installation. Everything carries the installation's label, and nothing of it needs the controller once it is there.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from serving.kubernetes_objects import scraped
from serving.pod_parts import INSTALLATION, PREFIX, Object, confined, labels, pulled_with, unprivileged

LISTENS, DOOR, ADMIN = 10000, 10002, 9901
"""Ports in a pod: of clients, of the controller, and of Envoy's administration, which only the pod itself reaches."""
PACKED, TABLES, LOG, BOOT = "/etc/promote/packed", "/run/promote/tables", "/run/promote/log", "/etc/promote/boot"
"""Folders in a pod."""
ACCESS_LOG = f"{LOG}/access.log"
BOOTSTRAP = "bootstrap.json"
KEY = "GATEWAY_KEY"
TABLES_SEEN = f"{PREFIX}tables"
"""Annotation of pods: changing it makes the kubelet look at their ConfigMaps, as it does else once a minute."""

_LOG_SIZE = "512Mi"
"""Most that the access log may take before the pod is replaced; it is kept below that, also where nobody reads it."""
_DROP_SECONDS = 10
"""A pod that is to end goes on for so long, while everybody learns not to ask it any more."""
_DRAIN_SECONDS = 60
"""Most that requests in flight may take after that."""
_MARGIN_SECONDS = 10
_NODE_PORTS = range(30000, 32768)
"""That clusters usually have for Services."""


def name_of(installation: str) -> str:
    """Of the gateway's objects."""
    return f"{installation}-gateway"


def tables_of(name: str) -> str:
    """Name of the ConfigMap with what is served by the gateway `name`."""
    return f"{name}-tables"


@dataclass(frozen=True, slots=True)
class GatewayObjects:
    """How the gateway of one installation runs in a cluster."""

    namespace: str
    installation: str
    image: str
    """With Envoy, Python and `serving.gateway_pod`."""
    bootstrap: str
    """What Envoy starts with, as JSON."""
    replicas: int = 2
    port: int = 8080
    """Of its Service."""
    service: str = "ClusterIP"
    """Type of its Service."""
    pull_secrets: Sequence[str] = ()

    @property
    def name(self) -> str:
        return name_of(self.installation)

    @property
    def tables(self) -> str:
        """Name of the ConfigMap with what is served."""
        return tables_of(self.name)

    @property
    def selector(self) -> dict[str, str]:
        return {INSTALLATION: self.installation, "app.kubernetes.io/component": "gateway"}

    @property
    def labels(self) -> dict[str, str]:
        return labels(self.installation, "gateway", self.name, name="envoy")

    def deployment(self, user: int) -> Object:
        """Everything runs as `user`. Replicas are replaced one after the other, each once another one is ready."""
        version = hashlib.sha256(self.bootstrap.encode()).hexdigest()[:16]
        pods = {
            "metadata": {"labels": self.labels, "annotations": {f"{PREFIX}bootstrap": version, **scraped(DOOR)}},
            "spec": self._pod(user),
        }
        spec = {
            "replicas": self.replicas,
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": self.selector},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": pods,
        }
        return self._object("apps/v1", "Deployment", spec=spec)

    def boot(self) -> Object:
        return self._object("v1", "ConfigMap", data={BOOTSTRAP: self.bootstrap})

    def reached(self) -> Object:
        """The Service. A port of the nodes is the same as its own where that may be one of theirs."""
        port: Object = {"name": "http", "port": self.port, "protocol": "TCP", "targetPort": "http"}
        if self.service == "NodePort" and self.port in _NODE_PORTS:
            port["nodePort"] = self.port
        spec = {"type": self.service, "selector": self.selector, "ports": [port]}
        return self._object("v1", "Service", spec=spec)

    def budget(self, api: str) -> Object:
        spec = {"maxUnavailable": 1, "selector": {"matchLabels": self.selector}}
        return self._object(api, "PodDisruptionBudget", spec=spec)

    def secret(self, key: str) -> Object:
        """What whoever asks a pod has to know."""
        return self._object("v1", "Secret", type="Opaque", data={KEY: base64.b64encode(key.encode()).decode()})

    def served(self) -> Object:
        """The ConfigMap with what is served, of nothing yet."""
        made = self._object("v1", "ConfigMap")
        made["metadata"]["name"] = self.tables
        return made

    def _object(self, api: str, kind: str, **rest: object) -> Object:
        metadata = {"name": self.name, "namespace": self.namespace, "labels": self.labels}
        return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}

    def _pod(self, user: int) -> Object:
        spread = {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": self.selector},
        }
        serving = ("--log", ACCESS_LOG, "--port", str(DOOR), "--admin-port", str(ADMIN))
        return {
            **unprivileged(user, user),
            **pulled_with(self.pull_secrets),
            "terminationGracePeriodSeconds": _DROP_SECONDS + _DRAIN_SECONDS + _MARGIN_SECONDS,
            "topologySpreadConstraints": [spread],
            "initContainers": [self._beside("unpack")],
            "containers": [self._envoy(), self._beside("serve", *serving) | {"ports": [_port("door", DOOR)]}],
            "volumes": [
                {"name": "packed", "configMap": {"name": self.tables}},
                {"name": "boot", "configMap": {"name": self.name}},
                {"name": "tables", "emptyDir": {}},
                {"name": "log", "emptyDir": {"sizeLimit": _LOG_SIZE}},
            ],
        }

    def _envoy(self) -> Object:
        drained = ("--seconds", str(_DROP_SECONDS), "--most", str(_DRAIN_SECONDS), "--admin-port", str(ADMIN))
        drain = [*_POD, "drain", *drained]
        options = ["-c", f"{BOOT}/{BOOTSTRAP}", "--file-flush-interval-msec", "100", "--log-level", "warning"]
        return {
            "name": "envoy",
            "image": self.image,
            "command": [*_POD, "start", "--log", ACCESS_LOG, "--", "/usr/local/bin/envoy"],
            "args": [*options, "--disable-hot-restart", "--concurrency", "2"],
            "ports": [_port("http", LISTENS)],
            "securityContext": confined(),
            "volumeMounts": [_mount("boot", BOOT), _mount("tables", TABLES), _mount("log", LOG)],
            "lifecycle": {"preStop": {"exec": {"command": drain}}},
            "startupProbe": _probe(period=1, failures=60),
            "readinessProbe": _probe(period=2, failures=2),
            "livenessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 10, "failureThreshold": 6},
        }

    def _beside(self, part: str, *more: str) -> Object:
        return {
            "name": part,
            "image": self.image,
            "command": [*_POD, part],
            "args": ["--packed", PACKED, "--tables", TABLES, *more],
            "env": [{"name": KEY, "valueFrom": {"secretKeyRef": {"name": self.name, "key": KEY}}}],
            "securityContext": confined(),
            "volumeMounts": [_mount("packed", PACKED), _mount("tables", TABLES), _mount("log", LOG)],
        }


_POD = ("python3", "-m", "serving.gateway_pod")


def _mount(name: str, path: str) -> Object:
    return {"name": name, "mountPath": path}


def _port(name: str, number: int) -> Object:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _probe(*, period: int, failures: int) -> Object:
    asked = {"path": "/healthz", "port": "http", "scheme": "HTTP"}
    return {"httpGet": asked, "periodSeconds": period, "failureThreshold": failures}
