"""What the edge and the protocols say to each other: a prediction request, and the answer to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from serving.runtime.service import Caller

JSON = (b"content-type", b"application/json")

Headers = Mapping[bytes, bytes]
"""The headers of a request that anybody here listens to , by their lower-case names."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prediction request."""

    path: str
    headers: Headers
    body: bytes
    caller: Caller


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)
    """Without those that every answer has."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """One protocol's way to predict over HTTP."""

    serves: Callable[[str], bool]
    """Whether a path is its own."""
    answer: Callable[[Asked], Awaitable[Reply]]
    """May raise a `ServingError`."""
    failure: Callable[[str, str], bytes]
    """The body of an error out of its code and its message."""
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)
    """Of errors."""
    unforeseen: Reply = field(init=False)
    """The answer where the server itself fails."""

    def __post_init__(self) -> None:
        body = self.failure("INTERNAL_ERROR", "the server failed")
        object.__setattr__(self, "unforeseen", Reply(body, 500, self.headers))
