"""The checks before any traffic.

A gate that could not be run (the registry does not answer, say) is not a gate that failed: `None` means that
the next tick tries again, until the phase's deadline.
"""

from __future__ import annotations

from typing import Protocol

import httpx

from pipelines.approving import Approvals
from pipelines.replaying import Replays
from pipelines.rollout import GateResult, Phase, Rollout
from registry_hooks.registry import ModelRegistry, RegistryError, UnknownVersion
from serving.revision import RevisionStatus


class Gates(Protocol):
    """The gates of a phase."""

    def run(
        self, rollout: Rollout, candidate: RevisionStatus | None, stable: RevisionStatus | None
    ) -> tuple[GateResult, ...] | None:
        """Results of every gate that belongs to the rollout's phase; None where they could not be run, or still run."""
        ...

    def progress(self, rollout: Rollout) -> str:
        """How far a gate is that takes long; empty where there is nothing to tell."""
        ...


class StandardGates:
    """What every version has to pass: registered in full with the files that were approved, and answering rightly."""

    def __init__(self, registry: ModelRegistry, client: httpx.Client, replays: Replays, approvals: Approvals) -> None:
        self._registry = registry
        self._client = client
        self._replays = replays
        self._approvals = approvals

    def run(
        self, rollout: Rollout, candidate: RevisionStatus | None, stable: RevisionStatus | None
    ) -> tuple[GateResult, ...] | None:
        if rollout.phase is Phase.CHECKING:
            return None if self._approvals.busy(rollout) else self._checked(rollout)
        self._approvals.forget(rollout)
        if rollout.phase is Phase.PROVING and candidate is not None and candidate.addresses:
            return self._proved(rollout, candidate, stable)
        if rollout.phase is not Phase.PROVING:
            self._replays.forget(rollout)
        return None

    def progress(self, rollout: Rollout) -> str:
        return self._approvals.progress(rollout) or self._replays.progress(rollout)

    def _checked(self, rollout: Rollout) -> tuple[GateResult, ...] | None:
        """The files are looked at once the version is registered in full."""
        try:
            details = self._registry.describe(rollout.version)
        except UnknownVersion as error:
            return (GateResult("registered", passed=False, detail=str(error)),)
        except RegistryError:
            return None
        ready = details.status == "READY"
        registered = GateResult("registered", passed=ready, detail=f"MLflow says {details.status}")
        looked_at = self._approvals.results(rollout, details.source) if ready else ()
        return None if looked_at is None else (registered, *looked_at)

    def _proved(
        self, rollout: Rollout, candidate: RevisionStatus, stable: RevisionStatus | None
    ) -> tuple[GateResult, ...] | None:
        """Nothing is replayed on a candidate that does not even answer as itself."""
        serving = self._serving(rollout, candidate)
        if serving is None or not all(gate.passed for gate in serving):
            return serving
        replayed = self._replays.results(rollout, candidate, stable)
        return None if replayed is None else (*serving, *replayed)

    def _serving(self, rollout: Rollout, candidate: RevisionStatus) -> tuple[GateResult, ...] | None:
        """The candidate itself says who it is, whether it has a signature and what its warm-up gave."""
        try:
            answer = self._client.get(f"http://{candidate.addresses[0]}/health", timeout=5.0)
            health = answer.json()
        except (httpx.HTTPError, ValueError):
            return None
        served = (health.get("model"), str(health.get("version")))
        wanted = (rollout.version.model, str(rollout.version.version))
        return (
            GateResult("identity", passed=served == wanted, detail=f"serves {served[0]} {served[1]}"),
            GateResult("answers", passed=answer.status_code == httpx.codes.OK, detail=str(health.get("status"))),
            _signature(rollout, bool(health.get("signature"))),
        )


def _signature(rollout: Rollout, present: bool) -> GateResult:
    if present:
        return GateResult("signature", passed=True, detail="the model has a signature")
    advice = "log the model with a signature, or set rollout.require_signature: false in its policy"
    detail = f"{rollout.version} has no signature; {advice}"
    return GateResult("signature", passed=not rollout.policy.require_signature, detail=detail)
