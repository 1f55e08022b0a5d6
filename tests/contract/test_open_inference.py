"""The Open Inference Protocol as a client of others speaks it: Triton's, over HTTP and gRPC, to servers that run."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.fixtures.collector import collecting
from tests.fixtures.gateway import free_port, until
from tests.fixtures.models import COUNTS, NUMBERS, WORDS, customers
from tests.fixtures.scoring import ScoringServer, our_server

MODEL, VERSION = "churn", "7"
BODY_LIMIT = 200_000
QUEUE = 2
HTTP, GRPC = "http", "grpc"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready, and Triton's clients of it."""

    scoring: ScoringServer
    address: str
    http: Any
    grpc: Any

    def infer(self, arrays: Mapping[str, Any], over: str, binary: bool = True, **more: Any) -> Any:
        """The client's result for these inputs."""
        module, client = (tritonclient.grpc, self.grpc) if over == GRPC else (tritonclient.http, self.http)
        how = {} if over == GRPC else {"binary_data": binary}
        inputs = []
        for name, array in arrays.items():
            given = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            given.set_data_from_numpy(array, **how)
            inputs.append(given)
        if "outputs" in more:
            more["outputs"] = [module.InferRequestedOutput(name, **how) for name in more["outputs"]]
        return client.infer(MODEL, inputs, **more)

    def predictions(self, arrays: Mapping[str, Any]) -> Any:
        """The same rows by MLflow's scoring protocol."""
        values = [array.ravel().tolist() for array in arrays.values()]
        split = {"columns": list(arrays), "data": [list(row) for row in zip(*values, strict=True)]}
        return self.scoring.score(json.dumps({"dataframe_split": split}).encode()).json()["predictions"]


@contextmanager
def running(model: Path, **environment: str) -> Iterator[Server]:
    port = free_port()
    told = {"MODEL_NAME": MODEL, "MODEL_VERSION": VERSION, "BODY_LIMIT": str(BODY_LIMIT), "LINGER": "0.2"}
    with our_server(model, "--grpc-port", str(port), plan=None, **told, **environment) as scoring:
        address = f"127.0.0.1:{port}"
        http = tritonclient.http.InferenceServerClient(scoring.client.base_url.netloc.decode(), concurrency=2)
        over_grpc = tritonclient.grpc.InferenceServerClient(address)
        yield Server(scoring, address, http, over_grpc)
        http.close()
        over_grpc.close()


@pytest.fixture(scope="module")
def light(light_model: Path) -> Iterator[Server]:
    """Columns of numbers and words; compiled."""
    with running(light_model) as server:
        yield server


@pytest.fixture(scope="module")
def tensor(tensor_model: Path) -> Iterator[Server]:
    """One tensor of four numbers a row."""
    with running(tensor_model) as server:
        yield server


@pytest.fixture(scope="module")
def unsigned(unsigned_model: Path) -> Iterator[Server]:
    """No signature: MLflow's own code parses."""
    with running(unsigned_model) as server:
        yield server


@pytest.fixture(scope="module")
def moody(moody_model: Path) -> Iterator[Server]:
    """Does as it is told; see `moody_model.py`. Few requests may wait."""
    with running(moody_model, QUEUE=str(QUEUE), WORKERS="1", BATCHING="off") as server:
        yield server


def columns(rows: int) -> dict[str, Any]:
    """The light model's inputs, each of another shape and type."""
    frame = customers(rows, seed=5)
    arrays: dict[str, Any] = {name: frame[name].to_numpy() for name in NUMBERS}
    arrays |= {name: frame[name].to_numpy(np.int32).reshape(-1, 1) for name in COUNTS}
    return arrays | {name: frame[name].to_numpy(object) for name in WORDS}


def mood(text: str, rows: int = 1) -> dict[str, Any]:
    return {"mood": np.array([text] * rows, dtype=object), "value": np.full(rows, 1.5)}


@pytest.mark.parametrize("over", [HTTP, GRPC])
def test_clients_find_the_server_and_its_model(light: Server, over: str) -> None:
    client = light.grpc if over == GRPC else light.http
    how = {"as_json": True} if over == GRPC else {}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, VERSION)
    assert "binary_tensor_data" in client.get_server_metadata(**how)["extensions"]
    told = client.get_model_metadata(MODEL, VERSION, **how)
    assert (told["name"], told["versions"], told["platform"]) == (MODEL, [VERSION], "mlflow_sklearn")
    kinds = {part["name"]: part["datatype"] for part in told["inputs"]}
    assert kinds == {
        **dict.fromkeys(NUMBERS, "FP64"),
        **dict.fromkeys(COUNTS, "INT64"),
        **dict.fromkeys(WORDS, "BYTES"),
    }
    assert [(part["name"], part["datatype"], list(map(int, part["shape"]))) for part in told["outputs"]] == [
        ("prediction", "INT64", [-1])
    ]


