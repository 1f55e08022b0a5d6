"""The next state of a rollout, from what is saved and what is seen.

Pure. Interruptions (abort, a newer intent, a withdrawn candidate, a dead one, a passed deadline) are looked
at first and are the same for every phase; then each phase has one small function of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from monitoring.analysis import Evidence, fold, fold_labels
from monitoring.judgement import Judgement, Verdict, judge
from monitoring.ramp import climbs
from monitoring.shadow_evidence import ShadowEvidence, fold_pairs
from monitoring.shadow_judgement import ShadowJudgement
from pipelines.interruptions import by, deadline, interruption, newer, newer_version, passed, watched
from pipelines.reconcile import registry_agrees, told
from pipelines.rollout import FINAL, IMAGE, GateResult, Goal, Inconclusive, Intent, Phase, Rollout, RolloutPolicy, Seen
from pipelines.shadowing import is_over, shadow_judgement, spares_canary, wanted
from serving.image import BuildState
from serving.revision import Revision, RevisionState

_LOOK_SECONDS = 30.0
"""What was seen of the registry is not older than this."""


def advance(rollout: Rollout, seen: Seen, now: datetime) -> Rollout:
    """The state to save; equal to `rollout` where nothing follows from `seen`."""
    if rollout.settled:
        return rollout
    rollout = _absorb(rollout, seen)
    if rollout.phase in FINAL:
        return _settle(rollout, seen, now)
    if rollout.phase is Phase.ROLLING_BACK:
        return _rolling_back(rollout, seen, now)
    rollout = watched(rollout, seen, now)
    if (why := interruption(rollout, seen, now)) is not None:
        return _back(rollout, why, now)
    if rollout.phase is Phase.PAUSED:
        return _paused(rollout, seen, now)
    if any(intent.goal is Goal.PAUSE for intent in seen.asked):
        return _pause(rollout, by("paused", _last(seen, Goal.PAUSE)), now, held=True)
    return _STEPS[rollout.phase](rollout, seen, now)


def judgement(rollout: Rollout) -> Judgement | None:
    """What the evidence says about the next weight; None while there is nothing to compare."""
    if rollout.evidence is None:
        return None
    return judge(rollout.policy.analysis, rollout.evidence, rollout.next_weight)


def alarms(rollout: Rollout) -> tuple[str, ...]:
    """What holds the comparison up, or has it made otherwise than usual, without being the candidate's fault."""
    said = judgement(rollout) if rollout.phase in (Phase.PROGRESSING, Phase.BAKING, Phase.PAUSED) else None
    return (*said.alarms, *said.notes) if said is not None else ()


def _absorb(rollout: Rollout, seen: Seen) -> Rollout:
    """Take in what only ever grows: the claim, the newer intent, the evidence."""
    if seen.holders is not None and rollout.version.version in seen.holders:
        rollout = replace(rollout, claimed=True)
    if any(newer(rollout, intent) for intent in seen.asked):
        rollout = replace(rollout, superseded=True)
    if rollout.evidence is not None and seen.blocks and rollout.phase not in FINAL:
        rollout = replace(rollout, evidence=fold(rollout.policy.analysis, rollout.evidence, seen.blocks))
    if rollout.evidence is not None and seen.labelled and rollout.phase not in FINAL:
        rollout = replace(rollout, evidence=fold_labels(rollout.policy.analysis, rollout.evidence, seen.labelled))
    if rollout.shadow is not None and seen.pairs and rollout.shadowing:
        policy = rollout.policy
        rollout = replace(rollout, shadow=fold_pairs(policy.analysis, policy.shadow, rollout.shadow, seen.pairs))
    return rollout


def _checking(rollout: Rollout, seen: Seen, now: datetime) -> Rollout:
    return _gated(rollout, seen, Phase.BUILDING, now)


