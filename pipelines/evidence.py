"""The immutable record behind one decision: what was wished, what was measured, which rule decided.

Pure. The record is JSON, named by its own digest, and depends on the saved rollout alone: writing it twice
gives the same bytes under the same name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import datetime

from monitoring.detectable import Detectable, detectable
from monitoring.plan import StepPlan
from monitoring.usual import Usual
from pipelines.advance import judgement
from pipelines.rollout import Rollout
from pipelines.shadowing import shadow_judgement
from serving.image import Document


def record(rollout: Rollout) -> bytes:
    """The evidence of a rollout as JSON, keys sorted; times are ISO 8601 in UTC."""
    said, copies = judgement(rollout), shadow_judgement(rollout)
    content = {
        "rollout": rollout.id,
        "intent": asdict(rollout.intent),
        "outcome": rollout.phase.value,
        "reason": rollout.reason,
        "begun": rollout.begun,
        "decided": rollout.entered,
        "stable": asdict(rollout.stable) if rollout.stable else None,
        "candidate": asdict(rollout.candidate) if rollout.candidate else None,
        "lock": rollout.lock,
        "serving": asdict(rollout.proof) if rollout.proof else None,
        "documents": [asdict(one) | {"artifact": artifact(one)} for one in rollout.documents],
        "policy": asdict(rollout.policy),
        "gates": [asdict(gate) for gate in rollout.gates],
        "analysis": asdict(said) if said else None,
        "shadow": asdict(copies) if copies else None,
        "detectable": [asdict(found) for found in _detectable(rollout)],
        "processes": asdict(rollout.evidence) if rollout.evidence else None,
    }
    return json.dumps(content, sort_keys=True, indent=1, default=_plain).encode()


def _detectable(rollout: Rollout) -> tuple[Detectable, ...]:
    """What as many requests as there were would have found."""
    if (seen := rollout.evidence) is None or not seen.stable.requests or not seen.candidate.requests:
        return ()
    requests = seen.stable.requests + seen.candidate.requests
    share = StepPlan(round(100 * seen.candidate.requests / requests), requests, seen.candidate.requests, None)
    usual = Usual(seen.stable.errors / seen.stable.requests, seen.stable.refused / seen.stable.requests)
    return detectable(rollout.policy.analysis, (share,), usual)


def name(evidence: bytes) -> str:
    """Where the record is kept among the artifacts of the version's run."""
    return artifact(Document("evidence.json", hashlib.sha256(evidence).hexdigest()))


def artifact(document: Document) -> str:
    """The same of what was written about the image."""
    stem, _, ending = document.name.rpartition(".")
    return f"promote/{stem}-{document.digest[:16]}.{ending}"


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
