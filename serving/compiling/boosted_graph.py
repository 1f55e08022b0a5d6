"""What readers of boosting libraries' models hand back, and the ONNX graph that it becomes: trees, then a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

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
class Boosted:
    """A model whose answers are sums over trees, and what becomes of the sums."""

    trees: Sequence[Tree]
    """In the order in which the library adds them."""
    targets: int
    """Sums for each row."""
    dtype: type[np.floating[Any]]
    """In which the library compares and adds."""
    steps: tuple[Step, ...] = ()
    labels: tuple[Any, ...] | None = None
    """What the answers 0, 1, ... stand for, where they are positions."""


def written(model: Boosted, fed: str, width: int) -> bytes:
    """The graph as ONNX; `fed` is the NumPy type of what it is given, of so many columns."""
    source = ROWS if np.dtype(fed) == model.dtype else "exact"
    cast = helper.make_node("Cast", [ROWS], ["exact"], to=_kind(model.dtype))
    trees = summed(model.trees, source, "sums", model.targets, model.dtype)
    nodes, constants = [*([] if source == ROWS else [cast]), *trees.nodes], list(trees.constants)
    for position, step in enumerate((*model.steps, Step("Identity"))):
        inputs = [nodes[-1].output[0]]
        if step.constant is not None:
            inputs.append(f"constant_{position}")
            constants.append(numpy_helper.from_array(np.array(step.constant, model.dtype), inputs[1]))
        output = ANSWER if position == len(model.steps) else f"step_{position}"
        nodes.append(helper.make_node(step.kind, inputs, [output], **step.attributes))
    answer = helper.make_tensor_value_info(ANSWER, _answered(model), [None, None])
    given = helper.make_tensor_value_info(ROWS, _kind(np.dtype(fed)), [None, width])
    graph = helper.make_graph(nodes, "boosted", [given], [answer], constants)
    versions = [helper.make_opsetid("", _OPSET), helper.make_opsetid(ML, _ML)]
    return finished(helper.make_model(graph, opset_imports=versions, ir_version=_IR), [ANSWER])


def turning(label: Any, dtype: type[np.floating[Any]], scale: float = 1.0) -> float:
    """The largest sum whose probability is still labelled False; `label` is of a probability, which grows with it.

    Just above zero a library's probability is still a half: comparing sums with zero would label such rows otherwise.
    """
    low, high = dtype(0), dtype(1) / dtype(scale)
    while (middle := dtype(low + (high - low) / 2)) not in (low, high):
        low, high = (low, middle) if label(_probability(middle, dtype, scale)) else (middle, high)
    return float(low)


def _probability(value: Any, dtype: type[np.floating[Any]], scale: float) -> Any:
    one = dtype(1)
    return one / (one + np.exp(-dtype(scale) * value, dtype=dtype))


def _answered(model: Boosted) -> int:
    whole = {"ArgMax", "Cast"} & {step.kind for step in model.steps}
    return int(TensorProto.INT64) if whole else _kind(np.dtype(model.dtype))


def _kind(dtype: Any) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def missing_as_zero(threshold: Array) -> Array:
    """Whether NaN goes left where a library takes it for zero."""
    return np.asarray(threshold >= 0)
