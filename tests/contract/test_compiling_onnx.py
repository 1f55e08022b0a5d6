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


def _linear() -> Any:
    """Ten numbers to one."""
    weights = np.arange(10, dtype=np.float32).reshape(10, 1)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["numbers", "weights"], ["score"])],
        "linear",
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, [None, 10])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _saved(shelf: Shelf, name: str, example: Any, answers: Any) -> Path:
    folder = shelf.folder / name
    with quiet():
        import mlflow.onnx
        from mlflow.models import infer_signature

        mlflow.onnx.save_model(
            _linear(),
            str(folder),
            signature=infer_signature(example, answers),
            input_example=example,
            pip_requirements=REQUIREMENTS,
        )
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_columns_go_in_as_one_matrix_and_a_frame_comes_out(shelf: Shelf, tmp_path: Path) -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 10)), columns=NUMBERS)
    answers = pd.DataFrame({"score": np.zeros(20, np.float32)})
    found = built(_saved(shelf, "onnx-columns", frame, answers), tmp_path)
    assert found.plan.compiled, found.line
    fresh = pd.DataFrame(np.random.default_rng(7).normal(size=(2_000, 10)), columns=NUMBERS)
    assert found.difference(fresh) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tensor_is_answered_with_a_mapping_and_so_natively(shelf: Shelf, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)
    found = built(_saved(shelf, "onnx-tensor", rows, {"score": np.zeros((20, 1), np.float32)}), tmp_path)
    assert found.plan.compiled is None
    assert "\n" not in found.line
