"""The loop: watch the registry, open or supersede rollouts, tick each, keep what is live alive.

One controller works at a time, the one that holds the lease. A round reads everything it needs from the store
and the platform, so that another controller can take over between any two rounds. Whatever goes wrong in one
model's work is logged and does not stop the others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeVar

from monitoring.notify import Alert, Severity
from pipelines.intents import rollout_id
from pipelines.live import Live, by_model, cooled, retired, upkeep
from pipelines.observation import Observation, PolicyLookup
from pipelines.policy import Policy
from pipelines.promotion import FAILURES, Ports, Promotion, World
from pipelines.rollout import FINAL, Event, Goal, Intent, Origin, Phase, Rollout, Seen
from pipelines.store import Conflict, Inbox, Lease
from registry_hooks.watcher import Watcher
from serving.revision import Revision, RevisionStatus

log = logging.getLogger(__name__)

T = TypeVar("T")

STEERING = frozenset({Goal.ABORT, Goal.PAUSE, Goal.RESUME})
"""Goals that concern the rollout in progress; all others ask for one of their own."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the controller looks."""

    poll_seconds: float = 5.0
    """Between two looks at the registry, unless a hint comes."""
    look_seconds: float = 1.0
    """A look that takes longer than this goes on while the rollouts are looked after."""
    tick_seconds: float = 0.5
    """Between two rounds while a rollout is in progress; otherwise rounds keep to `poll_seconds`."""
    lease_seconds: float = 10.0
    """How long another controller waits after the last sign of life of this one."""
    hang_seconds: float = 120.0
    """A round that takes longer than this does not keep the lease any more."""


