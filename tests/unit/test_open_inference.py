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
from hypothesis.extra import numpy as npst
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from serving.prediction_log import Origin, Privacy
from serving.runtime.exchange import Array, Health, Predictions, Raw, Rows, ServingError, Written
from serving.runtime.figures import Figures
from serving.runtime.open_inference import OpenInference
from serving.runtime.open_inference_binary import from_bytes, to_bytes
from serving.runtime.open_inference_contents import parameters_of, response, tensors_of
from serving.runtime.open_inference_messages import _MESSAGES, message
from serving.runtime.open_inference_model import OpenModel
from serving.runtime.open_inference_tensors import DATATYPES, from_json, json_data, to_wire
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


# Tensors


def arrays(datatypes: tuple[str, ...] = tuple(DATATYPES)) -> st.SearchStrategy[tuple[str, Array]]:
    return st.sampled_from(datatypes).flatmap(lambda datatype: st.tuples(st.just(datatype), _array(datatype)))


def _array(datatype: str) -> st.SearchStrategy[Array]:
    shapes = npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
    if datatype == "BYTES":
        return npst.arrays(object, shapes, elements=st.text(st.characters(exclude_categories=["Cs"])))
    elements = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else None
    return npst.arrays(DATATYPES[datatype], shapes, elements=elements)


def decoded(array: Array) -> Any:
    return [value.decode() if isinstance(value, bytes) else value for value in array.ravel().tolist()]


@given(arrays(), st.booleans())
def test_tensors_survive_json(drawn: tuple[str, Array], nested: bool) -> None:
    datatype, array = drawn
    data = orjson.dumps(json_data(to_wire("x", array)), option=orjson.OPT_SERIALIZE_NUMPY)
    if nested and array.size:
        data = json.dumps(array.tolist()).encode()
    again = from_json("x", datatype, array.shape, data)  # type: ignore[arg-type]
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert again.tolist() == array.tolist()


@given(arrays())
def test_tensors_survive_bytes_and_are_those_of_the_client(drawn: tuple[str, Array]) -> None:
    datatype, array = drawn
    data = to_bytes(to_wire("x", array))
    if datatype == "BYTES":
        assert data == (serialize_byte_tensor(array).item() if array.size else b"")
        assert [value.decode() for value in deserialize_bytes_tensor(data)] == array.ravel().tolist()
    else:
        assert data == array.tobytes()
    again = from_bytes("x", datatype, array.shape, memoryview(b"?" + data)[1:])
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert again.flags.aligned
    assert decoded(again) == array.ravel().tolist()


@given(arrays())
def test_tensors_survive_messages(drawn: tuple[str, Array]) -> None:
    datatype, array = drawn
    for raws in ([], [b""]):
        answer = response(
            message("ModelInferRequest")(id="a", raw_input_contents=raws), "m", "7", [to_wire("x", array)]
        )
        assert bool(answer.raw_output_contents) == bool(raws or datatype == "FP16")
        asked = message("ModelInferRequest")(raw_input_contents=answer.raw_output_contents)
        asked.inputs.add().ParseFromString(answer.outputs[0].SerializeToString())
        again = tensors_of(asked)["x"]
        assert (again.dtype, again.shape) == (array.dtype, array.shape)
        assert decoded(again) == array.ravel().tolist()


@pytest.mark.parametrize(
    ("answer", "datatype", "data"),
    [
        (np.array(["a", "bc"]), "BYTES", ["a", "bc"]),
        (np.array(["a", None], dtype=object), "BYTES", ["a", None]),
        (np.array([b"\xff", "a"], dtype=object), "BYTES", ["/w==", "a"]),
        (np.array([1, None], dtype=object), "FP64", [1.0, None]),
        (np.array([1, 2], dtype=object), "INT64", [1, 2]),
        (np.array([True, False], dtype=object), "BOOL", [True, False]),
        (np.array([1, 2**70], dtype=object), "BYTES", ["1", str(2**70)]),
        (np.array([1, "a", None], dtype=object), "BYTES", ["1", "a", None]),
        (np.array([{"a": 1}, [1.5]], dtype=object), "BYTES", ['{"a": 1}', "[1.5]"]),
        (np.array(["2024-05-31"], dtype="datetime64[ns]"), "BYTES", ["2024-05-31T00:00:00.000000000"]),
        (np.array([1.5], dtype=np.longdouble), "FP64", [1.5]),
        (np.array([1.5, 2], dtype=">f4"), "FP32", [1.5, 2]),
        (np.array([[1, 2], [3, 4]]).T, "INT64", [1, 3, 2, 4]),
    ],
)
def test_whatever_a_model_answers_is_a_tensor(answer: Array, datatype: str, data: list[Any]) -> None:
    output = to_wire("x", answer)
    assert output.datatype == datatype
    assert output.values.shape == answer.shape
    assert json.loads(orjson.dumps(json_data(output), option=orjson.OPT_SERIALIZE_NUMPY)) == data
    whole = from_bytes("x", datatype, answer.shape, memoryview(to_bytes(output)))
    assert len(whole) == len(answer)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "words"),
    [
        ("FLOAT", [1], "[1]", "FLOAT"),
        ("FP64", [3], "[1]", "1 values do not make shape [3]"),
        ("FP64", [], "[1]", "do not make shape []"),
        ("FP64", [-1, -1], "[1]", "there is no shape [-1, -1]"),
        ("FP64", [2**70, 0], "[]", "there is no shape"),
        ("FP64", [1] * 70, "[1]", "there is no shape"),
        ("FP64", [1] * 70, "[" * 70 + "1" + "]" * 70, "at most 32"),
        ("FP64", [2, 2], "[[1, 2], [3]]", "inhomogeneous"),
        ("FP64", [1, 4], "[[1, 2], [3, 4]]", "not of shape [1, 4]"),
        ("FP64", [2, 2], '[[1, 2], [3, "a"]]', "expected float | null, got str - at data[1][1]"),
        ("FP64", [1], "[1e999]", "out of range"),
        ("FP64", [1], "[true]", "got bool"),
        ("FP32", [1], "[1e300]", "<= 3.4"),
        ("FP16", [1], "[70000]", "<= 65504"),
        ("INT8", [2], "[1, 128]", "<= 127 - at data[1]"),
        ("INT64", [1], "[1.5]", "got float"),
        ("INT64", [1], "[null]", "got null"),
        ("UINT64", [1], "[18446744073709551616]", "int"),
        ("UINT8", [1], "[-1]", ">= 0"),
        ("BOOL", [1], "[1]", "got int"),
        ("BYTES", [1], "[1]", "got int"),
        ("BYTES", [1], '"a"', "got str"),
    ],
)
def test_json_that_is_no_such_tensor_is_refused(
    by_tensor: Server, datatype: str, shape: list[int], data: str, words: str
) -> None:
    body = f'{{"inputs": [{{"name": "x", "datatype": "{datatype}", "shape": {shape}, "data": {data}}}]}}'
    reply = by_tensor.infer(body.encode())
    assert reply.status == 400
    assert words.lower() in json.loads(reply.body)["error"].lower()
    assert "'x'" in json.loads(reply.body)["error"]


