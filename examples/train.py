"""Trains versions of ``churn`` and registers them in the MLflow server that MLFLOW_TRACKING_URI names.

They are what a team might hand over: a plain first model, a better second one, a third whose author took an extract
without the smallest region and told the encoder to refuse what it does not know, and a fourth whose author took an
extract in which 1 means that the customer stays. Their own hold-outs come from the same extracts, so nothing that is
measured before they meet real requests is wrong with them.

All name the same requirements, so that one environment serves them all. Each run tells its training
data by ``mlflow.log_input``, and carries hold-out rows with the version's own answers to them as
``promote/reference.parquet``, which is what a drift check compares served requests with.

    MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python -m examples.train v1
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version as installed
from pathlib import Path

import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
from mlflow.data.pandas_dataset import from_pandas
from mlflow.models import infer_signature
from numpy.typing import NDArray
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from examples.customers import RARE_REGION, churn_probability, draw, label

MODEL = "churn"
TRAIN_SEED, HOLD_OUT_SEED = 11, 12
TRAIN_ROWS, HOLD_OUT_ROWS = 8_000, 8_000
REQUIREMENTS = [f"{name}=={installed(name)}" for name in ("mlflow", "numpy", "pandas", "scikit-learn", "skops")]
TRUSTED = ["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"]
"""Type of the boosted trees, which skops loads from a file only where it is told that the file can be trusted."""
FEW_COLUMNS = ["tenure_months", "monthly_charges"]
CATEGORIES = ["contract", "internet_service", "payment_method", "region"]


class Kind(StrEnum):
    """Which of the models to train."""

    SIMPLE = "v1"
    """Logistic regression on tenure and charges."""
    BETTER = "better"
    """Gradient boosting on every column."""
    FAULTY = "faulty"
    """As `BETTER`, trained without one region, and failing when it meets it."""
    REVERSED = "reversed"
    """As `BETTER`, trained on customers who stay instead of those who leave."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A registered version and how good it is on its own hold-out rows."""

    version: int
    run_id: str
    auc: float
    best_auc: float
    """What a model that knows the truth reaches on the same rows."""


def train(kind: Kind, *, data: Path, model: str = MODEL) -> Trained:
    """Train, log and register one version of `model`; takes a few seconds. The extract is kept in folder `data`."""
    rows, hold_out = _extract(kind, TRAIN_ROWS, TRAIN_SEED), _extract(kind, HOLD_OUT_ROWS, HOLD_OUT_SEED)
    pipeline = build(kind).fit(rows, _label(kind, rows, TRAIN_SEED))
    wanted = _label(kind, hold_out, HOLD_OUT_SEED)
    chance = pipeline.predict_proba(hold_out)[:, 1]
    mlflow.set_experiment(model)
    with mlflow.start_run(run_name=f"{model}-{kind}") as run:
        _log_data(rows, data / f"{model}-{kind}.parquet")
        _log_reference(hold_out, pipeline.predict(hold_out))
        auc = float(roc_auc_score(wanted, chance))
        mlflow.log_metrics({"holdout_auc": auc, "holdout_log_loss": float(log_loss(wanted, chance))})
        version = _register(pipeline, rows, model)
    truth = churn_probability(hold_out)
    best = roc_auc_score(wanted, 1 - truth if kind is Kind.REVERSED else truth)
    return Trained(version, run.info.run_id, auc, float(best))


def build(kind: Kind) -> Pipeline:
    """The pipeline of `kind`, not fitted."""
    if kind is Kind.SIMPLE:
        return make_pipeline(
            make_column_transformer((StandardScaler(), FEW_COLUMNS), remainder="drop"), LogisticRegression()
        )
    unknown = "error" if kind is Kind.FAULTY else "ignore"
    return make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown=unknown, sparse_output=False), CATEGORIES), remainder="passthrough"
        ),
        HistGradientBoostingClassifier(max_iter=40, learning_rate=0.15, random_state=0),
    )


def _extract(kind: Kind, n: int, seed: int) -> pd.DataFrame:
    customers = draw(n, seed)
    if kind is Kind.FAULTY:
        customers = customers[customers["region"] != RARE_REGION].reset_index(drop=True)
    return customers


def _label(kind: Kind, customers: pd.DataFrame, seed: int) -> NDArray[np.int64]:
    leaves = label(customers, seed)
    return 1 - leaves if kind is Kind.REVERSED else leaves


def _log_data(rows: pd.DataFrame, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(file, index=False)
    mlflow.log_input(from_pandas(rows, source=str(file), name="customers"), context="training")


def _log_reference(rows: pd.DataFrame, answers: NDArray[np.int64]) -> None:
    """Rows and answers under the names that they have in the prediction log."""
    named = rows.add_prefix("input.").assign(**{"output.prediction": answers})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "reference.parquet")
        named.to_parquet(file, index=False)
        mlflow.log_artifact(str(file), "promote")


def _register(pipeline: Pipeline, rows: pd.DataFrame, model: str) -> int:
    answers: NDArray[np.int64] = pipeline.predict(rows)
    info = mlflow.sklearn.log_model(
        pipeline,
        name="model",
        signature=infer_signature(rows, answers),
        input_example=rows.head(5),
        pip_requirements=REQUIREMENTS,
        skops_trusted_types=TRUSTED,
        registered_model_name=model,
        await_registration_for=60,
    )
    return int(info.registered_model_version)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and register one version of a churn model.")
    parser.add_argument("kind", type=Kind, choices=list(Kind))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PROMOTE_HOME", ".promote")) / "data")
    wanted = parser.parse_args()
    trained = train(wanted.kind, data=wanted.data.absolute(), model=wanted.model)
    print(f"{wanted.model} {trained.version}: AUC {trained.auc:.3f}, best possible {trained.best_auc:.3f}")


if __name__ == "__main__":
    main()
