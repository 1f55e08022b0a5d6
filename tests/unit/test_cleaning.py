"""Cleaning asks the store what is needed, and comes round when it is time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from pipelines.cleaning import Cleaning, CleaningTurn
from pipelines.rollout import Phase
from registry_hooks.model_version import ModelVersion
from serving.image import ImageError
from serving.stock import Kind, Removal, Stored
from tests.fakes.installation import Installation
from tests.fakes.stock import FakeStock

CHURN = [ModelVersion("churn", version) for version in range(7)]
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def image(version: int) -> Stored:
    """As the installation in memory names it."""
    built = {CHURN[version]: NOON.replace(minute=version)}
    return Stored(f"image-{version}", Kind.MODEL, NOON, 10, built, frozenset({"packages"}))


@pytest.fixture
def office() -> Installation:
    """Version 1 was live, 2 is live, 3 is being tried."""
    office = Installation()
    office.went_live(CHURN[1], CHURN[2])
    office.registered("churn", 4)
    office.began(CHURN[3], Phase.PROGRESSING)
    return office


def cleaning(office: Installation, stock: FakeStock) -> Cleaning:
    return Cleaning(stock, office.store, office.store, 1)


def test_what_the_store_knows_of_is_kept_and_all_else_goes(office: Installation) -> None:
    stock = FakeStock(*(image(version) for version in range(1, 7)), Stored("packages", Kind.PACKAGES, NOON, 500))
    told = {one.stored.name: one.why for one in cleaning(office, stock).look()}
    assert (told["image-1"], told["image-2"]) == ("kept warm", "live")
    assert told["image-3"].startswith("rollout ")
    gone = cleaning(office, stock).clean()
    assert [one.stored.name for one in gone] == ["image-4", "image-5"]
    assert set(stock.things) == {"image-1", "image-2", "image-3", "image-6", "packages"}
    assert cleaning(office, stock).clean() == ()


class Turns:
    """A turn over a clock of ours."""

    def __init__(self, clean: Callable[[], tuple[Removal, ...]], seconds: float) -> None:
        self.now = 0.0
        self.turn = CleaningTurn(clean, seconds, lambda: self.now)

    def looks(self, now: float) -> None:
        """At that time; what begins is waited for."""
        self.now = now
        self.turn.look()
        self.turn._pool.submit(lambda: None).result(20)


@pytest.fixture
def turns() -> Iterator[Callable[..., Turns]]:
    made: list[Turns] = []

    def make(clean: Callable[[], Any], seconds: float) -> Turns:
        made.append(Turns(clean, seconds))
        return made[-1]

    yield make
    for one in made:
        one.turn.close()


def test_it_cleans_once_in_its_time(turns: Callable[..., Turns]) -> None:
    times: list[float] = []

    def clean() -> tuple[Removal, ...]:
        times.append(ours.now)
        return ()

    ours = turns(clean, 3600.0)
    for now in (1.0, 599.0, 601.0, 602.0, 4200.0, 4202.0):
        ours.looks(now)
    assert times == [601.0, 4202.0]


def test_it_never_cleans_where_that_is_not_wanted(turns: Callable[..., Turns]) -> None:
    times: list[int] = []
    ours = turns(lambda: times.append(1), 0.0)
    ours.looks(1e9)
    assert times == []


def test_where_somebody_builds_it_tries_again_in_a_minute(turns: Callable[..., Turns]) -> None:
    times: list[float] = []

    def clean() -> tuple[Removal, ...]:
        times.append(ours.now)
        raise ImageError("an image is being built", retryable=True)

    ours = turns(clean, 3600.0)
    for now in (601.0, 630.0, 662.0):
        ours.looks(now)
    assert times == [601.0, 662.0]


def test_it_does_not_begin_before_the_last_one_is_over() -> None:
    over, began = threading.Event(), threading.Semaphore(0)

    def clean() -> tuple[Removal, ...]:
        began.release()
        over.wait(20)
        return ()

    turn = CleaningTurn(clean, 1.0, iter(range(100)).__next__)
    turn.look()
    assert began.acquire(timeout=20)
    turn.look()
    over.set()
    turn._pool.shutdown()
    assert not began.acquire(blocking=False)


def test_what_could_not_be_removed_is_told(turns: Callable[..., Turns], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    turns(lambda: (Removal(image(1), "container x has it"), Removal(image(2))), 10.0).looks(11.0)
    assert "image-1 stays although nothing needs it: container x has it" in caplog.text
    assert "removed what nothing needs: 1 things, 10 bytes" in caplog.text
