"""The model server's settings: from a command line and an environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.prediction_log import Origin, Privacy
from serving.runtime.settings import Settings, parse


def test_defaults() -> None:
    assert parse(["--model", "m"], {}) == Settings(Path("m"), Origin("model", 0, ""), Privacy())


def test_everything_can_be_said() -> None:
    arguments = ["--model", "m", "--host", "::1", "--port", "9", "--fd", "3", "--late"]
    environment = {
        "MODEL_NAME": "churn",
        "MODEL_VERSION": "7",
        "REVISION": "churn-v7-abc",
        "PREDICTION_LOG": "s3://logs",
        "PREDICTION_LOG_SECONDS": "0.5",
        "PREDICTION_LOG_DROP": "email, name,",
        "PREDICTION_LOG_HASH": "entity",
        "PREDICTION_LOG_KEY": "secret",
        "WORKERS": "2",
        "DRAIN": "10",
        "LINGER": "0.5",
        "BODY_LIMIT": "1000",
    }
    assert parse(arguments, environment) == Settings(
        Path("m"),
        Origin("churn", 7, "churn-v7-abc"),
        Privacy(frozenset({"email", "name"}), frozenset({"entity"}), b"secret"),
        host="::1",
        port=9,
        descriptor=3,
        late=True,
        log="s3://logs",
        log_seconds=0.5,
        workers=2,
        drain=10,
        linger=0.5,
        body_limit=1000,
    )


@pytest.mark.parametrize("environment", [{"MODEL_VERSION": "seven"}, {"WORKERS": "1.5"}, {"DRAIN": "long"}])
def test_what_makes_no_sense_ends_with_usage(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--model", "m"], environment)
    assert "usage" in capsys.readouterr().err
