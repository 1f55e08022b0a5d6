"""What becomes of the columns of a scikit-learn pipeline on their way to its last step.

Only what can be followed is: columns that are passed on, scaled or filled. It tells which categories encoders know, in
which raw values the trees' thresholds lie, and where a column's data lay in training: what probing and proof try.
Nothing rests on it being complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import preprocessing
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import (
    Binarizer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    RobustScaler,
    StandardScaler,
)

from serving.compiling import sklearn_trees
from serving.compiling.conversion import NotConvertible
from serving.compiling.hints import Hints
from serving.compiling.tree_arrays import thresholds

_ENCODERS = tuple(
    getattr(preprocessing, name)
    for name in ("OneHotEncoder", "OrdinalEncoder", "TargetEncoder")
    if hasattr(preprocessing, name)
)


@dataclass(frozen=True, slots=True)
class Trace:
    """A feature that is one raw column: raw = feature * scale + offset."""

    name: str
    scale: float = 1.0
    offset: float = 0.0


Traces = Sequence[Trace | None]


def hints_of(model: Any, columns: Sequence[str]) -> Hints:
    """Follow `columns` through a fitted estimator."""
    found = Hints()
    _follow(model, [Trace(name) for name in columns], found)
    return found


def _follow(step: Any, traces: Traces, found: Hints) -> Traces:
    """Note what `step` does with its features; the features that it gives, none where that is not known."""
    if step is None or step == "passthrough":
        return traces
    for kinds, follow in _STEPS:
        if isinstance(step, kinds):
            return follow(step, traces, found)
    found.opaque.update(trace.name for trace in traces if trace)
    for part in _members(step):
        _follow(part, traces, found)
    return []


def _members(step: Any) -> Iterator[Any]:
    """The estimators of which another one is made, which all see what it sees."""
    members = [getattr(step, "best_estimator_", None), *_listed(getattr(step, "estimators_", []))]
    members += [getattr(part, "estimator", None) for part in getattr(step, "calibrated_classifiers_", [])]
    yield from (part for part in members if hasattr(part, "n_features_in_"))


def _listed(held: Any) -> list[Any]:
    """An array of estimators in one row. (Some of them can be indexed, which NumPy must not do.)"""
    return held.ravel().tolist() if isinstance(held, np.ndarray) else list(held)


def _pipeline(step: Pipeline, traces: Traces, found: Hints) -> Traces:
    for _, part in step.steps:
        traces = _follow(part, traces, found)
    return traces


def _columns(step: ColumnTransformer, traces: Traces, found: Hints) -> Traces:
    names = [trace.name if trace else "" for trace in traces]
    width = max((part.stop for part in step.output_indices_.values()), default=0)
    results: list[Trace | None] = [None] * width
    for name, part, chosen in step.transformers_:
        if part == "drop":
            continue
        inputs = [traces[position] for position in _positions(chosen, names)]
        outputs, place = _follow(part, inputs, found), step.output_indices_[name]
        if len(outputs) == place.stop - place.start:
            results[place] = outputs
    return results


def _positions(chosen: Any, names: list[str]) -> list[int]:
    """Of a column transformer's choice among its inputs."""
    if callable(chosen) or isinstance(chosen, slice):
        return list(range(len(names)))[chosen] if isinstance(chosen, slice) else []
    listed = list(np.atleast_1d(np.asarray(chosen, dtype=object)))
    if listed and all(isinstance(part, bool | np.bool_) for part in listed):
        return [position for position, wanted in enumerate(listed) if wanted]
    return [names.index(part) if isinstance(part, str) else int(part) for part in listed]


def _union(step: FeatureUnion, traces: Traces, found: Hints) -> Traces:
    for _, part in step.transformer_list:
        _follow(part, traces, found)
    return []


def _filled(step: SimpleImputer, traces: Traces, _: Hints) -> Traces:
    kept = not step.add_indicator and len(step.statistics_) == len(traces)
    return traces if kept else []


def _scaled(step: Any, traces: Traces, found: Hints) -> Traces:
    scales, offsets = _affine(step, len(traces))
    results = []
    for trace, scale, offset in zip(traces, scales, offsets, strict=True):
        results.append(trace and Trace(trace.name, trace.scale * scale, trace.scale * offset + trace.offset))
        if trace:
            found.spread.setdefault(trace.name, (trace.scale * offset + trace.offset, abs(trace.scale * scale)))
    return results


def _affine(step: Any, width: int) -> tuple[Any, Any]:
    """Scale and offset that undo a scaler."""
    ones, zeros = np.ones(width), np.zeros(width)
    if isinstance(step, MinMaxScaler):
        return 1.0 / step.scale_, -step.min_ / step.scale_
    scale = getattr(step, "scale_", None)
    offset = getattr(step, "mean_", getattr(step, "center_", None))
    centred = offset is not None and getattr(step, "with_mean", True)
    return ones if scale is None else scale, offset if centred else zeros


def _encoded(step: Any, traces: Traces, found: Hints) -> Traces:
    for trace, known in zip(traces, step.categories_, strict=False):
        if trace:
            values = _values(known)
            before = found.categories.get(trace.name)
            found.categories[trace.name] = tuple(part for part in values if before is None or part in before)
    return []


def _values(known: Any) -> tuple[Any, ...]:
    """Categories without what stands for a missing value."""
    return tuple(part for part in np.asarray(known).tolist() if part is not None and part == part)


def _binned(step: KBinsDiscretizer, traces: Traces, found: Hints) -> Traces:
    for trace, bins in zip(traces, step.bin_edges_, strict=False):
        _note(found, trace, bins)
    return []


def _binarized(step: Binarizer, traces: Traces, found: Hints) -> Traces:
    for trace in traces:
        _note(found, trace, [step.threshold])
    return []


def _branched(step: Any, traces: Traces, found: Hints) -> Traces:
    try:
        by_feature = thresholds(sklearn_trees.trees_of(step))
    except NotConvertible:
        return []
    for feature, values in by_feature.items():
        if feature < len(traces):
            _note(found, traces[feature], values)
    return []


def _note(found: Hints, trace: Trace | None, values: Any) -> None:
    if trace:
        raw = np.asarray(values, dtype=float) * trace.scale + trace.offset
        found.edges.setdefault(trace.name, []).extend(raw[np.isfinite(raw)].tolist())


_STEPS: tuple[tuple[Any, Callable[[Any, Traces, Hints], Traces]], ...] = (
    (Pipeline, _pipeline),
    (ColumnTransformer, _columns),
    (FeatureUnion, _union),
    (SimpleImputer, _filled),
    ((StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler), _scaled),
    (_ENCODERS, _encoded),
    (KBinsDiscretizer, _binned),
    (Binarizer, _binarized),
    (sklearn_trees.ALL, _branched),
)
