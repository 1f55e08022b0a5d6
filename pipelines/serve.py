"""One model served on this machine, without registry, controller or gateway: from a URI to an image that is ready.

Images and environments are kept below the installation's home, so that the second start of the same model builds
nothing. A registered version is known by its name; everything else by what is in its folder, which has to be
fetched to see.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from urllib.parse import unquote, urlsplit

from pipelines.client import ClientError
from pipelines.refusal import one_line
from registry_hooks.logged_sample import LoggedSamples
from registry_hooks.model_version import ModelVersion
from registry_hooks.reference import ReferenceData, ReferenceDataError
from registry_hooks.registry import RegistryError
from serving.current_environment import CurrentEnvironment
from serving.image import BuildState, ImageError, ImageRequest, Proof, digest_of, server_digest
from serving.local_image import LocalImage, LocalImageBuilder
from serving.workshop import workshop

Tell = Callable[[str], None]

_LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which model is to be served, and how."""

    uri: str
    home: Path
    tracking_uri: str | None = None
    """Where MLflow looks URIs up; as MLflow itself decides without."""
    native: bool = False
    """Serve the model itself, and compile nothing."""
    own: bool = False
    """In the environment of this command, and not in the model's own."""
    compile_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Ready:
    """An image that can be served."""

    name: str
    version: int
    """0 where it is no version of a registered model."""
    image: LocalImage
    proof: Proof


def prepare(wanted: Wanted, tell: Tell) -> Ready:
    """Have the image of the model, from an earlier time or built now; `tell` hears how far it is.

    Raises `ClientError`.
    """
    folder = local_folder(wanted.uri)
    bench = _Bench(wanted, tell)
    try:
        return bench.of_folder(folder) if folder is not None else bench.of_uri(wanted.uri)
    except RegistryError as error:
        code = "registry_unreachable" if error.retryable else "invalid"
        hint = "see that the URI is right; --tracking-uri says where MLflow is"
        raise ClientError(code, one_line(error), hint) from error
    except (ImageError, OSError) as error:
        raise ClientError("failed", one_line(error), f"everything is kept below {wanted.home}") from error
    finally:
        bench.close()


def local_folder(uri: str) -> Path | None:
    """The folder that `uri` names; None where it is for MLflow to say. Raises `ClientError`."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    folder = Path(unquote(parts.path) if parts.scheme else uri).expanduser().absolute()
    if not (folder / "MLmodel").is_file():
        what = "holds no MLmodel, so it is no model" if folder.is_dir() else "is no folder"
        raise ClientError("invalid", f"{folder} {what}", "name the folder of a model, or a URI such as models:/churn/7")
    return folder


class _Bench:
    """Where one model's image is looked up or made."""

    def __init__(self, wanted: Wanted, tell: Tell) -> None:
        self._wanted, self._tell = wanted, tell
        self._own = CurrentEnvironment() if wanted.own else None
        self._copy = Path()
        """The model's files, once they are here."""
        self._server = wanted.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        """Where runs are; empty until somebody names a server or a store, because MLflow would make one here."""
        self._run: str | None = None
        self._builder = LocalImageBuilder(
            wanted.home,
            self,
            provider=self._own,
            native=wanted.native,
            compile_seconds=wanted.compile_seconds,
            samples=LoggedSamples(self._reference, lambda _: self._run),
        )

    def close(self) -> None:
        self._builder.close()

    def download(self, version: ModelVersion, destination: Path) -> Path:
        """What the builder calls: the files are here already, and stay, because it may have to try twice."""
        return Path(copytree(self._copy, destination / version.model))

    def _reference(self) -> ReferenceData:
        if not self._server:
            raise ReferenceDataError("nobody said which server has the model's run", retryable=True)
        from registry_hooks.mlflow_reference import MlflowReference

        return MlflowReference(self._server)

    def of_folder(self, folder: Path) -> Ready:
        self._copy = folder
        return self._had(folder.name, 0, digest_of(folder))

    def of_uri(self, uri: str) -> Ready:
        """Fetched here and not by the builder's thread, so that Ctrl-C ends it at once."""
        from registry_hooks.model_uri import ModelUris

        self._tell(f"looking up {uri}")
        uris = ModelUris(self._wanted.tracking_uri)
        named = uris.find(uri)
        self._server, self._run = uris.server, named.run_id
        known = self._find(self._request(named.name, named.version, named.lasting)) if named.lasting else None
        if known is not None:
            return known
        self._tell(f"downloading {named.uri}")
        with workshop(self._wanted.home / "building") as folder:
            self._copy = uris.download(named, folder)
            return self._had(named.name, named.version, named.lasting or digest_of(self._copy))

    def _had(self, name: str, version: int, content: str) -> Ready:
        request = self._request(name, version, content)
        known = self._find(request)
        if known is None:
            self._build(request)
            known = self._find(request)
        if known is None:
            detail = " ".join(self._builder.find(request).detail.split())
            hint = "see the requirements and the input example of the model"
            raise ClientError("failed", f"the model cannot be served: {detail}", hint)
        return known

    def _request(self, name: str, version: int, content: str) -> ImageRequest:
        """Another one for each way to build the same content."""
        way = (self._wanted.native, self._own.key if self._own else "")
        return ImageRequest(ModelVersion(name, version), repr((content, *way)), server_digest())

    def _find(self, request: ImageRequest) -> Ready | None:
        status = self._builder.find(request)
        image = LocalImage.find(self._wanted.home, status.image) if status.image else None
        if image is None or status.proof is None:
            return None
        return Ready(request.version.model, request.version.version, image, status.proof)

    def _build(self, request: ImageRequest) -> None:
        self._builder.build(request)
        told = ""
        while (status := self._builder.find(request)).state is BuildState.BUILDING:
            if status.detail != told:
                told = status.detail
                self._tell(told)
            time.sleep(_LOOK_SECONDS)
