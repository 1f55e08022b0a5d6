"""A model's route as an `HTTPRoute` of the Kubernetes Gateway API, and back.

Pure. One object for each model. What it says of weights stands in its backends; what Gateway API has no word for (the
step, the candidate, what revisions are called) stands in an annotation. A second annotation keeps the route that was in
force when this one was written: until the Gateway has taken the new one, the old one may still be followed.

Only scoring paths and questions about a model are routed, as our own gateway does; a server's figures are not.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from serving.pod_parts import INSTALLATION, PREFIX, Object, labels
from serving.revision import Address, Weights
from serving.router import Route

GROUP = "gateway.networking.k8s.io"
APIS = (f"{GROUP}/v1", f"{GROUP}/v1beta1")
"""Where clusters have `HTTPRoute`, the newer one first."""
ROUTES = "httproutes"
ROUTE = f"{PREFIX}route"
"""Annotation: the route that was written. Where the backends have other weights, those count: somebody gave them."""
BEFORE = f"{PREFIX}route-before"
"""Annotation: the route that was in force when this one was written."""
SETTLE_SECONDS = 5.0
"""How long after it was accepted a route counts as followed by every proxy of the Gateway."""
PART = f"{PREFIX}part"
"""Label by which routes are found."""
EDITED = "edited"
"""Step of a route that somebody else has changed: it is no step of any rollout, so it is put right."""

_ASKED = ("invocations", "ping", "health", "version")
"""Paths below ``/models/<name>/`` that reach a model server, without what comes before them."""
_V2 = "/v2/models/"
_LONGEST = 1024 - len("invocations/")
"""Characters of a path that Gateway API takes, without what comes after a model's name."""
_OURS = ("x-promote-mode",)
"""Headers that clients must not send."""
_SAID = ("x-promote-prediction", "x-promote-loss")
"""Headers of answers that are nobody's business outside."""


@dataclass(frozen=True, slots=True)
class Parent:
    """The Gateway that routes attach to."""

    namespace: str
    name: str
    section: str = ""
    """Name of one of its listeners; all of them without."""

    @classmethod
    def parse(cls, given: str, namespace: str) -> Parent:
        """``[namespace/]name[/section]``; with one slash it is a namespace and a name. `ValueError`."""
        parts = given.split("/")
        if not 1 <= len(parts) <= 3 or not all(re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", p) for p in parts):
            raise ValueError(f"must be a Gateway's name, namespace/name or namespace/name/listener, not {given!r}")
        return cls(namespace, parts[0]) if len(parts) == 1 else cls(*parts)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.namespace, self.name, self.section)))


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """How the routes of one installation look."""

    namespace: str
    """Of the routes and the revisions' Services."""
    installation: str
    parent: Parent
    hostnames: tuple[str, ...] = ()
    """For which the routes hold; for all of the Gateway's without."""

    @property
    def selector(self) -> str:
        return f"{INSTALLATION}={self.installation},{PART}=route"


def name_of(model: str, installation: str) -> str:
    """Of the model's object: a model can be called anything, so its digest makes it certain."""
    digest = hashlib.sha256(f"{installation}\n{model}".encode()).hexdigest()[:10]
    plain = re.sub("[^a-z0-9]+", "-", model.lower())[:40].strip("-")
    return f"{plain or 'model'}-{digest}"


def cannot(route: Route, namespace: str) -> str:
    """Why a Gateway API route cannot do what `route` asks for; empty where it can."""
    model = f"model {route.model}"
    if "/" in route.model or route.model in (".", "..") or len(_below(route.model, _V2)) > _LONGEST:
        return f"{model}: Gateway API has no path for such a name: it has a slash, is all dots, or is too long"
    if route.shield_bytes and route.candidate:
        return (
            f"{model}: rollout.shield_bytes: the router httproute cannot have failed requests answered by the stable "
            "revision; set it to 0"
        )
    if route.shadow:
        return f"{model}: shadow.mode: the router httproute has no copies of requests; set it to off"
    for revision, addresses in route.endpoints.items():
        if len(addresses) != 1 or not addresses[0].host.endswith(f".{namespace}.svc"):
            where = ", ".join(map(str, addresses))
            return f"{model}: the router httproute needs a Service in namespace {namespace} for {revision}, not {where}"
    return ""


