"""Surgery on ONNX graphs as converters write them: fewer inputs, and nothing that no answer needs.

Every input of a session costs a microsecond or so per request, and so does every node: of a classifier whose labels are
asked for, the nodes behind the probabilities go, and columns that the graph puts side by side arrive side by side.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, checker, helper

from serving.runtime.plan import Feed

_DTYPES = {
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT: "float32",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "object",
}


def finished(model: ModelProto, outputs: Sequence[str], ml: int | None = None) -> bytes:
    """The model with only these outputs and what they need; `ml` is the version of ``ai.onnx.ml`` that it uses."""
    keep_outputs(model.graph, outputs)
    if ml is not None:
        _set_version(model, "ai.onnx.ml", ml)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def keep_outputs(graph: GraphProto, outputs: Collection[str]) -> None:
    """Drop all other outputs, and every node, constant and input that no kept output depends on."""
    needed, nodes = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    _replace(graph.output, [output for output in graph.output if output.name in outputs])
    _replace(graph.node, list(reversed(nodes)))
    _replace(graph.initializer, [part for part in graph.initializer if part.name in needed])
    _replace(graph.input, [part for part in graph.input if part.name in needed])
    _replace(graph.value_info, [])


def gather_inputs(graph: GraphProto) -> tuple[Feed, ...]:
    """Let columns that are only put side by side be one input; the feeds of the graph, whose inputs are columns."""
    kinds = {part.name: part.type.tensor_type.elem_type for part in graph.input}
    joined: dict[str, tuple[str, ...]] = {}
    nodes = []
    for node in graph.node:
        if _joins_columns(node, kinds):
            joined[node.output[0]] = tuple(node.input)
        else:
            nodes.append(node)
    _replace(graph.node, nodes)
    for name, columns in joined.items():
        graph.input.append(helper.make_tensor_value_info(name, kinds[columns[0]], [None, len(columns)]))
    used = {name for node in nodes for name in node.input}
    _replace(graph.input, [part for part in graph.input if part.name in used])
    return tuple(
        Feed(part.name, joined.get(part.name, (part.name,)), _DTYPES[part.type.tensor_type.elem_type])
        for part in graph.input
    )


def _joins_columns(node: NodeProto, kinds: dict[str, int]) -> bool:
    if node.op_type != "Concat" or node.attribute[0].i not in (1, -1):
        return False
    return set(node.input) <= kinds.keys() and len({kinds[name] for name in node.input}) == 1


def _set_version(model: ModelProto, domain: str, version: int) -> None:
    others = [part for part in model.opset_import if part.domain != domain]
    _replace(model.opset_import, [*others, helper.make_opsetid(domain, version)])


def _replace(field: object, parts: list[object]) -> None:
    """Protocol buffers' lists cannot be assigned to."""
    del field[:]  # type: ignore[attr-defined]
    field.extend(parts)  # type: ignore[attr-defined]
