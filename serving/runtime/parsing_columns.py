"""Requests to a model whose signature has columns, value by value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.runtime import parsing_arrays, parsing_csv
from serving.runtime.exchange import Array, BadRequestError
from serving.runtime.parsing_tables import Table, listed, missing_inputs, of_records
from serving.runtime.parsing_values import Domain, Problems, of_column, quoted
from serving.runtime.plan import Column


class ColumnReader:
    """Reads requests to one signature of columns."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._named = {column.name: column for column in columns}
        self._domains = {column.name: of_column(column) for column in columns}
        self._texts = {column.name: of_column(column, text=True) for column in columns}

    def frame(self, table: Table) -> dict[str, Array]:
        """Of ``dataframe_split`` or ``dataframe_records``."""
        return self._arrays(table, self._domains)

    def csv(self, body: bytes) -> dict[str, Array]:
        problems, arrays = Problems(), {}
        for name, cells in parsing_csv.columns(body, self.choose).items():
            values, domain = parsing_csv.spoken(cells, self._named[name]), self._domains[name]
            if isinstance(values, np.ndarray):
                arrays[name] = parsing_arrays.column(domain, values, problems)
            else:
                arrays[name] = domain.array(values, problems)
        problems.check()
        return arrays

    def choose(self, names: Sequence[str]) -> Sequence[str]:
        """Those columns of the signature that are there; refused where one is missing."""
        there = frozenset(names)
        if missing := [column.name for column in self._columns if column.required and column.name not in there]:
            extra = [name for name in names if name not in self._domains]
            more = f" Note that there were extra inputs: {listed(extra)}." if extra else ""
            raise BadRequestError(f"{missing_inputs(missing)}{more}")
        return [name for name in self._domains if name in there]

    def tensors(self, told: Any, by_row: bool) -> dict[str, Array]:
        """Of ``inputs``, or of ``instances`` where `by_row`: columns, records, or the values of a single column."""
        called = "instances" if by_row else "inputs"
        if isinstance(told, list) and len(self._columns) == 1 and not any(isinstance(value, dict) for value in told):
            told = {self._columns[0].name: told}
        if isinstance(told, list):
            return self._arrays(of_records(told, self.choose, by_row, called), self._texts)
        if not isinstance(told, dict):
            raise BadRequestError(f"{called}: expected columns by name, or records, got {quoted(told)}")
        return self._arrays(_table({name: told[name] for name in self.choose(list(told))}), self._texts)

    def arrays(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Of arrays of shape (n,) or (n, 1), by name."""
        problems = Problems()
        names = self.choose(list(given))
        arrays = {name: parsing_arrays.column(self._domains[name], given[name], problems) for name in names}
        problems.check()
        return arrays

    def check_chat(self, names: Sequence[str]) -> None:
        """Refused where an object with these names is no row."""
        self.choose(names)

    def _arrays(self, table: Table, domains: Mapping[str, Domain]) -> dict[str, Array]:
        problems = Problems()
        names = self.choose(list(table.columns))
        arrays = {name: domains[name].array(table.columns[name], problems) for name in names}
        problems.check()
        return arrays


def _table(columns: dict[str, Any]) -> Table:
    """Of columns by name; values that are no lists are a single row."""
    if not any(isinstance(values, list) for values in columns.values()):
        return Table({name: [value] for name, value in columns.items()}, 1)
    for name, values in columns.items():
        if not isinstance(values, list):
            raise BadRequestError(f"column {quoted(name)}: expected a list of values, got {quoted(values)}")
    counts = {name: len(values) for name, values in columns.items()}
    if len(set(counts.values())) > 1:
        raise BadRequestError(f"expected columns of one length, got {dict(list(counts.items())[:10])}")
    return Table(columns, next(iter(counts.values())))
