"""A wheel of the code that runs, made without building tools: from a checkout or an installed package alike.

The same code gives the same bytes, so an engine that has the image's layer finds it again.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

DISTRIBUTION = "mlflow-promote"
PACKAGES = ("registry_hooks", "serving", "monitoring", "pipelines")

_TIME = (2020, 1, 1, 0, 0, 0)
_WHEEL = "Wheel-Version: 1.0\nGenerator: mlflow-promote\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def own_wheel() -> tuple[str, bytes]:
    """Its name and what is in it."""
    name = _name()
    return f"{name}-py3-none-any.whl", packed(own_files(), f"{name}.dist-info/RECORD")


def own_files() -> dict[str, bytes]:
    """What is installed of it, by its path among packages, but for the list of that."""
    told, name = importlib.metadata.distribution(DISTRIBUTION), _name()
    about = {
        "METADATA": told.read_text("METADATA") or told.read_text("PKG-INFO") or "",
        "WHEEL": _WHEEL,
        "entry_points.txt": told.read_text("entry_points.txt") or "",
    }
    return sources() | {f"{name}.dist-info/{file}": text.encode() for file, text in about.items()}


def sources() -> dict[str, bytes]:
    """Every file of our packages, by its path in a wheel."""
    found: dict[str, bytes] = {}
    for package in PACKAGES:
        folder = Path(str(files(package)))
        inside = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        found |= {f"{package}/{path.relative_to(folder)}": path.read_bytes() for path in inside}
    return found


def packed(contents: Mapping[str, bytes], record: str) -> bytes:
    """A wheel of `contents`, whose list of them stands at `record`."""
    rows = [f"{path},sha256={_digest(content)},{len(content)}" for path, content in sorted(contents.items())]
    listed = "\n".join([*rows, f"{record},,", ""])
    target = io.BytesIO()
    with ZipFile(target, "w", ZIP_DEFLATED) as archive:
        for path, content in [*sorted(contents.items()), (record, listed.encode())]:
            archive.writestr(_entry(path), content)
    return target.getvalue()


def _name() -> str:
    return f"{DISTRIBUTION.replace('-', '_')}-{importlib.metadata.version(DISTRIBUTION)}"


def _entry(path: str) -> ZipInfo:
    entry = ZipInfo(path, _TIME)
    entry.compress_type = ZIP_DEFLATED
    entry.external_attr = 0o100644 << 16
    return entry


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
