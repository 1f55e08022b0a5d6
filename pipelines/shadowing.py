"""The shadow stage: when there is one, and when it is over.

Pure. All traffic stays where it is; the candidate gets copies, so the worst that it can do is to be found out. The
stage ends by its own limits and never for want of evidence: with nothing proved the canary follows, which needs its own
proof.
"""

from __future__ import annotations

from datetime import datetime

from monitoring.judgement import Verdict
from monitoring.plan import duration, rounded
from monitoring.shadow_judgement import ShadowJudgement, judge_pairs
from monitoring.shadow_policy import ShadowMode, ShadowPolicy
from pipelines.rollout import Rollout


def wanted(policy: ShadowPolicy, canary_seconds: float | None) -> bool:
    """Whether copies come before traffic; a canary of unknown length is not taken for a long one."""
    if policy.mode is ShadowMode.AUTO:
        return canary_seconds is not None and canary_seconds > policy.long_canary_seconds
    return policy.mode is not ShadowMode.OFF


def ahead(policy: ShadowPolicy, canary_seconds: float | None) -> str:
    """What a plan says of copies before it tells of the canary; empty where there will be none."""
    if not wanted(policy, canary_seconds):
        return ""
    longest = duration(policy.max_seconds)
    if policy.mode is ShadowMode.INSTEAD:
        return f"Copies of requests, for {longest} at most, and where they prove too little, a canary. "
    return f"First copies of about {rounded(policy.requests)} requests, for {longest} at most. "


def shadow_judgement(rollout: Rollout) -> ShadowJudgement | None:
    """What the copies say; None where there were none."""
    return judge_pairs(rollout.policy.analysis, rollout.shadow) if rollout.shadow is not None else None


def is_over(rollout: Rollout, said: ShadowJudgement, now: datetime) -> bool:
    """Time, or enough requests; what is to stand instead of a canary takes its time for a proof."""
    policy = rollout.policy.shadow
    if (now - rollout.entered).total_seconds() >= policy.max_seconds:
        return True
    if policy.mode is ShadowMode.INSTEAD:
        return spares_canary(rollout, said)
    return said.pairs >= policy.requests


def spares_canary(rollout: Rollout, said: ShadowJudgement) -> bool:
    """Whether the copies proved enough for all traffic, where the policy takes that for enough."""
    return rollout.policy.shadow.mode is ShadowMode.INSTEAD and said.verdict is Verdict.PASS
