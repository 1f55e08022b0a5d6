"""Which converter belongs to which MLflow flavour; imported only once the flavour is known, because each is heavy."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from serving.compiling.conversion import Converter, NotConvertible

CONVERTERS = {
    "sklearn": "serving.compiling.sklearn_pipelines",
    "lightgbm": "serving.compiling.boosted",
    "xgboost": "serving.compiling.boosted",
    "pytorch": "serving.compiling.torch_models",
    "onnx": "serving.compiling.onnx_models",
}
"""MLflow's name of a flavour to the module whose ``convert`` takes a `Loaded` and gives a `Conversion`."""


def converter(flavor: str) -> Converter:
    """The converter of `flavor`; `NotConvertible` where there is none, or its packages are not installed."""
    if flavor not in CONVERTERS:
        raise NotConvertible(f"nothing converts models of the flavour {flavor}")
    try:
        return cast("Converter", import_module(CONVERTERS[flavor]).convert)
    except ImportError as error:
        raise NotConvertible(f"a package for converting {flavor} models is missing: {error}") from error
