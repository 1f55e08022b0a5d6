"""The entities of a rollout: which of them have been counted, and what becomes of those that come again.

Pure. With sticky routing an entity, not a request, is assigned by chance: all requests of a customer who fails on
everything are on one arm, and counted one by one they would take an equal candidate back. So the first request of an
entity is the unit, on whichever arm it is, and its later ones are none.

That alone would be blind to a candidate that goes wrong late, when every entity has been met. For that there is a fact
instead of statistics: of the entities that were answered well before, how many get no good answer now. It cannot be
the customers, because they were answered well, and no common outage, where the stable revision's fare better. It is
not exact, therefore it has to be gross; see `broken`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from monitoring.blocks import Arm, Familiar

MOST = 500_000
"""Entities that are remembered; further ones do not count."""
LAST_SECONDS = 60.0
"""What became of a known entity is its last outcome, if it is no older than this."""
TOLD_SECONDS = 10.0
"""So often it is told."""
TELLINGS = 3
"""So often in a row it has to be told: a stumble of a moment is none."""
FEWEST = 10
"""Fewer entities without a good answer are no reason to go back."""
_WELL = "+"


class Entities:
    """Of one rollout, of all its logs; entities are digests."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._met: dict[str, bool] = {}
        """Whether each was ever answered well."""
        self._last: dict[Arm, dict[str, tuple[float, bool]]] = {arm: {} for arm in Arm}
        self._new: list[str] = []
        self._told = 0.0

    def recall(self, kept: Iterable[str]) -> None:
        """What `take_new` gave, in order."""
        for one in kept:
            self._remember(one.removeprefix(_WELL), well=one.startswith(_WELL))

    def met(self, entity: str) -> bool:
        """Whether it has been counted, or came after too many others; a request without an entity never has."""
        return bool(entity) and (entity in self._met or len(self._met) >= self._most)

    def meet(self, entity: str) -> None:
        """It has been counted."""
        self._remember(entity, well=False)
        self._new.append(entity)

    def hear(self, arm: Arm, entity: str, at: float, *, bad: bool) -> None:
        """A request of a known entity ended."""
        if self._met.get(entity):
            last = self._last[arm]
            last.pop(entity, None)
            last[entity] = (at, bad)
        elif not bad and entity in self._met:
            self._met[entity] = True
            self._new.append(_WELL + entity)

    def tell(self, now: float) -> tuple[Familiar, Familiar] | None:
        """Of the stable revision and the candidate; None where it was told lately or nothing was heard."""
        if now < self._told + TOLD_SECONDS:
            return None
        stable, candidate = (self._familiar(arm, now - LAST_SECONDS) for arm in (Arm.STABLE, Arm.CANDIDATE))
        if not stable.entities and not candidate.entities:
            return None
        self._told = now
        return stable, candidate

    def take_new(self) -> list[str]:
        """What came to be known since it was asked last."""
        new, self._new = self._new, []
        return new

    def _remember(self, entity: str, *, well: bool) -> None:
        self._met[entity] = well or self._met.get(entity, False)

    def _familiar(self, arm: Arm, since: float) -> Familiar:
        last = self._last[arm]
        for entity in [entity for entity, (at, _) in last.items() if at < since]:
            del last[entity]
        return Familiar(len(last), sum(bad for _, bad in last.values()))


def broken(familiar: Sequence[Familiar]) -> bool:
    """Whether most known entities of the candidate, and hardly any of the stable revision, have no good answer now."""
    stable, candidate = familiar
    gross = candidate.failing >= FEWEST and 2 * candidate.failing > candidate.entities
    return gross and stable.entities > 0 and 10 * stable.failing <= stable.entities


def digest(rollout: str, entity: str) -> str:
    """What an entity is called in everything that is kept of a rollout: nobody's name, and another one in the next."""
    return hashlib.blake2b(f"{rollout}\n{entity}".encode(), digest_size=8).hexdigest()
