"""The build context of a container image as data: the same inputs give the same bytes, whose digest names the image.

There are two images. One holds a model's packages and is named by what decides about them alone, so that every version
with the same lock shares it; the other stands on it and adds the model server and the model. Nothing is run while
either is built: whatever has to be resolved, downloaded or compiled was so before, on the controller's machine. So no
index, certificate or secret ever gets near an image, there are no build tools to be left out, and owners and times of
files are ours to choose, which makes layers equal on every machine. What may be slow to make stands in front.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from serving.image import digest_of_file, server_files

HOME = "/opt/model"
"""Where everything of ours is in an image."""
USER = "65532:65532"
"""Who runs in a container: nobody that a host knows."""
PORT = 8080
"""Where the model server listens in its container."""
CACHE = f"{HOME}/model/cache"
"""Where a volume comes to which the server fetches a model that is not in the image."""
MANIFEST, MANIFEST_BYTES = "promote.manifest", "promote.manifest-bytes"
"""Labels of an image whose model is fetched: the digest of the manifest in it, and how large the model is."""
ROOT = "root"
"""The folder of the context that becomes the root of the image."""
STOP_SIGNAL = "SIGTERM"
PROBE_SECONDS = (30, 5, 600)
"""Between two questions how a container is, for an answer, and in which it may still be starting."""
VERSION = 1
"""Goes up where images of the same parts have to be made anew."""

_PYTHON = f"{HOME}/bin/python"
_PROBE = (
    "import sys,urllib.request as r;"
    f"sys.exit(r.urlopen('http://127.0.0.1:{PORT}/v2/health/ready',timeout=2).status!=200)"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a context: its content, the file that has it, or what it links to."""

    content: bytes | Path
    link: bool = False
    """Whether `content` is where a symbolic link leads."""
    executable: bool = False
    folder: bool = False
    """Whether it is an empty folder, for anybody to write to: a new volume that is put there becomes like it."""

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        return digest_of_file(self.content)

    @property
    def mode(self) -> int:
        if self.folder:
            return 0o777
        return 0o755 if self.executable else 0o644


@dataclass(frozen=True, slots=True)
class Running:
    """How a container of an image runs; what is left out is as its base has it."""

    command: tuple[str, ...]
    """The program with its arguments."""
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    folder: str = ""
    """Where it starts."""
    port: int | None = None
    """Where it listens."""
    probe: tuple[str, ...] = ()
    """The program that tells whether it is well."""


@dataclass(frozen=True, slots=True)
class Context:
    """What one image is made of."""

    base: str
    """The image that it stands on; ``scratch`` is none."""
    entries: Mapping[str, Entry] = field(hash=False)
    """By their path below the root of the image, without a slash in front."""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What the image says of itself."""
    layers: tuple[str, ...] = ("",)
    """Folders below the root that become a layer each, in this order; an empty one is everything."""
    system: tuple[str, ...] = ()
    """Packages of the base's distribution, Debian's or Ubuntu's, below all layers."""
    running: Running | None = None

    @property
    def dockerfile(self) -> str:
        """The same for an engine."""
        lines = [f"FROM {self.base}"]
        if self.system:
            lines.append(
                "RUN apt-get update && apt-get install --yes --no-install-recommends "
                f"{' '.join(sorted(self.system))} && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/*"
            )
        lines += _running(self.running)  # first, since an engine takes anew all that stands below what changed
        lines += [f"COPY {ROOT}/{layer} /{layer}" for layer in self.layers]
        return "".join(f"{line}\n" for line in lines)

    @property
    def digest(self) -> str:
        """Names the image: SHA-256 over the Dockerfile and every file's path, kind and content."""
        total = hashlib.sha256(f"{VERSION}\0{self.dockerfile}\0{sorted(self.labels.items())}\0".encode())
        for path, entry in sorted(self.entries.items()):
            total.update(f"{path}\0{entry.mode:o}{entry.link:d}\0{entry.digest}\n".encode())
        return total.hexdigest()

    def write(self, file: IO[bytes]) -> None:
        """As the tar that an engine takes. Only what is listed is in it, so nothing has to be ignored."""
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            _add(tar, "Dockerfile", Entry(self.dockerfile.encode()))
            tar.addfile(_header(ROOT, tarfile.DIRTYPE, 0o755))
            _add_all(tar, self.entries, f"{ROOT}/")


def write_layer(context: Context, layer: str, tar: tarfile.TarFile) -> None:
    """One of the context's layers, as the root of an image takes it."""
    below = f"{layer}/" if layer else ""
    _add_all(tar, {path: entry for path, entry in context.entries.items() if path.startswith(below)}, "")


def packages_context(base: str, python: str, packages: Path, system: tuple[str, ...] = ()) -> Context:
    """The image of a model's packages: `packages` is a site-packages folder for the Python `python`, such as 3.11.

    The base has that Python at ``/usr/local/bin/python3``, as the official images have. `system` names packages of the
    base's distribution, Debian's or Ubuntu's, which stand below everything else.
    """
    below = f"{HOME[1:]}/lib/python{python}/site-packages"
    entries = {f"{below}/{path}": entry for path, entry in _files(packages)}
    home = HOME[1:]
    entries[f"{home}/pyvenv.cfg"] = Entry(b"home = /usr/local/bin\ninclude-system-site-packages = false\n")
    entries[f"{home}/bin/python"] = Entry(b"/usr/local/bin/python3", link=True)
    return Context(base, entries, system=system)


