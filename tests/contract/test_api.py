"""The commands over HTTP, on a real server: answers, refusals, the token, the document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from monitoring.blocks import ArmCount, Seen
from monitoring.labels import Label
from pipelines.policy import Policy
from pipelines.rollout import Phase
from registry_hooks.model_version import ModelVersion
from serving.revision import Address, Weights
from serving.router import Route
from tests.contract.api_server import Served, serving
from tests.fakes.installation import STAGING, Installation, revision

ODD = "what? 100% #1 ü"
"""A name that MLflow allows; it forbids slashes and colons."""


@pytest.fixture
def served() -> Iterator[Served]:
    """Versions 1 and 2 of churn went live one after the other; version 3 is registered."""
    office = Installation()
    office.went_live(ModelVersion("churn", 1), ModelVersion("churn", 2))
    office.registered("churn", 1)
    with serving(office) as served:
        yield served


def get(served: Served, path: str, status: int = 200, **options: Any) -> dict[str, Any]:
    return ask(served, "GET", path, status, **options)


def post(served: Served, path: str, status: int = 202, **options: Any) -> dict[str, Any]:
    return ask(served, "POST", path, status, **options)


def ask(served: Served, method: str, path: str, status: int, **options: Any) -> dict[str, Any]:
    answer = httpx.request(method, served.url + path, **options)
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert isinstance(body, dict)
    return body


def test_a_promotion_can_be_followed_from_the_intent_to_the_rollout(served: Served) -> None:
    accepted = post(served, "/models/churn/promote", json={"version": 3})
    assert get(served, f"/intents/{accepted['intent']}")["state"] == "waiting"

    rollout = served.office.taken_up(served.office.store.pending()[0])

    assert get(served, f"/intents/{accepted['intent']}")["rollout"] == rollout.id == accepted["rollout"]
    followed = get(served, f"/rollouts/{rollout.id}")
    assert (followed["phase"], followed["version"], followed["previous"]) == ("checking", 3, 2)


def test_a_refused_intent_says_why(served: Served) -> None:
    accepted = post(served, "/models/churn/promote", json={"version": 3})
    served.office.store.settle([accepted["intent"]], "superseded by version 4")

    intent = get(served, f"/intents/{accepted['intent']}")
    assert (intent["state"], intent["outcome"], intent["rollout"]) == ("refused", "superseded by version 4", None)


def test_the_last_requests_are_told_with_the_policy(served: Served) -> None:
    served.office.blocks.requests["churn"] = (Seen(1.5, ("a", 2.0, None), 12.0, error=True, host="h"), Seen(2.0))
    told = get(served, "/models/churn/requests")
    assert told["requests"] == [[1.5, ["a", 2.0, None], 12.0, True, False, "h"], [2.0, None, 0.0, False, False, ""]]
    assert told["ramp"]["steps"] == [5, 20, 50, 100]
    assert told["analysis"]["burst_seconds"] == 10.0


def test_a_dry_run_is_only_a_plan(served: Served) -> None:
    planned = post(served, "/models/churn/promote", json={"version": 3, "dry_run": True})
    assert planned["intent"] is None
    assert planned["plan"].startswith("About ")
    assert planned["notes"][0].startswith("Found in that time in 9 of 10 rollouts")
    assert served.office.store.pending() == ()


def test_status_shows_what_is_live_what_moves_and_what_the_gateway_reports(served: Served) -> None:
    office = served.office
    rollout = office.began(ModelVersion("churn", 3), Phase.PROGRESSING)
    office.counted(rollout, ArmCount(950, 5), ArmCount(50, 1))
    stable, candidate = revision("churn", 2), revision("churn", 3)
    ends = {one.id: (Address("127.0.0.1", 1),) for one in (stable, candidate)}
    office.router.set_weights(Route("churn", Weights.split(stable, candidate, 5), ends))
    office.store.acquire("here", 60)

    status = get(served, "/status")

    (churn,) = status["models"]
    assert (churn["version"], churn["channel"]) == (2, "Production")
    assert churn["weights"] == {stable.id: 95, candidate.id: 5}
    assert [kept["version"] for kept in churn["warm"]] == [1]
    (moving,) = churn["rollouts"]
    assert (moving["phase"], moving["weight"], moving["version"]) == ("progressing", 5, 3)
    assert moving["evidence"]["stable"] == {"requests": 950, "errors": 5}
    assert moving["evidence"]["candidate"] == {"requests": 50, "errors": 1}
    assert 0 <= moving["evidence"]["progress"] <= 1
    assert status["controller"]["holder"] == "here"
    assert status["alias_delay_seconds"] == 30.0


def test_status_says_what_it_could_not_observe_and_what_is_wrong(served: Served) -> None:
    served.office.router.broken = True
    served.office.problems |= {"churn": "rollout.steps: must rise", "other.yaml": "is no YAML"}

    status = get(served, "/status")

    assert status["models"][0]["weights"] is None
    assert status["models"][0]["problems"] == ["rollout.steps: must rise"]
    assert len(status["problems"]) == 2
    assert "other.yaml: is no YAML" in status["problems"]
    assert status["controller"] is None


def test_a_model_on_its_way_to_its_first_live_version_is_shown(served: Served) -> None:
    served.office.registered("fresh", 1)
    assert get(served, "/models/fresh")["models"][0]["version"] is None

    served.office.began(ModelVersion("fresh", 1), Phase.BUILDING)
    assert [model["model"] for model in get(served, "/status")["models"]] == ["churn", "fresh"]
    assert get(served, "/models/fresh")["models"][0]["rollouts"][0]["phase"] == "building"


def test_names_that_need_encoding_reach_the_model(served: Served) -> None:
    served.office.registered(ODD, 1)
    accepted = post(served, f"/models/{quote(ODD, safe='')}/promote", json={"version": 1})
    assert accepted["model"] == ODD
    assert served.office.store.pending()[0].model == ODD


@pytest.mark.parametrize(
    ("options", "actor"),
    [
        ({"headers": {"x-actor": quote("Zoë")}}, "Zoë"),
        ({"json": {"actor": "pipeline 7"}}, "pipeline 7"),
        ({"headers": {"x-actor": "ada"}, "json": {"actor": "bob"}}, "ada"),
        ({}, "http"),
    ],
)
def test_the_actor_stands_in_intent_and_history(served: Served, options: dict[str, Any], actor: str) -> None:
    post(served, "/models/churn/rollback", **options)
    assert served.office.store.pending()[0].actor == actor
    assert get(served, "/models/churn/history")["events"][-1]["actor"] == actor


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("POST", "/models/none/promote", {"json": {"version": 1}}, 404, "unknown_model"),
        ("POST", "/models/churn/promote", {"json": {"version": 9}}, 404, "unknown_version"),
        ("POST", "/models/churn/promote", {"json": {"version": 2}}, 409, "already_live"),
        ("POST", "/models/churn/pause", {}, 409, "no_rollout"),
        ("GET", "/models/none", {}, 404, "unknown_model"),
        ("GET", "/models/none/history", {}, 404, "unknown_model"),
        ("GET", "/models/churn/drift", {}, 404, "no_report"),
        ("GET", "/rollouts/none", {}, 404, "unknown_rollout"),
        ("GET", "/intents/none", {}, 404, "unknown_intent"),
        ("GET", "/nothing", {}, 404, "unknown_path"),
        ("GET", "/models/churn/promote", {}, 405, "unknown_path"),
    ],
)
def test_refusals_have_a_code_a_line_and_advice(
    served: Served, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    body = ask(served, method, path, status, **options)
    assert body["error"] == code
    assert body["message"]
    assert "\n" not in body["message"]
    assert body["hint"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"json": {"version": "seven"}}, "version"),
        ({"json": {"version": 0}}, "version"),
        ({"json": {}}, "version"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, None),
    ],
)
def test_a_wrong_request_names_its_field(served: Served, options: dict[str, Any], field: str | None) -> None:
    body = post(served, "/models/churn/promote", 422, **options)
    assert body["error"] == "invalid"
    assert field is None or body["field"] == field


def test_labels_are_taken_and_counted(served: Served) -> None:
    told = [{"request_id": "a", "label": "yes"}, {"request_id": "a", "row": 1, "loss": 0.25}]
    assert post(served, "/labels", 200, json={"labels": told}) == {"new": 2, "repeated": 0, "awaited": 0}
    more = [*told, {"request_id": "b", "label": 1, "timestamp": "2026-01-01T00:00:00Z"}]
    assert post(served, "/labels", 200, json={"labels": more})["repeated"] == 2
    assert served.office.blocks.labels["a", 1] == Label("a", 1, loss=0.25)
    assert served.office.blocks.labels["b", 0] == Label("b", 0, 1.0)


@pytest.mark.parametrize(
    ("label", "field"),
    [
        ({"label": 1}, "labels.0.request_id"),
        ({"request_id": "", "label": 1}, "labels.0.request_id"),
        ({"request_id": "a", "label": 1, "row": -1}, "labels.0.row"),
        ({"request_id": "a", "label": 1, "row": 2**63}, "labels.0.row"),
        ({"request_id": "a", "loss": 1.5}, "labels.0.loss"),
        ({"request_id": "a"}, "labels.0"),
        ({"request_id": "a", "label": 1, "loss": 0.5}, "labels.0"),
    ],
)
def test_a_wrong_label_is_named_and_none_is_kept(served: Served, label: dict[str, Any], field: str) -> None:
    good = {"request_id": "good", "label": 1}
    body = post(served, "/labels", 422, json={"labels": [label, good]})
    assert (body["error"], body["field"]) == ("invalid", field)
    assert served.office.blocks.labels == {}


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_a_label_that_is_no_number_is_refused(served: Served, number: bytes) -> None:
    body = b'{"labels": [{"request_id": "a", "label": ' + number + b"}]}"
    refused = post(served, "/labels", 422, content=body, headers={"content-type": "application/json"})
    assert refused["field"].startswith("labels.0.label")
    assert served.office.blocks.labels == {}


def test_labels_that_cannot_be_kept_are_asked_for_again(served: Served) -> None:
    served.office.blocks.broken = True
    body = post(served, "/labels", 500, json={"labels": [{"request_id": "a", "label": 1}]})
    assert "send them again" in body["hint"]


def test_an_unreachable_registry_is_503_and_status_still_answers(served: Served) -> None:
    served.office.registry.broken = True
    assert post(served, "/models/churn/promote", 503, json={"version": 3})["error"] == "registry_unreachable"
    assert post(served, "/models/churn/rollback", 503)["error"] == "registry_unreachable"
    assert get(served, "/status")["models"][0]["version"] == 2


def test_an_unreachable_store_is_503(served: Served) -> None:
    served.office.store.broken = True
    assert get(served, "/status", 503)["error"] == "store_unreachable"


def test_a_drift_check_answers_with_its_event(served: Served) -> None:
    assert post(served, "/models/churn/drift", 200)["data"]["state"] == "stable"
    report = get(served, "/models/churn/drift")
    assert report["text"] == "no drift in 700 rows"
    link = "http://mlflow.example/get-artifact?run_uuid=run&path=promote%2Fdrift%2Flatest.html"
    assert report["links"] == {"promote/drift/latest.html": link}
    served.office.registry.broken = True
    assert get(served, "/models/churn/drift")["links"] == {}
    served.office.registry.broken = False
    assert post(served, "/models/none/drift", 404)["error"] == "unknown_model"


def test_hooks_wake_the_controller_and_ask_whether_a_move_is_allowed(served: Served) -> None:
    post(served, "/hooks/wake", json={"model": "churn"})
    post(served, "/hooks/wake", json={})
    assert served.office.woken == ["churn", None]

    served.office.policies["churn"] = Policy(require=(STAGING,))
    move = {"model": "churn", "version": 3, "channel": "Production"}
    refused = post(served, "/hooks/allowed", 200, json=move)
    assert not refused["allowed"]
    assert "Staging" in refused["reason"]
    assert post(served, "/hooks/allowed", 200, json=move | {"channel": "None"})["allowed"]


def test_metrics_are_prometheus_text(served: Served) -> None:
    answer = httpx.get(f"{served.url}/metrics")
    assert "promote_ticks_total 1.0" in answer.text
    assert answer.headers["content-type"].startswith("text/plain")


def test_the_document_describes_every_path_and_refusal(served: Served) -> None:
    document = get(served, "/openapi.json")
    verbs = {f"/models/{{model}}/{verb}" for verb in ("promote", "rollback", "abort", "pause", "resume", "drift")}
    assert verbs <= set(document["paths"])
    assert "unknown_version" in str(document["components"]["schemas"]["Code"])
    steered = document["paths"]["/models/{model}/rollback"]["post"]
    assert "End the rollout in progress" in steered["description"]
    assert "default" in steered["responses"]


def test_with_a_token_only_health_and_signed_hooks_are_open() -> None:
    with serving(Installation(), token="sésame") as served:
        for path in ("/status", "/openapi.json", "/docs", "/metrics", "/nothing"):
            refused = httpx.get(served.url + path)
            assert (refused.status_code, refused.json()["error"]) == (401, "unauthorized")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert post(served, "/hooks/wake", 401, json={})["error"] == "unauthorized"
        assert get(served, "/healthz") == {"status": "ok"}
        assert post(served, "/hooks/mlflow", 200) == {"status": "ok"}
        right = {"authorization": "Bearer sésame".encode()}
        assert get(served, "/status", headers=right)["models"] == []
        assert get(served, "/status", 401, headers={"authorization": "Bearer open"})["error"] == "unauthorized"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"host": "evil.example"},
        {"host": "evil.example", "origin": "http://evil.example"},
    ],
)
def test_without_a_token_a_web_page_cannot_give_commands(served: Served, headers: dict[str, str]) -> None:
    assert post(served, "/models/churn/rollback", 403, headers=headers)["error"] == "forbidden"
    assert served.office.store.pending() == ()


def test_a_settled_rollout_can_still_be_read(served: Served) -> None:
    rollout = served.office.began(ModelVersion("churn", 3), Phase.ROLLING_BACK)
    served.office.store.save(
        replace(rollout, phase=Phase.FAILED, reason="worse", settled=True, entered=datetime.now(UTC))
    )

    read = get(served, f"/rollouts/{rollout.id}")
    assert (read["phase"], read["final"], read["settled"], read["reason"]) == ("failed", True, True, "worse")
    assert get(served, "/models/churn")["models"][0]["rollouts"] == []
