"""Fixtures that start the real parts; each module below says what its parts need."""

pytest_plugins = [
    "tests.fixtures.registry",
    "tests.fixtures.store",
    "tests.fixtures.gateway",
    "tests.fixtures.revisions",
    "tests.fixtures.drift",
    "tests.fixtures.models",
]
