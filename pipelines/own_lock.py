"""The packages of a controller as they are here, locked so that they can be installed elsewhere.

Nothing is fetched but the hashes of the packages, and those only when other ones are wanted than a lock has.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile

import uv
from packaging.requirements import Requirement

from pipelines.client import ClientError
from pipelines.own_wheel import DISTRIBUTION


def own_lock(kept: Path, extras: Sequence[str]) -> str:
    """The packages that run here with these extras of ours, at their versions, with the hashes of their files.

    What `kept` holds is taken where it answers the same question. Raises `ClientError`.
    """
    wanted, versions = _requirements(extras), constraints(_installed())
    question = sha256("\n".join([sys.version, *wanted, *versions]).encode()).hexdigest()
    heading = f"# of {question}\n"
    if kept.exists() and (before := kept.read_text()).startswith(heading):
        return before
    return heading + _resolved(wanted, versions)


def constraints(installed: Iterable[tuple[str, str]]) -> Sequence[str]:
    """Lines that keep a resolver to the installed versions, given as names with versions."""
    return sorted({f"{name}=={version}" for name, version in installed})


def _requirements(extras: Sequence[str]) -> list[str]:
    """What our own package needs in the image, without its extras' conditions."""
    wanted = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or ()]
    chosen = [
        one
        for one in wanted
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]
    return sorted(f"{one.name}[{','.join(sorted(one.extras))}]{one.specifier}" for one in chosen)


def _installed() -> list[tuple[str, str]]:
    found = ((one.metadata["Name"], one.version) for one in importlib.metadata.distributions())
    return [(name, version) for name, version in found if name and re.sub(r"[-_.]+", "-", name) != DISTRIBUTION]


def _resolved(wanted: Sequence[str], versions: Sequence[str]) -> str:
    options = ("--quiet", "--generate-hashes", "--no-header", "--no-annotate", "--python", sys.executable)
    with NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(versions))
        constraints.flush()
        ended = subprocess.run(
            [uv.find_uv_bin(), "pip", "compile", *options, "--constraints", constraints.name, "-"],
            input="\n".join(wanted),
            capture_output=True,
            text=True,
            check=False,
        )
    if ended.returncode:
        hint = "uv has to reach the package index once, for the hashes of the packages"
        raise ClientError("failed", f"the packages cannot be locked: {ended.stderr.strip()[-2000:]}", hint)
    return ended.stdout
