"""How the command line tells of images: a row for each, as JSON for programs and as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipelines.cli_views import ago
from pipelines.client import Json
from serving.stock import Stored

_UNITS = ("B", "kB", "MB", "GB", "TB")
_SHORT = 20
"""Characters of a name in a table, behind what all of its kind begin with."""


def image_row(one: Stored) -> Json:
    """As programs read it."""
    return {
        "name": one.name,
        "kind": one.kind.value,
        "versions": [{"model": of.model, "version": of.version} for of in sorted(one.versions)],
        "bytes": one.size,
        "built": max([one.made, *one.versions.values()]).astimezone(UTC).isoformat(),
    }


def images_view(answer: Json) -> Group:
    """All of them, and how much would be free without those that nothing needs."""
    rows = answer["images"]
    going = [row for row in rows if row["goes"]]
    told = f"{len(rows)} stored, {size(sum(row['bytes'] for row in rows))}; nothing needs {len(going)} of them, "
    foot = Text(f"{told}{size(sum(row['bytes'] for row in going))}", style="dim")
    return Group(_table(rows, [_reason(row) for row in rows]), foot) if rows else Group(Text("nothing is stored"))


def cleaned_view(answer: Json) -> Group:
    """What went, or would go, and what could not."""
    gone, refused = answer["removed"], answer["refused"]
    word = "would go" if answer["dry_run"] else "is gone"
    texts = [*(Text(word) for _ in gone), *(Text(f"stays: {row['why']}", style="yellow") for row in refused)]
    verb = "would be free" if answer["dry_run"] else "are free"
    foot = Text(f"{size(answer['bytes'])} {verb}" if gone or refused else "nothing is stored that nothing needs")
    return Group(_table([*gone, *refused], texts), foot) if gone or refused else Group(foot)


def size(count: int) -> str:
    """Of so many bytes, as people read it."""
    amount, unit = float(count), 0
    while amount >= 1000 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.0f} {_UNITS[unit]}" if amount >= 10 or not unit else f"{amount:.1f} {_UNITS[unit]}"


def _table(rows: Sequence[Json], last: Iterable[Text]) -> Table:
    table = Table(box=None, header_style="bold")
    for title in ("image", "kind", "model", "version", "size", "built", ""):
        table.add_column(title, overflow="fold")
    for row, text in zip(rows, last, strict=True):
        models = dict.fromkeys(version["model"] for version in row["versions"])
        versions = [str(version["version"]) for version in row["versions"]]
        cells = (_short(row["name"]), row["kind"], ", ".join(models), ", ".join(versions), size(row["bytes"]))
        table.add_row(*map(Text, cells), Text(ago(row["built"])), text)
    return table


def _short(name: str) -> str:
    """Enough of it to tell it from others: digests are long."""
    place, slash, last = name.rpartition("/")
    head, colon, digest = last.rpartition(":")
    return f"{place}{slash}{head}{colon}{digest[:_SHORT]}"


def _reason(row: Json) -> Text:
    return Text("would go", style="yellow") if row["goes"] else Text(row["why"])