def _building(rollout: Rollout, seen: Seen, now: datetime) -> Rollout:
    if seen.image is None:
        return rollout
    if seen.image.state is BuildState.FAILED:
        failed = GateResult(IMAGE, passed=False, detail=seen.image.detail)
        return _back(_with(rollout, failed), f"the image could not be built: {seen.image.detail}", now)
    if seen.image.state is not BuildState.READY or seen.image.image is None:
        return replace(rollout, reason=seen.image.detail)
    image, settings = seen.image, rollout.policy.settings
    candidate = Revision(rollout.version, seen.image.image, settings)
    proof = image.proof.on_gpu() if image.proof and settings.on_gpu else image.proof
    starting = _with(_enter(rollout, Phase.STARTING, now), GateResult(IMAGE, passed=True, detail=candidate.image))
    starting = replace(starting, reason=str(proof or ""))
    return replace(starting, candidate=candidate, lock=image.lock, proof=proof, documents=image.documents)


def _with(rollout: Rollout, gate: GateResult) -> Rollout:
    """With the result in the place of an earlier one of the same gate."""
    return replace(rollout, gates=(*(one for one in rollout.gates if one.name != gate.name), gate))


def _starting(rollout: Rollout, seen: Seen, now: datetime) -> Rollout:
    if seen.ready(rollout.candidate):
        return _enter(rollout, Phase.PROVING, now)
    if _image_went(rollout, seen):
        building = replace(_enter(rollout, Phase.BUILDING, now), reason="its image went before it was started")
        return replace(building, candidate=None, lock=None, proof=None, documents=())
    status = seen.status(rollout.candidate)
    if status is None:
        return rollout
    if status.fetched > rollout.fetched:  # which happens a hundred times at most
        rollout = replace(rollout, fetched=status.fetched, entered=now)
    return replace(rollout, reason=status.reason)


def _image_went(rollout: Rollout, seen: Seen) -> bool:
    """Nothing needed the image while it was looked for, so it may have been removed just then."""
    missing = seen.image is not None and seen.image.state is BuildState.MISSING
    return missing and seen.revisions is not None and seen.status(rollout.candidate) is None


def _proving(rollout: Rollout, seen: Seen, now: datetime) -> Rollout:
    if rollout.intent.goal is Goal.READY:
        return _gated(rollout, seen, Phase.SUCCEEDED, now)
    compares = rollout.stable is not None and rollout.intent.goal is Goal.LIVE and rollout.policy.steps[0] < 100
    if not compares:
        return _gated(rollout, seen, Phase.PROMOTING, now)
    proved = _gated(rollout, seen, Phase.PROGRESSING, now)
    if proved.phase is not Phase.PROGRESSING:
        return proved
    if wanted(rollout.policy.shadow, seen.canary_seconds):
        return replace(proved, phase=Phase.SHADOWING, shadow=ShadowEvidence.start(rollout.policy.analysis))
    return _compared(proved)


def _compared(rollout: Rollout) -> Rollout:
    """With the first share of the traffic."""
    policy = rollout.policy
    shares = (*policy.steps, 100 - policy.bake_weight)
    return replace(rollout, step=0, evidence=Evidence.start(policy.analysis, policy.steps, shares, policy.labels.mode))


def _shadowing(rollout: Rollout, seen: Seen, now: datetime) -> Rollout:
    """Copies end first, and only when that is seen the next phase begins."""
    said = shadow_judgement(rollout)
    if said is None:
        return rollout
    if said.verdict is Verdict.FAIL:
        return _back(rollout, _worse(rollout, seen, said), now)
    rollout = replace(rollout, reason=said.reason)
    if not rollout.unshadowing:
        return replace(rollout, unshadowing=True) if is_over(rollout, said, now) else rollout
    if not _in_force(rollout, seen):
        return rollout
    progressing = _compared(replace(_enter(rollout, Phase.PROGRESSING, now), unshadowing=False))
    return _to_all(progressing, said.reason, now) if spares_canary(rollout, said) else progressing


def _gated(rollout: Rollout, seen: Seen, then: Phase, now: datetime) -> Rollout:
    """Record the gates of this phase; the first one that fails ends the rollout."""
    if seen.gates is None:
        return replace(rollout, reason=seen.gates_progress or rollout.reason)
    rollout = replace(rollout, gates=(*rollout.gates, *seen.gates))
    failed = next((gate for gate in seen.gates if not gate.passed), None)
    if failed is not None:
        return _back(rollout, f"gate {failed.name}: {failed.detail}", now)
    return _enter(rollout, then, now)


