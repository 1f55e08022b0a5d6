"""Traces are for those who look at them later: nothing else may wait for them."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from tests.fixtures.scoring import our_server

RECORD = json.dumps({"dataframe_records": [{"tenure": 3.0, "charges": 80.0}]}).encode()


def test_a_collector_that_never_answers_holds_up_neither_predictions_nor_the_end(churn_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        how: dict[str, Any] = {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "PARITY_SHARE": "0",
        }
        with our_server(churn_model, **how) as server:
            assert server.score(RECORD).status_code == 200
            silent.settimeout(20)
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(4) == b"POST"
                assert server.score(RECORD).status_code == 200
                began = time.monotonic()
                server.process.terminate()
                assert server.process.wait(60) == 0
                assert time.monotonic() - began < 15
