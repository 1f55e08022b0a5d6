"""What became known of answers afterwards, and how bad that makes them.

Pure. A label comes long after its answer, and for many answers never. So requests are put into blocks when they end,
without regard to labels, and a block is told when it has them all or was waited for long enough, in order: which
requests count never depends on what their labels say. That bad answers may be labelled sooner than good ones does no
harm, because both revisions are waited for alike; that answers of one revision are labelled more often would, and
`monitoring.label_evidence` looks for it.

Only an answer can be labelled: a request that failed or was refused is left to the metrics of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any, NamedTuple, Protocol

from monitoring.blocks import Arm
from monitoring.filling import Record
from monitoring.ruler import Prediction
from monitoring.shadow_blocks import ShadowSource

REQUESTS = 100
"""A block takes this many: more than other blocks, because few of them may ever be labelled."""
SECONDS = 600.0
"""Or what came within this time."""
MOST = 200_000
"""Requests that are waited for at a time; further ones are not."""
_CHARACTERS = 64
"""Of a predicted word that are known."""
_DIGITS = 1e-5
"""So exactly predicted fractions are known."""

Value = str | float | bool


class Label(NamedTuple):
    """What became known of one row of an answer: what would have been right, or how bad it was from 0 to 1."""

    request_id: str
    row: int = 0
    value: Value | None = None
    loss: float | None = None


class Awaited(NamedTuple):
    """A request whose labels are waited for."""

    request_id: str
    arm: Arm
    assigned: float
    prediction: Prediction | None = None
    """One value per row; None where it is not known for every row."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Answers of one arm in one block."""

    answers: int = 0
    labelled: int = 0
    loss: float = 0.0
    """Sum over the labelled ones, from 0 to 1 each."""


@dataclass(frozen=True, slots=True)
class LabelBlock:
    """Answers that were assigned close together, with the labels that came in time. `id` counts from 1 without gaps."""

    id: int
    rollout: str
    stable: Labelled
    candidate: Labelled


@dataclass(frozen=True, slots=True)
class Kept:
    """What a store did with labels."""

    new: int
    """Labels that were not known before."""
    repeated: int
    """Labels of rows that had one; the first counts."""
    awaited: int
    """New ones of requests that are waited for now. Others count if their request ends within ten minutes."""


@dataclass(slots=True)
class Awaiting:
    """Which block each request of one rollout is in, of all its logs."""

    number: int = 1
    """Of the block that is open; those before it are complete."""
    passed_over: int = 0
    """Requests that are not waited for, because of too many others."""
    _requests: int = 0
    _opened: float = 0.0
    _step: int = 0
    pending: int = 0
    """Requests that are waited for; whoever restores it knows."""
    _new: list[tuple[int, Awaited]] = field(default_factory=list)

    def add(self, step: int, at: float, records: Iterable[Record]) -> None:
        """Requests that ended, of one block of the access log that was opened at `at`."""
        if self._requests and (step != self._step or at >= self._opened + SECONDS):
            self._next()
        answers = [awaited(record) for record in records if answered(record)]
        if self.pending + len(answers) > MOST:
            self.passed_over += len(answers)
            return
        if not self._requests:
            self._step, self._opened = step, at
        self._new += [(self.number, answer) for answer in answers]
        self.pending += len(answers)
        self._requests += len(answers)
        if self._requests >= REQUESTS:
            self._next()

    def _next(self) -> None:
        self.number, self._requests = self.number + 1, 0

    def take_new(self) -> list[tuple[int, Awaited]]:
        """Block and request, of those that were added since it was asked last."""
        new, self._new = self._new, []
        return new

    def state(self) -> list[Any]:
        """As JSON, for `restore`; what `take_new` would give is not in it."""
        return [self.number, self.passed_over, self._requests, self._opened, self._step]

    @classmethod
    def restore(cls, state: Sequence[Any], pending: int) -> Awaiting:
        restored = cls(*state)
        restored.pending = pending
        return restored


class EvidenceSource(ShadowSource, Protocol):
    """Where everything comes from that speaks for or against a candidate. Every method raises `BlockError`."""

    def keep_labels(self, labels: Sequence[Label]) -> Kept:
        """Take labels, in any order and any number of times."""
        ...

    def labelled(self, rollout: str, after: int = 0) -> tuple[LabelBlock, ...]:
        """Blocks of `rollout` with an id above `after` that wait for no more labels; asking again gives the same."""
        ...


def answered(record: Record) -> bool:
    """Whether there is anything to be right or wrong."""
    return record.decided is not None and not (record.error or record.refused or record.abandoned)


def awaited(record: Record) -> Awaited:
    known = None if record.sampled else record.prediction
    return Awaited(record.request_id, record.arm, record.assigned, known)


def complete(answer: Awaited, labels: Sequence[Label]) -> bool:
    """Whether nothing more is to come. How many rows there are is not always known; then one label is enough."""
    return len({label.row for label in labels}) >= len(answer.prediction or (None,))


def mean_loss(answer: Awaited, labels: Iterable[Label], scale: float | None) -> float | None:
    """Of the rows that are labelled; None where none is, or what was predicted for them is not known."""
    found = [loss for label in labels if (loss := _loss(answer.prediction, label, scale)) is not None]
    return sum(found) / len(found) if found else None


def _loss(prediction: Prediction | None, label: Label, scale: float | None) -> float | None:
    if label.loss is not None:
        return label.loss
    if label.value is None or prediction is None or label.row >= len(prediction):
        return None
    said = prediction[label.row]
    if scale is not None and isinstance(said, int | float) and isinstance(label.value, int | float):
        return min(1.0, abs(said - label.value) / scale)
    return float(not _same(said, label.value))


def _same(said: Value | None, label: Value) -> bool:
    """Numbers by value, anything else by its words."""
    if isinstance(said, int | float) and isinstance(label, int | float):
        return said == label or (said != int(said) and isclose(said, label, rel_tol=_DIGITS))
    return str(said)[:_CHARACTERS] == str(label)[:_CHARACTERS]


def told(
    number: int, rollout: str, answers: Sequence[Awaited], labels: Mapping[str, Sequence[Label]], scale: float | None
) -> LabelBlock:
    """The block, once nothing more is waited for; `labels` by request."""
    arms = {arm: [answer for answer in answers if answer.arm is arm] for arm in Arm}
    losses = {arm: [mean_loss(one, labels.get(one.request_id, ()), scale) for one in arms[arm]] for arm in Arm}
    known = {arm: [loss for loss in losses[arm] if loss is not None] for arm in Arm}
    stable, candidate = (
        Labelled(len(arms[arm]), len(known[arm]), sum(known[arm])) for arm in (Arm.STABLE, Arm.CANDIDATE)
    )
    return LabelBlock(number, rollout, stable, candidate)
