"""Commands that outlive the controller, each in a session of its own, found again by pid and start time.

A command is held at a gate until its record is on disk: a shell waits for one line on its standard input and
then becomes the command. Whoever dies in between, there is never a process without a record. A pid alone
proves nothing after a reboot or a long time, so nothing is ever signalled whose start time differs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

_GATE = 'read -r go && cd "$1" && shift && exec "$@" </dev/null'
"""Ends without running anything where the one who would open the gate has died."""


_CLOCK_SECONDS = 5.0
"""How far the system's clock may be set before a start time no longer counts as the same."""


class Process:
    """The leader of a process group: alive as long as it runs, ended together with whatever it started."""

    __slots__ = ("command", "exit_code", "pid", "started")

    def __init__(self, pid: int, started: float, command: tuple[str, ...]) -> None:
        self.pid = pid
        self.started = started
        """Start time in seconds since the epoch, as the system tells it."""
        self.command = command
        self.exit_code: int | None = None
        """Known after its end, and only to the one who launched it; minus the signal where a signal ended it."""

    def alive(self) -> bool:
        """Whether the leader still runs; a child that has ended is reaped."""
        self._reap()
        if self.exit_code is None and _leads(self):
            return True
        self._reap()  # It may have ended after the first look.
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process of the group; ended ones and strangers get none."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            return
        for member in self._left_behind():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Whether the leader ended within `seconds`."""
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        return True

    def end(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL after `seconds` to whatever of the group is left."""
        self.signal(signal.SIGTERM)
        self.wait(seconds)
        self.signal(signal.SIGKILL)
        self.wait(10)
        self.signal(signal.SIGKILL)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == self.pid:
                self.exit_code = os.waitstatus_to_exitcode(status)

    def _left_behind(self) -> list[psutil.Process]:
        """Members of the group after its leader's death; none where the pid belongs to somebody else by now."""
        if psutil.pid_exists(self.pid) and not _same(self):
            return []
        return [p for p in psutil.process_iter() if p.pid != self.pid and _session(p.pid) == self.pid]


def launch(
    command: Sequence[str],
    *,
    record: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    descriptor: int | None = None,
    prepare: Callable[[int], None] | None = None,
) -> Process:
    """Start `command` in a session of its own, its output appended to `log`, and keep what `adopt` needs in `record`.

    `descriptor`, where given, is handed to the command as file descriptor 3. `prepare` is called with the pid
    before the command runs, for limits. `OSError` where it cannot be started at all.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    gate, opener = os.pipe()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        pid = _spawn(command, gate, output, descriptor, environment, directory or Path.cwd())
        process = Process(pid, psutil.Process(pid).create_time(), tuple(command))
        _open_gate(process, record, opener, prepare)
    finally:
        for number in (gate, opener, output):
            os.close(number)
    return process


def adopt(record: Path) -> Process | None:
    """The process that `record` tells of, running or not; None where there is no record."""
    try:
        saved = json.loads(record.read_text())
    except FileNotFoundError:
        return None
    return Process(saved["pid"], saved["create_time"], tuple(saved["command"]))


def _spawn(
    command: Sequence[str],
    gate: int,
    output: int,
    descriptor: int | None,
    environment: Mapping[str, str] | None,
    directory: Path,
) -> int:
    duplicates = [(gate, 0), (output, 1), (output, 2)] + ([] if descriptor is None else [(descriptor, 3)])
    return os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", _GATE, "sh", str(directory), *command],
        os.environ if environment is None else environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, source, target) for source, target in duplicates],
        setsid=True,
    )


def _open_gate(process: Process, record: Path, opener: int, prepare: Callable[[int], None] | None) -> None:
    try:
        if prepare is not None:
            prepare(process.pid)
        _save(process, record)
    except OSError:
        process.end(0)
        raise
    os.write(opener, b"go\n")


def _save(process: Process, record: Path) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    fresh = record.with_name(f".{record.name}.new")
    saved = {"pid": process.pid, "create_time": process.started, "command": process.command}
    fresh.write_text(json.dumps(saved))
    fresh.replace(record)


def _leads(process: Process) -> bool:
    """A zombie is dead once its other threads have ended too: until then it holds its sockets."""
    try:
        found = psutil.Process(process.pid)
        return _same(process) and (found.status() != psutil.STATUS_ZOMBIE or found.num_threads() > 1)
    except psutil.NoSuchProcess:
        return False


def _same(process: Process) -> bool:
    try:
        return abs(psutil.Process(process.pid).create_time() - process.started) < _CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return False


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1
