"""What every request to MLflow needs: a bounded time, and failures in the port's own words.

MLflow takes its time-outs from environment variables of the process and by default tries for minutes. The
control plane repeats everything at its next tick anyway, so one short attempt serves it better; whoever set
the variables keeps them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from mlflow.exceptions import MlflowException

from registry_hooks.registry import RegistryError, UnknownVersion

BOUNDS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Defaults of ours for variables of MLflow that nobody set: seconds, further attempts, no drawing on a terminal."""

NOT_THERE = "RESOURCE_DOES_NOT_EXIST"
PASSING = frozenset({408, 429})


def bound_requests() -> None:
    """Set `BOUNDS` where the environment says nothing else."""
    for name, value in BOUNDS.items():
        os.environ.setdefault(name, value)


@contextmanager
def translated(doing: str, *, of_version: bool = True) -> Iterator[None]:
    """Turn MLflow's failures into `RegistryError`s that say what was being done.

    With `of_version` False, what is missing is not the version but, say, a file of it.
    """
    try:
        yield
    except MlflowException as error:
        if error.error_code == NOT_THERE and of_version:
            raise UnknownVersion(f"{doing}: {_text(error)}") from error
        raise RegistryError(f"{doing}: {_text(error)}", retryable=_may_pass(error)) from error
    except (requests.RequestException, OSError) as error:
        raise RegistryError(f"{doing}: {error}", retryable=_passing(error)) from error
    except ImportError as error:
        raise RegistryError(f"{doing}: a package is missing: {error}", retryable=False) from error


@contextmanager
def of_store(doing: str) -> Iterator[None]:
    """Turn into `RegistryError`s what libraries of object stores raise, which have errors of their own."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:
        raise RegistryError(f"{doing}: {error}", retryable=_store_may_pass(error)) from error


def _store_may_pass(error: Exception) -> bool:
    """Neither a refusal nor a login that is missing gets better by itself; what has no status may be the way there."""
    answer = getattr(error, "response", None)
    told = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
    status = told.get("HTTPStatusCode") or getattr(error, "status_code", None) or getattr(error, "code", None)
    if isinstance(status, int):
        return status >= 500 or status in PASSING
    return "Credential" not in type(error).__name__


def _may_pass(error: MlflowException) -> bool:
    """No connection and 5xx come as MLflow's own internal error, so that they share its status 500."""
    status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    return status >= 500 or status in PASSING


def _passing(error: OSError) -> bool:
    """A refused request and a missing file do not get better by themselves; a broken connection or a full disk may."""
    if isinstance(error, FileNotFoundError):
        return False
    answer = getattr(error, "response", None)
    return answer is None or answer.status_code >= 500 or answer.status_code in PASSING


def _text(error: MlflowException) -> str:
    return str(error.message).strip().splitlines()[0][:500] if str(error.message).strip() else type(error).__name__
