"""Removing the images that nothing needs: by command, and by itself while a controller leads.

It is asked what is needed while nobody builds, so nothing that a build is about to use goes. A rollout may begin all
the same between the question and the removal; its revision finds its image missing then, and has it built again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.keeping import Kept, judged, needed
from pipelines.live import by_model
from pipelines.store import Inbox, RolloutStore, StoreError
from serving.image import ImageError
from serving.stock import ImageStock, Removal, Stored

log = logging.getLogger(__name__)

_FIRST_SECONDS = 600.0
"""After it began to lead a controller has other things to do, for so long at most."""
_AGAIN_SECONDS = 60.0
"""Until the next try where an image was being built, or the engine did not answer."""


@dataclass(frozen=True, slots=True)
class Cleaning:
    """Decides and removes. Every method raises `ImageError` or `StoreError`."""

    stock: ImageStock
    rollouts: RolloutStore
    inbox: Inbox
    last: int
    """Of how many versions of each model, the last ones built, the image stays."""

    def look(self) -> tuple[Kept, ...]:
        """What is stored, and why it stays."""
        return self._judged(self.stock.stored())

    def clean(self) -> tuple[Removal, ...]:
        """Remove what nothing needs; what came of each."""
        return self.stock.remove(self._going)

    def _judged(self, stored: tuple[Stored, ...]) -> tuple[Kept, ...]:
        lives = by_model(self.rollouts.lives()).values()
        return judged(stored, needed(self.rollouts.active(), self.inbox.pending(), lives), self.last)

    def _going(self, stored: tuple[Stored, ...]) -> frozenset[str]:
        return frozenset(one.stored.name for one in self._judged(stored) if not one.why)


class CleaningTurn:
    """Cleans every so often, in a thread of its own, so that rollouts do not wait for it."""

    def __init__(
        self, clean: Callable[[], tuple[Removal, ...]], seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`seconds`: between two cleanings; 0 for none at all."""
        self._clean, self._seconds, self._clock = clean, seconds, clock
        self._due = clock() + min(seconds, _FIRST_SECONDS)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cleaning")
        self._at_work: Future[None] | None = None

    def look(self) -> None:
        """Begin, where it is time and the last one is over."""
        at_work = self._at_work is not None and not self._at_work.done()
        if self._seconds and not at_work and self._clock() >= self._due:
            self._at_work = self._pool.submit(self._work)
            self._at_work.add_done_callback(_report)

    def close(self) -> None:
        """Begin none any more; what is being removed goes on to its end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self) -> None:
        self._due = self._clock() + min(self._seconds, _AGAIN_SECONDS)
        try:
            done = self._clean()
        except (ImageError, StoreError) as error:
            log.info("images are not cleaned: %s", error)
            return
        self._due = self._clock() + self._seconds
        for one in done:
            if one.trouble:
                log.warning("%s stays although nothing needs it: %s", one.stored.name, one.trouble)
        gone = [one.stored for one in done if not one.trouble]
        if gone:
            log.info("removed what nothing needs: %d things, %d bytes", len(gone), sum(one.size for one in gone))


def _report(work: Future[None]) -> None:
    """Nobody waits for it: what nobody thought of has to be seen in the log at least."""
    if not work.cancelled() and (error := work.exception()):
        log.error("a cleaning ended unexpectedly", exc_info=error)
