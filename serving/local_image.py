"""Images for this machine: a folder with the model, its plan, the model server and the lock; and an environment.

What the plan says is found out once for each model, environment and model server: the next version that is made of
the same parts gets the image that is there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from registry_hooks.model_version import ModelVersion
from registry_hooks.reference import Sample, Samples
from serving.builds import Builds
from serving.compile_step import CompileStep, proof_of, write_rows
from serving.environment import Environments, Interpreters, Provider, variables
from serving.image import ImageRequest, Proof, approved_files, copy_server, digest_of, without_others
from serving.made import Made
from serving.needs import read_needs
from serving.package_source import PackageSource
from serving.runtime import model_files
from serving.signing import SigningKey
from serving.workshop import put


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
        place = home / "images" / digest
        try:
            image = json.loads((place / "image.json").read_text())
            own, lock = image.get("python"), str(image["lock"])
        except (FileNotFoundError, ValueError, KeyError, AttributeError):
            return None
        python = Path(own or home / "environments" / lock / "bin" / "python")
        found = cls(place / "model", place / "plan", place / "server", python, own is not None)
        return found if python.exists() else None

    @property
    def proof(self) -> Proof:
        """How the model is served. `ImageError`."""
        return proof_of(self.plan)

    @property
    def changed(self) -> str:
        """What is not as it was built, with both digests; empty where nothing is. Reads every file of the model."""
        place = self.model.parent
        try:
            parts = json.loads((place / "image.json").read_text())
            parts.pop("digest")
            found = {"model": _digest(self.model), "plan": _digest(self.plan), "server": digest_of(self.server)}
            pairs = [(part, is_now, parts[part]) for part, is_now in found.items()]
        except (ValueError, KeyError, AttributeError) as error:
            return f"its files cannot be told: {error}"
        pairs.append(("record", _name(parts), place.name))
        return "; ".join(f"its {part} has SHA-256 {is_now}, not {was}" for part, is_now, was in pairs if is_now != was)

    @property
    def variables(self) -> dict[str, str]:
        """What the model server's environment variables begin with."""
        return variables(self.server, own=self.own)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody removes it meanwhile, whatever process asks. `FileNotFoundError` where somebody just did."""
        with (self.model.parent / "image.json").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def command(self, *options: str) -> list[str]:
        """What starts the model server."""
        parts = ("--model", str(self.model), "--plan", str(self.plan))
        return [str(self.python), "-m", "serving.runtime", *parts, *options]


class Downloads(Protocol):
    """As much of a registry as a build needs."""

    def download(self, version: ModelVersion, destination: Path) -> Path:
        """See `ModelRegistry.download`."""
        ...


class LocalImages:
    """`Maker` of images for this machine, everything below `home`."""

    def __init__(
        self,
        home: Path,
        registry: Downloads,
        *,
        compile_seconds: float = 120.0,
        provider: Provider | None = None,
        native: bool = False,
        samples: Samples | None = None,
        packages: PackageSource | None = None,
    ) -> None:
        """Each image is compiled in at most `compile_seconds`.

        Environments are made below `home`, of `packages`, unless there is another `provider`; where `native`,
        nothing is compiled; what is compiled is also tried on rows of the `samples`.
        """
        self._home = home.absolute()
        self._registry = registry
        self._provider = provider or Environments(self._home, packages)
        self._step = CompileStep(compile_seconds)
        self._native = native
        self._samples = samples

    def holds(self, image: str) -> bool:
        """See `Maker`."""
        return LocalImage.find(self._home, image) is not None

    def close(self) -> None:
        """See `Maker`."""
        self._provider.close()
        if self._samples is not None:
            self._samples.close()
        self._step.stop()

    def make(self, request: ImageRequest, folder: Path, tell: Callable[[str], None]) -> Made:
        """See `Maker`."""
        image, model = folder / "image", folder / "image" / "model"
        image.mkdir()
        tell("downloading the model")
        shutil.move(self._registry.download(request.version, folder / "download"), model)
        files = approved_files(request, model)
        python = self._provider.provide(model, tell, native=self._native)
        flavor = read_needs(model).flavor
        copy_server(image / "server")
        parts = {"model": model_files.digest(files), "server": digest_of(image / "server"), "lock": python.lock.digest}
        same = self._home / "images" / f".{_name(parts | {'native': python.why})}"
        if (known := self._known(same)) is not None:
            digest, proof = known
            return Made(digest, parts["model"], flavor, parts["server"], python.lock, proof)
        rows = self._sampled(request.version, model, tell) if python.compiling else None
        tell("compiling" if python.compiling else "loading the model")
        lasting = self._planned(python, image, write_rows(rows, folder / "rows.json") if rows else None)
        without_others(model, files)
        model_files.write(files, image / "plan")
        digest = self._assembled(image, parts, python)
        if lasting and not (rows and rows.retryable):
            put(same, digest)
        proof = proof_of(self._home / "images" / digest / "plan")
        return Made(digest, parts["model"], flavor, parts["server"], python.lock, proof)

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
        parts = {**parts, "plan": _digest(image / "plan")}
        if python.own:
            parts["python"] = str(python.serving)
        digest = _name(parts)
        (image / "image.json").write_text(json.dumps({**parts, "digest": digest}))
        place = self._home / "images" / digest
        place.parent.mkdir(parents=True, exist_ok=True)
        if LocalImage.find(self._home, digest) is None:
            shutil.rmtree(place, ignore_errors=True)
        if not place.exists():
            image.rename(place)
        return digest


class LocalImageBuilder(Builds):
    """`ImageBuilder` for this machine."""

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
        signing: SigningKey | None = None,
    ) -> None:
        """See `Builds` and `LocalImages`."""
        images = LocalImages(
            home, registry, compile_seconds=compile_seconds, provider=provider, native=native, samples=samples
        )
        super().__init__(home, images, builders, signing)


def _digest(folder: Path) -> str:
    return model_files.digest(model_files.listed(folder))


def _name(parts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
