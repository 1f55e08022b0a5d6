"""Requests through a Gateway by the weights of routes: a small one of the tests', on a real Envoy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import httpx
import pytest

from serving.gateway_api import EDITED, name_of
from serving.httproute_router import HttpRouteRouter
from serving.revision import Address, Weights
from serving.router import Route, RouterError
from tests.fixtures.gateway import Upstream, until
from tests.fixtures.gateway_api import HTTPROUTE, Routed

SECONDS = 60.0
MODEL = "credit cards"
PATH = "/models/credit%20cards/invocations"


@pytest.fixture(params=HTTPROUTE)
def there(request: pytest.FixtureRequest) -> Routed:
    name = "routed" if request.param == "httproute" else "routed_in_cluster"
    found: Routed = request.getfixturevalue(name)
    return found


@pytest.fixture
def servers(there: Routed) -> Iterator[Mapping[str, Upstream]]:
    made = {name: Upstream(name) for name in ("fraud-v1", "fraud-v2")}
    there.gateway.backends.update({name: one.address for name, one in made.items()})
    yield made
    for one in made.values():
        one.close()


@pytest.fixture
def router(there: Routed) -> Iterator[HttpRouteRouter]:
    made = there.router()
    yield made
    made.clear()
    made.close()
    until(lambda: httpx.post(f"{there.gateway.url}{PATH}").status_code == 404, SECONDS)


def route(there: Routed, shares: Mapping[str, int], step: str = "", candidate: str | None = None) -> Route:
    ends = {name: (Address(f"{name}.{there.settings.namespace}.svc", 8080),) for name in shares}
    return Route(MODEL, Weights(shares), ends, step, candidate)


def in_force(router: HttpRouteRouter, wanted: Route) -> None:
    until(lambda: router.get_weights().get(MODEL) == wanted, SECONDS)


def answers(there: Routed, requests: int) -> Counter[str]:
    with httpx.Client() as client:
        got = [client.post(f"{there.gateway.url}{PATH}", json={}) for _ in range(requests)]
    assert {one.status_code for one in got} == {200}
    return Counter(one.json()["server"] for one in got)


@pytest.mark.usefixtures("servers")
def test_requests_are_shared_by_weight_and_the_rest_of_the_route_does_as_it_says(
    there: Routed, router: HttpRouteRouter, servers: Mapping[str, Upstream]
) -> None:
    canary = route(there, {"fraud-v1": 80, "fraud-v2": 20}, "rollout/1", "fraud-v2")
    router.set_weights(canary)
    in_force(router, canary)
    shared = answers(there, 300)
    assert 20 <= shared["fraud-v2"] <= 110  # 60 are meant, and six standard deviations are 42
    said = httpx.post(f"{there.gateway.url}{PATH}", json={}, headers={"x-promote-mode": "shadow"})
    assert said.json()["path"] == "/invocations"
    assert not any("x-promote-mode" in heard for one in servers.values() for heard in one.heard)
    assert httpx.get(f"{there.gateway.url}{PATH.replace('invocations', 'metrics')}").status_code == 404
    done = route(there, {"fraud-v2": 100})
    router.set_weights(done)
    in_force(router, done)
    assert answers(there, 50) == {"fraud-v2": 50}


@pytest.mark.usefixtures("servers")
def test_weights_that_a_person_set_are_put_right_for_requests_too(there: Routed, router: HttpRouteRouter) -> None:
    stable = route(there, {"fraud-v1": 100})
    router.set_weights(stable)
    in_force(router, stable)
    name = name_of(MODEL, there.settings.installation)
    found = there.cluster.get(router.kind, name)
    assert found is not None
    rules = found["spec"]["rules"]
    for rule in rules:
        rule["backendRefs"][0]["name"] = "fraud-v2"
    there.cluster.change(router.kind, name, {"spec": {"rules": rules}})
    until(lambda: router.get_weights()[MODEL].step == EDITED, SECONDS)
    assert router.get_weights()[MODEL].weights == Weights({"fraud-v2": 100})
    until(lambda: answers(there, 5) == {"fraud-v2": 5}, SECONDS)
    router.set_weights(stable)
    in_force(router, stable)
    assert answers(there, 20) == {"fraud-v1": 20}


@pytest.mark.usefixtures("servers")
def test_a_service_that_is_not_found_leaves_the_old_weights(there: Routed, router: HttpRouteRouter) -> None:
    stable = route(there, {"fraud-v1": 100})
    router.set_weights(stable)
    in_force(router, stable)
    wrong = route(there, {"fraud-v1": 50, "nowhere-v2": 50}, "rollout/1", "nowhere-v2")
    router.set_weights(wrong)
    until(lambda: "no Service nowhere-v2" in _refused(router, wrong), SECONDS)
    assert router.get_weights()[MODEL] == stable


def _refused(router: HttpRouteRouter, wanted: Route) -> str:
    try:
        router.set_weights(wanted)
    except RouterError as error:
        return str(error)
    return ""
