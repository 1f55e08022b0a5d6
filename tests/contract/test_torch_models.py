"""PyTorch's modules: compiled and then equal to themselves, or native with a reason; saved on a GPU, served without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.fixtures.compiling import Built, built, quiet
from tests.fixtures.models import NUMBERS, Shelf
from tests.fixtures.revisions import REQUIREMENTS

pytestmark = [
    pytest.mark.torch,
    # Both libraries warn of their own plans while they load and export.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
torch = pytest.importorskip("torch", reason="PyTorch is not in this environment")


def _network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(10, 16),
        torch.nn.BatchNorm1d(16),
        torch.nn.Dropout(0.5),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 3),
    )


class Branching(torch.nn.Module):  # type: ignore[misc, name-defined]
    """What it computes depends on what it is given."""

    def forward(self, rows: Any) -> Any:
        return rows[:, :1] * 2 if rows.sum() > 0 else rows[:, :1] * 3


def _numbers(rows: int, seed: int) -> pd.DataFrame:
    drawn = np.random.default_rng(seed).normal(size=(rows, len(NUMBERS)))
    return pd.DataFrame(drawn, columns=NUMBERS)


def _saved(shelf: Shelf, name: str, module: Any, example: Any) -> Path:
    folder = shelf.folder / f"torch-{name}"
    with quiet():
        import mlflow.pytorch
        from mlflow.models import infer_signature

        with torch.inference_mode():
            rows = example.to_numpy(np.float32) if isinstance(example, pd.DataFrame) else example
            answers = module.eval()(torch.from_numpy(rows)).numpy()
        told = pd.DataFrame(answers) if isinstance(example, pd.DataFrame) else answers
        mlflow.pytorch.save_model(
            module,
            str(folder),
            signature=infer_signature(example, told),
            input_example=example,
            serialization_format="pickle",
            pip_requirements=REQUIREMENTS,
        )
    return folder


@pytest.fixture(scope="module")
def network(shelf: Shelf) -> Path:
    """Saved in training mode, with the layers that behave differently there."""
    return _saved(shelf, "network", _network(), _numbers(20, 1))


def test_a_network_over_columns_is_compiled_and_answers_with_the_same_frame(network: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="PyTorch's exporter needs onnxscript")
    found = built(network, tmp_path)
    assert found.plan.compiled, found.line
    assert found.plan.compiled.frame
    assert [result.name for result in found.plan.compiled.results] == ["0", "1", "2"]
    assert found.difference(_numbers(2_000, 5)) is None


def test_a_network_over_a_tensor_is_compiled(shelf: Shelf, tmp_path: Path) -> None:
    example = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)
    found = built(_saved(shelf, "tensor", _network(), example), tmp_path)
    assert found.plan.compiled, found.line
    assert not found.plan.compiled.frame
    assert _agrees(found, np.random.default_rng(3).normal(size=(500, 10)).astype(np.float32))


def _agrees(found: Built, rows: np.ndarray[Any, Any]) -> bool:
    from serving.runtime.exchange import Rows

    asked = Rows({found.plan.tensors[0].name: rows}, len(rows))
    with quiet():
        one, other = found.model().predict(asked).columns[""], found.native().predict(asked).columns[""]
    return one.shape == other.shape and one.dtype == other.dtype and bool(np.allclose(one, other, atol=1e-5))


def test_a_network_that_depends_on_its_input_is_served_natively(shelf: Shelf, tmp_path: Path) -> None:
    found = built(_saved(shelf, "branching", Branching(), _numbers(20, 1)), tmp_path)
    assert found.plan.compiled is None
    assert "\n" not in found.line


LOAD = """
import sys, numpy, pandas, torch
from pathlib import Path
try:
    torch.load(Path(sys.argv[1]) / "data" / "model.pth", weights_only=False)
except RuntimeError as error:
    print("CUDA" not in str(error))
from serving.runtime.devices import load
model = load(Path(sys.argv[1]), 1)
frame = pandas.DataFrame(numpy.ones((2, 10)), columns=model.metadata.get_input_schema().input_names())
print(torch.get_num_threads(), model.predict(frame).shape)
"""


def test_a_network_saved_on_a_gpu_is_served_without_one(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda _storage: "cuda:0")  # as a GPU's storages have
        folder = _saved(shelf, "from-gpu", _network(), _numbers(20, 1))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["False", "1", "(2,", "3)"], done.stderr