class Controller:
    """Runs every model of one installation."""

    def __init__(
        self,
        name: str,
        ports: Ports,
        promotion: Promotion,
        watcher: Watcher,
        inbox: Inbox,
        lease: Lease,
        policies: PolicyLookup,
        clock: Callable[[], datetime],
        pace: Pace,
        threads: int = 8,
        chores: Sequence[Callable[[], object]] = (),
    ) -> None:
        """`chores` are done once in every round, each on its own."""
        self._name, self._ports, self._promotion = name, ports, promotion
        self._inbox, self._lease, self._policies, self._clock, self._pace = inbox, lease, policies, clock, pace
        self._chores = tuple(chores)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tick")
        self._woken = threading.Event()
        timing = pace.poll_seconds, pace.look_seconds
        self._seen = Observation(watcher, inbox, ports.rollouts, policies, ports.notifier, *timing)
        self._troubles: dict[str, str] = {}
        """By revision id, what was told of last; empty where nothing is wrong."""
        self.leading = True
        self._began = 0.0
        """When the present round began, by the monotonic clock."""

    def wake(self, model: str | None = None) -> None:
        """Something may have changed, in `model` where it is known: look at once."""
        if model is not None:
            self._seen.hint(model)
        self._woken.set()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, and give the lease back; or until another controller has it."""
        self._began = time.monotonic()
        over = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(over,), name="lease", daemon=True)
        renewing.start()
        while not stop.is_set() and self.leading:
            self._woken.clear()
            busy = self._survive(self.round, "the round") or False
            self._rest(self._pace.tick_seconds if busy else self._pace.poll_seconds, stop)
        over.set()
        renewing.join()
        self._survive(partial(self._lease.release, self._name), "the lease")
        self._seen.close()
        self._pool.shutdown()

    def _rest(self, seconds: float, stop: threading.Event) -> None:
        """Wait until it is time, or somebody wakes us, or it is over."""
        until = time.monotonic() + seconds
        while not stop.is_set() and (left := until - time.monotonic()) > 0:
            if self._woken.wait(min(left, 0.2)):
                return

    def _renew(self, over: threading.Event) -> None:
        """Keep the lease through a round that takes long, but not through one that hangs."""
        while not over.wait(self._pace.lease_seconds / 3):
            if time.monotonic() - self._began < self._pace.hang_seconds:
                self._survive(partial(self._lease.acquire, self._name, self._pace.lease_seconds), "the lease")

    def round(self) -> bool:
        """Everything once; whether more is to be done soon. False as well where another controller leads."""
        self._began = time.monotonic()
        self.leading = self._lease.acquire(self._name, self._pace.lease_seconds)
        if not self.leading:
            return False
        for chore in self._chores:
            self._survive(chore, "a chore")
        self._survive(partial(self._seen.look, self._clock()), "the look at the registry")
        self._open()
        world = self._world()
        active = self._tick(world)
        self._keep(active, world)
        return bool(active) or self._seen.waiting

    def _survive(self, work: Callable[[], T], what: str) -> T | None:
        """The one place where any failure is survived: it is logged, and the next round tries again."""
        try:
            return work()
        except FAILURES as error:
            log.warning("%s: %s", what, error)
        except Exception:
            log.exception("%s failed", what)
        return None

    # Rollouts

    def _open(self) -> None:
        """Begin the rollouts that are wished and possible; settle what became pointless."""
        waiting = self._inbox.pending()
        if not waiting:
            return
        active = {rollout.key: rollout for rollout in self._ports.rollouts.active()}
        newest = {(i.model, i.channel): i for i in waiting if i.goal not in STEERING}
        for intent in waiting:
            key = intent.model, intent.channel
            if intent.goal in STEERING:
                outcome = None if key in active else "nothing is in progress"
            elif newest[key] != intent:
                outcome = f"superseded by version {newest[key].version}"
            else:
                outcome = self._begin(intent, active.get(key))
            if outcome is not None:
                self._inbox.settle([intent.id], outcome)

    def _begin(self, intent: Intent, active: Rollout | None) -> str | None:
        """The outcome of `intent`, or None where it has to wait for the active rollout to end."""
        if active is not None:
            ending = active.phase in FINAL or active.phase is Phase.ROLLING_BACK
            same = active.intent.version == intent.version and not ending
            return f"rollout {active.id} is in progress" if same else None
        live = by_model(self._ports.rollouts.lives()).get(intent.model)
        if intent.goal is Goal.RETIRE:
            return self._retire(live)
        policy = self._policies.for_model(intent.model)
        if policy is None:
            return self._policies.problem(intent.model) or f"no policy manages {intent.model}"
        stable = live.stable if live and intent.goal is not Goal.READY else None
        if stable is not None and stable.version.version == intent.version:
            return f"{stable.version} is live already"
        return self._opened(intent, policy, stable)

    def _opened(self, intent: Intent, policy: Policy, stable: Revision | None) -> str:
        now = self._clock()
        rollout = Rollout(
            id=rollout_id(intent),
            intent=intent if intent.origin is Origin.TRANSITION else self._seen.placed(intent),
            policy=policy.rollout,
            phase=Phase.CHECKING,
            begun=now,
            entered=now,
            stable=stable,
            claimed=intent.origin is Origin.TRANSITION,
        )
        try:
            self._ports.rollouts.save(rollout)
        except Conflict:
            log.info("rollout %s was begun before", rollout.id)
        return f"rollout {rollout.id}"

    def _retire(self, live: Live | None) -> str:
        if live is None:
            return "nothing is live"
        now = self._clock()
        self._ports.rollouts.keep(
            retired(live, now), [Event(live.model, now, "alert", "retired: its channel is empty")]
        )
        return "retired"

    def _tick(self, world: World) -> tuple[Rollout, ...]:
        """Tick every active rollout; those that are not settled afterwards."""
        active = self._ports.rollouts.active()
        if not active:
            return ()
        waiting, lives = self._inbox.pending(), by_model(self._ports.rollouts.lives())
        work = [partial(self._tick_one, rollout, world, waiting, lives.get(rollout.intent.model)) for rollout in active]
        list(self._pool.map(lambda tick: self._survive(tick, "a tick"), work))
        return self._ports.rollouts.active()

    def _tick_one(self, rollout: Rollout, world: World, waiting: Sequence[Intent], live: Live | None) -> None:
        asked = [i for i in waiting if (i.model, i.channel) == rollout.key]
        model, channel = rollout.intent.model, rollout.intent.channel
        holders, withheld = self._seen.holders(model, channel), self._seen.withholds(model)
        saved = self._promotion.tick(rollout, world, holders, asked, live, withheld=withheld)
        steering = [intent.id for intent in asked if intent.goal in STEERING]
        if steering:
            self._inbox.settle(steering, f"rollout {saved.id}")
        if saved.serial != rollout.serial and (saved.phase, saved.settled) != (rollout.phase, rollout.settled):
            self.wake(saved.intent.model)

    def _world(self) -> World:
        """One look at target and gateway; what does not answer is None."""
        revisions = routes = None
        try:
            revisions = self._ports.target.status()
            routes = self._ports.router.get_weights()
        except FAILURES as error:
            log.warning("the platform could not be read: %s", error)
        return World(self._clock(), revisions, routes)

    # What is live

    def _keep(self, active: Sequence[Rollout], world: World) -> None:
        """Upkeep of every model that has anything running, routed or live."""
        if world.revisions is None or world.routes is None:
            return
        lives = by_model(self._ports.rollouts.lives())
        revisions, rollouts = _by_model(world.revisions), defaultdict[str, list[Rollout]](list)
        for rollout in active:
            rollouts[rollout.intent.model].append(rollout)
        for model in {*revisions, *world.routes, *lives}:
            seen = Seen(revisions=revisions.get(model, {}), routes=world.routes)
            work = partial(self._keep_one, model, lives.get(model), rollouts[model], seen, world.at)
            self._survive(work, f"the upkeep of {model}")
        self._troubles = {key: trouble for key, trouble in self._troubles.items() if key in world.revisions}

    def _keep_one(self, model: str, live: Live | None, active: Sequence[Rollout], seen: Seen, now: datetime) -> None:
        if live is not None and cooled(live, now) != live:
            live = self._ports.rollouts.keep(cooled(live, now))
        self._warn_of(model, seen, now)
        for action in upkeep(model, live, active, seen):
            self._promotion.apply(action)

    def _warn_of(self, model: str, seen: Seen, now: datetime) -> None:
        """Tell of revisions that answer although something is wrong with them, and of those that somebody changed.

        Once for each thing that is wrong.
        """
        for key, status in (seen.revisions or {}).items():
            trouble = status.reason if status.ready or status.altered else ""
            if trouble and self._troubles.get(key) != trouble:
                what = "was changed by somebody else" if status.altered else "answers, but not as it should"
                title = f"{status.revision.version} {what}"
                self._ports.notifier.notify(Alert(Severity.WARNING, model, title, trouble, now))
            self._troubles[key] = trouble


def _by_model(revisions: Mapping[str, RevisionStatus]) -> dict[str, dict[str, RevisionStatus]]:
    grouped = defaultdict[str, dict[str, RevisionStatus]](dict)
    for key, status in revisions.items():
        grouped[status.revision.version.model][key] = status
    return grouped
