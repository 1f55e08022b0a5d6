"""XGBoost's and LightGBM's models are compiled and answer as they do themselves, or are native with a reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import lightgbm
import mlflow.lightgbm
import mlflow.xgboost
import numpy as np
import pandas as pd
import pytest
import xgboost
from mlflow.models import infer_signature

from serving.compiling.boosted_graph import Boosted
from serving.compiling.lightgbm_models import read as read_lightgbm
from serving.compiling.tree_arrays import thresholds
from serving.compiling.xgboost_models import read as read_xgboost
from tests.fixtures.compiling import Built, built, quiet
from tests.fixtures.models import COUNTS, NUMBERS, Shelf, churned, customers, spending
from tests.fixtures.revisions import REQUIREMENTS

COLUMNS = [*NUMBERS[:4], *COUNTS]
SMALL: dict[str, Any] = {"n_jobs": 1, "n_estimators": 12}
BOOSTER: dict[str, Any] = {"nthread": 1, "max_depth": 4}
LIGHT: dict[str, Any] = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 5}


def table(rows: int, seed: int, holes: bool) -> pd.DataFrame:
    """Numbers and counts; some numbers are missing, some are zero, and one column has float32 only."""
    frame, random = customers(rows, seed)[COLUMNS].astype({"number_3": np.float32}), np.random.default_rng(seed)
    frame.loc[random.random(rows) < 0.2, "number_2"] = 0.0
    if holes:
        frame.loc[random.random(rows) < 0.2, "number_0"] = np.nan
        frame.loc[random.random(rows) < 0.2, "number_3"] = np.nan
    return frame


def target(rows: int, name: str) -> Any:
    """What is learned, for the rows of `table` with seed 0."""
    whole = customers(rows)
    leaves, amount = churned(whole), spending(whole)
    band = np.digitize(amount, [20, 30, 40])
    return {
        "leaves": leaves,
        "word": np.where(leaves == 1, "leaves", "stays"),
        "band": band,
        "band word": np.array(list("abcd"))[band],
        "odd numbers": band * 2 + 1,
        "amount": amount,
        "positive": np.abs(amount) + 0.1,
        "two amounts": np.c_[amount, amount**2],
    }[name]


@dataclass(frozen=True)
class Kind:
    """A model to train: an estimator, or the settings of a booster."""

    model: Any
    target: str = "leaves"
    holes: bool = True
    rounds: int = 12
    data: dict[str, Any] = field(default_factory=dict)
    early: int | None = None
    """After so many rounds without getting better training stops; what was grown since is kept with the model."""

    def trained(self, library: ModuleType, frame: pd.DataFrame) -> Any:
        wanted = target(len(frame), self.target)
        if self.early:
            return self._stopped(library, frame, wanted)
        if not isinstance(self.model, dict):
            return self.model.fit(frame, wanted)
        if library is xgboost:
            matrix = xgboost.DMatrix(frame, wanted, **self.data)
            return xgboost.train(BOOSTER | self.model, matrix, self.rounds)
        return lightgbm.train(LIGHT | self.model, lightgbm.Dataset(frame, wanted, **self.data), self.rounds)

    def _stopped(self, library: ModuleType, frame: pd.DataFrame, wanted: Any) -> Any:
        seen, held = (frame[:200], wanted[:200]), (frame[200:], wanted[200:])
        if not isinstance(self.model, dict):
            model = self.model.set_params(early_stopping_rounds=self.early).fit(*seen, eval_set=[held])
            best = model.best_iteration if library is xgboost else model.best_iteration_
        elif library is xgboost:
            evals = [(xgboost.DMatrix(*held), "held")]
            how: dict[str, Any] = {"evals": evals, "early_stopping_rounds": self.early}
            model = xgboost.train(BOOSTER | self.model, xgboost.DMatrix(*seen), 60, **how)
            best = model.best_iteration
        else:
            settings = LIGHT | self.model | {"early_stopping_round": self.early}
            model = lightgbm.train(settings, lightgbm.Dataset(*seen), 60, [lightgbm.Dataset(*held)])
            best = model.best_iteration
        assert best < 50
        return model

    def save(self, library: ModuleType, shelf: Shelf, name: str) -> Path:
        path, frame = shelf.place(f"{library.__name__} {name}"), table(400, 0, self.holes)
        with quiet():
            model = self.trained(library, frame)
            _saved(library, model, frame, _answers(model, frame), path)
        return path


def _saved(library: ModuleType, model: Any, example: Any, answers: Any, path: Path) -> Path:
    flavor = {xgboost: mlflow.xgboost, lightgbm: mlflow.lightgbm}[library]
    signature = infer_signature(example, answers)
    how = {"signature": signature, "input_example": example[:2], "pip_requirements": REQUIREMENTS}
    flavor.save_model(model, str(path), **how)
    return path


def _answers(model: Any, frame: pd.DataFrame) -> Any:
    return model.predict(xgboost.DMatrix(frame) if isinstance(model, xgboost.Booster) else frame)


XGBOOST = {
    "regressor": Kind(xgboost.XGBRegressor(**SMALL), "amount"),
    "regressor without holes": Kind(xgboost.XGBRegressor(**SMALL), "amount", holes=False),
    "regressor of two amounts": Kind(xgboost.XGBRegressor(**SMALL), "two amounts"),
    "absolute errors": Kind(xgboost.XGBRegressor(**SMALL, objective="reg:absoluteerror"), "amount"),
    "poisson": Kind(xgboost.XGBRegressor(**SMALL, objective="count:poisson"), "positive"),
    "labels": Kind(xgboost.XGBClassifier(**SMALL)),
    "labels from a set start": Kind(xgboost.XGBClassifier(**SMALL, base_score=0.2)),
    "labels of several": Kind(xgboost.XGBClassifier(**SMALL), "band"),
    "forest": Kind(xgboost.XGBRFClassifier(**SMALL)),
    "stopped early": Kind(xgboost.XGBRegressor(n_jobs=1, n_estimators=60, learning_rate=0.8), "amount", early=3),
    "stopped early, several": Kind(
        xgboost.XGBClassifier(n_jobs=1, n_estimators=60, learning_rate=0.8), "band", early=3
    ),
    "zeros are missing until it is saved": Kind(xgboost.XGBRegressor(**SMALL, missing=0.0), "amount", holes=False),
    "booster, stopped early": Kind({"objective": "reg:squarederror", "eta": 0.8}, "amount", early=3),
    "booster, scores": Kind({"objective": "reg:squarederror"}, "amount"),
    "booster, set start": Kind({"objective": "binary:logistic", "base_score": 0.3}),
    "booster, probabilities": Kind({"objective": "binary:logistic"}),
    "booster, sums": Kind({"objective": "binary:logitraw"}),
    "booster, hinge": Kind({"objective": "binary:hinge"}),
    "booster, several": Kind({"objective": "multi:softprob", "num_class": 4}, "band"),
    "booster, label of several": Kind({"objective": "multi:softmax", "num_class": 4}, "band"),
    "booster, gamma": Kind({"objective": "reg:gamma"}, "positive"),
    "booster, leaves by loss": Kind({"grow_policy": "lossguide", "max_leaves": 9, "tree_method": "hist"}, "amount"),
    "booster, pruned": Kind({"gamma": 5.0, "tree_method": "exact"}, "amount"),
    "booster, no split": Kind({"max_depth": 0, "gamma": 1e9}, "amount"),
}

LIGHTGBM = {
    "regressor": Kind(lightgbm.LGBMRegressor(**SMALL, verbose=-1), "amount"),
    "regressor without holes": Kind(lightgbm.LGBMRegressor(**SMALL, verbose=-1), "amount", holes=False),
    "poisson": Kind(lightgbm.LGBMRegressor(**SMALL, verbose=-1, objective="poisson"), "positive"),
    "labels": Kind(lightgbm.LGBMClassifier(**SMALL, verbose=-1)),
    "labels are words": Kind(lightgbm.LGBMClassifier(**SMALL, verbose=-1), "word"),
    "labels of several": Kind(lightgbm.LGBMClassifier(**SMALL, verbose=-1), "odd numbers"),
    "labels of several are words": Kind(lightgbm.LGBMClassifier(**SMALL, verbose=-1), "band word"),
    "zeros are missing": Kind(lightgbm.LGBMRegressor(**SMALL, verbose=-1, zero_as_missing=True), "amount"),
    "nothing is missing": Kind(lightgbm.LGBMRegressor(**SMALL, verbose=-1, use_missing=False), "amount"),
    "stopped early": Kind(lightgbm.LGBMRegressor(n_jobs=1, n_estimators=60, learning_rate=0.8), "amount", early=3),
    "booster, stopped early": Kind({"objective": "multiclass", "num_class": 4, "learning_rate": 0.8}, "band", early=3),
    "booster, scores": Kind({"objective": "regression"}, "amount"),
    "booster, absolute errors": Kind({"objective": "l1"}, "amount"),
    "booster, probabilities": Kind({"objective": "binary"}),
    "booster, steeper": Kind({"objective": "binary", "sigmoid": 1.7}),
    "booster, several": Kind({"objective": "multiclass", "num_class": 4}, "band"),
    "booster, one against all": Kind({"objective": "multiclassova", "num_class": 4}, "band"),
    "booster, forest": Kind({"objective": "binary", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6}),
    "booster, dropped trees": Kind({"objective": "regression", "boosting": "dart"}, "amount"),
    "booster, categories": Kind(
        {"objective": "regression", "min_data_per_group": 5, "cat_smooth": 1},
        "amount",
        data={"categorical_feature": COUNTS},
    ),
    "booster, no split": Kind({"objective": "regression", "min_data_in_leaf": 400}, "amount"),
}

NATIVE = {
    "trees dropped out": (xgboost, Kind({"booster": "dart", "rate_drop": 0.3}, "amount"), "dart"),
    "linear": (xgboost, Kind({"booster": "gblinear"}, "amount", holes=False), "gblinear"),
    "pairs": (xgboost, Kind({"objective": "rank:pairwise"}, "leaves", data={"group": [200, 200]}), "rank:pairwise"),
    "categories": (
        xgboost,
        Kind(
            {"tree_method": "hist", "max_cat_to_onehot": 2},
            "amount",
            data={"feature_types": ["q", "q", "q", "q", "c", "c"], "enable_categorical": True},
        ),
        "splits on categories",
    ),
    "two values at a leaf": (
        xgboost,
        Kind(xgboost.XGBRegressor(**SMALL, multi_strategy="multi_output_tree"), "two amounts"),
        "several values at a leaf",
    ),
    "fractions as categories": (
        lightgbm,
        Kind(
            {"objective": "regression", "min_data_per_group": 5}, "amount", data={"categorical_feature": ["number_2"]}
        ),
        "is not an integer",
    ),
    "trees not all used": (
        lightgbm,
        Kind(lightgbm.LGBMClassifier(**SMALL, verbose=-1, pred_early_stop=True, pred_early_stop_margin=0.1)),
        "the compiled model differs",
    ),
    "linear leaves": (lightgbm, Kind({"objective": "regression", "linear_tree": True}, "amount"), "linear model"),
    "roots": (lightgbm, Kind({"objective": "regression", "reg_sqrt": True}, "positive"), "sqrt"),
    "other entropy": (lightgbm, Kind({"objective": "cross_entropy_lambda"}), "cross_entropy_lambda"),
}


@pytest.mark.parametrize("name", XGBOOST)
def test_xgboost_answers_fresh_rows_as_the_model_does(name: str, shelf: Shelf, tmp_path: Path) -> None:
    folder = XGBOOST[name].save(xgboost, shelf, name)

    _holds(built(folder, tmp_path), read_xgboost(mlflow.xgboost.load_model(str(folder))), 2e-6)


@pytest.mark.parametrize("name", LIGHTGBM)
def test_lightgbm_answers_fresh_rows_as_the_model_does(name: str, shelf: Shelf, tmp_path: Path) -> None:
    folder = LIGHTGBM[name].save(lightgbm, shelf, name)

    _holds(built(folder, tmp_path), read_lightgbm(mlflow.lightgbm.load_model(str(folder))), 1e-9)


@pytest.mark.parametrize("dtype", ["float64", "int64"])
@pytest.mark.parametrize("library", [xgboost, lightgbm], ids=["xgboost", "lightgbm"])
def test_a_tensor_is_answered_as_the_model_does(library: ModuleType, dtype: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(scale=50, size=(2300, 4)).astype(dtype)
    model: Any = xgboost.XGBRegressor(**SMALL) if library is xgboost else lightgbm.LGBMRegressor(**SMALL, verbose=-1)
    with quiet():
        model.fit(rows[:300], rows[:300, 0] * 2.5 + rows[:300, 1])
        folder = _saved(library, model, rows[:300], model.predict(rows[:300]), tmp_path / "model")
    result = built(folder, tmp_path / "plan")

    assert result.plan.compiled, result.line
    assert result.difference(rows[300:]) is None


@pytest.mark.parametrize("library", [xgboost, lightgbm], ids=["xgboost", "lightgbm"])
def test_flags_and_integers_beyond_float32_are_answered_as_the_model_does(library: ModuleType, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    columns = {"flag": random.random(2300) < 0.5, "large": random.integers(2**24, 2**28, 2300)}
    frame = pd.DataFrame(columns | {"small": random.integers(0, 9, 2300).astype(np.int32)})
    model: Any = xgboost.XGBClassifier(**SMALL) if library is xgboost else lightgbm.LGBMClassifier(**SMALL, verbose=-1)
    with quiet():
        model.fit(frame[:300], frame["flag"][:300] ^ (frame["large"][:300] > 2**27))
        folder = _saved(library, model, frame[:300], model.predict(frame[:300]), tmp_path / "model")
    result = built(folder, tmp_path / "plan")

    assert result.plan.compiled, result.line
    assert result.difference(frame[300:]) is None


@pytest.mark.parametrize("name", NATIVE)
def test_what_is_not_compiled_says_why(name: str, shelf: Shelf, tmp_path: Path) -> None:
    library, kind, why = NATIVE[name]
    result = built(kind.save(library, shelf, f"native {name}"), tmp_path)

    assert result.plan.compiled is None
    assert why in result.plan.why
    assert not (tmp_path / "model.onnx").exists()


def _holds(result: Built, model: Boosted, tolerance: float) -> None:
    assert result.plan.compiled, result.line
    assert result.plan.compiled.rows >= 2000
    assert result.plan.compiled.tolerance <= tolerance
    assert [feed.columns for feed in result.plan.compiled.feeds] == [tuple(COLUMNS)]
    assert result.difference(table(2000, 77, holes=_takes_holes(result))) is None
    assert result.difference(_at_thresholds(result, model, 78)) is None


def _takes_holes(result: Built) -> bool:
    return all(column.nulls for column in result.plan.columns if column.name in ("number_0", "number_3"))


def _at_thresholds(result: Built, model: Boosted, seed: int) -> pd.DataFrame:
    """A row for each of up to 60 thresholds of a number, and one for the next values on both sides in its own type."""
    frame, row = table(2000, seed, holes=_takes_holes(result)), 0
    for feature, values in thresholds(model.trees).items():
        column = frame.columns[feature]
        kind = frame[column].dtype
        if kind.kind == "f":
            near = values[:60].astype(kind)
            beside = [np.nextafter(near, kind.type(side)) for side in (-np.inf, np.inf)]
            rounded = [np.nextafter(values[:60].astype(np.float32), np.float32(side)) for side in (-np.inf, np.inf)]
            tried = np.concatenate([near, *beside, *rounded]).astype(kind)
            frame.iloc[row : row + len(tried), feature] = tried[: len(frame) - row]
            row = (row + len(tried)) % 1700
    return frame
