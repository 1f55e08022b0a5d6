"""When a drift check is due, what it concludes from distances between two data sets, and what that means.

Pure. Two samples of the same customers always lie some distance apart, and the further the fewer rows they
have, so a fixed threshold cries wolf on small windows. Here a column has drifted when its distance is both
large enough to matter (`DriftPolicy.distance`) and larger than chance: the rows of both samples are shuffled
together and split again many times, and `calibrate` takes from these splits how far apart the furthest of
all columns lies by chance. Calibrating the furthest column bounds the false alarms of the whole check, not
of each column. The price is that slight drift is found only with more rows, and that the bound holds for
rows that are independent of each other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from statistics import fmean, pstdev


class Action(StrEnum):
    """What follows from drift."""

    ALERT = "alert"
    """Say so, and leave the traffic alone."""
    ROLLBACK = "rollback"
    """Say so, and go back to the previous version where the diagnosis says that it helps."""


@dataclass(frozen=True, slots=True)
class DriftPolicy:
    """How one model is watched for drift."""

    schedule: str | float = 86400.0
    """When a check is due: a cron expression of five fields, or the seconds from one check to the next."""
    timezone: str = "UTC"
    """Time zone of a cron expression, for example ``Europe/Berlin``."""
    jitter_seconds: float = 600.0
    """A check starts up to this much later, always equally much for one model, so that models take turns."""
    window_seconds: float = 86400.0
    """Current rows are those served in this much time before the check."""
    window_rows: int | None = None
    """Take the newest so many rows instead, however old they are."""
    minimum_rows: int = 500
    """With fewer rows in either data set nothing is concluded: 'not enough data'."""
    reference_rows: int = 2000
    """How many of the first rows served at 100 % are the reference where the run has no data set of its own."""
    most_rows: int = 10000
    """Larger data sets are thinned evenly to this many rows before they are compared."""
    distance: float = 0.1
    """Least distance that matters: Wasserstein in standard deviations (numbers), Jensen-Shannon (categories)."""
    distances: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Least distance that matters for single columns, by the column's name."""
    ignore: tuple[str, ...] = ()
    """Columns that are not compared, by name: timestamps, identifiers and whatever else has to change."""
    share: float = 0.1
    """Share of the compared input columns that has to drift before drift of inputs alone is reported as drift."""
    false_alarms: float = 0.01
    """Most chance that a check finds drift in any column though nothing changed."""
    action: Action = Action.ALERT
    """What follows from drift."""

    def __post_init__(self) -> None:
        for name in ("jitter_seconds", "share"):
            _require(getattr(self, name) >= 0, name, "must not be negative")
        for name in ("window_seconds", "minimum_rows", "distance"):
            _require(getattr(self, name) > 0, name, "must be positive")
        _require(0.005 <= self.false_alarms < 1, "false_alarms", "must be at least 0.005 and below 1")
        _require(self.most_rows >= self.minimum_rows, "most_rows", "must not be less than minimum_rows")
        _require(self.reference_rows >= self.minimum_rows, "reference_rows", "must not be less than minimum_rows")
        if isinstance(self.schedule, str):
            _require(len(self.schedule.split()) == 5, "schedule", "must be a cron expression of five fields or seconds")
        else:
            _require(self.schedule > 0, "schedule", "must be a cron expression of five fields or positive seconds")


def _require(holds: bool, setting: str, rule: str) -> None:
    if not holds:
        raise ValueError(f"{setting} {rule}")


class Role(StrEnum):
    """What a column is to the model."""

    INPUT = "input"
    """The model reads it."""
    PREDICTION = "prediction"
    """The model answers it."""


class Aspect(StrEnum):
    """What of a column was compared."""

    VALUES = "values"
    """Its values, without the missing ones."""
    MISSING = "missing"
    """How often it is missing."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far apart reference and current lie in one column, and how far would be drift."""

    column: str
    role: Role
    aspect: Aspect
    measure: str
    """Evidently's name of the distance: ``wasserstein`` or ``jensenshannon``."""
    distance: float
    chance: float
    """How far apart the column may lie by chance, at the policy's rate of false alarms."""
    least: float
    """The least distance that matters."""

    @property
    def threshold(self) -> float:
        return max(self.chance, self.least)

    @property
    def drifted(self) -> bool:
        return self.distance >= self.threshold

    @property
    def moved(self) -> bool:
        """Further apart than chance, whether or not it matters."""
        return self.distance > self.chance


