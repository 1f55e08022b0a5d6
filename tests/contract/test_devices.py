"""How a model is loaded: in no more threads than it was given, whatever it asks for, and without libraries it lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightgbm
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.fixtures.compiling import quiet
from tests.fixtures.models import NUMBERS, PICKLED, Shelf, churned, customers

FRAME = customers(60)

SECONDS = 120


def _saved(shelf: Shelf, name: str, model: Any) -> Path:
    with quiet():
        fitted = model.fit(FRAME[NUMBERS], churned(FRAME))
    return shelf.sklearn(name, fitted, FRAME[NUMBERS], serialization_format=PICKLED)


def _threads(folder: Path, threads: int) -> list[int | None]:
    with quiet():
        from serving.runtime.devices import load  # imports MLflow, which warns of its own types

        model: Any = load(folder, threads).get_raw_model()  # type: ignore[no-untyped-call]
    model = getattr(model, "best_estimator_", model)
    return [value for name, value in model.get_params().items() if name.endswith("n_jobs")]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_that_asks_for_all_cores_gets_its_own(shelf: Shelf) -> None:
    forest = make_pipeline(StandardScaler(), RandomForestClassifier(3, n_jobs=-1))
    found = GridSearchCV(forest, {"standardscaler__with_mean": [True, False]}, cv=2)

    assert _threads(_saved(shelf, "all cores", forest), 1) == [1]
    assert _threads(_saved(shelf, "two cores", forest), 2) == [2]
    assert _threads(_saved(shelf, "all cores, searched", found), 1) == [1]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_only_lightgbm_takes_no_number_for_all_cores(shelf: Shelf) -> None:
    light = make_pipeline(StandardScaler(), lightgbm.LGBMClassifier(n_estimators=3, verbose=-1))

    assert _threads(_saved(shelf, "no number", RandomForestClassifier(3)), 2) == [None]
    assert _threads(_saved(shelf, "one", RandomForestClassifier(3, n_jobs=1)), 2) == [1]
    assert _threads(_saved(shelf, "no number, lightgbm", light), 1) == [1]


LOAD = """
import sys
from pathlib import Path
from serving.runtime.devices import load
load(Path(sys.argv[1]), 1)
print("torch" in sys.modules)
"""


def test_pytorch_is_not_imported_for_other_models(small_forest_model: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", LOAD, str(small_forest_model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)

    assert done.stdout.strip() == "False", done.stderr
