"""The ports to what must survive a crash: rollouts, intents, history, leases, what was seen.

One Protocol per concern, so that each user names what it needs. `SqlStore` implements all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from pipelines.live import Live
from pipelines.rollout import Event, Intent, Rollout
from registry_hooks.model_version import ModelVersion, Snapshot
from serving.runtime.model_files import Files


class StoreError(Exception):
    """The store did not do as asked; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class Conflict(StoreError):
    """Somebody saved the same record in between, or another rollout is active for the model and channel."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=False)


class RolloutStore(Protocol):
    """Rollouts and what is live. Every method raises `StoreError`."""

    def save(self, rollout: Rollout, live: Live | None = None, events: Sequence[Event] = ()) -> Rollout:
        """Insert (serial 0) or replace (same serial) the rollout, in one transaction with `live` and `events`.

        Returns it with the next serial. `Conflict` where the stored serial differs, or where a second rollout
        that is not settled would exist for the model and channel; nothing is saved then. `live` is compared and
        set in the same way.
        """
        ...

    def active(self) -> tuple[Rollout, ...]:
        """Every rollout that is not settled, oldest first."""
        ...

    def rollouts(self, model: str, limit: int = 20) -> tuple[Rollout, ...]:
        """The model's rollouts, newest first."""
        ...

    def lives(self) -> tuple[Live, ...]:
        """What is live, one record per model and live channel that ever had one."""
        ...

    def keep(self, live: Live, events: Sequence[Event] = ()) -> Live:
        """Save what is live without a rollout; compare-and-set like `save`."""
        ...


class Inbox(Protocol):
    """What the registry showed last, and the intents that wait. Every method raises `StoreError`."""

    def before(self) -> Snapshot:
        """The registry as it was when it was last looked at; `models` holds every model known to exist.

        Only models and holdings are kept: `gone`, `at` and `idle` are empty.
        """
        ...

    def observe(self, after: Snapshot, intents: Sequence[Intent], events: Sequence[Event] = ()) -> None:
        """Replace what `before` says of `after.models`, forget `after.gone`, and add `intents`, in one transaction.

        Since when an alias is held is kept from the first time it was seen: the registry does not tell it.
        """
        ...

    def submit(self, intent: Intent) -> None:
        """Add one intent; a second one with the same id changes nothing."""
        ...

    def pending(self) -> tuple[Intent, ...]:
        """Intents that are not settled, in the order of their time."""
        ...

    def settle(self, ids: Collection[str], outcome: str) -> None:
        """Mark intents as done with, for the reason `outcome`; the first outcome of an intent stays."""
        ...


@dataclass(frozen=True, slots=True)
class Approved:
    """What the files of a version held when it was first seen."""

    version: ModelVersion
    source: str
    """MLflow's artifact location of the version."""
    files: Files = field(hash=False)
    at: datetime


class ApprovedFiles(Protocol):
    """The files of versions, recorded once. Every method raises `StoreError`."""

    def approve(self, seen: Approved) -> Approved:
        """Record it, unless the version was recorded at that source before; what is recorded."""
        ...

    def approved(self, version: ModelVersion, source: str) -> Approved | None:
        """What is recorded; None where nothing is."""
        ...


class Lookup(Protocol):
    """Single records by id, for whoever follows one. Every method raises `StoreError`."""

    def rollout(self, rollout_id: str) -> Rollout | None:
        """The rollout, settled or not; None where there is none."""
        ...

    def outcome(self, intent_id: str) -> str | None:
        """The outcome of a settled intent; None while it waits, and where there is none."""
        ...


class History(Protocol):
    """What happened, append-only. Every method raises `StoreError`."""

    def append(self, events: Sequence[Event]) -> None:
        """Add `events`, in their order; nothing that was added is ever changed or removed."""
        ...

    def read(self, model: str | None = None, limit: int = 100) -> tuple[Event, ...]:
        """The newest `limit` events, of one model or of all, oldest of them first."""
        ...


class DriftRuns(Protocol):
    """When models were checked for drift. Raises `StoreError`. A check is recorded by its event."""

    def last_drift(self, model: str) -> datetime | None:
        """Time of the newest event of kind ``drift``; None where the model was never checked."""
        ...


class Lease(Protocol):
    """One holder at a time, by the store's own clock. Every method raises `StoreError`."""

    def acquire(self, holder: str, seconds: float) -> bool:
        """Take or renew the lease for `seconds`; False while somebody else's has not run out."""
        ...

    def release(self, holder: str) -> None:
        """Give it back, where `holder` has it."""
        ...

    def holder(self) -> tuple[str, datetime] | None:
        """Who has it and until when; None where nobody has."""
        ...
