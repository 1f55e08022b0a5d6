"""The model server as its callers and its operators see it: answers, refusals, health, figures, logs, traces."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from serving.prediction_log import read
from serving.runtime.plan import Column, Plan
from tests.fixtures.collector import Collector, collecting
from tests.fixtures.gateway import until
from tests.fixtures.scoring import ScoringServer, our_server

RECORD = {"tenure": 3.0, "charges": 80.0}
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NAMED: dict[str, Any] = {"MODEL_NAME": "churn", "MODEL_VERSION": "7", "REVISION": "churn-v7-abc", "PARITY_SHARE": "0"}
MOODY = Plan("python_function", True, (Column("mood", "string"), Column("value", "double")), why="it has moods")


def asked(*records: Any) -> bytes:
    return json.dumps({"dataframe_records": records}).encode()


def mood(server: ScoringServer, mood: str, value: float = 1.5, **headers: Any) -> Any:
    return server.score(asked({"mood": mood, "value": value}), **headers)


def lines(server: ScoringServer) -> list[dict[str, Any]]:
    """What the server has logged so far; without what is no JSON, such as an import or a span."""
    return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith('{"time"')]


def figure(server: ScoringServer, name: str) -> float:
    """The sum of the samples whose line begins so."""
    told = server.client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in told if line.startswith(name))


@pytest.fixture(scope="module")
def churn(churn_model: Path) -> Iterator[ScoringServer]:
    """A server with a compiled model, which also tells what it imports."""
    with our_server(churn_model, **NAMED, PYTHONPROFILEIMPORTTIME="1") as server:
        yield server


@pytest.fixture(scope="module")
def log_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def moody(
    moody_model: Path, tmp_path_factory: pytest.TempPathFactory, log_url: str, collector: Collector
) -> Iterator[ScoringServer]:
    """A native server of a model that does as it is told, with everything on."""
    plan = tmp_path_factory.mktemp("plan")
    MOODY.write(plan)
    how: dict[str, Any] = {
        "BODY_LIMIT": "100000",
        "QUEUE": "2",
        "ACCESS_LOG": "all",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "PREDICTION_LOG": log_url,
        "PREDICTION_LOG_SECONDS": "0.1",
        "PREDICTION_LOG_DROP": "value",
        "PREDICTION_LOG_HASH": "entity",
    }
    with our_server(moody_model, plan=plan, **NAMED | {"MODEL_NAME": "moody"}, **how) as server:
        yield server


def test_every_answer_names_version_and_request(churn: ScoringServer) -> None:
    for answer in (churn.client.get("/ping"), churn.client.get("/nowhere"), churn.score(b"{", x_request_id="mine")):
        assert answer.headers["x-model-version"] == "7"
    assert answer.headers["x-request-id"] == "mine"
    made = [churn.score(asked(RECORD)) for _ in range(2)] + [
        churn.client.get("/ping"),
        churn.score(b"", x_request_id=""),
    ]
    assert len({answer.headers["x-request-id"] for answer in made}) == 4
    assert len(churn.score(asked(RECORD), x_request_id="a" * 201).headers["x-request-id"]) < 50


def test_on_a_gpu_the_model_itself_answers_also_where_there_is_a_compiled_one(churn_model: Path) -> None:
    with our_server(churn_model, **NAMED, DEVICE="gpu") as server:
        told = server.client.get("/health").json()
        assert server.score(asked(RECORD)).status_code == 200
        assert figure(server, "promote_compiled") == 0
    assert (told["status"], told["path"], told["why"]) == ("ready", "native", "the model itself was asked for")
    assert told["device"] == "", "only models of PyTorch can be asked where they are"


def test_health_says_who_is_there(churn: ScoringServer, moody: ScoringServer) -> None:
    answer = churn.client.get("/health")
    told = answer.json()
    assert answer.status_code == 200
    assert told.pop("why")
    assert told == {
        "status": "ready",
        "detail": "",
        "model": "churn",
        "version": 7,
        "revision": "churn-v7-abc",
        "signature": True,
        "path": "compiled",
        "device": "cpu",
        "warnings": [],
    }
    native = moody.client.get("/health").json()
    assert (native["path"], native["why"]) == ("native", "it has moods")
    assert churn.client.get("/health/live").json() == {"status": "live"}
    assert churn.client.get("/version").text == mlflow.__version__
    assert churn.client.get("/ping").text == "\n"
    assert churn.client.get("/v2/health/ready").json() == {"ready": True}


def test_the_document_says_what_the_model_takes(churn: ScoringServer) -> None:
    document = churn.client.get("/openapi.json").json()
    body = document["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    (records,) = [form for form in body["oneOf"] if "dataframe_records" in form["properties"]]
    record = records["properties"]["dataframe_records"]["items"]
    assert sorted(record["required"]) == ["charges", "tenure"]
    assert "/v2/models/churn/infer" in document["paths"]
    assert churn.client.get("/docs").status_code == 200


def test_what_is_not_there_is_said_in_json(churn: ScoringServer) -> None:
    missing, wrong = churn.client.get("/nowhere"), churn.client.get("/invocations")
    assert (missing.status_code, missing.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND")
    assert (wrong.status_code, wrong.json()["error_code"]) == (405, "METHOD_NOT_ALLOWED")
    assert wrong.headers["allow"] == "POST"


def test_a_front_with_a_compiled_model_knows_nothing_of_models(churn: ScoringServer) -> None:
    """It has answered, and told all that it tells, when this is looked at."""
    assert churn.score(asked(RECORD)).json() == {"predictions": [True]}
    churn.client.get("/metrics")
    found = [line.rsplit("|", 1)[1].strip() for line in churn.log.read_text().splitlines() if "import time:" in line]
    imported = {name.split(".")[0] for name in found}
    assert {"fastapi", "onnxruntime", "uvloop"} <= imported
    assert not imported & {"mlflow", "pandas", "sklearn", "scipy", "torch", "pyarrow", "fsspec", "grpc"}
    assert not [name for name in found if name.startswith("opentelemetry.sdk")]  # FastAPI imports the rest of it


def test_a_front_with_a_compiled_model_is_small_and_starts_fast(churn: ScoringServer) -> None:
    process = psutil.Process(churn.process.pid)
    assert process.memory_info().rss < 120e6
    (ready,) = [line for line in lines(churn) if line["message"] == "ready"]
    assert ready["cpu_seconds"] < 1.5


def test_where_the_model_fails_it_is_an_error_of_the_server_without_a_trace(moody: ScoringServer) -> None:
    answer = mood(moody, "raise")
    assert answer.status_code == 500
    assert set(answer.json()) == {"error_code", "message"}
    assert "Traceback" not in answer.text
    answer = mood(moody, "nan")
    assert (answer.status_code, answer.json()["error_code"]) == (500, "INTERNAL_ERROR")
    assert "NaN" in answer.json()["message"]


def test_what_is_no_request_is_refused(moody: ScoringServer) -> None:
    assert moody.score(b"{").status_code == 400
    assert moody.score(asked({"mood": 1})).status_code == 400
    assert moody.score(asked(), "application/xml").status_code == 415
    compressed = mood(moody, "fine", content_encoding="gzip")
    assert (compressed.status_code, "gzip" in compressed.json()["message"]) == (415, True)


def test_a_request_that_is_too_large_is_refused_and_the_server_goes_on(moody: ScoringServer) -> None:
    answer = moody.score(b" " * 100_001)
    assert (answer.status_code, answer.json()["error_code"]) == (413, "BAD_REQUEST")
    pieces = moody.client.post("/invocations", content=iter([b" " * 60_000] * 2))
    assert pieces.status_code == 413
    assert mood(moody, "fine").status_code == 200


def test_health_is_answered_during_a_prediction(moody: ScoringServer) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(mood, moody, "sleep 1")
        meanwhile = 0
        while not slow.done():
            assert moody.client.get("/health").status_code == 200
            meanwhile += not slow.done()
        assert meanwhile > 2
        assert slow.result().status_code == 200


@pytest.mark.parametrize("header", ["x_request_timeout_ms", "x_envoy_expected_rq_timeout_ms"])
def test_a_request_says_how_long_it_may_take(moody: ScoringServer, header: str) -> None:
    def within(milliseconds: str, how: str = "fine") -> Any:
        headers: dict[str, Any] = {header: milliseconds}
        return mood(moody, how, **headers)

    began = time.monotonic()
    answer = within("100", "sleep 3")
    assert time.monotonic() - began < 2.9
    assert (answer.status_code, answer.json()["error_code"]) == (504, "DEADLINE_EXCEEDED")
    assert within("60000").status_code == 200
    assert within("soon").status_code == 400


def test_more_requests_than_may_wait_are_told_to_come_again(moody: ScoringServer) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = [job.result() for job in [pool.submit(mood, moody, "sleep 0.3") for _ in range(6)]]
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 503, 503, 503]
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error_code"] == "TEMPORARILY_UNAVAILABLE"


def test_metrics_count_what_happens(moody: ScoringServer) -> None:
    names = [
        'promote_requests_total{code="200"',
        'promote_requests_total{code="500"',
        'promote_requests_total{code="400"',
        'promote_errors_total{cause="model"',
        'promote_errors_total{cause="request"',
        "promote_request_seconds_count",
        'promote_stage_seconds_count{stage="parse"',
        'promote_stage_seconds_count{stage="queue"',
        'promote_stage_seconds_count{stage="write"',
        "promote_batch_rows_sum",
    ]
    before = [figure(moody, name) for name in names]
    mood(moody, "fine")
    mood(moody, "raise")
    moody.score(b"{")
    after = [figure(moody, name) for name in names]
    assert [now - then for then, now in zip(before, after, strict=True)] == [1, 1, 1, 1, 1, 3, 2, 2, 1, 2]
    assert figure(moody, "promote_compiled") == 0
    assert figure(moody, "promote_memory_bytes") > 1e7
    assert figure(moody, "promote_prediction_log_dropped") == 0


def test_what_was_served_and_nothing_private_is_in_the_prediction_log(moody: ScoringServer, log_url: str) -> None:
    for kind in ("raise", "nan", "fine"):
        mood(moody, kind, x_request_id=f"logged-{kind}", x_entity_id="customer", x_promote_mode="shadow")
    mood(moody, "fine", 2.5, x_request_id="logged-last", x_promote_mode="nonsense")

    def logged() -> dict[str, Any]:
        return {row["request_id"]: row for row in read(log_url, "moody").to_pylist()}

    rows = until(lambda: logged() if "logged-last" in logged() else None)
    assert rows is not None
    row = rows["logged-fine"]
    assert not rows.keys() & {"logged-raise", "logged-nan"}
    expected = {"revision": "churn-v7-abc", "mode": "shadow", "version": 7, "input.mood": "fine", "row": 0}
    assert expected.items() <= row.items()
    assert row["output.prediction"] == 1.5
    assert row["latency_ms"] > 0
    assert "input.value" not in row
    assert row["entity"] != "customer"
    assert rows["logged-last"]["mode"] == "live"
    assert until(lambda: figure(moody, "promote_prediction_log_written") >= len(logged()))


def test_log_lines_name_the_request_and_its_trace(moody: ScoringServer) -> None:
    mood(moody, "raise", x_request_id="in-the-log", traceparent=f"00-{TRACE}-{SPAN}-01")
    (line,) = until(lambda: [line for line in lines(moody) if line.get("request_id") == "in-the-log"])
    told = {"level": "info", "logger": "serving.runtime.access", "trace_id": TRACE, "span_id": SPAN, "status": 500}
    assert told.items() <= line.items()
    assert line["cause"] == "model"
    mood(moody, "fine", x_request_id="without-a-trace", traceparent="00-nonsense")
    (line,) = until(lambda: [line for line in lines(moody) if line.get("request_id") == "without-a-trace"])
    assert "trace_id" not in line


def test_a_prediction_is_a_span_below_the_callers(moody: ScoringServer, collector: Collector) -> None:
    mood(moody, "nan", x_request_id="traced", traceparent=f"00-{TRACE}-{SPAN}-01")
    (span,) = until(lambda: collector.of_request("traced"))
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("predict", TRACE, SPAN)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 60e9


def test_spans_can_be_printed(churn_model: Path) -> None:
    with our_server(churn_model, **NAMED, OTEL_TRACES_EXPORTER="console") as server:
        server.score(asked(RECORD), x_request_id="printed")
    text = server.log.read_text()
    assert '"promote.request_id": "printed"' in text
    assert '"service.name": "churn"' in text
    assert '"status_code": "UNSET"' in text
