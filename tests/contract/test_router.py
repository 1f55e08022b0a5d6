"""Every data plane routes alike; what only a real one can show is shown on Envoy."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest
from kubernetes.client import Configuration

from examples.load import load
from serving.cluster import Cluster
from serving.envoy import GatewaySettings
from serving.envoy_admin import admin_at
from serving.envoy_process import local_gateway
from serving.envoy_router import EnvoyRouter, router_at
from serving.gateway import Gateway, GatewayError
from serving.gateway_api import Parent, RouteSettings
from serving.httproute_router import HttpRouteRouter
from serving.revision import Address, Weights
from serving.router import Route, RouterError, TrafficRouter
from tests.fakes.router import FakeRouter
from tests.fixtures.cluster import CLUSTER, ClusterFront
from tests.fixtures.gateway import Upstream, free_port, until
from tests.fixtures.gateway_api import HTTPROUTE, Routed

NOWHERE = (Address("127.0.0.1", 9),)
_numbers = itertools.count()


def fresh(name: str = "model") -> str:
    """A model's name that no other test has routed."""
    return f"{name}-{next(_numbers)}"


def route(
    router: TrafficRouter, model: str, shares: Mapping[str, int], step: str = "", candidate: str | None = None
) -> Route:
    return Route(model, Weights(shares), places(router, dict.fromkeys(shares, NOWHERE)), step, candidate)


def places(router: TrafficRouter, ends: Mapping[str, tuple[Address, ...]]) -> Mapping[str, tuple[Address, ...]]:
    """Where revisions are, as far as the router takes any place; routes of Gateway API lead to Services alone."""
    if not isinstance(router, HttpRouteRouter):
        return ends
    return {revision: (Address(f"{revision}.{router.settings.namespace}.svc", 8080),) for revision in ends}


@pytest.fixture(params=["fake", "envoy", CLUSTER, *HTTPROUTE])
def router(request: pytest.FixtureRequest) -> Iterator[TrafficRouter]:
    if request.param == "fake":
        yield FakeRouter(delay=2)
        return
    if request.param.startswith("httproute"):
        where = "routed" if request.param == "httproute" else "routed_in_cluster"
        yield from gateway_api_router(request.getfixturevalue(where))
        return
    real = real_router(request)
    before = set(real.get_weights())
    yield real
    for model in set(real.get_weights()) - before:
        real.remove(model)


def real_router(request: pytest.FixtureRequest) -> EnvoyRouter:
    if request.param == "kubernetes":
        front: ClusterFront = request.getfixturevalue("cluster_front")
        return front.router()
    gateway: Gateway = request.getfixturevalue("gateway")
    return router_at(gateway.files.home, gateway.settings)


def gateway_api_router(routed: Routed) -> Iterator[TrafficRouter]:
    """At a Gateway that finds whatever Service these tests name."""
    names = ("v1", "v2", "churn-v1", "churn-v2", "one-v1", "two-v1", "two-v2")
    routed.gateway.backends.update(dict.fromkeys(names, NOWHERE[0]))
    router = routed.router()
    yield router
    router.clear()
    router.close()


def in_force(router: TrafficRouter, wanted: Route) -> None:
    until(lambda: router.get_weights().get(wanted.model) == wanted)


def test_a_route_comes_into_force_whole(router: TrafficRouter) -> None:
    wanted = Route(
        "churn",
        Weights({"churn-v1": 95, "churn-v2": 5}),
        places(
            router,
            {
                "churn-v1": (Address("127.0.0.1", 9), Address("127.0.0.1", 10)),
                "churn-v2": (Address("::1", 9),),
                "churn-v3": (Address("127.0.0.1", 11),),
            },
        ),
        step="rollout/2",
        candidate="churn-v2",
    )
    router.set_weights(wanted)
    in_force(router, wanted)


