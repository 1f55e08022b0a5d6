"""A model's route as an `HTTPRoute`, and what can be read of one that others had in their hands."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway_api import (
    BEFORE,
    EDITED,
    Parent,
    RouteSettings,
    Standing,
    before,
    cannot,
    http_route,
    is_written,
    name_of,
    standing,
    written,
)
from serving.pod_parts import Object
from serving.revision import Address, Weights
from serving.router import Route

SETTINGS = RouteSettings("models", "live", Parent("gateways", "public", "https"), ("models.example.org",))
API = "gateway.networking.k8s.io/v1"
NAMES = st.text(st.characters(blacklist_characters="/", blacklist_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..")
)
PATH = re.compile(r"(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})+")
"""What Gateway API takes as a path, by its rules in CEL, which the tests' schema has not."""


def route(model: str = "churn", shares: Mapping[str, int] | None = None, **more: Any) -> Route:
    weights = Weights(shares or {"a-1": 80, "a-2": 20})
    return Route(model, weights, {name: (Address(f"{name}.models.svc", 8080),) for name in weights.shares}, **more)


@given(model=NAMES, share=st.integers(1, 99), step=st.sampled_from(["", "ro/1", "ro/shadow"]))
def test_what_is_written_is_read_again(model: str, share: int, step: str) -> None:
    wanted = route(model, {"a-1": 100 - share, "a-2": share}, step=step, candidate="a-2")
    made = http_route(wanted, SETTINGS, API, route(model, {"a-1": 100}))
    assert written(made, SETTINGS) == wanted
    assert is_written(made, wanted, SETTINGS)
    assert before(made) == route(model, {"a-1": 100})
    assert not is_written(made, replace(wanted, step="ro/2"), SETTINGS)


@given(model=st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=400))
def test_every_name_has_a_path_that_is_valid_or_is_refused(model: str) -> None:
    if cannot(route(model), "models"):
        return
    for rule in http_route(route(model), SETTINGS, API)["spec"]["rules"]:
        path = rule["matches"][0]["path"]["value"]
        assert PATH.fullmatch(path)
        assert len(path) <= 1024
        assert not any(part in path.lower() for part in ("//", "/./", "/../", "%2f", "#"))
        assert not path.endswith(("/.", "/.."))


@given(one=NAMES, other=NAMES)
def test_objects_have_names_of_their_own(one: str, other: str) -> None:
    assert re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name_of(one, "live"))
    assert (name_of(one, "live") == name_of(other, "live")) == (one == other)
    assert name_of(one, "live") != name_of(one, "trial")


def test_the_route_leads_to_what_clients_may_ask_and_to_nothing_else() -> None:
    spec = http_route(route("a b", candidate="a-1"), SETTINGS, API)["spec"]
    paths = [rule["matches"][0]["path"]["value"] for rule in spec["rules"]]
    assert paths == [f"/models/a%20b/{asked}" for asked in ("invocations", "ping", "health", "version")] + [
        "/v2/models/a%20b"
    ]
    assert spec["hostnames"] == ["models.example.org"]
    (parent,) = spec["parentRefs"]
    assert (parent["namespace"], parent["name"], parent["sectionName"]) == ("gateways", "public", "https")
    for rule in spec["rules"]:
        shares = [(backend["name"], backend["port"], backend["weight"]) for backend in rule["backendRefs"]]
        assert shares == [("a-2", 8080, 20), ("a-1", 8080, 80)]
        removed = [one for one in rule["filters"] if one["type"] == "RequestHeaderModifier"]
        assert removed[0]["requestHeaderModifier"]["remove"] == ["x-promote-mode"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (route(candidate="a-2", shield_bytes=1), "rollout.shield_bytes.*set it to 0"),
        (replace(route(), shadow="a-2"), "shadow.mode.*set it to off"),
        (replace(route(), endpoints={"a-1": (Address("10.0.0.1", 80),), "a-2": (Address("x", 1),)}), "needs a Service"),
        (route("a/b"), "no path for such a name"),
        (route(".."), "no path for such a name"),
        (route("日" * 200), "no path for such a name"),
    ],
)
def test_what_a_route_cannot_do_is_said_with_its_model(asked: Route, said: str) -> None:
    assert re.search(f"model {re.escape(asked.model)}: .*{said}", cannot(asked, "models"))


