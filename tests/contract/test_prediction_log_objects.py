"""A prediction log in an object store: a server writes it, what is lost is counted, what can wait waits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from monitoring.logged_requests import last_requests
from monitoring.logged_rows import LoggedRows
from monitoring.served_rows import ServedRowsError
from registry_hooks.model_version import ModelVersion
from serving.prediction_log import LogFiles, Origin, PredictionLog, Served, read
from serving.prediction_log_pack import pack
from tests.contract.test_model_server import MOODY, NAMED, mood
from tests.fixtures.gateway import until
from tests.fixtures.object_store import ObjectStore, only, start_object_store
from tests.fixtures.registry import free_port
from tests.fixtures.relay import Relay
from tests.fixtures.scoring import our_server

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
VERSION = ModelVersion("churn", 7)
ORIGIN = Origin("churn", 7, "churn-v7-abc")
SOME = np.zeros(5000, bool)
"""Rows of a request that is large enough to be handed over at once."""
SECONDS = 120.0


def served(rows: int = 1) -> Served:
    return Served("r1", NOON.timestamp(), "live", None, 1.5, {"a": SOME[:rows]}, SOME[:rows], rows)


def readable(url: str) -> int:
    return int(read(url, ORIGIN.model).num_rows)


def test_a_server_logs_there_what_it_answered(object_store: ObjectStore, moody_model: Path, tmp_path: Path) -> None:
    MOODY.write(tmp_path)
    url = f"s3://{object_store.bucket()}/predictions"
    how = NAMED | {"PREDICTION_LOG": url, "PREDICTION_LOG_SECONDS": "0.1"}
    with our_server(moody_model, plan=tmp_path, **how) as server:
        for number in range(3):
            assert mood(server, "fine", float(number)).status_code == 200
        until(lambda: readable(url) == 3, SECONDS)
    assert sorted(read(url, ORIGIN.model)["input.value"].to_pylist()) == [0.0, 1.0, 2.0]


def test_a_bucket_that_is_missing_loses_rows_is_told_and_is_not_made(object_store: ObjectStore) -> None:
    log = PredictionLog("s3://of-nobody/predictions", ORIGIN, rows=1, seconds=0.1)
    log.put(served())
    until(lambda: log.dropped == 1, SECONDS)
    log.close()
    assert log.trouble == "rows of the prediction log were lost: The specified bucket does not exist"
    assert "of-nobody" not in object_store.buckets()


def test_a_bucket_that_is_missing_is_not_read_as_one_that_is_empty(object_store: ObjectStore) -> None:
    assert readable(f"s3://{object_store.bucket()}/predictions") == 0
    for look in (
        lambda: LoggedRows("s3://of-nobody/predictions").newest(VERSION, NOON, NOON + timedelta(hours=1), None),
        lambda: last_requests("s3://of-nobody/predictions", VERSION, NOON, 1),
    ):
        with pytest.raises(ServedRowsError, match=r"no bucket of-nobody|bucket does not exist"):
            look()


def test_what_others_write_is_seen_by_whoever_has_looked_before(object_store: ObjectStore) -> None:
    bucket = object_store.bucket()
    url = f"s3://{bucket}/predictions"
    assert LogFiles(url, ORIGIN).write([], [served()]).written == 1
    assert readable(url) == 1
    (key,) = object_store.keys(bucket)
    copy = key.replace(".parquet", "-again.parquet")
    object_store.s3.copy_object(Bucket=bucket, Key=copy, CopySource={"Bucket": bucket, "Key": key})
    assert readable(url) == 2


@dataclass(frozen=True)
class Guarded:
    """A store that asks who is there, and its log."""

    url: str
    root: ObjectStore
    reader: ObjectStore
    """May read the log and write nothing."""
    stranger: ObjectStore
    """May do nothing."""


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    """The first seven requests, by which it is set up, are let through."""
    with start_object_store(environment={"INITIAL_NO_AUTH_ACTION_COUNT": "7"}) as open_store:
        bucket, iam = open_store.bucket(), open_store.client("iam")
        every = {"reader": ["s3:Get*", "s3:List*"], "root": ["s3:*"], "stranger": ["sqs:*"]}
        users = {}
        for name in ("root", "reader"):
            users[name] = user(open_store, iam, name, every[name])
        users["stranger"] = replace(open_store, key="AKIAIOSFODNN7EXAMPLE")
        yield Guarded(f"s3://{bucket}/predictions", **users)


def user(store: ObjectStore, iam: object, name: str, actions: list[str]) -> ObjectStore:
    """Another one, who may do this; three requests."""
    iam.create_user(UserName=name)  # type: ignore[attr-defined]
    document = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
    iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=json.dumps(document))  # type: ignore[attr-defined]
    made = iam.create_access_key(UserName=name)["AccessKey"]  # type: ignore[attr-defined]
    return replace(store, key=made["AccessKeyId"], secret=made["SecretAccessKey"])


def test_whoever_may_only_read_writes_nothing_and_hears_why(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    with only(guarded.reader, monkeypatch):
        stored = LogFiles(guarded.url, ORIGIN, patience=SECONDS).write([], [served(3)])
        assert (stored.written, stored.why) == (0, "Access Denied")
        assert readable(guarded.url) == 0
    with only(guarded.root, monkeypatch):
        assert LogFiles(guarded.url, ORIGIN).write([], [served(3)]).written == 3
    with only(guarded.reader, monkeypatch):
        assert readable(guarded.url) == 3


def test_whoever_may_not_read_is_told_that_and_not_that_nothing_is_there(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    with only(guarded.stranger, monkeypatch), pytest.raises(ServedRowsError, match="cannot be read"):
        LoggedRows(guarded.url).newest(VERSION, NOON, NOON + timedelta(hours=1), None)


@dataclass(frozen=True)
class Distant:
    """A store behind a line that can be cut."""

    store: ObjectStore
    line: Relay
    url: str


@pytest.fixture
def distant(object_store_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Distant]:
    beyond = urlsplit(object_store_server.endpoint)
    near = ("127.0.0.1", free_port())
    line = Relay(near, (str(beyond.hostname), int(beyond.port or 0)))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # so that it is tried again by us and not by the library alone
    bucket = object_store_server.bucket()
    with only(ObjectStore(f"http://{near[0]}:{near[1]}"), monkeypatch) as store:
        yield Distant(store, line, f"s3://{bucket}/predictions")
    line.cut()


def test_what_comes_while_it_is_away_waits_and_what_is_too_much_is_counted(distant: Distant) -> None:
    log = PredictionLog(distant.url, ORIGIN, rows=5000, seconds=0.1, capacity=20_000)
    log.put(served(5000))
    until(lambda: log.written == 5000, SECONDS)
    distant.line.cut()
    for _ in range(6):
        log.put(served(5000))
    assert log.dropped == 10_000
    distant.line.mend()
    until(lambda: log.written == 25_000, SECONDS)
    log.close()
    assert (log.dropped, log.written, log.replaced, log.trouble) == (10_000, 25_000, 0, "")
    assert readable(distant.url) == 25_000


def test_one_that_stays_away_is_given_up_in_time_and_said_to_be_away(distant: Distant) -> None:
    distant.line.cut()
    packed = pack([served(3)])
    assert packed is not None
    stored = LogFiles(distant.url, ORIGIN, patience=1.0).write([packed], [])
    assert stored.written == 0
    assert "Could not connect to the endpoint URL" in stored.why
    with pytest.raises(ServedRowsError, match="Could not connect"):
        LoggedRows(distant.url).newest(VERSION, NOON, NOON + timedelta(hours=1), None)
    distant.line.mend()
    assert LogFiles(distant.url, ORIGIN).write([packed], []).written == 3
    assert readable(distant.url) == 3
