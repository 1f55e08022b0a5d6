"""Builds in threads, and what is kept of them: the half of an image builder that every platform shares.

What is under way lives in memory only, what is done or has failed for good on disk: after a restart a finished build is
found, a failed one still says why, and an interrupted one is missing. How one image is made is for its `Maker` to say;
what is written about it, and its signature, are made here, where its final digest is known.
"""

from __future__ import annotations

import logging
import platform
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from registry_hooks.registry import RegistryError
from serving.build_records import BuildRecords
from serving.documents import Documents, documents_of
from serving.image import BuildState, ImageError, ImageRequest, ImageStatus
from serving.made import Made
from serving.signing import Signature, Signatures, SigningKey
from serving.workshop import clear, workshop

_logger = logging.getLogger(__name__)

_PAUSES = (1, 2, 4, 8, 0)
"""Seconds between tries of a build that failed in a way that may pass; the last try has none after it."""
_BUILDER = f"urn:mlflow-promote:builder:{platform.node()}"
"""Who an image's provenance says that it was made by."""


class Maker(Protocol):
    """Makes images of one platform, several at a time."""

    def make(self, request: ImageRequest, folder: Path, tell: Callable[[str], None]) -> Made:
        """The image, made in `folder`, which is empty and goes afterwards; `tell` hears how far it is.

        Raises `ImageError`, `RegistryError` or `OSError`.
        """
        ...

    def holds(self, image: str) -> bool:
        """Whether the image of that digest is still there. `ImageError`."""
        ...

    def close(self) -> None:
        """End what is under way."""
        ...


class Builds:
    """`ImageBuilder` over a `Maker`."""

    def __init__(self, home: Path, maker: Maker, builders: int = 2, signing: SigningKey | None = None) -> None:
        """At most `builders` images are made at the same time; records and unfinished work are below `home`.

        Where there is a key for `signing`, every image is signed, and one that is not counts as missing.
        """
        self._home = home.absolute()
        self._maker = maker
        self._signing = signing
        self._records = BuildRecords(home)
        self._documents = Documents(home)
        self._signatures = Signatures(home)
        self._pool = ThreadPoolExecutor(builders, "image")
        self._under_way: dict[str, str] = {}
        self._guard = threading.Lock()
        self._closing = threading.Event()
        clear(self._home / "building")

    def find(self, request: ImageRequest) -> ImageStatus:
        detail = self._under_way.get(request.key)
        if detail is not None:
            return ImageStatus(BuildState.BUILDING, detail=detail)
        try:
            status = self._records.find(request)
            image = status.image if status else None
            lost = image is not None and not (self._signed(image) and self._maker.holds(image))
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot read the record of the build: {error}", retryable=True) from error
        return ImageStatus(BuildState.MISSING) if status is None or lost else status

    def build(self, request: ImageRequest) -> None:
        with self._guard:
            if self._closing.is_set() or self.find(request).state in (BuildState.BUILDING, BuildState.READY):
                return
            self._under_way[request.key] = "waiting for its turn"
        self._pool.submit(self._build, request).add_done_callback(_report)

    def document(self, digest: str) -> bytes:
        return self._documents.read(digest)

    def close(self) -> None:
        """End the builds under way; they are missing afterwards."""
        self._closing.set()
        self._maker.close()
        self._pool.shutdown(cancel_futures=True)

    def _build(self, request: ImageRequest) -> None:
        try:
            failed = self._persevere(request)
            if failed is not None:
                self._keep(request, failed)
        finally:
            self._under_way.pop(request.key, None)

    def _persevere(self, request: ImageRequest) -> ImageStatus | None:
        """Build, and try again where that can help, unless the builder is closed meanwhile; why it failed.

        It is recorded before the workshop is left, so that no image is ever without its record while nobody builds.
        """

        def tell(detail: str) -> None:
            self._under_way[request.key] = detail

        started = datetime.now(UTC)
        for seconds in _PAUSES:
            try:
                with workshop(self._home / "building") as folder:
                    made = self._maker.make(request, folder, tell)
                    self._keep(request, self._described(request, made, started))
                    return None
            except (ImageError, RegistryError, OSError) as error:
                failed = ImageStatus(BuildState.FAILED, detail=str(error))
                if not getattr(error, "retryable", True) or not seconds:
                    return failed
                tell(f"trying again in {seconds} s: {error}")
                if self._closing.wait(seconds):
                    return failed
        return failed

    def _described(self, request: ImageRequest, made: Made, started: datetime) -> ImageStatus:
        """The image with its signature and documents, which are kept before anybody hears of it. `OSError`."""
        signature = self._sign(made.image)
        texts = documents_of(request, made, signature, _BUILDER, started, datetime.now(UTC))
        return ImageStatus(
            BuildState.READY, made.image, str(made.proof), made.lock.digest, made.proof, self._documents.keep(texts)
        )

    def _sign(self, image: str) -> Signature | None:
        if self._signing is None:
            return None
        signature = self._signing.sign(image)
        self._signatures.keep(signature)
        return signature

    def _signed(self, image: str) -> bool:
        """Whether the image has the signature that it should have."""
        if self._signing is None:
            return True
        key = self._signing.public
        signature = self._signatures.find(image, key.id)
        return signature is not None and key.confirms(signature, image)

    def _keep(self, request: ImageRequest, status: ImageStatus) -> None:
        if not self._closing.is_set():
            self._records.keep(request, status)


def _report(build: Future[None]) -> None:
    """Nobody waits for a build: what nobody thought of has to be seen in the log at least."""
    if not build.cancelled() and (error := build.exception()):
        _logger.error("a build ended unexpectedly", exc_info=error)
