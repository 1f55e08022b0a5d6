"""What the step writes and says: limits that were seen, batching only on evidence, parity or no compiled model."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression

from serving.compiling.building import build
from serving.compiling.conversion import Edge, NotProved
from serving.compiling.drawing import Drawing
from serving.compiling.hints import Hints
from serving.compiling.met_rows import Fitting, Met
from serving.compiling.probing import probe
from serving.compiling.proof import Prover
from serving.runtime.compiled import CompiledModel
from serving.runtime.exchange import Rows
from serving.runtime.plan import Column, Compiled, Feed, Param, Plan, read
from tests.fixtures.compiling import Built, built, quiet
from tests.fixtures.models import CITIES, NUMBERS, PICKLED, PLANS, WORDS, Shelf, churned, customers, spending

FLOAT32_MAX = float(np.finfo(np.float32).max)

SECONDS = 120


def _columns(plan: Plan) -> dict[str, Column]:
    return {column.name: column for column in plan.columns}


def _ran(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.compiling", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def _class(shelf: Shelf, name: str, body: str, example: pd.DataFrame) -> Path:
    """The folder of a custom model whose `predict` has this body; `rows` is a frame, `self.calls` counts from 1."""
    source = shelf.place(f"{name}.py")
    lines = "\n".join(f"        {line}" for line in body.splitlines())
    source.write_text(
        "import time\nimport mlflow\nfrom mlflow.pyfunc.model import PythonModel\n\n"
        "class Model(PythonModel):\n    calls = 0\n"
        f"    def predict(self, context, model_input, params=None):\n"
        f"        rows, self.calls = model_input, self.calls + 1\n{lines}\n\n"
        "mlflow.models.set_model(Model())\n"
    )
    return shelf.pyfunc(name, source, example, [1.5] * len(example))


ONE = pd.DataFrame({"x": [1.5, 2.5], "word": ["a", "b"]})


@pytest.fixture(scope="module")
def light(light_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built(light_model, tmp_path_factory.mktemp("light"))


@pytest.fixture(scope="module")
def strict(strict_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built(strict_model, tmp_path_factory.mktemp("strict"))


def test_the_step_says_in_one_line_that_the_compiled_path_is_on(light_model: Path, tmp_path: Path) -> None:
    done = _ran(light_model, tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The compiled path is on: ")
    assert done.stdout.count("\n") == 1
    assert CompiledModel(tmp_path, read(tmp_path)).covers is not None


def test_a_model_that_prints_does_not_spoil_the_line(echo_model: Path, tmp_path: Path) -> None:
    done = _ran(echo_model, tmp_path)

    assert done.stdout.startswith("The compiled path is off: nothing converts")
    assert done.stdout.count("\n") == 1
    assert "echo 2" in done.stderr


def test_a_model_that_cannot_be_loaded_fails_with_the_reason_last(light_model: Path, tmp_path: Path) -> None:
    done = _ran(tmp_path / "nothing", tmp_path / "out")

    assert done.returncode == 3
    assert "the model cannot be loaded" in done.stderr.splitlines()[-1]


def test_a_model_that_fails_on_its_own_example_is_unusable(shelf: Shelf, tmp_path: Path) -> None:
    folder = _class(shelf, "failing", "if self.calls > 0: raise RuntimeError('a bad day')", ONE)
    done = _ran(folder, tmp_path)

    assert done.returncode == 3
    assert "own input example: RuntimeError: a bad day" in done.stderr.splitlines()[-1]


def test_natively_the_plan_is_written_all_the_same(strict_model: Path, strict: Built, tmp_path: Path) -> None:
    native = built(strict_model, tmp_path, native=True, why="the policy says so")

    assert native.plan == replace(strict.plan, compiled=None, why="the policy says so")
    assert not (tmp_path / "model.onnx").exists()


def test_the_proof_tells_what_was_compared(light: Built) -> None:
    told = json.loads((light.out / "proof.json").read_text())

    assert light.plan.compiled
    assert sum(told["rows"].values()) == light.plan.compiled.rows >= 2000
    assert told["model"] == hashlib.sha256((light.out / "model.onnx").read_bytes()).hexdigest()
    assert told["packages"]["scikit-learn"]


def test_compiling_twice_gives_the_same(light: Built, light_model: Path, tmp_path: Path) -> None:
    assert built(light_model, tmp_path).plan.compiled == replace_digest(light, tmp_path)


def replace_digest(light: Built, folder: Path) -> Compiled:
    """Names in the graph count on within a process, so files differ and all else is the same."""
    assert light.plan.compiled
    return replace(light.plan.compiled, digest=hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest())


def test_what_the_model_refuses_in_numbers_is_in_the_plan(light: Built) -> None:
    columns = _columns(light.plan)

    assert all(not columns[name].nulls and not columns[name].infinite for name in NUMBERS)
    assert all((columns[name].largest or 1e308) > 1e305 for name in NUMBERS)
    assert all(columns[name].nulls and columns[name].categories is None for name in WORDS)


def test_unknown_categories_that_are_refused_are_in_the_plan(strict: Built) -> None:
    columns = _columns(strict.plan)

    assert columns["city"].categories == tuple(CITIES)
    assert columns["plan"].categories == tuple(PLANS)
    assert not columns["plan"].nulls


def test_the_largest_value_of_a_forest_is_that_of_float32(shelf: Shelf, tmp_path: Path) -> None:
    frame = customers(200)[NUMBERS[:3]]
    forest = RandomForestClassifier(3).fit(frame, churned(customers(200)))
    plan = built(shelf.sklearn("bounded", forest, frame, serialization_format=PICKLED), tmp_path).plan

    assert all(not column.infinite for column in plan.columns)
    assert all(column.largest == pytest.approx(FLOAT32_MAX, rel=0.002) for column in plan.columns)


def test_a_model_that_takes_everything_has_no_limits(shelf: Shelf, tmp_path: Path) -> None:
    frame = customers(200)[NUMBERS[:3]]
    model = HistGradientBoostingClassifier(max_iter=3).fit(frame, churned(customers(200)))
    plan = built(shelf.sklearn("tolerant", model, frame, serialization_format=PICKLED), tmp_path).plan

    assert all(column.nulls and column.infinite and column.largest is None for column in plan.columns)


def test_a_limit_needs_every_row_to_be_refused(shelf: Shelf, tmp_path: Path) -> None:
    """Nulls are refused in some rows only: those are the model's own errors."""
    body = (
        "if rows.x.isna().any() and (rows.word == 'a').any(): raise ValueError('no')\nreturn rows.x.fillna(0).tolist()"
    )
    plan = built(_class(shelf, "moody-nulls", body, ONE), tmp_path).plan

    assert _columns(plan)["x"].nulls


