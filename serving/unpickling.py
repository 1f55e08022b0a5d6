"""Whether loading a model unpickles one of its files, which can run any code that the file holds.

Pure. What MLflow does is read from its sources (3.17): the loader module of a model decides, and for some the format
that the model's own ``MLmodel`` names. MLflow calls PyTorch's ``pt2`` safe, but PyTorch unpickles whatever of such an
archive it cannot read otherwise. A loader that is not known here may do anything, and is judged by the names of the
files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

_ALWAYS = frozenset({"dspy", "paddle", "pmdarima", "shap", "statsmodels"})
"""Flavours that MLflow loads from pickles, or by libraries that unpickle, whatever the files are called."""

_NEVER = frozenset({"catboost", "h2o", "onnx", "prophet", "spark", "xgboost"})
"""Flavours with formats of their own. (H2O and Spark load theirs in Java.)"""

_SUFFIXES = frozenset({"ckpt", "cloudpickle", "dill", "joblib", "p", "pickle", "pkl", "pt", "pt2", "pth"})
"""How the names of pickles, and of archives that hold some, usually end, be they compressed."""

_SKOPS = "log it with serialization_format='skops'"
_ONNX = "log it with mlflow.onnx"
_CODE = "log it as code, with the path of a file as python_model"
_OTHER = "log it in a format without pickles"


@dataclass(frozen=True, slots=True)
class Loading:
    """How a model is loaded."""

    kind: str
    """Such as ``sklearn by cloudpickle``."""
    unpickles: str = ""
    """The file that is unpickled, or what is; empty where nothing is."""
    instead: str = _OTHER
    """What whoever makes the model can do."""

    def __str__(self) -> str:
        return f"{self.kind}, which unpickles {self.unpickles}" if self.unpickles else self.kind


def loading(mlmodel: Mapping[str, Any], names: Collection[str]) -> Loading:
    """Of the model whose ``MLmodel`` says so; `names` are the paths of its files, with ``/`` between their parts."""
    flavors = _mapping(mlmodel.get("flavors"))
    python = _mapping(flavors.get("python_function"))
    loader = str(python.get("loader_module", ""))
    flavor = loader.removeprefix("mlflow.")
    own = _mapping(flavors.get(flavor))
    if loader.startswith(("mlflow.pyfunc.model", "mlflow.pyfunc.loaders.")):
        return _own_class(python, names)
    if flavor in ("sklearn", "lightgbm"):
        return _estimator(flavor, own)
    if flavor == "pytorch":
        return _torch(names)
    if loader.startswith("mlflow.") and flavor in _NEVER:
        return Loading(flavor)
    if loader.startswith("mlflow.") and flavor in _ALWAYS:
        return Loading(flavor, _pickled(names) or "what it finds")
    if flavor == "langchain" and not ("model_code_path" in python or "model_code_path" in own):
        return Loading(flavor, _pickled(names) or "what it finds", _CODE)
    return Loading(flavor or "a model without a loader", _pickled(names))


def _own_class(python: Mapping[str, Any], names: Collection[str]) -> Loading:
    """A class of somebody's own: as a pickle, or as code, which may unpickle what lies beside it."""
    if "model_code_path" in python:
        return Loading("a Python class from its code", _pickled(names))
    return Loading("a Python class by cloudpickle", str(python.get("python_model", "python_model.pkl")), _CODE)


def _estimator(flavor: str, own: Mapping[str, Any]) -> Loading:
    """LightGBM's own boosters are text; estimators are what scikit-learn's are."""
    if flavor == "lightgbm" and own.get("model_class", "lightgbm.basic.Booster") == "lightgbm.basic.Booster":
        return Loading(flavor)
    usual = "pickle" if flavor == "sklearn" else "cloudpickle"
    form = str(own.get("serialization_format") or usual)
    file = str(own.get("pickled_model") or own.get("data") or "model.pkl")
    return Loading(f"{flavor} by {form}", "" if form == "skops" else file, _SKOPS)


def _torch(names: Collection[str]) -> Loading:
    """From ``model.pth`` where there is one, as MLflow does."""
    found = sorted(name for name in names if _last(name) in ("model.pth", "model.pt2"))
    whole = next((name for name in found if name.endswith(".pth")), None)
    if whole is not None:
        return Loading("pytorch by pickle", whole, _ONNX)
    return Loading("pytorch by pt2", f"parts of {found[0]}" if found else _pickled(names) or "what it finds", _ONNX)


def _pickled(names: Collection[str]) -> str:
    """The first file that is called like a pickle; empty where none is."""
    return next((name for name in sorted(names) if _is_pickled(_last(name))), "")


def _is_pickled(name: str) -> bool:
    weights = name.endswith(".bin") and name.startswith(("pytorch_model", "training_args"))
    return weights or not _SUFFIXES.isdisjoint(name.lower().split(".")[1:])


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _mapping(told: object) -> Mapping[str, Any]:
    return told if isinstance(told, Mapping) else {}
