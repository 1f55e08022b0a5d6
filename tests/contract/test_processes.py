"""Real processes: recorded before they run, adopted again, ended as a group, never mistaken for others."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from serving.processes import Process, adopt, launch

Launch = Callable[..., Process]


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Launch]:
    processes: list[Process] = []

    def begin(script: str, **options: object) -> Process:
        command = ["/bin/sh", "-c", script]
        processes.append(launch(command, record=tmp_path / "record.json", log=tmp_path / "log", **options))  # type: ignore[arg-type]
        return processes[-1]

    yield begin
    for process in processes:
        process.end(0)


def test_output_is_appended_to_the_log(start: Launch, tmp_path: Path) -> None:
    assert start("echo out; echo err >&2").wait(20)
    assert start("echo more").wait(20)
    assert (tmp_path / "log").read_text().split() == ["out", "err", "more"]


def test_an_adopted_process_is_alive_and_can_be_ended(start: Launch, tmp_path: Path) -> None:
    first = start("sleep 100")
    adopted = adopt(tmp_path / "record.json")
    assert adopted is not None
    assert (adopted.pid, adopted.command) == (first.pid, first.command)
    assert adopted.alive()
    adopted.end(5)
    assert not first.alive()


def test_nothing_to_adopt_without_a_record(tmp_path: Path) -> None:
    assert adopt(tmp_path / "record.json") is None


def test_exit_codes_tell_how_it_ended(start: Launch) -> None:
    ended, killed = start("exit 3"), start("kill -9 $$")
    assert ended.wait(20)
    assert killed.wait(20)
    assert (ended.exit_code, killed.exit_code) == (3, -9)


def test_an_ended_child_is_reaped(start: Launch) -> None:
    process = start("exit 0")
    assert eventually(lambda: not process.alive())
    assert not psutil.pid_exists(process.pid)


def test_a_process_with_another_start_time_is_left_alone(start: Launch) -> None:
    process = start("sleep 100")
    stranger = Process(process.pid, process.started - 60, process.command)
    assert not stranger.alive()
    stranger.end(0)
    assert process.alive()


def test_what_ignores_sigterm_is_killed_with_its_children(start: Launch, tmp_path: Path) -> None:
    process = start("trap '' TERM; sleep 100 & echo $!; wait")
    assert eventually(lambda: (tmp_path / "log").read_text().strip())
    child = int((tmp_path / "log").read_text())
    process.end(0.1)
    assert not process.alive()
    assert eventually(lambda: _gone(child))


def test_children_of_a_dead_leader_are_ended_too(start: Launch, tmp_path: Path) -> None:
    process = start("sleep 100 & echo $!")
    assert process.wait(20)
    child = int((tmp_path / "log").read_text())
    assert psutil.pid_exists(child)
    process.end(0)
    assert eventually(lambda: _gone(child))


def test_it_is_recorded_before_it_runs(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    process = launch(["/bin/cat", str(record)], record=record, log=tmp_path / "log")
    assert process.wait(20)
    assert json.loads((tmp_path / "log").read_text())["pid"] == process.pid


def test_preparation_comes_before_the_command_and_a_failed_one_keeps_it_from_running(tmp_path: Path) -> None:
    def refuse(pid: int) -> None:
        raise PermissionError(pid)

    with pytest.raises(PermissionError) as refused:
        launch(["/bin/touch", str(tmp_path / "ran")], record=tmp_path / "r", log=tmp_path / "log", prepare=refuse)
    assert not psutil.pid_exists(refused.value.args[0])
    assert not (tmp_path / "ran").exists()


def test_it_outlives_the_one_who_launched_it(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from serving.processes import launch\n"
        "launch(['/bin/sleep', '100'], record=Path(sys.argv[1]), log=Path(sys.argv[2]))\n"
        "os.kill(os.getpid(), 9)"
    )
    record = tmp_path / "record.json"
    launcher = subprocess.run([sys.executable, "-c", script, str(record), str(tmp_path / "log")])
    assert launcher.returncode == -signal.SIGKILL
    process = adopt(record)
    assert process is not None
    assert process.alive()
    process.end(5)
    assert not process.alive()


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
