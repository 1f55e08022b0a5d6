"""What people and programs may ask for; HTTP and the command line are thin layers over it.

A command never acts. It checks what can be known at once, writes an intent with its actor into the inbox and
wakes the controller, so that a command survives a crash of the controller just as a transition does. The
price is that the answer is only 'accepted': whoever waits follows the rollout by its id.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import BlockError, Seen
from monitoring.detectable import foreseen
from monitoring.label_policy import LabelMode
from monitoring.labels import EvidenceSource, Kept, Label
from monitoring.plan import duration, plan
from monitoring.ramp import RampPolicy
from monitoring.usual import Usual, usual
from pipelines.intents import rollout_id
from pipelines.live import Live
from pipelines.policy import Policy
from pipelines.reconcile import expected
from pipelines.refusal import Code, CommandError, from_registry
from pipelines.rollout import FINAL, Event, Goal, Intent, Origin, Phase, Rollout
from pipelines.shadowing import ahead
from pipelines.status import previous_versions
from pipelines.store import History, Inbox, RolloutStore
from registry_hooks.model_version import Change, Channel, ChannelKind, ModelVersion, VersionDetails
from registry_hooks.registry import ModelRegistry, RegistryError, UnknownVersion

_MOVING = (Phase.PROMOTING, Phase.ROLLING_BACK)
_LOOK_BACK = 200
"""How many of a model's rollouts are searched for what was before."""
_ASSUMED = Usual(errors=0.01)
"""Planned for where no rollout has measured the model yet."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a command started."""

    goal: Goal
    model: str
    version: int
    rollout: str
    """Id of the rollout that carries it out; a new one exists as soon as the controller took the intent up."""
    intent: str | None
    """None for a dry run."""
    plan: str
    """What will happen, in one line."""
    notes: tuple[str, ...] = ()
    """What the canary will find in that time and what not, and why it may not come to an end."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is known of the last requests of the live version, and the policy by which a canary is judged."""

    model: str
    analysis: AnalysisPolicy
    ramp: RampPolicy
    requests: tuple[Seen, ...]
    """In the order in which they ended."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Whether somebody may move a version into a channel now."""

    allowed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """Every wish of a person or program. Every method raises `CommandError`, `RegistryError` or `StoreError`."""

    store: RolloutStore
    inbox: Inbox
    history: History
    registry: ModelRegistry
    policies: Callable[[str], Policy | None]
    """A model's policy; None where no policy manages it."""
    blocks: EvidenceSource
    wake: Callable[[str], object]
    """Makes the controller look now instead of at its next tick."""
    now: Callable[[], datetime]
    broken: Callable[[str], str | None]
    """What is wrong with the model's policy; None where nothing is."""

    def promote(self, model: str, version: int, actor: str, *, dry_run: bool = False) -> Accepted:
        """Make the version live, through the canary."""
        wanted = ModelVersion(model, version)
        details = self._describe(wanted)
        policy = self._policy(model)
        self._permit(policy, details)
        self._refuse_repetition(wanted, policy.live)
        said, notes = self._plan(model, policy)
        accepted = self._submit(Goal.LIVE, wanted, policy.live, actor, said, dry_run=dry_run)
        return replace(accepted, notes=notes)

    def rollback(self, model: str, actor: str) -> Accepted:
        """End the rollout in progress; where there is none, make the version live that was live before."""
        active = self._active(model)
        if active is not None:
            return self._concern(active, Goal.ABORT, actor)
        live = self._live(model)
        version = self._previous(model, live)
        plan = f"version {version} is started where it does not run, checked, and gets all traffic without a canary"
        return self._submit(Goal.RESTORE, ModelVersion(model, version), live.channel, actor, plan)

    def abort(self, model: str, actor: str) -> Accepted:
        """End the rollout in progress and go back."""
        return self._concern(self._required(model), Goal.ABORT, actor)

    def pause(self, model: str, actor: str) -> Accepted:
        """Keep the weights of the rollout in progress where they are."""
        rollout = self._required(model)
        if rollout.phase is Phase.PAUSED:
            hint = f"'mlflow-promote resume {model}' lets it go on"
            raise CommandError(Code.IN_PROGRESS, f"the rollout of {rollout.version} is paused already", hint)
        return self._concern(rollout, Goal.PAUSE, actor)

    def resume(self, model: str, actor: str) -> Accepted:
        """Go on with the paused rollout."""
        rollout = self._required(model)
        if rollout.phase is not Phase.PAUSED:
            hint = f"'mlflow-promote status {model}' shows how it is doing"
            message = f"the rollout of {rollout.version} is not paused but {rollout.phase.value}"
            raise CommandError(Code.IN_PROGRESS, message, hint)
        return self._concern(rollout, Goal.RESUME, actor)

    def recorded(self, model: str) -> Recorded:
        """What `calibrate` goes by."""
        rules = self._policy(model).rollout
        ramp = RampPolicy(rules.steps, rules.step_min_seconds, rules.bake_seconds, rules.bake_weight)
        try:
            return Recorded(model, rules.analysis, ramp, self.blocks.seen(model))
        except BlockError as error:
            hint = "see the controller's log, then try again"
            raise CommandError(Code.FAILED, f"the record of the requests cannot be read: {error}", hint) from error

    def label(self, labels: Sequence[Label]) -> Kept:
        """Take what became known of answers; a rollout that waits for it looks at its next tick."""
        try:
            return self.blocks.keep_labels(labels)
        except BlockError as error:
            hint = "none of them were kept; see the controller's log, then send them again"
            raise CommandError(Code.FAILED, str(error), hint) from error

    def allowed(self, model: str, version: int, channel: str) -> Allowed:
        """Whether somebody may move the version into `channel` (``None`` and ``Archived`` are channels here too)."""
        policy = self.policies(model)
        if policy is None:
            return Allowed(allowed=True)
        moved = ModelVersion(model, version)
        ours = self._rollouts(model)
        try:
            entered = Channel.parse(channel)
        except ValueError:
            return _locked(moved, None, ours)
        if any((moved, entered, Change.ENTERED) in expected(rollout) for rollout in ours):
            return Allowed(allowed=True)
        return self._unlocked(policy, moved, entered, ours)

    def _unlocked(self, policy: Policy, moved: ModelVersion, entered: Channel, ours: tuple[Rollout, ...]) -> Allowed:
        locked = _locked(moved, entered, ours)
        if not locked.allowed or entered != policy.live:
            return locked
        try:
            self._permit(policy, self._describe(moved))
        except CommandError as error:
            return Allowed(allowed=False, reason=f"{error}; {error.hint}")
        return locked

    def _permit(self, policy: Policy, details: VersionDetails) -> None:
        """Refuse what MLflow has not finished, and what the policy's rules forbid."""
        version = details.version
        if details.status != "READY":
            message = f"MLflow has not finished registering {version}: {details.status}"
            raise CommandError(Code.NOT_READY, message, "wait until MLflow shows it as ready")
        was = self._was_in(details) if policy.require else set()
        missing = [str(channel) for channel in policy.require if channel not in was]
        if missing:
            message = f"the policy of {version.model} wants {version} in {' and '.join(missing)} before {policy.live}"
            raise CommandError(Code.FORBIDDEN, message, f"move it to {missing[0]} first")

    def _was_in(self, details: VersionDetails) -> set[Channel]:
        """Channels that the version is in, and those that a rollout of it was made for or began from."""
        found = {Channel(ChannelKind.ALIAS, alias) for alias in details.aliases}
        intents = [r.intent for r in self.store.rollouts(details.version.model, _LOOK_BACK)]
        ours = [intent for intent in intents if intent.version == details.version.version]
        stages = {details.stage, *(intent.came_from for intent in ours)}
        return found | {intent.channel for intent in ours} | {Channel(ChannelKind.STAGE, s) for s in stages if s}

    def _plan(self, model: str, policy: Policy) -> tuple[str, tuple[str, ...]]:
        """How much traffic and time the canary will need, and what it would not find in that time."""
        if not any(live.stable for live in self.store.lives() if (live.model, live.channel) == (model, policy.live)):
            return "Nothing is live to compare with: all traffic goes to the version once it is checked and ready", ()
        rules = policy.rollout
        seen: tuple[Seen, ...] = ()
        rate: float | None = None
        with suppress(BlockError):
            seen, rate = self.blocks.seen(model), self.blocks.rate(model)
        known = usual(rules.analysis, seen, _measured(self.store.rollouts(model, _LOOK_BACK)))
        found = plan(rules.analysis, rules.steps, known, rate, rules.step_min_seconds, rules.step_max_seconds)
        first = ahead(rules.shadow, found.seconds)
        notes = (*foreseen(rules.analysis, found.steps, known), *found.warnings)
        if rules.labels.mode is LabelMode.GATE:
            longest = duration(rules.labels.deadline_seconds)
            notes = (*notes, f"All traffic waits for labels as well, for {longest} at most")
        return f"{first}{found.sentence}", notes

    def _describe(self, version: ModelVersion) -> VersionDetails:
        try:
            return self.registry.describe(version)
        except UnknownVersion as error:
            raise self._unknown(version) from error
        except RegistryError as error:
            raise from_registry(error) from error

    def _unknown(self, version: ModelVersion) -> CommandError:
        if version.model in self.registry.snapshot([version.model]).models:
            hint = "MLflow's page of the model lists its versions"
            return CommandError(Code.UNKNOWN_VERSION, f"{version.model} has no version {version.version}", hint)
        hint = "names are compared letter by letter; MLflow's page 'Models' lists them"
        return CommandError(Code.UNKNOWN_MODEL, f"the registry has no model {version.model!r}", hint)

    def _policy(self, model: str) -> Policy:
        policy = self.policies(model)
        if policy is None and (problem := self.broken(model)) is not None:
            hint = "correct the file; 'mlflow-promote policy check' tells when it is right"
            raise CommandError(
                Code.NOT_MANAGED, f"the policy of {model} cannot be used: {' '.join(problem.split())}", hint
            )
        if policy is None:
            hint = "write a policy for it, or let the settings manage every model; see docs/configuration.md"
            raise CommandError(Code.NOT_MANAGED, f"no policy manages {model}", hint)
        return policy

    def _refuse_repetition(self, wanted: ModelVersion, channel: Channel) -> None:
        live = next(
            (live for live in self.store.lives() if (live.model, live.channel) == (wanted.model, channel)), None
        )
        if live is not None and live.stable is not None and live.stable.version == wanted:
            hint = f"nothing to do; 'mlflow-promote abort {wanted.model}' ends a rollout of another version"
            raise CommandError(Code.ALREADY_LIVE, f"{wanted} is live already", hint)
        if self._under_way(wanted, channel):
            hint = f"'mlflow-promote status {wanted.model}' follows it, 'mlflow-promote abort {wanted.model}' ends it"
            raise CommandError(Code.IN_PROGRESS, f"{wanted} is on its way already", hint)

    def _under_way(self, wanted: ModelVersion, channel: Channel) -> bool:
        rolled = [rollout.intent for rollout in self._rollouts(wanted.model) if rollout.phase not in FINAL]
        waiting = [intent for intent in self.inbox.pending() if intent.model == wanted.model]
        wishes = [intent for intent in (*rolled, *waiting) if intent.goal in (Goal.LIVE, Goal.RESTORE)]
        return any((intent.version, intent.channel) == (wanted.version, channel) for intent in wishes)

    def _rollouts(self, model: str) -> tuple[Rollout, ...]:
        return tuple(rollout for rollout in self.store.active() if rollout.intent.model == model)

    def _active(self, model: str) -> Rollout | None:
        """The rollout in progress; one towards the live channel before one that only makes a version ready."""
        going = [rollout for rollout in self._rollouts(model) if rollout.phase not in FINAL]
        return min(going, key=lambda rollout: rollout.intent.goal is Goal.READY, default=None)

    def _required(self, model: str) -> Rollout:
        active = self._active(model)
        if active is None:
            hint = f"'mlflow-promote history {model}' tells how the last one ended"
            raise CommandError(Code.NO_ROLLOUT, f"no rollout of {model} is in progress", hint)
        return active

    def _live(self, model: str) -> Live:
        lives = [live for live in self.store.lives() if live.model == model]
        if not lives:
            hint = f"'mlflow-promote promote {model} VERSION' makes a version live"
            raise CommandError(Code.NOTHING_BEFORE, f"no version of {model} was ever live", hint)
        policy = self.policies(model)
        return max(lives, key=lambda live: (policy is not None and live.channel == policy.live, live.since))

    def _previous(self, model: str, live: Live) -> int:
        for version in previous_versions(live, self.store.rollouts(model, _LOOK_BACK)):
            try:
                self.registry.describe(ModelVersion(model, version))
            except UnknownVersion:
                continue
            except RegistryError as error:
                raise from_registry(error) from error
            return version
        hint = f"'mlflow-promote promote {model} VERSION' makes any version live"
        raise CommandError(Code.NOTHING_BEFORE, f"no earlier version of {model} was live that still exists", hint)

    def _concern(self, rollout: Rollout, goal: Goal, actor: str) -> Accepted:
        """An intent about a rollout in progress."""
        if rollout.phase is Phase.ROLLING_BACK or (goal is Goal.PAUSE and rollout.phase is Phase.PROMOTING):
            hint = f"'mlflow-promote status {rollout.intent.model}' shows when it is done"
            raise CommandError(
                Code.TOO_LATE, f"the rollout of {rollout.version} is {rollout.phase.value} already", hint
            )
        intent = self._intent(goal, rollout.version, rollout.intent.channel, actor)
        self._ask(intent)
        plan = f"{goal.value} the rollout of version {rollout.version.version} ({rollout.phase.value})"
        return Accepted(goal, intent.model, rollout.version.version, rollout.id, intent.id, plan)

    def _submit(
        self, goal: Goal, version: ModelVersion, channel: Channel, actor: str, plan: str, *, dry_run: bool = False
    ) -> Accepted:
        """An intent that a new rollout carries out."""
        active = self._active(version.model)
        if active is not None and active.intent.channel == channel:
            plan = f"{plan}; it takes the place of the rollout of version {active.intent.version}"
        intent = self._intent(goal, version, channel, actor)
        accepted = Accepted(goal, version.model, version.version, rollout_id(intent), intent.id, plan)
        if dry_run:
            return Accepted(goal, version.model, version.version, accepted.rollout, None, plan)
        self._ask(intent)
        return accepted

    def _ask(self, intent: Intent) -> None:
        """The history comes first, so that no intent of a person is ever without its actor there."""
        text = f"{intent.goal.value} asked for by {intent.actor}"
        event = Event(intent.model, intent.at, "intent", text, intent.version, actor=intent.actor)
        self.history.append([event])
        self.inbox.submit(intent)
        self.wake(intent.model)

    def _intent(self, goal: Goal, version: ModelVersion, channel: Channel, actor: str) -> Intent:
        return Intent(
            id=uuid.uuid4().hex[:20],
            goal=goal,
            channel=channel,
            model=version.model,
            version=version.version,
            origin=Origin.COMMAND,
            at=self.now(),
            actor=actor,
            reason="command",
        )


def _measured(rollouts: Iterable[Rollout]) -> Usual:
    """How what is live now does, as the newest rollout measured it; `rollouts` are newest first."""
    for rollout in rollouts:
        if rollout.evidence is not None and rollout.phase in FINAL:
            arm = rollout.evidence.candidate if rollout.phase is Phase.SUCCEEDED else rollout.evidence.stable
            return Usual(arm.errors / arm.requests, arm.refused / arm.requests) if arm.requests else _ASSUMED
    return _ASSUMED


def _locked(moved: ModelVersion, entered: Channel | None, rollouts: tuple[Rollout, ...]) -> Allowed:
    """Nobody moves the candidate, or anything into its channel, while traffic moves for good."""
    for rollout in rollouts:
        if rollout.phase in _MOVING and (entered == rollout.intent.channel or moved == rollout.version):
            state = f"the rollout of version {rollout.version.version} is {rollout.phase.value}"
            return Allowed(allowed=False, reason=f"{state} and holds {rollout.intent.channel}; try again in a minute")
    return Allowed(allowed=True)
