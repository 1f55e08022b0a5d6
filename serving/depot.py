"""Where images are made and had: an engine, or a registry alone."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Protocol

from serving.image_context import Context

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def own_architecture() -> str:
    """Of this machine, as Go names it."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


class Depot(Protocol):
    """Every method raises `EngineError`."""

    @property
    def architecture(self) -> str:
        """Of the machine that runs what is made, as Go names it: ``amd64``, ``arm64``."""
        ...

    @property
    def installs(self) -> bool:
        """Whether packages of a distribution can be put into an image, which takes somebody who runs programs there."""
        ...

    def image(self, reference: str) -> str | None:
        """What names the image's content, such as its id or digest; None where it is not at hand."""
        ...

    def pull(self, reference: str) -> str:
        """The same, of an image that is had from its registry."""
        ...

    def build(self, context: Context, tag: str, tell: Callable[[str], None]) -> str:
        """Make the image that `tag` names; what names its content. `tell` hears how far it is."""
        ...

    def push(self, reference: str) -> str:
        """See that the image's registry has it; the digest that it has there."""
        ...