def model_context(
    packages: str, model: Path, plan: Path, labels: Mapping[str, str], *, fetched: bool = False
) -> Context:
    """The image of one model, on the image `packages`: the folders of the model and of its plan, and the server.

    Where the model is `fetched`, its folder holds nothing but the manifest.
    """
    home = HOME[1:]
    server = {f"{home}/server/{path}": Entry(file) for path, file in _server()}
    own = {f"{home}/plan/{path}": entry for path, entry in _files(plan)}
    own |= {f"{home}/model/{path}": entry for path, entry in _files(model)}
    own |= {CACHE[1:]: Entry(b"", folder=True)} if fetched else {}
    running = Running(
        command=(_PYTHON, *_command()),
        environment={
            "PYTHONPATH": f"{HOME}/server",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "HOME": "/tmp",  # noqa: S108 - in memory, of the container alone
        },
        folder="/tmp",  # noqa: S108
        port=PORT,
        probe=(_PYTHON, "-c", _PROBE),
    )
    layers = tuple(f"{home}/{part}" for part in ("server", "plan", "model"))
    return Context(packages, server | own, labels, layers, running=running)


def gateway_context(base: str, envoy: Path) -> Context:
    """The image of a gateway: the program `envoy` on any base with the C library that it was made for."""
    place = "usr/local/bin/envoy"
    return Context(base, {place: Entry(envoy, executable=True)}, running=Running((f"/{place}",)))


def gateway_pod_context(base: str, envoy: Path) -> Context:
    """The image of a gateway in a cluster: besides `envoy`, Python at its usual place, and what runs in its pod."""
    top, home = Path(__file__).parents[1], "opt/promote"
    beside = ("serving/__init__.py", "serving/gateway_pod.py", "serving/envoy_control.py")
    entries = {f"{home}/{path}": Entry(top / path) for path in beside}
    environment = {"PYTHONPATH": f"/{home}", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    running = Running(("python3", "-m", "serving.gateway_pod"), environment)
    return Context(base, {"usr/local/bin/envoy": Entry(envoy, executable=True), **entries}, running=running)


def _running(running: Running | None) -> Iterator[str]:
    if running is None:
        return
    if running.environment:
        yield "ENV " + " ".join(f"{name}={value}" for name, value in running.environment.items())
    yield f"USER {USER}"
    if running.folder:
        yield f"WORKDIR {running.folder}"
    if running.port is not None:
        yield f"EXPOSE {running.port}"
    yield f"STOPSIGNAL {STOP_SIGNAL}"
    if running.probe:
        every, within, first = PROBE_SECONDS
        times = f"--interval={every}s --timeout={within}s --start-period={first}s"
        yield f"HEALTHCHECK {times} CMD {json.dumps(running.probe)}"
    yield f"ENTRYPOINT {json.dumps(running.command)}"


def _command() -> tuple[str, ...]:
    folders = ("--model", f"{HOME}/model", "--plan", f"{HOME}/plan")
    return ("-m", "serving.runtime", *folders, "--host", "0.0.0.0", "--port", str(PORT))  # noqa: S104 - of a container


def _server() -> Iterator[tuple[str, Path]]:
    top = Path(__file__).parents[1]
    for file in server_files():
        path = file.relative_to(top)
        if path.parts[1] != "compiling":
            yield path.as_posix(), file


def _files(folder: Path) -> Iterator[tuple[str, Entry]]:
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder).as_posix()
        if file.is_symlink():
            yield path, Entry(str(file.readlink()).encode(), link=True)
        elif file.is_file():
            yield path, Entry(file, executable=bool(file.stat().st_mode & 0o100))


def _folders(paths: Mapping[str, Entry]) -> set[str]:
    return {parent.as_posix() for path in paths for parent in Path(path).parents if parent != Path()}


def _header(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    """Owner root, time zero: nothing of the machine that builds."""
    header = tarfile.TarInfo(name)
    header.type, header.mode = kind, mode
    return header


def _add_all(tar: tarfile.TarFile, entries: Mapping[str, Entry], place: str) -> None:
    """Below `place`, in an order that depends on nothing but names."""
    for folder in sorted(_folders(entries)):
        tar.addfile(_header(f"{place}{folder}", tarfile.DIRTYPE, 0o755))
    for path, entry in sorted(entries.items()):
        _add(tar, f"{place}{path}", entry)


def _add(tar: tarfile.TarFile, name: str, entry: Entry) -> None:
    header = _header(name, tarfile.REGTYPE, entry.mode)
    if entry.folder:
        header.type = tarfile.DIRTYPE
        tar.addfile(header)
    elif entry.link:
        assert isinstance(entry.content, bytes)
        header.type, header.linkname = tarfile.SYMTYPE, entry.content.decode()
        tar.addfile(header)
    elif isinstance(entry.content, bytes):
        header.size = len(entry.content)
        tar.addfile(header, io.BytesIO(entry.content))
    else:
        header.size = entry.content.stat().st_size
        with entry.content.open("rb") as file:
            tar.addfile(header, file)
