"""How an installation is set up: by one YAML file and by environment variables, which win.

The file is the one that ``PROMOTE_CONFIG`` names, else ``settings.yaml`` in the home folder, where there is
one; relative folders in it start from where the file lies. A setting ``poll_seconds`` is called
``PROMOTE_POLL_SECONDS`` in the environment. Everything is checked once, when it is loaded.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from monitoring.written import Duration, MalformedError, Mistake, mistakes, read_mapping, unknown
from pipelines.policy import Policy

PREFIX = "PROMOTE_"
CONFIG = PREFIX + "CONFIG"
"""Names the file."""
OTHERS = frozenset({"config", "url", "seed", "worlds"})
"""Variables with our prefix that are no settings."""
FOLDERS = ("home", "policies")


class SettingsError(Exception):
    """The settings cannot be used; one line for each mistake."""


class Target(StrEnum):
    """Where revisions run."""

    LOCAL = "local"
    """Processes on this machine."""


def _folder(given: Path) -> Path:
    return given.expanduser().absolute()


def _listed(given: object) -> object:
    """A list, or a text with spaces or commas between the entries."""
    return given.replace(",", " ").split() if isinstance(given, str) else given


def _http(given: str) -> str:
    if not given.startswith(("http://", "https://")):
        raise ValueError("must be the http:// or https:// address of an MLflow server")
    return given.rstrip("/")


def _database(given: str) -> str:
    if not given.startswith(("sqlite:///", "postgresql+psycopg://")):
        raise ValueError("must begin with sqlite:/// or postgresql+psycopg://")
    return given


def _secret(given: SecretStr) -> SecretStr:
    if len(given.get_secret_value()) < 16:
        raise ValueError("must have at least 16 characters")
    return given


Folder = Annotated[Path, AfterValidator(_folder)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[Duration, Field(gt=0, allow_inf_nan=False)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]


class Settings(BaseSettings):
    """One installation."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        populate_by_name=True,
        env_ignore_empty=True,
    )

    home: Folder = Path("~/.local/state/mlflow-promote")
    """Folder for everything that the installation keeps on this machine."""
    mlflow_uri: Annotated[str, AfterValidator(_http)] | None = Field(
        default=None,
        validation_alias=AliasChoices("mlflow_uri", "PROMOTE_MLFLOW_URI", "MLFLOW_TRACKING_URI"),
        repr=False,
    )
    """Address of the MLflow server, also read from MLFLOW_TRACKING_URI; without one, `up` starts its own."""
    mlflow_port: Port = 5000
    """Port of the MLflow server that `up` starts."""
    store: Annotated[str, AfterValidator(_database)] = Field(
        default_factory=lambda settings: f"sqlite:///{settings['home'] / 'store.db'}", repr=False
    )
    """Database of the store, sqlite:///<path> or postgresql+psycopg://...; store.db in `home` without."""
    policies: Folder = Field(default_factory=lambda settings: settings["home"] / "policies")
    """Folder with the policies; `policies` in `home` without."""
    manage_models_without_policy: bool = True
    """Whether a model that no policy names gets the defaults, or is left alone."""
    target: Target = Target.LOCAL
    """Where revisions run."""
    poll_seconds: Seconds = 5.0
    """Between two looks at the registry, unless a hint comes."""
    full_read_seconds: Seconds = 3600.0
    """Between two readings of the whole registry, which find what a look cannot, such as a deleted model."""
    alias_requests_per_minute: Annotated[int, Field(ge=1)] = 60
    """Most requests to MLflow spent on watching aliases; fewer mean a later notice."""
    gateway_host: str = "127.0.0.1"
    """Address at which the gateway listens for scoring requests."""
    gateway_port: Port = 8080
    """Port at which the gateway listens for scoring requests."""
    admin_port: Port = 8081
    """Port of the gateway's own administration, on 127.0.0.1 only."""
    api_host: str = "127.0.0.1"
    """Address at which the controller takes commands; any but this machine's own needs `token`."""
    api_port: Port = 8400
    """Port at which the controller takes commands."""
    token: Secret | None = None
    """Whoever commands the controller has to know it."""
    webhook_secret: Secret | None = None
    """What MLflow signs its webhooks with; without one, webhooks are not taken."""
    predictions: str = Field(default_factory=lambda settings: str(settings["home"] / "predictions"))
    """Folder or fsspec URL of the prediction log; `predictions` in `home` without."""
    log_key: Secret | None = None
    """Key of the hashes that policies ask for by `log_hash`: without one, what can be guessed can be found again."""
    notify: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = Field(default=(), repr=False)
    """Where alerts go besides the log: http(s) addresses get JSON, everything else is an Apprise URL."""
    compile_seconds: Seconds = 120.0
    """How long compiling a model and proving the result right may take; after that the model is served as it is."""
    threads: Annotated[int, Field(ge=1, le=64)] = 8
    """How many rollouts are looked after at the same time."""

    @model_validator(mode="after")
    def _refuse_what_cannot_be(self) -> Self:
        if self.token is None and not _is_loopback(self.api_host):
            raise ValueError(
                f"token: must be given (PROMOTE_TOKEN) when api_host is not this machine's own, as {self.api_host}"
            )
        ports = {"gateway_port": self.gateway_port, "admin_port": self.admin_port, "api_port": self.api_port}
        if self.mlflow_uri is None:
            ports["mlflow_port"] = self.mlflow_port
        if len(set(ports.values())) < len(ports):
            raise ValueError(f"every port has to be another one, not {', '.join(f'{k} {v}' for k, v in ports.items())}")
        return self

    @property
    def api_url(self) -> str:
        """Where this machine reaches the controller's commands."""
        host = "127.0.0.1" if self.api_host in ("0.0.0.0", "::", "") else self.api_host  # noqa: S104
        return f"http://[{host}]:{self.api_port}" if ":" in host else f"http://{host}:{self.api_port}"

    @property
    def default_policy(self) -> Policy | None:
        """The policy of models that no policy names; None where they are left alone."""
        return Policy() if self.manage_models_without_policy else None