def http_route(route: Route, settings: RouteSettings, api: str, before: Route | None = None) -> Object:
    """The object; `api`: group and version, as the cluster serves it; `before`: the route in force now.

    What has a default is written out, so that what is there can be compared with what was written.
    """
    return {
        "apiVersion": api,
        "kind": "HTTPRoute",
        "metadata": {
            "name": name_of(route.model, settings.installation),
            "namespace": settings.namespace,
            "labels": _labels(route.model, settings),
            "annotations": {
                f"{PREFIX}model": route.model,
                ROUTE: _told(route),
                BEFORE: _told(before) if before else "",
            },
        },
        "spec": _spec(route, settings),
    }


def _labels(model: str, settings: RouteSettings) -> dict[str, str]:
    instance = name_of(model, settings.installation)
    return {**labels(settings.installation, "route", instance, name="route"), PART: "route"}


def _spec(route: Route, settings: RouteSettings) -> Object:
    parent: Object = {"group": GROUP, "kind": "Gateway", "namespace": settings.parent.namespace}
    parent |= {"name": settings.parent.name}
    if settings.parent.section:
        parent |= {"sectionName": settings.parent.section}
    backends = _backends(route)
    paths = {asked: f"{_below(route.model, '/models/')}/{asked}" for asked in _ASKED}
    rules = [_rule("Exact", path, [_rewritten(f"/{asked}"), *_HEADERS], backends) for asked, path in paths.items()]
    rules.append(_rule("PathPrefix", _below(route.model, _V2), list(_HEADERS), backends))
    return {"parentRefs": [parent], "hostnames": list(settings.hostnames), "rules": rules}


def _below(model: str, top: str) -> str:
    return top + quote(model, safe="")


def _backends(route: Route) -> list[Object]:
    """The candidate comes last; who has no share is left out, so that it need not be there."""
    shares = sorted(route.weights.shares.items(), key=lambda share: (share[0] == route.candidate, share[0]))
    return [_backend(route.endpoints[revision][0], share) for revision, share in shares]


def _backend(address: Address, weight: int) -> Object:
    name = address.host.partition(".")[0]
    return {"group": "", "kind": "Service", "name": name, "port": address.port, "weight": weight}


def _rule(kind: str, path: str, filters: list[Object], backends: list[Object]) -> Object:
    return {"matches": [{"path": {"type": kind, "value": path}}], "filters": filters, "backendRefs": backends}


def _rewritten(path: str) -> Object:
    how = {"path": {"type": "ReplaceFullPath", "replaceFullPath": path}}
    return {"type": "URLRewrite", "urlRewrite": how}


_HEADERS: Sequence[Object] = (
    {"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": list(_OURS)}},
    {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": list(_SAID)}},
)


def _told(route: Route) -> str:
    ends = {name: [[at.host, at.port] for at in places] for name, places in route.endpoints.items()}
    said: Object = {"model": route.model, "weights": dict(route.weights.shares), "endpoints": ends}
    return json.dumps(said | {"step": route.step, "candidate": route.candidate}, ensure_ascii=False)


def is_written(there: Object, route: Route, settings: RouteSettings) -> bool:
    """Whether the object asks for exactly this route, and is found by its labels."""
    labels = _labels(route.model, settings)
    return written(there, settings) == route and _holds(labels, there["metadata"].get("labels"))


