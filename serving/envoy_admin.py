"""Envoy's administration over HTTP: what it says of itself, and the few things it can be told."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from typing import Any

SECONDS = 5.0
"""Longest wait for an answer; Envoy answers in milliseconds where it answers at all."""


class AdminError(Exception):
    """Envoy's administration does not answer, or not with what was asked for."""


class EnvoyAdmin:
    """The administration on 127.0.0.1; every method raises `AdminError`."""

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        return self._ask("GET", "/ready").startswith(b"LIVE")

    def tell(self, path: str) -> None:
        self._ask("POST", path)

    def config(self) -> dict[str, Any]:
        """Sections of the configuration in force by their kind, such as ``RoutesConfigDump``."""
        sections = json.loads(self._ask("GET", "/config_dump"))["configs"]
        return {section["@type"].rpartition(".")[2]: section for section in sections}

    def stat(self, name: str, kind: str = "All") -> str:
        """One statistic as text, empty where Envoy has none of that name."""
        stats = json.loads(self._ask("GET", f"/stats?format=json&type={kind}&filter=^{name}$"))["stats"]
        return next((str(entry["value"]) for entry in stats if entry.get("name") == name), "")

    def _ask(self, method: str, path: str) -> bytes:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)) as connection:
                connection.request(method, path)
                answer = connection.getresponse()
                content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise AdminError(f"Envoy does not answer at {self.url}: {error}") from error
        if answer.status >= 500 and path != "/ready":
            raise AdminError(f"Envoy answers {answer.status} at {self.url}{path}")
        return content
