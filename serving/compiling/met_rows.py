"""Rows that the model is known to meet, such as those of the data set that its run logged.

They come in the form of a request, and the server's own parser reads them: what it would refuse is no part of a proof.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.compiling.rows import joined
from serving.runtime.exchange import Rows, ServingError
from serving.runtime.parsing import Parser
from serving.runtime.plan import Plan

_SOME = 100
"""So many rows may stand for a missing input example."""

_LONGEST = 200
"""Characters of what is wrong with a row, or with all of them."""

_GOT = re.compile(r", got .*", re.DOTALL)
"""Values of the data set are not for everybody who may see its proof."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """The rows that fit a plan."""

    rows: Rows | None
    told: str
    """What came of the data set, in one line."""


@dataclass(frozen=True, slots=True)
class Met:
    """Rows as they were handed over."""

    told: str = ""
    """Which data set they are of, or why there are none."""
    columns: tuple[str, ...] = ()
    rows: tuple[Any, ...] = ()

    def fitting(self, plan: Plan) -> Fitting:
        """Those that the server would let through to the model."""
        if not self.columns:
            return Fitting(None, self.told and f"no data set: {self.told}")
        if not plan.columns:
            return Fitting(None, f"{self.told}, is not used: the model's inputs are tensors")
        if missing := [column.name for column in plan.columns if column.name not in self.columns]:
            return Fitting(None, f"{self.told}, is not used: it has no column {', '.join(missing)}"[:_LONGEST])
        parts, problems = _read(Parser(plan), self.columns, self.rows)
        wrong = problems[0][:_LONGEST] if problems else "it has no rows"
        if not parts:
            return Fitting(None, f"{self.told}, is not used: {wrong}")
        rows = joined(parts)
        apart = f"; not fitting: {len(problems)}, the first by {wrong}" if problems else ""
        return Fitting(rows, f"{rows.count} rows of {self.told}{apart}")

    def some(self, plan: Plan) -> Rows | None:
        """A few of those, from all over."""
        step = len(self.rows) // _SOME + 1
        return Met(self.told, self.columns, self.rows[::step]).fitting(plan).rows


def read_met(file: Path) -> Met:
    """A file with what is told, columns and rows; without a column where there are no rows to be had."""
    found = json.loads(file.read_text())
    return Met(found["told"], tuple(found["columns"]), tuple(found["rows"]))


def _read(parser: Parser, columns: Sequence[str], rows: Sequence[Any]) -> tuple[list[Rows], list[str]]:
    """What fits, and what is wrong with each row that does not."""
    found = list(_halved(parser, columns, rows)) if rows else []
    return [one for one in found if isinstance(one, Rows)], [one for one in found if isinstance(one, str)]


def _halved(parser: Parser, columns: Sequence[str], rows: Sequence[Any]) -> Iterator[Rows | str]:
    body = json.dumps({"dataframe_split": {"columns": columns, "data": rows}}).encode()
    try:
        found = parser.parse(body, "application/json")
        assert isinstance(found, Rows)
        yield found
    except ServingError as error:
        if len(rows) == 1:
            yield _GOT.sub("", str(error).replace(", row 0", ""))
            return
        half = len(rows) // 2
        yield from _halved(parser, columns, rows[:half])
        yield from _halved(parser, columns, rows[half:])
