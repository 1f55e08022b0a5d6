"""What is kept of an installation's images, the port to it, and the half of it that every platform shares.

What may go is not decided here. It is removed while nobody builds, because a build takes what is there for granted:
an environment, an image to stand on. What a removal that was cut short has left behind goes with the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from registry_hooks.model_version import ModelVersion
from serving.build_records import BuildRecords
from serving.image import ImageError
from serving.workshop import alone


class Kind(StrEnum):
    """What something that is stored is. What may stand on another comes before it."""

    MODEL = "model"
    """An image of model versions, of which revisions are made."""
    SOURCE = "source"
    """The folder on this machine of which an engine made such an image."""
    PACKAGES = "packages"
    """What a model's packages come to: an image that others stand on, or an environment of this machine."""
    LOCK = "lock"
    """Which packages those are, so that another build takes the same."""
    GATEWAY = "gateway"
    """An image that has Envoy."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One thing that is stored."""

    name: str
    """Names it among all that is stored; an image of models is named as revisions name it."""
    kind: Kind
    made: datetime
    size: int
    """Bytes that are free without it: what it shares with others is not counted."""
    versions: Mapping[ModelVersion, datetime] = field(default_factory=dict, hash=False)
    """The versions whose image it is, and when it was built for each."""
    stands_on: frozenset[str] = frozenset()
    """Names of what it needs."""
    also: frozenset[str] = frozenset()
    """Other names by which revisions may know it."""
    used: str = ""
    """By what it is used just now; empty where by nothing."""

    def of(self, model: str) -> bool:
        """Whether it is an image of that model."""
        return any(version.model == model for version in self.versions)

    @property
    def names(self) -> frozenset[str]:
        return self.also | {self.name}


@dataclass(frozen=True, slots=True)
class Removal:
    """What came of removing something."""

    stored: Stored
    trouble: str = ""
    """Why it is still there; empty where it is gone."""


Choice = Callable[[tuple[Stored, ...]], Collection[str]]
"""Names what is to go of all that is stored."""


class ImageStock(Protocol):
    """What is kept of an installation's images. Every method raises `ImageError`."""

    def stored(self) -> tuple[Stored, ...]:
        """All of it, needed or not."""
        ...

    def remove(self, goes: Choice) -> tuple[Removal, ...]:
        """Remove what `goes` names, which is asked while nobody builds; what came of each.

        Where an image is being built nothing is removed, and the error can be retried.
        """
        ...


class Shelf(Protocol):
    """Where one platform stores things. Every method raises `ImageError` or `OSError`."""

    def stored(self) -> Iterable[Stored]:
        """All that is there."""
        ...

    def remove(self, one: Stored) -> bool:
        """Remove it; whether it has to be built again to be had again. Refused where it is used."""
        ...

    def sweep(self) -> None:
        """Remove what was left of removals and builds that were cut short."""
        ...


class Stock:
    """`ImageStock` over the shelves of one installation."""

    def __init__(self, home: Path, *shelves: Shelf) -> None:
        """`home` is where the images are built."""
        self._place = home.absolute() / "building"
        self._records = BuildRecords(home)
        self._shelves = shelves

    def stored(self) -> tuple[Stored, ...]:
        return tuple(one for _, one in self._found())

    def remove(self, goes: Choice) -> tuple[Removal, ...]:
        try:
            with alone(self._place):
                found = self._found()
                names = goes(tuple(one for _, one in found))
                for shelf in self._shelves:
                    shelf.sweep()
                return self._removed([(shelf, one) for shelf, one in found if one.name in names])
        except BlockingIOError as error:
            raise ImageError("an image is being built, so none is removed: try again", retryable=True) from error
        except OSError as error:
            raise ImageError(f"cannot remove images: {error}", retryable=True) from error

    def _found(self) -> list[tuple[Shelf, Stored]]:
        try:
            built = self._records.built()
            return [(shelf, _of(one, built)) for shelf in self._shelves for one in shelf.stored()]
        except OSError as error:
            raise ImageError(f"cannot read what is stored: {error}", retryable=True) from error

    def _removed(self, going: Sequence[tuple[Shelf, Stored]]) -> tuple[Removal, ...]:
        """What stands on something goes before it; where it cannot, the other stays too."""
        order = list(Kind)
        still, done = set[str](), list[Removal]()
        for shelf, one in sorted(going, key=lambda pair: order.index(pair[1].kind)):
            trouble = "what stands on it is still there" if one.name in still else self._try(shelf, one)
            if trouble:
                still |= one.stands_on
            done.append(Removal(one, trouble))
        return tuple(done)

    def _try(self, shelf: Shelf, one: Stored) -> str:
        """Remove it; why that failed."""
        try:
            if shelf.remove(one):
                self._records.forget(one.names)
        except (ImageError, OSError) as error:
            return str(error)
        return ""


def _of(one: Stored, built: Mapping[str, Mapping[ModelVersion, datetime]]) -> Stored:
    """With the versions that it was built for, where that is written down."""
    known = {version: at for name in one.names for version, at in built.get(name, {}).items()}
    return replace(one, versions={**one.versions, **known})
