"""The compiled model at run time: it needs little, refuses what it was not proved on, and survives a fork."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.runtime.compiled import CompiledModel
from serving.runtime.exchange import ModelError, Predictions, Rows
from tests.fixtures.compiling import Built, built
from tests.fixtures.models import customers

MEGABYTE = 2**20

FORK_SECONDS = 30
"""After which a process that hangs is ended."""


@pytest.fixture(scope="module")
def strict(strict_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built(strict_model, tmp_path_factory.mktemp("strict"))


@pytest.fixture(scope="module")
def forest(small_forest_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built(small_forest_model, tmp_path_factory.mktemp("forest"))


def _same(one: Predictions, other: Predictions) -> bool:
    return all(np.array_equal(values, other.columns[name]) for name, values in one.columns.items())


def test_a_file_that_was_not_proved_is_refused(strict: Built, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((strict.out / "model.onnx").read_bytes() + b"\0")

    with pytest.raises(ValueError, match="not the file that was proved"):
        CompiledModel(tmp_path, strict.plan)
    with pytest.raises(ValueError, match="there is no compiled model: too slow"):
        CompiledModel(strict.out, replace(strict.plan, compiled=None, why="too slow"))


def test_it_covers_whole_rows_without_params(strict: Built) -> None:
    model, rows = strict.model(), strict.rows(customers(3))
    less = {name: values for name, values in rows.columns.items() if name != "number_3"}
    unused = {name: values for name, values in rows.columns.items() if name != "count_0"}

    assert model.covers(rows)
    assert model.covers(replace(rows, params={}))
    assert model.covers(replace(rows, columns=unused))
    assert not model.covers(replace(rows, columns=less))
    assert not model.covers(replace(rows, params={"factor": 2.0}))


def test_a_row_answers_alike_alone_and_among_others(forest: Built) -> None:
    model, rows = forest.model(), forest.rows(customers(40, seed=3))
    together = model.predict(rows)
    alone = [model.predict(forest.rows(customers(40, seed=3)[row : row + 1])) for row in range(40)]

    assert together.columns[""].shape == (40, 2)
    assert np.array_equal(together.columns[""], np.concatenate([answer.columns[""] for answer in alone]))


def test_missing_text_is_not_the_text_none(forest: Built) -> None:
    frame = customers(3, seed=4)
    frame["city"] = [None, "None", "nowhere"]

    assert forest.difference(frame) is None


def test_what_it_cannot_do_is_an_error_of_the_model(strict: Built) -> None:
    frame = customers(2)
    frame["city"] = "nowhere"

    with pytest.raises(ModelError, match="the compiled model failed"):
        strict.model().predict(strict.rows(frame))


def test_labels_are_words_as_objects(strict: Built) -> None:
    answer = strict.model().predict(strict.rows(customers(200))).columns[""]

    assert answer.dtype == object
    assert set(answer) == {"leaves", "stays"}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_process_predicts_the_same(threads: int, forest: Built) -> None:
    model, rows = forest.model(threads), forest.rows(customers(500, seed=5))
    wanted = model.predict(rows)

    assert _same(wanted, _in_a_fork(model, rows))
    assert _same(wanted, model.predict(rows))


def _in_a_fork(model: CompiledModel, rows: Rows) -> Predictions:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(FORK_SECONDS)
        try:
            with os.fdopen(writing, "wb") as out:
                out.write(pickle.dumps(model.predict(rows)))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as back:
        answer = pickle.loads(back.read())
    os.waitpid(child, 0)
    assert isinstance(answer, Predictions)
    return answer


_ALONE = """
import sys
from pathlib import Path
import numpy as np
from serving.runtime.compiled import CompiledModel
from serving.runtime.exchange import Rows
from serving.runtime.plan import KINDS, read
folder = Path(sys.argv[1])
plan = read(folder)
model = CompiledModel(folder, plan)
texts = {"city": "Berlin", "plan": "gold"}
columns = {c.name: np.array([texts.get(c.name, 1)], KINDS[c.kind]) for c in plan.columns}
answer = model.predict(Rows(columns, 1))
heavy = [name for name in ("mlflow", "pandas", "sklearn", "scipy", "torch", "onnx") if name in sys.modules]
pages = int(open("/proc/self/statm").read().split()[1])
print(answer.count, heavy, pages * 4096)
"""


def test_it_needs_nothing_of_the_models_library_and_little_memory(strict: Built) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, str(strict.out)], capture_output=True, text=True, timeout=60, check=True
    )
    count, heavy, resident = done.stdout.split()

    assert (count, heavy) == ("1", "[]")
    assert int(resident) < 100 * MEGABYTE
