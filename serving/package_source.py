"""Where packages come from: what an installation says of indexes, in uv's own environment variables.

What is not said stays as the machine has it. Addresses may hold a password, so they go neither onto a command line nor
into anything that is kept, and what uv says of them is told without it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

_REFUSED = re.compile(r"\b(401|403)\b")
_UNTRUSTED = ("invalid peer certificate", "UnknownIssuer", "certificate verify failed")


@dataclass(frozen=True, slots=True)
class PackageSource:
    """Indexes and files that packages are taken from, and which of them everybody gets."""

    index: str = field(default="", repr=False)
    """Takes the place of PyPI."""
    extra_indexes: tuple[str, ...] = field(default=(), repr=False)
    """Asked before it; the first index that knows a package is the one that it comes from."""
    ca: Path | None = None
    """Certificates (PEM) by which indexes are trusted."""
    wheels: Path | None = None
    """Folder with packages as files."""
    served: tuple[str, ...] = ()
    """Lines of requirements that every model server has besides: what writes to the store of the prediction log."""

    @property
    def variables(self) -> dict[str, str]:
        """The environment of uv."""
        own = {
            "UV_DEFAULT_INDEX": self.index,
            "UV_INDEX": " ".join(self.extra_indexes),
            "SSL_CERT_FILE": str(self.ca or ""),
            "UV_FIND_LINKS": str(self.wheels or ""),
        }
        replaced = {"UV_INDEX": "UV_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX": "UV_INDEX_URL"}
        gone = {old for new, old in replaced.items() if own[new]}
        inherited = {name: value for name, value in os.environ.items() if name not in gone}
        return inherited | {name: value for name, value in own.items() if value}

    @property
    def key(self) -> tuple[str, ...]:
        """Names what a lock was resolved from, without secrets; empty where nothing is said."""
        said = (*(_public(url) for url in self._urls), *([str(self.wheels)] if self.wheels else ()), *self.served)
        return said if any(said) else ()

    def told(self, said: str) -> str:
        """What uv said, without secrets and with the setting that would do."""
        for secret in self._secrets:
            said = said.replace(secret, "****")
        if _REFUSED.search(said):
            return f"{said}\n{self._named} holds the user and the password that were refused"
        if untrusted(said):
            return f"{said}\nthe setting package_ca names the certificates by which indexes are trusted"
        return said

    @property
    def _urls(self) -> tuple[str, ...]:
        return (self.index, *self.extra_indexes)

    @property
    def _named(self) -> str:
        return "the setting package_index or package_extra_indexes" if any(self._urls) else "the address of the index"

    @property
    def _secrets(self) -> Iterator[str]:
        """Longest first, so that no rest of one stays."""
        found = {part for url in self._urls for part in _credentials(url)}
        yield from sorted(found, key=len, reverse=True)


def untrusted(said: str) -> bool:
    """Whether uv says that nobody vouches for an index."""
    return any(words in said for words in _UNTRUSTED)


def _credentials(url: str) -> Iterator[str]:
    """As they stand in the address and as they are sent; a user without a password is a token."""
    parts = urlsplit(url)
    if secret := parts.password or parts.username:
        yield from (secret, unquote(secret))


def _public(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
