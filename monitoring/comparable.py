"""Two tables as pairs of columns that can be compared, and the columns that cannot.

What a column is follows from its values in both tables, never from one alone: numbers on one side and words
on the other is itself a change, and has to be seen rather than refused. Missing values are compared as a
column of their own, since a distance between values would not notice that half of them are gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pandas as pd

from monitoring.drift import Aspect, DriftPolicy, Role
from monitoring.drift_report import INPUT, OUTPUT

FEW_NUMBERS = 5
"""Numbers with at most so many different values are categories, as Evidently has it."""
FEW_VALUES = 30
"""Values are compared only where both tables have at least so many that are not missing."""
NUMBERS = frozenset({"boolean", "integer", "floating", "mixed-integer-float", "decimal"})
WORDS = frozenset({"string", "mixed-integer"})
NOTHING = "empty"


class Kind(StrEnum):
    """How the values of a column are compared."""

    NUMBER = "number"
    """By how far they lie apart."""
    CATEGORY = "category"
    """By how often each occurs; held as words."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One column of both tables. Missing values are NaN; all pairs of two tables have the same lengths."""

    column: str
    role: Role
    aspect: Aspect
    kind: Kind
    reference: pd.Series
    current: pd.Series

    @property
    def name(self) -> str:
        """The column's name, and what of it was compared where that is not its values."""
        return self.column if self.aspect is Aspect.VALUES else f"{self.column} ({self.aspect})"


def pair_up(reference: pd.DataFrame, current: pd.DataFrame, policy: DriftPolicy) -> tuple[list[Pair], dict[str, str]]:
    """The comparable columns, predictions first, and why each of the others was left out."""
    reference, current = _thinned(reference, policy.most_rows), _thinned(current, policy.most_rows)
    found: list[Pair] = []
    left_out: dict[str, str] = {}
    for column, role in _columns(reference, current).items():
        reason = _absent(column, reference, current, policy)
        if reason is None:
            pairs, reason = _pairs(column, role, reference[column], current[column])
            found.extend(pairs)
        if reason is not None:
            left_out[column] = reason
    return found, left_out


def _thinned(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    if len(rows) > most:
        rows = rows.iloc[np.linspace(0, len(rows) - 1, most).astype(int)]
    return rows.reset_index(drop=True)


def _columns(*tables: pd.DataFrame) -> dict[str, Role]:
    names = dict.fromkeys(str(name) for table in tables for name in table.columns)
    roles = {OUTPUT: Role.PREDICTION, INPUT: Role.INPUT}
    return {name: role for prefix, role in roles.items() for name in names if name.startswith(prefix)}


def _absent(column: str, reference: pd.DataFrame, current: pd.DataFrame, policy: DriftPolicy) -> str | None:
    if column.partition(".")[2] in policy.ignore:
        return "ignored by the policy"
    if column not in reference:
        return "not in the reference"
    return None if column in current else "not in the current rows"


def _pairs(column: str, role: Role, reference: pd.Series, current: pd.Series) -> tuple[list[Pair], str | None]:
    kinds = {_kind_of(reference), _kind_of(current)}
    reason = _incomparable(kinds)
    if reason is not None:
        return [], reason
    if kinds <= NUMBERS | {NOTHING}:
        reference, current = _numbers(reference), _numbers(current)
    pairs = list(_missing(column, role, reference, current))
    reason = _too_few_or_too_many(reference, current)
    if reason is not None:
        return pairs, None if pairs and reason.startswith("too few") else reason
    kind = _kind(kinds, reference, current)
    if kind is Kind.CATEGORY:
        reference, current = _words(reference), _words(current)
    return [Pair(column, role, Aspect.VALUES, kind, reference, current), *pairs], None


def _kind_of(values: pd.Series) -> str:
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object)
    kind = str(pd.api.types.infer_dtype(values, skipna=True))
    if kind == "floating" and values.isna().all():
        return NOTHING
    return kind


def _incomparable(kinds: set[str]) -> str | None:
    strange = kinds - NUMBERS - WORDS - {NOTHING}
    if strange:
        return f"neither numbers nor categories ({', '.join(sorted(strange))})"
    return "all values are missing in both" if kinds == {NOTHING} else None


def _numbers(values: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(values.astype(object), errors="coerce").astype("float64")
    return numbers.where(np.isfinite(numbers))


def _words(values: pd.Series) -> pd.Series:
    """Each value as text, 1 and 1.0 alike, so that a table read from a file equals one read from JSON."""
    return values.astype(object).map(_word, na_action="ignore")


def _word(value: object) -> str:
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return f"{float(value):.15g}"
    return str(value)


def _missing(column: str, role: Role, reference: pd.Series, current: pd.Series) -> Iterator[Pair]:
    if reference.isna().any() or current.isna().any():
        gone = [values.isna().map({True: "missing", False: "there"}) for values in (reference, current)]
        yield Pair(column, role, Aspect.MISSING, Kind.CATEGORY, *gone)


def _too_few_or_too_many(reference: pd.Series, current: pd.Series) -> str | None:
    there = reference.notna().sum()
    if min(there, current.notna().sum()) < FEW_VALUES:
        return f"too few values are there (fewer than {FEW_VALUES})"
    words = not pd.api.types.is_numeric_dtype(reference.dtype)
    if words and reference.nunique() > there / 2:
        return "almost every value is different: text or an identifier"
    return None


def _kind(kinds: set[str], reference: pd.Series, current: pd.Series) -> Kind:
    if not kinds <= NUMBERS:
        return Kind.CATEGORY
    return Kind.NUMBER if pd.concat([reference, current]).nunique() > FEW_NUMBERS else Kind.CATEGORY


def least(column: str, policy: DriftPolicy) -> float:
    """The least distance of `column` that matters."""
    overrides: Mapping[str, float] = policy.distances
    return overrides.get(column.partition(".")[2], policy.distance)
