"""What `mlflow-promote compose` writes, as data: pure functions from the server and its ``.env`` to the files.

``compose.yaml`` is the same text for everybody, because all that differs stands in ``.env``, where Compose looks it up.
What is in ``.env`` already is never changed, only added to, so secrets and what a team chose outlive every release.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from string import Template

HOSTS = ("127.0.0.1", "0.0.0.0")  # noqa: S104 - what may be chosen
"""What programs may listen on that others of the same server reach at 127.0.0.1."""
SECRETS = ("POSTGRES_PASSWORD", "PROMOTE_TOKEN", "PROMOTE_LOG_KEY")
PORTS = (
    "MLFLOW_PORT",
    "PROMOTE_GATEWAY_PORT",
    "PROMOTE_ADMIN_PORT",
    "PROMOTE_API_PORT",
    "POSTGRES_PORT",
    "PROMETHEUS_PORT",
)
_LISTENS = ("MLFLOW_HOST", "PROMOTE_API_HOST", "PROMETHEUS_HOST")
_PLACES = ("DATA", "ENGINE_SOCKET")
_SECRET_BYTES = 24


@dataclass(frozen=True, slots=True)
class Server:
    """The machine for which the folder is written."""

    data: str
    """Where everything is kept, an absolute path without links."""
    project: str
    """What Compose calls it all."""
    user: int
    group: int
    """Who owns the data and runs the containers."""
    socket: str
    """The engine's, an absolute path."""
    socket_group: int


@dataclass(frozen=True, slots=True)
class Variable:
    """One line of ``.env``."""

    name: str
    value: str
    meaning: str = ""
    """Stands above it; empty where the line above says it too."""


def variables(server: Server, secret: Callable[[int], str]) -> tuple[Variable, ...]:
    """What ``.env`` begins with; `secret` makes one of so many bytes, in letters and digits."""
    installation = f"promote-{sha256(server.data.encode()).hexdigest()[:8]}"
    return (
        Variable("COMPOSE_PROJECT_NAME", server.project, "What Compose calls these containers."),
        Variable("PROMOTE_INSTALLATION", installation, "The label of what the controller makes: gateway and models."),
        Variable("DATA", server.data, "The folder that holds everything; do not move it."),
        Variable("RUN_AS", f"{server.user}:{server.group}", "Owner of that folder, and user of every container."),
        Variable("ENGINE_SOCKET", server.socket, "The engine's socket, and the group that may use it."),
        Variable("ENGINE_GROUP", str(server.socket_group)),
        Variable("PROMOTE_GATEWAY_HOST", HOSTS[0], "Where clients send requests; 0.0.0.0 for those of other machines."),
        Variable("PROMOTE_GATEWAY_PORT", "8080"),
        Variable("PROMOTE_ADMIN_PORT", "8081", "The gateway's own administration, on 127.0.0.1 with a key."),
        Variable("PROMOTE_API_HOST", HOSTS[0], "The controller's commands, with the token."),
        Variable("PROMOTE_API_PORT", "8400"),
        Variable("MLFLOW_HOST", HOSTS[0], "MLflow, which asks nobody who they are."),
        Variable("MLFLOW_PORT", "5000"),
        Variable("PROMETHEUS_HOST", HOSTS[0], "Prometheus, which asks nobody either."),
        Variable("PROMETHEUS_PORT", "9090"),
        Variable("POSTGRES_PORT", "5432", "PostgreSQL, on 127.0.0.1 with its password."),
        Variable("POSTGRES_IMAGE", "postgres:17-bookworm", "Another major version needs its data dumped and restored."),
        Variable("PROMETHEUS_IMAGE", "prom/prometheus:v3.5.0"),
        Variable("POSTGRES_PASSWORD", secret(_SECRET_BYTES), "Secrets, made once."),
        Variable("PROMOTE_TOKEN", secret(_SECRET_BYTES)),
        Variable("PROMOTE_LOG_KEY", secret(_SECRET_BYTES)),
    )


def parse(text: str) -> dict[str, str]:
    """What a ``.env`` says, by name."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.lstrip().startswith("#"))
    return {name.strip(): _unquoted(value.strip()) for name, value in pairs}


def completed(text: str, wanted: Iterable[Variable]) -> str:
    """The ``.env`` with every line that it lacks; those that it has stay as they are."""
    present = parse(text)
    missing = [one for one in wanted if one.name not in present]
    lines = [part for one in missing for part in (*([f"# {one.meaning}"] if one.meaning else []), _line(one))]
    kept = text if not text or text.endswith("\n") else text + "\n"
    return kept + "".join(f"{line}\n" for line in lines)


def mistakes(values: Mapping[str, str]) -> list[str]:
    """What in a complete ``.env`` cannot be, one line each, beginning with the name."""
    return [*_wrong_ports(values), *_wrong_words(values)]


def files(values: Mapping[str, str], texts: Mapping[str, str], python: str, wheel: str) -> dict[str, str]:
    """Every file of text but ``.env``, by its path in the folder.

    `texts` are the package's own, by name, `python` is the version that the image's Python has to have, such as
    ``3.11``, and `wheel` the name of the wheel that is put beside the Dockerfile. The image stands on the one that
    ``PYTHON_IMAGE`` names where it is given, which is nothing that every ``.env`` has: it follows the release.
    """
    image = values.get("PYTHON_IMAGE") or f"python:{python}-slim"
    return {
        "compose.yaml": texts["compose.yaml"],
        "databases.sql": texts["databases.sql"],
        "prometheus.yml": Template(texts["prometheus.yml"]).substitute(port=values["PROMOTE_API_PORT"]),
        "token": values["PROMOTE_TOKEN"],
        "image/Dockerfile": Template(texts["Dockerfile"]).substitute(image=image, wheel=wheel),
        ".gitignore": "/.env\n/token\n/data/\n",
    }


def project_of(folder: str) -> str:
    """What Compose may call a folder of that name."""
    return re.sub(r"^[^a-z0-9]+|[^a-z0-9_-]", "", folder.lower()) or "mlflow-promote"


def _wrong_ports(values: Mapping[str, str]) -> Iterable[str]:
    for name in PORTS:
        if not values[name].isdecimal() or not 1 <= int(values[name]) <= 65535:
            yield f"{name}: must be a port from 1 to 65535, not {values[name]!r}"
    taken: dict[str, str] = {}
    for name in PORTS:
        if (first := taken.setdefault(values[name], name)) != name:
            yield f"{name}: {values[name]} is {first} already; every port has to be another one"


def _wrong_words(values: Mapping[str, str]) -> Iterable[str]:
    """Values of secrets are not told."""
    for name in _LISTENS:
        if values[name] not in HOSTS:
            yield f"{name}: must be {' or '.join(HOSTS)}, not {values[name]!r}"
    for name in _PLACES:
        if not re.fullmatch(r"/[\w./-]+", values[name], re.ASCII):
            yield f"{name}: must be an absolute path of letters, digits and ._-/, not {values[name]!r}"
    if not re.fullmatch(r"[1-9]\d*:\d+", values["RUN_AS"], re.ASCII):
        yield f"RUN_AS: must be the numbers of a user, not root, and of a group, as 1000:1000, not {values['RUN_AS']!r}"
    for name in SECRETS:
        if not re.fullmatch(r"\w{16,}", values[name], re.ASCII):
            yield f"{name}: must be at least 16 letters and digits"


def _line(variable: Variable) -> str:
    return f"{variable.name}={variable.value}"


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
