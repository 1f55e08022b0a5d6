"""What the model's own metadata says of it: its flavour and its signature, as the beginning of a plan.

Where one input is of a kind that the server has no arrays for, none is described: MLflow's own code then parses every
request to this model.
"""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
from mlflow.models import Model
from mlflow.types.schema import ColSpec, DataType, ParamSchema, Schema, TensorSpec

from serving.runtime.plan import KINDS, Column, Param, Plan, Tensor

_NUMBERS = "biuf"
"""NumPy's letters for booleans, integers and floats: what a tensor of the plan may hold."""


def describe(metadata: Model) -> Plan:
    """The plan of a model before anything was tried."""
    flavor, signature = flavor_of(metadata), metadata.signature
    if signature is None:
        return Plan(flavor, signature=False, why="the model has no signature")
    params = _params(signature.params)
    columns, tensors = _inputs(signature.inputs) if params is not None else ((), ())
    why = "" if columns or tensors else f"the signature has inputs of types that only MLflow parses: {signature.inputs}"
    return Plan(flavor, True, columns, tensors, params or (), _outputs(signature.outputs), why=" ".join(why.split()))


def flavor_of(metadata: Model) -> str:
    """The flavour that answers MLflow's predictions, not merely one that the model is also saved as."""
    loader = str(metadata.flavors.get("python_function", {}).get("loader_module", ""))
    name = loader.removeprefix("mlflow.").split(".")[0]
    return name if name in metadata.flavors else "python_function"


def _inputs(schema: Schema | None) -> tuple[tuple[Column, ...], tuple[Tensor, ...]]:
    if schema is None or not schema.inputs:
        return (), ()
    parts = [_part(spec) for spec in schema.inputs]
    columns = tuple(part for part in parts if isinstance(part, Column))
    tensors = tuple(part for part in parts if isinstance(part, Tensor) and part.shape)
    names = {part.name for part in columns} or {part.name for part in tensors}
    if len(names) < len(parts):
        return (), ()
    return columns, tensors


def _outputs(schema: Schema | None) -> tuple[Column | Tensor, ...]:
    parts = [_part(spec) for spec in schema.inputs] if schema else []
    return tuple(part for part in parts if part is not None)


def _part(spec: ColSpec | TensorSpec) -> Column | Tensor | None:
    if isinstance(spec, TensorSpec):
        shape = tuple(spec.shape)
        return Tensor(spec.name or "", spec.type.name, shape) if spec.type.kind in _NUMBERS else None
    kind = _kind(spec.type)
    return Column(spec.name, kind, spec.required) if kind and isinstance(spec.name, str) else None


def _params(schema: ParamSchema | None) -> tuple[Param, ...] | None:
    """None where one is of a kind that the server does not know."""
    specs = schema.params if schema else []
    if not all(_kind(spec.dtype) for spec in specs):
        return None
    return tuple(Param(spec.name, _kind(spec.dtype), _plain(spec.default), spec.shape) for spec in specs)


def _kind(given: object) -> str:
    """The plan's name of a type; empty where it has none."""
    return given.name if isinstance(given, DataType) and given.name in KINDS else ""


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, np.datetime64 | datetime.datetime):
        return np.datetime64(value).astype(str)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
