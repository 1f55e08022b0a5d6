"""What a line of Envoy's access log says of a request.

Pure. What Envoy 1.40 writes for one request to a revision (``upstream_log``), as seen:

=========================== ========================= =====================================================
what happened               first line                last line (``UpstreamEnd``)
=========================== ========================= =====================================================
answered                    ``UpstreamPoolReady``     its code, no flags, ``answered`` set
refused, connect time-out   none                      code 0, flag ``UF``
reset by the revision       ``UpstreamPoolReady``     code 0, flag ``UC`` (or ``UPE`` and the code in mid-answer)
time-out of the request     ``UpstreamPoolReady``     no flags, ``answered`` null (code 0, or the code in mid-answer)
client left while it waited ``UpstreamPoolReady``     the same, only earlier
client left while sending   ``UpstreamPoolReady``     the same, and ``sent`` null
client left, no connection  none                      code 0, no flags, ``began`` null
no host for the revision    none                      ``DownstreamEnd`` with ``UH``
=========================== ========================= =====================================================

A refusal (4xx) counts as an error too: clients ask both arms alike, so a candidate that refuses more than the stable
revision does is worse for them, whoever is to blame for a single request.

A client that leaves says nothing about the revision, unless it waited for `patience_seconds` or longer: a
revision that hangs must not look innocent because clients hang up before the gateway does. The rule is the
same for both arms, so it favours neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitoring.blocks import Arm, Record

STARTED = "UpstreamPoolReady"
GATEWAY_STARTED = "GatewayStart"
"""Written by us before Envoy starts; whatever was under way then ended with the former Envoy."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the log about a scoring request, or about the gateway itself."""

    kind: str
    at: float
    """When it was written."""
    model: str = ""
    first: bool = False
    """Whether it is the first line about its request."""
    record: Record | None = None
    """None for requests outside of rollouts."""


def parse(text: bytes, patience_seconds: float) -> Line | None:
    """One line of the log; None where it is about none of our requests. `ValueError` where it is garbled."""
    try:
        entry = json.loads(text)
        kind, start = entry["type"], float(entry["start"])
        if kind == GATEWAY_STARTED:
            return Line(kind, start)
        if entry["model"] is None or entry["cluster"] is None:
            return None
        at = start + entry["ms"] / 1000
        first = kind == STARTED or entry["began"] is None
        record = _record(entry, start, at, patience_seconds) if entry["step"] else None
        return Line(kind, at, entry["model"], first, record)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a line of the access log: {text[:80]!r}") from error


def _record(entry: Mapping[str, Any], start: float, at: float, patience_seconds: float) -> Record:
    rollout, _, step = entry["step"].rpartition("/")
    arm = Arm.CANDIDATE if entry["cluster"] == entry["candidate"] else Arm.STABLE
    if entry["type"] == STARTED:
        return Record(entry["id"], rollout, int(step), arm, start)
    error, abandoned = _outcome(entry, at - start, patience_seconds)
    return Record(entry["id"], rollout, int(step), arm, start, at, error, abandoned)


def _outcome(entry: Mapping[str, Any], waited: float, patience_seconds: float) -> tuple[bool, bool]:
    """Whether a request that ended is an error, and whether it is no evidence at all."""
    if entry["flags"] != "-":
        return True, False
    if entry["answered"] is not None:
        return entry["code"] >= 400, False
    sending = entry["began"] is not None and entry["sent"] is None
    return (False, True) if sending or waited < patience_seconds else (True, False)