SECRET = frozenset({"mlflow_uri", "store", "token", "webhook_secret", "log_key", "notify"})
"""Settings that are secrets, or URLs that may hold one: what was given for them is not repeated."""


def load() -> Settings:
    """The settings of this installation; `SettingsError`."""
    file = _file()
    given = _from_file(file)
    known = {key: value for key, value in given.items() if key in Settings.model_fields}
    wrong = [f"{file}: {key}: {unknown(key, Settings.model_fields)}" for key in given.keys() - known.keys()]
    wrong += [f"environment variable {name}: {text}" for name, text in _unknown_variables(os.environ).items()]
    try:
        settings = Settings(**{key: value for key, value in known.items() if _variable(key) is None})
    except ValidationError as error:
        wrong += [_told(mistake, file) for mistake in mistakes(error, Settings, SECRET)]
    if wrong:
        raise SettingsError("\n".join(wrong))
    return settings


def _variable(setting: str) -> str | None:
    """The environment variable that gives `setting`, which wins over the file."""
    names = [PREFIX + setting.upper(), *(["MLFLOW_TRACKING_URI"] if setting == "mlflow_uri" else [])]
    return next((name for name in names if os.environ.get(name)), None)


def _file() -> Path:
    named = os.environ.get(CONFIG)
    if named:
        return Path(named).expanduser()
    home = os.environ.get(PREFIX + "HOME") or Settings.model_fields["home"].default
    return Path(home).expanduser() / "settings.yaml"


def _from_file(file: Path) -> dict[str, Any]:
    if not file.exists() and CONFIG not in os.environ:
        return {}
    try:
        given = read_mapping(file)
    except MalformedError as error:
        raise SettingsError(f"{file}: {error}") from error
    here = file.absolute().parent
    relative = {key: str(here / Path(given[key]).expanduser()) for key in FOLDERS if isinstance(given.get(key), str)}
    return {**given, **relative}


def _unknown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that are meant as a setting by the look of them; others with our prefix may be anybody's."""
    ours = {name: name.removeprefix(PREFIX).lower() for name in environment if name.startswith(PREFIX)}
    strange = {name: key for name, key in ours.items() if key not in Settings.model_fields and key not in OTHERS}
    close = {
        name: difflib.get_close_matches(key, Settings.model_fields, n=1, cutoff=0.75) for name, key in strange.items()
    }
    return {name: f"is not known; did you mean {PREFIX}{keys[0].upper()}?" for name, keys in close.items() if keys}


def _told(mistake: Mistake, file: Path) -> str:
    """The mistake with where it was made."""
    if not mistake.path:
        return f"settings: {mistake.text}"
    setting = mistake.path.partition("[")[0]
    variable = _variable(setting)
    return f"environment variable {variable}: {mistake.text}" if variable else f"{file}: {mistake}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
