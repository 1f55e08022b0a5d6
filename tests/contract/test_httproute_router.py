"""Routes of Gateway API: when they count, who else writes them, and what a Gateway says.

The API server is a stand-in of ours (`tests/fakes/route_cluster.py`), and what a Gateway says is said by the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipelines import cluster_install
from pipelines.abilities import RouterKind
from pipelines.settings import Settings, Target
from serving.cluster import Cluster, Kind
from serving.envoy import GatewaySettings
from serving.foreign_gateway import ForeignGateway
from serving.gateway import GatewayError
from serving.gateway_api import EDITED, GROUP, PART, ROUTES, Parent, RouteSettings, http_route, name_of
from serving.httproute_router import SILENT_SECONDS, HttpRouteRouter
from serving.pod_parts import INSTALLATION, Object
from serving.revision import Address, Weights
from serving.router import Route, RouterError
from tests.fakes.route_cluster import RouteCluster, route_cluster
from tests.fixtures.gateway import until
from tests.fixtures.gateway_api import change_status

SETTINGS = RouteSettings("models", "live", Parent("gateways", "public"))
NAME = name_of("churn", "live")
KIND = Kind(f"{GROUP}/v1", ROUTES)
SECONDS = 30.0


def route(shares: Mapping[str, int], step: str = "", candidate: str | None = None) -> Route:
    return Route(
        "churn", Weights(shares), {one: (Address(f"{one}.models.svc", 8080),) for one in shares}, step, candidate
    )


BEFORE, CANARY = route({"v1": 100}), route({"v1": 80, "v2": 20}, "rollout/1", "v2")


@dataclass
class There:
    """A cluster, a router with a clock of the test's, and hands on the objects."""

    api: RouteCluster
    cluster: Cluster
    now: float = 1000.0
    routers: list[HttpRouteRouter] = field(default_factory=list)

    def router(self, settle_seconds: float = 0.0) -> HttpRouteRouter:
        self.routers.append(HttpRouteRouter(self.cluster, SETTINGS, settle_seconds, lambda: self.now))
        return self.routers[-1]

    def object(self) -> Object:
        found = self.cluster.get(KIND, NAME)
        assert found is not None
        return found

    def says(self, accepted: str = "True", resolved: str = "True", generation: int | None = None) -> None:
        """What the Gateway says of the object, or of an earlier generation of it."""
        seen = self.object()["metadata"]["generation"] if generation is None else generation
        told = {"reason": "Because", "message": "of the tests", "observedGeneration": seen}
        conditions = [
            {"type": "Accepted", "status": accepted, **told},
            {"type": "ResolvedRefs", "status": resolved, **told},
        ]
        parent = {"parentRef": {"namespace": "gateways", "name": "public"}, "conditions": conditions}
        change_status(self.cluster, KIND, NAME, {"status": {"parents": [parent]}})

    def edits(self, **spec: Any) -> None:
        self.cluster.change(KIND, NAME, {"spec": spec})


@pytest.fixture
def there() -> Iterator[There]:
    with route_cluster() as api, closing(Cluster(api.connection, "models")) as cluster:
        made = There(api, cluster)
        yield made
        for router in made.routers:
            router.close()


def in_force(router: HttpRouteRouter, wanted: Route | None) -> None:
    until(lambda: router.get_weights().get("churn") == wanted, SECONDS)


def test_a_route_counts_once_this_very_generation_of_it_is_accepted_and_its_services_are_found(there: There) -> None:
    router = there.router()
    router.set_weights(BEFORE)
    assert router.get_weights() == {}
    there.says()
    in_force(router, BEFORE)
    router.set_weights(CANARY)
    assert router.get_weights() == {"churn": BEFORE}
    there.says(generation=1)
    there.says(resolved="Unknown")
    another = there.router()  # which begins with what is there by now
    assert another.get_weights() == {"churn": BEFORE}
    there.says()
    in_force(router, CANARY)
    in_force(another, CANARY)


def test_it_counts_only_after_the_settle_time_and_the_next_change_begins_anew(there: There) -> None:
    router = there.router(settle_seconds=5.0)
    for wanted, before in ((BEFORE, None), (CANARY, BEFORE)):
        router.set_weights(wanted)
        there.says()
        until(lambda: router._watched.all()[0].get("status", {}).get("parents"), SECONDS)
        in_force(router, before)
        there.now += 4.9
        assert router.get_weights().get("churn") == before
        until(lambda wanted=wanted: _after(there, router, wanted), SECONDS)  # type: ignore[misc]


