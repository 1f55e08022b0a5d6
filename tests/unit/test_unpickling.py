"""Which models are loaded by unpickling, by what their ``MLmodel`` says and how their files are called."""

from __future__ import annotations

from typing import Any

import pytest

from serving.unpickling import Loading, loading

CLASS = "mlflow.pyfunc.model"


def of(loader: str, names: tuple[str, ...] = (), python: dict[str, Any] | None = None, **own: Any) -> Loading:
    flavors = {"python_function": {"loader_module": loader, **(python or {})}, loader.rpartition(".")[2]: own}
    return loading({"flavors": flavors}, ("MLmodel", "requirements.txt", *names))


UNPICKLING = [
    (of("mlflow.sklearn", serialization_format="cloudpickle", pickled_model="model.pkl"), "model.pkl", "skops"),
    (of("mlflow.sklearn", serialization_format="pickle", pickled_model="model.pkl"), "model.pkl", "skops"),
    (of("mlflow.sklearn", pickled_model="model.pkl"), "model.pkl", "skops"),
    (of("mlflow.sklearn", serialization_format="another", pickled_model="model.x"), "model.x", "skops"),
    (of("mlflow.lightgbm", model_class="lightgbm.sklearn.LGBMClassifier", data="model.pkl"), "model.pkl", "skops"),
    (of(CLASS, python={"python_model": "python_model.pkl"}), "python_model.pkl", "as code"),
    (of("mlflow.pyfunc.loaders.chat_model", ("any.bin",), {"python_model": "any.bin"}), "any.bin", "as code"),
    (of(CLASS, ("artifacts/a.joblib",), {"model_code_path": "model.py"}), "artifacts/a.joblib", "without pickles"),
    (of("mlflow.pytorch", ("data/model.pth", "data/pickle_module_info.txt")), "data/model.pth", "mlflow.onnx"),
    (of("mlflow.pytorch", ("data/model.pt2",)), "parts of data/model.pt2", "mlflow.onnx"),
    (of("mlflow.pytorch", ("data/model.pt2", "data/model.pth")), "data/model.pth", "mlflow.onnx"),
    (of("mlflow.pytorch"), "what it finds", "mlflow.onnx"),
    (of("mlflow.tensorflow", ("data/custom_objects.cloudpickle",)), "data/custom_objects.cloudpickle", ""),
    (of("mlflow.statsmodels", ("model.statsmodels",)), "what it finds", ""),
    (of("mlflow.pmdarima", ("model.pmd",)), "what it finds", ""),
    (of("mlflow.langchain", ("model.pkl",)), "model.pkl", "as code"),
    (of("mlflow.dspy", ("data/model.pkl",)), "data/model.pkl", ""),
    (of("mlflow.transformers", ("model/pytorch_model-00001-of-2.bin",)), "model/pytorch_model-00001-of-2.bin", ""),
    (of("prices", ("data/model.PKL.gz",)), "data/model.PKL.gz", ""),
    (of("prices", ("data/weights.pt",)), "data/weights.pt", ""),
    (of("onnx", ("data/weights.pt",)), "data/weights.pt", ""),
]


@pytest.mark.parametrize(("how", "unpickles", "instead"), UNPICKLING)
def test_models_that_are_unpickled(how: Loading, unpickles: str, instead: str) -> None:
    assert how.unpickles == unpickles
    assert instead in how.instead
    assert str(how) == f"{how.kind}, which unpickles {unpickles}"


OTHERS = [
    (of("mlflow.sklearn", serialization_format="skops", pickled_model="model.skops"), "sklearn by skops"),
    (
        of("mlflow.lightgbm", model_class="lightgbm.sklearn.LGBMRegressor", serialization_format="skops"),
        "lightgbm by skops",
    ),
    (of("mlflow.lightgbm", model_class="lightgbm.basic.Booster", serialization_format="skops"), "lightgbm"),
    (of("mlflow.lightgbm", data="model.lgb"), "lightgbm"),
    (of("mlflow.xgboost", ("model.ubj",)), "xgboost"),
    (of("mlflow.onnx", ("model.onnx", "notes.pkl")), "onnx"),
    (of("mlflow.catboost", ("model.cb",)), "catboost"),
    (of(CLASS, ("model.py",), {"model_code_path": "model.py"}), "a Python class from its code"),
    (of("mlflow.pyfunc.loaders.code_model", ("a.py",), {"model_code_path": "a.py"}), "a Python class from its code"),
    (of("mlflow.langchain", ("chain.py",), {"model_code_path": "chain.py"}), "langchain"),
    (of("mlflow.tensorflow", ("data/model/saved_model.pb",)), "tensorflow"),
    (of("mlflow.transformers", ("model/model.safetensors", "model/tokenizer.bin")), "transformers"),
    (of("prices", ("data/prices.json", "code/pickles.py")), "prices"),
]


@pytest.mark.parametrize(("how", "kind"), OTHERS)
def test_models_that_are_not(how: Loading, kind: str) -> None:
    assert (how.kind, how.unpickles) == (kind, "")
    assert str(how) == kind


@pytest.mark.parametrize("mlmodel", [{}, {"flavors": None}, {"flavors": []}, {"flavors": {"python_function": "x"}}])
def test_what_is_no_model_is_judged_by_its_files(mlmodel: dict[str, Any]) -> None:
    assert loading(mlmodel, ["MLmodel"]) == Loading("a model without a loader")
    assert loading(mlmodel, ["MLmodel", "model.pkl"]).unpickles == "model.pkl"
