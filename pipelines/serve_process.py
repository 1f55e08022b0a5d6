"""A model server in the foreground: started on a socket that is ours already, followed until it ends.

The server leads a group of its own, so that Ctrl-C reaches this process alone, which then asks the server to stop as
any platform would. It ends with us, even where we are killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import httpx

from pipelines.client import ClientError
from pipelines.serve import Ready

_LOOK_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: which signal a process gets when its parent dies."""


def bound(host: str, port: int) -> socket.socket:
    """A socket at that address, any free port where that is 0. Raises `ClientError`."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        where = f"{_bracketed(host)}:{port}"
        hint = "end the program that holds it, or choose another one by --host and --port"
        raise ClientError("port", f"{where} cannot be had: {error.strerror or error}", hint) from error
    return listener


def url(listener: socket.socket) -> str:
    """Where callers on this machine reach the server."""
    host, port = listener.getsockname()[:2]
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else _bracketed(host)}:{port}"  # noqa: S104


def serve(
    ready: Ready,
    listener: socket.socket,
    options: Sequence[str],
    environment: Mapping[str, str],
    show: Callable[[str], None],
) -> int:
    """Serve until SIGTERM or SIGINT, or until the server ends by itself; its exit status.

    `show` is called with the address once it answers.
    """
    address, running, came = url(listener), list[subprocess.Popen[bytes]](), list[int]()

    def stop(number: int, _frame: object) -> None:
        """The second time it is killed."""
        came.append(number)
        for server in running:
            server.send_signal(signal.SIGTERM if len(came) == 1 else signal.SIGKILL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with _started(ready, listener, options, environment) as server:
        running.append(server)
        listener.close()
        if came:
            server.terminate()
        if _answers(server, address):
            show(address)
        code = server.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
    return 0 if came and code in (0, -signal.SIGTERM) else code or 1


def _started(
    ready: Ready, listener: socket.socket, options: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """What it prints goes to standard error, so that standard output has only what was asked for.

    Python looks for modules in the working directory first, so it is not the caller's.
    """
    return subprocess.Popen(
        ready.image.command("--fd", str(listener.fileno()), *options),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        cwd=ready.image.server,
        env={**ready.image.variables, **_about(ready), **environment},
        pass_fds=[listener.fileno()],
        preexec_fn=_end_with_parent,  # noqa: PLW1509 (no other thread runs by now)
        process_group=0,
    )


def _about(ready: Ready) -> dict[str, str]:
    return {"MODEL_NAME": ready.name, "MODEL_VERSION": str(ready.version)}


def _answers(server: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until the server is ready; False where it ended before."""
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while server.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{address}/health").is_success:
                    return True
            time.sleep(_LOOK_SECONDS)
    return False


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
