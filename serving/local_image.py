"""Images for this machine: a folder with the model, its plan, the model server and the lock; and an environment.

What the plan says is found out once for each model, environment and model server: the next version that is made of
the same parts gets the image that is there. Builds run in threads. What is under way lives in memory only, what is
done or has failed for good on disk: after a restart a finished build is found, a failed one still says why, and an
interrupted one is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from registry_hooks.model_version import ModelVersion
from registry_hooks.reference import Sample, Samples
from registry_hooks.registry import RegistryError
from serving.compile_step import CompileStep, proof_of, write_rows
from serving.environment import Environments, Interpreters, Provider, variables
from serving.image import BuildState, ImageError, ImageRequest, ImageStatus, Proof, copy_server, digest_of
from serving.workshop import clear, workshop

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocalImage:
    """Where the parts of an image on this machine are."""

    model: Path
    """The folder that holds ``MLmodel``."""
    plan: Path
    """The folder that holds the plan, and the compiled model where there is one."""
    server: Path
    """What PYTHONPATH has to be."""
    python: Path
    """The interpreter of the model's environment."""
    own: bool = False
    """Whether that is the environment in which this very process runs."""

    @classmethod
    def find(cls, home: Path, digest: str) -> LocalImage | None:
        """The image with that digest; None where it is not whole."""
        try:
            image = json.loads((home / "images" / digest / "image.json").read_text())
        except FileNotFoundError:
            return None
        place = home / "images" / digest
        own = image.get("python")
        python = Path(own or home / "environments" / image["lock"] / "bin" / "python")
        found = cls(place / "model", place / "plan", place / "server", python, own is not None)
        return found if python.exists() else None

    @property
    def proof(self) -> Proof:
        """How the model is served. `ImageError`."""
        return proof_of(self.plan)

    @property
    def variables(self) -> dict[str, str]:
        """What the model server's environment variables begin with."""
        return variables(self.server, own=self.own)

    def command(self, *options: str) -> list[str]:
        """What starts the model server."""
        parts = ("--model", str(self.model), "--plan", str(self.plan))
        return [str(self.python), "-m", "serving.runtime", *parts, *options]


class Downloads(Protocol):
    """As much of a registry as a build needs."""

    def download(self, version: ModelVersion, destination: Path) -> Path:
        """See `ModelRegistry.download`."""
        ...


