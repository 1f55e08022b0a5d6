"""How a model is loaded to be served: where it computes, and in how many threads.

PyTorch is imported only for models that need it, see `torch_devices`. As for threads, models remember the machine that
they were trained on, or ask for all cores: for a few rows that costs several times what the prediction does, and
processes side by side fight.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mlflow.pyfunc import PyFuncModel, load_model

from serving.runtime.settings import Device

_ESTIMATORS = {"sklearn", "lightgbm"}
"""Flavours whose models remember a number of threads."""


def load(folder: Path, threads: int, device: Device = Device.CPU, number: int = 0) -> PyFuncModel:
    """The model in `folder`; its files stay as they are.

    On a CPU, which is where models are compiled, it computes with so many `threads`; of several GPUs it takes one by
    the `number` of its process.
    """
    _write_no_bytecode(folder)
    flavors = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]
    if "pytorch" in flavors:
        from serving.runtime import torch_devices

        torch_devices.prepare(threads, device, number)
    model = load_model(str(folder))
    if _ESTIMATORS & flavors.keys():
        _limit(model, threads)
    return model


def device_of(model: PyFuncModel) -> str:
    """Where a model of PyTorch computes, such as ``cpu`` or ``cuda:0``; empty for all others, which nobody can ask."""
    if loader_of(model) != "mlflow.pytorch":
        return ""
    from serving.runtime import torch_devices

    return torch_devices.device_of(_native(model))


def loader_of(model: PyFuncModel) -> str:
    """The module that has loaded it, such as ``mlflow.sklearn``. (Models of an older MLflow do not say it.)"""
    return str(model.metadata.flavors["python_function"]["loader_module"])


def _write_no_bytecode(folder: Path) -> None:
    """None from here on where a model has code of its own: beside it would be a file that nobody approved.

    MLflow saves bytecode with such code, made of files with other times: Python would make it again.
    """
    if any(folder.rglob("*.py")):
        sys.dont_write_bytecode = True


def _limit(model: PyFuncModel, threads: int) -> None:
    """No more threads than these, and none more where a model wants one only."""
    for part in _parts(_native(model)):
        if "n_jobs" in part.get_params(deep=False) and not _is_single(part):
            part.set_params(n_jobs=threads)


def _native(model: PyFuncModel) -> Any:
    """The library's own object; None for a class of somebody's own, and where MLflow is too old to tell."""
    try:
        return model.get_raw_model()  # type: ignore[no-untyped-call]
    except (AttributeError, NotImplementedError):
        return None


def _parts(native: Any) -> Iterator[Any]:
    """An estimator with its steps; boosters without estimators have none, and do as their process is told."""
    if hasattr(native, "get_params"):
        found = (native, *native.get_params().values())
        yield from (part for part in found if hasattr(part, "get_params") and not isinstance(part, type))
        yield from _parts(getattr(native, "best_estimator_", None))


def _is_single(part: Any) -> bool:
    """Without a number scikit-learn computes in one thread, and LightGBM in as many as there are cores."""
    return part.n_jobs == 1 or (part.n_jobs is None and not type(part).__module__.startswith("lightgbm"))