@pytest.mark.parametrize(("over", "binary"), [(HTTP, True), (HTTP, False), (GRPC, True)])
@pytest.mark.parametrize("rows", [1, 50])
def test_columns_are_predicted_as_by_mlflows_protocol(light: Server, over: str, binary: bool, rows: int) -> None:
    arrays = columns(rows)
    result = light.infer(arrays, over, binary, request_id="a")
    predictions = result.as_numpy("prediction")
    assert predictions.dtype == np.int64
    assert predictions.tolist() == light.predictions(arrays)
    told = result.get_response(as_json=True) if over == GRPC else result.get_response()
    assert (told["id"], told["model_name"], told["model_version"]) == ("a", MODEL, VERSION)


@pytest.mark.parametrize(("over", "binary"), [(HTTP, True), (HTTP, False), (GRPC, True)])
def test_outputs_can_be_asked_for_by_name(light: Server, over: str, binary: bool) -> None:
    arrays = columns(3)
    named = light.infer(arrays, over, binary, outputs=["prediction"])
    assert named.as_numpy("prediction").tolist() == light.predictions(arrays)
    with pytest.raises(InferenceServerException, match="no output 'score', only 'prediction'"):
        light.infer(arrays, over, binary, outputs=["score"])


def wrong() -> dict[str, tuple[dict[str, Any], str]]:
    good = columns(2)
    number, word, count = NUMBERS[3], WORDS[0], COUNTS[1]
    return {
        "missing": ({name: array for name, array in good.items() if name != number}, number),
        "rows": (good | {number: np.zeros(3)}, number),
        "text for a number": (good | {number: np.array(["a", "b"], dtype=object)}, f'"{number}", row 0'),
        "number for a text": (good | {word: np.zeros(2)}, f'"{word}", row 0'),
        "fraction": (good | {count: np.array([1.0, 1.5])}, f'"{count}", row 1'),
        "not UTF-8": (good | {word: np.array([b"a", b"\xff"], dtype=object)}, f'"{word}", row 1'),
        "matrix": (good | {number: np.zeros((2, 2))}, number),
    }


@pytest.mark.parametrize("over", [HTTP, GRPC])
@pytest.mark.parametrize("name", wrong())
def test_what_does_not_fit_is_the_clients_fault_and_says_where(light: Server, over: str, name: str) -> None:
    arrays, words = wrong()[name]
    with pytest.raises(InferenceServerException) as error:
        light.infer(arrays, over)
    assert error.value.status() == {HTTP: "400", GRPC: "StatusCode.INVALID_ARGUMENT"}[over]
    assert words in error.value.message()


@pytest.mark.parametrize(("over", "status"), [(HTTP, "404"), (GRPC, "StatusCode.NOT_FOUND")])
def test_another_model_or_version_is_not_here(light: Server, over: str, status: str) -> None:
    client = light.grpc if over == GRPC else light.http
    with pytest.raises(InferenceServerException) as error:
        client.get_model_metadata("other")
    assert error.value.status() == status
    with pytest.raises(InferenceServerException, match="version 7") as error:
        light.infer(columns(1), over, model_version="8")
    assert error.value.status() == status