def _progressing(rollout: Rollout, seen: Seen, now: datetime) -> Rollout:
    said = judgement(rollout)
    if said is None:
        return rollout
    if said.verdict is Verdict.FAIL:
        return _back(rollout, _worse(rollout, seen, said), now)
    if not _in_force(rollout, seen):
        return _stuck(rollout, now)
    if climbs(said, (now - rollout.entered).total_seconds(), rollout.policy.step_min_seconds):
        return _next_step(rollout, said.reason, now)
    return _stuck(replace(rollout, reason=said.reason), now)


def _worse(rollout: Rollout, seen: Seen, said: Judgement | ShadowJudgement) -> str:
    """What the comparison shows, and what the candidate itself knows of the cause."""
    status = seen.status(rollout.candidate)
    return f"{said.reason}; the candidate says: {status.reason}" if status and status.reason else said.reason


def _next_step(rollout: Rollout, reason: str, now: datetime) -> Rollout:
    if rollout.next_weight == 100:
        return _to_all(rollout, reason, now)
    return replace(rollout, step=rollout.step + 1, entered=now, reason=reason)


def _to_all(rollout: Rollout, reason: str, now: datetime) -> Rollout:
    bakes = rollout.policy.bake_seconds and rollout.policy.bake_weight
    then = Phase.BAKING if bakes else Phase.PROMOTING
    return replace(_enter(rollout, then, now), step=len(rollout.policy.steps), reason=reason)


def _stuck(rollout: Rollout, now: datetime) -> Rollout:
    if not passed(rollout, now):
        return rollout
    reason = f"not enough evidence after {deadline(rollout):.0f} s: {rollout.reason}"
    said = judgement(rollout)
    wanted = rollout.policy.on_inconclusive if said is not None and _measured(said, rollout) else Inconclusive.HOLD
    if wanted is Inconclusive.ROLLBACK:
        return _back(rollout, reason, now)
    if wanted is Inconclusive.PROMOTE and said is not None and _harmless(rollout.policy, said):
        return _to_all(rollout, f"{reason}; promoted, as nothing speaks against it", now)
    return _pause(rollout, reason, now, held=False)


def _measured(said: Judgement, rollout: Rollout) -> bool:
    """Whether it is the candidate's doing that nothing is decided, and not that of traffic, labels or an alarm."""
    labels = rollout.evidence.labels if rollout.evidence else None
    unlabelled = labels is not None and labels.required and not labels.candidate.errors and rollout.next_weight == 100
    return bool(said.stable.requests and said.candidate.requests) and not (said.alarms or unlabelled)


def _harmless(policy: RolloutPolicy, said: Judgement) -> bool:
    """Nothing speaks against the candidate, and much worse it is not."""
    return said.log_e_worse < 0 and said.margin95 is not None and said.margin95 <= policy.wide_margin


def _in_force(rollout: Rollout, seen: Seen) -> bool:
    """The data plane reports the weights and the tag of the present step."""
    if seen.routes is None or rollout.candidate is None:
        return False
    route = seen.routes.get(rollout.intent.model)
    return route is not None and route.step == rollout.tag and route.weights.of(rollout.candidate) == rollout.weight


def _baking(rollout: Rollout, seen: Seen, now: datetime) -> Rollout:
    """Good enough for all traffic, and still compared; a stable revision that dies or a newer version ends it."""
    said = judgement(rollout)
    if said is not None and said.verdict is Verdict.FAIL:
        return _back(rollout, _worse(rollout, seen, said), now)
    early = _cut_short(rollout, seen)
    if early is not None:
        reason = f"{rollout.reason}; {early} before the bake was over".removeprefix("; ")
        return replace(_enter(rollout, Phase.PROMOTING, now), reason=reason)
    return _enter(rollout, Phase.PROMOTING, now, keep_reason=True) if passed(rollout, now) else rollout


def _cut_short(rollout: Rollout, seen: Seen) -> str | None:
    """What leaves nothing to wait for in a bake, or None."""
    if rollout.superseded:
        version = newer_version(rollout, seen)
        return f"version {version} came" if version else "a newer version came"
    status = seen.status(rollout.stable)
    ended = seen.revisions is not None and (status is None or status.state is RevisionState.FAILED)
    return "the stable revision ended" if ended else None