class LocalImageBuilder:
    """`ImageBuilder` for this machine, everything below `home`."""

    def __init__(
        self,
        home: Path,
        registry: Downloads,
        *,
        builders: int = 2,
        compile_seconds: float = 120.0,
        provider: Provider | None = None,
        native: bool = False,
        samples: Samples | None = None,
    ) -> None:
        """At most `builders` images are built at the same time, each compiled in at most `compile_seconds`.

        Environments are made below `home` unless there is another `provider`; where `native`, nothing is compiled;
        what is compiled is also tried on rows of the `samples`.
        """
        self._home = home.absolute()
        self._registry = registry
        self._provider = provider or Environments(self._home)
        self._step = CompileStep(compile_seconds)
        self._native = native
        self._samples = samples
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
            saved = json.loads(self._record(request).read_text())
        except FileNotFoundError:
            return ImageStatus(BuildState.MISSING)
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot read the record of the build: {error}", retryable=True) from error
        proof = saved.pop("proof", None)
        status = ImageStatus(BuildState(saved.pop("state")), **saved, proof=proof and Proof(**proof))
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
        self._provider.close()
        if self._samples is not None:
            self._samples.close()
        self._step.stop()
        self._pool.shutdown(cancel_futures=True)

    def _build(self, request: ImageRequest) -> None:
        try:
            status = self._persevere(request)
            if not self._closing.is_set():
                self._keep(request, status)
        finally:
            self._under_way.pop(request.key, None)

    def _persevere(self, request: ImageRequest) -> ImageStatus:
        """Build, and try again where that can help, unless the builder is closed meanwhile."""
        for seconds in (1, 2, 4, 8, 0):
            try:
                with workshop(self._home / "building") as folder:
                    (folder / "image").mkdir()
                    return self._made(request, folder)
            except (ImageError, RegistryError, OSError) as error:
                failed = ImageStatus(BuildState.FAILED, detail=str(error))
                if not getattr(error, "retryable", True) or not seconds:
                    return failed
                self._tell(request, f"trying again in {seconds} s: {error}")
                if self._closing.wait(seconds):
                    return failed
        return failed

    def _made(self, request: ImageRequest, folder: Path) -> ImageStatus:
        def tell(detail: str) -> None:
            self._under_way[request.key] = detail

        image, model = folder / "image", folder / "image" / "model"
        tell("downloading the model")
        shutil.move(self._registry.download(request.version, folder / "download"), model)
        python = self._provider.provide(model, tell, native=self._native)
        copy_server(image / "server")
        parts = {"model": digest_of(model), "server": digest_of(image / "server"), "lock": python.lock.digest}
        same = self._home / "images" / f".{_name(parts | {'native': python.why})}"
        if (known := self._known(same)) is not None:
            return _ready(*known, python)
        rows = self._sampled(request.version, model, tell) if python.compiling else None
        tell("compiling" if python.compiling else "loading the model")
        lasting = self._planned(python, image, write_rows(rows, folder / "rows.json") if rows else None)
        digest = self._assembled(image, parts, python)
        if lasting and not (rows and rows.retryable):
            _write(same, digest)
        return _ready(digest, proof_of(self._home / "images" / digest / "plan"), python)

    def _known(self, same: Path) -> tuple[str, Proof] | None:
        """The image that was made of the same parts, unless it is gone."""
        try:
            digest = same.read_text()
        except FileNotFoundError:
            return None
        image = LocalImage.find(self._home, digest)
        return (digest, image.proof) if image else None

    def _sampled(self, version: ModelVersion, model: Path, tell: Callable[[str], None]) -> Sample | None:
        """Rows that the version is known to have met."""
        if self._samples is None:
            return None
        tell("reading the data set of the model's run")
        return self._samples.take(version, model)

    def _planned(self, python: Interpreters, image: Path, rows: Path | None) -> bool:
        """Write the plan of the model; whether it would come out the same another time."""
        environment, why = variables(image / "server", own=python.own), python.why
        model, plan = image / "model", image / "plan"
        if python.compiling is not None:
            failed = self._step.compile(python.compiling, model, plan, environment, rows)
            if not failed:
                return True
            why = f"compiling failed: {failed}"
        self._step.look(python.serving, model, plan, environment, why)
        return python.compiling is None

    def _assembled(self, image: Path, parts: Mapping[str, str], python: Interpreters) -> str:
        """Complete the image, and move it to its place; its digest."""
        (image / "lock.txt").write_text(python.lock.text)
        parts = {**parts, "plan": digest_of(image / "plan")}
        if python.own:
            parts["python"] = str(python.serving)
        digest = _name(parts)
        (image / "image.json").write_text(json.dumps({**parts, "digest": digest}))
        place = self._home / "images" / digest
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            image.rename(place)
        return digest

    def _keep(self, request: ImageRequest, status: ImageStatus) -> None:
        record = self._record(request)
        record.parent.mkdir(parents=True, exist_ok=True)
        _write(record, json.dumps(asdict(status)))

    def _record(self, request: ImageRequest) -> Path:
        return self._home / "builds" / f"{request.key}.json"

    def _tell(self, request: ImageRequest, detail: str) -> None:
        self._under_way[request.key] = detail


def _ready(digest: str, proof: Proof, python: Interpreters) -> ImageStatus:
    return ImageStatus(BuildState.READY, digest, str(proof), python.lock.digest, proof)


def _name(parts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.new")
    fresh.write_text(text)
    fresh.replace(path)


def _report(build: Future[None]) -> None:
    """Nobody waits for a build: what nobody thought of has to be seen in the log at least."""
    if not build.cancelled() and (error := build.exception()):
        _logger.error("a build ended unexpectedly", exc_info=error)
