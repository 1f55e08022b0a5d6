"""Runs a model server where nothing can be written and nobody can be reached, and prints what it saw as JSON.

To be run in namespaces of its own: ``unshare --net --mount python -m tests.contract.sealed_server ...`` by root, with
``--user --map-root-user`` by anybody else. For root, the server runs as a user without a name or a home. All that user
has is the right to read what root can read, because the Python of a test may lie in root's home.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fixtures.gateway import until

NOBODY = 65534
PORT = 8080
URL = f"http://127.0.0.1:{PORT}"
SECONDS = 90.0
CHECKED = 'promote_events_total{event="parity_checked"}'
_UNPRIVILEGED = ["setpriv", "--no-new-privs", "--pdeathsig=SIGKILL"]
_READS = [f"--{which}-caps=-all,+dac_read_search" for which in ("inh", "ambient")]
_TRIES = """
import errno, json, socket, sys
seen = {}
for name in sys.argv[1:]:
    try:
        open(name + "/written", "w")
    except OSError as error:
        seen[name] = errno.errorcode[error.errno]
try:
    socket.create_connection(("192.0.2.1", 80), 5)
except OSError as error:
    seen["network"] = errno.errorcode[error.errno]
print(json.dumps(seen))
"""


def seal(writable: Path | None) -> None:
    """Make every file system read-only but one folder, and have no network but the loopback."""
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    if writable is not None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(writable)], check=True)
    for folder in _open(writable):
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=False, stderr=subprocess.DEVNULL)
    left = _open(writable)
    if left:
        raise SystemExit(f"these can still be written to: {', '.join(left)}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def _open(writable: Path | None) -> list[str]:
    """Where a file system begins that can be written to, but for the kernel's own, whose files nobody makes."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    folders = dict.fromkeys(line.split()[1].encode().decode("unicode_escape") for line in lines)
    ours = [folder for folder in folders if folder != str(writable) and not folder.startswith(("/proc", "/sys"))]
    return [folder for folder in ours if not os.statvfs(folder).f_flag & os.ST_RDONLY]


def as_nobody() -> list[str]:
    """What stands before a command so that it has no rights; where there is one user only, it stays that one."""
    if int(Path("/proc/self/uid_map").read_text().split()[2]) <= NOBODY:
        return [*_UNPRIVILEGED, "--bounding-set=-all", "--inh-caps=-all"]
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return [*_UNPRIVILEGED, *user, "--bounding-set=-all,+dac_read_search", *_READS]


def tried(folders: list[str]) -> dict[str, str]:
    """Why the server's user can neither write there nor reach anybody."""
    done = subprocess.run([*as_nobody(), sys.executable, "-c", _TRIES, *folders], check=True, capture_output=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@dataclass(slots=True)
class Client:
    """Asks the server for the same again and again."""

    body: bytes
    answered: int = 0

    def ask(self) -> Any:
        """The predictions; None where there are none at the moment."""
        request = urllib.request.Request(f"{URL}/invocations", self.body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                predictions = json.loads(answer.read())["predictions"]
        except OSError:
            return None
        self.answered += 1
        return predictions

    def check(self) -> bool:
        """Ask; whether the model itself has computed an answer of the compiled one again."""
        self.ask()
        return figure(CHECKED) > 0

    def counted(self) -> bool:
        """Whether all that was answered is counted, which happens a moment later."""
        return figure('promote_requests_total{code="200"') == self.answered


def figure(name: str) -> float:
    """The sum of the samples whose line begins so."""
    told = _read("/metrics").splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in told if line.startswith(name))


def served(command: list[str], environment: Mapping[str, str], body: bytes) -> dict[str, Any]:
    process = subprocess.Popen([*as_nobody(), *command], env=environment, stderr=subprocess.PIPE, text=True)
    client = Client(body)
    try:
        until(lambda: process.poll() is not None or _ready(), SECONDS)
        if process.poll() is not None:
            raise SystemExit(f"the server ended: {process.communicate()[1]}")
        seen: dict[str, Any] = {"user": _status(process.pid, "Uid"), "rights": _status(process.pid, "CapEff")}
        seen |= {"health": json.loads(_read("/health")), "first": client.ask()}
        if seen["health"]["path"] == "compiled" and float(environment["PARITY_SHARE"]):
            until(client.check, SECONDS)
        if "PREDICTION_LOG" in environment:
            rows = client.answered * len(seen["first"])
            until(lambda: figure("promote_prediction_log_written") == rows, SECONDS)
        until(client.counted, SECONDS)
        seen |= {"killed": _kill_children(process.pid), "again": until(client.ask, SECONDS)}
        seen |= {"answered": client.answered, "counted": until(client.counted, SECONDS)}
        seen |= {"checked": figure(CHECKED), "mismatches": figure('promote_events_total{event="parity_mismatch"}')}
        process.terminate()
        seen |= {"log": process.communicate(timeout=SECONDS)[1], "exit": process.returncode}
        return seen
    finally:
        process.kill()


def _ready() -> bool:
    try:
        return bool(_read("/ping"))
    except OSError:
        return False


def _read(path: str) -> str:
    with urllib.request.urlopen(f"{URL}{path}", timeout=SECONDS) as answer:
        text: str = answer.read().decode()
        return text


def _kill_children(pid: int) -> int:
    """Kill all processes of a server but the first, and wait until they are gone; how many there were."""
    children = _children(pid)
    for child in children:
        os.kill(child, signal.SIGKILL)
    until(lambda: not children & _children(pid))
    return len(children)


def _children(pid: int) -> set[int]:
    return {int(child) for of in Path(f"/proc/{pid}/task").glob("*/children") for child in of.read_text().split()}


def _status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{name}:")).split()[1]


def main() -> None:
    """``MODEL PLAN BODY WRITABLE [OPTION ...]``: `WRITABLE` is a folder for the log, or empty."""
    model, plan, body, folder, *options = sys.argv[1:]
    writable = Path(folder) if folder else None
    seal(writable)
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LINGER": "0.05"}
    environment |= {"WORKERS": "1" if "--native" in options else "2", "PARITY_SHARE": "0" if writable else "1"}
    if writable:
        environment |= {"TMPDIR": folder, "PREDICTION_LOG": f"{folder}/log", "PREDICTION_LOG_SECONDS": "0.1"}
    where = ["--model", model, "--plan", plan, "--port", str(PORT), "--host", "127.0.0.1"]
    seen: dict[str, Any] = {"refused": tried([model, plan, "/tmp", "/dev/shm", str(Path.cwd())])}
    seen |= served([sys.executable, "-m", "serving.runtime", *where, *options], environment, body.encode())
    if writable:
        seen["rows"] = _logged(writable / "log")
    print(json.dumps(seen))


def _logged(folder: Path) -> int:
    from pyarrow import parquet

    return sum(parquet.ParquetFile(path).metadata.num_rows for path in folder.rglob("*.parquet"))


if __name__ == "__main__":
    main()
