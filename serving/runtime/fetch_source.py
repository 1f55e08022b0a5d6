"""Where the files of a model are fetched from: by HTTP with nothing but Python itself, or by fsspec.

Any range of a file is asked for. A web server may answer with the whole file instead, as MLflow's does for artifacts
that it fetches from an object store itself; its answer says so, and whoever asked reads that in one go.

What lies at ``mlflow-artifacts:/`` is below the URL that ARTIFACTS_URL says.

MLflow's own credentials (MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD) are shown to MLflow's own
artifact proxy only, and to nobody that it sends us on to. What fsspec needs, it finds in the environment by itself.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from serving.runtime.manifest import Listed

_CONNECT_SECONDS = 10.0

_ANSWER_SECONDS = 600.0
"""How long a server that is there may say nothing: MLflow's fetches a whole file before it sends the first byte."""

_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""A server that is gone without a word is noticed in half a minute."""

_PIECE, _FSSPEC_PIECE = 1 << 20, 8 << 20
"""So much is read at once, in bytes. By fsspec, each piece is a request of its own."""

ARTIFACTS_URL = "ARTIFACTS_URL"
"""Names the variable."""

SERVED_BY_MLFLOW = "mlflow-artifacts"
"""Scheme of what an MLflow server gives, whatever its address."""

OF_MLFLOW = "/api/2.0/mlflow-artifacts/artifacts"
"""Where an MLflow server gives it."""

CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""Variables with what is shown to MLflow."""

_OF_MLFLOW = "/mlflow-artifacts/artifacts"

_TRY_AGAIN = (408, 425, 429)
"""Besides everything from 500 on."""

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class SourceError(Exception):
    """Nothing, or not the right thing, came from the source."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class Answer:
    """What a source gives of a file."""

    whole: bool
    """It is the file from its first byte on, whatever was asked for."""
    pieces: Iterator[bytes]
    """Raises `SourceError` where it breaks off."""


class Source(Protocol):
    """A folder somewhere else; may be asked by several threads."""

    def ask(self, file: Listed, start: int, end: int) -> Answer:
        """The bytes from `start` to before `end`, or all of them; raises `SourceError`."""


def source_at(url: str, environment: Mapping[str, str] = os.environ) -> Source:
    """The source at a URL; raises `SourceError`."""
    url = place_of(url, environment.get(ARTIFACTS_URL, ""))
    if urlsplit(url).scheme == SERVED_BY_MLFLOW:
        raise SourceError(f"{ARTIFACTS_URL} does not say where that is", retryable=False)
    return HttpSource(url) if urlsplit(url).scheme in ("http", "https") else FsspecSource(url)


def place_of(url: str, artifacts: str) -> str:
    """The URL at which the files at `url` are, where MLflow's artifacts are at `artifacts`; the same where unknown."""
    parts = urlsplit(url)
    if parts.scheme != SERVED_BY_MLFLOW or not artifacts:
        return url
    path = quote(parts.path) if urlsplit(artifacts).scheme in ("http", "https") else parts.path
    return artifacts.rstrip("/") + path


class HttpSource:
    """Files of a web server."""

    def __init__(self, url: str, environment: Mapping[str, str] = os.environ) -> None:
        self._url = url.rstrip("/")
        self._credentials = _credentials(environment) if _OF_MLFLOW in url else ""
        self._opener = urllib.request.build_opener(_Http, _Https)

    def ask(self, file: Listed, start: int, end: int) -> Answer:
        request = urllib.request.Request(f"{self._url}/{quote(file.path)}")  # noqa: S310 - see `source_at`
        request.add_header("Range", f"bytes={start}-{end - 1}")
        if self._credentials:
            request.add_unredirected_header("Authorization", self._credentials)
        response = self._opened(request, file)
        whole = response.status == 200
        try:
            _check(response, file, start)
        except SourceError:
            response.close()
            raise
        return Answer(whole, _pieces(response, file, file.bytes if whole else end - start))

    def _opened(self, request: urllib.request.Request, file: Listed) -> http.client.HTTPResponse:
        try:
            response: http.client.HTTPResponse = self._opener.open(request, timeout=_CONNECT_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            retryable = error.code >= 500 or error.code in _TRY_AGAIN
            raise SourceError(f"{file.path}: answered with {error.code} {error.reason}", retryable=retryable) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise SourceError(f"{file.path}: {_told(error)}", retryable=not isinstance(error, ValueError)) from error
        return response


class FsspecSource:
    """Files of an object store, or of whatever else fsspec knows."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            self._files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise SourceError(_told(error), retryable=False) from error
        self._root = str(root).rstrip("/")

    def ask(self, file: Listed, start: int, end: int) -> Answer:
        return Answer(False, self._pieces(file, start, end))

    def _pieces(self, file: Listed, start: int, end: int) -> Iterator[bytes]:
        for at in range(start, end, _FSSPEC_PIECE):
            until = min(at + _FSSPEC_PIECE, end)
            piece = self._piece(file, at, until)
            if len(piece) != until - at:
                raise SourceError(f"{file.path}: has no {file.bytes} bytes at its source", retryable=False)
            yield piece

    def _piece(self, file: Listed, start: int, end: int) -> bytes:
        try:
            piece: bytes = self._files.cat_file(f"{self._root}/{file.path}", start=start, end=end)
        except (FileNotFoundError, PermissionError) as error:
            raise SourceError(f"{file.path}: {_told(error)}", retryable=False) from error
        except Exception as error:  # every file system has exceptions of its own
            raise SourceError(f"{file.path}: {_told(error)}", retryable=True) from error
        return piece


def _check(response: http.client.HTTPResponse, file: Listed, start: int) -> None:
    """Whether it is what was asked for, or the whole file."""
    total: str | None = response.headers.get("content-length")
    if response.status != 200:
        said = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if response.status != 206 or said is None or int(said[1]) != start:
            raise SourceError(f"{file.path}: what came is not what was asked for", retryable=False)
        total = said[3]
    if total not in (None, "*", str(file.bytes)):
        raise SourceError(f"{file.path}: has {total} bytes at its source, not {file.bytes}", retryable=False)


def _pieces(response: http.client.HTTPResponse, file: Listed, left: int) -> Iterator[bytes]:
    with response:
        while left:
            try:
                piece = response.read1(min(_PIECE, left))
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise SourceError(f"{file.path}: {_told(error)}", retryable=True) from error
            if not piece:
                raise SourceError(f"{file.path}: broke off", retryable=True)
            left -= len(piece)
            yield piece


def _told(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason if isinstance(reason, OSError) else error) or type(error).__name__


def _credentials(environment: Mapping[str, str]) -> str:
    if token := environment.get("MLFLOW_TRACKING_TOKEN"):
        return f"Bearer {token}"
    if user := environment.get("MLFLOW_TRACKING_USERNAME"):
        pair = f"{user}:{environment.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return f"Basic {b64encode(pair.encode()).decode()}"
    return ""


def _patient(connected: socket.socket) -> None:
    """It may be silent for long, but not be gone."""
    connected.settimeout(_ANSWER_SECONDS)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _ALIVE.items():
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _patient(self.sock)


class _SecureConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _patient(self.sock)


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_SecureConnection, req)