@pytest.mark.parametrize(
    "name",
    ["日" * 80, "long " * 50, "a b", "naïve.modèle", "100%", "(x)+{y}?#", 'quo"te\\', "%20", "日本", "a.b", "UPPER"],
)
def test_any_name_of_a_model_comes_back_as_it_was(router: TrafficRouter, name: str) -> None:
    wanted = route(router, name, {"v1": 100})
    router.set_weights(wanted)
    in_force(router, wanted)


def test_the_last_weights_hold_and_asking_again_changes_nothing(router: TrafficRouter) -> None:
    for weight in (5, 20, 50):
        router.set_weights(route(router, "churn", {"v1": 100 - weight, "v2": weight}, f"ro/{weight}", "v2"))
    wanted = route(router, "churn", {"v2": 100})
    router.set_weights(wanted)
    router.set_weights(wanted)
    in_force(router, wanted)


def test_models_do_not_touch_each_other(router: TrafficRouter) -> None:
    one, two = route(router, "one", {"one-v1": 100}), route(router, "two", {"two-v1": 60, "two-v2": 40})
    router.set_weights(one)
    router.set_weights(two)
    in_force(router, two)
    in_force(router, one)
    router.remove("one")
    until(lambda: "one" not in router.get_weights())
    in_force(router, two)


def test_removing_what_is_not_there_is_fine(router: TrafficRouter) -> None:
    router.remove("nobody")
    assert "nobody" not in router.get_weights()


def broken_fake(gateway: Gateway) -> TrafficRouter:
    fake = FakeRouter()
    fake.broken = True
    return fake


def envoy_that_is_down(gateway: Gateway) -> TrafficRouter:
    return router_at(gateway.files.home, gateway.settings)


def cluster_that_is_away(gateway: Gateway) -> TrafficRouter:
    away = Configuration(host=f"http://127.0.0.1:{gateway.settings.port}")
    routes = RouteSettings("models", "promote", Parent("models", "public"))
    return HttpRouteRouter(Cluster(away, "models"), routes)


@pytest.mark.parametrize("make", [broken_fake, envoy_that_is_down, cluster_that_is_away])
def test_an_unreachable_data_plane_is_worth_trying_again(
    make: Callable[[Gateway], TrafficRouter], own_gateway: Gateway
) -> None:
    with pytest.raises(RouterError) as failure:
        make(own_gateway).get_weights()
    assert failure.value.retryable


# What follows needs requests, and so a real data plane.


@pytest.fixture
def envoy(gateway: Gateway) -> EnvoyRouter:
    return router_at(gateway.files.home, gateway.settings)


def between(model: str, upstreams: tuple[Upstream, Upstream], weight: int) -> Route:
    shares = {name: share for name, share in (("one-v1", 100 - weight), ("one-v2", weight)) if share}
    return Route(
        model, Weights(shares), {upstream.name: (upstream.address,) for upstream in upstreams}, "ro/1", "one-v2"
    )


def ask(
    gateway: Gateway, path: str, headers: Mapping[str, str] | None = None, client: httpx.Client | None = None
) -> httpx.Response:
    if client is not None:
        return client.post(gateway.url + path, json={}, headers=headers)
    return httpx.post(gateway.url + path, json={}, headers=headers, trust_env=False)


def test_requests_are_shared_as_the_weights_say(
    gateway: Gateway, envoy: EnvoyRouter, upstreams: tuple[Upstream, Upstream]
) -> None:
    model = fresh()
    wanted = between(model, upstreams, 20)
    envoy.set_weights(wanted)
    in_force(envoy, wanted)
    with httpx.Client(trust_env=False) as client:
        served = Counter(
            ask(gateway, f"/models/{model}/invocations", None, client).json()["server"] for _ in range(2000)
        )
    assert sum(served.values()) == 2000
    assert 300 < served["one-v2"] < 500, "20 % of 2000, within 5.6 standard deviations"


