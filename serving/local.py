"""Revisions as processes of this machine: the target that needs neither Docker nor a cluster.

What runs is remembered below one folder, so that another controller on the same folder finds all of it. A
stop is carried out by a thread, which a later controller takes up again.

Limits, on Linux: memory as RLIMIT_DATA, which counts what a process has asked for and not what it has touched,
an equal share for each worker; CPU as affinity, so in whole cores, rounded up. Elsewhere there are none.
"""

from __future__ import annotations

import math
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from serving.local_health import Health, Starting
from serving.local_image import LocalImage
from serving.local_state import Folder, Record, put_away, tail, trim
from serving.processes import Process, adopt, launch
from serving.revision import Address, Revision, RevisionState, RevisionStatus
from serving.target import TargetError

_HOST = "127.0.0.1"

_KILL_SECONDS = 2.0
"""A revision that still runs so long after its drain time is killed."""


@dataclass(slots=True)
class _Running:
    folder: Folder
    record: Record
    process: Process | None

    @property
    def address(self) -> Address:
        return Address(_HOST, self.record.port)

    def alive(self) -> bool:
        return self.process is not None and self.process.alive()


class LocalTarget:
    """`ServingTarget` on this machine, with the images that `LocalImageBuilder` made below the same `home`."""

    def __init__(self, home: Path, log_url: str, environment: Mapping[str, str] | None = None) -> None:
        """`log_url`: where predictions are logged, empty for nowhere; `environment`: added to every server's own."""
        self._home = home.absolute()
        self._log_url = str(Path(log_url).absolute()) if log_url and "://" not in log_url else log_url
        self._environment = dict(environment or {})
        self._guard = threading.RLock()
        self._health = Health()
        self._running: dict[str, _Running] = {}
        with _translated("find the revisions"):
            self._adopt()

    def start(self, revision: Revision) -> None:
        with _translated(f"start {revision.id}"):
            known = self._running.get(revision.id)
            if known is None or not (known.alive() or known.record.stop_by):
                self._require_unchanged(revision)
            self._start(revision)

    def _require_unchanged(self, revision: Revision) -> None:
        """That what is started is what was built; others are not held up while a large model is read."""
        changed = self._image(revision).changed
        if changed:
            raise TargetError(f"{revision.id}: its image is not as it was built: {changed}", retryable=False)

    def _start(self, revision: Revision) -> None:
        with self._guard:
            running = self._running.get(revision.id)
            if running is None:
                folder = Folder(self._home / "revisions" / revision.id)
                running = _Running(folder, Record(revision, 0, time.time()), None)
            elif running.record.stop_by is not None:
                raise TargetError(f"{revision.id} is still stopping", retryable=True)
            elif running.alive():
                return
            elif running.process is not None:
                running.process.end(0)
                running.record = replace(running.record, restarts=running.record.restarts + 1)
            self._launch(running)
            self._running[revision.id] = running

    def status(self) -> Mapping[str, RevisionStatus]:
        with self._guard, _translated("read the state of the revisions"):
            alive = {key: running for key, running in self._running.items() if running.alive()}
            said = self._health.look({key: (key, running.address) for key, running in alive.items()})
            for running in alive.values():
                trim(running.folder.log)
            at = self._health.starting
            return {key: _status(run, said.get(key), at(key), alive=key in alive) for key, run in self._running.items()}

    def stop(self, revision_id: str) -> None:
        with self._guard, _translated(f"stop {revision_id}"):
            running = self._running.get(revision_id)
            if running is None or running.record.stop_by is not None:
                return
            seconds = running.record.revision.settings.drain_seconds + _KILL_SECONDS
            running.record = replace(running.record, stop_by=time.time() + seconds)
            running.folder.save(running.record)
            if running.alive():
                self._drain(running)
            else:
                self._remove(running)

    def logs(self, revision_id: str, lines: int = 100) -> tuple[str, ...]:
        with _translated(f"read the log of {revision_id}"):
            now = tail(Folder(self._home / "revisions" / revision_id).log, lines)
            return now or tail(self._home / "logs" / f"{revision_id}.log", lines)

    def _adopt(self) -> None:
        for path in sorted((self._home / "revisions").glob("*/")):
            folder = Folder(path)
            record = folder.load()
            if record is None:
                shutil.rmtree(path)
                continue
            running = _Running(folder, record, adopt(folder.process))
            self._running[record.revision.id] = running
            if record.stop_by is not None:
                self._drain(running)

    def _launch(self, running: _Running) -> None:
        revision = running.record.revision
        image = self._image(revision)
        with _bound(running.record.port) as listener:
            port = int(listener.getsockname()[1])
            running.record = replace(running.record, port=port)
            running.folder.save(running.record)
            running.process = launch(
                image.command("--host", _HOST, "--port", str(port), "--fd", "3"),
                record=running.folder.process,
                log=running.folder.log,
                environment=self._environment_of(revision, image),
                directory=running.folder.path,
                descriptor=listener.fileno(),
                prepare=lambda pid: _limit(pid, revision),
            )

    def _image(self, revision: Revision) -> LocalImage:
        image = LocalImage.find(self._home, revision.image)
        if image is None:
            raise TargetError(f"{revision.id}: its image {revision.image} is not on this machine", retryable=True)
        return image

    def _environment_of(self, revision: Revision, image: LocalImage) -> dict[str, str]:
        server = {
            "MODEL_NAME": revision.version.model,
            "MODEL_VERSION": str(revision.version.version),
            "REVISION": revision.id,
            "PREDICTION_LOG": self._log_url,
            "WORKERS": str(revision.settings.workers * revision.settings.replicas),
            "DRAIN": str(revision.settings.drain_seconds),
        }
        return image.variables | server | self._environment | revision.settings.server

    def _drain(self, running: _Running) -> None:
        """Let it end in its time, in a thread; then it is forgotten."""
        if running.process is not None:
            running.process.signal(signal.SIGTERM)
        name = f"drain {running.record.revision.id}"
        threading.Thread(target=self._end, args=(running,), name=name, daemon=True).start()

    def _end(self, running: _Running) -> None:
        if running.process is not None:
            running.process.wait(max(0.0, (running.record.stop_by or 0.0) - time.time()))
        with self._guard:
            self._remove(running)

    def _remove(self, running: _Running) -> None:
        if running.process is not None:
            running.process.end(0)
        put_away(running.folder.log, self._home / "logs")
        shutil.rmtree(running.folder.path, ignore_errors=True)
        self._running.pop(running.record.revision.id, None)


