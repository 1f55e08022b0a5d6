"""Where PyTorch computes: on the GPU where there is one and the server may use it, wherever a model was saved.

MLflow picks the device and moves the module. What it leaves out: files that name a GPU where there is none, and
programs of ``torch.export``, whose device is part of them: it refuses those on any other than they were made on.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from serving.runtime.settings import Device

_BEFORE_CUDA = 5
"""PyTorch asks who knows a storage's device in the order of such numbers; its own for CUDA is 20."""

_CHOSEN = "MLFLOW_DEFAULT_PREDICTION_DEVICE"
"""MLflow's variable for the device; without it, it takes a GPU where there is one."""

_GPU, _CPU = "cuda", "cpu"


def prepare(threads: int, device: Device, number: int) -> None:
    """To be called before a module is loaded: `threads` on a CPU; of several GPUs that of the process `number`."""
    torch.set_num_threads(threads)
    if device is Device.CPU:
        os.environ[_CHOSEN] = _CPU
    if not torch.cuda.is_available():
        _read_without_gpu()
    elif wanted() == _GPU:
        torch.cuda.set_device(number % torch.cuda.device_count())
    if hasattr(torch, "export"):  # since PyTorch 2.1
        _move_programs()


def wanted() -> str:
    """The kind of device that MLflow takes."""
    return os.environ.get(_CHOSEN) or (_GPU if torch.cuda.is_available() else _CPU)


def device_of(module: Any) -> str:
    """Where a module that MLflow has loaded computes, such as ``cuda:0``."""
    weights = module.parameters() if isinstance(module, torch.nn.Module) else iter(())
    first = next(weights, None)
    return wanted() if first is None else str(first.device)


@cache
def _read_without_gpu() -> None:
    """Let storages and TorchScript be read that name a GPU."""
    torch.serialization.register_package(_BEFORE_CUDA, lambda _: None, _on_cpu)
    load: Any = torch.jit.load

    def on_cpu(file: Any, map_location: Any = None, *args: Any, **told: Any) -> Any:
        return load(file, map_location or _CPU, *args, **told)

    torch.jit.load = on_cpu  # type: ignore[assignment]


def _on_cpu(storage: Any, location: str) -> Any:
    """The storage as it was read, for what was saved on a GPU; None for whatever others know."""
    return storage if location.startswith(_GPU) else None


def _for_cpu(file: str | Path) -> str | Path | io.BytesIO:
    """The file of a program; in memory, and without a GPU in its descriptions, where it has one there."""
    with zipfile.ZipFile(file) as archive:
        told = {name: json.loads(archive.read(name)) for name in archive.namelist() if name.endswith(".json")}
        moved = {name: json.dumps(other) for name, about in told.items() if (other := _moved(about)) != about}
        if not moved:
            return file
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as made:
            for part in archive.infolist():
                made.writestr(part, moved.get(part.filename) or archive.read(part))
    copy.seek(0)
    return copy


def _moved(about: Any) -> Any:
    """A description in which every device of a GPU is the CPU."""
    if isinstance(about, list):
        return [_moved(part) for part in about]
    if not isinstance(about, Mapping):
        return about
    if about.keys() == {"type", "index"} and about["type"] == _GPU:
        return {"type": _CPU, "index": None}
    return {name: _moved(part) for name, part in about.items()}


@cache
def _move_programs() -> None:
    """Let programs of ``torch.export`` be read that name a GPU, and be where MLflow wants them."""
    load = torch.export.load

    def moved(file: Any, **told: Any) -> Any:
        readable = file if torch.cuda.is_available() else _for_cpu(file)
        program, device = load(readable, **told), torch.device(wanted())
        weights = (*program.state_dict.values(), *program.constants.values())
        if all(weight.device.type == device.type for weight in weights if isinstance(weight, torch.Tensor)):
            return program
        try:
            from torch.export.passes import move_to_device_pass
        except ImportError:  # PyTorch is too old, and MLflow says what is wrong
            return program
        return move_to_device_pass(program, device)

    torch.export.load = moved  # type: ignore[assignment]