def test_a_signature_of_tensors_params_and_outputs_is_described(
    tensor_model: Path, echo_model: Path, tmp_path: Path
) -> None:
    tensor, echo = built(tensor_model, tmp_path / "tensor").plan, built(echo_model, tmp_path / "echo").plan

    assert [(part.name, part.dtype, part.shape) for part in tensor.tensors] == [("", "float64", (-1, 4))]
    assert not tensor.tensors[0].nulls
    assert not tensor.tensors[0].infinite
    assert tensor.compiled
    assert echo.params == (Param("factor", "double", 1.0),)
    assert [part.name for part in echo.outputs] == ["number", "word"]


def test_without_a_signature_nothing_is_tried(unsigned_model: Path, tmp_path: Path) -> None:
    plan = built(unsigned_model, tmp_path).plan

    assert (plan.signature, plan.typed, plan.batching) == (False, False, False)
    assert plan.why == "the model has no signature"


def test_types_that_only_mlflow_parses_leave_the_plan_untyped(shelf: Shelf, tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1.5, 2.5], "list": [[1.0, 2.0], [3.0]]})
    plan = built(_class(shelf, "lists", "return rows.x.tolist()", frame), tmp_path).plan

    assert plan.signature
    assert not plan.typed
    assert "only MLflow parses" in plan.why


