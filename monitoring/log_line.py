"""What a line of Envoy's access log says of a request.

Pure. What Envoy 1.40 writes for one request to a revision (``upstream_log``), as seen:

=========================== ========================= =====================================================
what happened               first line                last line (``UpstreamEnd``)
=========================== ========================= =====================================================
answered                    ``UpstreamPoolReady``     its code, no flags, ``answered`` set
refused, connect time-out   none                      code 0, flag ``UF``
reset by the revision       ``UpstreamPoolReady``     code 0, flag ``UC`` (or ``UPE`` and the code in mid-answer)
failed, retried elsewhere   ``UpstreamPoolReady``     its code, ``answered`` null: the rest of it is not waited for
time-out of the request     ``UpstreamPoolReady``     no flags, ``answered`` null (code 0, or the code in mid-answer)
client left while it waited ``UpstreamPoolReady``     the same, only earlier
client left while sending   ``UpstreamPoolReady``     the same, and ``sent`` null
client left, no connection  none                      code 0, no flags, ``began`` null
no host for the revision    none                      ``DownstreamEnd`` with ``UH``
=========================== ========================= =====================================================

A refusal (4xx) is told apart from an error. Clients ask both arms alike, so a candidate that refuses more than the
stable revision does is worse for them, whoever is to blame for a single request; the analysis looks at both.

A client that leaves says nothing about the revision, unless it waited for `patience_seconds` or longer: a
revision that hangs must not look innocent because clients hang up before the gateway does. The rule is the
same for both arms, so it favours neither. Nor does a 4xx that the gateway itself answered, as 408 and 413.
"""

from __future__ import annotations

from monitoring.blocks import Arm
from monitoring.entities import digest
from monitoring.filling import Record
from monitoring.log_entry import Entry, is_sample, loss, prediction
from serving.envoy import SHIELDED

STARTED = "UpstreamPoolReady"
UNCOMPARED = ("/shadow", "/shadowed", "/back")
"""Ends of steps under which all traffic is the stable revision's: there are no arms."""
GATEWAY_STARTED = "GatewayStart"
"""Written by us before Envoy starts; whatever was under way then ended with the former Envoy."""


def written_at(entry: Entry) -> float:
    """When the line was written. `ValueError` where it does not say."""
    if entry.ms is None:
        raise ValueError("a line without a duration")
    return entry.start + entry.ms / 1000.0


def is_first(entry: Entry) -> bool:
    """Whether it is the first line about its request."""
    return entry.type == STARTED or entry.began is None


def is_shielding(entry: Entry) -> bool:
    """Whether it is about the stable revision answering what failed on the candidate.

    That request was the candidate's by chance, and is its failure; the stable revision was not chosen for it.
    """
    return shielded(entry) and entry.revision is not None and entry.revision != entry.candidate


def shielded(entry: Entry) -> bool:
    """Whether the request was assigned to a candidate whose failures the stable revision answers."""
    return bool(entry.candidate) and entry.cluster == f"{entry.candidate}{SHIELDED}"


def revision_of(entry: Entry) -> str:
    """The revision that the attempt was for, also where it was never connected to."""
    return entry.revision or (entry.cluster or "").removesuffix(SHIELDED)


def latency_ms(entry: Entry) -> float:
    """From the assignment to the end of the revision's answer, or of the request where it never answered."""
    return entry.took / 1000.0 if entry.took is not None else float(entry.ms or 0)


def outcome(entry: Entry, patience_ms: float) -> tuple[bool, bool, bool]:
    """Whether a request that ended is an error, whether it is no evidence at all, and whether it was refused."""
    if entry.flags != "-":
        return True, False, False
    if entry.answered is not None:
        return entry.code >= 500, False, 400 <= entry.code < 500
    if shielded(entry) and entry.code >= 500:
        return True, False, False
    sending = entry.began is not None and entry.sent is None
    if sending or 400 <= entry.code < 500 or (entry.ms or 0) < patience_ms:
        return False, True, False
    return True, False, False


def record_of(entry: Entry, patience_ms: float) -> Record:
    """What a line with a step says of its request. `ValueError` where it is garbled."""
    rollout, _, step = (entry.step or "").rpartition("/")
    if entry.id is None or not rollout:
        raise ValueError("a line of a rollout without its request or step")
    arm = Arm.CANDIDATE if entry.cluster == entry.candidate or shielded(entry) else Arm.STABLE
    entity = digest(rollout, entry.entity) if entry.entity else ""
    if entry.type == STARTED:
        return Record(entry.id, rollout, int(step), arm, entry.start, entity=entity)
    error, abandoned, refused = outcome(entry, patience_ms)
    return Record(
        entry.id,
        rollout,
        int(step),
        arm,
        entry.start,
        written_at(entry),
        error,
        abandoned,
        refused,
        latency_ms(entry),
        None if error or refused or abandoned else prediction(entry.prediction),
        entry.host or "",
        None if error or refused or abandoned else loss(entry.loss),
        entity,
        is_sample(entry.prediction),
    )
