"""`benchmarks.loop` in a cluster: revisions and gateway are pods, the load comes through a port of the node.

The controller and MLflow run on this machine, images are made by its Docker Engine and sent to a registry.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from benchmarks.loop import KEEP_WARM, RATE, measured
from tests.e2e.conftest import installed_in_cluster


def measure() -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="promote-bench-") as folder:
        try:
            with installed_in_cluster(Path(folder) / "home", keep_warm=KEEP_WARM) as loop:
                return {"requests_per_second": RATE, "kubernetes": measured(loop)}
        except pytest.skip.Exception as missing:
            return {"kubernetes": f"not measured: {missing}"}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