class DriftState(StrEnum):
    """What a check concluded."""

    NOT_ENOUGH_DATA = "not enough data"
    """Too few rows to tell; says nothing about drift."""
    STABLE = "stable"
    """Compared, and nothing that matters changed."""
    DRIFTED = "drifted"
    """Predictions changed, or the policy's share of the inputs."""
    ERROR = "error"
    """The check could not be carried out."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The two data sets of a check, in numbers."""

    at: datetime
    reference: str
    """Where the reference comes from, for people."""
    reference_rows: int
    current_rows: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What a drift check concluded, with its diagnosis."""

    state: DriftState
    samples: Samples
    diagnosis: str
    comparisons: tuple[Comparison, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Columns that could not be compared, and why."""
    rollback_helps: bool = False
    """The diagnosis is one that going back to the previous version can cure."""

    @property
    def drifted(self) -> tuple[str, ...]:
        """Columns that drifted, predictions first, furthest first."""
        found = [c for c in self.comparisons if c.drifted]
        return _columns(sorted(found, key=lambda c: (c.role is Role.INPUT, -c.distance / c.threshold)))


def _columns(comparisons: Iterable[Comparison]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c.column for c in comparisons))


def calibrate(splits: Mapping[str, Sequence[float]], false_alarms: float) -> dict[str, float]:
    """How far apart each column may lie by chance.

    `splits` holds every column's distance in the same random splits of the shuffled rows. The furthest column
    of a split, in standard deviations above its own mean, sets the bound of all (Westfall and Young's max-T),
    so that columns may depend on each other and the check as a whole keeps to `false_alarms`.
    """
    if not splits:
        return {}
    centre = {column: (fmean(draws), pstdev(draws)) for column, draws in splits.items()}
    standard = [[_standard(draw, *centre[column]) for draw in draws] for column, draws in splits.items()]
    furthest = sorted((max(split) for split in zip(*standard, strict=True)), reverse=True)
    reach = furthest[max(int(false_alarms * (len(furthest) + 1)), 1) - 1]
    return {column: mean + reach * spread for column, (mean, spread) in centre.items()}


def _standard(draw: float, mean: float, spread: float) -> float:
    return (draw - mean) / spread if spread > 0 else 0.0


def too_few(policy: DriftPolicy, samples: Samples) -> Finding | None:
    """'Not enough data', where that is so: fewer rows than the minimum are never called stable."""
    rows = {"reference": samples.reference_rows, "current": samples.current_rows}
    short = [f"{count} {name} rows" for name, count in rows.items() if count < policy.minimum_rows]
    if not short:
        return None
    diagnosis = f"Only {' and '.join(short)}; at least {policy.minimum_rows} are needed to tell."
    return Finding(DriftState.NOT_ENOUGH_DATA, samples, diagnosis)


def failed(samples: Samples, reason: str) -> Finding:
    """The finding of a check that could not be carried out."""
    return Finding(DriftState.ERROR, samples, f"The check could not be carried out: {reason}")


def conclude(
    policy: DriftPolicy,
    samples: Samples,
    comparisons: Sequence[Comparison],
    left_out: Mapping[str, str] | None = None,
) -> Finding:
    """What follows from the comparisons. Any drifted prediction column is drift; inputs count by their share."""
    few = too_few(policy, samples)
    if few:
        return few
    if not comparisons:
        return failed(samples, f"reference ({samples.reference}) and current rows share no column to compare")
    seen = _Seen.of(comparisons)
    drifted = bool(seen.predictions) or bool(seen.inputs and seen.share >= policy.share)
    state = DriftState.DRIFTED if drifted else DriftState.STABLE
    diagnosis, helps = _diagnose(seen, drifted, tuple(left_out or ()))
    return Finding(state, samples, diagnosis, tuple(comparisons), dict(left_out or {}), helps)


