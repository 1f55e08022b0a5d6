"""The model server in its own environment: it answers as MLflow's scoring server does, and ends without a loss."""

from __future__ import annotations

import asyncio
import json
import re
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pandas as pd
import pytest

from serving.local import LocalTarget
from serving.prediction_log import read
from serving.revision import Revision, RevisionSettings
from tests.fixtures.revisions import START_SECONDS, LocalInstallation, end_revisions

JSON = "application/json"


@dataclass(frozen=True)
class Server:
    """A model server that is ready."""

    revision: Revision
    client: httpx.Client

    def score(self, body: str | bytes, content_type: str | None = JSON, **headers: str) -> httpx.Response:
        kind = {} if content_type is None else {"content-type": content_type}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post("/invocations", content=body, headers=kind | named)

    def mood(self, mood: str, value: float = 1.5, **headers: str) -> httpx.Response:
        return self.score(json.dumps({"dataframe_records": [{"mood": mood, "value": value}]}), **headers)


def started(local: LocalInstallation, model: str, version: int, **settings: Any) -> Server:
    target = LocalTarget(local.home, local.log_url, {"PREDICTION_LOG_SECONDS": "0.2"})
    revision = local.revision(model, version, RevisionSettings(**settings))
    target.start(revision)
    deadline = time.monotonic() + START_SECONDS
    while not (status := target.status()[revision.id]).ready:
        assert time.monotonic() < deadline, status
        assert status.state != "failed", status.reason
        time.sleep(0.05)
    return Server(revision, httpx.Client(base_url=f"http://{status.addresses[0]}", timeout=30))


@pytest.fixture(scope="module")
def local(local_installation: LocalInstallation) -> Iterator[LocalInstallation]:
    yield local_installation
    end_revisions(local_installation.home)


@pytest.fixture(scope="module")
def churn(local: LocalInstallation) -> Iterator[Server]:
    server = started(local, "churn", 7)
    yield server
    server.client.close()


@pytest.fixture(scope="module")
def moody(local: LocalInstallation) -> Iterator[Server]:
    hidden = (("BODY_LIMIT", "100000"), ("PREDICTION_LOG_DROP", "value"), ("PREDICTION_LOG_HASH", "entity"))
    server = started(local, "moody", 7, environment=hidden)
    yield server
    server.client.close()


