"""The gate on a version's files: what is there now is what was there when the version was first seen.

The first rollout of a version records what its files hold; every later one compares before anything is built, and what
is built is compared with the record again. Downloads take their time, so each has a thread of its own, because a tick
does not wait; a controller that starts again begins anew. Going back to a version that served before does not wait for
a download: its image was made of the recorded files, and is compared with what it was when it is started.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from pipelines.rollout import FILES, GateResult, Goal, Rollout
from pipelines.store import Approved, ApprovedFiles, StoreError
from registry_hooks.model_version import ModelVersion
from registry_hooks.registry import ModelRegistry, RegistryError
from serving.runtime.model_files import Files, difference, digest, listed
from serving.unpickling import Loading, loading
from serving.workshop import clear, workshop

PICKLE = "pickle"
"""Name of the gate on how the model is loaded."""
_AT_ONCE = 4
_AGAIN_SECONDS = 5.0
"""After so long, what did not answer is asked again."""
_logger = logging.getLogger(__name__)

Results = tuple[GateResult, ...]


@dataclass(slots=True)
class Approval:
    """One look at the files of a version, in the thread that carries it out."""

    registry: ModelRegistry
    store: ApprovedFiles
    home: Path
    version: ModelVersion
    source: str
    refuse_pickle: bool
    stop: threading.Event = field(default_factory=threading.Event)
    doing: str = ""

    def run(self) -> Results:
        """Tries again while that can help, until it is stopped."""
        while True:
            try:
                return self._looked()
            except (RegistryError, StoreError, OSError) as error:
                if not getattr(error, "retryable", True):
                    return (GateResult(FILES, passed=False, detail=str(error)),)
                _logger.warning("the files of %s could not be looked at: %s", self.version, error)
                self.doing = f"trying again: {error}"
                if self.stop.wait(_AGAIN_SECONDS):
                    raise

    def _looked(self) -> Results:
        with workshop(self.home) as folder:
            self.doing = "downloading the model's files, to see whether they are those that were approved"
            model = self.registry.download(self.version, folder / "download")
            try:
                files = listed(model)
            except ValueError as error:
                return (GateResult(FILES, passed=False, detail=f"the files of {self.version} cannot be told: {error}"),)
            how = loading(_mlmodel(model), files)
        recorded = self.store.approve(Approved(self.version, self.source, files, datetime.now(UTC)))
        return (compared(recorded, files), loaded_by(self.version, how, refuse=self.refuse_pickle))


def compared(recorded: Approved, files: Files) -> GateResult:
    """What is there now with what was recorded."""
    found, first = digest(files), digest(recorded.files)
    size = sum(file.size for file in files.values())
    data: Mapping[str, object] = {"sha256": found, "approved": first, "files": len(files), "bytes": size}
    since = f"{recorded.at:%Y-%m-%d %H:%M} UTC"
    if found == first:
        told = f"{len(files)} files with {size:,} bytes, SHA-256 {found}, as first seen {since}"
        return GateResult(FILES, passed=True, detail=told, data=data)
    told = (
        f"the files of {recorded.version} were changed: SHA-256 {found} now, {first} when they were first seen {since} "
        f"({difference(recorded.files, files)}); put them back, or register what is there now as a new version"
    )
    return GateResult(FILES, passed=False, detail=told, data=data)


def loaded_by(version: ModelVersion, how: Loading, *, refuse: bool) -> GateResult:
    """How the model is loaded, and whether that is allowed."""
    data = {"kind": how.kind, "unpickles": how.unpickles}
    if not (refuse and how.unpickles):
        return GateResult(PICKLE, passed=True, detail=str(how), data=data)
    advice = f"{how.instead}, or set rollout.refuse_pickle: false in its policy"
    return GateResult(PICKLE, passed=False, detail=f"{version} is loaded as {how}; {advice}", data=data)


@dataclass(frozen=True, slots=True)
class _Begun:
    approval: Approval
    results: Future[Results]


class Approvals:
    """The looks that are under way, or over and not yet forgotten. Safe to use from several threads."""

    def __init__(self, registry: ModelRegistry, store: ApprovedFiles, home: Path) -> None:
        """Files are downloaded below `home`, and gone afterwards."""
        self._registry = registry
        self._store = store
        self._home = home
        self._begun: dict[str, _Begun] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="files")
        clear(home)

    def busy(self, rollout: Rollout) -> bool:
        """Whether a look is under way."""
        with self._lock:
            begun = self._begun.get(rollout.id)
        return begun is not None and not begun.results.done()

    def results(self, rollout: Rollout, source: str) -> Results | None:
        """Of the gates on the version's files at `source`; None while they are looked at."""
        if rollout.intent.goal is Goal.RESTORE and (known := self._known(rollout, source)):
            return known
        with self._lock:
            if rollout.id not in self._begun:
                self._begun[rollout.id] = self._begin(rollout, source)
            begun = self._begun[rollout.id]
        return begun.results.result() if begun.results.done() else None

    def progress(self, rollout: Rollout) -> str:
        """Of a look under way; empty where there is none."""
        with self._lock:
            begun = self._begun.get(rollout.id)
        return "" if begun is None or begun.results.done() else begun.approval.doing

    def forget(self, rollout: Rollout) -> None:
        """End the rollout's look where it is under way."""
        with self._lock:
            begun = self._begun.pop(rollout.id, None)
        if begun is not None:
            begun.approval.stop.set()

    def close(self) -> None:
        """End what is under way."""
        with self._lock:
            for begun in self._begun.values():
                begun.approval.stop.set()
        self._threads.shutdown(cancel_futures=True)

    def _known(self, rollout: Rollout, source: str) -> Results:
        """By the record alone; nothing where there is none."""
        recorded = self._store.approved(rollout.version, source)
        if recorded is None:
            return ()
        told = f"SHA-256 {digest(recorded.files)}, as first seen {recorded.at:%Y-%m-%d %H:%M} UTC; not downloaded again"
        return (GateResult(FILES, passed=True, detail=told, data={"sha256": digest(recorded.files)}),)

    def _begin(self, rollout: Rollout, source: str) -> _Begun:
        refuse = rollout.policy.refuse_pickle
        approval = Approval(self._registry, self._store, self._home, rollout.version, source, refuse)
        return _Begun(approval, self._threads.submit(approval.run))


def _mlmodel(model: Path) -> Mapping[str, Any]:
    """What the model says of itself; nothing where that cannot be read, for which there is no image either."""
    try:
        told = yaml.safe_load((model / "MLmodel").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return told if isinstance(told, dict) else {}
