"""The environment in which this very process runs, for models that are to be served in it.

Nothing is resolved or installed: what is there has to be what the model needs, which MLflow checks when it loads it.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement

from serving.environment import Interpreters, Lock
from serving.needs import read_needs
from serving.runtime.requirements import COMPILED, CONVERTERS


class CurrentEnvironment:
    """`Provider` of the Python that runs this."""

    @property
    def key(self) -> str:
        """Names what is installed."""
        return _installed().digest

    def provide(self, model: Path, tell: Callable[[str], None], *, native: bool) -> Interpreters:
        tell("looking at what is installed")
        needs, python = read_needs(model), Path(sys.executable)
        why = "it was asked for" if native else "" if needs.compilable else f"nothing compiles {needs.kind}"
        missing = _missing(CONVERTERS.get(needs.flavor, ()))
        if missing and not why:
            why = f"{', '.join(missing)} would have to be installed here"
        return Interpreters(_installed(), python, None if why else python, why, own=True)

    def close(self) -> None:
        """Nothing is ever under way."""


def _installed() -> Lock:
    pins = sorted({f"{found.name}=={found.version}" for found in distributions()})
    return Lock(".".join(platform.python_version_tuple()[:2]), "\n".join([f"# {sys.prefix}", *pins]))


def _missing(converters: tuple[str, ...]) -> list[str]:
    """What compiling takes and is not installed."""
    versions = {found.name.lower(): found.version for found in distributions()}
    wanted = [Requirement(line) for line in (*COMPILED, *converters)]
    return [str(one) for one in wanted if not one.specifier.contains(versions.get(one.name, "0"), prereleases=True)]
