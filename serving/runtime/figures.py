"""The figures of one server, counted in memory that all its front processes share.

Each process adds to a row of its own, so nothing is locked and nothing is lost, and whichever process is asked answers
for all of them. A figure costs a few hundred nanoseconds; Prometheus' own classes are used only to write the answer.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.runtime.exchange import Event, Meter, ServingError, Stage

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STAGE_SECONDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, *_SECONDS)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

_CODES = (200, 400, 401, 403, 404, 405, 406, 408, 409, 413, 415, 422, 429, 431, 499, 500, 501, 502, 503, 504)
_OTHER = "other"
"""Stands for codes and causes that nobody thought of."""

GONE = 499
"""The code under which a request is counted whose client went away before there was an answer."""


class LogFigures(Protocol):
    """What a prediction log tells of itself."""

    written: int
    dropped: int


def _causes() -> tuple[str, ...]:
    kinds, causes = [ServingError], dict.fromkeys((ServingError.cause, "server", "gone"))
    while kinds:
        kind = kinds.pop()
        causes[kind.cause] = None
        kinds.extend(kind.__subclasses__())
    return (*causes, _OTHER)


class _Histogram:
    """Places of one histogram in a row: its buckets, one for what is larger than all of them, and the sum."""

    def __init__(self, first: int, bounds: tuple[float, ...]) -> None:
        self.first, self.bounds, self.sum = first, bounds, first + len(bounds) + 1

    def observe(self, row: memoryview[float], value: float) -> None:
        row[self.first + bisect_left(self.bounds, value)] += 1.0
        row[self.sum] += value

    def told(self, total: list[float]) -> tuple[list[tuple[str, float]], float]:
        """Cumulative buckets, and the sum."""
        names = [*(repr(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(total[self.first : self.sum]))), total[self.sum]  # noqa: B905 - as many


class Figures:
    """An `exchange.Meter`, and what the server counts besides. Made before the processes fork."""

    def __init__(self, model: str, version: int, workers: int = 1) -> None:
        self._of = {"model": model, "version": str(version)}
        self._workers, self._width = workers, 0
        self._codes = {str(code): self._place() for code in (*_CODES, _OTHER)}
        self._causes = {cause: self._place() for cause in _causes()}
        self._events = {event: self._place() for event in Event}
        self._request = self._histogram(_SECONDS)
        self._stages = {stage: self._histogram(_STAGE_SECONDS) for stage in Stage}
        self._rows, self._requests = self._histogram(_COUNTS), self._histogram(_COUNTS)
        self._queue, self._compiled, self._memory = self._place(), self._place(), self._place()
        self._written, self._dropped = self._place(), self._place()
        self._connections = self._place()
        self._code = {int(code): place for code, place in self._codes.items() if code != _OTHER}
        size = (self._width + 1) * 8
        whole = memoryview(mmap.mmap(-1, size * (workers + 1)))
        self._table = [whole[size * row : size * (row + 1)].cast("d") for row in range(workers + 1)]
        self._fronts = self._table[:workers]
        self._kept = [0.0, 0.0]
        self.be(0)

    def be(self, worker: int) -> None:
        """This process is that worker, -1 for the parent of all. What one before it counted stays counted."""
        self._row = row = self._table[worker]
        for place in (self._queue, self._compiled, self._memory, self._connections):
            row[place] = 0.0
        self._kept = [row[self._written], row[self._dropped]]

    def request(self, code: int, seconds: float) -> None:
        """A prediction request was answered."""
        row, request = self._row, self._request
        row[self._code.get(code) or self._codes[_OTHER]] += 1.0
        row[request.first + bisect_left(_SECONDS, seconds)] += 1.0
        row[request.sum] += seconds

    def error(self, cause: str) -> None:
        self._row[self._causes.get(cause) or self._causes[_OTHER]] += 1.0

    def stage(self, stage: Stage, seconds: float) -> None:
        self._stages[stage].observe(self._row, seconds)

    def batch(self, requests: int, rows: int) -> None:
        self._requests.observe(self._row, requests)
        self._rows.observe(self._row, rows)

    def queued(self, requests: int) -> None:
        self._row[self._queue] = requests

    def event(self, event: Event, count: int = 1) -> None:
        self._row[self._events[event]] += count

    def compiled(self, compiled: bool) -> None:
        """Whether the compiled model answers."""
        self._row[self._compiled] = compiled

    def connections(self, count: int) -> None:
        """So many connections are open in this process."""
        self._row[self._connections] = count

    def crowded(self) -> bool:
        """Whether another process has fewer connections than this one, or the first, which checks answers, has none."""
        place, first = self._connections, self._fronts[0]
        return self._row[place] > min(row[place] for row in self._fronts) or (
            self._row is not first and not first[place]
        )

    def counted(self, event: Event) -> int:
        """How often that happened in all processes."""
        return int(sum(row[self._events[event]] for row in self._table))

    def look(self, log: LogFigures | None) -> None:
        """Take note of what nobody reports: memory, and how the prediction log does."""
        self._row[self._memory] = _resident()
        if log is not None:
            self._row[self._written] = self._kept[0] + log.written
            self._row[self._dropped] = self._kept[1] + log.dropped

    def text(self) -> bytes:
        """As Prometheus reads it."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected(self))
        return generate_latest(registry)

    def families(self) -> Iterator[Metric]:
        total = [sum(values) for values in zip(*self._table)]  # noqa: B905 - all rows are as wide
        yield self._counter("promote_requests", "Prediction requests", "code", self._codes, total)
        yield _by_label("promote_errors", "Requests without predictions", "cause", self._causes, total)
        yield _by_label("promote_events", "What happened besides", "event", _values(self._events), total)
        yield self._of_model("promote_request_seconds", "Time to answer", total)
        stages = HistogramMetricFamily("promote_stage_seconds", "Where the time goes", labels=["stage"])
        for stage, histogram in self._stages.items():
            stages.add_metric([stage.value], *histogram.told(total))
        yield stages
        yield _plain("promote_batch_rows", "Rows predicted at once", self._rows, total)
        yield _plain("promote_batch_requests", "Requests predicted at once", self._requests, total)
        yield GaugeMetricFamily("promote_queue_requests", "Requests that wait", total[self._queue])
        yield GaugeMetricFamily("promote_prediction_log_written", "Rows logged", total[self._written])
        yield GaugeMetricFamily("promote_prediction_log_dropped", "Rows lost by the log", total[self._dropped])
        compiled = min(row[self._compiled] for row in self._fronts)
        yield GaugeMetricFamily("promote_compiled", "Whether the compiled model answers", compiled)
        yield self._by_worker("promote_memory_bytes", "Resident memory of a front process", self._memory)
        yield self._by_worker("promote_connections", "Open connections of a front process", self._connections)

    def _place(self) -> int:
        self._width += 1
        return self._width  # place 0 stays empty, so that no place is falsy

    def _histogram(self, bounds: tuple[float, ...]) -> _Histogram:
        first = self._width + 1
        self._width += len(bounds) + 2
        return _Histogram(first, bounds)

    def _counter(
        self, name: str, text: str, label: str, places: Mapping[str, int], total: list[float]
    ) -> CounterMetricFamily:
        family = CounterMetricFamily(name, text, labels=[*self._of, label])
        for value, place in places.items():
            if total[place]:
                family.add_metric([*self._of.values(), value], total[place])
        return family

    def _of_model(self, name: str, text: str, total: list[float]) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, text, labels=list(self._of))
        family.add_metric(list(self._of.values()), *self._request.told(total))
        return family

    def _by_worker(self, name: str, text: str, place: int) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=["worker"])
        for worker, row in enumerate(self._fronts):
            family.add_metric([str(worker)], row[place])
        return family


class Part:
    """An `exchange.Meter` for one of several places of an engine where requests wait: they are told as one number."""

    def __init__(self, whole: Meter, waiting: dict[Part, int]) -> None:
        """`waiting` is what all parts have in common."""
        self.stage, self.batch, self.event = whole.stage, whole.batch, whole.event
        self._whole, self._waiting = whole, waiting

    def queued(self, requests: int) -> None:
        self._waiting[self] = requests
        self._whole.queued(sum(self._waiting.values()))


class _Collected(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        return self._figures.families()


def _values(places: Mapping[Event, int]) -> dict[str, int]:
    return {event.value: place for event, place in places.items()}


def _by_label(name: str, text: str, label: str, places: Mapping[str, int], total: list[float]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, place in places.items():
        family.add_metric([value], total[place])
    return family


def _plain(name: str, text: str, histogram: _Histogram, total: list[float]) -> HistogramMetricFamily:
    buckets, summed = histogram.told(total)
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=summed)


def _resident() -> int:
    """Bytes in memory; 0 where the platform does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGESIZE")