def written(there: Object, settings: RouteSettings) -> Route | None:
    """The route that the object asks for, as it is now; None where it asks for none, or nobody knows of what model."""
    said = _said(there, ROUTE)
    if said is None:
        return None
    ends = dict(said.endpoints)
    known = {places[0].host.partition(".")[0]: name for name, places in ends.items()}
    rules: list[Object] = there.get("spec", {}).get("rules") or [{}]
    given: dict[str, float] = {}
    for backend in rules[0].get("backendRefs") or ():
        name = known.get(backend["name"], backend["name"])
        given[name] = given.get(name, 0) + backend.get("weight", 1)
        ends.setdefault(name, (Address(f"{backend['name']}.{settings.namespace}.svc", backend.get("port", 80)),))
    shares = _percent(given)
    if not shares:
        return None
    wanted = http_route(said, settings, there.get("apiVersion", ""))
    if shares == dict(said.weights.shares) and _holds(wanted["spec"], there["spec"]):
        return said
    return replace(said, weights=Weights(shares), endpoints=ends, step=EDITED)


def before(there: Object) -> Route | None:
    """The route that was in force when the object was written; None where none was, or nobody knows."""
    return _said(there, BEFORE)


def _said(there: Object, name: str) -> Route | None:
    """What stands in an annotation, be it of a person's making."""
    text = (there["metadata"].get("annotations") or {}).get(name)
    try:
        said = json.loads(text or "null") or {}
        ends = {revision: tuple(Address(*place) for place in places) for revision, places in said["endpoints"].items()}
        return Route(said["model"], Weights(said["weights"]), ends, said["step"], said["candidate"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _percent(given: Mapping[str, float]) -> dict[str, int]:
    """Whole percents of what somebody may have given in any measure; the first of the largest gets what is left."""
    total = sum(given.values())
    if total <= 0:
        return {}
    shares = {name: int(100 * weight / total) for name, weight in given.items()}
    shares[max(given, key=lambda name: given[name])] += 100 - sum(shares.values())
    return {name: share for name, share in shares.items() if share}


_STEERING = frozenset(
    {"headers", "queryParams", "method", "filters", "timeouts", "retry", "sessionPersistence", "sectionName", "port"}
)
"""Fields that change which requests go where: nobody but us says them. Others may be defaults of a newer cluster."""


def _holds(wanted: Any, there: Any) -> bool:
    """Whether all that is wanted is there: lists whole, objects with what else a cluster may put into them."""
    if isinstance(wanted, dict):
        if not isinstance(there, dict) or any(there[key] for key in _STEERING & (there.keys() - wanted.keys())):
            return False
        return all(_holds(value, there.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        given = there or []
        return len(given) == len(wanted) and all(map(_holds, wanted, given))
    return bool(wanted == there)


@dataclass(frozen=True, slots=True)
class Standing:
    """What the Gateway says of the object as it is now."""

    taken: bool
    """It is accepted and its backends are found."""
    refusal: str = ""
    """Why it is not, in the Gateway's words; empty while nothing has been said."""


def standing(there: Object, parent: Parent) -> Standing:
    """What everybody who speaks for `parent` says of this generation of the object, and of no earlier one."""
    own = there["metadata"]["namespace"]
    ours = [one for one in there.get("status", {}).get("parents") or () if _is(one["parentRef"], parent, own)]
    told = [_condition(one, kind, there["metadata"]["generation"]) for one in ours for kind in _NEEDED]
    refusals = [said for said in told if said]
    return Standing(bool(told) and all(said == "" for said in told), "; ".join(refusals))


_NEEDED = ("Accepted", "ResolvedRefs")


def _is(reference: Mapping[str, Any], parent: Parent, namespace: str) -> bool:
    named = (reference.get("namespace") or namespace, reference["name"], reference.get("sectionName") or "")
    gateway = reference.get("kind", "Gateway") == "Gateway"
    return gateway and named == (parent.namespace, parent.name, parent.section)


def _condition(status: Mapping[str, Any], kind: str, generation: int) -> str | None:
    """Empty where it is true, what was said where it is not; None where nothing was said of this generation."""
    for one in status.get("conditions") or ():
        if one["type"] == kind and one.get("observedGeneration", 0) >= generation:
            said = f"{kind} is {one['status']}: {one.get('reason', '')} {one.get('message', '')}".rstrip()
            return "" if one["status"] == "True" else said
    return None
