"""Images without an engine: layers are written here, and a registry is all that they are sent to.

It takes no privileges and no daemon, so a controller does it in a pod of its own, because nothing runs while one of our
images is made. Layers of what an image stands on are taken over inside a registry where it has them, else fetched and
sent once. What is made is an image in OCI's format; its configuration keeps Docker's health check, which OCI's lacks.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import requests
from docker import auth
from dxf import DXF
from dxf.exceptions import DXFAuthInsecureError, DXFError, DXFMountFailed

from serving.depot import own_architecture
from serving.docker_engine import split
from serving.engine_errors import EngineError, asked_of_registry, host_of
from serving.image_context import PROBE_SECONDS, STOP_SIGNAL, USER, Context, Running, write_layer

SECONDS = 60.0
"""How long a registry may say nothing."""

_Manifest = dict[str, Any]
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_HUB = "docker.io"
_HUB_ADDRESS = "https://registry-1.docker.io"
_QUICK = 1
"""Level of compression: layers are sent once, over a network that is mostly near."""
_CHUNK = 2**20
_NANOSECONDS = 10**9


@dataclass(frozen=True, slots=True)
class _Below:
    """What an image stands on."""

    reference: str
    layers: tuple[Mapping[str, Any], ...] = ()
    """As its manifest tells them."""
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer that was written."""

    file: Path
    digest: str
    content: str
    """Digest of what is compressed."""

    @property
    def told(self) -> dict[str, Any]:
        return {"mediaType": _LAYER, "digest": self.digest, "size": self.file.stat().st_size}


class RegistryDepot:
    """`Depot` that is the registries themselves, for machines of the kind that this one is."""

    installs = False

    def __init__(self, addresses: Mapping[str, str] | None = None) -> None:
        """`addresses`: where registries are, by the host that images name, if this machine reaches them elsewhere."""
        self._addresses = {_HUB: _HUB_ADDRESS, **(addresses or {})}
        self.architecture = own_architecture()

    def image(self, reference: str) -> str | None:
        with _asked("look for", reference), self._repository(reference) as (repository, name):
            try:
                return self._manifest(repository, name)[1]
            except requests.HTTPError as error:
                if error.response is not None and error.response.status_code == requests.codes.not_found:
                    return None
                raise

    def pull(self, reference: str) -> str:
        """Nothing is pulled: who runs it does that."""
        with _asked("pull", reference), self._repository(reference) as (repository, name):
            return self._manifest(repository, name)[1]

    def push(self, reference: str) -> str:
        """Whatever is built is there."""
        return self.pull(reference)

    def holds(self, reference: str) -> bool:
        """Whether the image's registry has it."""
        return self.image(reference) is not None

    def labels(self, reference: str) -> Mapping[str, str]:
        """What the image says of itself."""
        return dict((self._below(reference).config.get("config") or {}).get("Labels") or {})

    def build(self, context: Context, tag: str, tell: Callable[[str], None]) -> str:
        if context.system:
            packages = ", ".join(context.system)
            advice = "name a base that has them, for the model's flavour, in the setting base_images"
            raise EngineError(f"{packages} cannot be installed without an engine; {advice}", retryable=False)
        below = self._below(context.base)
        with (
            _asked("send", tag),
            tempfile.TemporaryDirectory(prefix="layers-") as folder,
            self._repository(tag) as (repository, name),
        ):
            for layer in below.layers:
                self._bring(layer, below.reference, repository, tag, tell)
            own = []
            for number, place in enumerate(context.layers):
                tell(f"writing layer {number + 1} of {len(context.layers)}")
                written = _written(context, place, Path(folder) / str(number))
                tell(f"sending layer {number + 1} of {len(context.layers)}, {written.file.stat().st_size / 1e6:.0f} MB")
                repository.push_blob(filename=str(written.file))
                own.append(written)
            config = _blob(_config(below.config, context, own, self.architecture))
            repository.push_blob(data=iter([config]), digest=_digest(config))
            manifest = {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": {"mediaType": _CONFIG, "digest": _digest(config), "size": len(config)},
                "layers": [*map(_as_oci, below.layers), *(layer.told for layer in own)],
            }
            repository.set_manifest(name, _blob(manifest).decode())
            return _digest(_blob(manifest))

    def _below(self, reference: str) -> _Below:
        if reference == "scratch":
            return _Below(reference)
        with _asked("pull", reference), self._repository(reference) as (repository, name):
            manifest, _ = self._manifest(repository, name)
            config = json.loads(b"".join(_parts(repository, manifest["config"]["digest"])))
            return _Below(reference, tuple(manifest["layers"]), config)

    def _bring(
        self, layer: Mapping[str, Any], base: str, repository: DXF, tag: str, tell: Callable[[str], None]
    ) -> None:
        """Have a layer of the base where the image will be."""
        digest = str(layer["digest"])
        if _has(repository, digest):
            return
        source, _ = split(base)
        if host_of(source) == host_of(tag):
            try:
                repository.mount_blob(_path(source), digest)
            except DXFMountFailed:
                pass
            else:
                return
        tell(f"taking over a layer of {base}, {int(layer['size']) / 1e6:.0f} MB")
        with tempfile.NamedTemporaryFile(prefix="layer-") as file, self._repository(base) as (there, _):
            file.writelines(_parts(there, digest))
            file.flush()
            repository.push_blob(filename=file.name, check_exists=False)

    def _manifest(self, repository: DXF, name: str) -> tuple[_Manifest, str]:
        """Of the image for this kind of machine, with its digest."""
        text, response = repository.get_manifest_and_response(name)
        told: _Manifest = json.loads(text)
        if "manifests" not in told:
            return told, _digest(response.content)
        for one in told["manifests"]:
            kind = one.get("platform") or {}
            if (kind.get("os"), kind.get("architecture")) == ("linux", self.architecture):
                return self._manifest(repository, one["digest"])
        raise EngineError(f"it is not made for Linux on {self.architecture}", retryable=False)

    @contextmanager
    def _repository(self, reference: str) -> Iterator[tuple[DXF, str]]:
        """Where an image is, and what it is called there."""
        repository, name = split(reference)
        host = host_of(repository)
        url = urlsplit(self._addresses.get(host) or f"{_scheme(host)}://{host}")
        insecure = url.scheme == "http"
        with DXF(url.netloc, _path(repository), _login(host), insecure=insecure, timeout=SECONDS) as found:
            yield found, name


