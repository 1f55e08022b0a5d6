"""One installation for the stories that do not need one of their own: starting one costs most of the time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.loop import Loop
from tests.fixtures.revisions import end_revisions, with_kept_environments


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """A running installation with the stage ``Production`` as live channel."""
    yield from installed(tmp_path_factory.mktemp("loop") / "home")


def installed(home: Path, *, keep_warm: str = "30m", store: str | None = None) -> Iterator[Loop]:
    """A running installation in `home`, stopped in the end; its environments are kept between sessions."""
    loop = Loop(with_kept_environments(home), keep_warm=keep_warm, store=store)
    loop.prepare()
    loop.start()
    try:
        yield loop
    finally:
        loop.stop()
        end_revisions(home)
