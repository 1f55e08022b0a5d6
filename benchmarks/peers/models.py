"""The models that are served: two ordinary scikit-learn pipelines on 14 columns, and a small network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

NUMBERS = tuple(f"number_{i}" for i in range(10))
WORDS = {
    "plan": ("basic", "plus", "premium"),
    "region": tuple("nesw"),
    "device": ("phone", "web"),
    "since": tuple("abcdef"),
}
ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Trained:
    """A saved model, and rows to ask it about that are all different."""

    name: str
    folder: Path
    columns: tuple[str, ...]
    rows: list[list[Any]]


def sklearn_model(name: str, folder: Path) -> Trained:
    """``light``: logistic regression; ``forest``: 200 trees."""
    frame, outcome = _customers(seed=1)
    estimator = LogisticRegression(max_iter=500) if name == "light" else RandomForestClassifier(200, random_state=1)
    before = ColumnTransformer(
        [("numbers", StandardScaler(), list(NUMBERS)), ("words", OneHotEncoder(handle_unknown="ignore"), list(WORDS))]
    )
    model = make_pipeline(before, estimator).fit(frame, outcome)
    signature = infer_signature(frame, model.predict(frame))
    mlflow.sklearn.save_model(
        model, folder, signature=signature, input_example=frame.head(20), serialization_format="cloudpickle"
    )
    return _trained(name, folder, _customers(seed=2)[0])


def network(name: str, folder: Path) -> Trained:
    """A multi-layer perceptron in PyTorch on 14 numbers."""
    import torch

    torch.manual_seed(1)
    layers = torch.nn.Sequential(
        torch.nn.Linear(14, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)
    )
    frame = _numbers(seed=3)
    with torch.inference_mode():
        answers = layers(torch.tensor(frame.to_numpy(), dtype=torch.float32)).numpy()
    signature = infer_signature(frame, pd.DataFrame(answers))
    mlflow.pytorch.save_model(
        layers, folder, signature=signature, input_example=frame.head(20), serialization_format="pickle"
    )
    return _trained(name, folder, _numbers(seed=4))


def _trained(name: str, folder: Path, frame: pd.DataFrame) -> Trained:
    (folder / "columns.txt").write_text(",".join(frame.columns))
    return Trained(name, folder, tuple(frame.columns), frame.head(2_000).to_numpy(dtype=object).tolist())


def _numbers(seed: int) -> pd.DataFrame:
    drawn = np.random.default_rng(seed).normal(size=(ROWS, 14))
    return pd.DataFrame(drawn, columns=[f"number_{i}" for i in range(14)])


def _customers(seed: int) -> tuple[pd.DataFrame, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({name: random.normal(size=ROWS) for name in NUMBERS})
    for name, words in WORDS.items():
        frame[name] = random.choice(words, ROWS)
    leaning = frame["number_0"] + frame["number_1"] * frame["number_2"] + (frame["plan"] == "basic")
    return frame, (leaning + random.normal(size=ROWS) > 0).to_numpy().astype(int)