def test_what_it_can_do_is_not_refused() -> None:
    assert cannot(route(candidate="a-2"), "models") == ""
    assert cannot(route(shield_bytes=1), "models") == ""
    assert "needs a Service in namespace others" in cannot(route(), "others")


def edited(change: Any) -> Object:
    made = copy.deepcopy(http_route(route(candidate="a-2", step="ro/1"), SETTINGS, API))
    change(made)
    return made


def _weights(made: Object, *weights: int) -> None:
    for rule in made["spec"]["rules"]:
        for backend, weight in zip(rule["backendRefs"], weights, strict=True):
            backend["weight"] = weight


def test_weights_of_a_persons_are_read_as_whole_percents() -> None:
    found = written(edited(lambda made: _weights(made, 1, 2)), SETTINGS)
    assert found is not None
    assert dict(found.weights.shares) == {"a-1": 33, "a-2": 67}
    assert found.step == EDITED


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made["metadata"].pop("annotations"),
        lambda made: made["metadata"]["annotations"].update({"mlflow-promote/route": "{"}),
        lambda made: made["metadata"]["annotations"].update({"mlflow-promote/route": "[1]"}),
        lambda made: made["spec"].update(rules=[]),
        lambda made: made.pop("spec"),
        lambda made: _weights(made, 0, 0),
    ],
)
def test_what_nobody_can_read_is_no_route(change: Any) -> None:
    assert written(edited(change), SETTINGS) is None


def test_a_backend_that_is_not_ours_is_told_by_its_service() -> None:
    def change(made: Object) -> None:
        made["spec"]["rules"][0]["backendRefs"][1]["name"] = "theirs"

    found = written(edited(change), SETTINGS)
    assert found is not None
    assert (dict(found.weights.shares), found.step) == ({"a-1": 80, "theirs": 20}, EDITED)


def test_nothing_was_in_force_before_the_first_route() -> None:
    made = http_route(route(), SETTINGS, API)
    assert made["metadata"]["annotations"][BEFORE] == ""
    assert before(made) is None


def said(kind: str, status: str = "True", generation: int = 3) -> Object:
    return {"type": kind, "status": status, "reason": "R", "message": "m", "observedGeneration": generation}


def told(*conditions: Object, parent: Mapping[str, str] | None = None) -> Object:
    where = parent if parent is not None else {"namespace": "gateways", "name": "public", "sectionName": "https"}
    parents = [{"parentRef": dict(where), "conditions": list(conditions)}]
    return {"metadata": {"namespace": "models", "generation": 3}, "status": {"parents": parents}}


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (told(said("Accepted"), said("ResolvedRefs")), Standing(True)),
        (told(said("Accepted")), Standing(False)),
        (told(said("Accepted"), said("ResolvedRefs", generation=2)), Standing(False)),
        (told(said("Accepted", "False"), said("ResolvedRefs")), Standing(False, "Accepted is False: R m")),
        (told(said("Accepted", "False", 2), said("ResolvedRefs")), Standing(False)),
        (told(said("Accepted"), said("ResolvedRefs"), parent={"name": "public"}), Standing(False)),
        (told(), Standing(False)),
        ({"metadata": {"namespace": "models", "generation": 3}}, Standing(False)),
    ],
)
def test_only_what_our_gateway_says_of_this_generation_counts(there: Object, expected: Standing) -> None:
    assert standing(there, SETTINGS.parent) == expected


@pytest.mark.parametrize(
    ("given", "parent"),
    [
        ("public", Parent("models", "public")),
        ("gateways/public", Parent("gateways", "public")),
        ("gateways/public/https", Parent("gateways", "public", "https")),
    ],
)
def test_a_gateway_is_named_as_people_name_it(given: str, parent: Parent) -> None:
    assert Parent.parse(given, "models") == parent
    assert Parent.parse(str(parent), "elsewhere") == parent


@pytest.mark.parametrize("given", ["", "a/b/c/d", "A", "a//b", "a b", "-a"])
def test_what_is_no_name_of_a_gateway_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="must be a Gateway's name"):
        Parent.parse(given, "models")