@pytest.mark.parametrize(
    ("name", "body", "batching"),
    [
        ("row-by-row", "return (rows.x * 2).tolist()", True),
        ("centred", "return (rows.x - rows.x.mean()).tolist()", False),
        ("counting", "return [float(self.calls)] * len(rows)", False),
        ("one-answer", "return [1.5]", False),
        ("always-the-same", "return [1.5] * len(rows)", False),
        ("one-at-a-time", "assert len(rows) < 3\nreturn rows.x.tolist()", False),
    ],
)
def test_batching_is_allowed_on_evidence_only(
    name: str, body: str, batching: bool, shelf: Shelf, tmp_path: Path
) -> None:
    assert built(_class(shelf, name, body, ONE), tmp_path).plan.batching is batching


def test_a_slow_model_is_not_probed_for_long(shelf: Shelf, tmp_path: Path) -> None:
    slow = built(_class(shelf, "slow", "time.sleep(0.05)\nreturn rows.x.tolist()", ONE), tmp_path, native=True)
    with quiet():
        probed = probe(slow.native(), replace(slow.plan, batching=False), slow.rows(ONE), Hints(), seconds=0.1)

    assert "too slow" in probed.doubt
    assert not probed.plan.batching


def _proved(compiled: Built, broken: Compiled, edges: tuple[Edge, ...], met: Rows | None = None) -> None:
    plan = replace(compiled.plan, compiled=broken)
    drawing = Drawing(plan, compiled.rows(customers(50)[[column.name for column in plan.columns]]), Hints())
    model = CompiledModel(compiled.out, plan)
    with quiet():
        Prover(compiled.native(), model, broken.tolerance, drawing).prove(compiled.rows(customers(20)), edges, met)


def test_thresholds_in_float32_are_caught(shelf: Shelf, tmp_path: Path) -> None:
    """What skl2onnx makes of a forest: right on nearly all rows."""
    frame = customers(300)[NUMBERS[:4]]
    forest = RandomForestClassifier(10, random_state=0).fit(frame, churned(customers(300)))
    how = {"serialization_format": PICKLED, "pyfunc_predict_fn": "predict_proba"}
    result = built(shelf.sklearn("rounded", forest, frame, **how), tmp_path)  # type: ignore[arg-type]
    with quiet():
        options = {id(forest): {"zipmap": False}}
        rounded = convert_sklearn(forest, initial_types=[("rows", FloatTensorType([None, 4]))], options=options)
    broken = _replaced(result, rounded.SerializeToString(), "float32", "probabilities")
    thresholds = np.concatenate([tree.tree_.threshold[tree.tree_.feature == 0] for tree in forest.estimators_])

    with pytest.raises(NotProved, match=r"differs: \[.*\] is answered with \[.*\] for number_0="):
        _proved(result, broken, (Edge("number_0", tuple(thresholds.tolist())),))


def test_what_only_a_row_of_the_data_set_shows_is_caught(shelf: Shelf, tmp_path: Path) -> None:
    """A compiled model that is wrong for one value that nothing in the model tells of."""
    frame = customers(300)[NUMBERS[:2]]
    result = built(shelf.sklearn("one-value", LinearRegression().fit(frame, spending(customers(300))), frame), tmp_path)
    broken = _replaced(result, _wrong_for_12_34(result.out / "model.onnx"), "float64", "answer")
    usual, telling = {"number_0": 1.0, "number_1": 2.0}, {"number_0": 12.34, "number_1": 0.5, "target": 1}

    _proved(result, broken, ())
    _proved(result, broken, (), _met(result, usual).rows)
    with pytest.raises(NotProved, match=r"differs: .* for a row of its data set$"):
        _proved(result, broken, (), _met(result, usual, telling).rows)


def test_rows_that_do_not_fit_the_model_are_left_out(light_model: Path, tmp_path: Path) -> None:
    result = built(light_model, tmp_path)
    (right,) = customers(1, seed=5).assign(target="x").to_dict("records")

    found = _met(result, right, right | {"number_0": None}, right | {"count_0": 4.0}, right | {"count_0": 4.5})
    assert found.rows is not None
    assert found.rows.columns["count_0"].tolist() == [right["count_0"], 4]
    wrong = 'not fitting: 2, the first by column "number_0": expected a number, not null'
    assert found.told == f"2 rows of customers.csv; {wrong}"
    assert "it has no column " in _met(result, {"number_0": 1}).told
    assert _met(result, right | {"number_0": "many"}).rows is None


