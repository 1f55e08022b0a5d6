"""Which files a model consists of, and whether a folder still holds just these.

What was approved is what is served: a version's files are listed where they are first seen, the list travels with the
image, and the server looks again before it loads any of them. Every file counts, also bytecode that lies beside a
model's own code: Python runs it without looking at the source.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

FILE = "files.json"
"""Name of the list in the folder of the plan."""

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class File:
    """What one file holds."""

    sha256: str
    size: int
    """Bytes."""


Files: TypeAlias = Mapping[str, File]
"""By path below the model's folder, with ``/`` between its parts."""


def listed(folder: Path) -> dict[str, File]:
    """Every file below `folder`; `ValueError` where a link leads to another folder, whose files would not be seen."""
    return {path.relative_to(folder).as_posix(): _file(path) for path in sorted(_below(folder))}


def digest(files: Files) -> str:
    """SHA-256 over names and contents, independent of times and order."""
    total = hashlib.sha256()
    for name, file in sorted(files.items()):
        total.update(f"{name}\0{file.sha256}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def difference(wanted: Files, found: Files) -> str:
    """The first file, by name, that is not as wanted, with both digests; empty where there is none."""
    for name in sorted({*wanted, *found}):
        if name not in found:
            return f"{name} is missing; its SHA-256 was {wanted[name].sha256}"
        if name not in wanted:
            return f"{name} is new; its SHA-256 is {found[name].sha256}"
        if wanted[name].sha256 != found[name].sha256:
            return f"{name} has SHA-256 {found[name].sha256}, not {wanted[name].sha256}"
    return ""


def write(files: Files, plan: Path) -> None:
    """Keep the list in the folder `plan`."""
    (plan / FILE).write_text(dumped(files))


def check(plan: Path, model: Path) -> None:
    """Raise `ValueError` unless the folder `model` holds what the list in `plan` says; nothing where there is no list.

    (Every build writes one. A plan that was made by hand has none.)
    """
    try:
        wanted = loaded((plan / FILE).read_text())
    except FileNotFoundError:
        return
    different = difference(wanted, listed(model))
    if different:
        raise ValueError(f"the model's files are not those that were approved: {different}")


def dumped(files: Files) -> str:
    return json.dumps({name: [file.sha256, file.size] for name, file in files.items()})


def loaded(text: str) -> dict[str, File]:
    """What `dumped` wrote; `ValueError` where it is something else."""
    try:
        return {name: File(str(sha256), int(size)) for name, (sha256, size) in json.loads(text).items()}
    except (TypeError, AttributeError) as error:
        raise ValueError(f"no list of files: {error}") from error


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        linked = next((Path(place, name) for name in folders if Path(place, name).is_symlink()), None)
        if linked is not None:
            raise ValueError(f"{linked.relative_to(folder).as_posix()} is a link to a folder")
        yield from (path for name in names if (path := Path(place, name)).is_file())


def _file(path: Path) -> File:
    total, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            total.update(piece)
            size += len(piece)
    return File(total.hexdigest(), size)
