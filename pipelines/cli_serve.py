"""The verb `serve`: says what is done for it, where the model answers and how, and how to ask it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rich.text import Text

from pipelines import cli_views as views
from pipelines import serve_process
from pipelines.client import ClientError, Json
from pipelines.following import Exit
from pipelines.serve import Ready, Tell, Wanted, prepare
from serving.runtime.plan import Column, Plan, read

_LONGEST = 600
"""Characters of the longest example that is shown; a longer one is named by its file."""

_EXAMPLE = "serving_input_example.json"
"""MLflow's name for the input example as a request."""

_VALUES: dict[str, Any] = {"boolean": True, "string": "a", "binary": "YQ==", "datetime": "2026-01-31T12:00:00"}
"""An example of what stands in a column, by its kind; 1 elsewhere."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the server listens, and with how many processes."""

    host: str
    port: int
    grpc_port: int | None = None
    workers: int = 1

    @property
    def options(self) -> tuple[str, ...]:
        """As the model server is told by command line."""
        return () if self.grpc_port is None else ("--grpc-port", str(self.grpc_port))

    @property
    def variables(self) -> dict[str, str]:
        """As it is told by its environment; whoever set a variable keeps it."""
        log = {"LOG_FORMAT": "text"} if sys.stderr.isatty() and "LOG_FORMAT" not in os.environ else {}
        place = os.environ.get("PREDICTION_LOG", "")
        here = {"PREDICTION_LOG": str(Path(place).absolute())} if place and "://" not in place else {}
        return {"WORKERS": str(self.workers)} | log | here


def serve(wanted: Wanted, listening: Listening, *, quiet: bool) -> Exit:
    """Serve until a signal comes; `quiet` prints one JSON object and nothing else. Raises `ClientError`."""
    tell: Tell = (lambda _: None) if quiet else views.print_note

    def show(address: str) -> None:
        views.print_json(_told(ready, address)) if quiet else views.out().print(_view(ready, address))

    if listening.grpc_port is not None:
        serve_process.bound(listening.host, listening.grpc_port).close()
    with serve_process.bound(listening.host, listening.port) as listener:
        try:
            with _sigterm_as_interrupt():
                ready = prepare(wanted, tell)
        except KeyboardInterrupt:
            tell("ended before the model was served")
            return Exit.INTERRUPTED
        tell("starting the model server")
        with _held(ready):
            code = serve_process.serve(ready, listener, listening.options, listening.variables, show)
    tell("the model server has stopped" if code == 0 else f"the model server ended with status {code}; see above")
    return Exit.OK if code == 0 else Exit.ROLLED_BACK


@contextmanager
def _held(ready: Ready) -> Iterator[None]:
    """No cleaning removes the image meanwhile. Raises `ClientError`."""
    with ExitStack() as held:
        try:
            held.enter_context(ready.image.held())
        except FileNotFoundError as error:
            hint = "run the command again, which makes it anew"
            raise ClientError("failed", "the model's image was removed by somebody just now", hint) from error
        yield


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _told(ready: Ready, address: str) -> Json:
    proof = ready.proof
    return {
        "url": address,
        "model": ready.name,
        "version": ready.version or None,
        "compiled": proof.compiled,
        "why": proof.why,
        "rows": proof.rows,
        "warning": proof.warning,
        "example": example(ready.image.model, ready.image.plan),
    }


def _view(ready: Ready, address: str) -> Text:
    proof, version = ready.proof, f" {ready.version}" if ready.version else ""
    fast = "on" if proof.compiled else "off"
    lines = [f"{ready.name}{version} is served at {address}", f"fast path {fast}: {proof.why}"]
    lines += [f"warning: {proof.warning}"] if proof.warning else []
    lines += [f"try: {curl(address, example(ready.image.model, ready.image.plan), ready.image.model / _EXAMPLE)}"]
    return Text("\n".join([*lines, "Ctrl-C ends it"]))


def curl(address: str, body: Json, file: Path) -> str:
    """A command that asks for a prediction; a long `body` is named by its `file`."""
    text = json.dumps(body, ensure_ascii=False)
    given = shlex.quote(text) if len(text) <= _LONGEST or not file.exists() else f"@{shlex.quote(str(file))}"
    return f"curl {address}/invocations -H 'content-type: application/json' -d {given}"


def example(model: Path, plan: Path) -> Json:
    """A request that the model can answer, of one row where that is known: its own input example, or a made-up row."""
    file = model / _EXAMPLE
    if file.exists():
        return _first_row(json.loads(file.read_text()))
    return _made_up(read(plan))


def _first_row(body: Json) -> Json:
    split = body.get("dataframe_split")
    if isinstance(split, dict) and isinstance(split.get("data"), list):
        return {**body, "dataframe_split": {"columns": split["columns"], "data": split["data"][:1]}}
    return body


def _made_up(plan: Plan) -> Json:
    if plan.columns:
        return {"dataframe_records": [{column.name: _value(column) for column in plan.columns}]}
    if plan.tensors:
        filled = {tensor.name: _filled(tensor.shape) for tensor in plan.tensors}
        return {"inputs": filled if list(filled) != [""] else filled[""]}
    return {"inputs": [[1.0]]}


def _value(column: Column) -> object:
    return column.categories[0] if column.categories else _VALUES.get(column.kind, 1)


def _filled(shape: tuple[int, ...]) -> object:
    value: object = 1.0
    for size in reversed(shape):
        value = [value] * max(size, 1)
    return value
