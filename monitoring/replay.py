"""Replays requests and says what the product would have decided, without a cluster, a gateway or a clock.

``python -m monitoring.replay --policy policy.yaml events.jsonl > decisions.jsonl``. Requests are put together and
judged by the code that judges live ones; only where they come from differs. Everything follows from the events alone,
so the same events give the same decisions to the last bit. A program that makes up requests as it goes uses `Replay`:
it asks for the `weight`, and feeds what came of the requests it sent at that weight.

Where several requests have the same `unit`, the first one counts: the others were not assigned by chance.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from collections.abc import Iterable, Iterator
from math import inf
from pathlib import Path
from typing import Any, TextIO

import msgspec

from monitoring.analysis import Evidence, fold, warned
from monitoring.blocks import Arm, Block, Seen
from monitoring.bursts import spread_of
from monitoring.filling import Folding
from monitoring.folder import Folder
from monitoring.judgement import Judgement, Reading, judge
from monitoring.ramp import Ramp
from monitoring.replay_event import Event, EventError
from monitoring.replay_policy import ReplayPolicy, ReplayPolicyError, read_replay_policy
from monitoring.ruler import History

ROLLOUT = "replay"
FOLDING = Folding(least_seconds=0.0, late_seconds=0.0, flush_seconds=0.0)
"""Events come in order, so nothing has to be waited for."""

Decision = dict[str, Any]
"""``t``, ``verdict``, ``weight``, ``reason``, ``metrics``, ``alarms``; as the module's documentation has them."""

_events = msgspec.json.Decoder(Event, strict=True)


class Replay:
    """A canary without a data plane. Events have to come in the order of their assignment."""

    def __init__(self, policy: ReplayPolicy | None = None) -> None:
        self.policy = policy or ReplayPolicy()
        ramp = self.policy.ramp
        bake = (100 - ramp.bake_weight,)
        self._shares = (*ramp.steps, *bake, *(weight for weight in range(1, 100) if weight not in (*ramp.steps, *bake)))
        self.evidence = Evidence.start(self.policy.analysis, ramp.steps, self._shares)
        self._ramp: Ramp | None = None
        self._folder = Folder(ROLLOUT, FOLDING)
        self._usual = list[Seen]()
        self._under_way: list[tuple[float, int, Event]] = []
        self._taken = 0
        self._now = -inf
        self._said: tuple[object, ...] = ()

    @property
    def weight(self) -> int:
        """What the product would give the candidate now, in percent."""
        return (self._ramp or Ramp()).weight(self.policy.ramp)

    def feed(self, events: Iterable[Event]) -> list[Decision]:
        """Take requests; what was decided meanwhile. `EventError` where one makes no sense."""
        return [decision for event in events for decision in self._take(event)]

    def end(self) -> list[Decision]:
        """No more requests come; what is under way ends, and the last decision is said again."""
        found = list(self._until(inf))
        return [*found, self.decision()]

    def decision(self) -> Decision:
        """What is to be said now."""
        said = self._judged()
        return {
            "t": self._now if self._now > -inf else None,
            "verdict": self._verdict(),
            "weight": self.weight,
            "reason": said.reason,
            "metrics": {reading.name: _metric(reading) for reading in said.metrics},
            "alarms": list(said.alarms),
        }

    def _take(self, event: Event) -> Iterator[Decision]:
        event.check()
        if event.t < self._now:
            raise EventError(f"t: must not be before the event before it, {self._now:g}, but is {event.t:g}")
        yield from self._until(event.t)
        self._now = event.t
        if event.weight and self._ramp is None:
            self._begin()
        if event.weight:
            self._folder.add(event.begun(ROLLOUT, self._step(event.weight)))
            yield from self._advance(event.t)
        if (ends := event.ends) is not None:
            heapq.heappush(self._under_way, (ends, self._taken, event))
            self._taken += 1

    def _begin(self) -> None:
        analysis = self.policy.analysis
        scale = analysis.scale
        self._folder.measure(scale, History((one.latency_ms, one.prediction) for one in self._usual))
        self.evidence = warned(analysis, self.evidence, spread_of(self._usual).ratio)
        self._ramp = Ramp(since=self._now)

    def _step(self, weight: float) -> int:
        return self._shares.index(int(weight)) if weight in self._shares else -1

    def _until(self, now: float) -> Iterator[Decision]:
        """Everything that ended before `now`."""
        while self._under_way and self._under_way[0][0] <= now:
            ends, _, event = heapq.heappop(self._under_way)
            self._now = max(self._now, ends)
            if event.weight:
                self._folder.add(event.ended(ROLLOUT, self._step(event.weight)))
                yield from self._advance(self._now)
            elif event.arm is Arm.STABLE:
                self._usual.append(event.seen(ends))
        if now == inf and self._ramp is not None:
            yield from self._advance(self._now + FOLDING.timeout_seconds + FOLDING.most_seconds)

    def _advance(self, now: float) -> Iterator[Decision]:
        yield from (decision for block in self._folder.advance(now) for decision in self._settled(block))

    def _settled(self, block: Block) -> Iterator[Decision]:
        """What follows from one more block."""
        assert self._ramp is not None
        self.evidence = fold(self.policy.analysis, self.evidence, (block,))
        said = self._judged()
        self._ramp = self._ramp.after(self.policy.ramp, said, self._now)
        state = (self._verdict(), self.weight, said.alarms)
        if state != self._said:
            self._said = state
            yield self.decision()

    def _judged(self) -> Judgement:
        return judge(self.policy.analysis, self.evidence, (self._ramp or Ramp()).goal(self.policy.ramp))

    def _verdict(self) -> str:
        """Of the rollout: a `pass` is only what ends it."""
        if self._ramp is None:
            return "more"
        if self._ramp.back:
            return "fail"
        return "pass" if self._ramp.promoted(self.policy.ramp) else "more"