def depot_of(repository: str, url: str | None) -> RegistryDepot:
    """For images below `repository`, whose registry is reached at `url`, if not at its name."""
    return RegistryDepot({host_of(repository): url} if url else {})


def _scheme(host: str) -> str:
    """As engines have it: what is on this machine speaks without TLS."""
    name = urlsplit(f"//{host}").hostname or ""
    return "http" if name == "localhost" or name.startswith("127.") or name == "::1" else "https"


def _path(repository: str) -> str:
    """Of a repository in its registry."""
    if host_of(repository) != _HUB:
        return repository.partition("/")[2]
    path = repository.removeprefix(f"{_HUB}/")
    return path if "/" in path else f"library/{path}"


def _login(host: str) -> Callable[[Any, requests.Response], None]:
    """Credentials are those of Docker's configuration, read anew."""

    def login(base: Any, response: requests.Response) -> None:
        known = auth.load_config().resolve_authconfig(host) or {}
        base.authenticate(known.get("username"), known.get("password"), response=response)

    return login


def _parts(repository: DXF, digest: str) -> Iterator[bytes]:
    """Of what the registry keeps; its digest is checked in the end."""
    yield from repository.pull_blob(digest, chunk_size=_CHUNK)  # type: ignore[misc]


def _has(repository: DXF, digest: str) -> bool:
    try:
        repository.blob_size(digest)
    except requests.HTTPError as error:
        if error.response is not None and error.response.status_code == requests.codes.not_found:
            return False
        raise
    return True


class _Counted(io.RawIOBase):
    """A file for writing, with the digest of what went through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.total = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.total.update(data)
        return self._file.write(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self.total.hexdigest()}"


def _written(context: Context, place: str, file: Path) -> _Layer:
    with file.open("wb") as raw:
        sent = _Counted(raw)
        with gzip.GzipFile("", "wb", _QUICK, sent, mtime=0) as packed:
            content = _Counted(cast("BinaryIO", packed))
            with tarfile.open(fileobj=content, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                write_layer(context, place, tar)
    return _Layer(file, sent.digest, content.digest)


def _config(below: Mapping[str, Any], context: Context, layers: list[_Layer], machine: str) -> dict[str, Any]:
    """What the image is and how it runs, in the words of its format."""
    config = {**(below.get("config") or {})}
    config["Labels"] = {**(config.get("Labels") or {}), **context.labels}
    if context.running is not None:
        config |= _told(context.running, config)
    before = (below.get("rootfs") or {}).get("diff_ids") or []
    return {
        "created": "1970-01-01T00:00:00Z",
        "architecture": machine,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [*before, *(layer.content for layer in layers)]},
        "history": [*(below.get("history") or []), *({"created_by": f"COPY /{place}"} for place in context.layers)],
    }


def _told(running: Running, before: Mapping[str, Any]) -> dict[str, Any]:
    environment = dict(line.partition("=")[::2] for line in before.get("Env") or ())
    environment |= running.environment
    told: dict[str, Any] = {
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "User": USER,
        "StopSignal": STOP_SIGNAL,
        "Entrypoint": list(running.command),
        "Cmd": None,
    }
    if running.folder:
        told["WorkingDir"] = running.folder
    if running.port is not None:
        told["ExposedPorts"] = {f"{running.port}/tcp": {}}
    if running.probe:
        names = ("Interval", "Timeout", "StartPeriod")
        times = {name: seconds * _NANOSECONDS for name, seconds in zip(names, PROBE_SECONDS, strict=True)}
        told["Healthcheck"] = {"Test": ["CMD", *running.probe], **times}
    return told


def _as_oci(layer: Mapping[str, Any]) -> dict[str, Any]:
    kind = layer["mediaType"]
    return {**layer, "mediaType": _LAYER if kind == _DOCKER_LAYER else kind}


def _blob(told: Mapping[str, Any]) -> bytes:
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@contextmanager
def _asked(what: str, reference: str) -> Iterator[None]:
    with asked_of_registry(what, reference):
        try:
            yield
        except DXFAuthInsecureError as error:
            said = f"{host_of(reference)} wants a login, which is not sent without TLS"
            raise EngineError(said, retryable=False) from error
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 500
            raise EngineError(_explained(error), retryable=status >= 500 or status == 429) from error
        except (DXFError, requests.RequestException, OSError) as error:
            raise EngineError(str(error), retryable=not isinstance(error, DXFError)) from error


def _explained(error: requests.HTTPError) -> str:
    """The registry's own words."""
    try:
        told = error.response.json()["errors"][0]  # type: ignore[union-attr]
        return str(told.get("message") or told["code"])
    except (AttributeError, ValueError, LookupError, TypeError):
        return str(error)
