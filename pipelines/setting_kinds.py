"""What may be written for a setting of each kind. What may not be is a `ValueError` that says what would be."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from monitoring.written import Duration
from serving.gateway_api import Parent
from serving.runtime.requirements import STORES

One = TypeVar("One")


def _place(given: Path) -> Path:
    return given.expanduser().absolute()


def _listed(given: object) -> object:
    """A list, or a text with spaces or commas between the entries."""
    return given.replace(",", " ").split() if isinstance(given, str) else given


def _http(given: str) -> str:
    if not given.startswith(("http://", "https://")):
        raise ValueError("must be the http:// or https:// address of an MLflow server")
    return given.rstrip("/")


def _store(given: str) -> str:
    url = urlsplit(given)
    if url.scheme not in ("http", "https", *STORES) or not url.netloc or "@" in url.netloc:
        raise ValueError("must be the http, https, s3, gs, abfs or az URL of a store, without credentials")
    return given.rstrip("/")


def _registry(given: str) -> str:
    url = urlsplit(given)
    if url.scheme not in ("http", "https") or not url.netloc or "@" in url.netloc or url.path.strip("/"):
        raise ValueError("must be http:// or https:// and a registry's host, without credentials or a path")
    return given.rstrip("/")


def _database(given: str) -> str:
    if not given.startswith(("sqlite:///", "postgresql+psycopg://")):
        raise ValueError("must begin with sqlite:/// or postgresql+psycopg://")
    return given


def _matching(pattern: str, advice: str) -> Callable[[str], str]:
    def checked(given: str) -> str:
        if not re.fullmatch(pattern, given):
            raise ValueError(advice)
        return given

    return checked


def _base(given: str) -> str:
    try:
        given.format(python="3.11")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError("may have {python} in it, and no other braces") from error
    return given


def _secret(given: SecretStr) -> SecretStr:
    if len(given.get_secret_value()) < 16:
        raise ValueError("must have at least 16 characters")
    return given


def _index(given: SecretStr) -> SecretStr:
    if not given.get_secret_value().startswith(("http://", "https://")) or re.search(r"\s", given.get_secret_value()):
        raise ValueError("must be the http:// or https:// address of a package index")
    return given


def _parent(given: str) -> str:
    Parent.parse(given, "")
    return given


def _hostname(given: str) -> str:
    label = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    if len(given) > 253 or not re.fullmatch(rf"(\*\.)?{label}(\.{label})*", given):
        raise ValueError("must be hostnames in small letters without a port; the first part may be *")
    return given


def _address(given: str) -> str:
    url = urlsplit(given)
    if url.scheme not in ("http", "https") or not url.netloc or "@" in url.netloc or url.query:
        raise ValueError("must be the http:// or https:// address of a gateway, without credentials")
    return given.rstrip("/")


Hostname = Annotated[str, AfterValidator(_hostname)]
Folder = Annotated[Path, AfterValidator(_place)]
File = Annotated[Path, AfterValidator(_place)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[Duration, Field(gt=0, allow_inf_nan=False)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
Index = Annotated[SecretStr, AfterValidator(_index)]
ServerUrl = Annotated[str, AfterValidator(_http)]
DatabaseUrl = Annotated[str, AfterValidator(_database)]
InstallationName = Annotated[
    str,
    AfterValidator(
        _matching("[a-z0-9][a-z0-9-]{2,40}", "must be 3 to 41 small letters, digits and hyphens, no hyphen first")
    ),
]
BaseImage = Annotated[str, AfterValidator(_base)]
RegistryUrl = Annotated[str, AfterValidator(_registry)]
StoreUrl = Annotated[str, AfterValidator(_store)]
Label = Annotated[
    str,
    AfterValidator(
        _matching(
            "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
            "must be at most 63 small letters, digits and hyphens, no hyphen first or last",
        )
    ),
]
GatewayParent = Annotated[str, AfterValidator(_parent)]
GatewayUrl = Annotated[str, AfterValidator(_address)]
SecretName = Annotated[
    str,
    AfterValidator(
        _matching(
            "[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?",
            "must be the name of a Secret: small letters, digits, hyphens and dots",
        )
    ),
]
Listed = Annotated[tuple[One, ...], NoDecode, BeforeValidator(_listed)]
