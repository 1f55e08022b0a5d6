"""The folder of `mlflow-promote compose`: looks at this machine, and writes what `pipelines.compose` says.

A second run changes only what differs. Nothing is fetched but the hashes of the packages, and those only when other
ones are wanted than the lock has.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pipelines import compose
from pipelines.client import ClientError, Json
from pipelines.own_lock import own_lock
from pipelines.own_wheel import own_wheel
from serving.image_context import USER

TEXTS = Path(__file__).with_name("compose_files")
EXTRAS = ("postgres", "serve")
"""What the image has besides what every installation has."""
KEPT = ("promote", "promote/tmp", "promote/policies", "mlflow", "postgresql", "prometheus")
"""Folders below the data folder."""

_PRIVATE = (".env", "token")


def write(folder: Path, data: Path | None, socket: Path) -> Json:
    """Write the folder, and say which files are new or other ones. Raises `ClientError`."""
    folder = folder.expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        values, changed = _values(folder, data, socket)
        name, wheel = own_wheel()
        python = ".".join(map(str, sys.version_info[:2]))
        texts = {path.name: path.read_text() for path in TEXTS.iterdir()}
        lock = own_lock(folder / "image" / "requirements.lock", EXTRAS)
        written = compose.files(values, texts, python, name) | {"image/requirements.lock": lock}
        contents = {path: text.encode() for path, text in written.items()} | {f"image/{name}": wheel}
        changed += [path for path, content in contents.items() if _put(folder / path, content)]
        _remove_older(folder / "image", name)
        _prepare(Path(values["DATA"]), folder / "token", values["RUN_AS"])
    except OSError as error:
        raise ClientError("failed", f"the folder cannot be written: {error}", "choose one that is yours") from error
    return {"folder": str(folder), "changed": sorted(changed)}


def _values(folder: Path, data: Path | None, socket: Path) -> tuple[dict[str, str], list[str]]:
    """What ``.env`` says once it is complete, and whether it had to be changed for that."""
    file = folder / ".env"
    before = file.read_text() if file.exists() else ""
    known = compose.parse(before)
    place = _data(folder, data, known.get("DATA"))
    after = compose.completed(before, compose.variables(_server(folder, place, socket, known), secrets.token_hex))
    values = compose.parse(after)
    if wrong := compose.mistakes(values):
        lines = "\n".join(f"{file}: {one}" for one in wrong)
        raise ClientError("invalid", lines, "correct the lines and run the command again")
    if "POSTGRES_PASSWORD" not in known and _has_database(place):
        message = f"{place} holds a database, and {file} lacks the password that was made for it"
        raise ClientError("invalid", message, "bring the .env of that time back, or choose another --data")
    return values, [file.name] if _put(file, after.encode()) else []


def _data(folder: Path, wished: Path | None, known: str | None) -> Path:
    place = (wished or Path(known or folder / "data")).expanduser().absolute().resolve()
    if known and str(place) != known:
        message = f"DATA: {folder / '.env'} says {known}, not {place}"
        raise ClientError("invalid", message, "leave --data away; a folder that was moved is named in .env")
    return place


def _server(folder: Path, data: Path, socket: Path, known: Mapping[str, str]) -> compose.Server:
    """Containers run as whoever runs this, and never as root."""
    user, group = (os.getuid(), os.getgid()) if os.getuid() else (int(part) for part in USER.split(":"))
    place = Path(known.get("ENGINE_SOCKET", socket))
    try:
        socket_group = place.stat().st_gid
    except OSError as error:
        message = f"there is no engine's socket at {place}: {error.strerror}"
        raise ClientError("invalid", message, "start Docker, or name its socket by --socket") from error
    return compose.Server(str(data), compose.project_of(folder.name), user, group, str(place), socket_group)


def _has_database(data: Path) -> bool:
    with suppress(FileNotFoundError):
        return any((data / "postgresql").iterdir())
    return False


def _put(file: Path, content: bytes) -> bool:
    """Whether the file is another one now; it is replaced as a whole, and secrets are their owner's alone."""
    if file.exists() and file.read_bytes() == content:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    new.touch(0o600)
    new.write_bytes(content)
    if file.name not in _PRIVATE:
        new.chmod(0o644)
    new.replace(file)
    return True


def _remove_older(folder: Path, wheel: str) -> None:
    for path in folder.glob("*.whl"):
        if path.name != wheel:
            path.unlink()


def _prepare(data: Path, token: Path, run_as: str) -> None:
    """Folders that belong to the containers' user, and so does the one secret that a container reads from a file."""
    user, group = (int(part) for part in run_as.split(":"))
    places = [data / part for part in KEPT]
    for place in places:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not os.getuid():
        for place in (*places, token):
            os.chown(place, user, group)
