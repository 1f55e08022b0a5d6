"""XGBoost's and LightGBM's models are compiled and then answer as they do themselves, or native with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import lightgbm
import numpy as np
import onnxruntime as ort
import pandas as pd
import pytest
import xgboost

from serving.compiling import lightgbm_models, xgboost_models
from serving.compiling.boosted_graph import Boosted, turning, written
from serving.compiling.comparing import difference
from serving.compiling.tree_arrays import LEAF, Tree, constant, thresholds
from serving.runtime.exchange import Rows
from tests.fixtures.compiling import Built, built, quiet
from tests.fixtures.models import COUNTS, NUMBERS, Shelf, churned, customers, spending
from tests.fixtures.revisions import REQUIREMENTS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

READERS: dict[str, ModuleType] = {"xgboost": xgboost_models, "lightgbm": lightgbm_models}

COLUMNS = [*NUMBERS, *COUNTS]

XGB: dict[str, Any] = {"n_estimators": 12, "n_jobs": 1}
LGB: dict[str, Any] = {"n_estimators": 12, "n_jobs": 1, "verbose": -1}


@dataclass(frozen=True)
class Kind:
    """How to fit a model on a frame and a target, which is whether a customer leaves by default."""

    fit: Callable[[pd.DataFrame, Any], Any]
    target: str = "leaves"
    holes: bool = True
    """Whether some numbers are missing."""

    def frame(self, rows: int, seed: int) -> pd.DataFrame:
        frame = customers(rows, seed)[COLUMNS]
        frame.loc[frame.index[::9], "number_3"] = 0.0
        if self.holes:
            frame.loc[frame.index[::7], "number_1"] = np.nan
            frame.loc[frame.index[::5], "number_2"] = np.nan
        return frame

    def save(self, shelf: Shelf, name: str) -> Path:
        frame = self.frame(400, 0)
        with quiet():
            model = self.fit(frame, _targets(customers(400))[self.target])
        return _saved(shelf, name, model, frame)


def _saved(shelf: Shelf, name: str, model: Any, example: Any) -> Path:
    folder = shelf.place(name)
    with quiet():
        import mlflow.lightgbm
        import mlflow.xgboost
        from mlflow.models import infer_signature

        flavor = mlflow.xgboost if type(model).__module__.startswith("xgboost") else mlflow.lightgbm
        given = xgboost.DMatrix(example) if isinstance(model, xgboost.Booster) else example
        flavor.save_model(
            model,
            str(folder),
            signature=infer_signature(example, model.predict(given)),
            input_example=example[:5],
            pip_requirements=REQUIREMENTS,
        )
    return folder


def _targets(frame: pd.DataFrame) -> dict[str, Any]:
    leaves, amount = churned(frame), spending(frame)
    band = np.digitize(amount, [20, 30, 40])
    return {
        "leaves": leaves,
        "word": np.where(leaves == 1, "léaves", "stays"),
        "band": band,
        "band word": np.array(list("dabc"))[band],
        "amount": amount,
        "positive": np.abs(amount) + 1,
        "two amounts": np.c_[amount, amount**2],
        "count of leaving": leaves * frame["count_0"],
    }


def _boosted(objective: str, **how: Any) -> Callable[[pd.DataFrame, Any], Any]:
    """A booster of XGBoost's own interface."""
    settings = {"objective": objective, "nthread": 1, **how}
    return lambda frame, target: xgboost.train(settings, xgboost.DMatrix(frame, target), 12)


def _light(objective: str, **how: Any) -> Callable[[pd.DataFrame, Any], Any]:
    """A booster of LightGBM's own interface."""
    settings = {"objective": objective, "num_threads": 1, "verbose": -1, **how}
    return lambda frame, target: lightgbm.train(settings, lightgbm.Dataset(frame, target, params=settings), 12)


