"""Revisions as containers: Docker's, or Podman's.

What runs is remembered by the engine alone, as labels of the containers, so that any controller finds all of it. One
that is stopping has that in its name, which is the one thing of a container that can still be changed; a later
controller takes up the stop. A container that died is replaced by one with the same name in the network, so a revision
keeps its addresses; what the old one wrote is kept here.

Who starts what died: the controller, so that it sees every death of a candidate and its cause. Once a revision has run
well for a while the engine does, also while no controller runs.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from serving.docker_engine import CONFINED, Container, Engine, give, runs_as
from serving.docker_volumes import remove_unused, volume_for
from serving.door import Door
from serving.engine_errors import EngineError
from serving.envoy_control import DOMAIN
from serving.image_context import CACHE, PORT
from serving.local_health import Health
from serving.local_state import keep, parse_revision, tail
from serving.revision import Address, Revision, RevisionState, RevisionStatus
from serving.target import TargetError

_logger = logging.getLogger(__name__)

_STOPPING = ".stopping"
_KILL_SECONDS = 2.0
"""A revision that still runs so long after its drain time is killed."""
_SETTLED_SECONDS = 600.0
"""After so long the engine starts it again by itself."""
_KILLED = 128 + signal.SIGKILL
_KEPT_WORDS = 2000
"""So many characters of why a container ended are kept on the one that took its place."""
_KEPT_LINES = 1000
"""So much of what it wrote is kept of a container that is gone."""


@dataclass(frozen=True, slots=True)
class Running:
    """The containers of one revision."""

    revision: Revision
    containers: tuple[Container, ...]
    """By their replica's number."""

    @property
    def stopping(self) -> bool:
        return any(one.name.endswith(_STOPPING) for one in self.containers)

    @property
    def alive(self) -> tuple[Container, ...]:
        return tuple(one for one in self.containers if one.running)

    @property
    def started(self) -> float:
        return min(float(one.labels["started"]) for one in self.containers)

    @property
    def restarts(self) -> int:
        return max(int(one.labels["restarts"]) for one in self.containers)


