"""Models that are too large for an image: a manifest stands in their place, and servers fetch them when they start.

The manifest names the files by the location that MLflow has for them, so an image is the same wherever it runs; where
containers reach MLflow's artifacts, and with which credentials, they are told when they start. A compiled form that is
too large is left out: it lies nowhere that it could be fetched from, so the model itself answers then.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from registry_hooks.model_version import ModelVersion
from serving.image import ImageError
from serving.runtime import model_files, plan
from serving.runtime.fetch_source import ARTIFACTS_URL, CREDENTIALS, OF_MLFLOW, SERVED_BY_MLFLOW, place_of
from serving.runtime.manifest import Listed, Manifest
from serving.runtime.model_files import Files
from serving.runtime.requirements import STORES

_OF_STORES = ("AWS_", "AZURE_STORAGE_", "FSSPEC_")
"""How variables begin that say how such a store is reached."""
MEGABYTE = 2**20


class Locations(Protocol):
    """As much of a registry as a manifest needs."""

    def location(self, version: ModelVersion) -> str:
        """URI of the folder with the version's files, as MLflow names it. `RegistryError`."""
        ...


@dataclass(frozen=True, slots=True)
class LargeModels:
    """Which models are too large, and where they are fetched from."""

    limit: int
    """Bytes of the largest model, and of the largest compiled form of one, that is put into an image."""
    locations: Locations
    artifacts: str
    """URL at which containers reach what MLflow calls ``mlflow-artifacts:/``."""

    def manifest(self, version: ModelVersion, files: Files, lock: str) -> Manifest | None:
        """Of a model of these files; None where it is put into its image. `lock` is that of its packages.

        `ImageError` where containers cannot fetch it, `RegistryError`.
        """
        size = sum(file.size for file in files.values())
        if size <= self.limit:
            return None
        source = source_of(self.locations.location(version), self.artifacts)
        if why := _unreachable(place_of(source, self.artifacts), lock):
            most = f"more than baked_model_mb, {self.limit // MEGABYTE}"
            words = f"{version} has {-(-size // MEGABYTE)} MiB, {most}, and cannot be fetched by its servers: {why}"
            raise ImageError(words, retryable=False)
        try:
            return Manifest(source, tuple(Listed(path, file.size, file.sha256) for path, file in sorted(files.items())))
        except ValueError as error:
            raise ImageError(f"{version} cannot be fetched by its servers: {error}", retryable=False) from error

    def plan(self, folder: Path, smaller: Path) -> Path:
        """The folder with the plan, or `smaller`, with one that has no compiled model, where that is too large."""
        written = plan.read(folder)
        size = (folder / written.compiled.file).stat().st_size if written.compiled else 0
        if size <= self.limit:
            return folder
        most = f"more than baked_model_mb, {self.limit // MEGABYTE}"
        why = f"the compiled model has {-(-size // MEGABYTE)} MiB, {most}, and lies nowhere it could be fetched from"
        replace(written, compiled=None, why=why).write(smaller)
        shutil.copyfile(folder / model_files.FILE, smaller / model_files.FILE)
        return smaller


def artifacts_at(mlflow: str, given: str | None = None) -> str:
    """Where containers reach MLflow's artifacts: as is `given`, else at the MLflow server's own address."""
    if given:
        return given
    url = urlsplit(mlflow)
    return url._replace(netloc=url.netloc.rpartition("@")[2], path=url.path.rstrip("/") + OF_MLFLOW).geturl()


def fetching(mlflow: str, artifacts: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables of a server that fetches: where from, and the credentials that the controller's `environment` has."""
    url = urlsplit(mlflow)
    told = {
        "MLFLOW_TRACKING_USERNAME": unquote(url.username or ""),
        "MLFLOW_TRACKING_PASSWORD": unquote(url.password or ""),
    }
    of_stores = {name for name in environment if name.startswith(_OF_STORES)}
    told |= {name: environment[name] for name in sorted({*CREDENTIALS, *of_stores} & environment.keys())}
    return {ARTIFACTS_URL: artifacts} | {name: value for name, value in told.items() if value}


def source_of(location: str, artifacts: str) -> str:
    """MLflow's `location` as a manifest names it: one at another MLflow server is a URL of that one."""
    url = urlsplit(location)
    if url.scheme != SERVED_BY_MLFLOW or not url.netloc:
        return location
    scheme = urlsplit(artifacts).scheme
    return f"{scheme if scheme in ('http', 'https') else 'http'}://{url.netloc}{OF_MLFLOW}{url.path}"


def _unreachable(place: str, lock: str) -> str:
    """Why a container cannot fetch from the URL `place`; empty where it can."""
    url = urlsplit(place)
    if url.scheme in ("http", "https"):
        if not _own(url.hostname):
            return ""
        advice = "the setting artifacts_url says where they reach MLflow's artifacts"
        return f"{place} is an address of this machine's own, which containers do not reach; {advice}"
    if url.scheme not in STORES:
        return f"{place} is a place that containers do not reach; have MLflow serve its artifacts"
    package = STORES[url.scheme].partition(">")[0]
    known = re.search(rf"^{package}==", lock, re.MULTILINE)
    return "" if known else f"{place} is read with {package}, which is not among the model's requirements"


def _own(host: str | None) -> bool:
    try:
        return host in (None, "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
