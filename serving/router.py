"""The port to the data plane: who gets which share of a model's requests.

A weight counts once the data plane itself reports it, so `get_weights` asks the proxy in force and never
remembers what was set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from serving.revision import Address, Weights


class RouterError(Exception):
    """The data plane did not do as asked; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class Route:
    """How one model's requests are shared, and between whom."""

    model: str
    weights: Weights
    endpoints: Mapping[str, tuple[Address, ...]] = field(hash=False)
    """Where each revision of `weights`, and `shadow`, listens, by revision id; none may be empty."""
    step: str = ""
    """Written to every request's log record while the route is in force: ``<rollout id>/<step index>``, or empty."""
    candidate: str | None = None
    """Revision id of the candidate while a rollout compares two revisions."""
    shield_bytes: int = 0
    """Requests up to this size that fail on the candidate are answered by the stable revision; 0 shields none."""
    shadow: str | None = None
    """Revision id that gets copies of the requests, whose answers are thrown away."""

    def __post_init__(self) -> None:
        named = [*self.weights.shares, *filter(None, [self.shadow])]
        missing = [revision for revision in named if not self.endpoints.get(revision)]
        if missing:
            raise ValueError(f"no endpoint for {', '.join(missing)}")


class TrafficRouter(Protocol):
    """The data plane in front of every model. Every method raises `RouterError`."""

    def set_weights(self, route: Route) -> None:
        """Ask for `route`; returns before it is in force."""
        ...

    def get_weights(self) -> Mapping[str, Route]:
        """The route in force of every model that has one, as the data plane itself reports it."""
        ...

    def remove(self, model: str) -> None:
        """Take the model's route away; a model without one is fine."""
        ...
