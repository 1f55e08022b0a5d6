"""Where a model computes: on the GPU where there is one, else on the CPU, wherever it was saved; in how many threads.

PyTorch is imported only for models that need it. MLflow picks the device; what it leaves out is a model that was saved
on a GPU and is loaded where there is none. As for threads, models remember the machine that they were trained on, or
ask for all cores: for a few rows that costs several times what the prediction does, and processes side by side fight.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from mlflow.pyfunc import PyFuncModel, load_model

_BEFORE_CUDA = 5
"""PyTorch asks who knows a storage's device in the order of such numbers; its own for CUDA is 20."""

_ESTIMATORS = {"sklearn", "lightgbm"}
"""Flavours whose models remember a number of threads."""


def load(folder: Path, threads: int) -> PyFuncModel:
    """The model in `folder`, computing with so many threads on a CPU; its files stay as they are."""
    _write_no_bytecode(folder)
    flavors = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]
    if "pytorch" in flavors:
        _prepare_torch(threads)
    model = load_model(str(folder))
    if _ESTIMATORS & flavors.keys():
        _limit(model, threads)
    return model


def _write_no_bytecode(folder: Path) -> None:
    """None from here on where a model has code of its own: beside it would be a file that nobody approved.

    MLflow saves bytecode with such code, made of files with other times: Python would make it again.
    """
    if any(folder.rglob("*.py")):
        sys.dont_write_bytecode = True


def _prepare_torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        _take_from_gpu()


@cache
def _take_from_gpu() -> None:
    """Let storages that were on a GPU be read; PyTorch takes each number in its order once."""
    from torch.serialization import register_package

    register_package(_BEFORE_CUDA, lambda _: None, _on_cpu)


def _on_cpu(storage: Any, location: str) -> Any:
    """The storage as it was read, for what was saved on a GPU; None for whatever others know."""
    return storage if location.startswith("cuda") else None


def _limit(model: PyFuncModel, threads: int) -> None:
    """No more threads than these, and none more where a model wants one only."""
    try:
        native = model.get_raw_model()  # type: ignore[no-untyped-call]
    except (AttributeError, NotImplementedError):  # a class of somebody's own, or an MLflow that cannot tell
        return
    for part in _parts(native):
        if "n_jobs" in part.get_params(deep=False) and not _is_single(part):
            part.set_params(n_jobs=threads)


def _parts(native: Any) -> Iterator[Any]:
    """An estimator with its steps; boosters without estimators have none, and do as their process is told."""
    if hasattr(native, "get_params"):
        found = (native, *native.get_params().values())
        yield from (part for part in found if hasattr(part, "get_params") and not isinstance(part, type))
        yield from _parts(getattr(native, "best_estimator_", None))


def _is_single(part: Any) -> bool:
    """Without a number scikit-learn computes in one thread, and LightGBM in as many as there are cores."""
    return part.n_jobs == 1 or (part.n_jobs is None and not type(part).__module__.startswith("lightgbm"))