@dataclass(frozen=True, slots=True)
class _Seen:
    predictions: tuple[str, ...]
    inputs: tuple[str, ...]
    moved_inputs: tuple[str, ...]
    compared_predictions: int
    compared_inputs: int

    @classmethod
    def of(cls, comparisons: Sequence[Comparison]) -> _Seen:
        predictions = [c for c in comparisons if c.role is Role.PREDICTION]
        inputs = [c for c in comparisons if c.role is Role.INPUT]
        return cls(
            _columns(c for c in predictions if c.drifted),
            _columns(c for c in inputs if c.drifted),
            _columns(c for c in inputs if c.moved),
            len(_columns(predictions)),
            len(_columns(inputs)),
        )

    @property
    def share(self) -> float:
        return len(self.inputs) / self.compared_inputs if self.compared_inputs else 0.0

    @property
    def changed_inputs(self) -> str:
        return f"{len(self.inputs)} of {self.compared_inputs} inputs changed ({_some(self.inputs)})"


def _diagnose(seen: _Seen, drifted: bool, left_out: tuple[str, ...]) -> tuple[str, bool]:
    """The sentence for people, and whether going back to the previous version can help."""
    if not drifted:
        return _stable(seen), False
    if not seen.predictions:
        return _inputs_only(seen), False
    predictions = f"Predictions changed ({_some(seen.predictions)})"
    if not seen.compared_inputs:
        return f"{predictions}; no input could be compared, so it cannot be told why.", False
    if seen.moved_inputs:
        return f"{predictions}{_with_inputs(seen)}", False
    unseen = f" Not compared: {_some(left_out)}." if left_out else ""
    return (
        f"{predictions} while none of {seen.compared_inputs} inputs did: the model or the encoding of its inputs "
        f"changed since the reference. Going back to the previous version may help.{unseen}",
        True,
    )


def _with_inputs(seen: _Seen) -> str:
    if seen.inputs:
        return (
            f", and {seen.changed_inputs}: the customers changed, or the way these inputs are made. "
            "The previous version would meet the same inputs, so going back is not expected to help."
        )
    return (
        f", and inputs moved a little ({_some(seen.moved_inputs)}), which may explain it. "
        "Whether going back would help cannot be told."
    )


def _stable(seen: _Seen) -> str:
    if not seen.compared_predictions:
        return f"Predictions were not compared; {seen.changed_inputs if seen.inputs else 'no input changed'}."
    if not seen.inputs:
        return "Neither predictions nor inputs changed."
    return f"Predictions did not change; {seen.changed_inputs}."


def _inputs_only(seen: _Seen) -> str:
    kept = "predictions did not" if seen.compared_predictions else "predictions were not compared"
    advice = "Labels would tell whether the predictions are still right; going back is not expected to help."
    return f"{seen.changed_inputs[0].upper()}{seen.changed_inputs[1:]}, {kept}: the customers changed. {advice}"


def _some(columns: Sequence[str], most: int = 5) -> str:
    rest = len(columns) - most
    return ", ".join(columns[:most]) + (f" and {rest} more" if rest > 0 else "")


NextCron = Callable[[str, str, datetime], datetime | None]
"""First time strictly after a moment that a cron expression names in a time zone; None where there is none."""


def next_run(policy: DriftPolicy, last: datetime | None, now: datetime, seed: str, cron: NextCron) -> datetime | None:
    """When the next check is due; `now` where one was missed, however many were.

    Checks lie on a grid that neither restarts nor late checks move. `seed` (the model's name) places the model
    within the jitter. A model that was never checked waits for its first place on the grid.
    """
    offset = timedelta(seconds=_fraction(seed) * policy.jitter_seconds)
    place = _after(policy, (now if last is None else last) - offset, cron)
    if place is None:
        return None
    return place + offset if last is None else max(place + offset, now)


def _after(policy: DriftPolicy, moment: datetime, cron: NextCron) -> datetime | None:
    if isinstance(policy.schedule, str):
        return cron(policy.schedule, policy.timezone, moment)
    number = math.floor(moment.timestamp() / policy.schedule) + 1
    return datetime.fromtimestamp(number * policy.schedule, UTC)


def _fraction(seed: str) -> float:
    """A number in [0, 1) that is always the same for the same seed."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]) / 2**64
