"""The controller as objects of a cluster: the manifests of `k8s/`, completed for one installation.

Pure. The same manifests are what `kubectl apply -k` takes; nothing is said here that is not said there.
"""

from __future__ import annotations

import base64
import copy
import functools
import hashlib
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from serving.pod_parts import PREFIX, Object

CONTROLLER = "mlflow-promote-controller"
"""Name of the Deployment and its Service, and of the image that manifests have before they are completed."""
SECRET = "mlflow-promote"  # noqa: S105 - a name
SETTINGS, POLICIES = "mlflow-promote-settings", "mlflow-promote-policies"
PART_OF = {"app.kubernetes.io/part-of": "mlflow-promote"}

_ORDER = ("ServiceAccount", "Role", "RoleBinding", "Secret", "ConfigMap", "PersistentVolumeClaim", "Service")
"""What others need comes first."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The controller of one installation."""

    namespace: str
    image: str
    """With its digest."""
    settings: Mapping[str, Any] = field(hash=False)
    """As in settings.yaml, without what is secret."""
    secrets: Mapping[str, str] = field(hash=False)
    """Environment variables."""
    policies: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Files with policies, by their names."""
    pull_secrets: Sequence[str] = ()
    predictions_secret: str | None = None
    """Secret with variables by which the prediction log is reached; None for none."""


def completed(manifests: Iterable[Object], wanted: Wanted) -> list[Object]:
    """Every object, in an order in which they can be made."""
    own = [
        _object("Secret", SECRET, type="Opaque", data={name: _encoded(text) for name, text in wanted.secrets.items()}),
        _object("ConfigMap", SETTINGS, data={"settings.yaml": yaml.safe_dump(dict(wanted.settings), sort_keys=True)}),
        *([_object("ConfigMap", POLICIES, data=dict(wanted.policies))] if wanted.policies else []),
    ]
    made = [_placed(one, wanted) for one in (*copy.deepcopy(list(manifests)), *own)]
    return sorted(made, key=lambda one: _ORDER.index(one["kind"]) if one["kind"] in _ORDER else len(_ORDER))


def patched(manifests: Iterable[Object], component: Object) -> list[Object]:
    """The manifests as a component of kustomize has them, whose patches set what lies at a path of one object."""
    made = copy.deepcopy(list(manifests))
    for patch in component["patches"]:
        wanted = (patch["target"]["kind"], patch["target"]["name"])
        (one,) = (one for one in made if (one["kind"], one["metadata"]["name"]) == wanted)
        for step in yaml.safe_load(patch["patch"]):
            *above, last = step["path"].strip("/").split("/")
            functools.reduce(operator.getitem, above, one)[last] = step["value"]
    return made


def _placed(one: Object, wanted: Wanted) -> Object:
    one["metadata"]["namespace"] = wanted.namespace
    for subject in one.get("subjects", ()):
        subject["namespace"] = wanted.namespace
    if one["kind"] == "Deployment":
        pods = one["spec"]["template"]
        pods["metadata"]["annotations"] = {f"{PREFIX}settings": _version(wanted)}
        for container in pods["spec"]["containers"]:
            container["image"] = wanted.image
            if wanted.predictions_secret:
                container["envFrom"].append({"secretRef": {"name": wanted.predictions_secret}})
        if wanted.pull_secrets:
            pods["spec"]["imagePullSecrets"] = [{"name": name} for name in wanted.pull_secrets]
    return one


def _version(wanted: Wanted) -> str:
    """Another one where the controller has to be started anew. Policies are read while it runs."""
    told = json.dumps([dict(wanted.settings), dict(wanted.secrets)], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _object(kind: str, name: str, **rest: object) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": dict(PART_OF)}, **rest}


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
