"""Runs a model server where nothing can be written and nobody can be reached, and prints what it saw as JSON.

To be run as root in namespaces of its own: ``unshare --net --mount python -m tests.contract.sealed_server ...``. The
server runs as a user without a name or a home. All that user has is the right to read what root can read, because the
Python of a test may lie in root's home.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOBODY = 65534
PORT = 8080
URL = f"http://127.0.0.1:{PORT}"
SECONDS = 90.0
_AS_NOBODY = (
    f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --no-new-privs --bounding-set=-all,+dac_read_search "
    "--inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search"
).split()
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
    for line in Path("/proc/self/mounts").read_text().splitlines():
        folder = line.split()[1].encode().decode("unicode_escape")
        if folder != str(writable) and not folder.startswith(("/proc", "/sys")):
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def tried(folders: list[str]) -> dict[str, str]:
    """Why the server's user can neither write there nor reach anybody."""
    done = subprocess.run([*_AS_NOBODY, sys.executable, "-c", _TRIES, *folders], check=True, capture_output=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def served(command: list[str], environment: Mapping[str, str], body: bytes) -> dict[str, Any]:
    process = subprocess.Popen([*_AS_NOBODY, *command], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        _await_ready(process)
        seen: dict[str, Any] = {"user": _status(process.pid, "Uid")[0], "first": _asked(body)}
        children = _children(process.pid)
        for child in children:
            os.kill(child, signal.SIGKILL)
        seen |= {"killed": len(children), "again": _asked_until(body)}
        with urllib.request.urlopen(f"{URL}/metrics", timeout=SECONDS) as answer:
            seen["metrics"] = "promote_requests" in answer.read().decode()
        process.terminate()
        seen |= {"log": process.communicate(timeout=SECONDS)[1], "exit": process.returncode}
        return seen
    finally:
        process.kill()


def _await_ready(process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{URL}/ping", timeout=SECONDS).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    process.kill()
    raise SystemExit(f"the server does not answer: {process.communicate()[1]}")


def _asked(body: bytes) -> Any:
    request = urllib.request.Request(f"{URL}/invocations", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.loads(answer.read())["predictions"]


def _asked_until(body: bytes) -> Any:
    until = time.monotonic() + SECONDS
    while True:
        try:
            return _asked(body)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def _status(pid: int, name: str) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{name}:")).split()[1:]


def main() -> None:
    """``MODEL PLAN BODY WRITABLE [OPTION ...]``: `WRITABLE` is a folder for the log, or empty."""
    model, plan, body, folder, *options = sys.argv[1:]
    writable = Path(folder) if folder else None
    seal(writable)
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PARITY_SHARE": "0", "LINGER": "0.05"}
    if writable:
        environment |= {"TMPDIR": folder, "PREDICTION_LOG": f"{folder}/log"}
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
