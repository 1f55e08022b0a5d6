"""PyTorch's modules by its own exporters, which follow the program and refuse what they cannot follow.

MLflow hands a frame to a module as one matrix of float32 and makes a frame of the answer, a column for each value; a
tensor goes in and comes out as it is. Programs of TorchScript, and PyTorch before 2.6, need the older exporter, which
follows one example only: where it warns that another might have gone elsewhere, the model is not converted.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from serving.compiling.conversion import Conversion, Loaded, NotConvertible
from serving.runtime.exchange import Array
from serving.runtime.plan import Feed

_INPUT, _ANSWER = "rows", "answer"

_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
_FOLLOWS = _VERSION >= (2, 6) and find_spec("onnxscript") is not None
"""Whether there is the exporter that follows programs; it is written in onnxscript."""

_LONGEST = 300
"""Characters of an exception's text."""

TOLERANCE = 1e-4
"""Both compute in float32 and add in different orders, and what one layer rounds the next one may cancel out."""


def convert(loaded: Loaded) -> Conversion:
    """A module that takes one tensor, of which the first dimension is the rows, and answers with one."""
    if not isinstance(loaded.native, torch.nn.Module):
        raise NotConvertible(f"MLflow gives no module but {type(loaded.native).__name__}")
    feed, rows = _input(loaded)
    model = onnx.load_from_string(_exported(loaded.native, rows))
    names = _columns(model, len(loaded.results))
    results = tuple(replace(result, source=name) for result, name in zip(loaded.results, names, strict=True))
    return Conversion(bytes(model.SerializeToString()), (feed,), results, TOLERANCE, frame=loaded.frame)


def _input(loaded: Loaded) -> tuple[Feed, Array]:
    """The input of the module, and rows for it."""
    plan, base = loaded.plan, loaded.base
    if plan.columns:
        if odd := [column.name for column in plan.columns if column.kind in ("string", "binary", "datetime")]:
            raise NotConvertible(f"column {odd[0]!r} is no number")
        names = tuple(column.name for column in plan.columns)
        rows = np.stack([base.columns[name] for name in names], 1).astype(np.float32)
        return Feed(_INPUT, names, "float32"), rows
    if len(plan.tensors) != 1:
        raise NotConvertible("the module takes several tensors")
    tensor = plan.tensors[0]
    return Feed(_INPUT, (tensor.name,), tensor.dtype), base.columns[tensor.name]


def _columns(model: onnx.ModelProto, count: int) -> list[str]:
    """The names of the answer's columns: where there are several, the last step sets them apart."""
    if count == 1:
        return [_ANSWER]
    names = [f"{_ANSWER}_{place}" for place in range(count)]
    kind = model.graph.output[0].type.tensor_type.elem_type
    model.graph.initializer.append(numpy_helper.from_array(np.ones(count, np.int64), "widths"))
    model.graph.node.append(helper.make_node("Split", [_ANSWER, "widths"], names, axis=1))
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, kind, [None, 1]) for name in names)
    return names


def _exported(module: torch.nn.Module, rows: Array) -> bytes:
    """As MLflow loaded it, so in the mode in which it predicts; `NotConvertible` with what the exporter says."""
    two = np.ascontiguousarray(np.concatenate([rows, rows])[:2])  # one row would be taken as fixed
    export = _followed if _FOLLOWS and not _scripted(module) else _traced
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return export(_on_cpu(module), torch.from_numpy(two))
    except Exception as error:  # it runs the model's own code
        raise NotConvertible(f"PyTorch cannot export it: {_first_cause(error)}") from error


def _followed(module: torch.nn.Module, example: Any) -> bytes:
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        verbose=False,
        input_names=[_INPUT],
        output_names=[_ANSWER],
        dynamic_shapes=({0: torch.export.Dim("count")},),
    )
    return bytes(program.model_proto.SerializeToString())  # type: ignore[union-attr]


def _traced(module: torch.nn.Module, example: Any) -> bytes:
    warnings.simplefilter("error", torch.jit.TracerWarning)  # type: ignore[attr-defined]
    content = io.BytesIO()
    torch.onnx.export(
        module,
        (example,),
        content,  # type: ignore[arg-type]
        input_names=[_INPUT],
        output_names=[_ANSWER],
        dynamic_axes={name: {0: "count"} for name in (_INPUT, _ANSWER)},
        **({"dynamo": False} if _VERSION >= (2, 5) else {}),  # type: ignore[arg-type]
    )
    return content.getvalue()


def _scripted(module: torch.nn.Module) -> bool:
    return any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())


def _on_cpu(module: torch.nn.Module) -> torch.nn.Module:
    """A module that stands elsewhere is copied: MLflow goes on predicting with it."""
    tensors = (*module.parameters(), *module.buffers())
    return module if all(part.device.type == "cpu" for part in tensors) else copy.deepcopy(module).cpu()


def _first_cause(error: BaseException) -> str:
    """In one line; the exporters wrap what went wrong several times, each with advice to the model's author."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])[:_LONGEST]
