"""The HTTP client of a running controller, as the command line uses it.

Answers stay JSON objects: the command line prints them or picks a few fields, and a class per answer would
only repeat what the API document says. Importing this file must stay cheap, so nothing here loads the
product's own machinery.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

Json = dict[str, Any]
"""One JSON object of the API."""

UNREACHABLE = frozenset({"controller_unreachable", "registry_unreachable", "store_unreachable"})
"""Codes of errors that another try may not meet."""

_LOOPBACK = ("http://127.", "http://localhost", "http://[::1]")
"""Addresses that no proxy of the environment can reach."""
_DRIFT_SECONDS = 900.0
_SECONDS = 30.0
_HEALTH_SECONDS = 3.0


class ClientError(Exception):
    """The controller did not do as asked, or could not be asked; one line, and what to do about it."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint

    @property
    def retryable(self) -> bool:
        return self.code in UNREACHABLE


@dataclass(frozen=True, slots=True)
class Client:
    """Asks the controller at `url`. Every method raises `ClientError`."""

    url: str
    token: str | None = None

    def health(self) -> Json:
        return self._ask("GET", "/healthz", seconds=_HEALTH_SECONDS)

    def status(self, model: str | None = None) -> Json:
        """Of one model or of all: always an object with the key ``models``."""
        return self._ask("GET", "/status", params={"model": model} if model else None)

    def promote(self, model: str, version: int, *, dry_run: bool = False) -> Json:
        return self._ask("POST", _path(model, "promote"), json={"version": version, "dry_run": dry_run})

    def act(self, verb: str, model: str) -> Json:
        """`verb` is ``rollback``, ``abort``, ``pause`` or ``resume``."""
        return self._ask("POST", _path(model, verb))

    def history(self, model: str, limit: int) -> Json:
        return self._ask("GET", _path(model, "history"), params={"limit": limit})

    def requests(self, model: str) -> Json:
        """Some of the last requests of the live version."""
        return self._ask("GET", _path(model, "requests"))

    def label(self, labels: Sequence[Json]) -> Json:
        """How many were new, known before, and of requests that are waited for."""
        return self._ask("POST", "/labels", json={"labels": labels})

    def drift_run(self, model: str) -> Json:
        return self._ask("POST", _path(model, "drift"), seconds=_DRIFT_SECONDS)

    def drift_report(self, model: str) -> Json:
        return self._ask("GET", _path(model, "drift"))

    def intent(self, intent: str) -> Json:
        return self._ask("GET", f"/intents/{quote(intent, safe='')}")

    def rollout(self, rollout: str) -> Json:
        return self._ask("GET", f"/rollouts/{quote(rollout, safe='')}")

    def _ask(
        self,
        method: str,
        path: str,
        *,
        json: Json | None = None,
        params: Mapping[str, str | int] | None = None,
        seconds: float = _SECONDS,
    ) -> Json:
        try:
            answer = httpx.request(
                method,
                self.url.rstrip("/") + path,
                json=json,
                params=params,
                headers=self._headers(),
                timeout=seconds,
                trust_env=not self.url.startswith(_LOOPBACK),
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _unreachable(self.url, error) from error
        return _read(self.url, answer)

    def _headers(self) -> dict[str, str]:
        headers = {"x-actor": quote(_user())}
        return headers | {"authorization": f"Bearer {self.token}"} if self.token else headers


def _path(model: str, verb: str) -> str:
    return f"/models/{quote(model, safe='')}/{verb}"


def _user() -> str:
    """The name of whoever runs the command; the number where the account has no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def _unreachable(url: str, error: Exception) -> ClientError:
    if isinstance(error, httpx.TimeoutException):
        return ClientError(
            "controller_unreachable", f"the controller at {url} did not answer in time", "see its log, then try again"
        )
    hint = "start it with 'mlflow-promote up', or name another one with --url or PROMOTE_URL"
    return ClientError("controller_unreachable", f"no controller answers at {url}", hint)


def _read(url: str, answer: httpx.Response) -> Json:
    try:
        body = answer.json()
    except ValueError:
        body = None
    if answer.is_success and isinstance(body, dict):
        return body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        raise ClientError(str(body.get("error", "failed")), body["message"], str(body.get("hint", "")))
    hint = "is it another service's address? name the controller's with --url or PROMOTE_URL"
    raise ClientError(
        "controller_unreachable", f"{url} answered {answer.status_code}, not as the controller does", hint
    )
