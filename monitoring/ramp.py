"""The way from a candidate's first share to all traffic, as far as it follows from evidence and time alone.

Pure. The rollout engine waits for more than this (that the gateway reports a weight, for instance); a replay, which has
nothing else to wait for, climbs by these rules and nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from monitoring.judgement import Judgement, Verdict


@dataclass(frozen=True, slots=True)
class RampPolicy:
    """The steps; see the rollout's policy, which has the same settings."""

    steps: tuple[int, ...] = (5, 20, 50, 100)
    """Weights of the candidate in percent, rising, the last one 100."""
    step_min_seconds: float = 60.0
    """A step lasts at least this long, however clear the evidence."""
    bake_seconds: float = 600.0
    """After the last step the stable revision keeps a small share this long; 0: not."""
    bake_weight: int = 5
    """That share in percent."""

    def __post_init__(self) -> None:
        rising = all(before < after for before, after in zip(self.steps, self.steps[1:], strict=False))
        if not self.steps or not rising or self.steps[0] < 1 or self.steps[-1] != 100:
            raise ValueError(f"steps must rise from at least 1 to 100, not {list(self.steps)}")
        if not 0 <= self.bake_weight <= 50:
            raise ValueError(f"bake_weight must be from 0 to 50, not {self.bake_weight}")


@dataclass(frozen=True, slots=True)
class Ramp:
    """Where a candidate is."""

    step: int = 0
    """Index into the steps; their number while it bakes, one more once it has all traffic."""
    since: float = 0.0
    """When the step began, in seconds."""
    back: bool = False
    """It was taken back."""

    def weight(self, policy: RampPolicy) -> int:
        """The candidate's share in percent."""
        if self.back:
            return 0
        if self.step < len(policy.steps):
            return policy.steps[self.step]
        return 100 - policy.bake_weight if self.step == len(policy.steps) else 100

    def goal(self, policy: RampPolicy) -> int:
        """The weight that the evidence is judged for."""
        return policy.steps[min(self.step + 1, len(policy.steps) - 1)]

    def promoted(self, policy: RampPolicy) -> bool:
        """It was proved good enough for all traffic."""
        return not self.back and self.step >= len(policy.steps)

    def after(self, policy: RampPolicy, said: Judgement, now: float) -> Ramp:
        """With the judgement of the evidence for `goal`."""
        if said.verdict is Verdict.FAIL:
            return self if self.back else Ramp(self.step, now, back=True)
        if self.back:
            return self
        if self.promoted(policy):
            over = now - self.since >= policy.bake_seconds
            return replace(self, step=len(policy.steps) + 1) if over else self
        if not climbs(said, now - self.since, policy.step_min_seconds):
            return self
        if self.goal(policy) < 100:
            return Ramp(self.step + 1, now)
        bakes = policy.bake_seconds > 0 and policy.bake_weight > 0
        return Ramp(len(policy.steps) + (not bakes), now)


def climbs(said: Judgement, stood_seconds: float, least_seconds: float) -> bool:
    """Whether the next step may begin."""
    return said.verdict is Verdict.PASS and stood_seconds >= least_seconds
