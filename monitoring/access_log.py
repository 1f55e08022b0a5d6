"""Envoy's access log, read into settled blocks.

One reader owns the log, or the logs of several Envoys. What it has read, what is not settled yet and what is
settled are saved in one transaction, so that a reader killed at any moment goes on as if nothing had happened: no
request is lost and none counts twice. What leads to no block is saved seldom, and read again after a crash.
Reading happens when somebody asks, and whoever asks seldom reads more at a time. The price is that the log grows
while nobody asks: once read to its end it is begun anew when it is large.

Requests of each log are folded into blocks of their own, because only what went through one Envoy is in a certain
order; the blocks of a rollout are numbered together.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from monitoring.block_store import BlockStore, Counted, OutrunError, Progress, Saved
from monitoring.blocks import ArmCount, Block, BlockError, Scale, Seen
from monitoring.bursts import spread_of
from monitoring.entities import Entities
from monitoring.filling import Folding
from monitoring.folder import Folder
from monitoring.label_policy import LabelPolicy
from monitoring.label_reading import Awaitings
from monitoring.label_store import LabelStore
from monitoring.labels import Kept, Label, LabelBlock
from monitoring.log_entry import Entry, entries
from monitoring.log_file import Log
from monitoring.log_line import (
    GATEWAY_STARTED,
    STARTED,
    UNCOMPARED,
    is_first,
    is_shielding,
    record_of,
    revision_of,
    written_at,
)
from monitoring.shadow_blocks import ShadowBlock
from monitoring.shadow_reading import MARK, Shadows
from monitoring.traffic import Rates, Recent


@dataclass(frozen=True, slots=True)
class ReadingPolicy:
    """How the log is read. Times in seconds."""

    patience_seconds: float = 1.0
    """A client that leaves after waiting this long counts as an error of the revision, an earlier one not at all."""
    rest_seconds: float = 0.25
    """The log is not looked at more often than this."""
    rotate_bytes: int = 64 * 2**20
    """The log is begun anew when it has grown to this and is read to its end."""
    chunk_bytes: int = 4 * 2**20
    """How much is read at a time, and at most before it is saved."""
    save_seconds: float = 5.0
    """What settled nothing is saved after this time."""
    known_seconds: float = 5.0
    """No rate is told before the log covers this time."""
    away_seconds: float = 15.0
    """Who did not read for this long was away."""
    timeout_seconds: float = 30.0
    """Envoy's time-out for a request: in a shadow stage, a client that leaves earlier is no evidence of anything."""


