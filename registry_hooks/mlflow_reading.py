"""Reading an MLflow registry: in full, by name, and what changed.

MLflow stamps a registered model whenever a stage of one of its versions changes and when a version is added
or deleted, and can list models newest stamp first. So the poll asks for the first few models and is done when
it meets one that it knows; the stamps of versions would miss deletions. Aliases leave no stamp.

A stamp is taken before its transaction ends, so a change can appear behind a newer one. A stamp therefore only
counts as read once it was seen `LATE_SECONDS` ago; until then its models are read again with each poll, which
also settles changes of the same millisecond.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TypeAlias, TypeVar
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList

from registry_hooks.model_version import STAGES, Channel, ChannelKind, Holding, ModelVersion, Snapshot

LATE_SECONDS = 10.0
"""How long a transaction of MLflow may take from its stamp to its end, and how far its servers' clocks may differ."""
FIRST_PAGE = 5
"""Models that a poll asks for at first; with nothing new, one of them is enough."""
NEXT_PAGE = 200
"""Models per further page of a poll that found only changed ones."""
MOST_REQUESTS = 40
"""Changed models that cost more requests than this are read by reading everything."""
NAMES_PER_REQUEST = 100
"""Models read by one request where MLflow understands a list of names."""
MODELS_PER_PAGE = 1000
"""MLflow's own limit for models."""
VERSIONS_PER_PAGE = 5_000
"""Few enough for an answer in less than a second from SQLite, well within the time-out on a busy machine."""
URL_BYTES = 6000
"""Most bytes of names in one request; proxies take 8 KiB for a whole URL."""
ODD = frozenset("'\"\\")
"""Characters that MLflow's filters have no escape for."""
NEWEST_FIRST = ["last_updated_timestamp DESC", "name ASC"]

Row = TypeVar("Row")
Page: TypeAlias = Callable[[str | None, int], PagedList[Row]]
"""Asks for one page by token and size."""


class ChangeCursor:
    """How far down the stamps everything has been read for good."""

    def __init__(self, newest: int, polled: float) -> None:
        self.settled = newest - int(LATE_SECONDS * 1000)
        self._polls = deque([(polled, newest)])

    def polled(self, began: float, newest: int) -> None:
        """A poll that began at `began` (monotonic) read everything stamped later than `settled`, up to `newest`."""
        while self._polls and self._polls[0][0] <= began - LATE_SECONDS:
            self.settled = max(self.settled, self._polls.popleft()[1])
        self._polls.append((began, newest))


