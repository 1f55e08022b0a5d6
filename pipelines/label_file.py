"""A file of labels as the command line sends it: Parquet, CSV or JSON lines, in batches that one request may hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from pipelines.client import ClientError, Json

BATCH = 5_000
_COLUMNS = ("request_id", "row", "label", "loss")
_NO_VALUE = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
"""An empty word is no label, as an empty number is none."""
_READERS = {
    ".parquet": pyarrow.parquet.read_table,
    ".csv": lambda file: pyarrow.csv.read_csv(file, convert_options=_NO_VALUE),
    ".jsonl": pyarrow.json.read_json,
    ".ndjson": pyarrow.json.read_json,
}


def read_labels(file: Path) -> Iterator[tuple[list[Json], int]]:
    """Batches, each with the number of rows in the file; `ClientError`. Other columns are not looked at."""
    table = _table(file)
    known = [name for name in _COLUMNS if name in table.column_names]
    missing = _missing(known)
    if missing:
        hint = (
            f"it needs request_id and label (or loss, from 0 to 1), and row where it is not 0; found: {_found(table)}"
        )
        raise ClientError("invalid", f"{file}: no column {missing}", hint)
    if table["request_id"].null_count:
        hint = "it is the header x-request-id of the answer; leave out rows of which it is not known"
        raise ClientError("invalid", f"{file}: request_id is empty in {table['request_id'].null_count:,} rows", hint)
    schema = pa.schema([(name, _kind(name, table.field(name).type)) for name in known])
    try:
        table = table.select(known).cast(schema)
    except pa.ArrowException as error:
        hint = "request_id is a word, row a number, label a number, a word or true or false, loss a number"
        raise ClientError("invalid", f"{file}: a column is of a kind that cannot be sent: {error}", hint) from error
    for batch in table.to_batches(max_chunksize=BATCH):
        rows = [{key: value for key, value in row.items() if not _unknown(value)} for row in batch.to_pylist()]
        yield [row for row in rows if "label" in row or "loss" in row], table.num_rows


def _kind(column: str, given: pa.DataType) -> pa.DataType:
    """Labels stay numbers, truth values or words; anything else is compared by its words."""
    simple = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return given if column != "request_id" and any(of(given) for of in simple) else pa.string()


def _unknown(value: object) -> bool:
    return value is None or value != value


def _table(file: Path) -> pa.Table:
    read = _READERS.get(file.suffix.lower())
    if read is None:
        raise ClientError("invalid", f"{file}: not a kind of file that is known", f"one of {', '.join(_READERS)}")
    try:
        return read(file)
    except (OSError, pa.ArrowException) as error:
        raise ClientError("invalid", f"{file}: cannot be read: {error}", "check that it is there and whole") from error


def _missing(known: list[str]) -> str:
    if "request_id" not in known:
        return "request_id"
    return "" if {"label", "loss"} & set(known) else "label"


def _found(table: pa.Table) -> str:
    return ", ".join(table.column_names) or "none"
