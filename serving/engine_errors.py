"""What can go wrong with an engine or a registry, in one kind of error that says whether trying again can help."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import requests
import urllib3
from docker.errors import APIError, DockerException, NotFound

_PAUSES = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""Seconds before what passes is asked again: Podman lists no image at all while it removes a large one."""
_T = TypeVar("_T")
CLIENTS = (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError)
"""What clients of an engine raise; the last but one where it goes while it is telling something."""


class EngineError(Exception):
    """The engine did not do as asked; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


def last_of(lines: Iterator[dict[str, Any]], tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """All that an engine says while it works; `EngineError` where it says that it failed."""
    told = []
    for line in lines:
        told.append(line)
        if text := str(line.get("stream") or "").strip():
            tell(text[:200])
    for line in told:
        if "error" in line:
            said = str(line["error"])
            raise EngineError(said, retryable=_passing(said))
    return told


_PASSING = ("timeout", "timed out", "connection re", "temporary", "i/o", "eof", "no such host", "no space left")


def _passing(said: str) -> bool:
    """Whether what an engine says of a registry or a build may be otherwise in a minute."""
    return any(word in said.lower() for word in _PASSING)


_LOGIN = re.compile("unauthorized|(?<!permission )denied|no basic auth credentials|authentication required")
_UNKNOWN = ("manifest unknown", "not found", "name unknown")


@contextmanager
def asked_of_registry(what: str, reference: str) -> Iterator[None]:
    """What a registry refuses or does not have is said with what would do, and is not asked again."""
    try:
        yield
    except EngineError as error:
        said = str(error) if str(error).startswith("cannot ") else f"cannot {what} {reference}: {error}"
        words = said.lower()
        if _LOGIN.search(words):
            host = host_of(reference)
            advice = f"credentials for the registry {host} are those of Docker's config.json (`docker login {host}`)"
            raise EngineError(f"{said}; {advice}, in ~/.docker or where DOCKER_CONFIG says", retryable=False) from error
        unknown = any(word in words for word in _UNKNOWN)
        raise EngineError(said, retryable=error.retryable and not unknown) from error


def host_of(reference: str) -> str:
    """Of the registry that an image is of: Docker's own where none is named."""
    host, slash, _ = reference.partition("/")
    return host if slash and re.search("[.:]|^localhost$", host) else "docker.io"


def patiently(ask: Callable[[], _T]) -> _T:
    """What the engine says, asked again where it fails in a way that passes."""
    for seconds in _PAUSES:
        try:
            return ask()
        except EngineError as error:
            if not error.retryable:
                raise
            time.sleep(seconds)
    return ask()


@contextmanager
def translated(what: str) -> Iterator[None]:
    try:
        yield
    except NotFound as error:
        raise EngineError(f"cannot {what}: {_explained(error)}", retryable=False) from error
    except APIError as error:
        status = error.status_code or 500
        raise EngineError(f"cannot {what}: {_explained(error)}", retryable=status >= 500 or status == 409) from error
    except CLIENTS as error:
        raise EngineError(f"cannot {what}: {error}", retryable=True) from error


@contextmanager
def absent() -> Iterator[None]:
    """What is not there any more is as wanted."""
    try:
        yield
    except NotFound:
        pass
    except APIError as error:
        if "already in progress" not in str(error):
            raise


def _explained(error: APIError) -> str:
    """The engine's own sentence."""
    said = error.explanation
    if isinstance(said, bytes):
        said = said.decode(errors="replace")
    try:
        return str(json.loads(str(said))["message"])
    except (ValueError, KeyError, TypeError):
        return str(said or error)
