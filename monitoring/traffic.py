"""What the log says of models in general: how much they are asked, and what their revisions did lately.

Of a revision that is known well enough only a few requests of each second are remembered, the first to end in it,
so that a history covers minutes of heavy traffic in a few thousand requests, and costs nothing for all the others.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any

from monitoring.blocks import Seen
from monitoring.log_entry import Entry, prediction
from monitoring.log_line import latency_ms, outcome
from monitoring.ruler import KEPT, History

RATE_SECONDS = 60
"""Requests per second are told over this time."""
KNOWN_SECONDS = 5.0
"""No rate is told before the log covers this time."""
ENOUGH = 2000
"""Requests of a revision that are remembered however soon they come."""
PER_SECOND = 8
"""Requests of a revision that are remembered of each second after that."""
REVISIONS = 3
"""Revisions per model whose history is kept."""


class Rates:
    """Scoring requests per model, counted by second."""

    def __init__(self, saved: Mapping[str, Any] | None = None, known_seconds: float = KNOWN_SECONDS) -> None:
        self._known_seconds = known_seconds
        self._since: float | None = saved["since"] if saved else None
        counts = saved["counts"] if saved else {}
        self._counts = {m: Counter({int(second): n for second, n in seen.items()}) for m, seen in counts.items()}

    def begin(self, at: float) -> None:
        """The log tells of this time and what follows."""
        if self._since is None:
            self._since = at

    def add(self, model: str, at: float) -> None:
        counts = self._counts.get(model)
        if counts is None:
            counts = self._counts[model] = Counter()
        counts[int(at)] += 1

    def of(self, model: str, now: float) -> float | None:
        """None where the log covers too little time, or has told of no request to the model."""
        if self._since is None or model not in self._counts or now - self._since < self._known_seconds:
            return None
        covered = min(RATE_SECONDS, now - self._since)
        return sum(n for second, n in self._counts[model].items() if second + 1 > now - covered) / covered

    def state(self, now: float) -> dict[str, Any]:
        """What has to be kept; drops the seconds that are too long ago to matter."""
        for counts in self._counts.values():
            for second in [second for second in counts if second < now - RATE_SECONDS - 1]:
                del counts[second]
        return {"since": self._since, "counts": self._counts}


class Recent:
    """What the revisions of each model did lately. Kept in parts: `take_new` gives what came since the last time."""

    def __init__(self, patience_ms: float) -> None:
        self._patience_ms = patience_ms
        self._histories: dict[tuple[str, str], deque[Seen]] = {}
        self._taken: dict[tuple[str, str], tuple[int, int]] = {}
        self._new: dict[tuple[str, str], list[Seen]] = {}
        self._stable: dict[str, str] = {}

    def add(self, entry: Entry, model: str, revision: str, at: float) -> None:
        """A request to `model` ended on `revision` at `at`."""
        if revision != entry.candidate:
            self._stable[model] = revision
        key, second = (model, revision), int(at)
        last, taken = self._taken.get(key, (0, 0))
        if last != second:
            taken = 0
        if taken < PER_SECOND or self._known(key) < ENOUGH:
            error, abandoned, refused = outcome(entry, self._patience_ms)
            if not abandoned:
                self._taken[key] = (second, taken + 1)
                values = prediction(entry.prediction)
                seen = Seen(latency_ms(entry), values, round(at, 3), error, refused, entry.host or "")
                self._new.setdefault(key, []).append(seen)

    def _known(self, key: tuple[str, str]) -> int:
        return len(self._histories.get(key, ())) + len(self._new.get(key, ()))

    def of(self, model: str) -> History:
        """What the stable revision did."""
        return History((one.latency_ms, one.prediction) for one in self.seen(model))

    def seen(self, model: str) -> tuple[Seen, ...]:
        """The same request by request, in the order in which they ended."""
        key = (model, self._stable.get(model, ""))
        return (*self._histories.get(key, ()), *self._new.get(key, ()))[-KEPT:]

    def take_new(self) -> dict[tuple[str, str], list[Seen]]:
        """What was added since the last time, by model and revision."""
        new, self._new = self._new, {}
        for key, seen in new.items():
            self.remember(*key, seen)
        return new

    def remember(self, model: str, revision: str, seen: Iterable[Seen]) -> None:
        history = self._histories.pop((model, revision), None) or deque(maxlen=KEPT)
        history.extend(seen)
        self._histories[model, revision] = history

    def superfluous(self) -> list[tuple[str, str]]:
        """Drop, and name, the histories of all but each model's last revisions."""
        dropped: list[tuple[str, str]] = []
        kept = Counter[str]()
        for key in reversed([*self._histories]):
            kept[key[0]] += 1
            if kept[key[0]] > REVISIONS:
                dropped.append(key)
                del self._histories[key]
        return dropped

    def state(self) -> dict[str, str]:
        """The stable revision per model, as JSON; histories are left to `take_new` and `remember`."""
        return self._stable

    def restore(self, state: Mapping[str, str]) -> None:
        self._stable = dict(state)
