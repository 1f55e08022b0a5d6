"""Drift checks of what is live: which version, under which policy, and what follows from the finding."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from monitoring.drift import DriftPolicy
from pipelines.drift_checks import DriftCheckStoppedError
from pipelines.drift_job import DriftJob, DriftOutcome
from pipelines.drift_reference import DriftCheck
from pipelines.live import Live, by_model
from pipelines.policy import Policy
from pipelines.refusal import Code, CommandError
from pipelines.rollout import Event, Goal, Intent, Origin
from pipelines.status import previous_versions
from pipelines.store import History, Inbox, RolloutStore
from registry_hooks.model_version import ModelVersion
from registry_hooks.registry import ModelRegistry, RegistryError, UnknownVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftRuns:
    """Runs the check of a model, by schedule or by command."""

    job: DriftJob
    rollouts: RolloutStore
    inbox: Inbox
    history: History
    registry: ModelRegistry
    policy: Callable[[str], Policy | None]
    now: Callable[[], datetime]
    wake: Callable[[str], object]

    def run(self, model: str) -> Event:
        """Check what is live of `model` now.

        `CommandError` where nothing is, its policy asks for no checks, or the controller ended meanwhile.
        """
        live, policy = by_model(self.rollouts.lives()).get(model), self._drift_policy(model)
        if live is None or live.stable is None:
            raise CommandError(Code.NOTHING_BEFORE, f"nothing of {model} is live", "promote a version first")
        if policy is None:
            hint = "give the model a 'drift' section in its policy"
            raise CommandError(Code.INVALID, f"the policy of {model} asks for no drift checks", hint)
        try:
            outcome = self.job.run(DriftCheck(live.stable.version, policy, live.since), self.now())
        except DriftCheckStoppedError as error:
            raise CommandError(Code.FAILED, f"the check of {model} was ended: {error}", "try again") from error
        self.history.append([outcome.event])
        if outcome.rollback:
            self._roll_back(live, outcome)
        return outcome.event

    def due(self) -> Mapping[str, DriftPolicy]:
        """The models that are to be checked by schedule."""
        models = {live.model for live in self.rollouts.lives() if live.stable is not None}
        return {model: policy for model in models if (policy := self._drift_policy(model)) is not None}

    def _drift_policy(self, model: str) -> DriftPolicy | None:
        policy = self.policy(model)
        return policy.drift if policy is not None else None

    def _exists(self, version: ModelVersion) -> bool:
        """A version that cannot be looked up now may well exist; going back to it checks again."""
        try:
            self.registry.describe(version)
        except UnknownVersion:
            return False
        except RegistryError:
            return True
        return True

    def _roll_back(self, live: Live, outcome: DriftOutcome) -> None:
        """Wish for the version that was live before, where there is one and nothing else is under way."""
        before = previous_versions(live, self.rollouts.rollouts(live.model, 100))
        busy = any(rollout.intent.model == live.model for rollout in self.rollouts.active())
        there = next((version for version in before if self._exists(ModelVersion(live.model, version))), None)
        if there is None or busy:
            return
        reason = f"drift: {outcome.finding.diagnosis}"
        intent = Intent(
            uuid.uuid4().hex, Goal.RESTORE, live.channel, live.model, there, Origin.DRIFT, self.now(), reason=reason
        )
        self.inbox.submit(intent)
        self.wake(live.model)
