"""Where a model computes: on the GPU where there is one, else on the CPU, wherever it was saved.

PyTorch is imported only for models that need it. MLflow picks the device; what it leaves out is a model that was saved
on a GPU and is loaded where there is none, and the number of threads.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from mlflow.pyfunc import PyFuncModel, load_model

_BEFORE_CUDA = 5
"""PyTorch asks who knows a storage's device in the order of such numbers; its own for CUDA is 20."""


def load(folder: Path, threads: int) -> PyFuncModel:
    """The model in `folder`, computing with so many threads on a CPU."""
    if "pytorch" in yaml.safe_load((folder / "MLmodel").read_text())["flavors"]:
        _prepare_torch(threads)
    return load_model(str(folder))


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
