"""Rows that the model is known to meet, such as those of the data set that its run logged."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from serving.compiling.rows import rows_of, take
from serving.runtime.exchange import BadRequestError, Rows
from serving.runtime.parsing import Parser
from serving.runtime.plan import Plan


def read_rows(file: Path, plan: Plan) -> Rows | None:
    """Those of the lines of JSON that the server would let through to the model; None where there are none."""
    if not plan.columns:
        return None
    try:
        frame = pd.read_json(file, lines=True, convert_dates=False, dtype=False)
    except ValueError:
        return None
    frame = frame.dropna(subset=[c.name for c in plan.columns if not c.nulls and c.name in frame])
    parser = Parser(plan)
    rows = rows_of(frame, plan)
    kept = [position for position in range(rows.count) if _passes(parser, take(rows, [position]))] if rows else []
    return take(rows, kept) if rows and kept else None


def _passes(parser: Parser, row: Rows) -> bool:
    try:
        parser.of_arrays(row.columns)
    except BadRequestError:
        return False
    return True