class DockerTarget:
    """`ServingTarget` in an engine, with images that it has or can pull."""

    def __init__(
        self,
        home: Path,
        engine: Engine,
        network: str,
        door: Door,
        log_url: str,
        environment: Mapping[str, str] | None = None,
        settled_seconds: float = _SETTLED_SECONDS,
        fetching: Mapping[str, str] | None = None,
    ) -> None:
        """`log_url`: where predictions are logged, a folder of the engine's machine or a URL, empty for nowhere.

        `fetching`: variables of servers whose model is not in their image, and of no others.
        """
        self._home = home.absolute()
        self._engine = engine
        self._network = network
        self._door = door
        self._log_url = str(Path(log_url).absolute()) if log_url and "://" not in log_url else log_url
        self._environment = dict(environment or {})
        self._settled_seconds = settled_seconds
        self._fetching = dict(fetching or {})
        self._health = Health(door)
        self._guard = threading.RLock()
        self._draining: set[str] = set()
        self._kept: set[str] = set()
        self._was_ready: set[str] = set()

    def start(self, revision: Revision) -> None:
        with self._guard, _translated(f"start {revision.id}"):
            running = self._running().get(revision.id)
            if running is not None and running.stopping:
                raise TargetError(f"{revision.id} is still stopping", retryable=True)
            self._check_image(revision)
            self._engine.network(self._network)
            there = {int(one.labels["replica"]): one for one in running.containers} if running else {}
            for replica in range(revision.settings.replicas):
                self._start(revision, replica, there.get(replica), running.started if running else time.time())

    def status(self) -> Mapping[str, RevisionStatus]:
        with self._guard, _translated("read the state of the revisions"):
            found = self._running()
            for running in found.values():
                if running.stopping:
                    self._drain(running)
            asked = {
                one.id: (running.revision.id, _address(running.revision, int(one.labels["replica"])))
                for running in found.values()
                if not running.stopping
                for one in running.alive
            }
            said = self._health.look(asked)
            return {key: self._status(running, said) for key, running in found.items()}

    def stop(self, revision_id: str) -> None:
        with self._guard, _translated(f"stop {revision_id}"):
            running = self._running().get(revision_id)
            if running is None or running.stopping:
                return
            self._was_ready.discard(revision_id)
            if not running.alive:
                self._remove(running, 0.0)
                return
            for one in running.containers:
                self._engine.rename(one.id, one.name + _STOPPING)
            self._drain(running)

    def logs(self, revision_id: str, lines: int = 100) -> tuple[str, ...]:
        with _translated(f"read the log of {revision_id}"):
            found = self._engine.containers(role="revision", revision=revision_id)
            now = [line for one in found for line in self._engine.logs(one.id, lines)][-lines:]
            return tuple(now) or tail(self._home / "logs" / f"{revision_id}.log", lines)

    def _running(self) -> dict[str, Running]:
        found: dict[str, list[Container]] = {}
        for one in self._engine.containers(role="revision"):
            found.setdefault(one.labels["revision"], []).append(one)
        return {key: _revision_of(containers) for key, containers in found.items()}

    def _check_image(self, revision: Revision) -> None:
        if self._engine.image(revision.image) is not None:
            return
        if "@" not in revision.image:
            raise TargetError(f"{revision.id}: its image {revision.image} is not in the engine", retryable=True)
        self._engine.pull(revision.image)

    def _start(self, revision: Revision, replica: int, before: Container | None, started: float) -> None:
        """See that the replica runs; `before` is its container, where it had one."""
        restarts, why = 0, ""
        if before is not None:
            if before.running:
                return
            restarts, why = int(before.labels["restarts"]) + 1, self._why_ended(revision, before)
            self._put_away(revision.id, [before])
            self._engine.remove(before.id)
        settings = revision.settings
        memory = settings.memory_mb * 2**20 if settings.memory_mb else None
        volume = volume_for(self._engine, revision.image)
        self._engine.start(
            f"{self._engine.installation}-{_name(revision, replica)}",
            revision.image,
            network=self._network,
            aliases=[_address(revision, replica).host],
            labels={
                "role": "revision",
                "revision": revision.id,
                "replica": str(replica),
                "of": json.dumps(asdict(revision)),
                "started": str(started),
                "restarts": str(restarts),
                "after": why[:_KEPT_WORDS],
            },
            environment=self._environment_of(revision, fetches=volume is not None),
            user=runs_as(),
            stop_seconds=round(settings.drain_seconds + _KILL_SECONDS),
            mem_limit=memory,
            memswap_limit=memory,
            nano_cpus=round(settings.cpus * 1e9) if settings.cpus else None,
            tmpfs={"/tmp": "size=256m,mode=1777"},  # noqa: S108 - of a container
            binds=self._mounts() | ({volume: {"bind": CACHE, "mode": "rw"}} if volume else {}),
            **CONFINED,
        )

    def _mounts(self) -> dict[str, dict[str, str]]:
        """The folder of the prediction log, where it is one."""
        if not self._log_url or "://" in self._log_url:
            return {}
        folder = Path(self._log_url)
        folder.mkdir(parents=True, exist_ok=True)
        give(folder)
        return {self._log_url: {"bind": self._log_url, "mode": "rw"}}

    def _environment_of(self, revision: Revision, *, fetches: bool) -> dict[str, str]:
        server = {
            "MODEL_NAME": revision.version.model,
            "MODEL_VERSION": str(revision.version.version),
            "REVISION": revision.id,
            "PREDICTION_LOG": self._log_url,
            "WORKERS": str(revision.settings.workers),
            "DRAIN": str(revision.settings.drain_seconds),
        }
        fetching = {"MODEL_CACHE": CACHE, **self._fetching} if fetches else {}
        return server | self._environment | fetching | revision.settings.server

    def _status(self, running: Running, said: Mapping[str, str | None]) -> RevisionStatus:
        """`said` of each container: None where it does not say that it is ready, otherwise what is wrong."""
        revision = running.revision
        addresses = tuple(_address(revision, replica) for replica in range(revision.settings.replicas))
        state, reason = self._judged(running, [said.get(one.id) for one in running.alive])
        if state is RevisionState.READY and time.time() - running.started > self._settled_seconds:
            self._keep(running)
        fetched = max((self._health.starting(one.id).fetched for one in running.alive), default=0)
        started = datetime.fromtimestamp(running.started, UTC)
        return RevisionStatus(revision, state, addresses, started, running.restarts, reason, fetched)

    def _judged(self, running: Running, said: Sequence[str | None]) -> tuple[RevisionState, str]:
        """A revision is ready once all its replicas are, and stays so while one of them answers."""
        wanted, ready = running.revision.settings.replicas, [words for words in said if words is not None]
        if running.stopping:
            return RevisionState.STOPPING, ""
        if len(ready) == wanted:
            self._was_ready.add(running.revision.id)
            return RevisionState.READY, next(filter(None, ready), "")
        dead = [one for one in running.containers if not one.running]
        if ready and running.revision.id in self._was_ready:
            why = f": {self._why_ended(running.revision, dead[0])}" if dead else ""
            return RevisionState.READY, f"{len(ready)} of {wanted} replicas answer{why}"
        if dead:
            return RevisionState.FAILED, self._why_ended(running.revision, dead[0])
        at = next(filter(None, (self._health.starting(one.id).detail for one in running.alive)), "")
        before = next(filter(None, (one.labels.get("after") for one in running.alive)), "")
        why = f"; the one before {before}" if before else ""
        return RevisionState.STARTING, f"{at or 'does not say that it is ready'}{why}"

    def _why_ended(self, revision: Revision, container: Container) -> str:
        ending = self._engine.ending(container.id)
        how = f"ended with status {ending.code}" if ending.code <= 128 else f"was ended by signal {ending.code - 128}"
        limit = f"the limit is {revision.settings.memory_mb} MiB" if revision.settings.memory_mb else "no limit"
        if ending.memory:
            how = f"was ended by the system for want of memory ({limit})"
        elif ending.code == _KILLED and revision.settings.memory_mb:
            how += f", probably for want of memory ({limit}), which this engine does not tell for certain"
        if ending.error:
            how = f"cannot be started: {ending.error}"
        return "\n".join([how, *self._engine.logs(container.id, 10)])

    def _keep(self, running: Running) -> None:
        for one in running.containers:
            if one.id not in self._kept:
                self._engine.keep(one.id)
                self._kept.add(one.id)

    def _drain(self, running: Running) -> None:
        """Let it end in its time, in a thread; then it is forgotten."""
        key = running.revision.id
        if key not in self._draining:
            self._draining.add(key)
            threading.Thread(target=self._end, args=(running,), name=f"drain {key}", daemon=True).start()

    def _end(self, running: Running) -> None:
        """Where that fails the next look tries again."""
        try:
            self._remove(running, running.revision.settings.drain_seconds + _KILL_SECONDS)
        except EngineError as error:
            _logger.warning("%s cannot be ended: %s", running.revision.id, error)
        finally:
            self._draining.discard(running.revision.id)

    def _remove(self, running: Running, seconds: float) -> None:
        """All replicas at the same time; raises `EngineError`."""
        if seconds and running.alive:
            with ThreadPoolExecutor(len(running.alive)) as pool:
                list(pool.map(lambda one: self._engine.stop(one.id, seconds), running.alive))
        self._put_away(running.revision.id, running.containers)
        for one in running.containers:
            self._engine.remove(one.id)
        with self._guard:  # so that no container is about to have the volume that is removed
            remove_unused(self._engine)

    def _put_away(self, revision_id: str, containers: Sequence[Container]) -> None:
        """Keep what they wrote."""
        lines = [line for one in containers for line in self._engine.logs(one.id, _KEPT_LINES)]
        keep(revision_id, lines, self._home / "logs")


def _revision_of(containers: Sequence[Container]) -> Running:
    ordered = sorted(containers, key=lambda one: int(one.labels["replica"]))
    return Running(parse_revision(json.loads(ordered[0].labels["of"])), tuple(ordered))


def _name(revision: Revision, replica: int) -> str:
    """As names of containers and of machines may be."""
    return f"{''.join(c if c.isascii() else '-' for c in revision.id)}-{replica}"


def _address(revision: Revision, replica: int) -> Address:
    return Address(f"{_name(revision, replica)}.{DOMAIN}", PORT)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise TargetError(f"cannot {what}: {error}", retryable=error.retryable) from error
    except OSError as error:
        raise TargetError(f"cannot {what}: {error}", retryable=True) from error