def _metric(reading: Reading) -> dict[str, Any]:
    arms = {"stable": reading.stable, "candidate": reading.candidate}
    return {
        "log_e_worse": reading.log_e_worse,
        "log_e_ok": reading.log_e_ok,
        **{name: {"n": arm.requests, "bad": arm.errors} for name, arm in arms.items()},
        "margin95": reading.margin95,
    }


def read_events(lines: Iterable[str | bytes], name: str) -> Iterator[Event]:
    """The events of a file, one line of JSON each; `EventError` names the line."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield _events.decode(line)
            except (msgspec.MsgspecError, EventError) as error:
                raise EventError(f"{name}, line {number}: {error}") from error


def replay(policy: ReplayPolicy, events: Iterable[Event], out: TextIO) -> None:
    """Write a line for every change of verdict, weight or alarms, and one at the end."""
    canary = Replay(policy)
    for number, event in enumerate(events, start=1):
        try:
            _write(canary.feed((event,)), out)
        except EventError as error:
            raise EventError(f"event {number} ({event.id}): {error}") from error
    _write(canary.end(), out)


def _write(decisions: Iterable[Decision], out: TextIO) -> None:
    out.writelines(json.dumps(decision, allow_nan=False) + "\n" for decision in decisions)


def main(arguments: list[str] | None = None) -> int:
    """0 where the events could be replayed, whatever was decided; 2 where policy or events are wrong."""
    parser = argparse.ArgumentParser(prog="python -m monitoring.replay", description=__doc__.partition("\n")[0])
    parser.add_argument("--policy", type=Path, help="a model's policy file; the defaults without one")
    parser.add_argument("events", type=Path, help="one request per line of JSON, in order of assignment")
    given = parser.parse_args(arguments)
    try:
        policy = read_replay_policy(given.policy) if given.policy else ReplayPolicy()
        with given.events.open("rb") as lines:
            replay(policy, read_events(lines, given.events.name), sys.stdout)
    except (OSError, EventError, ReplayPolicyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
