"""An image builder in memory: builds that get done, or fail, after as many looks at them as they are told to."""

from __future__ import annotations

import hashlib

from registry_hooks.model_version import ModelVersion
from serving.image import BuildState, Document, ImageError, ImageRequest, ImageStatus


class FakeImageBuilder:
    """`ImageBuilder` in memory."""

    def __init__(self, ready_after: int = 1) -> None:
        self.ready_after = ready_after
        """A build is done at this call of `find` after it was asked for."""
        self.fails: dict[ModelVersion, str] = {}
        """Versions that cannot be built, and why; they can again once taken out and asked for again."""
        self.broken = False
        """While set, every method raises an `ImageError` that can be retried."""
        self.forgets_documents = False
        """While set, every document is lost."""
        self.built: list[ImageRequest] = []
        """Every build that was begun, in order."""
        self._looks: dict[str, int] = {}
        self._done: dict[str, ImageStatus] = {}
        self._documents: dict[str, bytes] = {}

    def find(self, request: ImageRequest) -> ImageStatus:
        self._check()
        if request.key in self._looks:
            self._looks[request.key] += 1
            if self._looks[request.key] < self.ready_after:
                return ImageStatus(BuildState.BUILDING, detail="installing")
            del self._looks[request.key]
            self._done[request.key] = self._outcome(request)
        return self._done.get(request.key, ImageStatus(BuildState.MISSING))

    def build(self, request: ImageRequest) -> None:
        self._check()
        done = self._done.get(request.key)
        if request.key in self._looks or (done and done.state is BuildState.READY):
            return
        self._done.pop(request.key, None)
        self._looks[request.key] = 0
        self.built.append(request)

    def document(self, digest: str) -> bytes:
        self._check()
        if digest not in self._documents or self.forgets_documents:
            raise ImageError(f"the document {digest} is lost", retryable=False)
        return self._documents[digest]

    def lose(self) -> None:
        """Forget the builds under way, as a restart does."""
        self._looks.clear()

    def images(self) -> set[str]:
        """What was built and is still there."""
        return {status.image for status in self._done.values() if status.image}

    def holds(self, image: str) -> bool:
        return image in self.images()

    def forget(self, image: str) -> None:
        """Somebody removes the image."""
        self._done = {key: status for key, status in self._done.items() if status.image != image}

    def _check(self) -> None:
        if self.broken:
            raise ImageError("the builder does not answer", retryable=True)

    def _outcome(self, request: ImageRequest) -> ImageStatus:
        if request.version in self.fails:
            return ImageStatus(BuildState.FAILED, detail=self.fails[request.version])
        digest = hashlib.sha256(f"image of {request.key}".encode()).hexdigest()
        lock = self._written("lock.txt", "numpy==2.3.5\n")
        written = tuple(self._written(f"{name}.json", f'{{"{name}": "{digest}"}}') for name in ("provenance", "sbom"))
        return ImageStatus(BuildState.READY, image=digest, lock=lock.digest, documents=(lock, *written))

    def _written(self, name: str, text: str) -> Document:
        document = Document(name, hashlib.sha256(text.encode()).hexdigest())
        self._documents[document.digest] = text.encode()
        return document
