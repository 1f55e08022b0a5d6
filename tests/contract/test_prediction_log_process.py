"""The process that writes the prediction log: nothing waits for it, it gets lost rows counted, and it ends in order."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from serving.prediction_log import Origin, PredictionLog, Served, read
from tests.fixtures.gateway import until

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ORIGIN = Origin("churn", 7, "churn-v7-abc")
SOME = np.zeros(5000, bool)
"""Rows of a request that is large enough to be handed over at once."""


def served(inputs: Any, outputs: Any, request: str = "r1", rows: int | None = None) -> Served:
    return Served(request, NOON.timestamp(), "live", None, 1.5, inputs, outputs, rows)


@contextmanager
def logging(folder: Path, **how: Any) -> Iterator[tuple[PredictionLog, psutil.Process]]:
    """A log, and the process that writes it."""
    before = set(psutil.Process().children())
    log = PredictionLog(str(folder), ORIGIN, **how)
    (writer,) = set(psutil.Process().children()) - before
    try:
        yield log, writer
    finally:
        log.close()


def logged(folder: Path) -> int:
    return int(read(str(folder), ORIGIN.model).num_rows)


def test_a_full_queue_drops_counts_and_does_not_wait(tmp_path: Path) -> None:
    with logging(tmp_path, capacity=100, seconds=60) as (log, _):
        began = time.monotonic()
        for _ in range(1000):
            log.put(served([1, 2], [1, 2]))
        assert time.monotonic() - began < 30
    assert (log.dropped, log.written, logged(tmp_path)) == (1900, 100, 100)
    log.put(served([1, 2], [1, 2]))
    assert log.dropped == 1902


def test_a_writer_that_does_nothing_holds_nobody_up_and_bounds_hold_over_both_processes(tmp_path: Path) -> None:
    rows, puts = np.random.default_rng(1).normal(size=5000), 100
    with logging(tmp_path, capacity=400_000, memory=2_000_000, seconds=0.01) as (log, writer):
        writer.suspend()
        began = time.monotonic()
        for _ in range(puts):
            log.put(served({"a": rows}, SOME, rows=5000))
        assert time.monotonic() - began < 30
        assert puts * 5000 > log.dropped >= puts * 5000 - 2_000_000 / 9
        assert log.written == 0
        writer.resume()
    assert log.written == logged(tmp_path) == puts * 5000 - log.dropped
    assert log.trouble == ""


def test_a_writer_that_does_not_end_is_ended_and_what_it_had_is_counted(tmp_path: Path) -> None:
    with logging(tmp_path) as (log, writer):
        log.put(served({"a": SOME}, SOME, rows=5000))
        writer.suspend()
        log.close(seconds=0.2)
        assert not writer.is_running()
    assert (log.dropped, log.written, log.replaced) == (5000, 0, 0)
    assert "SIGKILL" in log.trouble


def test_a_storage_that_fails_loses_rows_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    with logging(tmp_path / "log", rows=1, seconds=0.05) as (log, _):
        log.put(served([1], [1]))
        assert until(lambda: log.dropped == 1)
        assert log.trouble == "rows of the prediction log were lost: Not a directory"
        (tmp_path / "log").unlink()
        log.put(served([1], [1]))
    assert (log.dropped, log.written, log.trouble) == (1, 1, "")


def test_rows_are_readable_after_the_time_that_was_set(tmp_path: Path) -> None:
    with logging(tmp_path, seconds=0.05) as (log, _):
        log.put(served([1], [1]))
        assert until(lambda: logged(tmp_path) == 1)


def test_where_there_can_be_no_log_is_told_at_once() -> None:
    with pytest.raises(OSError, match="Protocol not known: nonsense"):
        PredictionLog("nonsense://log", ORIGIN)


def test_what_another_process_cannot_be_told_is_lost_and_the_rest_is_not(tmp_path: Path) -> None:
    with logging(tmp_path) as (log, _):
        log.put(served([lambda: 1], [1]))
        log.put(served([1], [1]))
    assert (log.dropped, log.written) == (1, 1)


def test_a_sample_is_the_same_share_of_requests_in_every_process(tmp_path: Path) -> None:
    ids = [f"request-{number}" for number in range(4000)]
    found = []
    for name in ("one", "two"):
        with logging(tmp_path / name, sample=0.25) as (log, _):
            for request in ids:
                log.put(served([1, 2], [1, 2], request))
        assert log.dropped == 0
        found.append(read(str(tmp_path / name), "churn")["request_id"].to_pylist())
    assert found[0] == found[1]
    assert found[0][::2] == found[0][1::2]
    assert 1800 < len(found[0]) < 2200


def test_large_rows_wait_in_smaller_numbers(tmp_path: Path) -> None:
    with logging(tmp_path, memory=1_000_000, seconds=60) as (log, _):
        for _ in range(1000):
            log.put(served({"image": np.zeros((1, 100, 100))}, [1]))
    assert log.written == logged(tmp_path)
    assert log.written + log.dropped == 1000
    assert log.written < 500


def test_a_writer_that_dies_is_replaced_and_only_what_it_had_is_lost(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    with logging(tmp_path, seconds=0.05) as (log, _):
        for deaths in (1, 2):
            (writer,) = set(psutil.Process().children()) - before
            writer.suspend()
            log.put(served({"a": SOME}, SOME, "lost", rows=5000))
            writer.kill()
            assert until(partial(reached, log, dropped=5000 * deaths))
            assert "was ended by SIGKILL" in log.trouble
            log.put(served({"a": SOME}, SOME, "kept", rows=5000))
            assert until(partial(reached, log, replaced=deaths, written=5000 * deaths, trouble=""))
    assert (log.dropped, log.written) == (10_000, 10_000)
    assert set(read(str(tmp_path), ORIGIN.model)["request_id"].to_pylist()) == {"kept"}


def reached(log: PredictionLog, **expected: int | str) -> bool:
    return all(getattr(log, name) == value for name, value in expected.items())


WRITES = """
import sys, time, numpy as np
from serving.prediction_log import Origin, PredictionLog, Served
log = PredictionLog(sys.argv[1], Origin("churn", 7, "r"), rows=2000, seconds=0.01)
random = np.random.default_rng(int(sys.argv[2]))
columns = {str(i): random.normal(size=500) for i in range(40)}
at = 1.77e9
while True:
    at += 1
    log.put(Served("r", at, "live", None, 1.0, columns, columns["0"], 500))
    if log.written and at < 1.78e9:
        at = 1.78e9
        print("writes", flush=True)
    time.sleep(0.001)
