"""The controller's way into a network in which only the gateway can be reached; see `serving.envoy_control`.

Pure. Where revisions are reached directly, there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serving.envoy_control import KEY_HEADER


@dataclass(frozen=True, slots=True)
class Door:
    """An HTTP proxy that knows the names of revisions, and the key to it."""

    host: str
    port: int
    key: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def headers(self) -> Mapping[str, str]:
        return {KEY_HEADER: self.key}
