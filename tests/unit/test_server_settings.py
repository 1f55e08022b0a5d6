"""The model server's settings: from a command line and an environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.prediction_log_entry import Origin, Privacy
from serving.runtime.settings import AccessLog, Batching, Device, LogFormat, Settings, parse

WHERE = ["--model", "m", "--plan", "p"]


def test_defaults() -> None:
    assert parse(WHERE, {}) == Settings(Path("m"), Path("p"), Origin("model", 0, ""), Privacy())


SAID = {
    "MODEL_NAME": "churn",
    "MODEL_VERSION": "7",
    "REVISION": "churn-v7-abc",
    "MODEL_CACHE": "/cache",
    "FETCH_TRIES": "3",
    "PREDICTION_LOG": "s3://logs",
    "PREDICTION_LOG_SECONDS": "0.5",
    "PREDICTION_LOG_SAMPLE": "0.1",
    "PREDICTION_LOG_DROP": "email, name,",
    "PREDICTION_LOG_HASH": "entity",
    "PREDICTION_LOG_KEY": "secret",
    "WORKERS": "2",
    "THREADS": "3",
    "DEVICE": "gpu",
    "CORES": "4",
    "QUEUE": "5",
    "BATCHING": "off",
    "BATCH_BUDGET": "0.01",
    "PREDICT_TIMEOUT": "6",
    "REQUEST_TIMEOUT": "7",
    "WORKER_MEMORY": "8",
    "PARITY_SHARE": "0.5",
    "DRAIN": "10",
    "LINGER": "0.25",
    "BODY_LIMIT": "1000",
    "HEADER_LIMIT": "2000",
    "HEADER_SECONDS": "11",
    "BODY_SECONDS": "12",
    "WRITE_SECONDS": "13",
    "ACCESS_LOG": "all",
    "LOG_FORMAT": "text",
}
"""Every variable, none with what it is by default."""
MEANT = Settings(
    Path("m"),
    Path("p"),
    Origin("churn", 7, "churn-v7-abc"),
    Privacy(frozenset({"email", "name"}), frozenset({"entity"}), b"secret"),
    host="::1",
    port=9,
    descriptor=3,
    native=True,
    grpc_port=8,
    model_cache="/cache",
    fetch_tries=3,
    log="s3://logs",
    log_seconds=0.5,
    log_sample=0.1,
    workers=2,
    threads=3,
    device=Device.GPU,
    cores=4,
    queue=5,
    batching=Batching.OFF,
    budget=0.01,
    predict_timeout=6,
    request_timeout=7,
    worker_memory=8,
    parity_share=0.5,
    drain=10,
    linger=0.25,
    body_limit=1000,
    header_limit=2000,
    header_seconds=11,
    body_seconds=12,
    write_seconds=13,
    access_log=AccessLog.ALL,
    log_format=LogFormat.TEXT,
)


def test_everything_can_be_said() -> None:
    arguments = [*WHERE, "--host", "::1", "--port", "9", "--fd", "3", "--native", "--grpc-port", "8"]
    assert parse(arguments, SAID) == MEANT
    defaults = parse(WHERE, {})
    same = [name for name in Settings.__slots__ if getattr(MEANT, name) == getattr(defaults, name)]
    assert same == ["model", "plan"]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"MODEL_VERSION": "seven"}, "seven"),
        ({"WORKERS": "1.5"}, "WORKERS"),
        ({"WORKERS": "0"}, "WORKERS: 0 is too small"),
        ({"DRAIN": "long"}, "DRAIN"),
        ({"DRAIN": "nan"}, "DRAIN"),
        ({"BODY_LIMIT": "-1"}, "BODY_LIMIT"),
        ({"PREDICTION_LOG_SAMPLE": "1.5"}, "no share"),
        ({"BATCHING": "sometimes"}, "BATCHING"),
        ({"ACCESS_LOG": "some"}, "ACCESS_LOG"),
    ],
)
def test_what_makes_no_sense_ends_with_usage(
    environment: dict[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(WHERE, environment)
    told = capsys.readouterr().err
    assert "usage" in told
    assert words in told
