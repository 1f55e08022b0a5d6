"""What both revisions predicted for the same rows, compared.

Pure. A decision is a label, a whole number, or for a number from 0 to 1 whether it is at least one half; other numbers
decide nothing by themselves, and only their difference is told.
"""

from __future__ import annotations

from math import isfinite

from monitoring.ruler import Prediction, Value
from monitoring.shadow_blocks import Row


def rows(stable: Prediction | None, candidate: Prediction | None) -> tuple[Row, ...]:
    """Row by row; answers of different lengths differ in every row of the stable revision's."""
    if stable is None or candidate is None:
        return ()
    if len(stable) != len(candidate):
        return tuple(Row(_name(decision(value)), True, None) for value in stable)
    return tuple(_row(before, after) for before, after in zip(stable, candidate, strict=True))


def _row(before: Value, after: Value) -> Row:
    was, now = decision(before), decision(after)
    changed = None if was is None and now is None else was != now
    return Row(_name(was), changed, _difference(before, after))


def decision(value: Value) -> str | bool | float | None:
    """None where the value decides nothing: a number that is neither whole nor a score."""
    if value is None:
        return "null"
    if isinstance(value, str | bool):
        return value
    if 0.0 <= value <= 1.0:
        return value >= 0.5
    return value if value.is_integer() else None


def _name(decided: str | bool | float | None) -> str:
    if decided is None:
        return ""
    return f"{decided:g}" if isinstance(decided, float) else str(decided).lower()


def _difference(before: Value, after: Value) -> float | None:
    if not isinstance(before, float) or not isinstance(after, float):
        return None
    difference = after - before
    return difference if isfinite(difference) else None
