"""The messages of the Open Inference Protocol over gRPC, described as data and made into classes at run time.

Generated code works with the Protobuf it was generated for and a few versions after; this runs beside whatever version
a model needs. Names and numbers are those of the public specification. The descriptors have a pool of their own, so
that a client's generated code in the same process does no harm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"

_TENSOR = {"name": "string", "datatype": "string", "shape": "repeated int64"}
_MODEL = {"name": "string", "version": "string"}

MESSAGES: Mapping[str, Mapping[str, str]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": "bool"},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": "bool"},
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": {"ready": "bool"},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {**_MODEL, "extensions": "repeated string"},
    "ModelMetadataRequest": _MODEL,
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "ModelMetadataResponse": {
        "name": "string",
        "versions": "repeated string",
        "platform": "string",
        "inputs": "repeated ModelMetadataResponse.TensorMetadata",
        "outputs": "repeated ModelMetadataResponse.TensorMetadata",
    },
    "InferParameter": {
        "bool_param": "choice bool",
        "int64_param": "choice int64",
        "string_param": "choice string",
        "double_param": "choice double",
        "uint64_param": "choice uint64",
    },
    "InferTensorContents": {
        "bool_contents": "repeated bool",
        "int_contents": "repeated int32",
        "int64_contents": "repeated int64",
        "uint_contents": "repeated uint32",
        "uint64_contents": "repeated uint64",
        "fp32_contents": "repeated float",
        "fp64_contents": "repeated double",
        "bytes_contents": "repeated bytes",
    },
    "ModelInferRequest.InferInputTensor": {
        **_TENSOR,
        "parameters": "map InferParameter",
        "contents": "InferTensorContents",
    },
    "ModelInferRequest.InferRequestedOutputTensor": {"name": "string", "parameters": "map InferParameter"},
    "ModelInferRequest": {
        "model_name": "string",
        "model_version": "string",
        "id": "string",
        "parameters": "map InferParameter",
        "inputs": "repeated ModelInferRequest.InferInputTensor",
        "outputs": "repeated ModelInferRequest.InferRequestedOutputTensor",
        "raw_input_contents": "repeated bytes",
    },
    "ModelInferResponse.InferOutputTensor": {
        **_TENSOR,
        "parameters": "map InferParameter",
        "contents": "InferTensorContents",
    },
    "ModelInferResponse": {
        "model_name": "string",
        "model_version": "string",
        "id": "string",
        "parameters": "map InferParameter",
        "outputs": "repeated ModelInferResponse.InferOutputTensor",
        "raw_output_contents": "repeated bytes",
    },
}
"""Fields by name, in the order of their numbers. ``choice`` fields exclude each other, a ``map`` is one by string."""

_Field = descriptor_pb2.FieldDescriptorProto

CHOICE = "parameter_choice"
"""What the fields of a parameter exclude each other in."""


@cache
def message(name: str) -> Any:
    """The class of a message."""
    descriptor = _pool().FindMessageTypeByName(f"{PACKAGE}.{name}")
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(_pool()).GetPrototype(descriptor)  # Protobuf 4.21


@cache
def _pool() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        if "." not in name:
            _describe(file.message_type.add(), name, fields)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _describe(described: Any, name: str, fields: Mapping[str, str]) -> None:
    described.name = name.rpartition(".")[2]
    for number, (field, told) in enumerate(fields.items(), 1):
        _describe_field(described, name, described.field.add(name=field, number=number), told)
    for inner in _inside(name):
        _describe(described.nested_type.add(), inner, MESSAGES[inner])


def _describe_field(described: Any, owner: str, field: Any, told: str) -> None:
    *how, kind = told.split()
    if how == ["map"]:
        kind = _describe_map(described, owner, field.name, kind)
    if how == ["choice"]:
        field.oneof_index = 0
        if not described.oneof_decl:
            described.oneof_decl.add(name=CHOICE)
    field.label = _Field.LABEL_REPEATED if how in (["map"], ["repeated"]) else _Field.LABEL_OPTIONAL
    _set_type(field, kind)


def _describe_map(described: Any, owner: str, name: str, kind: str) -> str:
    """The type of a map's entries, which Protobuf wants as a message within the owner."""
    entry = described.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
    entry.options.map_entry = True
    for number, (part, of) in enumerate((("key", "string"), ("value", kind)), 1):
        field = entry.field.add(name=part, number=number, label=_Field.LABEL_OPTIONAL)
        _set_type(field, of)
    return f"{owner}.{entry.name}"


def _set_type(field: Any, kind: str) -> None:
    scalar = getattr(_Field, f"TYPE_{kind.upper()}", None)
    if scalar is None:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = scalar


def _inside(name: str) -> Iterator[str]:
    return (other for other in MESSAGES if other.rpartition(".")[0] == name)
