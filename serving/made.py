"""What a maker tells of an image that it made: everything in it, by digest."""

from __future__ import annotations

from dataclasses import dataclass

from serving.environment import Lock
from serving.image import Proof


@dataclass(frozen=True, slots=True)
class Base:
    """An image that another one stands on."""

    name: str
    """As it was asked for, such as ``python:3.11-slim``."""
    digest: str
    """What that was when the image was made, with or without ``sha256:`` in front."""

    @property
    def sha256(self) -> str:
        return _hex(self.digest)


@dataclass(frozen=True, slots=True)
class Made:
    """One image and what it consists of."""

    image: str
    """Its digest, as revisions name it."""
    model: str
    """Digest of the model's folder; see `serving.image.digest_of`."""
    flavor: str
    """MLflow's name of the flavour; empty where the model is a class of somebody's own."""
    server: str
    """Digest of the model server's own files."""
    lock: Lock
    proof: Proof
    base: Base | None = None
    """None where it stands on none."""

    @property
    def sha256(self) -> str:
        """What `image` ends with; on this machine it is nothing else."""
        return _hex(self.image)


def _hex(digest: str) -> str:
    return digest.rpartition("sha256:")[2]
