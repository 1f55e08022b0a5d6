"""The model server as an image runs it: as nobody, on file systems that cannot be written to, without a network."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from tests.fixtures.gateway import until
from tests.fixtures.models import customers
from tests.fixtures.scoring import our_server, planned

ROOT = os.geteuid() == 0
SEALED = ["unshare", "--net", "--mount", *([] if ROOT else ["--user", "--map-root-user"])]
SECONDS = 400
ROWS = customers(20, seed=3)
BODY = json.dumps({"dataframe_split": ROWS.to_dict("split", index=False)})
NO_RIGHTS = {0, 1 << 2}
"""None at all, or to read whatever there is."""
LOST = f"rows of the prediction log were lost: {os.strerror(errno.ENOENT)}"


def _can_be_sealed() -> bool:
    """Not in every container."""
    return subprocess.run([*SEALED, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("model", "path", "writable"),
    [
        pytest.param("light_model", "compiled", False, id="compiled-no folder"),
        pytest.param("light_model", "compiled", True, id="compiled-one folder", marks=pytest.mark.nightly),
        pytest.param("small_forest_model", "native", False, id="native-no folder", marks=pytest.mark.nightly),
        pytest.param("small_forest_model", "native", True, id="native-one folder"),
    ],
)
def test_it_runs_read_only_as_nobody_and_without_a_network(
    model: str, path: str, writable: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not _can_be_sealed():
        pytest.skip("the kernel allows no namespaces, in which a process has no network and only what it may read")
    folder: Path = request.getfixturevalue(model)
    seen = _sealed(folder, str(tmp_path) if writable else "", *(["--native"] if path == "native" else []))

    assert seen["refused"].pop("network") in ("ENETUNREACH", "EHOSTUNREACH")
    assert len(seen["refused"]) == 5
    assert set(seen["refused"].values()) == {"EROFS"}
    assert seen["user"] == ("65534" if ROOT else "0"), "in a namespace of its own, whoever made it is the user 0"
    assert int(seen["rights"], 16) in NO_RIGHTS
    assert (seen["health"]["status"], seen["health"]["path"], seen["health"]["warnings"]) == ("ready", path, [])
    np.testing.assert_allclose(seen["first"], mlflow.pyfunc.load_model(str(folder)).predict(ROWS), rtol=1e-6)
    assert (seen["killed"], seen["again"]) == (2 if path == "compiled" else 1 + writable, seen["first"])
    assert (seen["checked"] > 0, seen["mismatches"]) == (path == "compiled" and not writable, 0)
    assert seen["counted"]
    assert seen["exit"] == 0, seen["log"]
    assert "Traceback" not in seen["log"], seen["log"]
    assert seen.get("rows") == (seen["answered"] * len(ROWS) if writable else None)


def test_a_log_that_cannot_be_written_is_told_and_predictions_are_answered(churn_model: Path) -> None:
    record = json.dumps({"dataframe_records": [{"tenure": 3.0, "charges": 80.0}]}).encode()
    how: dict[str, Any] = {"PREDICTION_LOG": "/proc/nowhere", "PREDICTION_LOG_SECONDS": "0.1", "PARITY_SHARE": "0"}
    with our_server(churn_model, **how) as server:
        assert server.score(record).status_code == 200
        assert until(lambda: server.client.get("/health").json()["status"] == "degraded")
        assert server.client.get("/health").json()["warnings"] == [LOST]
        assert "/proc/nowhere" in server.log.read_text()
        assert server.score(record).status_code == server.client.get("/ping").status_code == 200


def _sealed(model: Path, writable: str, *options: str) -> dict[str, Any]:
    command = [*SEALED, sys.executable, "-m", "tests.contract.sealed_server", str(model), str(planned(model, *options))]
    done = subprocess.run(
        [*command, BODY, writable, *options], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen
