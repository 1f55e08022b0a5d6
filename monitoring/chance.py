"""How far apart two samples lie when nothing changed: distances between random splits of the shuffled rows.

Rows are shuffled whole, so that a split means the same rows in every column and dependence between columns
is kept. The distances are Evidently's own (Wasserstein in standard deviations of the reference,
Jensen-Shannon), worked out for all splits at once: asking Evidently for each would take minutes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial.distance import jensenshannon

from monitoring.comparable import Kind, Pair

SPLITS = 199
"""Random splits of a check: at 1 % of false alarms, the second furthest sets the bound."""
PARTS = 4
"""Splits are worked out in so many parts, which bounds the memory."""
SMALLEST_SPREAD = 0.001
"""Evidently divides by no standard deviation smaller than this."""

Labels = npt.NDArray[np.bool_]
"""One row per split, one column per row of the data; True where it falls to the reference."""
Numbers = npt.NDArray[np.float64]


def by_chance(pairs: Sequence[Pair], seed: int = 0, splits: int = SPLITS) -> dict[str, list[float]]:
    """Every pair's distance, by its name, in the same `splits` random splits."""
    if not pairs:
        return {}
    first = pairs[0]
    own = np.repeat([True, False], [len(first.reference), len(first.current)])
    labels = np.random.default_rng(seed).permuted(np.tile(own, (splits, 1)), axis=1)
    parts = np.array_split(labels, PARTS)
    return {pair.name: [d for part in parts for d in distances(pair, part).tolist()] for pair in pairs}


def distances(pair: Pair, labels: Labels) -> Numbers:
    """The pair's distance in each of the splits that `labels` describes."""
    values = pd.concat([pair.reference, pair.current], ignore_index=True)
    there = values.notna().to_numpy()
    labels = labels[:, there]
    if pair.kind is Kind.NUMBER:
        return _wasserstein(values[there].to_numpy(dtype=np.float64), labels)
    return _jensenshannon(pd.factorize(values[there])[0], labels)


def _wasserstein(values: Numbers, labels: Labels) -> Numbers:
    order = np.argsort(values, kind="stable")
    values, labels = values[order] - values.mean(), labels[:, order]
    rows = labels.sum(axis=1, keepdims=True)
    below = labels.cumsum(axis=1, dtype=np.int32)[:, :-1]
    others = np.arange(1, len(values), dtype=np.int32) - below
    gap = np.abs(below / rows - others / (len(values) - rows))
    distance: Numbers = gap @ np.diff(values) / _spread(values, labels, rows[:, 0])
    return distance


def _spread(values: Numbers, labels: Labels, rows: npt.NDArray[np.int_]) -> Numbers:
    mean, square = labels @ values / rows, labels @ values**2 / rows
    return np.maximum(np.sqrt(np.maximum(square - mean**2, 0.0)), SMALLEST_SPREAD)


def _jensenshannon(codes: npt.NDArray[np.intp], labels: Labels) -> Numbers:
    own = np.stack([labels[:, codes == code].sum(axis=1) for code in range(codes.max() + 1)])
    others = np.bincount(codes)[:, None] - own
    distance: Numbers = np.asarray(jensenshannon(own, others, axis=0))
    return np.nan_to_num(distance)
