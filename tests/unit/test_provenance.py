"""What the statement about an image's making says, and what it leaves out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from registry_hooks.model_version import ModelVersion
from serving.environment import Lock
from serving.image import ImageRequest, Proof
from serving.made import Base, Made
from serving.provenance import Run, provenance

REQUEST = ImageRequest(ModelVersion("churn", 7), "models:/m-1", "3" * 64)
LOCK = "numpy==2.3.5\n"
MADE = Made("1" * 64, "2" * 64, "sklearn", "3" * 64, Lock("3.11", LOCK), Proof(compiled=False, why="it was asked for"))
RUN = Run(
    "urn:builder",
    "0.1.0",
    datetime(2026, 3, 1, 12, tzinfo=UTC),
    datetime(2026, 3, 1, 14, 1, tzinfo=timezone(timedelta(hours=2))),
)


def read(made: Made = MADE, request: ImageRequest = REQUEST) -> dict[str, Any]:
    statement: dict[str, Any] = json.loads(provenance(request, made, RUN))
    return statement


def used(made: Made = MADE, request: ImageRequest = REQUEST) -> dict[str, dict[str, Any]]:
    found = read(made, request)["predicate"]["buildDefinition"]["resolvedDependencies"]
    return {one["name"]: one for one in found}


def test_it_is_a_statement_about_the_image() -> None:
    statement = read()
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"] == [{"name": "churn", "digest": {"sha256": "1" * 64}}]


def test_an_image_of_a_registry_is_named_as_there() -> None:
    image = f"registry.example:5000/team/churn@sha256:{'5' * 64}"
    subject = read(replace(MADE, image=image))["subject"]
    assert subject == [{"name": "registry.example:5000/team/churn", "digest": {"sha256": "5" * 64}}]


def test_what_went_in_is_named_by_digest() -> None:
    lock = hashlib.sha256(LOCK.encode()).hexdigest()
    assert used() == {
        "model": {"name": "model", "digest": {"sha256": "2" * 64}, "uri": "models:/m-1"},
        "lock.txt": {"name": "lock.txt", "digest": {"sha256": lock}, "mediaType": "text/plain"},
        "model server": {"name": "model server", "digest": {"sha256": "3" * 64}},
    }
    based = used(replace(MADE, base=Base("python:3.11-slim", f"sha256:{'6' * 64}")))
    assert based["python:3.11-slim"]["digest"] == {"sha256": "6" * 64}


@pytest.mark.parametrize(
    ("source", "uri"),
    [
        ("mlflow-artifacts:/1/models/m-1/artifacts", "mlflow-artifacts:/1/models/m-1/artifacts"),
        ("s3://models/churn", "s3://models/churn"),
        ("/srv/mlflow/1", "file:///srv/mlflow/1"),
        ("('9c1e', False, '')", None),
        ("", None),
    ],
)
def test_where_the_model_is_from_is_said_where_it_is_an_address(source: str, uri: str | None) -> None:
    assert used(request=replace(REQUEST, source=source))["model"].get("uri") == uri


def test_how_and_when_it_was_made() -> None:
    predicate = read()["predicate"]
    definition, run = predicate["buildDefinition"], predicate["runDetails"]
    assert definition["externalParameters"] == {"model": "churn", "version": 7}
    assert definition["internalParameters"] == {"python": "3.11", "serving": "native", "why": "it was asked for"}
    assert run["builder"] == {"id": "urn:builder", "version": {"mlflow-promote": "0.1.0"}}
    times = {"startedOn": "2026-03-01T12:00:00Z", "finishedOn": "2026-03-01T12:01:00Z"}
    assert run["metadata"] == {"invocationId": REQUEST.key, **times}
    assert run["byproducts"] == []


def test_what_compiling_gave_is_a_byproduct() -> None:
    proof = Proof(compiled=True, why="trees", model="4" * 64, proof="7" * 64)
    predicate = read(replace(MADE, proof=proof))["predicate"]
    assert predicate["buildDefinition"]["internalParameters"]["serving"] == "compiled"
    found = {one["name"]: one["digest"]["sha256"] for one in predicate["runDetails"]["byproducts"]}
    assert found == {"compiled model": "4" * 64, "record of the comparison": "7" * 64}
