"""Parity of a compiled model with the native one, on rows drawn to find a difference.

Both are asked what the server would ask them, in batches and row by row. Everything must be the same: type, shape and
order of the answers, labels exactly, scores within the conversion's tolerance; and where the native model refuses a row
that the plan lets through, the compiled one must refuse it too. One difference is enough against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from serving.compiling.comparing import difference, distance
from serving.compiling.conversion import Edge, NotProved
from serving.compiling.drawing import Drawing
from serving.compiling.rows import Native, take
from serving.compiling.trying import TimeIsUpError, Trial, singles
from serving.runtime.batching import finite
from serving.runtime.compiled import CompiledModel
from serving.runtime.exchange import ModelError, Predictions, Rows

SECONDS = 10.0
"""So long this process works at most at a proof, and one prediction longer."""

ORDINARY, EDGES, EXTREMES = 1200, 1200, 300
"""Rows of each kind."""

SINGLES, NATIVE_SINGLES = 150, 10
"""So many rows are given to the compiled model one by one, and of them so many to the native one."""

FEWEST = 2000
"""Fewer rows of columns that both answered prove nothing."""


LOGGED = "logged"
"""What rows are called that the model is known to meet."""


@dataclass(slots=True)
class Proof:
    """What was compared."""

    rows: dict[str, int] = field(default_factory=dict)
    """By kind."""
    largest: float = 0.0
    """The largest difference of scores, relative to the larger of 1 and the score."""
    refused: int = 0
    """Rows that both refused."""

    @property
    def total(self) -> int:
        return sum(self.rows.values())


@dataclass(frozen=True, slots=True)
class Prover:
    """Compares two models on the same rows."""

    native: Native
    compiled: CompiledModel
    tolerance: float
    drawing: Drawing

    def prove(self, base: Rows, edges: Sequence[Edge], met: Rows | None = None, seconds: float = SECONDS) -> Proof:
        """`met`: rows that the model is known to meet.

        `NotProved` at the first difference, or where there is no time to look for one.
        """
        proof, trial = Proof(), Trial(self.native, seconds)
        try:
            for kind, rows in self._batches(base, edges, met):
                self._compare(kind, rows, proof, trial)
        except TimeIsUpError as error:
            raise NotProved(f"the model is too slow to be compared in {seconds:.0f} s") from error
        if self.drawing.columns and proof.total < FEWEST:
            raise NotProved(f"only {proof.total} rows that the model answers were found")
        return proof

    def _batches(self, base: Rows, edges: Sequence[Edge], met: Rows | None) -> Iterator[tuple[str, Rows]]:
        if met is not None:  # first: no row of theirs is told as one of another kind
            yield LOGGED, met
        yield "known", base
        yield "ordinary", self.drawing.ordinary(ORDINARY)
        yield ("edges", self.drawing.edges(EDGES, edges)) if edges else ("ordinary", self.drawing.ordinary(EDGES))
        strange = self.drawing.extremes(EXTREMES)
        if strange is not None:
            yield "extremes", strange
        yield from (("one by one", row) for row in singles(self.drawing.edges(NATIVE_SINGLES, edges)))

    def _compare(self, kind: str, rows: Rows, proof: Proof, trial: Trial) -> None:
        """A batch that one of them refuses is halved, until the rows are found that both refuse."""
        wanted, given = trial.answer(rows), self._answer(rows)
        if wanted is not None and given is not None:
            self._hold(kind, rows, wanted, given, proof)
            proof.rows[kind] = proof.rows.get(kind, 0) + rows.count
            self._compare_singles(kind, rows, wanted, proof)
        elif rows.count == 1:
            self._hold_refusal(kind, rows, wanted, given)
            proof.refused += 1
        else:
            half = rows.count // 2
            self._compare(kind, take(rows, slice(0, half)), proof, trial)
            self._compare(kind, take(rows, slice(half, None)), proof, trial)

    def _compare_singles(self, kind: str, rows: Rows, wanted: Predictions, proof: Proof) -> None:
        """The native model answers a row as it does among others: that was tried before."""
        for position, row in enumerate(singles(take(rows, slice(0, SINGLES if rows.count > 1 else 0)))):
            given, alone = self._answer(row), slice(position, position + 1)
            if given is None:
                raise NotProved(f"the compiled model differs: alone it refuses {_told(kind, row)}")
            columns = {name: values[alone] for name, values in wanted.columns.items()}
            self._hold(kind, row, Predictions(columns, 1, wanted.frame), given, proof)

    def _hold(self, kind: str, rows: Rows, wanted: Predictions, given: Predictions, proof: Proof) -> None:
        found = difference(wanted, given, self.tolerance)
        if found:
            where = "" if found.row is None else f" for {_told(kind, take(rows, slice(found.row, found.row + 1)))}"
            raise NotProved(f"the compiled model differs: {found.text}{where}")
        proof.largest = max(proof.largest, distance(wanted, given))

    def _hold_refusal(self, kind: str, row: Rows, wanted: Predictions | None, given: Predictions | None) -> None:
        if wanted is not given:
            who = "the model refuses and the compiled one answers" if given else "only the compiled model refuses"
            raise NotProved(f"the compiled model differs: {who} {_told(kind, row)}")

    def _answer(self, rows: Rows) -> Predictions | None:
        try:
            answer = self.compiled.predict(rows)
        except ModelError:
            return None
        return answer if finite(answer) else None


def _told(kind: str, row: Rows) -> str:
    """The values of one row, in one line of bounded length. More people may see why a model is native than its data."""
    if kind == LOGGED:
        return "a row of its data set"
    values = {
        name: column[0].tolist() if hasattr(column[0], "tolist") else column[0] for name, column in row.columns.items()
    }
    text = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return text if len(text) <= 400 else f"{text[:400]} ..."
