"""What pods take whose model is not in their image: a volume to fetch it to, time for that, and where it is.

Pure. Without a claim each pod has a volume of its own, which goes with the pod and not with its container, so a server
that ends while it fetches goes on where it was. A claim is shared by all pods, with one folder for each model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.image_context import CACHE, MANIFEST, MANIFEST_BYTES

_Object = dict[str, Any]

VOLUME = "models"
"""Name of the volume in a pod."""
_MIB = 2**20
_MARGIN = 64 * _MIB
"""For the folders of a model, and for the notes of what is fetched."""
_SLOWEST = _MIB
"""A model that comes more slowly, in bytes a second, does not come at all."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model that servers fetch."""

    digest: str
    """Of its manifest, which is the name of its folder in a cache."""
    size: int
    """Bytes of all its files; 0 where its image does not say."""

    @property
    def seconds(self) -> int:
        """How long fetching it may take, besides loading it."""
        return math.ceil(self.size / _SLOWEST)

    def volume(self, claim: str) -> _Object:
        """Where a pod has it: on the PersistentVolumeClaim, or on a volume of its own where that is empty.

        The pod's own volume may take the model twice, because a file that is wrong is fetched beside the other one.
        """
        if claim:
            return {"name": VOLUME, "persistentVolumeClaim": {"claimName": claim}}
        limit = {"sizeLimit": _mebibytes(2 * self.size + _MARGIN)} if self.size else {}
        return {"name": VOLUME, "emptyDir": limit}

    def room(self, claim: str) -> dict[str, str]:
        """What a pod asks of its node's disk, so that it comes to one that has as much."""
        return {"ephemeral-storage": _mebibytes(self.size + _MARGIN)} if self.size and not claim else {}


MOUNT: Mapping[str, str] = {"name": VOLUME, "mountPath": CACHE}
"""Where the server has the volume."""


def fetched_of(labels: Mapping[str, str]) -> Fetched | None:
    """What the labels of an image say of its model; None where the model is in the image."""
    digest, size = labels.get(MANIFEST), labels.get(MANIFEST_BYTES, "")
    return Fetched(digest, int(size) if size.isdecimal() else 0) if digest else None


def _mebibytes(size: int) -> str:
    return f"{math.ceil(size / _MIB)}Mi"
