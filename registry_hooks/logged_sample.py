"""Some rows of the data set that a version's run logged, for whoever tries the version before it is live.

Nothing may depend on them: a data set may be gone, on a host that does not answer, or behind a library that fails in
words of its own. So it is read by a thread that is left to itself once the time is over.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread

import numpy as np
import pandas as pd
import yaml

from registry_hooks.model_version import ModelVersion
from registry_hooks.reference import LoggedData, ReferenceData, ReferenceDataError, Sample
from registry_hooks.registry import RegistryError

ROWS = 1000
"""As many rows, from all over the data set."""

MOST_VALUES = 500_000
"""Of wide data sets fewer rows."""

SECONDS = 60.0
"""How long reading may take."""

_INPUT = "input."
"""What the prediction log puts before the names of inputs."""

_LONGEST = 300
"""Characters of a reason."""

_ADDRESS = re.compile(r"(://)(?:[^/\s@]+@)?([^\s?]*)(?:\?\S*)?")
"""Passwords and signatures stand in an address's user and query."""


class LoggedSamples:
    """Implements `Samples` on the reader of the data sets of runs."""

    def __init__(
        self,
        reference: Callable[[], ReferenceData],
        run_of: Callable[[ModelVersion], str | None],
        seconds: float = SECONDS,
    ) -> None:
        """`run_of` tells a version's run; where it knows none, the model's own files are asked.

        Both may raise `ReferenceDataError` and `RegistryError`.
        """
        self._reference, self._run_of, self._seconds = reference, run_of, seconds
        self._waiting: list[SimpleQueue[Sample]] = []
        self._closed = Event()

    def take(self, version: ModelVersion, model: Path) -> Sample:
        answer: SimpleQueue[Sample] = SimpleQueue()
        self._waiting.append(answer)
        if self._closed.is_set():
            self.close()
        Thread(target=lambda: answer.put(self._read(version, model)), name="logged-sample", daemon=True).start()
        try:
            return answer.get(timeout=self._seconds)
        except Empty:
            return Sample(f"reading it took longer than {self._seconds:g} s", retryable=True)
        finally:
            self._waiting.remove(answer)

    def close(self) -> None:
        self._closed.set()
        for answer in tuple(self._waiting):
            answer.put(Sample("the build was ended", retryable=True))

    def _read(self, version: ModelVersion, model: Path) -> Sample:
        try:
            run = self._run_of(version) or _run_of_files(model)
            if run is None:
                return Sample("the model names no run")
            found = self._reference().load(run)
            return sample(found) if isinstance(found, LoggedData) else Sample(_line(found.reason))
        except (ReferenceDataError, RegistryError) as error:
            return Sample(_line(str(error)), retryable=error.retryable)
        except Exception as error:  # noqa: BLE001 - libraries of storages and formats raise anything
            return Sample(_line(f"{type(error).__name__}: {error}"), retryable=True)


def sample(data: LoggedData) -> Sample:
    """Rows from all over the data set, by the model's own names."""
    count = max(1, min(ROWS, MOST_VALUES // max(1, data.rows.shape[1])))
    positions = np.linspace(0, max(0, len(data.rows) - 1), min(count, len(data.rows))).astype(int)
    columns = dict(_columns(data.rows.iloc[positions]))
    if not columns:
        return Sample(_line(f"{data.description}, has no columns of plain values"))
    return Sample(_line(data.description), tuple(columns), tuple(zip(*columns.values(), strict=True)))


def _columns(rows: pd.DataFrame) -> Iterator[tuple[str, list[object]]]:
    """Those whose values have a form in JSON; of the prediction log's columns the inputs."""
    logged = any(str(name).startswith(_INPUT) for name in rows.columns)
    for position, name in enumerate(rows.columns):
        try:
            values = [_plain(value) for value in rows.iloc[:, position].tolist()]
        except TypeError:
            continue
        if not logged or str(name).startswith(_INPUT):
            yield str(name).removeprefix(_INPUT), values


def _plain(value: object) -> object:
    """As requests have it."""
    if isinstance(value, np.bool_ | np.integer | np.floating):
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return None
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(type(value).__name__)


def _run_of_files(model: Path) -> str | None:
    told = yaml.safe_load((model / "MLmodel").read_text())
    return told.get("run_id") or None


def _line(text: str) -> str:
    return _ADDRESS.sub(r"\1\2", " ".join(text.split()))[:_LONGEST]
