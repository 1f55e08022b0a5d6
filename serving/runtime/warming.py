"""The first prediction, before anybody is told that the server is ready: the model's input example, or drawn rows."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import numpy as np

from serving.runtime.exchange import Array, Engine, Rows, ServingError
from serving.runtime.parsing import Parser
from serving.runtime.plan import KINDS, Column, Plan, Tensor

_EXAMPLE = "serving_input_example.json"
"""Where MLflow keeps a request made of the model's input example."""

_SECONDS = 600.0
"""The first prediction may take this long."""

_TIMES = 3
"""A compiled model predicts so often: the first time takes longest, the others teach the engine how long it takes."""

_logger = logging.getLogger(__name__)


async def warm_up(engine: Engine, parser: Parser, plan: Plan, model: Path) -> None:
    """Predict; `RuntimeError` where the model fails on its own input example."""
    deadline = asyncio.get_running_loop().time() + _SECONDS
    example = model / _EXAMPLE
    if example.exists():
        times = _TIMES if plan.compiled else 1
        await _with_example(engine, parser, example.read_bytes(), times, deadline)
    elif plan.typed:
        await _with_drawn(engine, plan, deadline)
    else:
        _logger.info("the model has neither input example nor signature: ready without a first prediction")


def example_of(model: Path, parser: Parser) -> Rows | None:
    """The model's input example; None where there is none with rows that can be parsed without MLflow."""
    example = model / _EXAMPLE
    if not example.exists():
        return None
    try:
        ask = parser.parse(example.read_bytes(), "application/json")
    except ServingError:  # `warm_up` says so
        return None
    return ask if isinstance(ask, Rows) and ask.count else None


async def _with_example(engine: Engine, parser: Parser, body: bytes, times: int, deadline: float) -> None:
    try:
        ask = parser.parse(body, "application/json")
        for _ in range(times):
            await engine.predict(ask, deadline)
    except ServingError as error:
        if error.status >= 500:
            raise RuntimeError(f"the model fails on its own input example: {error}") from error
        _logger.warning("the model's own input example is refused: %s", error)


async def _with_drawn(engine: Engine, plan: Plan, deadline: float) -> None:
    """What is drawn may be nothing that the model understands, so that its failure says nothing."""
    columns: dict[str, Array] = {column.name: _of_column(column) for column in plan.columns}
    columns |= {tensor.name: _of_tensor(tensor) for tensor in plan.tensors}
    try:
        for _ in range(_TIMES if plan.compiled else 1):
            await engine.predict(Rows(columns, 1), deadline)
    except ServingError as error:
        _logger.info("a row of zeros, drawn for want of an input example, is refused: %s", error)


def _of_column(column: Column) -> Array:
    values = np.zeros(1, dtype=KINDS[column.kind])
    if column.categories:
        values[0] = column.categories[0]
    elif column.kind in ("string", "binary"):
        values[0] = "" if column.kind == "string" else b""
    return values


def _of_tensor(tensor: Tensor) -> Array:
    return np.zeros([1 if size < 0 else size for size in tensor.shape], dtype=tensor.dtype)
