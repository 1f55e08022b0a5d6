"""What an engine stores of an installation: its images, below the names that they have there.

What a registry holds is not removed: an image that was sent there is only taken out of this engine, and pulled again
where it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from registry_hooks.model_version import ModelVersion
from serving.docker_engine import Engine, Image
from serving.engine_errors import EngineError
from serving.image import ImageError
from serving.stock import Kind, Stored

FOLDER = "promote.folder"
"""Label of an image of models: the digest of the image on the controller's machine of which it was made."""
_FIXED = {"packages": Kind.PACKAGES, "gateway": Kind.GATEWAY}
"""Of images that are of no model, by what stands behind the repository's name."""


class EngineShelf:
    """`Shelf` in an engine."""

    def __init__(self, engine: Engine, *repositories: str, remote: bool = False) -> None:
        """Every image below one of these names is the installation's; `remote`: a registry has those of models too."""
        self._engine = engine
        self._below = tuple(f"{repository}/" for repository in dict.fromkeys(repositories))
        self._remote = remote

    def stored(self) -> Iterator[Stored]:
        with _asked():
            listed, users = self._engine.listed(), self._engine.users()
            layers = {one.id: found for one in listed if (found := self._engine.layers(one.id)) is not None}
        ours = [one for one in listed if one.id in layers and self._names(one)]
        for one in ours:
            size = one.size - max((below.size for below in _below(one, listed, layers)), default=0)
            stands_on = {below.id for below in _below(one, ours, layers)}
            yield self._stored(one, size, stands_on, users.get(one.id, ""))

    def remove(self, one: Stored) -> bool:
        """Taken back is every tag that we gave it, so that one with another installation's stays there.

        Names by digests go with the last tag; to remove one before would take the image from everybody on Podman.
        """
        with _asked():
            known = next((image for image in self._engine.listed() if one.names & {image.id, *image.names}), None)
            names = self._names(known) if known is not None else ()
            for name in [name for name in names if "@" not in name] or names:
                self._engine.remove_image(name)
        return not self._remote

    def sweep(self) -> None:
        """An engine sees to that itself."""

    def _names(self, image: Image) -> tuple[str, ...]:
        """Those of its names that are the installation's, tags first."""
        return tuple(name for name in image.names if name.startswith(self._below))

    def _stored(self, image: Image, size: int, stands_on: set[str], user: str) -> Stored:
        names = self._names(image)
        below = next(place for place in self._below if names[0].startswith(place))
        version, made = _version(image), datetime.fromtimestamp(image.created, UTC)
        fixed = _FIXED.get(re.split("[:@]", names[0].removeprefix(below))[0])
        folder = {image.labels[FOLDER]} if FOLDER in image.labels else set()
        return Stored(
            name=image.id,
            kind=fixed if fixed and version is None else Kind.MODEL,
            made=made,
            size=size,
            versions={version: made} if version else {},
            stands_on=frozenset(stands_on | folder),
            also=frozenset(names),
            used=f"container {user}" if user else "",
        )


def _version(image: Image) -> ModelVersion | None:
    """Whose image it is, which images of models alone say."""
    model, version = (image.labels.get(f"promote.{part}", "") for part in ("model", "version"))
    return ModelVersion(model, int(version)) if model and version.isdecimal() else None


def _below(image: Image, among: list[Image], layers: Mapping[str, tuple[str, ...]]) -> list[Image]:
    """The image that it was made on: the one with the most of its lower layers, and any other with the very same."""
    own = layers[image.id]
    lower = [one for one in among if (found := layers.get(one.id)) and found != own and found == own[: len(found)]]
    most = max((len(layers[one.id]) for one in lower), default=0)
    return [one for one in lower if len(layers[one.id]) == most]


@contextmanager
def _asked() -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise ImageError(str(error), retryable=error.retryable) from error
