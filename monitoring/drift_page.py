"""The finding in words, on top of the page that shows the columns.

The page's own library draws the columns but knows neither the policy nor the diagnosis. Everything is
escaped: names of columns may come from clients.
"""

from __future__ import annotations

from html import escape

from monitoring.drift import DriftState, Finding
from registry_hooks.model_version import ModelVersion

COLOURS = {
    DriftState.NOT_ENOUGH_DATA: "#8a6d00",
    DriftState.STABLE: "#1e7d3c",
    DriftState.DRIFTED: "#b3261e",
    DriftState.ERROR: "#b3261e",
}
BODY = b"<body>"


def with_finding(page: bytes, version: ModelVersion, finding: Finding) -> bytes:
    """`page` with the finding as the first thing in its body."""
    head, mark, rest = page.partition(BODY) if BODY in page else (b"", b"", page)
    return head + mark + _section(version, finding).encode() + rest


def _section(version: ModelVersion, finding: Finding) -> str:
    colour, samples = COLOURS[finding.state], finding.samples
    lines = [
        finding.diagnosis,
        f"Reference: {samples.reference}, {samples.reference_rows} rows.",
        f"Current: {samples.current_rows} rows before {samples.at:%Y-%m-%d %H:%M %Z}.",
        *(f"Not compared: {column}, {reason}." for column, reason in finding.left_out.items()),
    ]
    told = "".join(f"<p>{escape(line)}</p>" for line in lines)
    style = f"font:16px/1.4 system-ui,sans-serif;margin:24px;padding:4px 20px;border-left:8px solid {colour}"
    title = escape(f"{version}: {finding.state.value}")
    return f'<section style="{style}"><h1 style="color:{colour}">{title}</h1>{told}</section>'
