"""What a controller tells the pod of a drift check, and what the pod prints: both as text.

The result is printed in lines that are short enough for every cluster's logs, which break longer ones. Each says which
of how many it is, so that whatever libraries print in between does no harm, and a part that is missing is noticed.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from pipelines.drift_checks import Checked
from pipelines.drift_reference import DriftCheck

_LINE = re.compile(r"drift-result (\d+)/(\d+) (\S+)")
_LENGTH = 4000
"""Characters in a line; Docker's logs break lines of 16 KiB."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a pod is to do."""

    check: DriftCheck
    now: datetime
    url: str
    """Of the prediction log."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A check that came to no finding, see `DriftCheckError`."""

    reason: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Result:
    """One of the two."""

    checked: Checked | None = None
    refused: Refused | None = None


def written(order: Order) -> str:
    """The order as a variable of the environment."""
    return msgspec.json.encode(order).decode()


def read_order(text: str) -> Order:
    """Raises `ValueError`."""
    return msgspec.json.decode(text, type=Order)


def printed(result: Result) -> Sequence[str]:
    """Lines of a log. Not by way of JSON, which has no numbers that are none."""
    packed = zlib.compress(msgspec.msgpack.encode(result))
    text = base64.b64encode(packed).decode()
    parts = [text[start : start + _LENGTH] for start in range(0, len(text), _LENGTH)]
    return [f"drift-result {number}/{len(parts)} {part}" for number, part in enumerate(parts, 1)]


def read_printed(lines: Iterable[str]) -> Result | None:
    """What was printed last; None where that is nothing, or not whole."""
    found: dict[int, str] = {}
    last = 0
    for line in lines:
        match = _LINE.fullmatch(line.strip())
        if match:
            number, last = int(match[1]), int(match[2])
            found = {number: match[3]} if number == 1 else found | {number: match[3]}
    if not last or set(found) != set(range(1, last + 1)):
        return None
    try:
        packed = zlib.decompress(base64.b64decode("".join(found[number] for number in range(1, last + 1))))
        return msgspec.msgpack.decode(packed, type=Result)
    except (ValueError, zlib.error):
        return None


def is_result(line: str) -> bool:
    """Whether the line is a part of a result, and so nothing for people."""
    return _LINE.fullmatch(line.strip()) is not None
