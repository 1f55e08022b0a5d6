"""Load by wrk: requests per second and latency, with bodies that vary."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("vary.lua")


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run of wrk measured; latencies in milliseconds."""

    requests_per_second: float
    p50: float
    p99: float
    failed: int


def required() -> None:
    """End with advice where wrk is missing: a client in Python would be slower than what it measures."""
    if not shutil.which("wrk"):
        raise SystemExit("this benchmark needs wrk (Debian: apt-get install wrk; macOS: brew install wrk)")


def run(url: str, bodies: Path, clients: int, seconds: float, rate: float | None = None) -> Figures:
    """`clients` connections for `seconds`, as fast as answers come, or at about `rate` requests per second."""
    pause = [f"{1000 * clients / rate:.0f}"] if rate else []
    threads, time = f"-t{min(clients, 1)}", f"-d{max(1, round(seconds))}s"
    command = ["wrk", threads, f"-c{clients}", time, "--timeout", "30s", "-s", str(_SCRIPT), url, "--", str(bodies)]
    printed = subprocess.run([*command, *pause], check=True, capture_output=True, text=True).stdout
    found = re.search(r"^figures (.*)$", printed, re.MULTILINE)
    if not found:
        raise RuntimeError(f"wrk printed no figures: {printed}")
    told = json.loads(found[1])
    return Figures(told["requests"] / told["microseconds"] * 1e6, told["p50"] / 1e3, told["p99"] / 1e3, told["failed"])
