"""The controller's view of the registry: looks at it, remembers what it showed, and says what is wished by that.

A look runs in a thread of its own, because reading a large registry in full takes longer than rollouts may wait.
What it saw and the intents that follow are remembered in one transaction, so that a crash between the two
neither loses a wish nor makes it twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from monitoring.notify import Alert, Notifier, Severity
from pipelines.intents import Managed, emptied, wish
from pipelines.live import Live, by_model
from pipelines.policy import OnEmpty, Policy
from pipelines.rollout import Event, Goal, Intent, Origin, Rollout
from pipelines.store import Inbox, RolloutStore, StoreError
from registry_hooks.model_version import Channel, ChannelKind, ModelVersion, Snapshot, Transition
from registry_hooks.watcher import NOTHING, Watcher, transitions


class PolicyLookup(Protocol):
    """What applies to a model."""

    def for_model(self, model: str) -> Policy | None:
        """The model's policy; None where it is left alone, by choice or because its policy is broken."""
        ...

    def problem(self, model: str) -> str | None:
        """What is wrong with the model's policy; None where nothing is."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """What wishes depend on besides the registry: what is live and what is under way."""

    lives: dict[str, Live]
    active: Sequence[Rollout]

    def under_way(self, model: str) -> tuple[Rollout, ...]:
        return tuple(rollout for rollout in self.active if rollout.intent.model == model)


class Observation:
    """What the registry shows. Used by the controller's loop alone, except `hint`."""

    def __init__(
        self,
        watcher: Watcher,
        inbox: Inbox,
        rollouts: RolloutStore,
        policies: PolicyLookup,
        notifier: Notifier,
        poll_seconds: float,
        look_seconds: float,
    ) -> None:
        """A look that takes longer than `look_seconds` goes on while the rollouts are looked after."""
        self._watcher, self._inbox, self._rollouts = watcher, inbox, rollouts
        self._policies, self._notifier = policies, notifier
        self._poll_seconds, self._look_seconds = poll_seconds, look_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="look")
        self._looking: Future[Snapshot] | None = None
        self._hints: set[str] = set()
        self._hinted: frozenset[str] = frozenset()
        """Hints that the look under way answers."""
        self._withheld = NOTHING
        """What was seen of models whose transitions wait until their policy is mended."""
        self._begun: datetime | None = None
        self._fresh = False
        self._before: Snapshot | None = None

    def hint(self, model: str) -> None:
        """Something may have changed in `model`: the next look reads it."""
        self._hints.add(model)

    @property
    def waiting(self) -> bool:
        """Whether there is something to look at, or a look under way."""
        return bool(self._hints) or self._looking is not None

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    def holders(self, model: str, channel: Channel) -> frozenset[int] | None:
        """Versions that hold the channel; None while the registry cannot be read."""
        if not self._fresh:
            return None
        holdings = (self._withheld if self.withholds(model) else self._known()).holdings
        return frozenset(h.version.version for h in holdings if h.version.model == model and h.channel == channel)

    def placed(self, intent: Intent) -> Intent:
        """`intent`, which no transition made, with the stage that its version is in before it enters the channel."""
        known = (h for h in self._known().holdings if h.version == ModelVersion(intent.model, intent.version or 0))
        stages = (h.channel for h in known if h.channel.kind is intent.channel.kind is ChannelKind.STAGE)
        origin = next((stage.name for stage in stages if stage != intent.channel), None)
        return replace(intent, came_from=origin)

    def withholds(self, model: str) -> bool:
        """Whether the model's transitions wait until its policy is mended."""
        return model in self._withheld.known

    def look(self, now: datetime) -> None:
        """Begin a look where one is due, and take in what a finished one saw.

        Raises what the look or the store raised; what was seen is then seen again, and hints are kept.
        """
        if self._looking is None and self._due(now):
            self._begin(now)
        if self._looking is None or not wait([self._looking], self._look_seconds).done:
            return
        looked, self._looking, self._fresh = self._looking, None, False
        with ExitStack() as failing:
            failing.callback(self._hints.update, self._hinted)
            self._take(looked.result(), now)
            failing.pop_all()
        self._fresh = True

    def _due(self, now: datetime) -> bool:
        """A registry that did not answer is not asked again at once, whatever the hints."""
        over = self._begun is None or (now - self._begun).total_seconds() >= self._poll_seconds
        return over or (self._fresh and bool(self._hints))

    def _begin(self, now: datetime) -> None:
        mended = {model for model in self._withheld.known if self._policies.problem(model) is None}
        active = {rollout.intent.model for rollout in self._rollouts.active()}
        self._hinted = frozenset(self._hints)
        self._hints -= self._hinted
        self._begun = now
        names = self._hinted | mended | active
        self._looking = self._thread.submit(self._watcher.look, now, names, self._known().models)

    def _take(self, looked: Snapshot, now: datetime) -> None:
        try:
            self._remember(looked, now)
        except StoreError:
            self._watcher.put_back(looked)
            raise

    def _remember(self, looked: Snapshot, now: datetime) -> None:
        """Save what was seen, together with what is wished by it.

        What concerns a model with a broken policy is not remembered, so that it is seen again once that is mended.
        """
        broken = frozenset(model for model in looked.known if self._policies.problem(model) is not None)
        after = _without(looked, broken) if broken else looked
        self._withheld = _without(self._withheld, looked.known).then(_without(looked, looked.known - broken))
        changed = transitions(self._known(), after)
        context = Context(by_model(self._rollouts.lives()), self._rollouts.active())
        wishes = [found for t in changed if (found := self._wish(t, context, now)) is not None]
        self._inbox.observe(after, wishes, [_told(intent, now) for intent in wishes])
        self._before = self._known().then(after)
        filled = {intent.model for intent in wishes if intent.goal is not Goal.READY}
        for model in {t.version.model for t in changed} - filled:
            self._check_empty(model, context, now)

    def _known(self) -> Snapshot:
        if self._before is None:
            self._before = self._inbox.before()
        return self._before

    def _wish(self, transition: Transition, context: Context, now: datetime) -> Intent | None:
        model = transition.version.model
        policy = self._policies.for_model(model)
        if policy is None:
            return None
        managed = Managed(policy.live, policy.pre_live, context.lives.get(model), context.under_way(model))
        return wish(transition, managed, now)

    def _check_empty(self, model: str, context: Context, now: datetime) -> None:
        """A live channel that became empty: keep the traffic and say so, or retire the model."""
        live, policy = context.lives.get(model), self._policies.for_model(model)
        if live is None or policy is None:
            return
        holdings = self._known().holdings
        holders = [h.version.version for h in holdings if (h.version.model, h.channel) == (model, live.channel)]
        if not emptied(live.channel, live, holders, context.under_way(model)):
            return
        if policy.on_empty is OnEmpty.REMOVE:
            self._inbox.submit(_retirement(live, now))
        else:
            self._warn(live, now)

    def _warn(self, live: Live, now: datetime) -> None:
        text = f"{live.channel} is empty; traffic stays on {live.stable.version if live.stable else live.model}"
        self._rollouts.keep(live, [Event(live.model, now, "alert", text)])
        self._notifier.notify(Alert(Severity.WARNING, live.model, f"{live.channel} is empty", text, now))


def _retirement(live: Live, now: datetime) -> Intent:
    reason = f"{live.channel} is empty"
    name = f"retire-{live.model}-{live.serial}"
    return Intent(name, Goal.RETIRE, live.channel, live.model, None, Origin.TRANSITION, now, reason=reason)


def _without(snapshot: Snapshot, models: Collection[str]) -> Snapshot:
    kept = frozenset(holding for holding in snapshot.holdings if holding.version.model not in models)
    return replace(snapshot, models=snapshot.models - set(models), gone=snapshot.gone - set(models), holdings=kept)


def _told(intent: Intent, now: datetime) -> Event:
    text = f"{intent.goal.value}: {intent.reason}"
    return Event(intent.model, now, "intent", text, intent.version, actor=intent.actor)
