"""Container images of model versions: what `LocalImages` makes on this machine, put into images by a depot.

An image that is there is never built again, be it in an engine or, where one is named, in a registry. What a model's
packages come to stands in an image of its own, so that another version with the same lock costs no more than its files.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from registry_hooks.model_version import ModelVersion
from serving.compile_step import proof_of
from serving.depot import Depot, own_architecture
from serving.docker_stock import FOLDER
from serving.engine_errors import EngineError
from serving.image import ImageError, ImageRequest
from serving.image_context import HOME, MANIFEST, MANIFEST_BYTES, VERSION, Context, model_context, packages_context
from serving.image_packages import Rule, digest_of_rules, lay_out, rules_for
from serving.large_models import LargeModels
from serving.local_image import LocalImage, LocalImages
from serving.made import Base, Made
from serving.needs import Needs, read_needs
from serving.runtime import model_files

_SYSTEM = {"lightgbm": ("libgomp1",)}
"""What the packages of a flavour take from the system, which slim images do not have."""


@dataclass(frozen=True, slots=True)
class ImageNames:
    """How images are called, and what they stand on."""

    repository: str
    """Every image of the installation is below this name; a host in front is the registry that images are sent to."""
    base: str = "python:{python}-slim"
    """What images of models stand on; ``{python}`` is the version that the model needs."""
    bases: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The same by MLflow's name of a flavour."""

    @property
    def remote(self) -> bool:
        """Whether there is a registry to send images to."""
        host = self.repository.partition("/")[0]
        return "/" in self.repository and ("." in host or ":" in host or host == "localhost")

    def base_for(self, needs: Needs) -> str:
        return self.bases.get(needs.flavor, self.base).format(python=needs.python)

    def packages(self, key: str) -> str:
        return f"{self.repository}/packages:{key[:20]}"

    def model(self, version: ModelVersion, digest: str) -> str:
        return f"{self.repository}/{_slug(version.model)}:{digest[:20]}"


Commits = Callable[[ModelVersion], str | None]
"""The git commit of the code that made a version, where its run tells it. Raises `RegistryError`."""