def test_an_entity_stays_on_its_revision_and_with_the_growing_candidate(
    gateway: Gateway, envoy: EnvoyRouter, upstreams: tuple[Upstream, Upstream]
) -> None:
    model, seen = fresh(), {}
    with httpx.Client(trust_env=False) as client:

        def servers() -> dict[int, str]:
            path = f"/models/{model}/invocations"
            return {n: ask(gateway, path, {"x-entity-id": str(n)}, client).json()["server"] for n in range(200)}

        for weight in (10, 50):
            wanted = between(model, upstreams, weight)
            envoy.set_weights(wanted)
            in_force(envoy, wanted)
            seen[weight] = servers()
            assert servers() == seen[weight]
    shares = {weight: sum(server == "one-v2" for server in served.values()) for weight, served in seen.items()}
    assert 4 < shares[10] < 45 < shares[50] < 145
    assert all(seen[50][entity] == "one-v2" for entity, server in seen[10].items() if server == "one-v2")


@pytest.mark.parametrize(
    ("path", "upstream"),
    [
        ("/models/{}/invocations", "/invocations"),
        ("/models/{}/invocations?a=b", "/invocations?a=b"),
        ("/models/{}/ping", "/ping"),
        ("/models/{}/health", "/health"),
        ("/models/{}/version", "/version"),
        ("/v2/models/{}/infer", "/v2/models/{}/infer"),
        ("/v2/models/{}", "/v2/models/{}"),
        ("/v2/models/{}/ready", "/v2/models/{}/ready"),
    ],
)
@pytest.mark.parametrize("name", ["plain", "a%20b.%C3%BC", "a%20b.%c3%bc", "a%2bb", "a+b"])
def test_paths_reach_the_model_server_however_the_name_is_escaped(
    gateway: Gateway, envoy: EnvoyRouter, upstreams: tuple[Upstream, Upstream], path: str, upstream: str, name: str
) -> None:
    for model in ("plain", "a b.ü", "a+b"):
        envoy.set_weights(between(model, upstreams, 0))
    answer = until(lambda: found if (found := ask(gateway, path.format(name))).status_code == 200 else None)
    assert answer is not None
    assert answer.json()["path"] == upstream.format(name)


def test_clients_cannot_send_headers_of_ours(
    gateway: Gateway, envoy: EnvoyRouter, upstreams: tuple[Upstream, Upstream]
) -> None:
    model = fresh()
    envoy.set_weights(between(model, upstreams, 0))
    in_force(envoy, between(model, upstreams, 0))
    sent = {"x-promote-mode": "shadow", "X-Promote-Anything": "1", "x-envoy-max-retries": "9", "x-request-id": "mine"}
    answer = ask(gateway, f"/models/{model}/invocations", {**sent, "x-mine": "kept"})
    seen = answer.json()["headers"]
    assert not [name for name in seen if name.startswith("x-promote-") or name == "x-envoy-max-retries"]
    assert seen["x-mine"] == "kept"
    assert seen["x-request-id"] != "mine"
    assert answer.headers["x-request-id"] == seen["x-request-id"]


def test_what_an_answer_says_of_its_predictions_stays_in_the_log(
    own_gateway: Gateway, upstreams: tuple[Upstream, Upstream]
) -> None:
    own_gateway.ensure()
    envoy, wanted = router_at(own_gateway.files.home, own_gateway.settings), between("churn", upstreams, 0)
    envoy.set_weights(wanted)
    in_force(envoy, wanted)
    answer = ask(own_gateway, "/models/churn/invocations")
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-promote-")]
    ended = until(lambda: [line for line in logged(own_gateway) if line["type"] == "UpstreamEnd"])
    assert [line["prediction"] for line in ended] == ["[0.5]"]
    assert 0 < ended[0]["took"] < 10_000_000


def logged(gateway: Gateway) -> list[dict[str, Any]]:
    """Every whole line of the access log."""
    return [json.loads(line) for line in gateway.files.access_log.read_text().splitlines() if line.endswith("}")]


