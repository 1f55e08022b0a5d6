"""What ends the present phase of a rollout, whichever it is: somebody's wish, a candidate that is gone, a deadline.

Pure. The reasons are what people read afterwards.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from monitoring.label_policy import LabelMode
from pipelines.reconcile import again
from pipelines.rollout import Goal, Intent, Phase, Rollout, Seen
from serving.revision import RevisionState


def interruption(rollout: Rollout, seen: Seen, now: datetime) -> str | None:
    """Why the rollout cannot go on, or None."""
    if rollout.trouble:
        return rollout.trouble
    if seen.gone:
        return f"version {rollout.version.version} was deleted from the registry"
    abort = next((i for i in seen.asked if i.goal is Goal.ABORT or _wants_stable(rollout, i)), None)
    if abort is not None:
        return by("aborted", abort)
    if rollout.superseded and not _goes_first(rollout, seen):
        return _superseded(rollout, seen)
    away = rollout.claimed and seen.holders is not None and rollout.version.version not in seen.holders
    if away and not rollout.superseded:
        return f"version {rollout.version.version} was taken out of {rollout.intent.channel}"
    return _dead(rollout, seen) or _silent(rollout, seen, now) or _late(rollout, now)


def deadline(rollout: Rollout) -> float:
    """Seconds that the present phase, or within it the present step, may take."""
    policy = rollout.policy
    return {
        Phase.CHECKING: policy.build_seconds,
        Phase.BUILDING: policy.build_seconds,
        Phase.STARTING: policy.ready_seconds,
        Phase.PROVING: policy.ready_seconds,
        Phase.SHADOWING: policy.shadow.max_seconds + policy.ready_seconds,
        Phase.PROGRESSING: _step_seconds(rollout),
        Phase.BAKING: policy.bake_seconds,
        Phase.PROMOTING: policy.promote_seconds,
        Phase.ROLLING_BACK: policy.ready_seconds,
        Phase.PAUSED: policy.pause_seconds,
    }[rollout.phase]


def _step_seconds(rollout: Rollout) -> float:
    """Labels may have more time than a step, where all traffic waits for them."""
    policy = rollout.policy
    gated = policy.labels.mode is LabelMode.GATE and rollout.next_weight == 100
    return max(policy.step_max_seconds, policy.labels.deadline_seconds if gated else 0.0)


def newer(rollout: Rollout, intent: Intent) -> bool:
    """Whether the intent takes the channel over. Wanting the stable version back is an abort, nothing newer."""
    wants = (Goal.LIVE, Goal.RESTORE, Goal.READY, Goal.RETIRE)
    other = intent.version != rollout.intent.version or again(rollout, intent)
    return intent.goal in wants and other and not _wants_stable(rollout, intent)


def _wants_stable(rollout: Rollout, intent: Intent) -> bool:
    stable = rollout.stable.version.version if rollout.stable else None
    return intent.goal in (Goal.LIVE, Goal.RESTORE) and stable is not None and intent.version == stable


def _goes_first(rollout: Rollout, seen: Seen) -> bool:
    """A version that was let through to all traffic becomes live before a newer one is tried beside it.

    Going back to an earlier version, or taking the model off the gateway, does not wait for that.
    """
    through = rollout.decided and rollout.phase in (Phase.BAKING, Phase.PROMOTING)
    return through and all(intent.goal is Goal.LIVE for intent in seen.asked if newer(rollout, intent))


def _superseded(rollout: Rollout, seen: Seen) -> str:
    version = newer_version(rollout, seen)
    return f"superseded by version {version}" if version else "superseded"


def newer_version(rollout: Rollout, seen: Seen) -> int | None:
    """The latest version that takes the channel over; None where that is no version."""
    told = [intent for intent in seen.asked if newer(rollout, intent)]
    return told[-1].version if told else None


def _dead(rollout: Rollout, seen: Seen) -> str | None:
    """The candidate ended by itself; while it starts it may do so `restarts` times."""
    if rollout.candidate is None or seen.revisions is None:
        return None
    status = seen.status(rollout.candidate)
    if status is not None and status.restarts > rollout.policy.restarts:
        return f"the candidate crash-loops ({status.restarts} restarts): {status.reason}".rstrip(": ")
    if _starts(rollout):
        return None
    if status is None:
        return "the candidate is gone from its target"
    return f"the candidate died: {status.reason}" if status.state is RevisionState.FAILED else None


def _starts(rollout: Rollout) -> bool:
    return Phase.STARTING in (rollout.phase, rollout.resume if rollout.phase is Phase.PAUSED else None)


def watched(rollout: Rollout, seen: Seen, now: datetime) -> Rollout:
    """With since when the candidate is not ready any more. What cannot be seen changes nothing."""
    if rollout.candidate is None or seen.revisions is None or _starts(rollout):
        return rollout
    return replace(rollout, unready=None if seen.ready(rollout.candidate) else rollout.unready or now)


def _silent(rollout: Rollout, seen: Seen, now: datetime) -> str | None:
    """The candidate runs but is not ready any more: it has as long to become so again as it had to start.

    It gets no requests meanwhile, so nothing else would tell.
    """
    seconds = rollout.policy.ready_seconds
    if rollout.unready is None or (now - rollout.unready).total_seconds() <= seconds:
        return None
    status = seen.status(rollout.candidate)
    said = status.reason if status else ""
    return f"the candidate was ready and is not any more, for {seconds:.0f} s: {said}".rstrip(": ")


def _late(rollout: Rollout, now: datetime) -> str | None:
    """A passed deadline; a step without enough evidence pauses instead (see `_progressing`), and a bake is over."""
    if rollout.phase in (Phase.PROGRESSING, Phase.BAKING) or not passed(rollout, now):
        return None
    return f"{rollout.phase.value} took longer than {deadline(rollout):.0f} s" + (
        f": {rollout.reason}" if rollout.reason else ""
    )


def passed(rollout: Rollout, now: datetime) -> bool:
    """Whether the phase, or within it the step, has had its time."""
    return (now - rollout.entered).total_seconds() > deadline(rollout)


def by(what: str, intent: Intent | None) -> str:
    """What was done, by whom and why, as far as that is known."""
    actor = f" by {intent.actor}" if intent is not None and intent.actor else ""
    reason = f": {intent.reason}" if intent is not None and intent.reason else ""
    return f"{what}{actor}{reason}"
