"""The Open Inference Protocol without a server: tensors there and back, and no request that is not answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.prediction_log import Origin, Privacy
from serving.runtime.exchange import BadRequestError, Health, Predictions, Raw, Rows, ServingError, Written
from serving.runtime.figures import Figures
from serving.runtime.open_inference import OpenInference
from serving.runtime.open_inference_contents import tensors_of
from serving.runtime.open_inference_messages import message
from serving.runtime.open_inference_model import OpenModel
from serving.runtime.open_inference_tensors import DATATYPES
from serving.runtime.plan import Column, Param, Plan, Tensor
from serving.runtime.routes import Asked, Reply
from serving.runtime.service import Caller, Service
from serving.runtime.settings import Settings

COLUMNS = (
    Column("amount", "double"),
    Column("count", "long"),
    Column("small", "integer", required=False),
    Column("ratio", "float", required=False),
    Column("yes", "boolean", required=False),
    Column("word", "string", required=False),
    Column("blob", "binary", required=False),
    Column("moment", "datetime", required=False),
)
PARAMS = (Param("factor", "double", 1.0), Param("names", "string", ["a"], (-1,)), Param("timeout", "long", 1))
BY_COLUMN = Plan("sklearn", True, COLUMNS, params=PARAMS)
BY_TENSOR = Plan("pytorch", True, tensors=(Tensor("", "float32", (-1, 2)),))
UNTYPED = Plan("sklearn", False)


class Echo:
    """An engine that answers with what it was asked."""

    compiled = False

    def __init__(self) -> None:
        self.asked: list[Rows | Raw] = []

    async def start(self) -> None: ...

    async def predict(self, ask: Rows | Raw, _deadline: float) -> Predictions | Written:
        self.asked.append(ask)
        if isinstance(ask, Raw):
            told = json.loads(ask.body)
            return Written(json.dumps(told.get("inputs", told.get("dataframe_split"))).encode())
        return Predictions(ask.columns, ask.count, frame=True)

    def health(self) -> Health:
        return Health(True)

    async def close(self) -> None: ...


class Server:
    """The protocol over an echoing engine."""

    def __init__(self, plan: Plan) -> None:
        where = Path("nowhere")
        origin, privacy = Origin("m", 7, ""), Privacy(frozenset(), frozenset(), b"")
        self.engine = Echo()
        self.service = Service(Settings(where, where, origin, privacy), plan, Figures("m", 7))
        asyncio.run(self.service.start(self.engine))
        self.engine.asked.clear()
        self.model = OpenModel(self.service)
        self.protocol = OpenInference(self.model).protocol()

    def infer(self, body: bytes, json_length: bytes | None = None, path: str = "/v2/models/m/infer") -> Reply:
        headers = {} if json_length is None else {b"inference-header-content-length": json_length}
        return asyncio.run(self._answer(Asked(path, headers, body, Caller("id"))))

    def told(self, *tensors: Any, **more: Any) -> Any:
        return json.loads(self.infer(orjson.dumps({"inputs": tensors, **more})).body)

    async def _answer(self, asked: Asked) -> Reply:
        try:
            return await self.protocol.answer(asked)
        except ServingError as error:
            return Reply(self.protocol.failure(error.code, str(error)), error.status)


@pytest.fixture(scope="module")
def by_column() -> Server:
    return Server(BY_COLUMN)


@pytest.fixture(scope="module")
def by_tensor() -> Server:
    return Server(BY_TENSOR)


@pytest.fixture(scope="module")
def untyped() -> Server:
    return Server(UNTYPED)


def tensor(name: str, datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


AMOUNT, COUNT = tensor("amount", "FP64", [2], [1.5, 2]), tensor("count", "INT64", [2, 1], [[3], [4]])


# What the model is asked, and what it answers


def test_tensors_are_columns_by_the_signature(by_column: Server) -> None:
    more = [tensor("small", "INT8", [2], [1, 2]), tensor("ratio", "FP32", [2, 1], [0.5, None])]
    more += [tensor("yes", "BOOL", [2], [True, False]), tensor("word", "BYTES", [2], ["ä", None])]
    more += [tensor("blob", "BYTES", [2], ["/w==", "AA=="])]
    more += [tensor("moment", "BYTES", [2], ["2024-05-31", "2024-05-31T12:00:00"])]
    by_column.engine.asked.clear()
    told = by_column.told(AMOUNT, COUNT, *more, id="a")
    (rows,) = by_column.engine.asked
    assert isinstance(rows, Rows)
    assert {name: array.dtype.name for name, array in rows.columns.items()} == {
        "amount": "float64",
        "count": "int64",
        "small": "int32",
        "ratio": "float32",
        "yes": "bool",
        "word": "object",
        "blob": "object",
        "moment": "datetime64[ns]",
    }
    assert all(array.shape == (2,) for array in rows.columns.values())
    assert rows.columns["blob"].tolist() == [b"\xff", b"\0"]
    assert (told["model_name"], told["model_version"], told["id"]) == ("m", "7", "a")
    outputs = {output["name"]: output for output in told["outputs"]}
    assert outputs["count"] == tensor("count", "INT64", [2], [3, 4])
    assert outputs["ratio"] == tensor("ratio", "FP32", [2], [0.5, None])
    assert outputs["word"] == tensor("word", "BYTES", [2], ["ä", None])
    assert outputs["blob"] == tensor("blob", "BYTES", [2], ["/w==", "AA=="])
    assert outputs["moment"]["data"][1] == "2024-05-31T12:00:00.000000000"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"count": tensor("count", "INT64", [3], [1, 2, 3])}, "count"),
        ({"count": tensor("count", "FP64", [2], [1.5, 2])}, "whole number"),
        ({"count": tensor("count", "INT64", [1, 2], [1, 2])}, "[n, 1]"),
        ({"count": None}, "missing inputs ['count']"),
        ({"word": tensor("word", "INT64", [2], [1, 2])}, '"word", row 0'),
        ({"amount": tensor("amount", "BYTES", [2], ["a", "b"])}, '"amount", row 0'),
    ],
)
def test_columns_that_do_not_fit_are_refused(by_column: Server, changed: Mapping[str, Any], words: str) -> None:
    tensors: dict[str, Any] = {"amount": AMOUNT, "count": COUNT, **changed}
    assert words in by_column.told(*[told for told in tensors.values() if told])["error"]


def test_a_signature_of_tensors_takes_arrays_under_any_name_where_it_has_none(by_tensor: Server) -> None:
    told = by_tensor.told(tensor("whatever", "INT16", [2, 2], [[1, 2], [3, 4]]))
    assert told["outputs"] == [tensor("prediction", "FP32", [2, 2], [1, 2, 3, 4])]
    assert "shape" in by_tensor.told(tensor("whatever", "FP32", [4], [1, 2, 3, 4]))["error"]


def test_only_the_asked_outputs_come_and_an_unknown_one_is_refused(by_column: Server) -> None:
    told = by_column.told(AMOUNT, COUNT, outputs=[{"name": "count"}])
    assert [output["name"] for output in told["outputs"]] == ["count"]
    assert (
        "no output 'other', only 'amount', 'count'"
        in by_column.told(AMOUNT, COUNT, outputs=[{"name": "other"}])["error"]
    )


def test_parameters_are_the_models_but_for_those_of_the_protocol(by_column: Server) -> None:
    by_column.engine.asked.clear()
    own = {"binary_data_output": False, "content_type": "pd", "priority": 1, "sequence_id": 4, "headers": {}}
    by_column.told(AMOUNT, COUNT, parameters={"factor": 2.5, "names": '["b", "c"]', "timeout": 5, **own})
    by_column.told(AMOUNT, COUNT, parameters=own)
    first, second = by_column.engine.asked
    assert isinstance(first, Rows)
    assert isinstance(second, Rows)
    assert dict(first.params or {}) == {
        "factor": 2.5,
        "names": ["b", "c"],
        "timeout": 5,
    }
    assert not second.params
    assert "factor" in by_column.told(AMOUNT, COUNT, parameters={"factor": "much"})["error"]
    assert "names" in by_column.told(AMOUNT, COUNT, parameters={"names": "b"})["error"]


def test_without_signature_mlflow_is_asked_in_its_own_protocol(untyped: Server) -> None:
    def asked(*tensors: Any, **parameters: Any) -> Any:
        untyped.engine.asked.clear()
        untyped.told(*tensors, parameters=parameters)
        (raw,) = untyped.engine.asked
        assert isinstance(raw, Raw)
        return json.loads(raw.body)

    word = tensor("w", "BYTES", [2], ["a", "b"])
    assert asked(tensor("x", "FP32", [2, 2], [1, 2, 3, 4])) == {"inputs": [[1, 2], [3, 4]]}
    assert asked(AMOUNT, word, p=1) == {"inputs": {"amount": [1.5, 2], "w": ["a", "b"]}, "params": {"p": 1}}
    frame = {"columns": ["count", "w"], "data": [[3, "a"], [4, "b"]]}
    assert asked(COUNT, word, content_type="pd") == {"dataframe_split": frame}
    assert (
        "same number" in untyped.told(COUNT, tensor("x", "INT8", [1], [1]), parameters={"content_type": "pd"})["error"]
    )


@pytest.mark.parametrize(
    ("written", "outputs"),
    [
        (b"[1, 2]", {"prediction": [1, 2]}),
        (b'["a", null]', {"prediction": ["a", None]}),
        (b'[{"a": 1, "b": "x"}, {"a": 2.5, "b": "y"}]', {"a": [1, 2.5], "b": ["x", "y"]}),
        (b'{"a": [1], "b": [[1, 2]]}', {"a": [1], "b": [1, 2]}),
        (b"[[1, 2], [3]]", {"prediction": ["[1, 2]", "[3]"]}),
        (b'[{"a": 1}, {"b": 1}]', {"prediction": ['{"a": 1}', '{"b": 1}']}),
        (b"[1, [2]]", {"prediction": ["1", "[2]"]}),
        (b"[[[1, 2]], [[1], [2]]]", {"prediction": ["[[1, 2]]", "[[1], [2]]"]}),
        (b"1.5", {"prediction": [1.5]}),
        (b'"text"', {"prediction": ["text"]}),
        (b"null", {"prediction": [None]}),
        (b"[]", {"prediction": []}),
        (b"{}", {"prediction": ["{}"]}),
        (b'{"a": 1}', {"prediction": ['{"a": 1}']}),
    ],
)
def test_what_mlflow_wrote_is_tensors_too(written: bytes, outputs: Mapping[str, Any]) -> None:
    class Writing(Echo):
        async def predict(self, _ask: Rows | Raw, _deadline: float) -> Predictions | Written:
            return Written(written)

    server = Server(UNTYPED)
    asyncio.run(server.service.start(Writing()))
    told = server.told(tensor("x", "FP32", [1], [1]))["outputs"]
    assert {output["name"]: output["data"] for output in told} == outputs


# Whole requests


def test_bytes_behind_the_json(by_column: Server) -> None:
    inputs = [
        {"name": "amount", "datatype": "FP64", "shape": [2], "parameters": {"binary_data_size": 16}},
        COUNT,
        {"name": "blob", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 9}},
    ]
    outputs = [{"name": "blob"}, {"name": "count"}, {"name": "amount", "parameters": {"binary_data": False}}]
    asked = {"inputs": inputs, "outputs": outputs, "parameters": {"binary_data_output": True}}
    head, tail = orjson.dumps(asked), np.array([1.5, 2.5]).tobytes() + b"\1\0\0\0\xff\0\0\0\0"
    reply = by_column.infer(head + tail, str(len(head)).encode())
    headers = dict(reply.headers)
    length = int(headers[b"inference-header-content-length"])
    assert headers[b"content-type"] == b"application/octet-stream"
    blob, count, amount = json.loads(reply.body[:length])["outputs"]
    assert (blob["parameters"], count["parameters"]) == ({"binary_data_size": 9}, {"binary_data_size": 16})
    assert reply.body[length:] == b"\1\0\0\0\xff\0\0\0\0" + np.array([3, 4]).tobytes()
    assert amount["data"] == [1.5, 2.5]


@pytest.mark.parametrize(
    ("asked", "tail", "length", "words"),
    [
        ({"inputs": [AMOUNT, COUNT]}, b"12", True, "2 bytes follow the JSON, but its tensors have 0"),
        ({"inputs": [AMOUNT, COUNT]}, b"12", False, "not JSON"),
        ({"inputs": [{**AMOUNT, "parameters": {"binary_data_size": 16}}]}, b"12345678", True, "do not make shape"),
        ({"inputs": [{**AMOUNT, "parameters": {"binary_data_size": -1}}]}, b"", True, "binary_data_size"),
        ({"inputs": [{**AMOUNT, "parameters": {"binary_data_size": True}}]}, b"", True, "binary_data_size"),
        ({"inputs": [{**AMOUNT, "parameters": {"shared_memory_region": "a"}}]}, b"", True, "shared_memory_region"),
        ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [1]}]}, b"", True, "neither"),
        ({"inputs": [AMOUNT, AMOUNT]}, b"", True, "same name"),
        ({"inputs": []}, b"", True, "no tensors"),
        ({"inputs": [AMOUNT], "id": 5}, b"", True, "$.id"),
        ({"inputs": {}}, b"", True, "$.inputs"),
        ([], b"", True, "object"),
        ({"inputs": [tensor("word", "BYTES", [1], ["LONE"])]}, b"", True, "not JSON"),
        ({}, b"", True, "inputs"),
    ],
)
def test_requests_that_are_not_of_the_protocol_are_refused(
    by_column: Server, asked: Any, tail: bytes, length: bool, words: str
) -> None:
    head = orjson.dumps(asked).replace(b"LONE", b"\\ud800")
    reply = by_column.infer(head + tail, str(len(head)).encode() if length else None)
    assert reply.status == 400
    assert words in json.loads(reply.body)["error"]


@pytest.mark.parametrize("length", [b"1000", b"-1", b"", b"x", b"9" * 5000, "²".encode()])
def test_a_length_of_json_that_is_none_is_refused(by_column: Server, length: bytes) -> None:
    assert by_column.infer(orjson.dumps({"inputs": [AMOUNT, COUNT]}), length).status == 400


def test_another_model_or_version_is_not_found(by_column: Server) -> None:
    body = orjson.dumps({"inputs": [AMOUNT, COUNT]})
    for path, status in (("m", 200), ("m/versions/7", 200), ("m/versions/8", 404), ("other", 404)):
        assert by_column.protocol.serves(f"/v2/models/{path}/infer")
        assert by_column.infer(body, path=f"/v2/models/{path}/infer").status == status
    assert not by_column.protocol.serves("/v2/models/m/ready")
    assert not by_column.protocol.serves("/invocations")


def test_metadata_tells_what_the_signature_says(by_column: Server, by_tensor: Server, untyped: Server) -> None:
    told = by_column.model.metadata()
    assert {part["name"]: part["datatype"] for part in told["inputs"]} == {
        "amount": "FP64",
        "count": "INT64",
        "small": "INT32",
        "ratio": "FP32",
        "yes": "BOOL",
        "word": "BYTES",
        "blob": "BYTES",
        "moment": "BYTES",
    }
    assert (told["name"], told["versions"], told["platform"]) == ("m", ["7"], "mlflow_sklearn")
    assert by_tensor.model.metadata()["inputs"] == [{"name": "input-0", "datatype": "FP32", "shape": [-1, 2]}]
    assert untyped.model.metadata()["inputs"] == untyped.model.metadata()["outputs"] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SIZES = st.lists(st.integers(-1, 3) | st.sampled_from([2**31, 2**70]), max_size=4)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from([column.name for column in COLUMNS]) | JSON,
        "datatype": st.sampled_from(sorted(DATATYPES)) | JSON,
        "shape": SIZES | JSON,
    },
    optional={
        "data": st.lists(JSON, max_size=3) | JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 20) | JSON}) | JSON,
    },
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=3) | JSON},
    optional={
        "id": JSON,
        "parameters": st.dictionaries(st.sampled_from(["factor", "names", "content_type", "x"]), JSON) | JSON,
        "outputs": st.lists(st.fixed_dictionaries({"name": JSON}, optional={"parameters": JSON}), max_size=2) | JSON,
    },
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_request_gets_an_answer(by_column: Server, by_tensor: Server, untyped: Server, data: st.DataObject) -> None:
    server = data.draw(st.sampled_from([by_column, by_tensor, untyped]))
    head = data.draw(st.binary(max_size=60) | REQUESTS.map(lambda request: json.dumps(request).encode()))
    length = data.draw(st.none() | st.just(str(len(head)).encode()) | st.binary(max_size=4))
    reply = server.infer(head + data.draw(st.binary(max_size=20)), length)
    assert reply.status == 200 or 400 <= reply.status < 500
    if reply.status != 200:
        assert json.loads(reply.body)["error"]


LISTS = {
    "int_contents": st.integers(-(2**31), 2**31 - 1),
    "uint64_contents": st.integers(0, 2**64 - 1),
    "fp64_contents": st.floats(),
    "bytes_contents": st.binary(max_size=3),
}
CONTENTS = st.fixed_dictionaries({}, optional={name: st.lists(value, max_size=3) for name, value in LISTS.items()})
MESSAGE_TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["amount", "count", "word"]),
        "datatype": st.sampled_from([*DATATYPES, "FP128"]),
        "shape": st.lists(st.integers(-1, 3) | st.integers(-(2**63), 2**63 - 1), max_size=3),
        "contents": CONTENTS,
    }
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_message_is_asked_or_refused(
    by_column: Server, by_tensor: Server, untyped: Server, data: st.DataObject
) -> None:
    inputs = data.draw(st.lists(MESSAGE_TENSORS, max_size=3))
    raws = data.draw(st.just([]) | st.lists(st.binary(max_size=20), min_size=len(inputs), max_size=len(inputs)))
    model = data.draw(st.sampled_from([by_column, by_tensor, untyped])).model
    try:
        asked = model.ask(tensors_of(message("ModelInferRequest")(inputs=inputs, raw_input_contents=raws)), {}, False)
    except BadRequestError:
        return
    assert isinstance(asked, Raw) or asked.count
