"""Envoy's access log, read into settled blocks.

One reader owns the log. What it has read, what is not settled yet and what is settled are saved in one
transaction, so that a reader killed at any moment goes on as if nothing had happened: no request is lost and
none counts twice. Reading happens when somebody asks, and whoever asks seldom reads more at a time. The price
is that the log grows while nobody asks: once read to its end it is begun anew when it is large.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitoring.block_store import BlockStore, OutrunError
from monitoring.blocks import Block, BlockError, Folder, Folding, Scale
from monitoring.log_line import GATEWAY_STARTED, Line, parse
from serving.gateway import GatewayError

logger = logging.getLogger(__name__)


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
    """How much is read and saved at a time."""
    rate_seconds: int = 60
    """Requests per second are told over this time."""
    known_seconds: float = 5.0
    """No rate is told before the log covers this time."""


class Rates:
    """Scoring requests per model, counted by second."""

    def __init__(self, policy: ReadingPolicy, saved: dict[str, Any] | None = None) -> None:
        self._policy = policy
        self._since: float | None = saved["since"] if saved else None
        counts = saved["counts"] if saved else {}
        self._counts = {m: Counter({int(second): n for second, n in seen.items()}) for m, seen in counts.items()}

    def add(self, line: Line) -> None:
        self._since = line.at if self._since is None else self._since
        if line.first:
            self._counts.setdefault(line.model, Counter())[int(line.at)] += 1

    def of(self, model: str, now: float) -> float | None:
        """None where the log covers too little time, or has told of no request to the model."""
        if self._since is None or model not in self._counts or now - self._since < self._policy.known_seconds:
            return None
        covered = min(self._policy.rate_seconds, now - self._since)
        return sum(n for second, n in self._counts[model].items() if second + 1 > now - covered) / covered

    def state(self, now: float) -> dict[str, Any]:
        """What has to be kept; drops the seconds that are too long ago to matter."""
        for counts in self._counts.values():
            for second in [second for second in counts if second < now - self._policy.rate_seconds - 1]:
                del counts[second]
        return {"since": self._since, "counts": self._counts}


class AccessLogBlocks:
    """`BlockSource` over the access log of one Envoy; what is settled is kept in ``blocks.sqlite3`` below `home`.

    `reopen` makes Envoy begin a new file after the old one was renamed; it may fail and is asked again.
    """

    def __init__(
        self,
        log: Path,
        home: Path,
        reopen: Callable[[], object],
        *,
        folding: Folding | None = None,
        reading: ReadingPolicy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._rotated = log.with_name(f"{log.name}.1")
        self._reopen = reopen
        self._folding = folding or Folding()
        self._policy = reading or ReadingPolicy()
        self._clock = clock
        self._guard = threading.Lock()
        self._store = BlockStore(home / "blocks.sqlite3")
        self._looked = float("-inf")
        self._load()

    def prepare(self, rollout: str, model: str, scale: Scale) -> None:
        self.pump()

    def blocks(self, rollout: str, after: int = 0) -> tuple[Block, ...]:
        self.pump()
        return self._store.blocks(rollout, after)

    def rate(self, model: str) -> float | None:
        self.pump()
        return self._rates.of(model, self._clock())

    def forget(self, rollout: str) -> None:
        with self._reading():
            self._load()
            self._folders.pop(rollout, None)
            self._forgotten |= {rollout}
            self._save((), forget=(rollout,))

    def pump(self) -> None:
        """Read what is new. The controller's loop calls it too, so that the log stays small without rollouts."""
        with self._reading():
            if time.monotonic() - self._looked < self._policy.rest_seconds:
                return
            self._looked = time.monotonic()
            try:
                self._catch_up()
            except OutrunError:
                self._load()

    def _catch_up(self) -> None:
        while self._read():
            pass
        settled = self._advance(self._clock())
        if settled:
            self._save(settled)
        self._rotate()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One at a time; whatever fails, memory is what is saved, and the next call reads on from there."""
        with self._guard:
            try:
                yield
            except OSError as error:
                self._load()
                raise BlockError(f"the access log {self._log} cannot be read: {error}", retryable=True) from error
            except BlockError:
                self._load()
                raise

    def _load(self) -> None:
        saved = self._store.load()
        self._serial, self._forgotten = saved.serial, saved.forgotten
        self._inode: int = saved.state.get("inode", 0)
        self._offset: int = saved.state.get("offset", 0)
        self.garbled: int = saved.state.get("garbled", 0)
        self._rates = Rates(self._policy, saved.state.get("rates"))
        folders = [Folder.restore(state, self._folding) for state in saved.state.get("folders", ())]
        self._folders = {folder.rollout: folder for folder in folders}

    def _save(self, blocks: tuple[Block, ...], forget: tuple[str, ...] = ()) -> None:
        state = {
            "inode": self._inode,
            "offset": self._offset,
            "garbled": self.garbled,
            "rates": self._rates.state(self._clock()),
            "folders": [folder.state() for folder in self._folders.values()],
        }
        self._serial = self._store.save(self._serial, state, blocks, forget)

    def _read(self) -> bool:
        """Read and save one chunk; False where there was nothing new."""
        path = self._current()
        if path is None:
            return False
        over = path == self._rotated and self._log.exists()
        with path.open("rb") as file:
            file.seek(self._offset)
            data = file.read(self._policy.chunk_bytes)
        whole = data.rfind(b"\n") + 1 or (len(data) if len(data) == self._policy.chunk_bytes else 0)
        if not whole:
            return over and self._go_on()
        self._offset += whole
        newest = self._take(data[:whole])
        self._save(self._advance(newest))
        return True

    def _current(self) -> Path | None:
        """The file to read on in; what was renamed comes first."""
        for path in (self._rotated, self._log):
            if _inode(path) == self._inode != 0:
                if path == self._log:
                    self._rotated.unlink(missing_ok=True)
                return path
        first = next((path for path in (self._rotated, self._log) if path.exists()), None)
        self._inode, self._offset = (_inode(first) if first else 0), 0
        return first

    def _go_on(self) -> bool:
        """From the renamed file, which Envoy no longer writes to and which is read, to the new one."""
        self._inode, self._offset = _inode(self._log), 0
        self._save(())
        self._rotated.unlink(missing_ok=True)
        return True

    def _take(self, data: bytes) -> float:
        """Hand every line to the rollout it belongs to; the latest time any of them was written."""
        newest = 0.0
        for text in data.split(b"\n"):
            if not text:
                continue
            try:
                line = parse(text, self._policy.patience_seconds)
            except ValueError:
                self.garbled += 1
                continue
            if line is not None:
                self._follow(line)
                newest = max(newest, line.at)
        return newest

    def _follow(self, line: Line) -> None:
        self._rates.add(line)
        if line.kind == GATEWAY_STARTED:
            for folder in self._folders.values():
                folder.abandon(line.at)
        record = line.record
        if record is not None and record.rollout not in self._forgotten:
            folder = self._folders.setdefault(record.rollout, Folder(record.rollout, self._folding))
            folder.add(record)

    def _advance(self, now: float) -> tuple[Block, ...]:
        return tuple(block for folder in self._folders.values() for block in folder.advance(now))

    def _rotate(self) -> None:
        """Begin a new log where the present one is large, or where Envoy has not followed the last renaming."""
        if self._log.exists() and not self._rotated.exists() and self._log.stat().st_size >= self._policy.rotate_bytes:
            self._log.rename(self._rotated)
        if self._rotated.exists() and not self._log.exists():
            try:
                self._reopen()
            except GatewayError as error:
                logger.warning("the access log is begun anew later: %s", error)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0
