"""One line of Envoy's access log as a typed value.

Reading the log has to cost next to nothing beside the traffic that it tells of, so a line goes from bytes to a
struct in one step, and a chunk of lines too, where none is garbled. Fields that an Envoy started by an earlier
version does not write are None.
"""

from __future__ import annotations

from typing import Any

import msgspec

from monitoring.ruler import Prediction


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What `serving.envoy_log.LOG_FIELDS` asks for; times in milliseconds and microseconds as said there."""

    type: str
    start: float
    ms: int | None = None
    id: str | None = None
    model: str | None = None
    step: str | None = None
    candidate: str | None = None
    cluster: str | None = None
    revision: str | None = None
    host: str | None = None
    code: int = 0
    flags: str = "-"
    began: int | None = None
    sent: int | None = None
    answered: int | None = None
    took: int | None = None
    prediction: str | None = None
    loss: str | None = None
    copy: str | None = None
    entity: str | None = None
    """What its client called the entity that it asks for, or the beginning of that."""


_entries = msgspec.json.Decoder(Entry, strict=False)
_values = msgspec.json.Decoder(tuple[str | float | bool | None, ...])

_SAMPLE = "*"
MOST_VALUES = 16
"""A prediction of more values than this is not one of ours."""


def entries(data: bytes) -> tuple[list[Entry], list[bytes]]:
    """The lines of `data`, and those that are garbled."""
    try:
        return _entries.decode_lines(data), []
    except ValueError:
        return _one_by_one(data)


def _one_by_one(data: bytes) -> tuple[list[Entry], list[bytes]]:
    found: list[Entry] = []
    garbled: list[bytes] = []
    for text in data.split(b"\n"):
        if text.strip():
            try:
                found.append(_entries.decode(text))
            except ValueError:
                garbled.append(text)
    return found, garbled


def loss(text: str | None) -> float | None:
    """None where the revision said nothing, or nothing from 0 to 1."""
    try:
        value = float(text) if text else -1.0
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def is_sample(text: str | None) -> bool:
    """Whether a prediction leaves rows out, so that its values are not those of the first rows."""
    return text is not None and text.endswith(_SAMPLE)


def prediction(text: str | None) -> Prediction | None:
    """None where the revision said nothing, or nothing that is a list of values."""
    if not text or text == "-":
        return None
    try:
        values: tuple[Any, ...] = _values.decode(text.removesuffix(_SAMPLE))
    except ValueError:
        return None
    return values if 0 < len(values) <= MOST_VALUES else None
