"""Routes to Envoy configuration and back, as data."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.envoy import Config, GatewaySettings, bootstrap, cluster_table, route_table, routes_of
from serving.revision import Address, Weights
from serving.router import Route

SETTINGS = GatewaySettings()
HERE = (Address("127.0.0.1", 8000),)


def entries(*routes: Route) -> list[Config]:
    found: list[Config] = route_table(routes, SETTINGS)["resources"][0]["virtual_hosts"][0]["routes"]
    return found


def matches(entry: Config, path: str) -> bool:
    match = entry["match"]
    return path == match["path"] if "path" in match else re.fullmatch(match["safe_regex"]["regex"], path) is not None


@st.composite
def any_route(draw: st.DrawFn, model: st.SearchStrategy[str]) -> Route:
    revisions = draw(st.lists(st.sampled_from(["a-v1", "a-v2", "b-v7"]), min_size=1, max_size=3, unique=True))
    weight = draw(st.integers(1, 99))
    shares = {revisions[0]: 100} if len(revisions) == 1 else {revisions[0]: weight, revisions[1]: 100 - weight}
    hosts = st.builds(Address, st.sampled_from(["127.0.0.1", "::1", "pod.local"]), st.integers(1, 65535))
    endpoints = {name: tuple(draw(st.lists(hosts, min_size=1, max_size=3))) for name in revisions}
    step = draw(st.sampled_from(["", "rollout/0", "a/b/3"]))
    candidate, shadow = (draw(st.sampled_from([None, revisions[0]])) for _ in range(2))
    return Route(draw(model), Weights(shares), endpoints, step, candidate, shadow=shadow)


@given(any_route(st.text(min_size=1)))
def test_a_route_survives_the_way_there_and_back(route: Route) -> None:
    tables, clusters = route_table([route], SETTINGS), cluster_table([route], SETTINGS)
    read = json.loads(json.dumps([tables["resources"], clusters["resources"]]))
    assert routes_of(*read) == {route.model: route}


def test_only_small_scoring_requests_are_copied() -> None:
    ends = {"a-v1": HERE, "a-v2": HERE}
    copying = entries(Route("a", Weights({"a-v1": 100}), ends, "r/shadow", "a-v2", shadow="a-v2"))
    plain = entries(Route("a", Weights({"a-v1": 100}), ends, "r/shadow", "a-v2"))
    copied = [entry for entry in copying if "request_mirror_policies" in entry["route"]]
    assert copying[:2] == copied
    assert [strip(entry) for entry in copying[2:]] == [strip(entry) for entry in plain]
    for entry in copied:
        (small,) = entry["match"]["headers"]
        assert small == {"name": "content-length", "range_match": {"start": 0, "end": SETTINGS.copied_bytes + 1}}


def strip(entry: Config) -> Config:
    """What a route does, without what is noted on it."""
    return {"match": entry["match"], "route": entry["route"]}


def test_copies_have_limits_of_their_own() -> None:
    route = Route("a", Weights({"a-v1": 100}), {"a-v1": HERE, "a-v2": HERE}, "r/shadow", "a-v2", shadow="a-v2")
    clusters = {cluster["name"]: cluster for cluster in cluster_table([route], SETTINGS)["resources"]}
    own, shared = (clusters[name]["circuit_breakers"]["thresholds"][0] for name in ("a-v2~shadow", "a-v2"))
    assert own["max_requests"] == SETTINGS.copies < shared["max_requests"]


def test_copies_need_an_address() -> None:
    with pytest.raises(ValueError, match="a-v2"):
        Route("a", Weights({"a-v1": 100}), {"a-v1": HERE}, shadow="a-v2")


@given(st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1))
def test_a_model_is_found_under_every_escaping_of_its_name(model: str) -> None:
    scoring = entries(Route(model, Weights({"a": 100}), {"a": HERE}))[0]
    for safe in ("", "!$&'()*+,;=:@"):
        escaped = quote(model, safe=safe)
        lower = re.sub(r"%..", lambda found: found.group().lower(), escaped)
        assert matches(scoring, f"/models/{escaped}/invocations")
        assert matches(scoring, f"/models/{lower}/invocations")
        assert not matches(scoring, f"/models/{escaped}x/invocations")
        assert not matches(scoring, f"/models/{escaped}/invocations/more")


@pytest.mark.parametrize(
    ("path", "served"),
    [
        ("/models/churn/invocations", "scoring"),
        ("/v2/models/churn/infer", "scoring"),
        ("/models/churn/ping", "asking"),
        ("/models/churn/version", "asking"),
        ("/v2/models/churn", "asking"),
        ("/v2/models/churn/versions/1", "asking"),
        ("/models/churn/metrics", None),
        ("/models/churn2/invocations", None),
        ("/models/churn", None),
        ("/v2/models/churned", None),
        ("/", None),
    ],
)
def test_only_what_a_client_may_ask_is_served(path: str, served: str | None) -> None:
    first = next((e for e in entries(Route("churn", Weights({"a": 100}), {"a": HERE})) if matches(e, path)), None)
    assert (first and ("scoring" if "metadata" in first else "asking")) == served


def test_ordinary_names_need_no_expression_to_score() -> None:
    scoring = entries(Route("churn-2.b_c~", Weights({"a": 100}), {"a": HERE}))[:2]
    assert [entry["match"] for entry in scoring] == [
        {"path": "/models/churn-2.b_c~/invocations"},
        {"path": "/v2/models/churn-2.b_c~/infer"},
    ]


def test_the_candidate_comes_first_so_that_its_entities_stay() -> None:
    route = Route("m", Weights({"a": 80, "b": 20}), {"a": HERE, "b": HERE}, candidate="b")
    shares = entries(route)[0]["route"]["weighted_clusters"]["clusters"]
    assert shares == [{"name": "b", "weight": 20}, {"name": "a", "weight": 80}]


def test_a_route_whose_cluster_is_missing_is_not_in_force() -> None:
    route = Route("m", Weights({"a": 80, "b": 20}), {"a": HERE, "b": HERE})
    clusters = [c for c in cluster_table([route], SETTINGS)["resources"] if c["name"] == "a"]
    assert routes_of(route_table([route], SETTINGS)["resources"], clusters) == {}


def test_the_version_tells_contents_apart_and_nothing_else() -> None:
    one, two = (Route(name, Weights({"a": 100}), {"a": HERE}) for name in ("one", "two"))
    versions = [route_table(routes, SETTINGS)["version_info"] for routes in ([one, two], [two, one], [one])]
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize(
    ("hosts", "kind"),
    [(("10.0.0.1", "::1"), "STATIC"), (("model.default.svc",), "STRICT_DNS"), (("10.0.0.1", "host"), "STRICT_DNS")],
)
def test_only_names_are_looked_up(hosts: tuple[str, ...], kind: str) -> None:
    route = Route("m", Weights({"a": 100}), {"a": tuple(Address(host, 80) for host in hosts)})
    assert cluster_table([route], SETTINGS)["resources"][0]["type"] == kind


def test_administration_is_never_reachable_from_elsewhere() -> None:
    start = bootstrap(GatewaySettings(host="0.0.0.0"), "/tables", "/access.log")
    assert start["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    listener = start["static_resources"]["listeners"][0]
    assert (listener["address"]["socket_address"]["address"], listener["enable_reuse_port"]) == ("0.0.0.0", False)
