"""No input makes the model server fail: schemathesis on its own OpenAPI document, and bytes that are no request."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fixtures.scoring import ScoringServer, our_server

SECONDS = 8
"""For each server."""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
TYPES = ("application/json", "text/csv", "application/json; charset=utf-8", "text/plain", "")


@pytest.fixture(
    scope="module",
    params=[
        "strict_model",
        "tensor_model",
        *(pytest.param(more, marks=pytest.mark.nightly) for more in ("light_model", "strict_model --native")),
    ],
)
def server(request: pytest.FixtureRequest) -> Iterator[ScoringServer]:
    name, *options = request.param.split()
    folder: Path = request.getfixturevalue(name)
    with our_server(folder, *options) as running:
        yield running


def test_no_request_of_the_document_makes_it_fail(server: ScoringServer, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    document = str(server.client.base_url.join("/openapi.json"))
    # As in MLflow, these two call JSON what is none.
    spared = ["--exclude-path", "/ping", "--exclude-path", "/version"]
    bounded = [*spared, "--max-time", str(SECONDS), "--phases", "examples,coverage,fuzzing", "--seed", "7"]
    done = subprocess.run(
        [str(program), "run", document, *bounded, "--checks", CHECKS, "--no-color"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=SECONDS * 6,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    body=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()), kind=st.sampled_from(TYPES)
)
def test_no_bytes_make_it_fail(server: ScoringServer, body: bytes, kind: str) -> None:
    answer = server.client.post("/invocations", content=body, headers={"content-type": kind} if kind else {})
    assert answer.status_code in (400, 415), answer.text
    assert set(answer.json()) == {"error_code", "message"}