def test_rows_of_the_data_set_stand_for_an_input_example(shelf: Shelf, tmp_path: Path) -> None:
    """Without either, nothing tells which words the model knows."""
    words = pd.DataFrame({"x": [1.5, 2.5], "word": ["Ulm", "Bonn"]})
    folder = _class(shelf, "knowing", "assert set(rows.word) <= {'Ulm', 'Bonn'}\nreturn rows.x.tolist()", words)
    about = folder / "MLmodel"
    about.write_text(re.sub(r"saved_input_example_info:\n(  .*\n)+", "", about.read_text()))
    rows = [[float(number), word] for number, word in enumerate(["Ulm", "Bonn"] * 200)]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"told": "words.csv", "columns": ["x", "word"], "rows": rows}))

    assert "no rows that it predicts" in built(folder, tmp_path / "without").plan.why
    with quiet():
        build(folder, tmp_path / "with", rows=file)
    assert read(tmp_path / "with").batching


def _met(result: Built, *rows: Mapping[Any, Any]) -> Fitting:
    columns = tuple(rows[0])
    return Met("customers.csv", columns, tuple([row[name] for name in columns] for row in rows)).fitting(result.plan)


def _wrong_for_12_34(file: Path) -> bytes:
    model = onnx.load(file)
    graph = model.graph
    value = onnx.numpy_helper.from_array(np.array([12.34, 0.0]), "value")
    graph.initializer.extend([value, onnx.numpy_helper.from_array(np.array([[1.0], [0.0]]), "first")])
    (put,) = graph.output
    graph.node.extend(
        [
            onnx.helper.make_node("Equal", [graph.input[0].name, "value"], ["same"]),
            onnx.helper.make_node("Cast", ["same"], ["ones"], to=onnx.TensorProto.DOUBLE),
            onnx.helper.make_node("MatMul", ["ones", "first"], ["more"]),
            onnx.helper.make_node("Add", [put.name, "more"], ["answer"]),
        ]
    )
    put.name = "answer"
    return bytes(model.SerializeToString())


def _replaced(result: Built, model: bytes, dtype: str, source: str) -> Compiled:
    """Another compiled model in the place of the proved one."""
    (result.out / "model.onnx").write_bytes(model)
    assert result.plan.compiled
    feeds = (Feed("rows", tuple(column.name for column in result.plan.columns), dtype),)
    results = tuple(replace(part, source=source) for part in result.plan.compiled.results)
    digest = hashlib.sha256(model).hexdigest()
    return replace(result.plan.compiled, digest=digest, feeds=feeds, results=results, tolerance=1e-6)


def test_another_model_type_and_shape_are_caught(shelf: Shelf, tmp_path: Path) -> None:
    whole = customers(200)
    frame = whole[NUMBERS[:2]]
    one, other = (LinearRegression().fit(frame, spending(whole) + shift) for shift in (0.0, 1e-6))
    result = built(shelf.sklearn("one", one, frame), tmp_path / "one")
    another = built(shelf.sklearn("other", other, frame), tmp_path / "other")
    assert result.plan.compiled
    assert another.plan.compiled
    shaped = tuple(replace(part, shape=(1,)) for part in result.plan.compiled.results)
    typed = tuple(replace(part, dtype="float32") for part in result.plan.compiled.results)

    _proved(result, result.plan.compiled, ())
    with pytest.raises(NotProved, match=r"float64\(\d+, 1\) and not float64\(\d+,\)"):
        _proved(result, replace(result.plan.compiled, results=shaped), ())
    with pytest.raises(NotProved, match="float32"):
        _proved(result, replace(result.plan.compiled, results=typed), ())
    with pytest.raises(NotProved, match="the answer is a frame"):
        _proved(result, replace(result.plan.compiled, frame=True), ())
    (result.out / "model.onnx").write_bytes((another.out / "model.onnx").read_bytes())
    with pytest.raises(NotProved, match="is answered with"):
        _proved(result, replace(another.plan.compiled, tolerance=1e-9), ())
