"""What is told of how a model is loaded, held to what MLflow itself refuses once it may not unpickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel
from sklearn.linear_model import LogisticRegression

from serving.runtime.model_files import listed
from serving.unpickling import Loading, loading
from tests.fixtures.models import PICKLED, Shelf

X, Y = np.array([[float(i), 1.0] for i in range(20)]), np.array([0, 1] * 10)


def told(folder: Path) -> Loading:
    return loading(yaml.safe_load((folder / "MLmodel").read_text()), listed(folder))


def refused_by_mlflow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether MLflow would have to unpickle."""
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    try:
        mlflow.pyfunc.load_model(str(folder))
    except MlflowException as error:
        return "MLFLOW_ALLOW_PICKLE_DESERIALIZATION" in str(error)
    return False


class Own(PythonModel):
    def predict(self, context: Any, model_input: list[float], params: dict[str, Any] | None = None) -> list[float]:
        return model_input


def a_scikit_learn_pickle(shelf: Shelf) -> Path:
    return shelf.sklearn("pickled", LogisticRegression().fit(X, Y), X, serialization_format=PICKLED)


def a_class(shelf: Shelf) -> Path:
    mlflow.pyfunc.save_model(str(path := shelf.place("own")), python_model=Own(), pip_requirements=[])
    return path


def a_lightgbm_estimator(shelf: Shelf) -> Path:
    import lightgbm

    estimator = lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(X, Y)
    path = shelf.place("estimator")
    mlflow.lightgbm.save_model(estimator, str(path), serialization_format=PICKLED, pip_requirements=[])
    return path


def a_lightgbm_booster(shelf: Shelf) -> Path:
    import lightgbm

    booster = lightgbm.train({"verbose": -1}, lightgbm.Dataset(X, Y), 2)
    mlflow.lightgbm.save_model(booster, str(path := shelf.place("booster")), pip_requirements=[])
    return path


def an_xgboost_model(shelf: Shelf) -> Path:
    import xgboost

    fitted = xgboost.XGBClassifier(n_estimators=2).fit(X, Y)
    mlflow.xgboost.save_model(fitted, str(path := shelf.place("boosted")), pip_requirements=[])
    return path


def code(shelf: Shelf) -> Path:
    source = Path(__file__).parents[1] / "fixtures" / "moody_model.py"
    mlflow.pyfunc.save_model(str(path := shelf.place("code")), python_model=str(source), pip_requirements=[])
    return path


@pytest.mark.parametrize(
    ("save", "kind", "unpickles"),
    [
        (a_scikit_learn_pickle, "sklearn by cloudpickle", "model.pkl"),
        (a_class, "a Python class by cloudpickle", "python_model.pkl"),
        (a_lightgbm_estimator, "lightgbm by cloudpickle", "model.pkl"),
        (a_lightgbm_booster, "lightgbm", ""),
        (an_xgboost_model, "xgboost", ""),
        (code, "a Python class from its code", ""),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_mlflow_unpickles_what_is_told_and_nothing_else(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, save: Any, kind: str, unpickles: str
) -> None:
    how = told(save(shelf))
    assert (how.kind, how.unpickles) == (kind, unpickles)
    assert refused_by_mlflow(save(shelf), monkeypatch) == bool(unpickles)


def test_what_mlflow_saves_by_itself_is_skops(churn_model: Path) -> None:
    """(MLflow refuses this too, because a model's own list of trusted types is what skops goes by.)"""
    assert told(churn_model) == Loading("sklearn by skops", "", "log it with serialization_format='skops'")


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("form", "unpickles"), [("pickle", "data/model.pth"), ("pt2", "parts of data/model.pt2")])
def test_pytorch_unpickles_either_way(shelf: Shelf, form: str, unpickles: str) -> None:
    import torch

    example = np.ones((2, 2), dtype=np.float32)
    path = shelf.place("torch")
    how: Any = {"serialization_format": form, "input_example": example, "pip_requirements": []}
    mlflow.pytorch.save_model(torch.nn.Linear(2, 1), str(path), **how)
    assert told(path).unpickles == unpickles
