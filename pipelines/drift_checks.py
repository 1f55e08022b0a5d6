"""The port to where a drift check is carried out: in this process, or as a Job of a cluster.

Whoever carries it out gathers both data sets, compares them, and keeps the documents with the version, because all of
that takes memory and processors. What follows from the finding stays with the controller.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from monitoring.drift import Finding
from pipelines.drift_reference import DriftCheck


class DriftCheckError(Exception):
    """A check came to no finding: why, for people. `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class DriftCheckStoppedError(Exception):
    """Nobody waits for the check any more, so nothing is known of it: whoever controls next makes it anew."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of a check that could be carried out."""

    finding: Finding
    before: str
    """The state that the last check left on the version; empty where none did."""
    documents: tuple[str, ...]
    """Artifacts of the version's run that show it; empty where they could not be kept."""


class DriftChecks(Protocol):
    """Carries out drift checks."""

    @property
    def at_once(self) -> int:
        """How many may be carried out at the same time."""
        ...

    def carry_out(self, check: DriftCheck, now: datetime) -> Checked:
        """The finding as of `now`, kept with the version; nothing is kept by whoever raises.

        Raises `DriftCheckError` and `DriftCheckStoppedError`.

        Returns once it is done, which may take minutes.
        """
        ...

    def stop(self) -> None:
        """End what is under way somewhere else; whoever waits for it gets `DriftCheckStoppedError`."""
        ...
