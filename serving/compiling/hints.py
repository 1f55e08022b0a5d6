"""What a library's fitted objects tell of the values in a model's columns: where to look, never what to believe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Hints:
    """By column; filled while somebody walks through a model."""

    categories: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """The values that every encoder of the column knows."""
    opaque: set[str] = field(default_factory=set)
    """Columns of which it is not known what becomes of them."""
    edges: dict[str, list[float]] = field(default_factory=dict)
    """Where answers may change."""
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Centre and width of the column's data in training."""
