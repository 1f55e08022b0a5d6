"""What of a model's environment goes into an image: its packages without what nothing that serves can reach.

The rules are data, and they never take what a model may want: a model's own packages lose their tests and sources only,
and those that came with the model server are whole again where the model names them or another package mentions what
would be left out. What is left out of the compiled code is compiled at each start instead, so that rule costs time at
worst. Nothing here runs a package's code, so the same environment comes out the same everywhere.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from serving.image import digest_of_file
from serving.needs import Needs, names_of


@dataclass(frozen=True, slots=True)
class Rule:
    """Parts of a package that came with the model server."""

    package: str
    paths: tuple[str, ...]
    """Patterns below ``site-packages``."""
    mentions: tuple[bytes, ...]
    """How code of another package would speak of them."""


ALWAYS = ("*__pycache__", "_virtualenv.py", "_virtualenv.pth", "pyarrow/include", "pyarrow/src")
"""What depends on who made the environment, and what only compilers read."""
RULES = (
    Rule(
        "pyarrow",
        ("pyarrow/flight.py", "pyarrow/_flight.*", "pyarrow/libarrow_flight.*", "pyarrow/libarrow_python_flight.*"),
        (b"pyarrow.flight", b"pyarrow import flight", b"libarrow_flight", b"libarrow_python_flight"),
    ),
    Rule(
        "onnxruntime",
        tuple(f"onnxruntime/{part}" for part in ("datasets", "quantization", "tools", "transformers")),
        tuple(f"onnxruntime.{part}".encode() for part in ("datasets", "quantization", "tools", "transformers")),
    ),
    Rule("onnxruntime", ("onnxruntime/capi/libonnxruntime.so.*",), (b"libonnxruntime.so",)),
)
SOURCES = (".a", ".pxd", ".pxi", ".pyi", ".pyx", ".tp")
"""Endings of files that only compilers and editors read."""
WITH_SOURCES = ("numpy", "pandas", "pyarrow", "scipy", "sklearn")
"""Packages of which that is known, and that nothing needs their tests; others may read such files when imported."""
WITH_SYMBOLS = ("httptools", "pyarrow", "uvloop", "yaml")
"""Packages of the model server whose libraries carry what only debuggers read."""
UNCOMPILED = (
    *("databricks/sdk", "git", "gitdb", "joblib/test", "mlflow/assistant", "mlflow/cli", "mlflow/demo"),
    *("mlflow/deployments", "mlflow/gateway/providers", "mlflow/sagemaker", "mlflow/server", "numpy/distutils"),
    *("prettytable", "pydantic/v1", "smmap", "wcwidth"),
)
"""Folders that no server imports by itself."""
_TESTS = "tests"
_IMPORTS_TESTS = re.compile(
    rb"^[ \t]*(?:from|import)[ \t]+(?:([\w.]*\.tests)\b|([\w.]+)[ \t]+import[ \t(]+(?:\w+, *)*tests\b)", re.MULTILINE
)
_HEADER = 64
"""Bytes of the header of a 64-bit ELF file."""


def rules_for(needs: Needs) -> tuple[Rule, ...]:
    """The rules that hold for a model: those of packages that it does not name itself."""
    named = names_of(needs.requirements)
    return tuple(rule for rule in RULES if rule.package not in named)


def digest_of_rules(rules: Sequence[Rule]) -> str:
    """SHA-256 over all that decides what of an environment is in an image."""
    decides = (ALWAYS, tuple(rules), SOURCES, WITH_SOURCES, WITH_SYMBOLS, UNCOMPILED)
    return hashlib.sha256(repr(decides).encode()).hexdigest()


def lay_out(python: Path, version: str, rules: Sequence[Rule], folder: Path, target: str) -> Path:
    """A copy below `folder` of the packages of the environment of `python`, as an image has them at `target`."""
    source, copy = python.parent.parent / "lib" / f"python{version}" / "site-packages", folder / "site-packages"
    shutil.copytree(
        source, copy, symlinks=True, copy_function=partial(_copied, source), ignore=_LeavesOut(source, rules)
    )
    _link_equals(copy)
    _compile(python, copy, target)
    return copy


class _LeavesOut:
    """Says what is left out of each folder, as `shutil.copytree` asks."""

    def __init__(self, source: Path, rules: Sequence[Rule]) -> None:
        self._source = source
        self._tested, spoken_of = _used(source, rules)
        left = [rule for rule in rules if rule not in spoken_of]
        self._patterns = (*ALWAYS, *(path for rule in left for path in rule.paths))

    def __call__(self, folder: str, names: list[str]) -> set[str]:
        within = Path(folder).relative_to(self._source)
        return {name for name in names if self._left_out(within / name)}

    def _left_out(self, path: Path) -> bool:
        package = path.parts[0]
        if any(fnmatchcase(f"{path}", pattern) for pattern in self._patterns):
            return True
        if path.name == _TESTS:
            return len(path.parts) > 1 and package not in self._tested and not package.endswith(".dist-info")
        return path.suffix in SOURCES and package in WITH_SOURCES


def _used(source: Path, rules: Sequence[Rule]) -> tuple[set[str], set[Rule]]:
    """Packages whose tests are imported by what is no test, and rules whose parts other packages speak of."""
    tested, spoken_of = set[str](), set[Rule]()
    for file in _speaking(source):
        path = file.relative_to(source)
        with _read(file) as content:
            others = (rule for rule in rules if path.parts[0] != rule.package)
            spoken_of |= {rule for rule in others if any(content.find(words) >= 0 for words in rule.mentions)}
            if path.suffix == ".py" and _TESTS not in path.parts:
                found = ((hit[1] or hit[2]).decode() for hit in _IMPORTS_TESTS.finditer(content))
                tested |= {name.partition(".")[0] or path.parts[0] for name in found}
    return tested - set(WITH_SOURCES), spoken_of


def _speaking(source: Path) -> Iterator[Path]:
    """Files that may speak of others: code and libraries."""
    for file in source.rglob("*"):
        if (file.suffix == ".py" or ".so" in file.suffixes) and file.is_file() and file.stat().st_size:
            yield file


@contextmanager
def _read(file: Path) -> Iterator[mmap.mmap]:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _copied(root: Path, source: str, destination: str) -> str:
    """A link to the same file where the file system allows it; a copy elsewhere, or where it becomes another one."""
    file = Path(source)
    if file.relative_to(root).parts[0] in WITH_SYMBOLS and ".so" in file.suffixes and not file.is_symlink():
        Path(destination).write_bytes(without_symbols(file.read_bytes()))
        shutil.copymode(source, destination)
        return destination
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, destination, follow_symlinks=False)
    return destination


def without_symbols(library: bytes) -> bytes:
    """A 64-bit little-endian ELF file as far as its segments reach, which is all that is ever loaded of it.

    What follows, tables of symbols and of sections, is for linkers and debuggers. Anything else comes back as it is.
    """
    if library[:6] != b"\x7fELF\x02\x01":
        return library
    (first,) = struct.unpack_from("<Q", library, 32)
    size, count = struct.unpack_from("<HH", library, 54)
    end = first + size * count
    for at in range(first, end, size):
        offset, _, _, length = struct.unpack_from("<QQQQ", library, at + 8)
        end = max(end, offset + length)
    head = bytearray(library[:_HEADER])
    struct.pack_into("<Q", head, 40, 0)  # there are no sections any more
    struct.pack_into("<HHH", head, 58, 0, 0, 0)
    return bytes(head) + library[_HEADER:end]


def _link_equals(folder: Path) -> None:
    """Libraries that lie in one folder several times, under the names of their versions, become links to one."""
    alike: dict[tuple[Path, int], list[Path]] = {}
    for file in sorted(folder.rglob("*.so*")):
        if file.is_file() and not file.is_symlink():
            alike.setdefault((file.parent, file.stat().st_size), []).append(file)
    for files in (files for files in alike.values() if len(files) > 1):
        known: dict[str, Path] = {}
        for file in files:
            first = known.setdefault(digest_of_file(file), file)
            if first is not file:
                file.unlink()
                file.symlink_to(first.name)


def _compile(python: Path, copy: Path, target: str) -> None:
    """Compile the code as everybody would."""
    skipped = f"/site-packages/({'|'.join(map(re.escape, UNCOMPILED))})/"
    told = ("-q", "-j", "2", "--invalidation-mode", "unchecked-hash", "-s", str(copy), "-p", target, "-x", skipped)
    # Some packages carry files that only another Python compiles, which is no harm.
    subprocess.run(
        [str(python), "-m", "compileall", *told, str(copy)],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
