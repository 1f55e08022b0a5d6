"""The prediction log: what is written can be read, nothing waits for it, and nothing private gets through."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from serving.prediction_log import LogFiles, Origin, Privacy, Served, read
from serving.prediction_log_pack import count_rows, pack, rows_of
from serving.prediction_log_table import columns_of
from tests.fixtures.gateway import until

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ORIGIN = Origin("churn", 7, "churn-v7-abc")


def served(inputs: Any, outputs: Any, at: datetime = NOON, request: str = "r1", **other: Any) -> Served:
    known = {"mode": "live", "entity": None, "latency_ms": 1.5} | other
    return Served(request_id=request, at=at.timestamp(), inputs=inputs, outputs=outputs, **known)


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('object_store').bucket()}/predictions"
    return str(tmp_path / "log") if request.param == "file" else f"memory://log-{tmp_path.name}-{time.time_ns()}"


def write(url: str, *requests: Served, origin: Origin = ORIGIN, privacy: Privacy | None = None) -> None:
    assert store(LogFiles(url, origin, privacy or Privacy()), *requests) == sum(map(rows_of, requests))


def store(files: LogFiles, *requests: Served) -> int:
    """As it comes from a server, which packs what can be packed; rows written."""
    packs = [pack([request]) for request in requests]
    odd = [request for request, packed in zip(requests, packs, strict=True) if packed is None]
    return files.write([packed for packed in packs if packed], odd).written


def test_rows_come_back_as_they_were_served(url: str) -> None:
    frame = pd.DataFrame({"tenure": [1, 2], "plan": ["basic", None]})
    write(url, served(frame, np.array([0.25, 0.75]), entity="c1", latency_ms=3.5))
    assert read(url, "churn").to_pylist() == [
        {
            "row": row,
            "request_id": "r1",
            "timestamp": NOON,
            "revision": "churn-v7-abc",
            "mode": "live",
            "entity": "c1",
            "latency_ms": 3.5,
            "input.tenure": row + 1,
            "input.plan": ("basic", None)[row],
            "output.prediction": (0.25, 0.75)[row],
            "version": 7,
        }
        for row in (0, 1)
    ]


def test_nothing_written_reads_as_an_empty_table(url: str) -> None:
    table = read(url, "churn", limit=5)
    assert table.num_rows == 0
    assert {"request_id", "timestamp", "version"} <= set(table.column_names)


def test_files_lie_where_other_programs_look_for_them(tmp_path: Path) -> None:
    write(str(tmp_path), served([1], [1]))
    (file,) = (path.relative_to(tmp_path) for path in tmp_path.rglob("*.parquet"))
    assert file.parts[:3] == ("model=churn", "version=7", "date=2026-03-01")


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, ["a", "b", "c", "d"]),
        ({"version": 7}, ["a", "b", "c"]),
        ({"version": 9}, []),
        ({"since": NOON}, ["b", "c", "d"]),
        ({"until": NOON}, ["a"]),
        ({"since": NOON, "until": NOON + timedelta(hours=1)}, ["b"]),
        ({"mode": "live"}, ["a", "b", "d"]),
        ({"limit": 2}, ["c", "d"]),
        ({"version": 7, "limit": 2, "mode": "live"}, ["a", "b"]),
    ],
)
def test_what_is_asked_for_is_what_comes(url: str, selection: dict[str, Any], expected: list[str]) -> None:
    write(url, served([1], [1], NOON - timedelta(days=1), "a"), served([1], [1], NOON, "b"))
    write(url, served([1], [1], NOON + timedelta(hours=1), "c", mode="shadow"))
    write(url, served([1], [1], NOON + timedelta(hours=2), "d"), origin=Origin("churn", 8, "churn-v8"))
    write(url, served([1], [1], NOON, "x"), origin=Origin("other", 7, "other-v7"))
    assert read(url, "churn", **selection)["request_id"].to_pylist() == expected


def test_only_the_columns_asked_for(url: str) -> None:
    write(url, served(pd.DataFrame({"a": [1], "b": [2]}), [3]))
    table = read(url, "churn", columns=["input.b", "output.prediction", "input.missing"], since=NOON)
    assert table.to_pylist() == [{"input.b": 2, "output.prediction": 3}]


@pytest.mark.parametrize("values", [(1, "one"), ([1, 2], "x"), (True, "yes"), (1, 2.5), (2**70, 1)])
@pytest.mark.parametrize("together", [True, False])
def test_types_that_change_lose_nothing(url: str, values: tuple[Any, Any], together: bool) -> None:
    first, second = (served({"a": [v], "b": [1]}, [1], NOON + timedelta(seconds=i)) for i, v in enumerate(values))
    if together:
        write(url, first, second)
    else:
        write(url, first)
        write(url, second)
    table = read(url, "churn")
    assert [str(v).lower() for v in table["input.a"].to_pylist()] in (
        [str(v).lower() for v in values],
        [f"{float(v)}" for v in values if not isinstance(v, str | list)],
    )
    assert table["input.b"].to_pylist() == [1, 1]


def test_dropped_and_hashed_columns_never_reach_the_storage(tmp_path: Path) -> None:
    frame = pd.DataFrame({"email": ["ann@example.org"], "name": ["Annabel"], "age": [41]})
    privacy = Privacy(frozenset({"name"}), frozenset({"input.email", "entity"}), b"secret")
    write(str(tmp_path), served(frame, [1], entity="customer-1"), privacy=privacy)
    (row,) = read(str(tmp_path), "churn").to_pylist()
    assert "input.name" not in row
    assert row["input.age"] == 41
    assert len(row["input.email"]) == len(row["entity"]) == 64
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert all(text not in written for text in (b"ann@example.org", b"Annabel", b"customer-1"))


def test_the_same_value_has_the_same_hash_only_under_the_same_key(url: str) -> None:
    for key in (b"one", b"one", b"two"):
        write(url, served({"a": ["x"]}, [1]), privacy=Privacy(hashed=frozenset({"a"}), key=key))
    hashes = read(url, "churn")["input.a"].to_pylist()
    assert sorted(hashes.count(h) for h in hashes) == [1, 2, 2]


def test_a_file_half_written_by_a_process_that_was_killed_is_not_read(tmp_path: Path) -> None:
    write(str(tmp_path), served([1], [1]))
    (file,) = tmp_path.rglob("*.parquet")
    file.with_name(f".{file.name}").write_bytes(file.read_bytes()[:50])
    assert read(str(tmp_path), "churn").num_rows == 1


def test_a_model_may_have_any_name(url: str) -> None:
    name = "a b/ü=*?"
    write(url, served([1], [1]), origin=Origin(name, 1, "r"))
    assert read(url, name).num_rows == 1
    assert read(url, "a b").num_rows == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (pd.DataFrame({"a": [1], 2: ["x"]}), {"a": [1], "2": ["x"]}),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), {"a": [2]}),
        (pd.Series([1.5], name="score"), {"score": [1.5]}),
        (pd.Series([1.5]), {"value": [1.5]}),
        (np.array([1, 2]), {"value": [1, 2]}),
        (np.array([[1, 2], [3, 4]]), {"0": [1, 3], "1": [2, 4]}),
        (np.zeros((2, 1, 1)), {"value": [[[0.0]], [[0.0]]]}),
        ({"a": np.array([1]), "b": 2}, {"a": [1], "b": [2]}),
        ([{"a": 1}, {"b": 2}], {"a": [1, None], "b": [None, 2]}),
        (["x", "y"], {"value": ["x", "y"]}),
        ("text", {"value": ["text"]}),
        (3, {"value": [3]}),
    ],
)
def test_every_shape_of_data_becomes_columns(value: Any, expected: dict[str, list[Any]]) -> None:
    assert columns_of(value, "value") == expected


@pytest.mark.parametrize(
    ("value", "rows"),
    [(pd.DataFrame({"a": [1, 2]}), 2), (np.array(3), 1), ({"a": [1, 2, 3]}, 3), ("text", 1), ([], 1), ({}, 1), (5, 1)],
)
def test_rows_are_counted(value: Any, rows: int) -> None:
    assert count_rows(value) == rows


def test_answers_that_do_not_match_the_rows_are_kept_whole_in_the_first(url: str) -> None:
    write(url, served({"a": [1, 2]}, [1, 2, 3]))
    assert read(url, "churn")["output.prediction"].to_pylist() == ["[1, 2, 3]", None]


ARRAYS = {
    "double": np.array([1.5, np.nan]),
    "float": np.array([0.1, 2], np.float32),
    "integer": np.array([1, 2], np.int32),
    "small": np.array([1, 2], np.uint8),
    "boolean": np.array([True, False]),
    "string": np.array(["a", None], object),
    "binary": np.array([b"a", None], object),
    "mixed": np.array([1, "a"], object),
    "datetime": np.array(["2026-01-02T03:04:05.678", "NaT"], "datetime64[ns]"),
    "tensor": np.arange(12, dtype=np.float32).reshape(2, 3, 2),
    "nothing": np.zeros((2, 0)),
}


@pytest.mark.parametrize(
    "outputs", [np.array([1, 0]), {"": np.array([1, 0])}, {"": np.array([[0.1, 0.9], [1, 0]])}, np.array([1, 2, 3])]
)
@pytest.mark.parametrize(
    "privacy", [Privacy(), Privacy(frozenset({"double"}), frozenset({"string", "tensor"}), b"key")]
)
def test_arrays_are_logged_as_the_values_that_they_hold(url: str, outputs: Any, privacy: Privacy) -> None:
    lists = {name: ARRAYS[name].tolist() for name in ARRAYS if name != "datetime"}
    moments = [datetime.fromisoformat("2026-01-02T03:04:05.678"), None]
    write(url, served(ARRAYS, outputs, request="arrays", rows=2), privacy=privacy)
    write(url, served(lists | {"datetime": moments}, outputs, request="values"), privacy=privacy)
    table = read(url, "churn")
    arrays, values = (
        [
            {n: repr(v) for n, v in row.items() if n != "request_id"}
            for row in table.to_pylist()
            if row["request_id"] == r
        ]
        for r in ("arrays", "values")
    )
    assert arrays == values
    assert len(arrays) == 2


def test_requests_with_different_columns_and_rows_can_be_logged_together(url: str) -> None:
    one, two = np.array([1.5]), np.array([2.5, 3.5])
    write(
        url,
        served({"a": one, "b": one}, one, NOON, "both"),
        served({"a": two}, two, NOON + timedelta(seconds=1), "one"),
        served({"a": [1, 2]}, [1, 2], NOON + timedelta(seconds=2), "values"),
        served({"b": one, "a": one}, one, NOON + timedelta(seconds=3), "both"),
    )
    rows = read(url, "churn").to_pylist()
    assert [(row["request_id"], row["row"], row["input.a"], row["input.b"]) for row in rows] == [
        ("both", 0, 1.5, 1.5),
        ("one", 0, 2.5, None),
        ("one", 1, 3.5, None),
        ("values", 0, 1.0, None),
        ("values", 1, 2.0, None),
        ("both", 0, 1.5, 1.5),
    ]


def test_a_batch_over_midnight_falls_into_two_days(tmp_path: Path) -> None:
    midnight = datetime(2026, 3, 2, tzinfo=UTC)
    write(str(tmp_path), served([1], [1], midnight - timedelta(seconds=1)), served([2], [2], midnight))
    assert {path.parent.name for path in tmp_path.rglob("*.parquet")} == {"date=2026-03-01", "date=2026-03-02"}


def left_behind(whole: Path, at: float) -> Path:
    """What a writer leaves beside that file if it is killed while it writes at that time."""
    left = whole.with_name(f".{int(at * 1e6):017d}-{whole.name}")
    left.write_bytes(b"PAR1")
    return left


def test_the_next_writer_removes_what_a_killed_one_left_but_nothing_that_may_still_be_written(tmp_path: Path) -> None:
    write(str(tmp_path), served({"n": [0]}, [0.5], NOON - timedelta(days=1)), served({"n": [1]}, [0.5]))
    yesterdays, todays = sorted(tmp_path.rglob("*.parquet"))
    now = time.time()
    old = [left_behind(file, now - 4000) for file in (yesterdays, todays)]
    young = [left_behind(file, now - seconds) for file in (yesterdays, todays) for seconds in (3000, 0)]
    write(str(tmp_path), served({"n": [2]}, [0.5]))

    assert [path for path in old if path.exists()] == []
    assert [path for path in young if not path.exists()] == []
    assert sorted(read(str(tmp_path), ORIGIN.model)["input.n"].to_pylist()) == [0, 1, 2]


def test_a_folder_that_cannot_be_looked_through_is_written_to(tmp_path: Path) -> None:
    write(str(tmp_path), served([1], [1]))
    (file,) = tmp_path.rglob("*.parquet")
    left = file.with_name(f".{int((time.time() - 4000) * 1e6):017d}-{file.name}")
    (left / "not a file").mkdir(parents=True)
    write(str(tmp_path), served([2], [1]))
    assert read(str(tmp_path), ORIGIN.model).num_rows == 2
    assert left.exists()


def test_what_was_too_young_is_removed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed server is usually followed by another one at once."""
    monkeypatch.setattr("serving.prediction_log_storage._LEFT_AFTER", 1.5)
    write(str(tmp_path), served([1], [1]))
    (file,) = tmp_path.rglob("*.parquet")
    files, left = LogFiles(str(tmp_path), ORIGIN), left_behind(file, time.time())
    store(files, served([1], [1]))
    assert left.exists()

    def gone() -> bool:
        assert store(files, served([1], [1])) == 1
        return not left.exists()

    assert until(gone)
