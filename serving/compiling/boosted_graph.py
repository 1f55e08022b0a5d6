"""What readers of boosting libraries' models hand back, and the ONNX graph that it becomes: trees, then a few steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from serving.compiling.graph import finished
from serving.compiling.trees import ML, Tree, summed
from serving.runtime.exchange import Array

ROWS, ANSWER = "rows", "answer"
"""Names of the graph's input and output."""

_ML, _OPSET, _IR = 5, 18, 9


@dataclass(frozen=True, slots=True)
class Step:
    """A node that takes what the step before it gives, and perhaps a constant of the same type."""

    kind: str
    constant: float | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


SIGMOID = Step("Sigmoid")
EXP = Step("Exp")
SOFTMAX = Step("Softmax", attributes={"axis": 1})
HIGHEST = Step("ArgMax", attributes={"axis": 1})
"""The first of the highest values."""
WHOLE = Step("Cast", attributes={"to": TensorProto.INT64})


@dataclass(frozen=True, slots=True)
class Zeros:
    """Values near zero that stand for missing ones."""

    features: Array
    """Whether they do so, for each feature."""
    largest: float


@dataclass(frozen=True, slots=True)
class Boosted:
    """A model whose answers are sums over trees, and what becomes of the sums."""

    trees: Sequence[Tree]
    """In the order in which the library adds them."""
    targets: int
    """Sums for each row."""
    dtype: type[np.floating[Any]]
    """In which the library compares and adds."""
    steps: tuple[Step, ...] = ()
    zeros: Zeros | None = None
    """Values that are missing ones, if any."""
    labels: tuple[Any, ...] | None = None
    """What the answers 0, 1, ... stand for, where they are positions."""


def written(model: Boosted, fed: str, width: int) -> bytes:
    """The graph as ONNX; `fed` is the NumPy type of what it is given, of so many columns."""
    graph = _Graph(model.dtype)
    rows = ROWS if np.dtype(fed) == model.dtype else graph.add("Cast", [ROWS], to=_kind(model.dtype))
    if model.zeros is not None:
        rows = _without_zeros(graph, rows, model.zeros)
    trees = summed(model.trees, rows, "sums", model.targets, model.dtype)
    graph.nodes += trees.nodes
    graph.constants += trees.constants
    answer = "sums"
    for step in model.steps:
        constant = [] if step.constant is None else [graph.constant(step.constant)]
        answer = graph.add(step.kind, [answer, *constant], **step.attributes)
    graph.nodes.append(helper.make_node("Identity", [answer], [ANSWER]))
    whole = {"ArgMax", "Cast"} & {step.kind for step in model.steps}
    given = helper.make_tensor_value_info(ROWS, _kind(fed), [None, width])
    result = helper.make_tensor_value_info(ANSWER, _kind(np.int64 if whole else model.dtype), [None, None])
    whole_graph = helper.make_graph(graph.nodes, "boosted", [given], [result], graph.constants)
    versions = [helper.make_opsetid("", _OPSET), helper.make_opsetid(ML, _ML)]
    return finished(helper.make_model(whole_graph, opset_imports=versions, ir_version=_IR), [ANSWER])


class _Graph:
    """Nodes and constants, with names of their own."""

    def __init__(self, dtype: type[np.floating[Any]]) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._dtype = dtype

    def add(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node; the name of what it gives."""
        name = f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, values: Any) -> str:
        """In the type of the graph, unless they are of no float."""
        array = np.asarray(values)
        name = f"constant_{len(self.constants)}"
        self.constants.append(
            numpy_helper.from_array(array.astype(self._dtype) if array.dtype.kind == "f" else array, name)
        )
        return name


def _without_zeros(graph: _Graph, rows: str, zeros: Zeros) -> str:
    size = graph.add("Abs", [rows])
    small = graph.add("LessOrEqual", [size, graph.constant(zeros.largest)])
    missing = graph.add("And", [small, graph.constant(zeros.features)])
    return graph.add("Where", [missing, graph.constant(np.nan), rows])


def turning(label: Any, dtype: type[np.floating[Any]]) -> float:
    """The largest sum whose probability is still labelled False; `label` is of a probability, which grows with it.

    Just above zero a library's probability is still a half: comparing sums with zero would label such rows otherwise.
    """
    low, high = dtype(0), dtype(1)
    while (middle := dtype(low + (high - low) / 2)) not in (low, high):
        low, high = (low, middle) if label(_probability(middle, dtype)) else (middle, high)
    return float(low)


def _probability(value: Any, dtype: type[np.floating[Any]]) -> Any:
    """By the exponential that the libraries use: NumPy's own is less exact."""
    one = dtype(1)
    return one / (one + dtype(math.exp(-value)))


def _kind(dtype: Any) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