class AccessLogBlocks:
    """`EvidenceSource` over the access logs of Envoys with the same routes, always in the same order.

    What is settled is kept in ``blocks.sqlite3`` below `home`.
    """

    def __init__(
        self,
        logs: Sequence[Log],
        home: Path,
        *,
        folding: Folding | None = None,
        reading: ReadingPolicy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._logs = tuple(logs)
        self._folding = folding or Folding()
        self._policy = reading or ReadingPolicy()
        self._patience_ms = 1000.0 * self._policy.patience_seconds
        self._clock = clock
        self._guard = threading.Lock()
        self._store = BlockStore(home / "blocks.sqlite3")
        self._label_store = LabelStore(home / "blocks.sqlite3")
        self._looked = float("-inf")
        self._failures = Counter[str]()
        self._read_at, self._saved_at, self._unsaved = 0.0, 0.0, 0
        self._load()

    def prepare(self, rollout: str, model: str, scale: Scale, labels: LabelPolicy = LabelPolicy()) -> None:
        with self._reading():
            if rollout in self._prepared or rollout in self._forgotten:
                return
            self._catch_up()
            self._prepared.add(rollout)
            self._awaitings.begin(rollout, labels)
            for number in range(len(self._logs)):
                self._folder(rollout, number).measure(scale, self._recent.of(model))
            self._warn(rollout, spread_of(self._recent.seen(model)).ratio)
            self._save()

    def blocks(self, rollout: str, after: int = 0) -> tuple[Block, ...]:
        self.pump()
        return self._store.blocks(rollout, after)

    def pairs(self, rollout: str, after: int = 0) -> tuple[ShadowBlock, ...]:
        self.pump()
        return self._store.pairs(rollout, after)

    def keep_labels(self, labels: Sequence[Label]) -> Kept:
        return self._label_store.keep(labels, self._clock())

    def labelled(self, rollout: str, after: int = 0) -> tuple[LabelBlock, ...]:
        self.pump()
        with self._reading():
            return self._awaitings.told(rollout, after, self._now())

    def rate(self, model: str) -> float | None:
        self.pump()
        return self._rates.of(model, self._now())

    def seen(self, model: str) -> tuple[Seen, ...]:
        self.pump()
        with self._guard:
            return self._recent.seen(model)

    def forget(self, rollout: str) -> None:
        with self._reading():
            for key in [key for key in self._folders if key[0] == rollout]:
                self._counts.update(self._folders.pop(key).counts)
            self._counts.update(self._shadows.forget(rollout))
            self._forgotten |= {rollout}
            self._prepared.discard(rollout)
            self._numbers.pop(rollout, None)
            self._entities.pop(rollout, None)
            self._counts["unlabelled"] += self._awaitings.forget(rollout)
            self._save(forget=(rollout,))

    def counters(self) -> Mapping[str, int]:
        """How often what had to be put right while reading, since the beginning; `COUNTERS` says what each counts."""
        with self._guard:
            total = Counter(dict.fromkeys(COUNTERS, 0))
            parts = [log.counts for log in self._logs] + [folder.counts for folder in self._folders.values()]
            for counts in (self._counts, self._failures, self._shadows.counts(), *parts):
                total.update(counts)
            total["unlabelled"] += self._awaitings.passed_over()
        return dict(total)

    def pump(self) -> None:
        """Read what is new. The controller's loop calls it too, so that the log stays small without rollouts."""
        if time.monotonic() - self._looked >= self._policy.rest_seconds:
            self._looked = time.monotonic()
            with suppress(OutrunError), self._reading():
                self._catch_up()

    def _catch_up(self) -> None:
        now = self._clock()
        self._counts["away"] += 0 < self._read_at < now - self._policy.away_seconds
        for number, log in enumerate(self._logs):
            while data := log.read(self._policy.chunk_bytes):
                self._advance(number, self._take(number, data))
                self._unsaved += len(data)
                if self._unsaved >= self._policy.chunk_bytes:
                    self._save()
            at = log.now()
            self._advance(number, self._now() if at is None else at)
        self._read_at = now
        old = self._unsaved and time.monotonic() - self._saved_at >= self._policy.save_seconds
        if old or self._pending or self._shadows.waiting or any(log.moved for log in self._logs):
            self._save()
        for log in self._logs:
            log.rotate(self._policy.rotate_bytes)

    def _now(self) -> float:
        """The time by which the logs go: of several clocks the one behind, for which nothing is over too soon."""
        return min((at for log in self._logs if (at := log.now()) is not None), default=self._clock())

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One at a time; whatever fails, memory becomes what is saved, and the next call reads on from there."""
        with self._guard:
            try:
                if not self._loaded:
                    self._load()
                yield
            except OSError as error:
                self._forget_unsaved("unread")
                raise BlockError(f"the access log cannot be read: {error}", retryable=True) from error
            except BlockError as error:
                self._forget_unsaved("outrun" if isinstance(error, OutrunError) else "unsaved")
                raise

    def _forget_unsaved(self, why: str) -> None:
        self._failures[why] += 1
        self._loaded = False

    def _load(self) -> None:
        saved = self._store.load()
        state = saved.state
        self._serial, self._forgotten = saved.serial, saved.forgotten
        for log, position in zip_longest(self._logs, state.get("logs", ())[: len(self._logs)]):
            log.restore(position)
        self._counts = Counter[str](state.get("counts", {}))
        self._read_at = state.get("read_at", 0.0)
        self._prepared = set[str](state.get("prepared", ()))
        self._numbers: dict[str, int] = state.get("numbers", {})
        self._rates = Rates(state.get("rates"), self._policy.known_seconds)
        self._recent = Recent(self._patience_ms)
        self._recent.restore(state.get("stable", {}))
        for model, revision, seen in saved.history:
            self._recent.remember(model, revision, seen)
        self._entities = dict[str, Entities]()
        for rollout, met in saved.entities:
            self._met(rollout).recall(met)
        self._awaitings = Awaitings(self._label_store, state.get("awaitings"))
        self._folders = {(f["rollout"], log): self._restored(log, f, saved) for log, f in state.get("folders", ())}
        self._shadows = Shadows(1000.0 * self._policy.timeout_seconds, self._folding, state.get("shadows"))
        self._pending: list[Block] = []
        self._unsaved, self._saved_at, self._loaded = 0, time.monotonic(), True

    def _restored(self, log: int, state: Mapping[str, Any], saved: Saved) -> Folder:
        key = (state["rollout"], log)
        parts = [part for rollout, number, part in saved.parts if (rollout, number) == key]
        settled = [(each.at, each.ids) for each in saved.counted if (each.rollout, each.log) == key]
        rollout = state["rollout"]
        return Folder.restore(state, parts, settled, self._folding, self._met(rollout), self._awaitings.of(rollout))

    def _met(self, rollout: str) -> Entities:
        return self._entities.setdefault(rollout, Entities())

    def _save(self, forget: tuple[str, ...] = ()) -> None:
        """Make everything read so far count; what failed before is counted with it."""
        now = self._clock()
        counts = self._counts + self._failures
        parts = [(*key, folder.take_part()) for key, folder in self._folders.items()]
        settled = [(key, folder.take_settled()) for key, folder in self._folders.items()]
        progress = Progress(
            self._state(counts),
            self._pending,
            [Counted(rollout, log, now, ids) for (rollout, log), ids in settled if ids],
            parts,
            self._recent.take_new(),
            self._recent.superfluous(),
            self._shadows.take_new(),
            [(rollout, new) for rollout, entities in self._entities.items() if (new := entities.take_new())],
            self._awaitings.take_new(),
            forget,
            now - self._folding.memory_seconds,
        )
        self._serial = self._store.save(self._serial, progress)
        self._counts, self._failures = counts, Counter()
        self._pending, self._unsaved, self._saved_at = [], 0, time.monotonic()
        for log in self._logs:
            log.tidy()

    def _state(self, counts: Counter[str]) -> dict[str, Any]:
        return {
            "logs": [log.state() for log in self._logs],
            "counts": counts,
            "read_at": self._read_at,
            "prepared": sorted(self._prepared),
            "numbers": self._numbers,
            "rates": self._rates.state(self._now()),
            "stable": self._recent.state(),
            "shadows": self._shadows.state(),
            "awaitings": self._awaitings.state(),
            "folders": [(log, folder.state()) for (_, log), folder in self._folders.items()],
        }

    def _take(self, log: int, data: bytes) -> float:
        """Hand every line to the rollout it belongs to; the latest time any of them was written."""
        found, garbled = entries(data)
        newest = 0.0
        for entry in found:
            try:
                newest = max(newest, self._follow(log, entry))
            except ValueError:
                self._counts["garbled"] += 1
        for text in garbled:
            self._counts["garbled" if text.endswith(b"}") else "cut"] += 1
        self._counts["lines"] += len(found)
        return newest

    def _follow(self, log: int, entry: Entry) -> float:
        """When the line was written; 0 where it is about none of our requests."""
        if entry.type == GATEWAY_STARTED:
            self._rates.begin(entry.start)
            for (_, number), folder in self._folders.items():
                if number == log:
                    folder.abandon(entry.start)
            self._shadows.abandon(log, entry.start)
            return entry.start
        if entry.copy:
            self._shadows.add(log, entry, self._forgotten)
            return written_at(entry)
        if entry.model is None or entry.cluster is None:
            return 0.0
        at = written_at(entry)
        self._rates.begin(at)
        if is_shielding(entry):
            self._counts["shielded"] += entry.type != STARTED
            return at
        record = None
        if entry.step and entry.step.endswith(MARK):
            self._shadows.add(log, entry, self._forgotten)
        elif entry.step and not entry.step.endswith(UNCOMPARED):
            record = record_of(entry, self._patience_ms)
        if is_first(entry):
            self._rates.add(entry.model, at)
        if entry.type != STARTED:
            self._recent.add(entry, entry.model, revision_of(entry), at)
        if record is not None and record.rollout not in self._forgotten:
            self._folder(record.rollout, log).add(record)
        return at

    def _folder(self, rollout: str, log: int) -> Folder:
        folder = self._folders.get((rollout, log))
        if folder is None:
            folder = Folder(rollout, self._folding, self._met(rollout), self._awaitings.of(rollout))
            self._folders[rollout, log] = folder
            self._share_ruler(rollout)
        return folder

    def _advance(self, log: int, now: float) -> None:
        """Everything that this log said before `now` has been taken."""
        self._shadows.advance(log, now)
        for (rollout, number), folder in [*self._folders.items()]:
            if number == log:
                unruled = folder.ruler is None
                self._pending += [self._numbered(block) for block in folder.advance(now)]
                if unruled and folder.ruler is not None:
                    self._share_ruler(rollout)

    def _warn(self, rollout: str, ratio: float) -> None:
        """Say first of all that failures came in bursts before the rollout, where they did."""
        if ratio > 1:
            now = self._clock()
            said = Block(1, rollout, -1, now, now, ArmCount(), ArmCount(), bursts=ratio)
            self._pending.append(self._numbered(said))

    def _numbered(self, block: Block) -> Block:
        number = self._numbers[block.rollout] = self._numbers.get(block.rollout, 0) + 1
        return block if block.id == number else replace(block, id=number)

    def _share_ruler(self, rollout: str) -> None:
        """One ruler for all logs of a rollout: the first."""
        several = [folder for (name, _), folder in self._folders.items() if name == rollout]
        for ruler, since in [(folder.ruler, folder.ruled) for folder in several if folder.ruler is not None][:1]:
            for folder in several:
                folder.adopt(ruler, since)


COUNTERS = {
    "lines": "Lines read.",
    "garbled": "Lines that are none of Envoy's; skipped.",
    "cut": "Lines that were not written to their end; skipped.",
    "renamed": "Logs begun anew, because they were large.",
    "truncated": "Logs that became shorter; read again from their beginning.",
    "replaced": "Logs that vanished; what follows is read, what was not read of them is lost.",
    "away": "Times that nobody had read for long.",
    "unread": "Times that a log could not be read; tried again.",
    "unsaved": "Times that nothing could be saved, as on a full disk; read again.",
    "outrun": "Times that another reader was ahead; its work counts.",
    "repeated": "Records that came twice; dropped.",
    "stale": "Records of requests too old to be anything but repetitions; dropped.",
    "disordered": "Records of a request's start that came after its end; dropped.",
    "late": "Records that came after their neighbours were in blocks; counted in a later block.",
    "uncopied": "Requests of a shadow stage without a copy; no pair.",
    "undecided": "Requests of a shadow stage whose client left, or whose copy was not sent; no pair.",
    "unfollowed": "Requests of a shadow stage that came while too many others were waited for; no pair.",
    "overdue": "Records of a shadow stage that came when later requests were told, or twice; dropped.",
    "familiar": "Requests of entities that had been counted already, or came after too many others; no unit.",
    "unlabelled": "Requests whose labels are not waited for, because too many others' are.",
    "shielded": "Requests that failed on the candidate and were answered by the stable revision.",
}
"""Every counter of reading, and what it means."""
