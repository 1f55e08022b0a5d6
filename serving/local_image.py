"""Images for this machine: a folder with the model, the model server and the lock, and a shared environment.

Builds run in threads. What is under way lives in memory only, what is done or has failed for good on disk: after
a restart a finished build is found, a failed one still says why, and an interrupted one is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from registry_hooks.registry import ModelRegistry, RegistryError
from serving.environment import Environments, Lock, read_needs
from serving.image import BuildState, ImageError, ImageRequest, ImageStatus, copy_server, digest_of

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocalImage:
    """Where the parts of an image on this machine are."""

    model: Path
    """The folder that holds ``MLmodel``."""
    server: Path
    """What PYTHONPATH has to be."""
    python: Path
    """The interpreter of the model's environment."""

    @classmethod
    def find(cls, home: Path, digest: str) -> LocalImage | None:
        """The image with that digest; None where it is not whole."""
        try:
            image = json.loads((home / "images" / digest / "image.json").read_text())
        except FileNotFoundError:
            return None
        place = home / "images" / digest
        python = home / "environments" / image["lock"] / "bin" / "python"
        return cls(place / "model", place / "server", python) if python.exists() else None


class LocalImageBuilder:
    """`ImageBuilder` for this machine, everything below `home`."""

    def __init__(self, home: Path, registry: ModelRegistry, *, builders: int = 2) -> None:
        """At most `builders` images are built at the same time."""
        self._home = home.absolute()
        self._registry = registry
        self._environments = Environments(self._home)
        self._pool = ThreadPoolExecutor(builders, "image")
        self._under_way: dict[str, str] = {}
        self._guard = threading.Lock()
        self._closing = threading.Event()
        shutil.rmtree(self._home / "building", ignore_errors=True)

    def find(self, request: ImageRequest) -> ImageStatus:
        detail = self._under_way.get(request.key)
        if detail is not None:
            return ImageStatus(BuildState.BUILDING, detail=detail)
        try:
            saved = json.loads(self._record(request).read_text())
        except FileNotFoundError:
            return ImageStatus(BuildState.MISSING)
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot read the record of the build: {error}", retryable=True) from error
        status = ImageStatus(BuildState(saved.pop("state")), **saved)
        lost = status.image is not None and LocalImage.find(self._home, status.image) is None
        return ImageStatus(BuildState.MISSING) if lost else status

    def build(self, request: ImageRequest) -> None:
        with self._guard:
            if self._closing.is_set() or self.find(request).state in (BuildState.BUILDING, BuildState.READY):
                return
            self._under_way[request.key] = "waiting for its turn"
        self._pool.submit(self._build, request).add_done_callback(_report)

    def close(self) -> None:
        """End the builds under way; they are missing afterwards."""
        self._closing.set()
        self._environments.close()
        self._pool.shutdown(cancel_futures=True)

    def _build(self, request: ImageRequest) -> None:
        try:
            status = self._persevere(request)
            if not self._closing.is_set():
                self._keep(request, status)
        finally:
            self._under_way.pop(request.key, None)

    def _persevere(self, request: ImageRequest) -> ImageStatus:
        """Build, and try again where that can help."""
        for seconds in (1, 2, 4, 8, 0):
            try:
                with self._workshop() as folder:
                    return self._made(request, folder)
            except (ImageError, RegistryError, OSError) as error:
                failed = ImageStatus(BuildState.FAILED, detail=str(error))
                if not getattr(error, "retryable", True) or not seconds:
                    return failed
                self._tell(request, f"trying again in {seconds} s: {error}")
                self._closing.wait(seconds)
        return failed

    def _made(self, request: ImageRequest, folder: Path) -> ImageStatus:
        self._tell(request, "downloading the model")
        model = self._registry.download(request.version, folder / "download")
        shutil.move(model, folder / "image" / "model")
        self._tell(request, "resolving the requirements")
        lock = self._environments.resolve(read_needs(folder / "image" / "model"), folder / "image" / "model")
        self._tell(request, f"installing {lock.packages} packages")
        self._environments.install(lock, folder / "image" / "model")
        self._tell(request, "putting the image together")
        return ImageStatus(BuildState.READY, self._assembled(folder / "image", lock), lock=lock.digest)

    def _assembled(self, folder: Path, lock: Lock) -> str:
        """Complete the image in `folder`, and move it to its place; its digest."""
        copy_server(folder / "server")
        (folder / "lock.txt").write_text(lock.text)
        parts = {"model": digest_of(folder / "model"), "server": digest_of(folder / "server"), "lock": lock.digest}
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        (folder / "image.json").write_text(json.dumps(parts | {"digest": digest}))
        place = self._home / "images" / digest
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            folder.rename(place)
        return digest

    @contextmanager
    def _workshop(self) -> Iterator[Path]:
        folder = self._home / "building" / uuid.uuid4().hex
        (folder / "image").mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _keep(self, request: ImageRequest, status: ImageStatus) -> None:
        record = self._record(request)
        record.parent.mkdir(parents=True, exist_ok=True)
        fresh = record.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(status)))
        fresh.replace(record)

    def _record(self, request: ImageRequest) -> Path:
        return self._home / "builds" / f"{request.key}.json"

    def _tell(self, request: ImageRequest, detail: str) -> None:
        self._under_way[request.key] = detail


def _report(build: Future[None]) -> None:
    """Nobody waits for a build: what nobody thought of has to be seen in the log at least."""
    if not build.cancelled() and (error := build.exception()):
        _logger.error("a build ended unexpectedly", exc_info=error)
