"""What is stored of images, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from serving.image import ImageError
from serving.stock import Choice, Kind, Removal, Stored


class FakeStock:
    """`ImageStock` in memory."""

    def __init__(self, *stored: Stored) -> None:
        self.things = {one.name: one for one in stored}
        self.builds = 0
        """Images that are being built."""
        self.broken = False
        """While set, every method raises an `ImageError` that can be retried."""

    def stored(self) -> tuple[Stored, ...]:
        if self.broken:
            raise ImageError("what is stored cannot be read", retryable=True)
        return tuple(self.things.values())

    def remove(self, goes: Choice) -> tuple[Removal, ...]:
        if self.builds:
            raise ImageError("an image is being built", retryable=True)
        going = goes(self.stored())
        chosen = sorted((one for one in self.stored() if one.name in going), key=lambda one: list(Kind).index(one.kind))
        return tuple(self._removed(one) for one in chosen)

    def _removed(self, one: Stored) -> Removal:
        trouble = f"{one.used} has it" if one.used else ""
        if any(one.name in above.stands_on for above in self.things.values()):
            trouble = "what stands on it is still there"
        if not trouble:
            del self.things[one.name]
        return Removal(one, trouble)

    @contextmanager
    def used(self, name: str) -> Iterator[None]:
        """Somebody uses it meanwhile."""
        before = self.things[name]
        self.things[name] = replace(before, used="somebody")
        yield
        self.things[name] = before

    @contextmanager
    def building(self) -> Iterator[None]:
        """Somebody builds meanwhile."""
        self.builds += 1
        yield
        self.builds -= 1
