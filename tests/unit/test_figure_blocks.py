"""Blocks of what servers counted, over servers that come and go and a controller that is started anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from monitoring.blocks import Block, BlockError, Scale
from monitoring.figure_blocks import MOST_SECONDS, REST_SECONDS, FigureBlocks
from monitoring.log_line import UNCOMPARED
from monitoring.remote_log import Ask
from monitoring.ruler import LEAST
from serving.revision import Address, Weights
from serving.router import Route, RouterError
from serving.runtime.figures import Figures

ENDS = (Address("somewhere", 8080),)


def route(step: str = "ro/1", **shares: int) -> Route:
    weights = shares or {"stable": 80, "candidate": 20}
    candidate = "candidate" if len(weights) == 2 else None
    return Route("churn", Weights(weights), dict.fromkeys(weights, ENDS), step, candidate)


@dataclass
class World:
    """Servers with figures of their own, a route, and a clock."""

    home: Path
    now: float = 1000.0
    routes: dict[str, Route] = field(default_factory=lambda: {"churn": route()})
    servers: dict[str, dict[str, Figures]] = field(default_factory=lambda: {"stable": {}, "candidate": {}})
    asked: int = 0
    away: bool = False
    """No server answers."""
    lost: bool = False
    """The routes in force are not known."""

    def of(self, revision: str) -> Mapping[str, Ask]:
        self.asked += 1
        return {name: self._asks(figures) for name, figures in self.servers[revision].items()}

    def _asks(self, figures: Figures) -> Ask:
        return lambda _method, _path: (503 if self.away else 200, {}, figures.text())

    def in_force(self) -> Mapping[str, Route]:
        if self.lost:
            raise RouterError("nobody knows", retryable=True)
        return self.routes

    def source(self) -> FigureBlocks:
        return FigureBlocks(self.in_force, self, self.home, clock=lambda: self.now)

    def serve(self, revision: str, requests: int, code: int = 200, name: str = "a", seconds: float = 0.004) -> None:
        server = self.servers[revision].setdefault(name, Figures("churn", 1))
        for _ in range(requests):
            server.request(code, seconds)

    def look(self, source: FigureBlocks, seconds: float = REST_SECONDS) -> tuple[Block, ...]:
        self.now += seconds
        return source.blocks("ro")


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    for revision in ("stable", "candidate"):
        made.serve(revision, 0)
    return made


def counts(blocks: tuple[Block, ...]) -> list[tuple[int, int, int, int]]:
    """Number, step, and requests of both arms."""
    return [(one.id, one.step, one.stable.requests, one.candidate.requests) for one in blocks]


def test_what_both_arms_counted_between_two_looks_is_a_block(world: World) -> None:
    source = world.source()
    world.serve("stable", 300)
    world.serve("candidate", 50)
    assert world.look(source) == ()
    world.serve("stable", 8)
    world.serve("candidate", 1)
    world.serve("candidate", 2, 500)
    (block,) = world.look(source)
    assert counts((block,)) == [(1, 1, 8, 3)]
    assert block.candidate.errors == 2
    assert (block.opened, block.closed) == (1002.0, 1004.0)
    assert source.blocks("ro", after=1) == ()


def test_servers_are_left_in_peace_between_looks(world: World) -> None:
    source = world.source()
    world.look(source)
    asked = world.asked
    world.look(source, REST_SECONDS / 2)
    assert world.asked == asked
    world.look(source, REST_SECONDS)
    assert world.asked > asked


def test_another_controller_goes_on_where_the_last_one_was(world: World) -> None:
    world.look(world.source())
    world.serve("stable", 8)
    world.serve("candidate", 2)
    first = world.look(world.source())
    world.serve("stable", 4)
    world.serve("candidate", 1)
    again = world.look(world.source())
    assert again[:1] == first
    assert counts(again) == [(1, 1, 8, 2), (2, 1, 4, 1)]


def test_a_block_is_of_one_step(world: World) -> None:
    source = world.source()
    world.look(source)
    world.serve("stable", 8)
    world.serve("candidate", 2)
    world.routes["churn"] = route("ro/2", stable=50, candidate=50)
    assert world.look(source) == ()
    world.serve("stable", 5)
    world.serve("candidate", 5)
    assert counts(world.look(source)) == [(1, 2, 5, 5)]


@pytest.mark.parametrize(
    "other", [*(route(f"ro{mark}") for mark in UNCOMPARED), route("other/1"), route("", stable=100)]
)
def test_nothing_is_counted_while_the_two_are_not_compared(world: World, other: Route) -> None:
    source = world.source()
    world.look(source)
    world.routes["churn"] = other
    for _ in range(2):
        world.serve("stable", 8)
        world.serve("candidate", 2)
        assert world.look(source) == ()
    world.routes["churn"] = route()
    assert world.look(source) == ()  # what was counted meanwhile belongs to no step


def test_an_interval_goes_on_until_every_server_answers(world: World) -> None:
    source = world.source()
    world.look(source)
    world.serve("stable", 8)
    world.away = True
    with pytest.raises(BlockError, match="figures of stable") as refused:
        world.look(source)
    assert refused.value.retryable
    world.away = False
    world.serve("candidate", 2)
    assert counts(world.look(source)) == [(1, 1, 8, 2)]


def test_routes_that_are_not_known_are_an_error_to_try_again(world: World) -> None:
    world.lost = True
    with pytest.raises(BlockError, match="nobody knows") as refused:
        world.look(world.source())
    assert refused.value.retryable


def test_servers_come_and_go(world: World) -> None:
    source = world.source()
    world.serve("stable", 100)
    world.look(source)
    world.serve("stable", 8)
    world.serve("stable", 3, name="b")
    world.serve("candidate", 2)
    assert counts(world.look(source)) == [(1, 1, 11, 2)]
    del world.servers["stable"]["a"]
    world.serve("stable", 5, name="b")
    world.serve("candidate", 1)
    assert counts(world.look(source))[1:] == [(2, 1, 5, 1)]


def test_an_arm_without_requests_is_waited_for_but_not_for_ever(world: World) -> None:
    source = world.source()
    world.look(source)
    world.serve("stable", 8)
    assert world.look(source) == ()
    assert counts(world.look(source, MOST_SECONDS)) == [(1, 1, 8, 0)]


def test_latencies_are_measured_once_there_is_a_reference(world: World) -> None:
    source = world.source()
    world.routes["churn"] = route("", stable=100)
    world.serve("stable", 2 * LEAST)
    source.prepare("ro", "churn", Scale())
    world.routes["churn"] = route()
    world.look(source)
    world.serve("stable", 8)
    world.serve("candidate", 2, seconds=0.2)
    (block,) = world.look(world.source())
    assert block.latency is not None
    stable, candidate = block.latency
    assert (sum(stable.ranks), sum(candidate.ranks)) == (8, 2)
    assert candidate.slow == (2, 2, 2, 2)
    assert stable.slow[-1] == 0


def test_a_reference_that_was_missing_is_made_of_the_blocks(world: World) -> None:
    source = world.source()
    source.prepare("ro", "churn", Scale())
    for _ in range(2):
        world.serve("stable", LEAST)
        world.serve("candidate", 2)
        world.look(source)
    world.serve("stable", 8)
    world.serve("candidate", 2)
    assert [one.latency is not None for one in world.look(source)] == [False, True]


def test_the_rate_is_known_while_two_are_compared(world: World) -> None:
    source = world.source()
    assert source.rate("churn") is None
    world.look(source)
    world.serve("stable", 16)
    world.serve("candidate", 4)
    world.look(source)
    assert source.rate("churn") == pytest.approx(10.0)
    world.now += 61.0
    assert source.rate("churn") is None


def test_what_is_forgotten_stays_so(world: World) -> None:
    source = world.source()
    world.look(source)
    world.serve("stable", 8)
    world.serve("candidate", 2)
    assert world.look(source)
    source.forget("ro")
    for again in (source, world.source()):
        world.serve("stable", 8)
        world.serve("candidate", 2)
        assert world.look(again) == ()


UNKNOWN: list[Callable[[FigureBlocks], object]] = [
    lambda source: source.seen("churn"),
    lambda source: source.pairs("ro"),
    lambda source: source.labelled("ro"),
]


@pytest.mark.parametrize("ask", UNKNOWN)
def test_there_are_no_single_requests(world: World, ask: Callable[[FigureBlocks], object]) -> None:
    assert ask(world.source()) == ()


def test_labels_are_refused(world: World) -> None:
    with pytest.raises(BlockError, match="labels find none") as refused:
        world.source().keep_labels(())
    assert not refused.value.retryable
