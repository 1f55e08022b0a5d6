"""What a model refuses, and whether its rows may be predicted together: found by trying, before anybody depends on it.

Predicting rows together is allowed only where rows that differ were answered alike alone, together, in another order
and in other company. Where there is no time to find out, the plan stays as it is: no limits, no batching.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from serving.compiling.comparing import difference
from serving.compiling.drawing import Drawing
from serving.compiling.hints import Hints
from serving.compiling.limits import limited, limited_tensors
from serving.compiling.rows import Native, joined, take
from serving.compiling.trying import TimeIsUpError, Trial, singles
from serving.runtime.exchange import Predictions, Rows
from serving.runtime.plan import Plan

SECONDS = 10.0
"""So long this process works at most at probing a model, and one prediction longer."""

_ROWS = 12
"""So many rows are predicted together and apart."""
_EVIDENCE = 6
"""On fewer rows nothing is believed of somebody's own class."""
_TOLERANCE = 1e-6
"""Libraries add up in another order for other numbers of rows."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What came of it."""

    plan: Plan
    base: Rows | None
    """Rows that the model predicts; None where none were found."""
    doubt: str = ""
    """What could not be found out, in a few words."""


def probe(native: Native, plan: Plan, example: Rows | None, hints: Hints, seconds: float = SECONDS) -> Probed:
    """Try the model for at most `seconds` of work."""
    trial = Trial(native, seconds)
    base = _predicted(trial, example, Drawing(plan, example, hints).ordinary(_ROWS))
    if base is None:
        return Probed(plan, None, "no rows that it predicts were found")
    columns, whole = limited(trial, plan.columns, base, hints)
    tensors = limited_tensors(trial, plan.tensors, base)
    batching = _batching(trial, plan, base)
    doubt = "" if whole else f"it was too slow to be probed in {seconds:.0f} s"
    return Probed(replace(plan, columns=columns, tensors=tensors, batching=batching), base, doubt)


def _predicted(trial: Trial, example: Rows | None, drawn: Rows) -> Rows | None:
    """Rows of the example, and drawn ones, that the model predicts one by one."""
    parts = [drawn]
    if example is not None and example.columns.keys() == drawn.columns.keys():
        parts.insert(0, take(example, slice(0, _ROWS // 2)))
    found = []
    try:
        for part in parts:
            found += [row for row in singles(part) if trial.takes(row)]
    except TimeIsUpError:
        pass
    return joined(found) if found else None


def _batching(trial: Trial, plan: Plan, base: Rows) -> bool:
    """Whether the answers do not depend on which rows are predicted together."""
    own = plan.flavor == "python_function"
    if any(tensor.shape[0] != -1 for tensor in plan.tensors) or base.count < (_EVIDENCE if own else 2):
        return False
    rows = take(base, slice(0, _ROWS))
    try:
        alone = _alone(trial, rows)
        if alone is None or (own and not _varied(alone)):
            return False
        return all(_same(trial, rows, alone, order) for order in _orders(rows.count))
    except TimeIsUpError:
        return False


def _alone(trial: Trial, rows: Rows) -> Predictions | None:
    """Answers to one row each as one answer."""
    answers = [answer for row in singles(rows) if (answer := trial.answer(row))]
    if len(answers) < rows.count or len({tuple(answer.columns) for answer in answers}) > 1:
        return None
    columns = {name: [answer.columns[name] for answer in answers] for name in answers[0].columns}
    if any(len({(part.dtype, part.shape) for part in parts}) > 1 for parts in columns.values()):
        return None
    return Predictions({name: np.concatenate(parts) for name, parts in columns.items()}, rows.count, answers[0].frame)


def _same(trial: Trial, rows: Rows, alone: Predictions, order: Sequence[int]) -> bool:
    picked = {name: values[order] for name, values in alone.columns.items()}
    answer = trial.answer(take(rows, order))
    return answer is not None and difference(Predictions(picked, len(order), alone.frame), answer, _TOLERANCE) is None


def _orders(count: int) -> Iterator[list[int]]:
    everything = list(range(count))
    yield everything
    yield everything[::-1]
    yield everything[1::2] + everything[:1]
    yield [everything[-1]] * 3 + everything[:2]


def _varied(answer: Predictions) -> bool:
    """Whether rows were answered differently: else it shows nothing that they were answered alike in any order."""
    return any(len({str(value) for value in values}) > 1 for values in answer.columns.values())
