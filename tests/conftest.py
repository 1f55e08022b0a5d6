"""Fixtures that start the real parts; each module below says what its parts need."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
"""No test is about how fast this machine is."""

pytest_plugins = [
    "tests.fixtures.registry",
    "tests.fixtures.store",
    "tests.fixtures.gateway",
    "tests.fixtures.revisions",
    "tests.fixtures.drift",
    "tests.fixtures.models",
]
