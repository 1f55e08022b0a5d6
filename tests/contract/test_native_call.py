"""Past MLflow's checks only where they were seen to change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from serving.runtime.exchange import Rows
from serving.stacked_columns import StackedColumns, Stacking
from tests.fixtures.compiling import quiet
from tests.fixtures.models import COUNTS, NUMBERS, WORDS, customers

with quiet():
    import mlflow.pyfunc

    from serving.runtime.native_call import ModelCalls, layout_of


class Watched:
    """A loaded model, and how many of its calls went through MLflow."""

    def __init__(self, folder: Path) -> None:
        self.model = mlflow.pyfunc.load_model(str(folder))
        self.calls = ModelCalls(self.model)
        self.through = 0
        whole: Callable[..., Any] = self.model.predict

        def counted(*args: Any, **told: Any) -> Any:
            self.through += 1
            return whole(*args, **told)

        self.model.predict = counted

    def ask(self, frame: pd.DataFrame) -> list[Any]:
        """The answer to a frame."""
        columns = {str(name): frame[name].to_numpy() for name in frame.columns}
        return list(self.calls.predict(frame, layout_of(columns)))


@pytest.fixture
def light(light_model: Path) -> Watched:
    return Watched(light_model)


def test_the_first_request_of_a_layout_goes_through_mlflow_and_the_next_ones_do_not(light: Watched) -> None:
    frame = customers(50, seed=3)
    parts = [frame.iloc[start : start + 5].reset_index(drop=True) for start in range(0, 50, 5)]
    answers = [answer for part in parts for answer in light.ask(part)]

    assert light.through == 1
    assert answers == list(light.model.predict(frame))


def test_rows_that_mlflow_changes_always_go_through_it(light: Watched) -> None:
    narrow = customers(3).astype(dict.fromkeys(COUNTS, "int32"))
    turned = customers(3)[[*WORDS, *COUNTS, *NUMBERS]]
    more = customers(3).assign(unknown=1.0)
    for frame in (narrow, turned, more):
        before = light.through
        assert [light.ask(frame) for _ in range(3)] == [light.ask(customers(3))] * 3
        assert light.through >= before + 3


def test_what_mlflow_refuses_is_refused_every_time(light: Watched) -> None:
    light.ask(customers(2))
    for _ in range(2):
        with pytest.raises(mlflow.exceptions.MlflowException, match="number_3"):
            light.ask(customers(2).drop(columns="number_3"))


def test_a_model_that_raises_the_first_time_is_not_asked_otherwise_the_next(strict_model: Path) -> None:
    """Its encoder knows no other city; MLflow passes all of them on."""
    watched, strange = Watched(strict_model), customers(2).assign(city="Atlantis")
    for _ in range(2):
        with pytest.raises(ValueError, match="unknown categories"):
            watched.ask(strange)
    assert watched.ask(customers(2)) == list(watched.model.predict(customers(2)))


def test_a_class_of_somebody_s_own_is_always_called_by_mlflow(echo_model: Path) -> None:
    watched, frame = Watched(echo_model), pd.DataFrame({"number": [1.5], "word": ["a"]})
    for _ in range(3):
        watched.calls.predict(frame, "layout")
    assert watched.through == 3


def test_tensors_too(tensor_model: Path) -> None:
    watched, rows = Watched(tensor_model), np.ones((2, 4))
    answers = [watched.calls.predict(rows * number, layout_of({"": rows})).tolist() for number in range(3)]

    assert watched.through == 1
    assert answers == [pytest.approx([10.0 * number] * 2) for number in range(3)]


def test_many_layouts_are_forgotten_and_learned_again(tensor_model: Path) -> None:
    watched, rows = Watched(tensor_model), np.ones((1, 4))
    for layout in range(200):
        assert watched.calls.predict(rows, layout).tolist() == pytest.approx([10.0])
    assert watched.through == 200
    watched.calls.predict(rows, 199)
    assert watched.through == 200


def test_requests_look_alike_by_names_types_and_shapes() -> None:
    def stacked(*names: str, dtype: str = "float64", rows: int = 2) -> StackedColumns:
        return StackedColumns(Stacking(names, [names]), [np.zeros((len(names), rows), dtype)])

    assert layout_of(stacked("a", "b")) == layout_of(stacked("a", "b", rows=7))
    assert layout_of({"": np.zeros((2, 4))}) == layout_of({"": np.zeros((9, 4))})
    different = [
        stacked("a", "b"),
        stacked("b", "a"),
        stacked("a", "b", dtype="float32"),
        stacked("a"),
        dict(stacked("a", "b")),
        dict(stacked("a", "b", dtype="int64")),
        {"": np.zeros((2, 4))},
        {"": np.zeros((2, 5))},
        {"": np.zeros((2, 4), "float32")},
        {"other": np.zeros((2, 4))},
    ]
    assert len({layout_of(columns) for columns in different}) == len(different)


def test_rows_of_one_type_become_the_frame_that_pandas_makes_of_named_columns(light_model: Path) -> None:
    with quiet():
        from serving.runtime.native_model import _frame
    stacking = Stacking(NUMBERS, [NUMBERS])
    array = np.random.default_rng(0).normal(size=(len(NUMBERS), 3))
    columns = StackedColumns(stacking, [array])
    made = _frame(Rows(columns, 3).columns)

    pd.testing.assert_frame_equal(made, pd.DataFrame(dict(columns)))
    made.iloc[:, 0] = 9.0
    made.columns.name = "changed"
    assert array[0, 0] != 9.0
    assert _frame(columns).columns.name is None
