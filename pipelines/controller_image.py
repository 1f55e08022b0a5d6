"""The controller's own image for a cluster: what runs here, at the versions that are here, made without an engine.

The packages are one image and our own code stands on it, so that another release with the same packages sends little.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import uv

from pipelines.client import ClientError
from pipelines.own_lock import own_lock
from pipelines.own_wheel import own_files
from serving.depot import Depot
from serving.engine_errors import EngineError
from serving.image_context import HOME, VERSION, Context, Entry, Running, packages_context
from serving.image_packages import digest_of_rules, lay_out

EXTRAS = ("kubernetes", "postgres", "serve")
"""What the image has besides what every installation has,"""
WHERE_HERE = {"s3": "s3fs"}
"""and what it has where it is installed here, by its module: what is locked are the versions that are here."""
PORT = 8400

_PYTHON = ".".join(map(str, sys.version_info[:2]))
_PACKAGES = f"{HOME[1:]}/lib/python{_PYTHON}/site-packages"
_COMMAND = f"#!{HOME}/bin/python\nfrom pipelines.cli import main\nmain()\n"


def controller_image(depot: Depot, repository: str, base: str, tell: Callable[[str], None]) -> str:
    """Its name with its digest, below `repository` in its registry, where it is made if it is not there.

    From then on it is the ``latest`` there, too.
    `base` may have ``{python}`` in it. Raises `ClientError`.
    """
    below = base.format(python=_PYTHON)
    try:
        with tempfile.TemporaryDirectory(prefix="controller-") as folder:
            lock = own_lock(Path(folder) / "lock", extras())
            key = sha256(repr((VERSION, depot.pull(below), lock, digest_of_rules(()))).encode()).hexdigest()
            packages = f"{repository}/controller:packages-{key[:20]}"
            if depot.image(packages) is None:
                tell("installing the packages")
                depot.build(_packages(Path(folder), lock, below, tell), packages, tell)
            context = _own(packages)
            tag = f"{repository}/controller:{context.digest[:20]}"
            latest = f"{repository}/controller:latest"
            for name in (tag, latest):
                if depot.image(name) is None or depot.image(name) != depot.image(tag):
                    depot.build(context, name, tell)
            return f"{repository}/controller@{depot.push(tag)}"
    except EngineError as error:
        hint = "log in to the registry, or name one that answers by --repository"
        raise ClientError("failed", f"the controller's image cannot be made: {error}", hint) from error


def extras() -> tuple[str, ...]:
    """Of ours, in the image."""
    return (*EXTRAS, *(extra for extra, module in WHERE_HERE.items() if find_spec(module) is not None))


def _packages(folder: Path, lock: str, base: str, tell: Callable[[str], None]) -> Context:
    """The image of everything but our own code."""
    place, wanted = folder / "environment", folder / "requirements.txt"
    wanted.write_text(lock)
    _uv("venv", "--python", sys.executable, str(place))
    _uv("pip", "install", "--python", str(place), "--require-hashes", "--no-deps", "--requirement", str(wanted))
    tell("laying out the packages")
    laid_out = lay_out(place / "bin" / "python", _PYTHON, (), folder / "laid out", f"/{_PACKAGES}")
    context = packages_context(base, _PYTHON, laid_out)
    program = {f"{HOME[1:]}/bin/uv": Entry(place / "bin" / "uv", executable=True)}
    return Context(base, {**context.entries, **program})


def _own(packages: str) -> Context:
    """The image with our code, and how it runs."""
    entries = {f"{_PACKAGES}/{path}": Entry(content) for path, content in own_files().items()}
    entries[f"{HOME[1:]}/bin/mlflow-promote"] = Entry(_COMMAND.encode(), executable=True)
    path = f"{HOME}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {"PATH": path, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    running = Running((f"{HOME}/bin/mlflow-promote",), environment, folder="/tmp", port=PORT)  # noqa: S108
    return Context(packages, entries, layers=(HOME[1:],), running=running)


def _uv(*arguments: str) -> None:
    ended = subprocess.run(
        [uv.find_uv_bin(), "--quiet", *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if ended.returncode:
        hint = "uv has to reach the package index"
        raise ClientError("failed", f"the packages cannot be installed: {ended.stderr.strip()[-2000:]}", hint)
