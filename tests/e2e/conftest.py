"""One installation for the stories that do not need one of their own: starting one costs most of the time."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.loop import PORTS, Loop, free_ports
from tests.fixtures.cluster import NODE_PORTS, connection, namespace
from tests.fixtures.engines import KEPT, engine_of, tagged
from tests.fixtures.registries import open_registry
from tests.fixtures.revisions import end_revisions, with_kept_environments


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """A running installation with the stage ``Production`` as live channel."""
    yield from installed(tmp_path_factory.mktemp("loop") / "home")


def installed(home: Path, **more: Any) -> Iterator[Loop]:
    """A running installation in `home`, stopped in the end; its environments are kept between sessions.

    `more`: see `Loop`.
    """
    loop = Loop(with_kept_environments(home), **more)
    loop.prepare()
    loop.start()
    try:
        yield loop
    finally:
        loop.stop()
        end_revisions(home)


@contextmanager
def installed_in(kind: str, home: Path, engine: str = "", **more: Any) -> Iterator[Loop]:
    """The same in an engine of that kind, where nothing of it is left afterwards; the test is skipped without one.

    `engine`: another way to it.
    """
    direct = engine_of(kind, f"promote-tests-{uuid.uuid4().hex[:8]}")
    name = direct.installation
    try:
        with contextmanager(installed)(home, target=kind, installation=name, engine=engine, **more) as loop:
            tagged(direct, KEPT, name)
            yield loop
            tagged(direct, name, KEPT)
        assert direct.containers() == []
        assert direct.images(name) == {}
        assert not direct.api.networks(names=[name])
    finally:
        direct.close()


@contextmanager
def installed_in_cluster(home: Path, **more: Any) -> Iterator[Loop]:
    """The same in a namespace of the cluster, its gateway at a port of the node; the test is skipped without one."""
    where, registry = connection(), open_registry()
    direct = engine_of("docker", f"promote-tests-{uuid.uuid4().hex[:8]}")
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True)) | {"gateway_port": random.choice(NODE_PORTS)}
    with namespace(where) as space:
        repository = f"{registry}/{space}"
        told = {
            "PROMOTE_NAMESPACE": space,
            "PROMOTE_IMAGE_REPOSITORY": repository,
            "PROMOTE_GATEWAY_SERVICE": "NodePort",
        }
        place = {"target": "kubernetes", "installation": direct.installation, "told": told, "ports": ports}
        try:
            with contextmanager(installed)(home, **place, **more) as loop:
                yield loop
        finally:
            for tag in direct.images(repository):
                direct.remove_image(tag)
            direct.close()
