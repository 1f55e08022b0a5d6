"""What was served, as the drift check reads it: the first rows, the newest rows, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from monitoring.logged_rows import LoggedRows
from monitoring.served_rows import ServedRows, ServedRowsError
from registry_hooks.model_version import ModelVersion
from serving.prediction_log import Origin, PredictionLog, Served
from tests.fakes.drift import FakeServedRows
from tests.fixtures.drift import REQUEST_ROWS, WriteLog, log_writer

BEGIN = datetime(2026, 3, 9, 23, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
VERSION = ModelVersion("churn", 7)
ROWS = pd.DataFrame({"input.n": range(3000), "output.prediction": [0.5] * 3000})
Make = Callable[[pd.DataFrame], ServedRows]


@pytest.fixture(params=["memory", "folder", "s3"])
def make(request: pytest.FixtureRequest, write_log: WriteLog) -> Make:
    """Rows served ten at a time, one minute after the other."""

    def in_memory(rows: pd.DataFrame) -> ServedRows:
        times = [BEGIN + (n // REQUEST_ROWS) * MINUTE for n in range(len(rows))]
        return FakeServedRows({VERSION: rows.assign(timestamp=pd.to_datetime(times, utc=True))})

    if request.param == "s3":
        write_log = log_writer(f"s3://{request.getfixturevalue('object_store').bucket()}/predictions")
    return in_memory if request.param == "memory" else lambda rows: LoggedRows(write_log(VERSION, rows, BEGIN, MINUTE))


def numbers(table: pd.DataFrame) -> list[int]:
    return list(table["input.n"])


def test_the_first_rows(make: Make) -> None:
    served = make(ROWS)
    later = BEGIN + timedelta(days=3)
    assert numbers(served.first(VERSION, BEGIN, later, 1500)) == list(range(1500))
    assert numbers(served.first(VERSION, BEGIN + 10 * MINUTE, later, 20)) == list(range(100, 120))
    assert len(served.first(VERSION, BEGIN, later, 5000)) == 3000
    assert len(served.first(VERSION, BEGIN, BEGIN + 10 * MINUTE, 5000)) == 100


def test_the_newest_rows(make: Make) -> None:
    served = make(ROWS)
    assert numbers(served.newest(VERSION, BEGIN + 10 * MINUTE, BEGIN + 20 * MINUTE, None)) == list(range(100, 200))
    assert numbers(served.newest(VERSION, BEGIN, BEGIN + 20 * MINUTE, 30)) == list(range(170, 200))


def test_what_a_row_says(make: Make) -> None:
    row = make(ROWS).newest(VERSION, BEGIN, BEGIN + MINUTE, 1).iloc[0]
    assert (row["input.n"], row["output.prediction"]) == (9, 0.5)
    assert row["timestamp"].to_pydatetime() == BEGIN


def test_nothing_served(make: Make) -> None:
    served = make(ROWS)
    other = ModelVersion("churn", 8)
    assert served.first(other, BEGIN, BEGIN + MINUTE, 10).empty
    assert served.newest(other, BEGIN, BEGIN + MINUTE, None).empty
    assert served.newest(VERSION, BEGIN - MINUTE, BEGIN, None).empty


def test_shadowed_requests_are_not_what_was_served(tmp_path: Path) -> None:
    log = PredictionLog(str(tmp_path), Origin("churn", 7, "revision"))
    for mode in ("live", "shadow", "replay", "live"):
        log.put(Served(mode, BEGIN.timestamp(), mode, None, 1.0, {"n": [1]}, [0.5]))
    log.close()
    assert len(LoggedRows(str(tmp_path)).newest(VERSION, BEGIN, BEGIN + MINUTE, None)) == 2


def test_a_log_that_cannot_be_read(tmp_path: Path) -> None:
    place = tmp_path / "model=churn" / "version=7" / "date=2026-03-09"
    place.mkdir(parents=True)
    (place / f"{int(BEGIN.timestamp() * 1e6):017d}-0.parquet").write_bytes(b"no parquet")
    with pytest.raises(ServedRowsError):
        LoggedRows(str(tmp_path)).newest(VERSION, BEGIN, BEGIN + MINUTE, None)