@pytest.fixture(scope="module")
def mlflow_answers(churn_model: Path) -> Any:
    """What MLflow's own scoring server answers to a body of a content type: status and content."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns while it is imported
        from mlflow.pyfunc import load_model, scoring_server

        app = scoring_server.init(load_model(str(churn_model)))

    async def ask(body: bytes, content_type: str) -> tuple[int, Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://mlflow") as client:
            return _told(await client.post("/invocations", content=body, headers={"content-type": content_type}))

    return lambda body, content_type: asyncio.run(ask(body, content_type))


def _told(answer: httpx.Response) -> tuple[int, Any]:
    try:
        told = answer.json()
    except ValueError:
        return answer.status_code, answer.text
    if isinstance(told, dict) and "message" in told:
        told.pop("stack_trace", None)
        # MLflow prints a set of names, whose order is another one in every process.
        told["message"] = re.sub(r"\{('\w+',? ?)+\}", lambda names: str(sorted(names[0])), told["message"])
    return answer.status_code, told


RECORD = {"tenure": 3.0, "charges": 80.0}


def _parquet() -> bytes:
    buffer = BytesIO()
    pd.DataFrame([RECORD]).to_parquet(buffer)
    return buffer.getvalue()


BODIES: list[Any] = [
    {"dataframe_records": [RECORD]},
    {"dataframe_records": [RECORD, {"tenure": 50, "charges": 20}]},
    {"dataframe_records": [RECORD | {"more": 1}]},
    {"dataframe_records": [{"tenure": 3.0}]},
    {"dataframe_records": [{"tenure": "three", "charges": 80.0}]},
    {"dataframe_records": []},
    {"dataframe_records": "text"},
    {"dataframe_split": {"columns": ["charges", "tenure"], "data": [[80.0, 3.0]]}},
    {"dataframe_split": {"columns": ["charges", "tenure"], "data": [[80.0]]}},
    {"dataframe_split": {"data": [[80.0, 3.0]]}},
    {"dataframe_split": [1]},
    {"inputs": {"tenure": [3.0, 50.0], "charges": [80.0, 20.0]}},
    {"inputs": [RECORD]},
    {"inputs": [[3.0, 80.0]]},
    {"inputs": 3},
    {"instances": [RECORD]},
    {"instances": [[3.0, 80.0]]},
    {"instances": [RECORD], "inputs": [RECORD]},
    {"dataframe_records": [RECORD], "params": {"unknown": 1}},
    {"data": [RECORD]},
    {"messages": [{"role": "user", "content": "hello"}]},
    {},
    [RECORD],
    "text",
    3,
    None,
]

REQUESTS: list[tuple[str | bytes, str]] = [
    *((json.dumps(body), JSON) for body in BODIES),
    ("{", JSON),
    ("", JSON),
    (b"\xff\xfe", JSON),
    (json.dumps({"dataframe_records": [RECORD]}), "application/json; charset=utf-8"),
    (json.dumps({"dataframe_records": [RECORD]}), "application/json; charset=latin-1"),
    (json.dumps({"dataframe_records": [RECORD]}), "application/json; format=pandas"),
    ("tenure,charges\n3,80\n50,20\n", "text/csv"),
    ("tenure,charges\n3,much\n", "text/csv"),
    ("tenure\n3\n", "text/csv"),
    ("", "text/csv"),
    (b"\xff", "text/csv"),
    (_parquet(), "application/vnd.apache.parquet"),
    (b"PAR1", "application/vnd.apache.parquet"),
    ("<a/>", "application/xml"),
]


@pytest.mark.parametrize("index", range(len(REQUESTS)))
def test_answers_are_those_of_mlflow(churn: Server, mlflow_answers: Any, index: int) -> None:
    body, content_type = REQUESTS[index]
    answer = churn.score(body, content_type)
    body = body.encode() if isinstance(body, str) else body
    assert _told(answer) == mlflow_answers(body, content_type)
    assert "stack_trace" not in answer.text
    assert "Traceback" not in answer.text


def test_a_request_without_content_type_is_refused(churn: Server) -> None:
    assert churn.score("{}", None).status_code == 415


def test_the_signature_is_enforced(churn: Server) -> None:
    answer = churn.score(json.dumps({"dataframe_records": [{"tenure": 3.0}]}))
    assert answer.status_code == 400
    assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    assert "Model is missing inputs ['charges']" in answer.json()["message"]


def test_every_answer_names_version_and_request(churn: Server) -> None:
    for answer in (churn.client.get("/ping"), churn.client.get("/nowhere"), churn.score("{", x_request_id="mine")):
        assert answer.headers["x-model-version"] == "7"
    assert answer.headers["x-request-id"] == "mine"
    made = {churn.client.get("/ping").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3


def test_health_says_who_is_there(churn: Server) -> None:
    answer = churn.client.get("/health")
    assert answer.status_code == 200
    told = {"status": "ready", "model": "churn", "version": 7, "revision": churn.revision.id, "signature": True}
    assert answer.json() == told
    assert churn.client.get("/version").text == mlflow.__version__
    assert churn.client.get("/ping").text == "\n"


def test_where_the_model_raises_mlflow_blames_the_request_and_we_do_not(churn: Server, mlflow_answers: Any) -> None:
    body = json.dumps({"dataframe_records": [{"tenure": None, "charges": 80.0}]}).encode()
    status, told = mlflow_answers(body, JSON)
    answer = churn.score(body)
    assert (status, answer.status_code) == (400, 500)
    assert answer.json() == {"error_code": "INTERNAL_ERROR", "message": told["message"]}


def test_a_model_that_raises_is_an_error_of_the_server(moody: Server) -> None:
    answer = moody.mood("raise")
    assert answer.status_code == 500
    assert set(answer.json()) == {"error_code", "message"}
    assert "a bad mood" not in answer.text


def test_nan_is_an_error_of_the_server(moody: Server) -> None:
    answer = moody.mood("nan")
    assert (answer.status_code, answer.json()["error_code"]) == (500, "INTERNAL_ERROR")
    assert "NaN" in answer.json()["message"]


def test_a_request_that_is_too_large_is_refused_and_the_server_goes_on(moody: Server) -> None:
    assert moody.score(b" " * 100_001).status_code == 413
    assert moody.mood("fine").status_code == 200


def test_health_is_answered_during_a_prediction(moody: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(moody.mood, "sleep 2")
        while not slow.done():
            began = time.monotonic()
            assert moody.client.get("/health").status_code == 200
            assert time.monotonic() - began < 1.5
            time.sleep(0.1)
        assert slow.result().status_code == 200


def test_metrics_count_requests_by_code_and_rows_of_the_log(moody: Server) -> None:
    def figure(name: str) -> float:
        lines = moody.client.get("/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)), 0.0)

    good, bad = 'promote_requests_total{code="200"', 'promote_requests_total{code="500"'
    before = figure(good), figure(bad), figure("promote_request_seconds_count")
    moody.mood("fine")
    moody.mood("raise")
    assert (figure(good), figure(bad), figure("promote_request_seconds_count")) == (
        before[0] + 1,
        before[1] + 1,
        before[2] + 2,
    )
    assert figure("promote_prediction_log_dropped") == 0


def test_what_was_served_can_be_read_in_the_prediction_log(local: LocalInstallation, churn: Server) -> None:
    body = {"dataframe_records": [RECORD, {"tenure": 50.0, "charges": 20.0}]}
    answer = churn.score(json.dumps(body), x_request_id="logged", x_promote_mode="shadow", x_entity_id="c-1")
    rows = _rows(local, "churn", "logged")
    assert [row["row"] for row in rows] == [0, 1]
    assert [row["output.prediction"] for row in rows] == answer.json()["predictions"]
    assert [row["input.tenure"] for row in rows] == [3.0, 50.0]
    told = {"revision": churn.revision.id, "mode": "shadow", "entity": "c-1", "version": 7}
    assert told.items() <= rows[0].items()
    assert rows[0]["latency_ms"] > 0


def test_what_failed_or_is_private_is_not_in_the_prediction_log(local: LocalInstallation, moody: Server) -> None:
    for mood in ("raise", "nan", "fine"):
        moody.mood(mood, x_request_id=f"private-{mood}", x_entity_id="customer", x_promote_mode="nonsense")
    (row,) = _rows(local, "moody", "private-fine")
    assert row["input.mood"] == "fine"
    assert "input.value" not in row
    assert row["entity"] != "customer"
    assert row["mode"] == "live"
    assert not [
        r for r in read(local.log_url, "moody").to_pylist() if r["request_id"] in ("private-raise", "private-nan")
    ]


def test_open_inference_protocol(churn: Server) -> None:
    assert churn.client.get("/v2/health/live").status_code == churn.client.get("/v2/health/ready").status_code == 200
    told = churn.client.get("/v2/models/churn").json()
    assert [tensor["name"] for tensor in told["inputs"]] == ["tenure", "charges"]
    tensors = [
        {"name": "tenure", "datatype": "FP64", "shape": [2], "data": [3, 50]},
        {"name": "charges", "datatype": "FP32", "shape": [2, 1], "data": [[80], [20]]},
    ]
    answer = churn.client.post("/v2/models/churn/infer", json={"id": "a", "inputs": tensors})
    assert answer.status_code == 200
    assert answer.json() == {
        "id": "a",
        "model_name": "churn",
        "model_version": "7",
        "outputs": [{"name": "prediction", "datatype": "BOOL", "shape": [2], "data": [True, False]}],
    }


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", "not JSON"),
        ({"inputs": []}, "no list of tensors"),
        ({"inputs": [{"name": "tenure", "datatype": "FP64", "shape": [1], "data": [1]}]}, "missing inputs"),
        ({"inputs": [{"name": "tenure", "datatype": "FLOAT", "shape": [1], "data": [1]}]}, "FLOAT"),
        ({"inputs": [{"name": "tenure", "datatype": "FP64", "shape": [3], "data": [1]}]}, "tenure"),
        ({"inputs": [{"name": "tenure", "datatype": "FP64", "shape": [1]}]}, "binary"),
        ({"inputs": [{"name": "tenure", "datatype": "FP64", "shape": [1, 2], "data": [1, 2]}]}, "column"),
    ],
)
def test_open_inference_refuses_what_it_does_not_understand(churn: Server, body: Any, words: str) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    answer = churn.client.post("/v2/models/churn/infer", content=content)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_open_inference_knows_only_its_model(churn: Server) -> None:
    assert churn.client.get("/v2/models/other").status_code == 404
    assert churn.client.post("/v2/models/other/infer", json={}).status_code == 404


def test_stopping_answers_what_is_in_flight_and_writes_the_log(local: LocalInstallation) -> None:
    server = started(local, "moody", 8, drain_seconds=20)
    target = LocalTarget(local.home, local.log_url)
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(server.mood, "sleep 3", 4.5, x_request_id="in-flight")
        while server.client.get("/metrics").status_code != 200:
            time.sleep(0.05)
        began = time.monotonic()
        target.stop(server.revision.id)
        assert time.monotonic() - began < 1
        health = server.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "stopping")
        late = pool.submit(server.mood, "fine", 2.5)
        assert slow.result().json() == {"predictions": [4.5]}
        assert late.result().json() == {"predictions": [2.5]}
    while server.revision.id in target.status():
        time.sleep(0.05)
    assert _rows(local, "moody", "in-flight")[0]["output.prediction"] == 4.5
    assert target.logs(server.revision.id)[-1].endswith("stopped")
    server.client.close()


def test_workers_share_one_port(local: LocalInstallation) -> None:
    server = started(local, "moody", 9, workers=2)
    target = LocalTarget(local.home, local.log_url)
    for _ in range(5):
        with httpx.Client(base_url=server.client.base_url) as client:
            assert Server(server.revision, client).mood("fine").json() == {"predictions": [1.5]}
    target.stop(server.revision.id)
    while server.revision.id in target.status():
        time.sleep(0.05)
    server.client.close()


def _rows(local: LocalInstallation, model: str, request_id: str) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        rows = [row for row in read(local.log_url, model).to_pylist() if row["request_id"] == request_id]
        if rows:
            return rows
        time.sleep(0.05)
    raise AssertionError(f"{request_id} is not in the prediction log")
