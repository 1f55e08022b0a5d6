"""PyTorch's modules by its own exporter, which follows the program and refuses what it cannot follow.

MLflow hands a frame to a module as one matrix of float32 and makes a frame of the answer, a column for each value; a
tensor goes in and comes out as it is.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from serving.compiling.conversion import Conversion, Loaded, NotConvertible
from serving.runtime.exchange import Array
from serving.runtime.plan import Feed, Result

_INPUT = "rows"

TOLERANCE = 1e-4
"""Both compute in float32 and add in different orders, and what one layer rounds the next one may cancel out."""


def convert(loaded: Loaded) -> Conversion:
    """A module that takes one tensor, of which the first dimension is the rows, and answers with one."""
    if not isinstance(loaded.native, torch.nn.Module):
        raise NotConvertible(f"MLflow gives no module but {type(loaded.native).__name__}")
    feed, rows = _input(loaded)
    results = tuple(replace(result, source=f"answer_{place}") for place, result in enumerate(loaded.results))
    module = _Columns(loaded.native) if loaded.frame else loaded.native
    return Conversion(_exported(module, rows, results), (feed,), results, TOLERANCE, frame=loaded.frame)


class _Columns(torch.nn.Module):
    """A module whose answer comes column by column."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self._module = module

    def forward(self, rows: Any) -> Any:
        answer = self._module(rows)
        return torch.unbind(answer.reshape(answer.shape[0], -1), 1)


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


def _exported(module: torch.nn.Module, rows: Array, results: tuple[Result, ...]) -> bytes:
    example = torch.from_numpy(
        np.ascontiguousarray(np.concatenate([rows, rows])[:2])
    )  # one row would be taken as fixed
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.cpu().eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[_INPUT],
            output_names=[result.source for result in results],
            dynamic_shapes=({0: torch.export.Dim("count")},),
        )
    return bytes(program.model_proto.SerializeToString())  # type: ignore[union-attr]
