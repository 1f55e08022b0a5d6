"""The packages that a lock names. Pure, but for the grammar of requirements, which `packaging` knows.

A lock is what uv writes: a requirement with its hashes on each logical line. Nothing in it is passed over: what is no
requirement and no option is taken for a file or folder, and named as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

_HASH = re.compile(r"\s--hash[= ](\S+)")
_COMMENT = re.compile(r"(^|\s)#.*$")


@dataclass(frozen=True, slots=True)
class Package:
    """One package of a lock."""

    name: str
    version: str = ""
    """Empty where the lock does not tell."""
    hashes: tuple[str, ...] = ()
    """Of the files of which any may be installed, each as ``sha256:<hex>``."""
    url: str = ""
    """Where it is not from an index: the address or path of its file."""


def packages(lock: str) -> tuple[Package, ...]:
    """Every package, in the order of the lock."""
    return tuple(_package(line) for line in _logical_lines(lock) if not line.startswith("-") or _editable(line))


def _logical_lines(lock: str) -> Iterator[str]:
    joined = re.sub(r"\\\n", " ", lock)
    lines = (_COMMENT.sub("", line).strip() for line in joined.splitlines())
    return (line for line in lines if line)


def _editable(line: str) -> bool:
    return line.startswith(("-e ", "--editable"))


def _package(line: str) -> Package:
    hashes = tuple(_HASH.findall(line))
    written = re.sub(r"^(-e|--editable)[ =]", "", _HASH.sub("", line)).strip()
    try:
        found = Requirement(written)
    except InvalidRequirement:
        return _file(written, hashes)
    version = next((one.version for one in found.specifier if one.operator in ("==", "===")), "")
    return Package(canonicalize_name(found.name), version, hashes, found.url or "")


def _file(path: str, hashes: tuple[str, ...]) -> Package:
    try:
        name, version, *_ = parse_wheel_filename(path.rpartition("/")[2])
    except InvalidWheelFilename:
        return Package(path, hashes=hashes, url=path)
    return Package(name, str(version), hashes, path)