@pytest.mark.parametrize(
    "path", ["/models/nobody%20here/invocations", "/v2/models/nobody%20here/infer", "/nobody%20here"]
)
def test_an_unknown_model_is_named_in_a_json_404(gateway: Gateway, path: str) -> None:
    answer = ask(gateway, path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    assert answer.json()["error_code"] == "RESOURCE_DOES_NOT_EXIST"
    assert "nobody%20here" in answer.json()["message"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_a_failing_revision_gives_json_and_is_asked_once(
    gateway: Gateway, envoy: EnvoyRouter, upstreams: tuple[Upstream, Upstream]
) -> None:
    model = fresh()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        refused = Address(*taken.getsockname())
        wanted = Route(model, Weights({"gone": 100}), {"gone": (refused,)})
        envoy.set_weights(wanted)
        in_force(envoy, wanted)
        answer = ask(gateway, f"/models/{model}/invocations")
    assert (answer.status_code, answer.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    assert "connect" in answer.json()["message"]
    envoy.set_weights(between(model, upstreams, 0))
    in_force(envoy, between(model, upstreams, 0))
    slow = ask(gateway, f"/models/{model}/invocations", {"mode": "hang"})
    assert (slow.status_code, "timeout" in slow.json()["message"]) == (504, True)
    until(lambda: gateway.files.access_log.read_text().count(slow.headers["x-request-id"]) == 2)


def test_removing_a_model_leaves_nothing_of_it(
    gateway: Gateway, envoy: EnvoyRouter, upstreams: tuple[Upstream, Upstream]
) -> None:
    model = fresh()
    wanted = Route(model, Weights({"only-here": 100}), {"only-here": (upstreams[0].address,)})
    envoy.set_weights(wanted)
    in_force(envoy, wanted)
    envoy.remove(model)
    until(lambda: ask(gateway, f"/models/{model}/invocations").status_code == 404)
    assert "only-here" not in gateway.files.clusters.read_text() + gateway.files.routes.read_text()


def test_no_request_is_lost_while_revisions_come_and_go(
    gateway: Gateway, envoy: EnvoyRouter, upstreams: tuple[Upstream, Upstream]
) -> None:
    model = fresh()
    first, second = (
        Route(model, Weights({f"{model}-{n}": 100}), {f"{model}-{n}": (upstream.address,)})
        for n, upstream in enumerate(upstreams)
    )
    envoy.set_weights(first)
    in_force(envoy, first)
    over = threading.Event()

    def swap() -> None:
        for wanted in itertools.cycle((second, first)):
            envoy.set_weights(wanted)
            if over.wait(0.1):
                return

    swapping = threading.Thread(target=swap)
    swapping.start()
    result = asyncio.run(load(f"{gateway.url}/models/{model}/invocations", b"{}", rate=150, seconds=3))
    over.set()
    swapping.join()
    assert (result.ok, result.failed) == (450, {})


def test_a_request_in_flight_on_a_revision_that_leaves_finishes(
    gateway: Gateway, envoy: EnvoyRouter, upstreams: tuple[Upstream, Upstream]
) -> None:
    model = fresh()
    old, new = (Route(model, Weights({name: 100}), {name: (upstreams[0].address,)}) for name in ("leaving", "staying"))
    envoy.set_weights(old)
    in_force(envoy, old)
    answers: list[int] = []
    path, hang = f"/models/{model}/invocations", {"mode": "hang"}
    asking = threading.Thread(target=lambda: answers.append(ask(gateway, path, hang).status_code))
    asking.start()
    until(lambda: '"cluster":"leaving"' in gateway.files.access_log.read_text())
    envoy.set_weights(new)
    in_force(envoy, new)
    assert "leaving" not in gateway.files.clusters.read_text()
    upstreams[0].release.set()
    asking.join()
    upstreams[0].release.clear()
    assert answers == [200]


def test_a_route_that_envoy_refuses_hurts_no_other(own_gateway: Gateway, upstreams: tuple[Upstream, Upstream]) -> None:
    own_gateway.ensure()
    router = router_at(own_gateway.files.home, own_gateway.settings)
    router.set_weights(between("one", upstreams, 0))
    with pytest.raises(RouterError, match=r"999\.1\.1\.1"):
        router.set_weights(Route("bad", Weights({"bad-v1": 100}), {"bad-v1": (Address("999.1.1.1", 80),)}))
    router.set_weights(between("one", upstreams, 20))
    in_force(router, between("one", upstreams, 20))
    assert router.get_weights().keys() == {"one"}


def pid_of(gateway: Gateway) -> int:
    return int(json.loads(gateway.files.record.read_text())["pid"])


def test_an_envoy_that_is_killed_is_back_with_its_routes(
    own_gateway: Gateway, upstreams: tuple[Upstream, Upstream]
) -> None:
    own_gateway.ensure()
    router = router_at(own_gateway.files.home, own_gateway.settings)
    wanted = {model: between(model, upstreams, 30) for model in ("one", "two")}
    for each in wanted.values():
        router.set_weights(each)
    os.kill(pid_of(own_gateway), signal.SIGKILL)

    def back() -> bool:
        try:
            return dict(router.get_weights()) == wanted
        except RouterError:
            return False

    until(back, seconds=3.0)
    assert ask(own_gateway, "/models/one/invocations").status_code == 200


def test_a_controller_that_starts_again_adopts_envoy_and_every_route(
    own_gateway: Gateway, upstreams: tuple[Upstream, Upstream]
) -> None:
    own_gateway.ensure()
    home, settings = own_gateway.files.home, own_gateway.settings
    router_at(home, settings).set_weights(between("one", upstreams, 30))
    pid = pid_of(own_gateway)
    own_gateway.leave()
    second = local_gateway(home, settings)
    second.ensure()
    router_at(home, settings).set_weights(between("two", upstreams, 5))
    assert pid_of(second) == pid
    wanted = {"one": between("one", upstreams, 30), "two": between("two", upstreams, 5)}
    until(lambda: router_at(home, settings).get_weights() == wanted)
    second.leave()


def test_routes_set_while_envoy_is_down_hold_when_it_comes(
    own_gateway: Gateway, upstreams: tuple[Upstream, Upstream]
) -> None:
    router = router_at(own_gateway.files.home, own_gateway.settings)
    router.set_weights(between("one", upstreams, 0))
    router.set_weights(between("one", upstreams, 100))
    own_gateway.ensure()
    in_force(router, between("one", upstreams, 100))


def test_stopping_lets_a_request_in_flight_finish(own_gateway: Gateway, upstreams: tuple[Upstream, Upstream]) -> None:
    own_gateway.ensure()
    router = router_at(own_gateway.files.home, own_gateway.settings)
    router.set_weights(between("one", upstreams, 0))
    in_force(router, between("one", upstreams, 0))
    answers: list[int] = []
    path, hang = "/models/one/invocations", {"mode": "hang"}
    asking = threading.Thread(target=lambda: answers.append(ask(own_gateway, path, hang).status_code))
    asking.start()
    until(lambda: "UpstreamPoolReady" in own_gateway.files.access_log.read_text())
    threading.Timer(0.5, upstreams[0].release.set).start()
    own_gateway.stop(drain_seconds=10.0)
    asking.join()
    upstreams[0].release.clear()
    assert answers == [200]
    assert not own_gateway.running()


@pytest.mark.parametrize("setting", ["port", "admin_port"])
def test_a_port_that_is_taken_is_named_with_its_setting(own_gateway: Gateway, setting: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        ports = {"port": free_port(), "admin_port": free_port(), setting: number}
        with pytest.raises(GatewayError, match=rf":{number} is taken.*'{setting}'") as failure:
            local_gateway(own_gateway.files.home, GatewaySettings(**ports)).ensure()
    assert not failure.value.retryable


def test_the_gateway_says_whether_it_takes_requests_until_it_is_told_to_end(own_gateway: Gateway) -> None:
    own_gateway.ensure()
    assert httpx.get(f"{own_gateway.url}/healthz", trust_env=False).status_code == 200
    admin_at(own_gateway.settings.admin_port).tell("/healthcheck/fail")
    assert httpx.get(f"{own_gateway.url}/healthz", trust_env=False).status_code == 503