def _stopping(frame: pd.DataFrame, target: Any) -> Any:
    model = xgboost.XGBRegressor(n_estimators=60, learning_rate=1.0, early_stopping_rounds=2, n_jobs=1)
    model.fit(frame[:300], target[:300], eval_set=[(frame[300:], target[300:])], verbose=False)
    assert model.best_iteration < len(model.get_booster().get_dump()) - 1
    return model


def _stopping_light(frame: pd.DataFrame, target: Any) -> Any:
    model = lightgbm.LGBMRegressor(n_estimators=60, learning_rate=1.0, n_jobs=1, verbose=-1)
    stop = lightgbm.early_stopping(2, verbose=False)
    model.fit(frame[:300], target[:300], eval_set=[(frame[300:], target[300:])], callbacks=[stop])
    assert model.best_iteration_ < 60
    return model


def _categories(**how: Any) -> Callable[[pd.DataFrame, Any], Any]:
    model = lightgbm.LGBMRegressor(**LGB, min_data_per_group=5, cat_smooth=1.0, **how)
    return lambda frame, target: model.fit(frame, target, categorical_feature=COUNTS)


COMPILED = {
    "xgboost classifier": Kind(xgboost.XGBClassifier(**XGB).fit),
    "xgboost classifier, many classes": Kind(xgboost.XGBClassifier(**XGB).fit, "band"),
    "xgboost classifier of labels only": Kind(xgboost.XGBClassifier(**XGB, objective="multi:softmax").fit, "band"),
    "xgboost regressor": Kind(xgboost.XGBRegressor(**XGB).fit, "amount"),
    "xgboost regressor, two targets": Kind(xgboost.XGBRegressor(**XGB).fit, "two amounts"),
    "xgboost regressor without holes": Kind(xgboost.XGBRegressor(**XGB).fit, "amount", holes=False),
    "xgboost regressor that stopped early": Kind(_stopping, "amount"),
    "xgboost forest": Kind(xgboost.XGBRFClassifier(n_estimators=12, n_jobs=1).fit),
    "xgboost booster": Kind(_boosted("binary:logistic")),
    "xgboost booster from a score": Kind(_boosted("binary:logistic", base_score=0.2)),
    "xgboost margins": Kind(_boosted("binary:logitraw")),
    "xgboost hinge": Kind(_boosted("binary:hinge")),
    "xgboost probabilities": Kind(_boosted("multi:softprob", num_class=4), "band"),
    "xgboost numbers of classes": Kind(_boosted("multi:softmax", num_class=4), "band"),
    "xgboost counts": Kind(_boosted("count:poisson"), "count of leaving"),
    "xgboost gamma": Kind(_boosted("reg:gamma"), "positive"),
    "xgboost pruned": Kind(_boosted("reg:squarederror", gamma=200.0, max_depth=8, tree_method="exact"), "amount"),
    "lightgbm classifier": Kind(lightgbm.LGBMClassifier(**LGB).fit),
    "lightgbm classifier, words": Kind(lightgbm.LGBMClassifier(**LGB).fit, "word"),
    "lightgbm classifier, many classes": Kind(lightgbm.LGBMClassifier(**LGB).fit, "band word"),
    "lightgbm classifier, one against all": Kind(lightgbm.LGBMClassifier(**LGB, objective="multiclassova").fit, "band"),
    "lightgbm regressor": Kind(lightgbm.LGBMRegressor(**LGB).fit, "amount"),
    "lightgbm regressor that stopped early": Kind(_stopping_light, "amount"),
    "lightgbm forest": Kind(
        lightgbm.LGBMRegressor(**LGB, boosting_type="rf", subsample=0.7, subsample_freq=1).fit, "amount"
    ),
    "lightgbm dart": Kind(lightgbm.LGBMRegressor(**LGB, boosting_type="dart").fit, "amount"),
    "lightgbm booster": Kind(_light("binary", sigmoid=2.0)),
    "lightgbm probabilities": Kind(_light("multiclass", num_class=4), "band"),
    "lightgbm counts": Kind(_light("poisson"), "count of leaving"),
    "lightgbm without missing values": Kind(_light("regression", use_missing=False), "amount"),
    "lightgbm, zeros are missing values": Kind(_light("regression", zero_as_missing=True), "amount"),
    "lightgbm, no zeros were missing": Kind(_light("regression"), "amount", holes=False),
    "lightgbm categories": Kind(_categories(), "amount"),
    "lightgbm categories, one at a time": Kind(_categories(max_cat_to_onehot=60), "amount"),
}

