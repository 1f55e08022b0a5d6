"""What the peers that take a class of one's own are given: the model itself, without MLflow's checks around it.

Rows come as lists of values in the order of the signature's columns.
"""

from pathlib import Path
from typing import Any

import pandas as pd


class Predictor:
    """A scikit-learn pipeline or a PyTorch module that was saved with MLflow."""

    def __init__(self, folder: str) -> None:
        names = (Path(folder) / "columns.txt").read_text().split(",")
        self._columns = names
        if (Path(folder) / "data" / "model.pth").exists() or "torch" in (Path(folder) / "MLmodel").read_text():
            self._predict = _torch(folder)
        else:
            import mlflow.sklearn

            model = mlflow.sklearn.load_model(folder)
            self._predict = lambda rows: model.predict(pd.DataFrame(rows, columns=self._columns))

    def predict(self, rows: list[list[Any]]) -> Any:
        return self._predict(rows)


def _torch(folder: str) -> Any:
    import mlflow.pytorch
    import torch

    torch.set_num_threads(1)
    model = mlflow.pytorch.load_model(folder).eval()

    def predict(rows: list[list[Any]]) -> Any:
        with torch.inference_mode():
            return model(torch.tensor(rows, dtype=torch.float32)).numpy()

    return predict