@pytest.mark.parametrize(
    ("datatype", "data", "words"),
    [
        ("FP64", b"1234567", "no whole number of FP64"),
        ("FP64", b"12345678", "1 values do not make shape [2]"),
        ("BYTES", b"\1\0\0\0a", "1 values do not make shape [2]"),
        ("BYTES", b"\1\0\0\0a\1\0", "within a length"),
        ("BYTES", b"\1\0\0\0a\2\0\0\0b", "within a value"),
        ("BYTES", b"\1\0\0\0a\xff\xff\xff\xff", "within a value"),
        ("FP128", b"", "FP128"),
    ],
)
def test_bytes_that_are_no_such_tensor_are_refused(datatype: str, data: bytes, words: str) -> None:
    with pytest.raises(ServingError, match=words.replace("[", r"\[")) as error:
        from_bytes("x", datatype, [2], memoryview(data))
    assert error.value.status == 400


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
    statuses = {
        path: by_column.infer(body, path=path).status
        for path in (
            "/v2/models/m/infer",
            "/v2/models/m/versions/7/infer",
            "/v2/models/m/versions/8/infer",
            "/v2/models/other/infer",
        )
        if by_column.protocol.serves(path)
    }
    assert [*statuses.values()] == [200, 200, 404, 404]
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


# Messages of gRPC


@pytest.mark.parametrize("name", _MESSAGES)
def test_messages_are_those_of_the_clients_generated_code(name: str) -> None:
    outer, *inner = name.split(".")
    theirs = service_pb2.DESCRIPTOR.message_types_by_name[outer]
    for part in inner:
        theirs = theirs.nested_types_by_name[part]
    ours = message(name).DESCRIPTOR
    assert _fields(ours) == _fields(theirs)


def _fields(descriptor: Any) -> dict[str, tuple[int, int, bool, str]]:
    return {
        field.name: (field.number, field.type, field.is_repeated, field.message_type and field.message_type.full_name)
        for field in descriptor.fields
    }


def test_parameters_of_messages() -> None:
    asked = message("ModelInferRequest")()
    asked.parameters["a"].int64_param = 3
    asked.parameters["b"].string_param = "x"
    asked.parameters["c"].bool_param = False
    asked.parameters["d"].double_param = 1.5
    asked.parameters["e"].SetInParent()
    assert parameters_of(asked.parameters) == {"a": 3, "b": "x", "c": False, "d": 1.5}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"inputs": []}, "no tensors"),
        ({"inputs": [{"name": "a", "datatype": "FP64", "shape": [1]}] * 2, "raw_input_contents": [b""]}, "1 raw"),
        ({"inputs": [{"name": "a", "datatype": "FP16", "shape": [1]}]}, "raw_input_contents"),
        ({"inputs": [{"name": "a", "datatype": "FP64", "shape": [1]}]}, "0 values"),
        (
            {"inputs": [{"name": "a", "datatype": "INT8", "shape": [1], "contents": {"int_contents": [128]}}]},
            "not all INT8",
        ),
        ({"inputs": [{"name": "a", "datatype": "FLOAT", "shape": [1]}]}, "FLOAT"),
    ],
)
def test_messages_without_such_tensors_are_refused(asked: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ServingError, match=words) as error:
        tensors_of(message("ModelInferRequest")(**asked))
    assert error.value.status == 400