def _after(there: There, router: HttpRouteRouter, wanted: Route) -> bool:
    """Time goes on while the watch may still be behind."""
    there.now += 5.0
    return router.get_weights().get("churn") == wanted


@pytest.mark.parametrize(("accepted", "resolved"), [("False", "True"), ("True", "False")])
def test_what_the_gateway_refuses_is_told_in_its_words(there: There, accepted: str, resolved: str) -> None:
    router = there.router()
    router.set_weights(CANARY)
    there.says(accepted, resolved)
    until(lambda: router._watched.all()[0].get("status"), SECONDS)
    with pytest.raises(RouterError, match="is False: Because of the tests") as refused:
        router.set_weights(CANARY)
    assert refused.value.retryable
    assert router.get_weights() == {}


def test_a_gateway_that_says_nothing_is_named(there: There) -> None:
    router = there.router()
    router.set_weights(CANARY)
    router.set_weights(CANARY)
    there.now += SILENT_SECONDS + 1
    with pytest.raises(RouterError, match=r"Gateway gateways/public is not followed: .* said nothing"):
        router.set_weights(CANARY)


def _match(**more: Any) -> list[Object]:
    rules: list[Object] = http_route(CANARY, SETTINGS, KIND.api)["spec"]["rules"]
    rules[0]["matches"][0] |= more
    return rules


def _rule(**more: Any) -> list[Object]:
    rules: list[Object] = http_route(CANARY, SETTINGS, KIND.api)["spec"]["rules"]
    rules[-1] |= more
    return rules