def _promoting(rollout: Rollout, seen: Seen, now: datetime) -> Rollout:
    """What the last requests of the comparison say may come only now."""
    said = judgement(rollout)
    if said is not None and said.verdict is Verdict.FAIL:
        return _back(rollout, _worse(rollout, seen, said), now)
    if seen.share(rollout.candidate) == 100 and seen.ready(rollout.candidate):
        return _enter(rollout, Phase.SUCCEEDED, now, keep_reason=True)
    return rollout


def _paused(rollout: Rollout, seen: Seen, now: datetime) -> Rollout:
    """Weights stay, evidence is still read: a bad candidate does not wait for a person."""
    said = judgement(rollout)
    for found in (said, shadow_judgement(rollout)):
        if found is not None and found.verdict is Verdict.FAIL:
            return _back(rollout, _worse(rollout, seen, found), now)
    asked = any(intent.goal is Goal.RESUME for intent in seen.asked)
    proved = said is not None and said.verdict is Verdict.PASS and not rollout.held
    if rollout.resume is None or not (asked or proved):
        return rollout
    return replace(_enter(rollout, rollout.resume, now), resume=None, held=False)


def _pause(rollout: Rollout, reason: str, now: datetime, *, held: bool) -> Rollout:
    if rollout.phase is Phase.PROMOTING:
        return rollout
    return replace(_enter(rollout, Phase.PAUSED, now), resume=rollout.phase, held=held, reason=reason)


def _rolling_back(rollout: Rollout, seen: Seen, now: datetime) -> Rollout:
    """Over as soon as the candidate is seen without traffic; halted where that cannot be had in time."""
    if _back_in_force(rollout, seen):
        return _enter(rollout, Phase.FAILED, now, keep_reason=True)
    if not passed(rollout, now):
        return rollout
    left = "no other revision is ready" if not seen.ready(rollout.stable) else "the gateway did not follow"
    return replace(_enter(rollout, Phase.HALTED, now), reason=f"{rollout.reason}; traffic stays where it is: {left}")


def _back_in_force(rollout: Rollout, seen: Seen) -> bool:
    """No request reaches the candidate any more, nor will one by a route that was asked for earlier."""
    if not rollout.steered:
        return True
    if seen.routes is None:
        return False
    route = seen.routes.get(rollout.intent.model)
    if rollout.stable is None:
        return route is None
    return route is not None and route.step == rollout.tag and not seen.share(rollout.candidate)


def _settle(rollout: Rollout, seen: Seen, now: datetime) -> Rollout:
    """Nothing is left to do once the registry shows the outcome, or does not concern us any more.

    While transitions are withheld, only a rollout that is not settled knows its own writes among them. Where the
    channel is another one soon after the outcome was told, a person has changed it, or it was looked at before.
    """
    known = seen.holders is not None or rollout.superseded
    changed = told(rollout) and (now - rollout.entered).total_seconds() >= _LOOK_SECONDS
    if (changed or registry_agrees(rollout, seen)) and known and not seen.withheld:
        return replace(rollout, settled=True)
    return rollout


def _back(rollout: Rollout, reason: str, now: datetime) -> Rollout:
    return replace(_enter(rollout, Phase.ROLLING_BACK, now), reason=reason, resume=None)


def _enter(rollout: Rollout, phase: Phase, now: datetime, *, keep_reason: bool = False) -> Rollout:
    steered = rollout.steered or phase in (Phase.SHADOWING, Phase.PROGRESSING, Phase.BAKING, Phase.PROMOTING)
    reason = rollout.reason if keep_reason else ""
    return replace(rollout, phase=phase, entered=now, reason=reason, steered=steered)


def _last(seen: Seen, goal: Goal) -> Intent | None:
    return next((intent for intent in reversed(seen.asked) if intent.goal is goal), None)


_STEPS: dict[Phase, Callable[[Rollout, Seen, datetime], Rollout]] = {
    Phase.CHECKING: _checking,
    Phase.BUILDING: _building,
    Phase.STARTING: _starting,
    Phase.PROVING: _proving,
    Phase.SHADOWING: _shadowing,
    Phase.PROGRESSING: _progressing,
    Phase.BAKING: _baking,
    Phase.PROMOTING: _promoting,
}
