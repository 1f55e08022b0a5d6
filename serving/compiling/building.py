"""From a model's folder to its plan: load, describe, probe, convert, prove.

Whatever goes wrong after the model has answered its own input example leaves the safe default standing: the model is
served natively, and the plan says why.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel, load_model

from serving.compiling.describing import describe
from serving.runtime.plan import Plan


class UnusableModel(Exception):
    """The model cannot be loaded, or fails on its own input example; one line."""


def build(folder: Path, out: Path, native: bool = False, why: str = "") -> str:
    """Write the plan of the model in `folder` to `out`, and the compiled model if there is one; one line about it."""
    pyfunc = _loaded(folder)
    plan = describe(pyfunc.metadata)
    _example(pyfunc, folder)
    plan = replace(plan, why=why or plan.why or "nothing was tried")
    plan.write(out)
    return _line(plan)


def _loaded(folder: Path) -> PyFuncModel:
    try:
        return load_model(str(folder))
    except Exception as error:
        raise UnusableModel(f"the model cannot be loaded: {told(error)}") from error


def _example(pyfunc: PyFuncModel, folder: Path) -> Any:
    """The model's input example, on which it has predicted; None where there is none, or it is refused."""
    example = pyfunc.metadata.load_input_example(str(folder))
    if example is None:
        return None
    try:
        pyfunc.predict(example, params=pyfunc.metadata.load_input_example_params(str(folder)))
    except MlflowException as error:
        if error.get_http_status_code() < 500:  # type: ignore[no-untyped-call]
            return None
        raise UnusableModel(f"the model fails on its own input example: {told(error)}") from error
    except Exception as error:
        raise UnusableModel(f"the model fails on its own input example: {told(error)}") from error
    return example


def told(error: BaseException) -> str:
    """An exception in one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def _line(plan: Plan) -> str:
    return f"The compiled path is {'on' if plan.compiled else 'off'}: {plan.why}."
