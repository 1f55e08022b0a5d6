"""Models of PyTorch on a device that stands in for a GPU, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.runtime.exchange import Predictions, Rows
from serving.runtime.plan import Plan, Tensor
from serving.runtime.settings import Device
from tests.fixtures.compiling import quiet
from tests.fixtures.models import Shelf
from tests.fixtures.networks import layers, matrix, saved
from tests.fixtures.pools import driven

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
torch = pytest.importorskip("torch", reason="PyTorch is not in this environment")

PLAN = Plan("pytorch", signature=True, tensors=(Tensor("", "float32", (-1, 10)),), batching=True)

MOST_ROWS = 64


class Full(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Doubles, on a device that has no memory for more rows."""

    def forward(self, rows: Any) -> Any:
        if len(rows) > MOST_ROWS:
            raise torch.OutOfMemoryError("the device is full")
        return rows * 2


@dataclass(frozen=True, slots=True)
class Place:
    """A device, and the environment in which processes have it and MLflow takes it."""

    name: str
    environment: dict[str, str]


STANDIN = {
    "PYTHONPATH": str(Path(__file__).parents[1] / "fixtures" / "standin"),
    "MLFLOW_DEFAULT_PREDICTION_DEVICE": "standin",
}


@pytest.fixture(params=[Place("standin:0", STANDIN), Place("cuda:0", {})], ids=["stand-in", "GPU"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Each device in turn, for the model processes that a test starts."""
    found: Place = request.param
    if found.name == "cuda:0" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


def asked(rows: int, seed: int) -> Rows:
    return Rows({"": matrix(rows, seed)}, rows)


def test_a_module_answers_from_its_device_as_from_the_cpu_also_in_batches(
    place: Place, shelf: Shelf, capfd: pytest.CaptureFixture[str]
) -> None:
    module = layers()
    folder = saved(shelf, "placed", module, matrix(5, 0))
    asks = [asked(1 + number % 3, number) for number in range(60)]
    with driven(folder, PLAN) as pool:
        assert pool.pool.health().device == place.name
        answers = pool.outcomes(asks)
        assert max(requests for requests, _ in pool.figures.batches) > 5
    for ask, answer in zip(asks, answers, strict=True):
        assert isinstance(answer, Predictions), answer
        with torch.inference_mode():
            expected = module(torch.from_numpy(ask.columns[""])).numpy()
        assert np.allclose(answer.columns[""], expected, atol=1e-5)
    unlocked = "from ordinary memory" in capfd.readouterr().err
    assert unlocked == (place.environment == STANDIN), "the stand-in has no page-locked memory"


@pytest.mark.usefixtures("place")
def test_batches_are_no_larger_than_the_device_can_hold(shelf: Shelf, capfd: pytest.CaptureFixture[str]) -> None:
    folder = saved(shelf, "full", Full(), matrix(5, 0))
    with driven(folder, PLAN, budget=60.0) as pool:
        answers = pool.outcomes([asked(3, number) for number in range(200)])
        assert all(isinstance(answer, Predictions) for answer in answers)
        assert MOST_ROWS // 2 < max(rows for _, rows in pool.figures.batches) <= MOST_ROWS
    assert f"a batch has {MOST_ROWS} rows at most on " in capfd.readouterr().err


@pytest.mark.usefixtures("place")
def test_the_cpu_is_taken_where_it_is_asked_for(shelf: Shelf) -> None:
    with driven(saved(shelf, "here", layers(), matrix(5, 0)), PLAN, device=Device.CPU) as pool:
        assert pool.pool.health().device == "cpu"
        assert isinstance(pool.ask(asked(1, 0)), Predictions)


def test_a_gpu_that_is_asked_for_and_not_there_is_told(shelf: Shelf) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    folder = saved(shelf, "nowhere", layers(), matrix(5, 0))
    with driven(folder, PLAN, device=Device.GPU) as pool:
        assert pool.pool.health().ready
        assert pool.pool.health().trouble.startswith("a GPU is asked for (DEVICE=gpu) and PyTorch sees none")
        assert isinstance(pool.ask(asked(1, 0)), Predictions)


PREDICT = """
import sys, numpy
from pathlib import Path
from serving.runtime.devices import device_of, load
from serving.runtime.settings import Device
model = load(Path(sys.argv[1]), 1, Device.AUTO)
print(device_of(model), model.predict(numpy.ones((2, 10), numpy.float32)).shape)
"""


def told(folder: Path, environment: dict[str, str]) -> list[str]:
    """The device of a model, and the shape of an answer."""
    done = _run(PREDICT, folder, environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def _run(program: str, path: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", program, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_a_program_that_was_exported_on_the_cpu_is_moved(place: Place, shelf: Shelf) -> None:
    folder = saved(shelf, "program", layers(), matrix(5, 0), None)

    assert told(folder, place.environment) == [place.name, "(2,", "3)"]
    assert told(folder, {"MLFLOW_DEFAULT_PREDICTION_DEVICE": "cpu"}) == ["cpu", "(2,", "3)"]


@pytest.mark.parametrize("kind", ["program", "script"])
def test_what_was_exported_on_a_gpu_is_served_without_one(kind: str, shelf: Shelf) -> None:
    """Such a file is made here by writing a GPU's name over the CPU's wherever the file says where its numbers were."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with quiet():
        module = layers() if kind == "program" else torch.jit.trace(layers().eval(), torch.zeros(2, 10))
    folder = saved(shelf, f"{kind} from a GPU", module, matrix(5, 0), None if kind == "program" else "pickle")
    file = next(path for path in (folder / "data").iterdir() if path.name.startswith("model."))
    assert _name_a_gpu(file) > 0
    library = "export" if kind == "program" else "jit"
    assert "CUDA" in _run(f"import sys, torch; torch.{library}.load(sys.argv[1])", file, {}).stderr

    assert told(folder, {}) == ["cpu", "(2,", "3)"]


def _name_a_gpu(file: Path) -> int:
    """How many places there were."""
    names = {
        b'"device": {"type": "cpu", "index": null}': b'"device": {"type": "cuda", "index": 0}',
        b"X\x03\0\0\0cpu": b"X\x06\0\0\0cuda:0",
    }
    with zipfile.ZipFile(file) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    found = 0
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            for cpu, gpu in names.items() if name.endswith((".json", ".pkl")) else ():
                found += content.count(cpu)
                content = content.replace(cpu, gpu)  # noqa: PLW2901
            archive.writestr(name, content)
    return found
