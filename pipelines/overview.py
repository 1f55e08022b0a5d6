"""What people and programs may ask about; the reading half of the commands.

Everything comes from the store, and the weights in force from the gateway: a question never waits for a
tick. A gateway that does not answer costs the weights and is told as a problem, not as a failure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from pipelines.policy import Policy
from pipelines.refusal import Code, CommandError, from_registry, one_line
from pipelines.rollout import Event, Rollout
from pipelines.status import (
    DriftStatus,
    IntentStatus,
    LeaseStatus,
    RolloutStatus,
    Status,
    model_status,
    rollout_status,
)
from pipelines.store import History, Inbox, Lease, Lookup, RolloutStore
from registry_hooks.model_version import Channel, ModelVersion
from registry_hooks.registry import ModelRegistry, RegistryError
from serving.router import Route, RouterError, TrafficRouter

_CARRIED_OUT = re.compile(r"rollout ([0-9a-f]+)")
_LOOK_BACK = 1000
"""How many of a model's events are searched for the last drift check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Every question of a person or program. Every method raises `CommandError`, `RegistryError` or `StoreError`."""

    store: RolloutStore
    inbox: Inbox
    lookup: Lookup
    history: History
    lease: Lease
    registry: ModelRegistry
    router: TrafficRouter
    policies: Callable[[str], Policy | None]
    problems: Callable[[], Mapping[str, str]]
    """What is wrong with the policies, by the model or file that it concerns."""
    alias_delay: Callable[[], float | None]
    """Longest time in seconds until a moved alias is noticed without a hint; None where no policy names one."""
    mlflow: str
    """Address of the MLflow server."""

    def status(self, model: str | None = None) -> Status:
        """Of one model, or of every model that is live or has a rollout."""
        routes, troubles = self._routes()
        wrong = dict(self.problems())
        lives = {(live.model, live.channel): live for live in self.store.lives() if model in (None, live.model)}
        rolled = self._rollouts(model)
        shown = [
            model_status(
                key, lives.get(key), rolled.get(key, ()), routes, [wrong.pop(key[0])] if key[0] in wrong else ()
            )
            for key in sorted({*lives, *rolled, *self._asked(model, {*lives, *rolled})})
        ]
        others = [f"{name}: {text}" for name, text in wrong.items()] if model is None else []
        return Status(tuple(shown), self._leader(), self.alias_delay(), (*troubles, *others))

    def events(self, model: str, limit: int = 50) -> tuple[Event, ...]:
        """The model's newest `limit` events, oldest of them first."""
        found = self.history.read(model, limit)
        if not found:
            self._known(model)
        return found

    def rollout(self, rollout: str) -> RolloutStatus:
        found = self.lookup.rollout(rollout)
        if found is None:
            hint = "'mlflow-promote history MODEL' names the rollouts of a model"
            raise CommandError(Code.UNKNOWN_ROLLOUT, f"there is no rollout {rollout}", hint)
        return rollout_status(found)

    def intent(self, intent: str) -> IntentStatus:
        """How far an intent is. The inbox is read before the outcome, so that no moment in between is missed."""
        if any(waiting.id == intent for waiting in self.inbox.pending()):
            return IntentStatus(intent, "waiting", "", None)
        outcome = self.lookup.outcome(intent)
        if outcome is None:
            raise CommandError(Code.UNKNOWN_INTENT, f"there is no intent {intent}", "use the id that a command gave")
        carried = _CARRIED_OUT.fullmatch(outcome)
        return IntentStatus(intent, "carried out" if carried else "refused", outcome, carried[1] if carried else None)

    def drift_report(self, model: str) -> DriftStatus:
        """The model's last drift check."""
        checks = [event for event in self.history.read(model, _LOOK_BACK) if event.kind == "drift"]
        if not checks:
            self._known(model)
            hint = f"'mlflow-promote drift run {model}' makes one now"
            raise CommandError(Code.NO_REPORT, f"{model} was never checked for drift", hint)
        last = checks[-1]
        return DriftStatus(model, last.version, last.at, last.text, last.data, self._links(last))

    def _links(self, check: Event) -> dict[str, str]:
        documents = check.data.get("documents")
        if check.version is None or not isinstance(documents, list) or not documents:
            return {}
        try:
            run = self.registry.describe(ModelVersion(check.model, check.version)).run_id
        except RegistryError:
            return {}
        return {
            path: f"{self.mlflow}/get-artifact?{urlencode({'run_uuid': run, 'path': path})}"
            for path in documents
            if run
        }

    def _routes(self) -> tuple[Mapping[str, Route] | None, tuple[str, ...]]:
        try:
            return self.router.get_weights(), ()
        except RouterError as error:
            return None, (f"the gateway does not tell the weights in force: {one_line(error)}",)

    def _leader(self) -> LeaseStatus | None:
        held = self.lease.holder()
        return LeaseStatus(*held) if held else None

    def _rollouts(self, model: str | None) -> dict[tuple[str, Channel], list[Rollout]]:
        found: dict[tuple[str, Channel], list[Rollout]] = {}
        for rollout in self.store.active():
            if model in (None, rollout.intent.model):
                found.setdefault(rollout.key, []).append(rollout)
        return found

    def _asked(self, model: str | None, shown: Collection[tuple[str, Channel]]) -> tuple[tuple[str, Channel], ...]:
        """The model that was asked for, where nothing of it is live or in progress."""
        if model is None or shown:
            return ()
        self._known(model)
        policy = self.policies(model)
        if policy is None:
            hint = "write a policy for it, or let the settings manage every model"
            raise CommandError(Code.NOT_MANAGED, f"no policy manages {model}", hint)
        return ((model, policy.live),)

    def _known(self, model: str) -> None:
        """Refuse a name that the registry does not have."""
        try:
            there = model in self.registry.snapshot([model]).models
        except RegistryError as error:
            raise from_registry(error) from error
        if not there:
            hint = "'mlflow-promote status' lists the models that are live or on their way"
            raise CommandError(Code.UNKNOWN_MODEL, f"the registry has no model {model!r}", hint)
