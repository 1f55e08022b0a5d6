"""The part of reading the access log that is about shadow stages.

Pure. The route of a shadow stage marks its requests with ``<rollout>/shadow``; a copy carries that mark in a header,
and is told by lines of its own with the request's id. `monitoring.access_log` hands the lines over, and saves what
comes of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from monitoring.blocks import Arm
from monitoring.filling import Folding, Record
from monitoring.log_entry import Entry, prediction
from monitoring.log_line import STARTED, latency_ms, outcome, written_at
from monitoring.shadow_blocks import ShadowBlock
from monitoring.shadow_pairs import Pairing

MARK = "/shadow"
"""Ends the step of a route with a shadow."""
UNSENT = "UO"
"""Envoy's flag on a copy that it did not send."""
EARLY_MS = 100.0
"""Envoy's time-outs are as exact as this."""


def answer_of(entry: Entry, arm: Arm, timeout_ms: float) -> Record:
    """What a line says of an answer. `ValueError` where it is garbled.

    Who leaves before the time-out has left by himself, which says nothing: nobody leaves a copy.
    """
    mark = (entry.copy or entry.step or "").removesuffix(MARK)
    if entry.id is None or not mark:
        raise ValueError("a line of a shadow stage without its request or rollout")
    if entry.type == STARTED:
        return Record(entry.id, mark, 0, arm, entry.start)
    error, abandoned, refused = outcome(entry, timeout_ms - EARLY_MS)
    unsent = entry.flags == UNSENT
    told = None if error or abandoned or refused else prediction(entry.prediction)
    outcomes = (error and not unsent, abandoned or unsent, refused, latency_ms(entry), told)
    return Record(entry.id, mark, 0, arm, entry.start, written_at(entry), *outcomes)


class Shadows:
    """All shadow stages that the logs tell of."""

    def __init__(self, timeout_ms: float, folding: Folding, state: Mapping[str, Any] | None = None) -> None:
        self._timeout_ms, self._folding = timeout_ms, folding
        self._numbers: dict[str, int] = dict(state["numbers"]) if state else {}
        pairings = [(log, Pairing.restore(kept, folding)) for log, kept in (state or {}).get("pairings", ())]
        self._pairings = {(pairing.rollout, log): pairing for log, pairing in pairings}
        self._new: list[ShadowBlock] = []

    def add(self, log: int, entry: Entry, forgotten: Iterable[str]) -> None:
        """Take a line about a request of a shadow stage, or about its copy. `ValueError` where it is garbled."""
        record = answer_of(entry, Arm.CANDIDATE if entry.copy else Arm.STABLE, self._timeout_ms)
        if record.rollout in forgotten:
            return
        key = (record.rollout, log)
        if key not in self._pairings:
            self._pairings[key] = Pairing(record.rollout, self._folding)
        self._pairings[key].add(record)

    def abandon(self, log: int, at: float) -> None:
        """The gateway of this log died."""
        for (_, number), pairing in self._pairings.items():
            if number == log:
                pairing.abandon(at)

    def advance(self, log: int, now: float) -> None:
        """Everything that this log said before `now` has been taken."""
        settled = [pairing.advance(now) for (_, number), pairing in self._pairings.items() if number == log]
        self._new += [self._numbered(block) for block in settled if block is not None]

    @property
    def waiting(self) -> bool:
        """Whether anything was settled that was not taken."""
        return bool(self._new)

    def _numbered(self, block: ShadowBlock) -> ShadowBlock:
        number = self._numbers[block.rollout] = self._numbers.get(block.rollout, 0) + 1
        return replace(block, id=number)

    def take_new(self) -> list[ShadowBlock]:
        """What was settled since it was asked last."""
        taken, self._new = self._new, []
        return taken

    def forget(self, rollout: str) -> Counter[str]:
        """Drop the rollout; what was counted of it."""
        counts = Counter[str]()
        for key in [key for key in self._pairings if key[0] == rollout]:
            counts += self._pairings.pop(key).counts
        self._numbers.pop(rollout, None)
        return counts

    def counts(self) -> Counter[str]:
        total = Counter[str]()
        for pairing in self._pairings.values():
            total += pairing.counts
        return total

    def state(self) -> dict[str, Any]:
        """What has to be kept for the next reader, as JSON."""
        pairings = [(log, pairing.state()) for (_, log), pairing in self._pairings.items()]
        return {"numbers": self._numbers, "pairings": pairings}