"""


@pytest.mark.parametrize("which", ["server", "writer"])
def test_every_file_is_whole_whenever_a_process_is_killed(tmp_path: Path, which: str) -> None:
    wait = random.Random(7)
    for seed in range(3):
        with running(WRITES, tmp_path, str(seed)) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"writes\n"
            writer = only_child(server)
            time.sleep(wait.uniform(0.0, 0.1))  # any moment will do: most of the time it is in the middle of a file
            os.kill(server.pid if which == "server" else writer.pid, signal.SIGKILL)
            assert until(partial(gone, writer))
    files = list(tmp_path.rglob("[!.]*.parquet"))
    assert sum(pq.ParquetFile(file).metadata.num_rows for file in files) == logged(tmp_path) > 0


HANDS_OVER = """
import signal, sys, time, numpy as np
from serving.prediction_log import Origin, PredictionLog, Served
some = np.zeros(5000, bool)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
log = PredictionLog(sys.argv[1], Origin("churn", 7, "r"), seconds=60)
def put():
    log.put(Served("r", 1.77e9, "live", None, 1.0, {"a": some}, some, 5000))
put()
print("handed over", flush=True)
sys.stdin.readline()
put()
log.close()
print(log.written, log.dropped, log.replaced, flush=True)
"""


def test_a_server_that_is_killed_has_what_it_handed_over_written_and_leaves_no_process(tmp_path: Path) -> None:
    with running(HANDS_OVER, tmp_path) as server:
        assert server.stdout is not None
        server.stdout.readline()
        writer = only_child(server)
        server.kill()
        assert until(partial(gone, writer))
    assert logged(tmp_path) == 5000


def test_signals_to_all_processes_lose_nothing(tmp_path: Path) -> None:
    with running(HANDS_OVER, tmp_path) as server:
        assert server.stdout is not None
        server.stdout.readline()
        writer = only_child(server)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.killpg(server.pid, number)
            writer.send_signal(number)
        told, _ = server.communicate(b"go on\n")
    assert told == b"10000 0 0\n"
    assert logged(tmp_path) == 10_000


FULL = """
import psutil, resource, sys, time
import numpy as np
from serving.prediction_log import Origin, PredictionLog, Served
log = PredictionLog(sys.argv[1], Origin("churn", 7, "r"), rows=1000, seconds=0.05)
columns = {str(i): np.random.default_rng(i).normal(size=1000) for i in range(20)}
(writer,) = psutil.Process().children()
writer.rlimit(psutil.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
def put():
    log.put(Served("r", 1.77e9, "live", None, 1.0, columns, columns["0"], 1000))
    until = time.monotonic() + 20
    while log.dropped + log.written < puts * 1000 and time.monotonic() < until:
        time.sleep(0.01)
puts = 1
put()
print(log.dropped, log.written, "File too large" in log.trouble)
writer.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
puts = 2
put()
print(log.dropped, log.written, log.trouble)
log.close()
"""


def test_where_there_is_no_room_rows_are_lost_and_nothing_is_left_behind(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1000 0 True", "1000 1000 "]
    assert "1000 rows of the prediction log were lost: [Errno 27] File too large" in done.stderr
    assert [path.name[0] for path in tmp_path.rglob("*.parquet")] == ["0"]


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        ("prediction_log_entry", {"pyarrow", "fsspec", "numpy"}),
        ("prediction_log_front", {"pyarrow", "fsspec"}),
    ],
)
def test_a_server_needs_no_parquet(module: str, missing: set[str]) -> None:
    program = f"import sys, serving.{module}; print(sorted({missing} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@contextmanager
def running(program: str, *arguments: Path | str) -> Iterator[subprocess.Popen[bytes]]:
    """In a group of its own."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def only_child(process: subprocess.Popen[bytes]) -> psutil.Process:
    (child,) = psutil.Process(process.pid).children()
    return child


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
