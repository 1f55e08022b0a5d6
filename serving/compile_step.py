"""The step of a build in which the model is run for the first time: ``python -m serving.compiling`` in its environment.

A model's own code may do anything, so this is a process with a time limit. Where compiling ends badly, the model is
still served as it is, and the plan says why; only a model that cannot be used at all fails its build.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from registry_hooks.reference import Sample
from serving.image import ImageError, Proof, digest_of_file
from serving.runtime.plan import FILE, Plan, read

_UNUSABLE = 3
"""Exit status of ``serving.compiling`` where the model itself is at fault; its last line says why."""

_NATIVE_SECONDS = 600.0
"""How long a model may take to load and to be looked at, where nothing is compiled."""


class CompileStep:
    """Runs the step; its runs can be ended from another thread."""

    def __init__(self, seconds: float) -> None:
        """Compiling takes at most `seconds`."""
        self._seconds = seconds
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def compile(
        self, python: Path, model: Path, plan: Path, environment: Mapping[str, str], rows: Path | None = None
    ) -> str:
        """Write the plan, with a compiled model where that can be proved right; why it could not be tried, or nothing.

        `python` has the converters, `rows` is a file of `write_rows` that the proof takes as well. `ImageError` where
        the model cannot be used.
        """
        known = ["--rows", str(rows)] if rows else []
        command = [str(python), "-m", "serving.compiling", str(model), str(plan), *known]
        return self._run(command, self._seconds, environment)

    def look(self, python: Path, model: Path, plan: Path, environment: Mapping[str, str], why: str) -> None:
        """Write the plan of a model that is served as it is. `ImageError` where it cannot be used."""
        command = [str(python), "-m", "serving.compiling", str(model), str(plan), "--native", "--why", why]
        failed = self._run(command, _NATIVE_SECONDS, environment)
        if failed:
            raise ImageError(f"the model cannot be loaded: {failed}", retryable=False)

    def stop(self) -> None:
        self._stopped = True
        for process in tuple(self._running):
            _kill(process)

    def _run(self, command: list[str], seconds: float, environment: Mapping[str, str]) -> str:
        """How it failed, or nothing; output goes to a file, because what a model starts may hold a pipe open."""
        plan = Path(command[4])
        shutil.rmtree(plan, ignore_errors=True)
        with tempfile.TemporaryFile() as said:
            code = self._waited(command, seconds, environment, said.fileno())
            said.seek(0)
            words = _last_line(said.read().decode(errors="replace"))
        if self._stopped:
            raise ImageError("the build was ended", retryable=True)
        if code == _UNUSABLE:
            raise ImageError(words, retryable=False)
        if code is None:
            return f"it took longer than {seconds:g} s"
        if code < 0:
            return f"it was ended by {signal.Signals(-code).name}"
        if code:
            return words or f"it ended with status {code}"
        return "" if (plan / FILE).exists() else "it wrote no plan"

    def _waited(self, command: list[str], seconds: float, environment: Mapping[str, str], said: int) -> int | None:
        """Its exit status, or None where it took too long."""
        with (
            tempfile.TemporaryDirectory(prefix="compiling-") as folder,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=folder,
                env=environment,
                process_group=0,
            ) as process,
        ):
            self._running.add(process)
            try:
                return process.wait(0 if self._stopped else seconds)
            except subprocess.TimeoutExpired:
                return None
            finally:
                _kill(process)
                self._running.discard(process)


def proof_of(folder: Path) -> Proof:
    """What the plan in `folder` says of how the model is served."""
    try:
        plan = read(folder)
    except (OSError, ValueError) as error:
        raise ImageError(f"the plan of the model cannot be read: {error}", retryable=False) from error
    return _proof(plan, folder)


def write_rows(sample: Sample, file: Path) -> Path:
    """`file`, as the step reads it."""
    file.write_text(json.dumps({"told": sample.told, "columns": sample.columns, "rows": sample.rows}))
    return file


def _proof(plan: Plan, folder: Path) -> Proof:
    written = folder / "proof.json"
    return Proof(
        compiled=plan.compiled is not None,
        why=plan.why,
        rows=plan.compiled.rows if plan.compiled else 0,
        tolerance=plan.compiled.tolerance if plan.compiled else 0.0,
        model=plan.compiled.digest if plan.compiled else "",
        proof=digest_of_file(written) if written.exists() else "",
        signature=plan.signature,
        data=json.loads(written.read_text()).get("data set", "") if written.exists() else "",
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it with whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:500]
