"""A platform in memory: revisions that become ready, die or never answer, as they are told to.

Time passes by calls of `status`, so that a simulated world needs no clock to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from serving.revision import Address, Revision, RevisionState, RevisionStatus
from serving.target import TargetError

NEEDS_MB = 64
"""A revision that may use less memory than this cannot start."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What becomes of a revision, counted in calls of `status` since it was started."""

    ready_after: int = 1
    """It is ready from this call on; a number never reached means never ready."""
    dies_after: int | None = None
    """It has ended by itself from this call on."""
    drains_for: int = 1
    """How many calls still show it after it was stopped."""


@dataclass(slots=True)
class _Running:
    revision: Revision
    behaviour: Behaviour
    started: datetime
    port: int
    age: int = 0
    restarts: int = 0
    stopping: int | None = None
    died: str = ""
    lines: list[str] = field(default_factory=list)


class FakeTarget:
    """`ServingTarget` in memory."""

    def __init__(
        self,
        behaviour: Behaviour = Behaviour(),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        holds: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """`holds` tells whether an image is there."""
        self._holds = holds
        self.behaviour = behaviour
        """Of revisions that `behaviours` does not name."""
        self.behaviours: dict[str, Behaviour] = {}
        """By revision id; counts from the next start."""
        self.troubles: dict[str, str] = {}
        """By revision id, what is wrong although it is ready."""
        self.broken = False
        """While set, every method raises a `TargetError` that can be retried."""
        self._clock = clock
        self._running: dict[str, _Running] = {}
        self._logs: dict[str, list[str]] = {}
        self._ports = 20000

    def images(self) -> set[str]:
        """Of what runs, which cannot be removed."""
        return {running.revision.image for running in self._running.values() if not running.died}

    def start(self, revision: Revision) -> None:
        self._check()
        running = self._running.get(revision.id)
        if (running is None or running.died) and not self._holds(revision.image):
            raise TargetError(f"{revision.id}: its image {revision.image} is not there", retryable=True)
        if running is None:
            self._ports += 1
            behaviour = self._behaviour(revision)
            lines = self._logs.setdefault(revision.id, [])
            running = _Running(revision, behaviour, self._clock(), self._ports, lines=lines)
            self._running[revision.id] = running
        elif running.stopping is not None:
            raise TargetError(f"{revision.id} is still stopping", retryable=True)
        elif not running.died:
            return
        else:
            running.restarts += 1
        running.age, running.died, running.behaviour = 0, "", self._behaviour(revision)
        running.lines.append(f"starting {revision.version}")
        self._age(running)

    def status(self) -> Mapping[str, RevisionStatus]:
        self._check()
        for key, running in list(self._running.items()):
            running.age += 1
            self._age(running)
            if running.stopping is not None and running.age - running.stopping > running.behaviour.drains_for:
                del self._running[key]
        return {key: _status(running, self.troubles.get(key, "")) for key, running in self._running.items()}

    def stop(self, revision_id: str) -> None:
        self._check()
        running = self._running.get(revision_id)
        if running is None or running.stopping is not None:
            return
        if running.died:
            del self._running[revision_id]
        else:
            running.stopping = running.age
            running.lines.append("stopping")

    def logs(self, revision_id: str, lines: int = 100) -> tuple[str, ...]:
        self._check()
        return tuple(self._logs.get(revision_id, ())[-lines:])

    def kill(self, revision_id: str, reason: str = "killed") -> None:
        """Let a running revision end by itself, now."""
        running = self._running[revision_id]
        running.died = reason
        running.lines.append(reason)

    def _check(self) -> None:
        if self.broken:
            raise TargetError("the platform does not answer", retryable=True)

    def _behaviour(self, revision: Revision) -> Behaviour:
        needs = Behaviour(dies_after=0)
        enough = revision.settings.memory_mb is None or revision.settings.memory_mb >= NEEDS_MB
        return self.behaviours.get(revision.id, self.behaviour) if enough else needs

    def _age(self, running: _Running) -> None:
        dies = running.behaviour.dies_after
        if dies is not None and running.age >= dies and not running.died and running.stopping is None:
            self.kill(running.revision.id, "ended by itself")


def _status(running: _Running, trouble: str) -> RevisionStatus:
    state = _state(running)
    told = {
        RevisionState.FAILED: running.died,
        RevisionState.STARTING: "has not answered yet",
        RevisionState.READY: trouble,
    }
    reason = told.get(state, "")
    address = Address("127.0.0.1", running.port)
    return RevisionStatus(running.revision, state, (address,), running.started, running.restarts, reason)


def _state(running: _Running) -> RevisionState:
    if running.stopping is not None:
        return RevisionState.STOPPING
    if running.died:
        return RevisionState.FAILED
    return RevisionState.READY if running.age >= running.behaviour.ready_after else RevisionState.STARTING
