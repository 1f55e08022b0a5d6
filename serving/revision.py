"""An immutable deployment of one model version, how it is doing, and who gets how much traffic.

Pure. A revision is never edited: another image or other settings make another revision, so that what was
measured stays true of what runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum

from registry_hooks.model_version import ModelVersion


@dataclass(frozen=True, slots=True)
class RevisionSettings:
    """How a revision runs; part of its identity.

    What is as the defaults have it does not count there, so that what serves is not started anew under another name
    where a newer release can set more. Therefore a default is never changed.
    """

    workers: int = 1
    """Processes of each model server that share its port."""
    memory_mb: int | None = None
    """Most memory of each replica in MiB; None leaves it unlimited."""
    cpus: float | None = None
    """Most CPU of each replica in cores; None leaves it unlimited."""
    drain_seconds: float = 30.0
    """How long requests in flight may take to finish after a stop."""
    environment: tuple[tuple[str, str], ...] = ()
    """Environment variables, sorted by name."""
    replicas: int = 1
    """Model servers of the revision, each with its own address; target `local` has one with as many workers more."""
    max_replicas: int | None = None
    """Most replicas that a cluster makes while they are busy; None leaves it at `replicas` (target `kubernetes`)."""
    busy_percent: int = 70
    """Share of its `cpus` above which a replica is busy (target `kubernetes`)."""
    gpus: int = 0
    """GPUs of each replica, as ``nvidia.com/gpu`` (target `kubernetes`). With any, the model itself answers."""
    node_labels: tuple[tuple[str, str], ...] = ()
    """Labels of the nodes that may run it, sorted by name (target `kubernetes`)."""

    @property
    def server(self) -> dict[str, str]:
        """Environment variables that its servers are given: what `gpus` asks for, and `environment`."""
        return ({"DEVICE": "gpu"} if self.gpus else {}) | dict(self.environment)

    @property
    def on_gpu(self) -> bool:
        """Whether the model itself answers, on a GPU, even where there is a compiled one."""
        return self.server.get("DEVICE") == "gpu"

    @property
    def chosen(self) -> tuple[tuple[str, object], ...]:
        """What differs from the defaults, sorted by name."""
        pairs = ((one.name, getattr(self, one.name)) for one in fields(self))
        return tuple(sorted(pair for pair in pairs if pair not in _DEFAULTS))


_DEFAULTS = [(one.name, one.default) for one in fields(RevisionSettings)]


@dataclass(frozen=True, slots=True)
class Revision:
    """An immutable deployment of one model version: image digest plus settings."""

    version: ModelVersion
    image: str
    """Digest of the image or of the local environment, as `ImageBuilder` gave it."""
    settings: RevisionSettings = RevisionSettings()

    @property
    def id(self) -> str:
        """Stable name, safe in file names, Envoy clusters and labels: ``churn-v7-3f9a1c20be``."""
        digest = hashlib.sha256(repr((self.version, self.image, self.settings.chosen)).encode()).hexdigest()
        name = "".join(c if c.isalnum() else "-" for c in self.version.model.lower())[:40].strip("-") or "model"
        return f"{name}-v{self.version.version}-{digest[:10]}"


class RevisionState(StrEnum):
    """How a revision is doing, as its target sees it."""

    STARTING = "starting"
    """Runs, and has not answered its warm-up prediction yet."""
    READY = "ready"
    """Answers predictions at its addresses."""
    FAILED = "failed"
    """Ended by itself, or cannot be started; `RevisionStatus.reason` says why."""
    STOPPING = "stopping"
    """Finishes what is in flight and takes nothing new."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a replica of a revision listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RevisionStatus:
    """How one revision is doing. A revision that a target does not report is not there at all."""

    revision: Revision
    state: RevisionState
    addresses: tuple[Address, ...] = ()
    """Set as soon as they are known, also before the revision is ready."""
    started: datetime | None = None
    restarts: int = 0
    """How often the target started it again by itself since `started`."""
    reason: str = ""
    """Why it is not ready, with the last words of its log where there are any; or what is wrong although it is."""
    fetched: int = 0
    """Of a model that is not in its image: how much a starting server has, in percent."""
    altered: bool = False
    """Somebody else has changed what runs, as `reason` says; `ServingTarget.start` puts it right."""

    @property
    def ready(self) -> bool:
        return self.state is RevisionState.READY


@dataclass(frozen=True, slots=True)
class Weights:
    """Share of requests per revision id, whole percents that sum to 100; zero shares are left out."""

    shares: Mapping[str, int] = field(hash=False)

    def __post_init__(self) -> None:
        if any(share <= 0 for share in self.shares.values()) or sum(self.shares.values()) != 100:
            raise ValueError(f"weights must be positive and sum to 100, not {dict(self.shares)}")

    @classmethod
    def all_to(cls, revision: Revision) -> Weights:
        return cls({revision.id: 100})

    @classmethod
    def split(cls, stable: Revision, candidate: Revision, weight: int) -> Weights:
        """`weight` percent to the candidate and the rest to the stable revision."""
        shares = {stable.id: 100 - weight, candidate.id: weight}
        return cls({revision: share for revision, share in shares.items() if share})

    def of(self, revision: Revision) -> int:
        return self.shares.get(revision.id, 0)