NATIVE = {
    "xgboost dart": (Kind(_boosted("binary:logistic", booster="dart")), "XGBoost's dart is not converted"),
    "xgboost lines": (Kind(_boosted("binary:logistic", booster="gblinear"), holes=False), "gblinear is not converted"),
    "xgboost ranks": (Kind(_boosted("rank:pairwise")), "objective rank:pairwise is not converted"),
    "xgboost trees of several values": (
        Kind(xgboost.XGBRegressor(**XGB, multi_strategy="multi_output_tree").fit, "two amounts"),
        "several values at a leaf",
    ),
    "lightgbm lines in leaves": (
        Kind(_light("regression", linear_tree=True), "amount", holes=False),
        "a linear model at each leaf",
    ),
    "lightgbm roots": (Kind(_light("regression", reg_sqrt=True), "positive"), "objective regression sqrt"),
}


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_model_answers_fresh_rows_as_the_model_does(name: str, shelf: Shelf, tmp_path: Path) -> None:
    kind = COMPILED[name]
    found = built(kind.save(shelf, name), tmp_path)

    assert found.plan.compiled, found.line
    assert found.plan.compiled.rows >= 2000
    assert found.difference(kind.frame(3000, seed=77)) is None
    assert found.difference(_at_thresholds(found, kind, seed=78)) is None


@pytest.mark.parametrize("name", NATIVE)
def test_what_is_not_compiled_says_why(name: str, shelf: Shelf, tmp_path: Path) -> None:
    kind, why = NATIVE[name]
    found = built(kind.save(shelf, name), tmp_path)

    assert found.plan.compiled is None
    assert why in found.plan.why
    assert "\n" not in found.line


