"""Exceptions in one line."""

from __future__ import annotations

_LONGEST = 300


def told(error: BaseException) -> str:
    """Type and message of an exception, of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_LONGEST] if text else type(error).__name__
