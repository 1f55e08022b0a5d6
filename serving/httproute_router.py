"""Traffic through somebody else's gateway, by the weights of `HTTPRoute`s of the Kubernetes Gateway API.

A route is in force once the Gateway says that it has accepted this very generation of it and found its Services, and a
few seconds more: Gateway API has no word for 'every proxy follows it by now'. Until then the route before it is told.
Objects are written by server-side apply, each change with the version that it is a change of, and made by a request
that is refused where there is one already: so of two writers one is refused. What a person changed is told as a route
of no step, and so put right. A route whose object is gone is told no more, though proxies may follow it for a moment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

from serving import gateway_api
from serving.cluster import Cluster, ClusterError, Kind
from serving.cluster_view import Watched
from serving.gateway_api import (
    APIS,
    EDITED,
    ROUTES,
    SETTLE_SECONDS,
    RouteSettings,
    Standing,
    http_route,
    standing,
    written,
)
from serving.pod_parts import INSTALLATION, Object
from serving.router import Route, RouterError

_logger = logging.getLogger(__name__)

SILENT_SECONDS = 60.0
"""After so long without a word of the Gateway it is said that there is none."""
_ATTEMPTS = 3
_CONFLICT = 409


class HttpRouteRouter:
    """`TrafficRouter` over the `HTTPRoute`s of one installation."""

    def __init__(
        self,
        cluster: Cluster,
        settings: RouteSettings,
        settle_seconds: float = SETTLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._cluster = cluster
        self._settle_seconds = settle_seconds
        self._clock = clock
        self._written: dict[str, tuple[str, float]] = {}
        """When each object was first seen in its present generation, by its name."""
        self._accepted: dict[str, tuple[str, float]] = {}
        """When it was first seen to be accepted."""

    def set_weights(self, route: Route) -> None:
        if words := gateway_api.cannot(route, self.settings.namespace):
            raise RouterError(words, retryable=False)
        with _translated("route"):
            there = self._there(route.model)
            if there is not None and gateway_api.is_written(there, route, self.settings):
                self._explain(there)
                return
            wanted = http_route(route, self.settings, self.kind.api, self._told(there) if there else None)
            self._watched.take(self._cluster.create(wanted) if there is None else self._change(wanted, there))

    def get_weights(self) -> Mapping[str, Route]:
        with _translated("read the routes"):
            told = [self._told(there) for there in self._watched.all()]
        return {route.model: route for route in told if route is not None}

    def remove(self, model: str) -> None:
        with _translated("remove the route"):
            there = self._there(model)
            if there is not None:
                self._cluster.delete(self.kind, there["metadata"]["name"], there["metadata"]["uid"])

    def clear(self) -> None:
        """Remove every route of the installation, also one that nobody understands any more. Raises `RouterError`."""
        with _translated("remove the routes"):
            for there in self._watched.all():
                self._cluster.delete(self.kind, there["metadata"]["name"], there["metadata"]["uid"])

    def close(self) -> None:
        """Follow the cluster no more."""
        if "_watched" in self.__dict__:
            self._watched.close()

    @cached_property
    def kind(self) -> Kind:
        """Where the cluster has routes. Raises `ClusterError`."""
        api = self._cluster.first_served(APIS)
        if api is None:
            words = "the cluster has no Gateway API (HTTPRoute v1 or v1beta1): install its definitions and a Gateway"
            raise ClusterError(words, retryable=True)
        return Kind(api, ROUTES)

    @cached_property
    def _watched(self) -> Watched:
        return Watched(self._cluster, self.kind, labelSelector=self.settings.selector)

    def _there(self, model: str) -> Object | None:
        """The model's object, where it is ours. Asked for where the watch does not know it: it may be another's."""
        name = gateway_api.name_of(model, self.settings.installation)
        known = next((one for one in self._watched.all() if one["metadata"]["name"] == name), None)
        found = known or self._cluster.get(self.kind, name)
        if (
            found is not None
            and (found["metadata"].get("labels") or {}).get(INSTALLATION) != self.settings.installation
        ):
            words = f"HTTPRoute {name} in namespace {self.settings.namespace} is not of {self.settings.installation}"
            raise RouterError(f"{words}: remove it, or give it the label {INSTALLATION} back", retryable=False)
        return found

    def _change(self, wanted: Object, there: Object) -> Object:
        """Again where nothing but the status was written in between, as a Gateway does several times after a change."""
        name = there["metadata"]["name"]
        for left in reversed(range(_ATTEMPTS)):
            wanted["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"]
            try:
                return self._cluster.apply(wanted)
            except ClusterError as error:
                fresh = self._cluster.get(self.kind, name) if error.status == _CONFLICT and left else None
                if fresh is None or _asked(fresh) != _asked(there):
                    raise
                there = fresh
        raise AssertionError("the last attempt returns or raises")

    def _told(self, there: Object) -> Route | None:
        """The route in force: that of the object once it is followed, until then the one before it."""
        found = written(there, self.settings)
        if found is not None and (found.step == EDITED or self._followed(there)):
            return found
        return gateway_api.before(there)

    def _followed(self, there: Object) -> bool:
        if not standing(there, self.settings.parent).taken:
            self._accepted.pop(there["metadata"]["name"], None)
            return False
        return self._clock() - self._since(self._accepted, there) >= self._settle_seconds

    def _since(self, times: dict[str, tuple[str, float]], there: Object) -> float:
        name, which = there["metadata"]["name"], f"{there['metadata']['uid']}/{there['metadata']['generation']}"
        if times.get(name, ("", 0.0))[0] != which:
            times[name] = (which, self._clock())
        return times[name][1]

    def _explain(self, there: Object) -> None:
        """`RouterError` where a route that is written as it should be is refused, or nobody looks at it."""
        said: Standing = standing(there, self.settings.parent)
        silent = self._clock() - self._since(self._written, there)
        what = f"HTTPRoute {there['metadata']['name']} at Gateway {self.settings.parent}"
        if said.refusal:
            raise RouterError(f"{what} is not followed: {said.refusal}", retryable=True)
        if not said.taken and silent > SILENT_SECONDS:
            words = f"is not followed: the Gateway has said nothing of it for {silent:.0f} s"
            raise RouterError(f"{what} {words}; see gateway_parent, and that an implementation runs", retryable=True)


def _asked(there: Object) -> tuple[object, ...]:
    """What of an object others than its Gateway write."""
    about = there["metadata"]
    return about["uid"], about["generation"], about.get("labels"), about.get("annotations")


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except ClusterError as error:
        raise RouterError(f"cannot {what}: {error}", retryable=error.retryable) from error
