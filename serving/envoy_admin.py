"""Envoy's administration over HTTP: what it says of itself, and the few things it can be told."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, TypeAlias
from urllib.parse import quote

SECONDS = 5.0
"""Longest wait for an answer; Envoy answers in milliseconds where it answers at all."""

Ask: TypeAlias = Callable[[str, str], tuple[int, bytes]]
"""Sends a method and a path to the administration; status and body. Raises `OSError` where nobody answers."""


class AdminError(Exception):
    """Envoy's administration does not answer, or not with what was asked for."""


class EnvoyAdmin:
    """The administration; every method raises `AdminError`."""

    def __init__(self, name: str, ask: Ask) -> None:
        """`name`: how errors call it."""
        self.name = name
        self._send = ask

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
        only = quote(f"^{re.escape(name)}$")
        stats = json.loads(self._ask("GET", f"/stats?format=json&type={kind}&filter={only}"))["stats"]
        return next((str(entry["value"]) for entry in stats if entry.get("name") == name), "")

    def _ask(self, method: str, path: str) -> bytes:
        try:
            status, content = self._send(method, path)
        except (OSError, http.client.HTTPException) as error:
            raise AdminError(f"Envoy does not answer at {self.name}: {error}") from error
        if status >= 500 and path != "/ready":
            raise AdminError(f"Envoy answers {status} at {self.name}{path}")
        return content


def admin_at(port: int, host: str = "127.0.0.1", headers: Mapping[str, str] | None = None) -> EnvoyAdmin:
    """The administration at an address; `headers` go with every request."""

    def ask(method: str, path: str) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection(host, port, timeout=SECONDS)) as connection:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()

    return EnvoyAdmin(f"http://{host}:{port}", ask)
