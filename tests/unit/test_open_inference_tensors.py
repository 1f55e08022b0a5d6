"""Tensors of the Open Inference Protocol in JSON, bytes and messages of gRPC: there and back, and what is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from serving.runtime.exchange import Array, ServingError
from serving.runtime.open_inference_binary import from_bytes, to_bytes
from serving.runtime.open_inference_contents import parameters_of, response, tensors_of
from serving.runtime.open_inference_messages import MESSAGES, message
from serving.runtime.open_inference_tensors import DATATYPES, from_json, json_data, to_wire


def arrays(datatypes: tuple[str, ...] = tuple(DATATYPES)) -> st.SearchStrategy[tuple[str, Array]]:
    return st.sampled_from(datatypes).flatmap(lambda datatype: st.tuples(st.just(datatype), _array(datatype)))


def _array(datatype: str) -> st.SearchStrategy[Array]:
    shapes = npst.array_shapes(min_dims=1, max_dims=3, max_side=4) | st.sampled_from([(0,), (0, 2)])
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
    again = from_json("x", datatype, array.shape, msgspec.Raw(data))
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert again.tolist() == array.tolist()


@pytest.mark.parametrize(("datatype", "beyond"), [("FP16", "65520"), ("FP32", "3.4028235677973366e38")])
@pytest.mark.parametrize("sign", ["", "-"])
def test_what_rounds_to_the_largest_number_is_that_and_what_is_beyond_is_refused(
    datatype: str, beyond: str, sign: str
) -> None:
    largest = np.array([np.finfo(DATATYPES[datatype]).max]) * (-1 if sign else 1)
    written = f"[{sign}{np.format_float_scientific(abs(largest[0]))}]"
    assert from_json("x", datatype, (1,), msgspec.Raw(written.encode())).tolist() == largest.tolist()
    with pytest.raises(ServingError, match="Expected float"):
        from_json("x", datatype, (1,), msgspec.Raw(f"[{sign}{beyond}]".encode()))


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
        ("FP64", [0, 2**70], "[]", "there is no shape"),
        ("FP64", [1] * 70, "[1]", "there is no shape"),
        ("FP64", [2**31, 0], "[]", "are empty"),
        ("FP64", [1] * 70, "[" * 70 + "1" + "]" * 70, "at most 32"),
        ("FP64", [2, 2], "[[1, 2], [3]]", "inhomogeneous"),
        ("FP64", [1, 4], "[[1, 2], [3, 4]]", "not of shape [1, 4]"),
        ("FP64", [2, 2], '[[1, 2], [3, "a"]]', "expected float | null, got str - at data[1][1]"),
        ("FP64", [1], "[1e999]", "out of range"),
        ("FP64", [1], "[true]", "got bool"),
        ("FP32", [1], "[1e300]", "< 3.4"),
        ("FP16", [1], "[70000]", "< 65520"),
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
def test_json_that_is_no_such_tensor_is_refused(datatype: str, shape: list[int], data: str, words: str) -> None:
    with pytest.raises(ServingError) as error:
        from_json("x", datatype, shape, msgspec.Raw(data.encode()))
    assert error.value.status == 400
    assert words.lower() in str(error.value).lower()
    assert "'x'" in str(error.value)


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


@pytest.mark.parametrize("name", MESSAGES)
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
