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
from tests.fixtures.models import COUNTS, Shelf
from tests.fixtures.networks import layers, matrix, numbers, saved

pytestmark = [
    pytest.mark.torch,
    # Both libraries warn of their own plans while they load and export.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
torch = pytest.importorskip("torch", reason="PyTorch is not in this environment")


class Branching(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Takes another way where a number is very large, which no ordinary row has."""

    def forward(self, rows: Any) -> Any:
        return rows[:, :1] * 2 if rows.max() < 1e5 else rows[:, :1] * 3


class Centred(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Answers a row in the light of the others."""

    def forward(self, rows: Any) -> Any:
        return rows[:, :1] - rows.mean()


@pytest.fixture(scope="module")
def network(shelf: Shelf) -> Path:
    """Saved in training mode, with the layers that behave differently there."""
    return saved(shelf, "network", layers(), numbers(20, 1))


def test_a_network_over_columns_is_compiled_and_answers_with_the_same_frame(network: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="PyTorch's exporter needs onnxscript")
    found = built(network, tmp_path)
    assert found.plan.compiled, found.line
    assert found.plan.compiled.frame
    assert [result.name for result in found.plan.compiled.results] == ["0", "1", "2"]
    assert found.difference(numbers(2_000, 5)) is None


def test_a_network_over_columns_of_other_kinds_is_compiled(shelf: Shelf, tmp_path: Path) -> None:
    """Counts and flags are numbers to it; one output is a frame of one column."""
    torch.manual_seed(1)
    layers = (torch.nn.Linear(14, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32), torch.nn.ReLU())
    module = torch.nn.Sequential(*layers, torch.nn.Linear(32, 1), torch.nn.Sigmoid())
    found = built(saved(shelf, "mixed", module, _mixed(20, 1)), tmp_path)

    assert found.plan.compiled, found.line
    assert {column.kind for column in found.plan.columns} == {"double", "long", "boolean"}
    assert found.difference(_mixed(2_000, 5)) is None


def _mixed(rows: int, seed: int) -> pd.DataFrame:
    frame, random = numbers(rows, seed), np.random.default_rng(seed)
    counts = {name: random.integers(0, 50, rows) for name in COUNTS}
    flags = {name: random.random(rows) < 0.5 for name in ("new", "active")}
    return frame.assign(**counts, **flags)


@pytest.mark.parametrize("serialization_format", ["pickle", None], ids=["pickle", "mlflow's own choice"])
def test_a_network_over_a_tensor_is_compiled(serialization_format: str | None, shelf: Shelf, tmp_path: Path) -> None:
    """MLflow saves an exported program by default, whose mode cannot be changed any more."""
    name = f"tensor as {serialization_format or 'program'}"
    found = built(saved(shelf, name, layers(), matrix(5, 0), serialization_format), tmp_path)

    assert found.plan.compiled, found.line
    assert not found.plan.compiled.frame
    assert _agrees(found, matrix(500, 3))


@pytest.mark.parametrize("over", ["columns", "tensor"])
def test_torchscript_is_compiled(over: str, shelf: Shelf, tmp_path: Path) -> None:
    example = numbers(5, 0) if over == "columns" else matrix(5, 0)
    with quiet():
        script = torch.jit.trace(layers().eval(), torch.zeros(2, 10))
    found = built(saved(shelf, f"script over {over}", script, example), tmp_path)

    assert found.plan.compiled, found.line
    assert found.difference(numbers(500, 3)) is None if over == "columns" else _agrees(found, matrix(500, 3))


def _agrees(found: Built, rows: np.ndarray[Any, Any]) -> bool:
    from serving.runtime.exchange import Rows

    asked = Rows({found.plan.tensors[0].name: rows}, len(rows))
    with quiet():
        one, other = found.model().predict(asked).columns[""], found.native().predict(asked).columns[""]
    return one.shape == other.shape and one.dtype == other.dtype and bool(np.allclose(one, other, atol=1e-5))


@pytest.mark.parametrize(("module", "why"), [(Branching, "PyTorch cannot export it"), (Centred, "alone and among")])
def test_what_no_graph_can_say_is_served_natively(module: Any, why: str, shelf: Shelf, tmp_path: Path) -> None:
    found = built(saved(shelf, module.__name__, module(), numbers(20, 1)), tmp_path)

    assert found.plan.compiled is None
    assert why in found.plan.why
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
        folder = saved(shelf, "from-gpu", layers(), numbers(20, 1))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["False", "1", "(2,", "3)"], done.stderr
