"""Copies of requests for a candidate that has no traffic, as Envoy configuration.

Pure. Envoy sends a copy on its way and throws the answer away; its access log has lines of their own about copies, with
the id of the request. A copy must never cost a client anything, hence three limits. Only requests that say that they
are small are copied: Envoy reads no faster than a copy is taken once its buffers are full, so a candidate that does not
read would hold a large request up. Copies have a cluster of their own with few in progress, so that those a hung
candidate never answers do not pile up; what is beyond is not sent, and logged with the flag ``UO``. And nothing is
tried twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SHADOW = "~shadow"
"""Ends the name of the cluster through which a candidate gets copies."""
COPY_HEADER = "x-promote-copy"
"""Says on a copy which step it belongs to."""
MODE_HEADER = "x-promote-mode"
"""Says on a copy that it is one, so that the prediction log keeps it apart."""


def for_copies(candidate: str, cluster: dict[str, Any], most: int) -> dict[str, Any]:
    """The candidate's `cluster` once more, with at most so many requests in progress."""
    limits = {**cluster["circuit_breakers"]["thresholds"][0], "max_requests": most}
    return cluster | {"name": f"{candidate}{SHADOW}", "circuit_breakers": {"thresholds": [limits]}}


def copied(entries: Iterable[dict[str, Any]], candidate: str, step: str, most_bytes: int) -> list[dict[str, Any]]:
    """The routes in `entries` for requests that are copied: those with a body of at most `most_bytes`."""
    small = {"name": "content-length", "range_match": {"start": 0, "end": most_bytes + 1}}
    told = {COPY_HEADER: step, MODE_HEADER: "shadow"}
    mirror = {
        "cluster": f"{candidate}{SHADOW}",
        "disable_shadow_host_suffix_append": True,
        "request_headers_mutations": [_header(name, value) for name, value in told.items()],
    }
    return [
        entry
        | {"match": entry["match"] | {"headers": [small]}}
        | {"route": entry["route"] | {"request_mirror_policies": [mirror]}}
        for entry in entries
    ]


def _header(name: str, value: str) -> dict[str, Any]:
    return {"append": {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}
