"""The port to the platform that runs revisions. One implementation per platform, one contract suite for all.

Everything is idempotent and nothing waits: `start` asks for a revision and returns, `status` tells later
what came of it. That lets a tick repeat any of them after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from serving.revision import Revision, RevisionStatus


class TargetError(Exception):
    """The platform did not do as asked; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class ServingTarget(Protocol):
    """Where revisions run. Every method raises `TargetError`."""

    def start(self, revision: Revision) -> None:
        """See that the revision runs: a new one is started, a failed one started again, a running one left alone.

        One that is still stopping is refused with an error that can be retried, until it is gone; one whose image is
        not there as well, until somebody has built it again.
        """
        ...

    def status(self) -> Mapping[str, RevisionStatus]:
        """Every revision of this installation by its id, in one call; what was stopped and is gone is not in it."""
        ...

    def stop(self, revision_id: str) -> None:
        """Let the revision finish its requests within its drain time, then end and forget it. Unknown ids are fine."""
        ...

    def logs(self, revision_id: str, lines: int = 100) -> tuple[str, ...]:
        """The last lines that the revision wrote, oldest first; empty where there are none."""
        ...
