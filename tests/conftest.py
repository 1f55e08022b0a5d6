"""Fixtures that start the real parts; each module below says what its parts need."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
"""Programs are started as their users start them, whom bytecode saves half of the waiting."""

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
"""No test is about how fast this machine is."""


_ENGINE = re.compile(r"\[(?:[^\]]*-)?(docker|podman)(?:-[^\]]*)?\]")
"""In the name of a test that is run in an engine, among others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What makes images comes first, because it takes longest."""
    items.sort(key=lambda item: _ENGINE.search(item.nodeid) is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """For `--dist loadscope`."""
    return Together(config, log) if config.getvalue("dist") == "loadscope" else None


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """Keeps a file in one process, and what makes images in one engine, which is done once for each process."""

    def _split_scope(self, nodeid: str) -> str:
        engine = _ENGINE.search(nodeid)
        return engine[1] if engine else nodeid.partition("::")[0]


pytest_plugins = [
    "tests.fixtures.registry",
    "tests.fixtures.store",
    "tests.fixtures.gateway",
    "tests.fixtures.revisions",
    "tests.fixtures.engines",
    "tests.fixtures.cluster",
    "tests.fixtures.gateway_api",
    "tests.fixtures.kubernetes_schemas",
    "tests.fixtures.drift",
    "tests.fixtures.models",
    "tests.fixtures.object_store",
]