def _status(running: _Running, said: str | None, starting: Starting, *, alive: bool) -> RevisionStatus:
    """`said`: None where it does not say that it is ready, otherwise what is wrong; `starting`: what it is at."""
    record = running.record
    state, reason = RevisionState.READY, said or ""
    if record.stop_by is not None:
        state = RevisionState.STOPPING
    elif not alive:
        state, reason = RevisionState.FAILED, _why_ended(running)
    elif said is None:
        state, reason = RevisionState.STARTING, starting.detail or "does not say that it is ready"
    started = datetime.fromtimestamp(record.started, UTC)
    return RevisionStatus(record.revision, state, (running.address,), started, record.restarts, reason)


def _why_ended(running: _Running) -> str:
    code = running.process.exit_code if running.process else None
    how = f"ended with status {code}" if code is None or code >= 0 else f"was ended by {signal.Signals(-code).name}"
    how = "has ended" if code is None else how
    return "\n".join([how, *tail(running.folder.log, 10)])


def _limit(pid: int, revision: Revision) -> None:
    settings, process = revision.settings, psutil.Process(pid)
    if settings.memory_mb is not None and hasattr(process, "rlimit"):
        share = settings.memory_mb * 1024 * 1024 // settings.workers
        process.rlimit(psutil.RLIMIT_DATA, (share, share))
    if settings.cpus is not None and hasattr(process, "cpu_affinity"):
        cores = process.cpu_affinity()
        first = pid % len(cores)
        process.cpu_affinity((cores[first:] + cores[:first])[: math.ceil(settings.cpus * settings.replicas)])


@contextmanager
def _bound(port: int) -> Iterator[socket.socket]:
    """A socket at `port`, or at any free one where that is 0 or taken by now."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((_HOST, port))
        except OSError:
            listener.bind((_HOST, 0))
        yield listener


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, psutil.Error) as error:
        raise TargetError(f"cannot {what}: {error}", retryable=True) from error