def _at_thresholds(found: Built, kind: Kind, seed: int) -> pd.DataFrame:
    """Rows with thresholds, what is next to them, and what float32 would make the same as them."""
    native = found.native().pyfunc.get_raw_model()
    frame, random = kind.frame(4000, seed), np.random.default_rng(seed)
    for feature, values in thresholds(READERS[found.plan.flavor].read(native).trees).items():
        column = frame.columns[feature]
        if frame[column].dtype == float:
            exact = random.choice(values, 1000).astype(float)
            near = exact.astype(np.float32)
            halves = [(near + np.nextafter(near, side)) / 2.0 for side in (np.float32(-np.inf), np.float32(np.inf))]
            beside = [np.nextafter(part, side) for part in (exact, *halves) for side in (-np.inf, np.inf)]
            candidates = np.concatenate([exact, near, *halves, *beside, [0.0, -0.0, 1e-35, -1e-36, 5e-324]])
            rows = random.choice(len(frame), len(frame) // 2, replace=False)
            frame.loc[rows, column] = random.choice(candidates, len(rows))
    return frame


@pytest.mark.parametrize("library", [xgboost.XGBClassifier, lightgbm.LGBMClassifier])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_a_model_over_a_tensor_is_compiled(library: Any, dtype: str, shelf: Shelf, tmp_path: Path) -> None:
    rows = (customers(400)[NUMBERS].to_numpy() * 2**25).astype(dtype)
    with quiet():
        model = library(n_estimators=5, n_jobs=1).fit(rows, churned(customers(400)))
    found = built(_saved(shelf, f"{library.__name__} over {dtype}", model, rows), tmp_path)
    fresh = Rows({"": (customers(2000, 9)[NUMBERS].to_numpy() * 2**25).astype(dtype)}, 2000)

    assert found.plan.compiled, found.line
    with quiet():
        assert difference(found.native().predict(fresh), found.model().predict(fresh), 0.0) is None


def test_sums_are_equal_to_the_last_bit(shelf: Shelf, tmp_path: Path) -> None:
    """Three hundred trees, so that another order of addition would show."""
    kind = Kind(xgboost.XGBRegressor(n_estimators=300, max_depth=7, n_jobs=1).fit, "amount")
    found = built(kind.save(shelf, "xgboost with many trees"), tmp_path)
    rows = found.rows(kind.frame(3000, seed=5))

    with quiet():
        assert difference(found.native().predict(rows), found.model().predict(rows), 0.0) is None


def test_trees_that_are_one_leaf_stand_anywhere() -> None:
    """Boosting gives them to classes that are done. Roots beside a leaf are there too."""
    left, right = np.array([1, LEAF, 3, LEAF, LEAF]), np.array([2, LEAF, 4, LEAF, LEAF])
    value = np.array([[0.0], [1.0], [0.0], [2.0], [4.0]])
    tree = Tree(np.array([0, 0, 1, 0, 0]), np.array([0.0, 0.0, 0.5, 0.0, 0.0]), left, right, value)
    rows = np.array([[-1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    for trees in ([tree, tree], [constant(100.0), tree, tree], [tree, tree, constant(100.0), tree, constant(1000.0)]):
        session = ort.InferenceSession(
            written(Boosted(trees, 1, np.float64), "float64", 2), providers=["CPUExecutionProvider"]
        )
        start = sum(float(tree.value[0, 0]) for tree in trees if len(tree.left) == 1)
        grown = sum(len(tree.left) > 1 for tree in trees)

        assert session.run(None, {"rows": rows})[0].ravel().tolist() == [start + grown * leaf for leaf in (1, 2, 4)]


def test_fractions_of_categories_are_not_compiled(shelf: Shelf, tmp_path: Path) -> None:
    frame = customers(400)[COLUMNS].astype(float)
    with quiet():
        model = _categories()(frame, spending(customers(400)))
    found = built(_saved(shelf, "fractions", model, frame), tmp_path)

    assert found.plan.compiled is None
    assert "has categories and is not an integer" in found.plan.why


def test_xgboost_sees_a_half_just_above_zero() -> None:
    """Where sums were compared with zero, such rows would get another label."""
    last = np.float32(turning(lambda probability: probability > 0.5, np.float32))
    sums = np.array([0, last, np.nextafter(last, np.float32(1))], np.float32)
    rows = np.zeros((3, 1))
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, [0, 1, 1]), 0)
    probabilities = booster.predict(xgboost.DMatrix(rows, base_margin=sums))

    assert last > 0
    assert (probabilities > 0.5).tolist() == [False, False, True]


def test_lightgbm_sees_a_half_just_above_zero() -> None:
    last = turning(lambda probability: probability > 1 - probability, np.float64)
    labelled = [_probability_of_leaf(leaf) for leaf in (0.0, last, np.nextafter(last, 1))]

    assert last > 0
    assert [probability > 1 - probability for probability in labelled] == [False, False, True]


def _probability_of_leaf(value: float) -> float:
    """By LightGBM, of a tree that is one leaf."""
    data = lightgbm.Dataset(np.zeros((4, 1)), [0, 1, 0, 1])
    text = lightgbm.train({"objective": "binary", "verbose": -1}, data, 1).model_to_string()
    text = re.sub("tree_sizes=.*\n", "", re.sub("leaf_value=.*", f"leaf_value={value:.17g}", text))
    return float(lightgbm.Booster(model_str=text).predict(np.zeros((1, 1)))[0])
