"""Virtual environments for models: what a model says it needs, resolved to an exact lock, installed by uv.

An environment is named by the digest of its lock and shared by every version with the same lock. A model that may
be compiled gets a second one with the same packages and the converters, so that none of those is there when it serves;
uv links the files, so it costs half a second and the converters' own size. The full ``mlflow`` of a model's
requirements is resolved but not installed: the model server scores with ``mlflow-skinny``, pandas and NumPy at the
versions found, which saves most of the installation and of the memory; nor is what only logs in to clouds. Everything
appears by a rename, so that half an environment is never taken for a whole one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import uv

from serving.image import ImageError
from serving.needs import UNSERVED, Needs, named, names_of, read_needs, slim
from serving.package_source import PackageSource, untrusted
from serving.runtime.requirements import COMPILED, CONVERTERS, REQUIREMENTS
from serving.workshop import put

_NETWORK = ("error sending request", "Failed to fetch", "dns error", "timed out", "Request failed")
"""What uv says where the network is at fault, not the requirements."""

_OWN = ("PYTHON", "VIRTUAL_ENV", "MLFLOW_", "PROMOTE_")
"""Beginnings of environment variables that are the controller's and not a model's."""


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

    def holds(self, package: str) -> bool:
        return re.search(rf"^{re.escape(package)}\b(?!-)", self.text, re.MULTILINE) is not None


@dataclass(frozen=True, slots=True)
class Interpreters:
    """Which Pythons one model gets."""

    lock: Lock
    """What the one that serves has installed."""
    serving: Path
    compiling: Path | None
    """The one that has the converters too."""
    why: str = ""
    """Why there is none that compiles."""
    own: bool = False
    """Whether it is the environment in which this very process runs."""


class Provider(Protocol):
    """Gives a model its interpreters."""

    def provide(self, model: Path, tell: Callable[[str], None], *, native: bool) -> Interpreters:
        """Have everything that the model in the folder `model` needs; `tell` hears how far it is. `ImageError`.

        Where it is to be served as it is, `native`, nothing is had for compiling.
        """
        ...

    def close(self) -> None:
        """End what is under way."""
        ...


def variables(server: Path, *, own: bool = False) -> dict[str, str]:
    """Environment variables of a process that serves or compiles a model with the code below `server`.

    Ours are none of its business, unless the model runs in our `own` environment. Rows come a few at a time, so that
    more threads to compute one would only fight with other processes.
    """
    inherited = {name: value for name, value in os.environ.items() if own or not name.startswith(_OWN)}
    search = os.pathsep.join(filter(None, [str(server), os.environ.get("PYTHONPATH") if own else None]))
    apart = {} if own else {"PYTHONNOUSERSITE": "1"}
    told = {"PYTHONPATH": search, "PYTHONUNBUFFERED": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {"OMP_NUM_THREADS": "1"} | inherited | apart | told


class Environments:
    """`Provider` of locks and virtual environments below one folder."""

    def __init__(self, home: Path, source: PackageSource | None = None) -> None:
        self._home = home
        self._source = source or PackageSource()
        self._uv = _Uv(self._source)
        self._served = (*REQUIREMENTS, *self._source.served)
        self._turns: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def provide(self, model: Path, tell: Callable[[str], None], *, native: bool) -> Interpreters:
        needs = read_needs(model)
        tell("resolving the requirements")
        lock = self.resolve(needs, model)
        tell(f"installing {lock.packages} packages")
        serving = self.install(lock, model) / "bin" / "python"
        if native:
            return Interpreters(lock, serving, None, "it was asked for")
        if not needs.compilable:
            return Interpreters(lock, serving, None, f"nothing compiles {needs.kind}")
        if not lock.holds("onnxruntime"):
            return Interpreters(lock, serving, None, "onnxruntime does not go with the model's requirements")
        tell("installing what compiling takes")
        try:
            compiling = self.install(self.resolve_compiling(needs, lock, model), model) / "bin" / "python"
        except ImageError as error:
            if error.retryable:
                raise
            return Interpreters(lock, serving, None, "what compiling takes does not go with the model's requirements")
        return Interpreters(lock, serving, compiling)

    def resolve(self, needs: Needs, folder: Path) -> Lock:
        """The lock for `needs`, the same one every time. `folder` is where relative paths in them begin."""
        key = self._key(needs)
        kept = self._kept(key)
        with self._turn(key):
            if not kept.exists():
                put(kept, self._resolved(needs, folder))
        return Lock(needs.python, kept.read_text())

    def resolve_compiling(self, needs: Needs, lock: Lock, folder: Path) -> Lock:
        """The packages of `lock` at the same versions, with the converters of the flavour."""
        key, wanted = self._compiling(needs, lock.digest)
        kept = self._kept(key)
        without = () if lock.holds(UNSERVED) else (UNSERVED,)
        with self._turn(key):
            if not kept.exists():
                put(kept, self._within(lock.text, wanted, needs, folder, without))
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

    def taken(self, model: Path, lock: str) -> Iterator[Path]:
        """What stands below the folder for the model in the folder `model`, which is served with `lock`. `ImageError`.

        That is what another build of it would take as well.
        """
        needs = read_needs(model)
        yield self._kept(self._key(needs))
        yield self.path(lock)
        if needs.compilable:
            kept = self._kept(self._compiling(needs, lock)[0])
            yield kept
            if kept.exists():
                yield self.path(Lock(needs.python, kept.read_text()).digest)

    def close(self) -> None:
        """End the installations under way."""
        self._uv.stop()

    def _key(self, needs: Needs) -> str:
        """The name of what `needs` come to, which depends on the indexes too."""
        return named(needs.key, *self._source.key) if self._source.key else needs.key

    def _compiling(self, needs: Needs, lock: str) -> tuple[str, tuple[str, ...]]:
        """What compiling takes besides the packages of the lock of that digest, and the name of that question."""
        wanted = (*slim(needs.requirements), *self._served, *COMPILED, *CONVERTERS[needs.flavor])
        return named(needs.key, lock, wanted, *self._source.key), wanted

    def _kept(self, key: str) -> Path:
        return self._home / "locks" / f"{key}.txt"

    def _resolved(self, needs: Needs, folder: Path) -> str:
        """With what the compiled path needs, or without where that does not go with the model's requirements."""
        if needs.compilable:
            try:
                return self._slimmed(needs, (*self._served, *COMPILED), folder)
            except ImageError as error:
                if error.retryable:
                    raise
        return self._slimmed(needs, self._served, folder)

    def _slimmed(self, needs: Needs, server: Sequence[str], folder: Path) -> str:
        python = self._interpreter(needs.python)
        full = self._uv.compile((*needs.requirements, *server), python, folder)
        wanted = slim(needs.requirements)
        if wanted != needs.requirements:
            return self._within(full, (*wanted, *server), needs, folder, self._unserved(full, wanted, needs, folder))
        return _with_options(needs, full)

    def _unserved(self, versions: str, wanted: Sequence[str], needs: Needs, folder: Path) -> tuple[str, ...]:
        """What is not to be installed: it comes with MLflow 3 or later, and with nothing else that is `wanted`."""
        if not re.search(r"^mlflow-skinny==([3-9]|\d\d)", versions, re.MULTILINE):
            return ()
        others = tuple(line for line in wanted if "mlflow-skinny" not in names_of([line]))
        return () if Lock(needs.python, self._within(versions, others, needs, folder)).holds(UNSERVED) else (UNSERVED,)

    def _within(
        self, versions: str, wanted: Sequence[str], needs: Needs, folder: Path, without: Sequence[str] = ()
    ) -> str:
        """`wanted`, at the versions that are known already, `without` some that they bring."""
        there = self._home / "locks" / f".{uuid.uuid4().hex[:8]}"
        constraint, override = there.with_suffix(".versions"), there.with_suffix(".without")
        put(constraint, versions)
        put(override, "".join(f"{package} ; sys_platform == 'none'\n" for package in without))
        try:
            python = self._interpreter(needs.python)
            lines = (*wanted, f"-c {constraint}")
            return _with_options(needs, self._uv.compile(lines, python, folder, "--override", str(override)))
        finally:
            constraint.unlink()
            override.unlink()

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

    def __init__(self, source: PackageSource) -> None:
        self._source = source
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def compile(self, lines: Sequence[str], python: str, folder: Path, *more: str) -> str:
        options = (*more, "--quiet", "--generate-hashes", "--no-header", "--no-annotate", "--python", python)
        return self.run("pip", "compile", *options, "-", folder=folder, given="\n".join(lines))

    def run(self, *arguments: str, folder: Path | None = None, given: str = "") -> str:
        """What uv printed; `ImageError` with its own explanation where it failed."""
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [uv.find_uv_bin(), *arguments],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            cwd=folder,
            env=self._source.variables,
            process_group=0,
        ) as process:
            self._running.add(process)
            printed, said = process.communicate(given)
            self._running.discard(process)
        if process.returncode == 0:
            return printed
        ended = process.returncode < 0 or self._stopped
        passing = any(words in said for words in _NETWORK) and not untrusted(said)
        raise ImageError(self._source.told(said.strip())[-4000:], retryable=ended or passing)

    def stop(self) -> None:
        self._stopped = True
        for process in tuple(self._running):
            process.terminate()


def _with_options(needs: Needs, lock: str) -> str:
    return "\n".join([*(line for line in needs.requirements if line.startswith("--")), lock])
