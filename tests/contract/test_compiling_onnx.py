"""Models that are ONNX already are served as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.fixtures.compiling import built, quiet
from tests.fixtures.models import NUMBERS, Shelf
from tests.fixtures.revisions import REQUIREMENTS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _model(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], **constants: Any) -> Any:
    """Inputs and outputs by name, with their type and shape."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, *part) for name, part in inputs.items()],
        [helper.make_tensor_value_info(name, *part) for name, part in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def _linear() -> Any:
    """Ten numbers to one."""
    return _model(
        [helper.make_node("MatMul", ["numbers", "weights"], ["score"])],
        {"numbers": (TensorProto.FLOAT, [None, 10])},
        {"score": (TensorProto.FLOAT, [None, 1])},
        weights=np.arange(10, dtype=np.float32).reshape(10, 1),
    )


def _of_columns() -> Any:
    """A number, a count and a word to their product, and whether the word is ``gold``."""
    return _model(
        [
            helper.make_node("Cast", ["count"], ["exact"], to=TensorProto.DOUBLE),
            helper.make_node("Mul", ["exact", "number"], ["product"]),
            helper.make_node("Equal", ["plan", "gold"], ["golden"]),
        ],
        {
            "plan": (TensorProto.STRING, [None]),
            "count": (TensorProto.INT64, [None]),
            "number": (TensorProto.DOUBLE, [None]),
        },
        {"product": (TensorProto.DOUBLE, [None]), "golden": (TensorProto.BOOL, [None])},
        gold=np.array(["gold"], object),
    )


def _saved(shelf: Shelf, name: str, model: Any, example: Any, answers: Any) -> Path:
    folder = shelf.place(name)
    with quiet():
        import mlflow.onnx
        from mlflow.models import infer_signature

        mlflow.onnx.save_model(
            model,
            str(folder),
            signature=infer_signature(example, answers),
            input_example=example,
            pip_requirements=REQUIREMENTS,
        )
    return folder


def _numbers(rows: int, seed: int) -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(seed).normal(size=(rows, 10)), columns=NUMBERS)


def _orders(rows: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    words = random.choice(["gold", "silver", "Gold", ""], rows).astype(object)
    return pd.DataFrame(
        {"number": random.normal(size=rows), "plan": words, "count": random.integers(-(2**40), 2**40, rows)}
    )


def test_columns_go_in_as_one_matrix_and_a_frame_comes_out(shelf: Shelf, tmp_path: Path) -> None:
    answers = pd.DataFrame({"score": np.zeros(20, np.float32)})
    found = built(_saved(shelf, "onnx-columns", _linear(), _numbers(20, 0), answers), tmp_path)

    assert found.plan.compiled, found.line
    assert found.difference(_numbers(2_000, 7)) is None


def test_inputs_of_their_own_are_the_columns_of_their_name(shelf: Shelf, tmp_path: Path) -> None:
    answers = pd.DataFrame({"product": np.zeros(20), "golden": np.zeros(20, bool)})
    found = built(_saved(shelf, "onnx-inputs", _of_columns(), _orders(20, 0), answers), tmp_path)

    assert found.plan.compiled, found.line
    assert [result.dtype for result in found.plan.compiled.results] == ["float64", "bool"]
    assert found.difference(_orders(2_000, 7)) is None


def test_a_tensor_is_answered_with_a_mapping_and_so_natively(shelf: Shelf, tmp_path: Path) -> None:
    rows = _numbers(20, 0).to_numpy(np.float32)
    found = built(_saved(shelf, "onnx-tensor", _linear(), rows, {"score": np.zeros((20, 1), np.float32)}), tmp_path)

    assert found.plan.compiled is None
    assert "\n" not in found.line
    assert "compared" in found.line