class DockerImages:
    """`Maker` of container images."""

    def __init__(
        self,
        home: Path,
        images: LocalImages,
        depot: Depot,
        names: ImageNames,
        *,
        commits: Commits = lambda _: None,
        large: LargeModels | None = None,
    ) -> None:
        """`images` makes below `home` what the `depot` then packs, without models that are too `large`, if any is."""
        self._home = home.absolute()
        self._images = images
        self._depot = depot
        self._names = names
        self._large = large
        self._commits = commits
        self._turn = threading.Lock()

    def holds(self, image: str) -> bool:
        """See `Maker`."""
        with _asked():
            return self._depot.image(image) is not None or (self._names.remote and self._pulled(image) is not None)

    def close(self) -> None:
        """See `Maker`."""
        self._images.close()

    def make(self, request: ImageRequest, folder: Path, tell: Callable[[str], None]) -> Made:
        """See `Maker`."""
        with _asked():
            self._check_platform()
            made = self._images.make(request, folder, tell)
            local, lock = LocalImage.find(self._home, made.image), made.lock.digest
            if local is None:
                raise ImageError(f"the image of {request.version} went while it was packed", retryable=True)
            if changed := local.changed:
                raise ImageError(f"what {request.version} was built of is not as it was: {changed}", retryable=False)
            needs = read_needs(local.model)
            base = Base(self._names.base_for(needs), self._base(self._names.base_for(needs), needs, tell))
            packages = self._packages(local, needs, base, lock, folder / "packages", tell)
            plan = self._large.plan(local.plan, folder / "plan") if self._large else local.plan
            labels = labels_of(request, local, lock, self._commits(request.version))
            context = self._context(request, replace(local, plan=plan), packages, made, labels, folder / "model")
            tag = self._names.model(request.version, context.digest)
            return replace(made, image=self._had(tag, lambda: context, tell), base=base, proof=proof_of(plan))

    def _context(
        self, request: ImageRequest, local: LocalImage, packages: str, made: Made, labels: dict[str, str], folder: Path
    ) -> Context:
        """Of the image with the model, or with the manifest of one that is fetched, which is written to `folder`."""
        files = model_files.loaded((local.plan / model_files.FILE).read_text())
        manifest = self._large.manifest(request.version, files, made.lock.text) if self._large else None
        if manifest is None:
            return model_context(packages, local.model, local.plan, labels)
        manifest.write(folder)
        told = labels | {MANIFEST: manifest.digest, MANIFEST_BYTES: str(manifest.size)}
        return model_context(packages, folder, local.plan, told, fetched=True)

    def _check_platform(self) -> None:
        """Packages are chosen and the model is tried out here, so the engine's machine has to be of the same kind."""
        here, there = own_architecture(), self._depot.architecture
        if here != there:
            what = f"containers run on {there} and the controller on {here}"
            raise ImageError(f"{what}: images are made for the controller's kind of machine only", retryable=False)

    def _packages(
        self, local: LocalImage, needs: Needs, base: Base, lock: str, folder: Path, tell: Callable[[str], None]
    ) -> str:
        """The name of the image with the packages; it is made where there is none."""
        system, rules = self._system(needs), rules_for(needs)
        tag = self._names.packages(_key(base.digest, lock, system, rules))

        def context() -> Context:
            tell("laying out the packages")
            place = f"{HOME}/lib/python{needs.python}/site-packages"
            laid_out = lay_out(local.python, needs.python, rules, folder, place)
            return packages_context(base.name, needs.python, laid_out, system)

        with self._turn:
            self._had(tag, context, tell)
        return tag

    def _system(self, needs: Needs) -> tuple[str, ...]:
        """Where nothing can be installed, a base that is named for the flavour is taken to have what that needs."""
        given = not self._depot.installs and needs.flavor in self._names.bases
        return () if given else _SYSTEM.get(needs.flavor, ())

    def _base(self, base: str, needs: Needs, tell: Callable[[str], None]) -> str:
        """The id of the base image."""
        known = self._depot.image(base)
        if known is not None:
            return known
        tell(f"pulling {base}")
        try:
            return self._depot.pull(base)
        except EngineError as error:
            advice = (
                f"the model needs Python {needs.python}; the settings base_image and base_images "
                f"({needs.flavor or 'python_function'}: ...) say what its image stands on"
            )
            raise ImageError(f"{error}; {advice}", retryable=error.retryable) from error

    def _had(self, tag: str, context: Callable[[], Context], tell: Callable[[str], None]) -> str:
        """What the image is known by from now on: from the depot, from the registry, or built and sent there."""
        image = self._depot.image(tag) or (self._pulled(tag) if self._names.remote else None)
        if image is None:
            tell(f"building {tag}")
            image = self._depot.build(context(), tag, lambda said: tell(f"building: {said}"))
        if not self._names.remote:
            return image
        tell(f"sending {tag} to its registry")
        return f"{tag.rpartition(':')[0]}@{self._depot.push(tag)}"

    def _pulled(self, reference: str) -> str | None:
        """None where the registry does not have it."""
        try:
            return self._depot.pull(reference)
        except EngineError as error:
            if error.retryable:
                raise
            return None


def labels_of(request: ImageRequest, local: LocalImage, lock: str, commit: str | None) -> dict[str, str]:
    """What an image says of itself, in OCI's words where there is one."""
    written = yaml.safe_load((local.model / "MLmodel").read_text())
    run = str(written.get("run_id") or "")
    return {
        "org.opencontainers.image.title": request.version.model,
        "org.opencontainers.image.version": str(request.version.version),
        "org.opencontainers.image.source": request.source,
        "promote.model": request.version.model,
        "promote.version": str(request.version.version),
        "promote.lock": lock,
        FOLDER: local.model.parent.name,
        **({"promote.run": run} if run else {}),
        **({"org.opencontainers.image.revision": commit} if commit else {}),
    }


def _key(base: str, lock: str, system: Sequence[str], rules: Sequence[Rule]) -> str:
    return hashlib.sha256(repr((VERSION, base, lock, tuple(system), digest_of_rules(rules))).encode()).hexdigest()


def _slug(model: str) -> str:
    """As an engine takes it in a name; what is lost does not matter, because the tag tells images apart."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in model.lower())
    return "-".join(filter(None, kept.split("-")))[:60] or "model"


@contextmanager
def _asked() -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise ImageError(str(error), retryable=error.retryable) from error
