"""How converters of single scikit-learn steps add their nodes to the graph that skl2onnx builds."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from skl2onnx.common.data_types import DoubleTensorType

from serving.compiling.trees import Tree, summed
from serving.runtime.exchange import Array

_numbers = count()


ROUNDED = "rounded_as_the_model_does"
"""In the names of values that are float32 in the model itself."""


class Writer:
    """Writes one step. Names are unique in the process."""

    def __init__(self, operator: Any, container: Any) -> None:
        self._container, self._prefix = container, f"step_{next(_numbers)}"
        self.inputs = list(operator.inputs)
        self.targets = [output.full_name for output in operator.outputs]

    def name(self, what: str) -> str:
        return f"{self._prefix}_{what}"

    def node(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        """A node with one output, whose name it gives back."""
        self._container.node_domain_version_pair_sets.add((domain, 1 if domain else 13))
        node = helper.make_node(kind, inputs, [output], f"{output}_{kind}", domain=domain, **attributes)
        self._container.nodes.append(node)
        return output

    def step(self, kind: str, inputs: list[str], what: str, domain: str = "", **attributes: Any) -> str:
        """A node whose output only this step uses."""
        return self.node(kind, inputs, self.name(what), domain, **attributes)

    def constant(self, values: Any, what: str) -> str:
        name = self.name(what)
        self._container.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def matrix(self) -> str:
        """All inputs side by side, in double."""
        parts = [part.full_name for part in self.inputs]
        parts = [
            name
            if isinstance(part.type, DoubleTensorType)
            else self.step("Cast", [name], f"input_{position}", to=TensorProto.DOUBLE)
            for position, (name, part) in enumerate(zip(parts, self.inputs, strict=True))
        ]
        return parts[0] if len(parts) == 1 else self.step("Concat", parts, "input", axis=1)

    def sums(self, trees: list[Tree], targets: int, rounded: bool) -> str:
        """(rows, targets) in double; `rounded` where the model rounds its input to float32 first."""
        source = self.matrix()
        if rounded:
            near = self.step("Cast", [source], ROUNDED, to=TensorProto.FLOAT)
            source = self.step("Cast", [near], "exact", to=TensorProto.DOUBLE)
        part = summed(trees, source, self.name("sums"), targets, np.float64, self.name("trees"))
        self._container.nodes.extend(part.nodes)
        self._container.initializers.extend(part.constants)
        self._container.node_domain_version_pair_sets.add(("ai.onnx.ml", 1))
        return self.name("sums")


def write_labels(writer: Writer, classes: Array, scores: str) -> None:
    """The class with the highest of (rows, classes) scores, the first of them where there are several."""
    label = writer.node("ArgMax", [scores], _position(writer, classes), axis=1, keepdims=0)
    _write_names(writer, classes, label)


def write_labels_of_two(writer: Writer, classes: Array, comparison: str, left: str, right: str) -> None:
    """The second class where the comparison of two (rows, 1) holds, else the first."""
    holds = writer.step(comparison, [left, right], "holds")
    flat = writer.step("Reshape", [holds, writer.constant(np.array([-1], np.int64), "flat_shape")], "flat")
    _write_names(writer, classes, writer.node("Cast", [flat], _position(writer, classes), to=TensorProto.INT64))


def _position(writer: Writer, classes: Array) -> str:
    return writer.targets[0] if _counted(classes) else writer.name("position")


def _counted(classes: Array) -> bool:
    """Whether classes are their own positions."""
    return classes.dtype.kind in "biu" and np.array_equal(classes, np.arange(len(classes)))


def _write_names(writer: Writer, classes: Array, positions: str) -> None:
    if _counted(classes):
        return
    labels = classes.astype(np.int64) if classes.dtype.kind in "biuf" else classes.astype(object)
    writer.node("Gather", [writer.constant(labels, "classes"), positions], writer.targets[0])