@pytest.mark.parametrize(("over", "status"), [(HTTP, "413"), (GRPC, "StatusCode.RESOURCE_EXHAUSTED")])
def test_a_request_that_is_too_large_is_refused_and_the_server_goes_on(light: Server, over: str, status: str) -> None:
    with pytest.raises(InferenceServerException) as error:
        light.infer(columns(BODY_LIMIT // 100), over)
    assert error.value.status() == status
    assert light.infer(columns(1), over).as_numpy("prediction").shape == (1,)


@pytest.mark.parametrize(("over", "binary"), [(HTTP, True), (HTTP, False), (GRPC, True)])
@pytest.mark.parametrize("name", ["input-0", "rows"])
def test_tensors_of_the_signature(tensor: Server, over: str, binary: bool, name: str) -> None:
    rows = np.arange(12.0).reshape(3, 4)
    predictions = tensor.infer({name: rows}, over, binary).as_numpy("prediction")
    assert predictions.dtype == np.float64
    assert predictions.ravel() == pytest.approx(rows @ [1.0, 2.0, 3.0, 4.0])
    half = tensor.infer({name: rows.astype(np.float16)}, over).as_numpy("prediction")
    assert half.ravel() == pytest.approx(predictions.ravel())
    with pytest.raises(InferenceServerException, match="shape"):
        tensor.infer({name: rows.reshape(4, 3)}, over, binary)


@pytest.mark.parametrize(("over", "binary"), [(HTTP, True), (HTTP, False), (GRPC, True)])
def test_a_model_without_signature_is_asked_by_mlflows_code(unsigned: Server, over: str, binary: bool) -> None:
    frame = {name: array for name, array in columns(4).items() if name in NUMBERS}
    matrix = np.column_stack([*frame.values()])
    expected = unsigned.predictions(frame)
    assert unsigned.infer({"x": matrix}, over, binary).as_numpy("prediction").tolist() == expected
    as_frame = unsigned.infer(frame, over, binary, parameters={"content_type": "pd"})
    assert as_frame.as_numpy("prediction").tolist() == expected


def test_lists_of_a_type_over_grpc_are_answered_with_lists(light: Server) -> None:
    asked = service_pb2.ModelInferRequest(model_name=MODEL)
    field = {"FP64": "fp64_contents", "INT32": "int_contents", "BYTES": "bytes_contents"}
    for name, array in columns(2).items():
        datatype = np_to_triton_dtype(array.dtype)
        values = [value.encode() if isinstance(value, str) else value for value in array.ravel().tolist()]
        given = asked.inputs.add(name=name, datatype=datatype, shape=array.shape)
        getattr(given.contents, field[datatype]).extend(values)
    with grpc.insecure_channel(light.address) as channel:
        answer, call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.with_call(
            asked, metadata=(("x-request-id", "mine"),), timeout=20
        )
    assert not answer.raw_output_contents
    assert [*answer.outputs[0].contents.int64_contents] == light.predictions(columns(2))
    assert {"x-request-id": "mine", "x-model-version": VERSION}.items() <= dict(call.trailing_metadata()).items()


def test_bytes_that_are_no_message_are_refused(light: Server) -> None:
    with grpc.insecure_channel(light.address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as error:
            call(b"\xff\xff\xff", timeout=20)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_models_own_failures_are_internal(moody: Server) -> None:
    for text in ("raise", "nan"):
        for over, status in ((HTTP, "500"), (GRPC, "StatusCode.INTERNAL")):
            with pytest.raises(InferenceServerException) as error:
                moody.infer(mood(text), over)
            assert error.value.status() == status, text
            assert "Traceback" not in error.value.message()


def figure(server: Server, *parts: str) -> float:
    """The sum of the server's figures whose names have all these parts."""
    lines = server.scoring.client.get("/metrics").text.splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#" and all(part in line for part in parts)
    )


def test_over_grpc_too_requests_are_counted(moody: Server) -> None:
    def counts() -> list[float]:
        return [figure(moody, "promote_requests_total", f'code="{code}"') for code in (200, 400, 500)]

    before = counts()
    moody.infer(mood("fine"), GRPC)
    for arrays in ({"mood": mood("fine")["mood"]}, mood("raise")):
        with pytest.raises(InferenceServerException):
            moody.infer(arrays, GRPC)
    assert counts() == [count + 1 for count in before]


def test_over_grpc_too_a_prediction_is_a_span_below_the_callers(light_model: Path) -> None:
    with collecting() as collector:
        how = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with running(light_model, OTEL_TRACES_EXPORTER="otlp", **how) as server:
            headers = {"x-request-id": "traced", "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
            with grpc.insecure_channel(server.address) as channel:
                infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
                with pytest.raises(grpc.RpcError):
                    infer(service_pb2.ModelInferRequest(model_name=MODEL), metadata=[*headers.items()])
            (span,) = until(lambda: collector.of_request("traced"))
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("predict", "ab" * 16, "cd" * 8)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert "url.path" in {attribute.key for attribute in span.attributes}


def test_a_full_queue_says_so(moody: Server) -> None:
    with ThreadPoolExecutor(QUEUE + 1) as pool:
        slow = [pool.submit(moody.infer, mood("sleep 1"), GRPC)]
        slow += [pool.submit(moody.infer, mood("fine"), GRPC) for _ in range(QUEUE)]
        until(lambda: figure(moody, "promote_queue_requests") == QUEUE)
        with pytest.raises(InferenceServerException) as error:
            moody.infer(mood("fine"), GRPC)
        assert error.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert [result.result().as_numpy("prediction").tolist() for result in slow] == [[1.5]] * (QUEUE + 1)


def test_the_clients_deadline_holds_in_the_queue(moody: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(moody.infer, mood(f"sleep {seconds}"), GRPC) for seconds in (1, 1)]
        until(lambda: figure(moody, "promote_queue_requests") == 1)
        with pytest.raises(InferenceServerException) as error:
            moody.infer(mood("fine"), GRPC, client_timeout=0.2)
        assert error.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        assert not any(result.done() for result in slow[1:])
        assert [result.result().as_numpy("prediction").tolist() for result in slow] == [[1.5]] * 2


def test_stopping_answers_what_is_in_flight(moody_model: Path) -> None:
    with running(moody_model, DRAIN="20") as server, ThreadPoolExecutor(2) as pool:
        begun = 'promote_stage_seconds_count{stage="queue"}'
        before = figure(server, begun)
        slow = [pool.submit(server.infer, mood("sleep 1.5"), GRPC)]
        until(lambda: figure(server, begun) > before)
        slow.append(pool.submit(server.infer, mood("sleep 0.1"), GRPC))
        until(lambda: figure(server, "promote_queue_requests") == 1)
        server.scoring.process.send_signal(signal.SIGTERM)
        until(lambda: not server.grpc.is_server_ready())
        assert [result.result().as_numpy("prediction").tolist() for result in slow] == [[1.5]] * 2
        assert server.scoring.process.wait(20) == 0
