"""The part of reading the access log that is about labels: which rollouts wait for them, and what has been told.

`monitoring.access_log` hands requests over by way of its folders, and saves what comes of them with its own progress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from monitoring.label_policy import LabelMode, LabelPolicy
from monitoring.label_store import LabelStore
from monitoring.labels import Awaited, Awaiting, LabelBlock


class Awaitings:
    """All rollouts that wait for labels."""

    def __init__(self, store: LabelStore, state: Mapping[str, Any] | None = None) -> None:
        self._store = store
        self._policies: dict[str, LabelPolicy] = {}
        self._awaiting: dict[str, Awaiting] = {}
        for rollout, (mode, *rest), awaiting in (state or {}).get("rollouts", ()):
            self._policies[rollout] = LabelPolicy(LabelMode(mode), *rest)
            self._awaiting[rollout] = Awaiting.restore(awaiting, store.pending(rollout))

    def begin(self, rollout: str, policy: LabelPolicy) -> None:
        """Wait for labels of this rollout, where the policy says so."""
        if policy.mode is not LabelMode.OFF:
            self._policies[rollout], self._awaiting[rollout] = policy, Awaiting()

    def of(self, rollout: str) -> Awaiting | None:
        """Where its requests are noted; None where they are not."""
        return self._awaiting.get(rollout)

    def told(self, rollout: str, after: int, now: float) -> tuple[LabelBlock, ...]:
        """Blocks with an id above `after` that wait for nothing more. `BlockError`."""
        awaiting = self._awaiting.get(rollout)
        if awaiting is None:
            return ()
        awaiting.pending -= self._store.settle(rollout, awaiting.number, self._policies[rollout], now)
        return self._store.labelled(rollout, after)

    def take_new(self) -> Sequence[tuple[str, int, Awaited]]:
        """Rollout, block and request, of what was noted since it was asked last."""
        return [
            (rollout, block, one) for rollout, awaiting in self._awaiting.items() for block, one in awaiting.take_new()
        ]

    def forget(self, rollout: str) -> int:
        """Drop the rollout; how many of its requests were passed over."""
        self._policies.pop(rollout, None)
        awaiting = self._awaiting.pop(rollout, None)
        return awaiting.passed_over if awaiting else 0

    def passed_over(self) -> int:
        return sum(awaiting.passed_over for awaiting in self._awaiting.values())

    def state(self) -> dict[str, Any]:
        """What has to be kept for the next reader, as JSON."""
        rollouts = [(name, astuple(self._policies[name]), one.state()) for name, one in self._awaiting.items()]
        return {"rollouts": rollouts}
