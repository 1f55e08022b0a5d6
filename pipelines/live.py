"""What is live between rollouts, and how it is kept so.

Pure. A rollout ends when its verdict is carried out; from then on this record says which revision holds
the traffic, which ones are kept warm, and `upkeep` what has to be done so that this stays true.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from registry_hooks.model_version import Channel
from serving.revision import Revision


@dataclass(frozen=True, slots=True)
class Warm:
    """A former stable revision, kept running so that going back is fast."""

    revision: Revision
    until: datetime


@dataclass(frozen=True, slots=True)
class Live:
    """Which revision holds a model's traffic."""

    model: str
    channel: Channel
    stable: Revision | None
    since: datetime
    warm: tuple[Warm, ...] = ()
    serial: int = 0
