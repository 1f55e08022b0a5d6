"""What logging a prediction costs in CPU time, writing included.

Requests come at a steady rate in turns of the length of a busy event loop's, with and without the log, round by round.
The difference of the process's CPU time is what the log costs: taking note, making tables, writing files, and what
both threads lose to each other. Throughput with and without the log is measured on whole servers, in
`benchmarks.serving`. Run it with `python -m benchmarks.prediction_log`.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np

from serving.prediction_log import Origin, PredictionLog, Served

RATE = 8000
"""Requests a second, of one row each."""

SECONDS = 4.0
ROUNDS = 5
TURN = 0.001
"""Seconds between turns of the loop."""

NUMBERS, WORDS = 12, 2
"""Columns of a request."""

_REQUESTS = 4000
"""Different requests: enough that none is still in the processor's cache when it comes again."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of the log, by request."""

    requests: int
    dropped: int
    note_us: float
    """CPU time on the event loop."""
    total_us: float
    """CPU time of the process."""


def measure(rounds: int = ROUNDS, seconds: float = SECONDS, rate: int = RATE) -> Cost:
    """Medians over `rounds` rounds of `seconds` each."""
    requests = [_request(number) for number in range(_REQUESTS)]
    notes, totals, written, dropped = [], [], 0, 0
    for _ in range(rounds):
        bare_note, bare_total = _round(None, requests, seconds, rate)
        with tempfile.TemporaryDirectory() as folder:
            log = PredictionLog(folder, Origin("benchmark", 1, "benchmark-v1"))
            note, total = _round(log, requests, seconds, rate)
        notes.append(note - bare_note)
        totals.append(total - bare_total)
        written, dropped = written + log.written, dropped + log.dropped
    return Cost(written, dropped, round(median(notes) * 1e6, 2), round(median(totals) * 1e6, 2))


def _request(number: int) -> Served:
    random = np.random.default_rng(number)
    numbers = {f"number_{i}": random.normal(size=1) for i in range(NUMBERS)}
    words = {f"word_{i}": np.array([("basic", "gold", "silver")[(number + i) % 3]], object) for i in range(WORDS)}
    return Served(f"{number:032x}", time.time(), "live", None, 0.5, numbers | words, random.integers(0, 2, 1), 1)


def _round(log: PredictionLog | None, requests: list[Served], seconds: float, rate: int) -> tuple[float, float]:
    """Seconds of CPU time per request: on this thread, and of the process until all is written."""
    began, note, total, made = time.perf_counter(), 0.0, time.process_time(), 0
    while (passed := time.perf_counter() - began) < seconds:
        due, before = int(passed * rate), time.thread_time()
        for number in range(made, due):
            served = requests[number % _REQUESTS]
            if log is not None:
                log.put(served)
        note, made = note + time.thread_time() - before, due
        time.sleep(TURN)
    if log is not None:
        log.close()
    return note / made, (time.process_time() - total) / made


if __name__ == "__main__":
    print(json.dumps(asdict(measure()), indent=1))