class MlflowReading:
    """The reading half of an MLflow registry. Raises MLflow's own exceptions."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._cursor: ChangeCursor | None = None
        self._lists: bool | None = None

    def everything(self) -> Snapshot:
        """Every model. A deletion between two pages can hide a version where one ends, so that those are read again."""
        at = datetime.now(UTC)
        models = list(_pages(self._page_of_models(None, ["name ASC"]), MODELS_PER_PAGE))
        versions = list(_pages(self._page_of_versions(None), VERSIONS_PER_PAGE))
        ends = range(VERSIONS_PER_PAGE, len(versions), VERSIONS_PER_PAGE)
        seams = {version.name for end in ends for version in versions[end - 1 : end + 1]}
        return _snapshot(at, models, versions, ()).then(self.by_name(seams))

    def by_name(self, names: Collection[str]) -> Snapshot:
        """These models in full; the ones that are not there are `gone`."""
        at = datetime.now(UTC)
        models: list[RegisteredModel] = []
        versions: list[MlflowVersion] = []
        for some in self._portions(names):
            models += _pages(self._page_of_models(_where(some)), MODELS_PER_PAGE)
            versions += _pages(self._page_of_versions(_where(some)), VERSIONS_PER_PAGE)
        return _snapshot(at, [model for model in models if model.name in names], versions, names)

    def changed(self) -> Snapshot:
        """Models stamped since the last call that succeeded; everything at the first one."""
        began = time.monotonic()
        if self._cursor is None:
            newest = self._newest(1)
            snapshot = self.everything()
            self._cursor = ChangeCursor(_stamp(newest), began)
            return snapshot
        newest = self._newer_than(self._cursor.settled)
        fresh = [model for model in newest if model.last_updated_timestamp > self._cursor.settled]
        snapshot = self._read(fresh)
        self._cursor.polled(began, _stamp(newest))
        return snapshot

    def cost(self, models: int) -> int:
        """Requests for so many models with names of usual length, up to 50 characters or so."""
        return 2 * (-(-models // NAMES_PER_REQUEST) if self._lists is not False else models)

    def _read(self, models: Sequence[RegisteredModel]) -> Snapshot:
        if self._too_many(models):
            return self.everything()
        return self.by_name({model.name for model in models})

    def _too_many(self, models: Sequence[RegisteredModel]) -> bool:
        return self.cost(len(models)) > MOST_REQUESTS

    def _newest(self, limit: int) -> list[RegisteredModel]:
        return list(self._page_of_models(None, NEWEST_FIRST)(None, limit))

    def _newer_than(self, settled: int) -> list[RegisteredModel]:
        """The newest models, at least down to the first that is not newer; a few more cost nothing."""
        page = self._page_of_models(None, NEWEST_FIRST)
        found: list[RegisteredModel] = []
        for model in _pages(page, FIRST_PAGE, NEXT_PAGE):
            found.append(model)
            if model.last_updated_timestamp <= settled or self._too_many(found):
                break
        return found

    def _portions(self, names: Collection[str]) -> Iterator[Sequence[str]]:
        """Names in the portions of one request each."""
        plain = sorted(name for name in names if not ODD & set(name))
        if len(plain) > 1 and self._lists is None:
            self._lists = self._understands_lists()
        yield from _portions(plain, NAMES_PER_REQUEST if self._lists else 1)
        yield from ([name] for name in sorted(set(names) - set(plain)))

    def _understands_lists(self) -> bool:
        """MLflow 3.14 has no lists of names in a filter; later releases have."""
        try:
            self._page_of_versions("name IN ('a', 'b')")(None, 1)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            return False
        return True

    def _page_of_models(self, where: str | None, order: list[str] | None = None) -> Page[RegisteredModel]:
        return lambda token, size: self._client.search_registered_models(where, size, order, token)

    def _page_of_versions(self, where: str | None) -> Page[MlflowVersion]:
        order = ["name ASC", "version_number ASC"]
        return lambda token, size: self._client.search_model_versions(where, size, order, token)


def _pages(page: Page[Row], *sizes: int) -> Iterator[Row]:
    """Rows of all pages, asked for one after the other; the last of `sizes` holds for all further ones."""
    token, number = None, 0
    while number == 0 or token:
        rows = page(token, sizes[min(number, len(sizes) - 1)])
        yield from rows
        token, number = rows.token, number + 1


def _portions(names: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    portion: list[str] = []
    for name in names:
        if portion and (len(portion) == most or sum(map(_url_bytes, [*portion, name])) > URL_BYTES):
            yield portion
            portion = []
        portion.append(name)
    if portion:
        yield portion


def _url_bytes(name: str) -> int:
    return len(quote(f"'{name}', "))


def _where(names: Sequence[str]) -> str:
    """A filter that finds at least these names: one with quotes can only be asked for by a pattern."""
    if len(names) > 1:
        listed = ", ".join(f"'{name}'" for name in names)
        return f"name IN ({listed})"
    pattern = "".join("_" if character in ODD else character for character in names[0])
    return f"name {'=' if pattern == names[0] else 'LIKE'} '{pattern}'"


def _stamp(models: Iterable[RegisteredModel]) -> int:
    return max((model.last_updated_timestamp for model in models), default=0)


def _snapshot(
    at: datetime, models: Iterable[RegisteredModel], versions: Iterable[MlflowVersion], asked: Collection[str]
) -> Snapshot:
    """MLflow 3.14 keeps the aliases of a deleted version: only versions that are there hold anything."""
    there = {model.name: model for model in models}
    known = {_version(version): version for version in versions if version.name in there}
    staged = {holding for ours, version in known.items() for holding in _staged(version, ours)}
    aliased = {holding for model in there.values() for holding in _aliased(model, at) if holding.version in known}
    return Snapshot(
        models=frozenset(there),
        holdings=frozenset(staged | aliased),
        gone=frozenset(asked) - there.keys(),
        at=at,
        idle={ours: _time(version) for ours, version in known.items() if version.current_stage not in STAGES},
    )


def _staged(version: MlflowVersion, ours: ModelVersion) -> Iterator[Holding]:
    if version.current_stage in STAGES:
        yield Holding(ours, Channel(ChannelKind.STAGE, version.current_stage), _time(version))


def _aliased(model: RegisteredModel, at: datetime) -> Iterator[Holding]:
    for alias, version in model.aliases.items():
        yield Holding(ModelVersion(model.name, int(version)), Channel(ChannelKind.ALIAS, alias), at)


def _version(version: MlflowVersion) -> ModelVersion:
    return ModelVersion(version.name, int(version.version))


def _time(version: MlflowVersion) -> datetime:
    return datetime.fromtimestamp((version.last_updated_timestamp or version.creation_timestamp) / 1000, UTC)
