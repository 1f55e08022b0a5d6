"""Virtual environments for models: what a model says it needs, resolved to an exact lock, installed by uv.

An environment is named by the digest of its lock and shared by every version with the same lock. The full
``mlflow`` of a model's requirements is resolved but not installed: the model server scores with
``mlflow-skinny``, pandas and NumPy at the versions found, which saves most of the installation and of the
memory. Everything appears by a rename, so that half an environment is never taken for a whole one.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import uv
import yaml

from serving.image import ImageError
from serving.runtime.requirements import REQUIREMENTS

_NETWORK = ("error sending request", "Failed to fetch", "dns error", "timed out", "Request failed")
"""What uv says where the network is at fault, not the requirements."""

_MLFLOW = re.compile(r"mlflow\s*((?:[=<>!~][^;\[@#]*)?)(?:#.*)?")
"""The whole of MLflow, with nothing but a version specifier."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What one model asks for."""

    python: str
    """Major and minor version, such as ``3.11``."""
    requirements: tuple[str, ...]
    """Lines of ``requirements.txt``."""
    constraints: str = ""
    """Content of the ``constraints.txt`` that the lines may name."""

    @property
    def key(self) -> str:
        """Names the question that is put to the resolver."""
        return hashlib.sha256(repr((self, REQUIREMENTS, platform.machine())).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Lock:
    """Exact versions with their hashes, for one Python."""

    python: str
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.python} {platform.machine()}\n{self.text}".encode()).hexdigest()

    @property
    def packages(self) -> int:
        return sum("==" in line for line in self.text.splitlines())


def read_needs(folder: Path) -> Needs:
    """What the model in `folder` asks for; `ImageError` where it is not an MLflow model."""
    try:
        model = yaml.safe_load((folder / "MLmodel").read_text())
        python = _python(folder, model["flavors"]["python_function"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        message = f"not a model that MLflow can serve (no python_function flavor): {error}"
        raise ImageError(message, retryable=False) from error
    lines = _lines(folder / "requirements.txt")
    if not any(re.match(r"mlflow(-skinny)?\b(?!-)", line) for line in lines):
        lines.append(f"mlflow=={model['mlflow_version']}" if "mlflow_version" in model else "mlflow")
    constraints = folder / "constraints.txt"
    return Needs(python, tuple(lines), constraints.read_text() if constraints.exists() else "")


def slim(requirements: Sequence[str]) -> tuple[str, ...]:
    """The same requirements with ``mlflow-skinny`` for ``mlflow``, where that stands alone with its version."""
    found = [_MLFLOW.fullmatch(line) for line in requirements]
    kept = [f"mlflow-skinny{hit[1].strip()}" if hit else line for hit, line in zip(found, requirements, strict=True)]
    return tuple(kept + (["numpy", "pandas"] if any(found) else []))


class Environments:
    """Locks and virtual environments below one folder."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._uv = _Uv()
        self._turns: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def resolve(self, needs: Needs, folder: Path) -> Lock:
        """The lock for `needs`, the same one every time. `folder` is where relative paths in them begin."""
        kept = self._home / "locks" / f"{needs.key}.txt"
        with self._turn(needs.key):
            if not kept.exists():
                _write(kept, self._resolved(needs, folder))
        return Lock(needs.python, kept.read_text())

    def install(self, lock: Lock, folder: Path) -> Path:
        """The environment for `lock`, made unless it is there; who comes second waits for who came first."""
        place = self.path(lock.digest)
        with self._turn(lock.digest):
            if not place.exists():
                self._make(lock, place, folder)
        return place

    def path(self, digest: str) -> Path:
        return self._home / "environments" / digest

    def close(self) -> None:
        """End the installations under way."""
        self._uv.stop()

    def _resolved(self, needs: Needs, folder: Path) -> str:
        options = [line for line in needs.requirements if line.startswith("--")]
        python = self._interpreter(needs.python)
        full = self._uv.compile((*needs.requirements, *REQUIREMENTS), python, folder)
        wanted = slim(needs.requirements)
        if wanted != needs.requirements:
            constraint = self._home / "locks" / f".{needs.key}.full"
            _write(constraint, full)
            full = self._uv.compile((*wanted, *REQUIREMENTS, f"-c {constraint}"), python, folder)
            constraint.unlink()
        return "\n".join([*options, full])

    def _make(self, lock: Lock, place: Path, folder: Path) -> None:
        fresh = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
        fresh.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._uv.run("venv", "--quiet", "--relocatable", "--python", self._interpreter(lock.python), str(fresh))
            (fresh / "lock.txt").write_text(lock.text)
            python = str(fresh / "bin" / "python")
            sync = ("pip", "sync", "--quiet", "--require-hashes", "--python", python, str(fresh / "lock.txt"))
            self._uv.run(*sync, folder=folder)
            with contextlib.suppress(OSError):  # somebody else's controller was first
                fresh.replace(place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _interpreter(self, version: str) -> str:
        if version == f"{sys.version_info.major}.{sys.version_info.minor}":
            return str(getattr(sys, "_base_executable", sys.executable))
        try:
            return self._uv.run("python", "find", "--quiet", "--system", "--no-python-downloads", version).strip()
        except ImageError as error:
            raise ImageError(
                f"the model needs Python {version}, which this machine does not have: "
                f"install it (for example with `uv python install {version}`) and try again",
                retryable=False,
            ) from error

    def _turn(self, key: str) -> threading.Lock:
        with self._guard:
            return self._turns.setdefault(key, threading.Lock())


class _Uv:
    """The uv program; its runs can be ended from another thread."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def compile(self, lines: Sequence[str], python: str, folder: Path) -> str:
        options = ("--quiet", "--generate-hashes", "--no-header", "--no-annotate", "--python", python)
        return self.run("pip", "compile", *options, "-", folder=folder, given="\n".join(lines))

    def run(self, *arguments: str, folder: Path | None = None, given: str = "") -> str:
        """What uv printed; `ImageError` with its own explanation where it failed."""
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [uv.find_uv_bin(), *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=folder, process_group=0
        ) as process:
            self._running.add(process)
            printed, said = process.communicate(given)
            self._running.discard(process)
        if process.returncode == 0:
            return printed
        ended = process.returncode < 0 or self._stopped
        raise ImageError(said.strip()[-4000:], retryable=ended or any(words in said for words in _NETWORK))

    def stop(self) -> None:
        self._stopped = True
        for process in tuple(self._running):
            process.terminate()


def _lines(path: Path) -> list[str]:
    text = path.read_text() if path.exists() else ""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _python(folder: Path, flavor: Mapping[str, object]) -> str:
    path = folder / "python_env.yaml"
    environment = (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}
    python = environment.get("python") or flavor.get("python_version") or platform.python_version()
    return ".".join(str(python).split(".")[:2])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    fresh.write_text(text)
    fresh.replace(path)
