"""The model server as an image runs it: as nobody, on file systems that cannot be written to, without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.fixtures.models import customers
from tests.fixtures.scoring import planned

SEALED = ("unshare", "--net", "--mount")
SECONDS = 240
CLOSED = {"EROFS", "EACCES", "EPERM", "ENOENT"}


def _can_be_sealed() -> bool:
    """Only root may, and not in every container."""
    return os.geteuid() == 0 and subprocess.run([*SEALED, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("option", ["", "--native"])
@pytest.mark.parametrize("writable", [True, False], ids=["one folder", "no folder"])
def test_it_runs_read_only_as_nobody_and_without_a_network(
    light_model: Path, option: str, writable: bool, tmp_path: Path
) -> None:
    if not _can_be_sealed():
        pytest.skip("only root in a kernel that allows namespaces can take a process's network and file systems away")
    rows = customers(3)
    seen = _sealed(light_model, rows, str(tmp_path) if writable else "", *([option] if option else []))

    assert seen["refused"].pop("network") in ("ENETUNREACH", "EHOSTUNREACH")
    assert len(seen["refused"]) == 5
    assert set(seen["refused"].values()) <= CLOSED
    assert seen["user"] == "65534"
    assert len(seen["first"]) == len(rows)
    assert seen["again"] == seen["first"]
    assert seen["killed"] == (1 if option else 0)
    assert seen["metrics"]
    assert seen["exit"] == 0, seen["log"]
    assert "Traceback" not in seen["log"]
    assert seen.get("rows") == (2 * len(rows) if writable else None)


def _sealed(model: Path, rows: pd.DataFrame, writable: str, *options: str) -> dict[str, Any]:
    body = json.dumps({"dataframe_split": rows.to_dict("split", index=False)})
    command = [*SEALED, sys.executable, "-m", "tests.contract.sealed_server", str(model), str(planned(model))]
    done = subprocess.run(
        [*command, body, writable, *options], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen
