"""Every kind of scikit-learn model is either compiled and then answers as it does itself, or native with a reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from tests.fixtures.compiling import built, quiet
from tests.fixtures.models import COUNTS, NUMBERS, PICKLED, WORDS, Shelf, churned, customers, pipeline, spending

PROBABILITIES = "predict_proba"


@dataclass(frozen=True)
class Kind:
    """A model to fit, on which columns, and what it is to find out: by default whether a customer leaves."""

    model: Any
    columns: list[str] = field(default_factory=lambda: NUMBERS)
    target: str = "leaves"
    asked: str = "predict"
    holes: bool = False
    """Whether some numbers are missing."""

    def frame(self, rows: int, seed: int) -> pd.DataFrame:
        frame = customers(rows, seed)[self.columns]
        if self.holes:
            frame.loc[frame.index[::7], "number_1"] = np.nan
            frame.loc[frame.index[::5], "number_2"] = np.nan
        return frame

    def save(self, shelf: Shelf, name: str) -> Path:
        whole, frame = customers(300), self.frame(300, 0)
        with quiet():
            fitted = self.model.fit(frame, _targets(whole)[self.target])
        return shelf.sklearn(name, fitted, frame, pyfunc_predict_fn=self.asked, serialization_format=PICKLED)


def _targets(frame: pd.DataFrame) -> dict[str, Any]:
    leaves, amount = churned(frame), spending(frame)
    band = np.digitize(amount, [20, 30, 40])
    return {
        "leaves": leaves,
        "flag": leaves == 1,
        "word": np.where(leaves == 1, "léaves", "stays"),
        "band": band,
        "band word": np.array(list("abcd"))[band],
        "amount": amount,
        "positive": np.abs(amount),
        "two amounts": np.c_[amount, amount**2],
        "two classes": np.c_[leaves, band],
    }


ALL = [*NUMBERS, *COUNTS, *WORDS]


def _words(encoder: Any, **how: Any) -> ColumnTransformer:
    return ColumnTransformer([("words", encoder, WORDS)], **how)


COMPILED = {
    "logistic": Kind(LogisticRegression()),
    "logistic, probabilities": Kind(LogisticRegression(), asked=PROBABILITIES),
    "logistic, classes are words": Kind(LogisticRegression(), target="band word"),
    "logistic, classes are flags": Kind(LogisticRegression(), target="flag"),
    "linear": Kind(LinearRegression(), target="amount"),
    "linear, two outputs": Kind(LinearRegression(), target="two amounts"),
    "linear on integers": Kind(LinearRegression(), COUNTS, "amount"),
    "ridge in a pipeline": Kind(pipeline(Ridge()), ALL, "amount"),
    "poisson": Kind(PoissonRegressor(), target="positive"),
    "ridge classifier": Kind(RidgeClassifier(), target="band"),
    "linear SVC": Kind(LinearSVC()),
    "network": Kind(pipeline(MLPClassifier((8,), max_iter=30)), ALL, "band", PROBABILITIES),
    "network, regression": Kind(MLPRegressor(max_iter=30), target="amount"),
    "bayes": Kind(GaussianNB(), target="band"),
    "tree": Kind(DecisionTreeClassifier(), target="word"),
    "tree, regression": Kind(DecisionTreeRegressor(), target="amount"),
    "forest in a pipeline": Kind(pipeline(RandomForestClassifier(12)), ALL, "word"),
    "forest, leaves of several classes": Kind(RandomForestClassifier(12, min_samples_leaf=6), asked=PROBABILITIES),
    "forest, many classes": Kind(RandomForestClassifier(12, max_depth=4), target="band", asked=PROBABILITIES),
    "forest with holes": Kind(RandomForestClassifier(12), holes=True),
    "forest, regression": Kind(RandomForestRegressor(12), target="amount"),
    "forest, two outputs": Kind(RandomForestRegressor(12), target="two amounts"),
    "extra trees": Kind(ExtraTreesClassifier(12), asked=PROBABILITIES),
    "extra trees, regression": Kind(ExtraTreesRegressor(12), target="amount"),
    "boosting": Kind(GradientBoostingClassifier(n_estimators=12), asked=PROBABILITIES),
    "boosting, many classes": Kind(GradientBoostingClassifier(n_estimators=6), target="band"),
    "boosting, regression": Kind(GradientBoostingRegressor(n_estimators=12), target="amount"),
    "histograms with holes": Kind(HistGradientBoostingClassifier(max_iter=12), asked=PROBABILITIES, holes=True),
    "histograms, regression": Kind(HistGradientBoostingRegressor(max_iter=12, loss="poisson"), target="positive"),
    "bagging": Kind(BaggingClassifier(n_estimators=4)),
    "voting": Kind(
        VotingClassifier([("a", LogisticRegression()), ("b", RandomForestClassifier(4))], voting="soft"), target="word"
    ),
    "stacking": Kind(StackingClassifier([("a", LogisticRegression()), ("b", RandomForestClassifier(4))], cv=2)),
    "calibrated": Kind(CalibratedClassifierCV(LinearSVC(), cv=2), asked=PROBABILITIES),
    "grid search": Kind(GridSearchCV(pipeline(LogisticRegression()), {"logisticregression__C": [1, 2]}, cv=2), ALL),
    "imputer": Kind(make_pipeline(SimpleImputer(add_indicator=True), LogisticRegression()), holes=True),
    "imputer before a forest": Kind(
        make_pipeline(SimpleImputer(strategy="median"), RandomForestClassifier(8)), holes=True
    ),
    "polynomials": Kind(make_pipeline(StandardScaler(), PolynomialFeatures(2), Ridge()), NUMBERS[:4], "amount"),
    "components": Kind(make_pipeline(StandardScaler(), PCA(4), LogisticRegression())),
    "union": Kind(make_pipeline(FeatureUnion([("a", StandardScaler()), ("b", PCA(3))]), LogisticRegression())),
    "bins": Kind(make_pipeline(KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf"), LogisticRegression())),
    "binarizer": Kind(make_pipeline(Binarizer(threshold=0.25), LogisticRegression())),
    "function": Kind(make_pipeline(FunctionTransformer(np.abs), Ridge()), target="amount"),
    "ranges": Kind(make_pipeline(MinMaxScaler(clip=True), LogisticRegression())),
    "quartiles before a forest": Kind(make_pipeline(RobustScaler(), RandomForestRegressor(8)), target="amount"),
    "ordinal": Kind(
        make_pipeline(
            _words(OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), remainder="passthrough"),
            RandomForestClassifier(8),
        ),
        ALL,
    ),
    "means of the target": Kind(make_pipeline(_words(TargetEncoder(cv=2)), Ridge()), WORDS, "amount"),
    "dropped category": Kind(
        make_pipeline(_words(OneHotEncoder(drop="first"), remainder=StandardScaler()), Ridge()), ALL, "amount"
    ),
    "rare categories": Kind(
        pipeline(LogisticRegression()).set_params(
            columntransformer__words=OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=80)
        ),
        ALL,
    ),
    "counts are categories": Kind(
        make_pipeline(
            ColumnTransformer([("all", OneHotEncoder(handle_unknown="ignore"), ["count_0", *WORDS])]),
            LogisticRegression(),
        ),
        ALL,
    ),
    "words only": Kind(make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression()), WORDS),
}

NATIVE = {
    "support vectors": (Kind(SVC()), "computed in float32"),
    "isolation forest": (Kind(IsolationForest(n_estimators=5)), "cannot be converted"),
    "several classes at once": (Kind(RandomForestClassifier(4), target="two classes"), "several outputs"),
    "text": (
        Kind(make_pipeline(ColumnTransformer([("t", TfidfVectorizer(), "city")]), LogisticRegression()), ["city"]),
        "does not end in an encoder",
    ),
    "infinite powers": (Kind(make_pipeline(PowerTransformer(), LogisticRegression())), "cannot be converted"),
    "distances": (Kind(KMeans(3, n_init=1, random_state=0)), "the compiled model differs"),
    "logarithms": (Kind(LogisticRegression(), asked="predict_log_proba"), "predict_log_proba"),
    "another function": (Kind(make_pipeline(FunctionTransformer(np.tan), Ridge()), target="amount"), "tan"),
}


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_model_answers_fresh_rows_as_the_model_does(name: str, shelf: Shelf, tmp_path: Path) -> None:
    kind = COMPILED[name]
    result = built(kind.save(shelf, f"compiled {name}"), tmp_path)

    assert result.plan.compiled, result.line
    assert result.plan.compiled.rows >= 2000
    assert result.difference(kind.frame(3000, seed=77)) is None
    assert result.difference(_at_thresholds(kind, seed=78)) is None


@pytest.mark.parametrize("name", NATIVE)
def test_what_is_not_compiled_says_why(name: str, shelf: Shelf, tmp_path: Path) -> None:
    kind, why = NATIVE[name]
    result = built(kind.save(shelf, f"native {name}"), tmp_path)

    assert result.plan.compiled is None
    assert why in result.plan.why
    assert not (tmp_path / "model.onnx").exists()
    assert "\n" not in result.line


def _at_thresholds(kind: Kind, seed: int) -> pd.DataFrame:
    """Rows with thresholds of the model's trees, or next to them, where its trees are right on its columns."""
    frame, random = kind.frame(2000, seed), np.random.default_rng(seed)
    for tree in _trees(kind.model):
        inner = np.flatnonzero((tree.children_left >= 0) & np.isfinite(tree.threshold))
        if len(inner) and tree.n_features == len(frame.columns):
            for node in random.choice(inner, 30):
                column = frame.columns[tree.feature[node]]
                rows = random.integers(0, len(frame), 3)
                beside = np.nextafter(tree.threshold[node], [-np.inf, np.inf])
                if frame[column].dtype == float:
                    frame.iloc[rows, frame.columns.get_loc(column)] = [tree.threshold[node], *beside]
    return frame


def _trees(model: Any) -> list[Any]:
    if hasattr(model, "tree_"):
        return [model.tree_]
    parts = getattr(model, "estimators_", [])
    return [tree for part in (parts.ravel() if isinstance(parts, np.ndarray) else parts) for tree in _trees(part)]
