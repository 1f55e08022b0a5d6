"""Alerts as JSON to a URL of the team's choice.

The body has a ``text`` of its own, so that chat systems which take incoming webhooks show it as it is.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import urlsplit

import httpx

from monitoring.notify import Alert, NotifyError

TRIES = 3
PASSING = frozenset({408, 425, 429})
"""Answers below 500 after which another try can help."""


class WebhookNotifier:
    """Posts alerts; a failure that may pass is tried twice more, each try bounded by `seconds`."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        seconds: float = 5.0,
        pause_seconds: float = 0.5,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("the URL of an alert webhook begins with http:// or https://")
        self._url = url
        self._pause = pause_seconds
        self._client = httpx.Client(
            timeout=seconds, headers={"content-type": "application/json", **headers}, follow_redirects=False
        )

    def notify(self, alert: Alert) -> None:
        body = _body(alert)
        for left in reversed(range(TRIES)):
            try:
                self._post(body)
            except NotifyError as error:
                if not (error.retryable and left):
                    raise
                threading.Event().wait(self._pause)
            else:
                return

    def _post(self, body: bytes) -> None:
        where = urlsplit(self._url).hostname
        try:
            answer = self._client.post(self._url, content=body)
        except httpx.HTTPError as error:
            raise NotifyError(f"{where}: {type(error).__name__}", retryable=True) from error
        if not answer.is_success:
            passing = answer.status_code >= 500 or answer.status_code in PASSING
            raise NotifyError(f"{where} answered {answer.status_code}", retryable=passing)

    def close(self) -> None:
        self._client.close()


def _body(alert: Alert) -> bytes:
    told = {
        "text": f"{alert.model}: {alert.title}. {alert.text}",
        "severity": alert.severity,
        "model": alert.model,
        "title": alert.title,
        "at": alert.at.isoformat(),
        "url": alert.url,
        "data": dict(alert.data),
    }
    return json.dumps(told, default=str).encode()