EDITS = {
    "another listener": {"parentRefs": [{"namespace": "gateways", "name": "public", "sectionName": "inner"}]},
    "another host": {"hostnames": ["elsewhere.example.org"]},
    "a header": {"rules": _match(headers=[{"name": "x-team", "value": "a"}])},
    "a time-out": {"rules": _rule(timeouts={"request": "1s"})},
    "a session": {"rules": _rule(sessionPersistence={"type": "Cookie"})},
    "a rule less": {"rules": _rule()[:-1]},
    "a rule more": {"rules": [*_rule(), {"backendRefs": [{"name": "v1", "port": 8080}]}]},
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_what_a_person_changed_is_told_as_no_step_and_put_right(there: There, edit: Object) -> None:
    router = there.router()
    router.set_weights(CANARY)
    there.says()
    in_force(router, CANARY)
    wanted = there.object()["spec"]
    there.edits(**edit)
    until(lambda: router.get_weights()["churn"].step == EDITED, SECONDS)
    router.set_weights(CANARY)
    assert there.object()["spec"] == wanted
    there.says()
    in_force(router, CANARY)


def test_weights_of_a_persons_are_told_as_they_are(there: There) -> None:
    router = there.router()
    router.set_weights(CANARY)
    there.says()
    in_force(router, CANARY)
    rules = there.object()["spec"]["rules"]
    for rule in rules:
        rule["backendRefs"][1]["weight"] = 240
    there.edits(rules=rules)
    until(lambda: router.get_weights()["churn"].weights == Weights({"v1": 25, "v2": 75}), SECONDS)
    assert router.get_weights()["churn"].step == EDITED
    router.set_weights(CANARY)
    there.says()
    in_force(router, CANARY)


def test_labels_and_fields_that_a_cluster_may_add_are_left_alone(there: There) -> None:
    router = there.router()
    router.set_weights(CANARY)
    rules = _rule(name="named-by-a-newer-cluster")
    there.cluster.change(KIND, NAME, {"metadata": {"labels": {"team": "a"}}, "spec": {"rules": rules}})
    there.says()
    in_force(router, CANARY)
    version = there.object()["metadata"]["resourceVersion"]
    router.set_weights(CANARY)
    assert there.object()["metadata"]["resourceVersion"] == version


def test_a_label_that_was_taken_away_comes_back(there: There) -> None:
    router = there.router()
    router.set_weights(CANARY)
    there.cluster.change(KIND, NAME, {"metadata": {"labels": {PART: None}}})
    until(lambda: router.get_weights() == {} and not router._watched.all(), SECONDS)
    router.set_weights(CANARY)
    there.says()
    in_force(router, CANARY)


def test_of_two_that_make_a_route_one_is_refused(there: There) -> None:
    one, other = there.router(), there.router()
    assert one.get_weights() == other.get_weights() == {}
    there.api.meanwhile = lambda: other.set_weights(BEFORE)
    with pytest.raises(RouterError, match="already exists") as refused:
        one.set_weights(CANARY)
    assert refused.value.retryable
    there.says()
    in_force(one, BEFORE)


def test_of_two_that_change_a_route_one_is_refused(there: There) -> None:
    one, other = there.router(), there.router()
    one.set_weights(BEFORE)
    there.says()
    in_force(one, BEFORE)
    in_force(other, BEFORE)
    last = route({"v1": 50, "v2": 50}, "rollout/2", "v2")
    there.api.meanwhile = lambda: other.set_weights(last)
    with pytest.raises(RouterError, match="has been modified") as refused:
        one.set_weights(CANARY)
    assert refused.value.retryable
    there.says()
    in_force(one, last)


def test_what_a_gateway_says_in_between_is_no_other_writing(there: There) -> None:
    router = there.router()
    router.set_weights(BEFORE)
    there.api.meanwhile = there.says
    router.set_weights(CANARY)
    assert http_route(CANARY, SETTINGS, KIND.api)["spec"] == there.object()["spec"]
    there.says()
    in_force(router, CANARY)


def test_a_route_that_a_person_deleted_is_told_no_more_and_made_again(there: There) -> None:
    router = there.router()
    router.set_weights(BEFORE)
    there.says()
    in_force(router, BEFORE)
    there.cluster.delete(KIND, NAME, there.object()["metadata"]["uid"])
    in_force(router, None)
    router.set_weights(BEFORE)
    assert router.get_weights() == {}
    there.says()
    in_force(router, BEFORE)


def test_an_object_of_somebody_elses_is_not_touched(there: There) -> None:
    theirs = http_route(BEFORE, SETTINGS, KIND.api)
    theirs["metadata"]["labels"] = {INSTALLATION: "another"}
    there.cluster.create(theirs)
    router = there.router()
    with pytest.raises(RouterError, match="is not of live") as refused:
        router.set_weights(BEFORE)
    assert not refused.value.retryable
    with pytest.raises(RouterError, match="is not of live"):
        router.remove("churn")
    router.clear()
    assert there.object()["metadata"]["labels"] == {INSTALLATION: "another"}


def test_the_gateway_that_is_not_ours_ends_with_our_routes_alone(there: There) -> None:
    router = there.router()
    gateway = ForeignGateway(router, GatewaySettings(), "http://models.example.org")
    gateway.ensure()
    router.set_weights(BEFORE)
    there.edits(rules=[{"backendRefs": [{"name": "v1", "port": 8080, "weight": 0}]}])
    until(lambda: router.get_weights() == {}, SECONDS)
    gateway.stop()
    assert there.cluster.get(KIND, NAME) is None
    assert gateway.url == "http://models.example.org"


@pytest.mark.parametrize("router", RouterKind)
def test_an_uninstallation_removes_routes_whatever_the_router_is_now(
    there: There, router: RouterKind, tmp_path: Path
) -> None:
    there.router().set_weights(BEFORE)
    given: dict[str, Any] = {"gateway_parent": "public", "gateway_url": "http://models.example.org"}
    settings = Settings(
        home=tmp_path,
        target=Target.KUBERNETES,
        router=router,
        image_repository="example.org/models",
        installation="live",
        **(given if router is RouterKind.HTTPROUTE else {}),
    )
    kind = cluster_install._routes(there.cluster, settings)
    assert kind == KIND
    assert cluster_install._remove(there.cluster, "live", [kind], lambda _: None) == [f"{ROUTES}/{NAME}"]
    assert there.cluster.get(KIND, NAME) is None


def test_an_older_version_of_the_api_is_used_where_there_is_no_newer() -> None:
    with route_cluster(versions=("v1beta1",)) as api, closing(Cluster(api.connection, "models")) as cluster:
        router = HttpRouteRouter(cluster, SETTINGS)
        router.set_weights(BEFORE)
        assert f"POST /apis/{GROUP}/v1beta1/namespaces/models/{ROUTES}" in api.asked
        router.close()


def test_a_cluster_without_gateway_api_is_told_as_such() -> None:
    with route_cluster(versions=()) as api, closing(Cluster(api.connection, "models")) as cluster:
        router = HttpRouteRouter(cluster, SETTINGS)
        with pytest.raises(RouterError, match="has no Gateway API"):
            router.get_weights()
        with pytest.raises(GatewayError, match="has no Gateway API"):
            ForeignGateway(router, GatewaySettings(), "http://models.example.org").ensure()
