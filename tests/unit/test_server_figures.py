"""Blocks from counts of model servers: nothing is claimed that single requests would not show."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.blocks import CUTS, Arm, Scale
from monitoring.ruler import KEPT, LEAST, History, Ruler
from monitoring.server_figures import ServerFigures, block_of, history, together
from serving.runtime.figures import Figures

LATENCIES = st.lists(st.floats(0.0001, 40.0), min_size=1, max_size=20)
"""Seconds; from 30 on they are above the last bound."""


def figures(*requests: tuple[int, float]) -> ServerFigures:
    """As a server of ours tells them; each request by its code and seconds."""
    server = Figures("churn", 1)
    for code, seconds in requests:
        server.request(code, seconds)
    return ServerFigures.read(server.text().decode())


def test_failures_and_refusals_are_told_apart() -> None:
    found = figures(*[(code, 0.004) for code in (200, 200, 400, 422, 499, 500, 503)])
    assert (found.requests, found.errors, found.refused) == (7, 3, 2)
    assert (sum(found.buckets), len(found.buckets)) == (7, len(found.bounds) + 1)
    assert list(found.spans()) == [(7, 2.5, 5.0)]


def test_what_no_model_server_told_is_refused() -> None:
    with pytest.raises(ValueError, match="no figures"):
        ServerFigures.read("# HELP python_info\npython_info 1.0\n")


@settings(max_examples=30)
@given(first=LATENCIES, then=LATENCIES)
def test_what_was_counted_since_is_the_rest(first: list[float], then: list[float]) -> None:
    before = figures(*[(200, seconds) for seconds in first])
    now = figures(*[(200, seconds) for seconds in first + then])
    rest = figures(*[(200, seconds) for seconds in then])
    assert now.since(before) == rest
    assert now.since(ServerFigures()) == now
    assert together([before, rest]) == now


def test_a_server_that_counts_less_than_before_began_anew() -> None:
    fresh = figures((200, 0.1))
    assert fresh.since(figures((200, 0.1), (500, 0.1))) == fresh


def test_servers_with_other_bounds_are_not_added() -> None:
    other = ServerFigures(1, 0, 0, (1.0,), (1, 0))
    with pytest.raises(ValueError, match="different releases"):
        together([figures((200, 0.1)), other])
    assert together([]) == ServerFigures()
    assert together([ServerFigures(), other]) == other


@given(count=st.integers(1, 20 * KEPT))
def test_a_history_is_short_and_as_slow_as_it_can_have_been(count: int) -> None:
    found = history(ServerFigures(count, 0, 0, (10.0, 20.0), (0, count, 0)))
    assert set(found.latencies()) == {20.0}
    assert min(count, KEPT // 2) <= len(found) <= KEPT


def exact(seconds: list[float]) -> History:
    return History((1000 * one, None) for one in seconds)


@settings(max_examples=40)
@given(
    reference=st.lists(st.floats(0.0001, 40.0), min_size=1, max_size=20),
    stable=LATENCIES,
    candidate=LATENCIES,
    slo=st.none() | st.floats(1.0, 1000.0),
)
def test_each_claim_is_fed_with_the_bound_that_speaks_against_it(
    reference: list[float], stable: list[float], candidate: list[float], slo: float | None
) -> None:
    ruler = Ruler.from_history(exact(reference * LEAST), Scale(latency_slo_ms=slo))
    assert ruler is not None
    of_stable, of_candidate = (figures(*[(200, one) for one in arm]) for arm in (stable, candidate))
    block = block_of(1, "ro", 2, 10.0, 12.0, of_stable, of_candidate, ruler)
    assert block.latency is not None
    for found, arm, seconds in zip(block.latency, Arm, (stable, candidate), strict=True):
        scores = [ruler.score(arm, 1000 * one) for one in seconds]
        slow = [sum(cut < passed for _, passed, _ in scores) for cut in range(len(CUTS))]
        beyond = [sum(cut < by_far for _, _, by_far in scores) for cut in range(len(CUTS))]
        over = sum(ruler.over(arm, 1000 * one) for one in seconds)
        assert sum(found.ranks) == len(seconds)
        assert (found.over is None) == (slo is None)
        if arm is Arm.STABLE:
            assert all(told >= true for told, true in zip(found.slow, slow, strict=True))
            assert all(told <= true for told, true in zip(found.beyond, beyond, strict=True))
            assert found.over is None or found.over >= over
        else:
            assert all(told <= true for told, true in zip(found.slow, slow, strict=True))
            assert all(told >= true for told, true in zip(found.beyond, beyond, strict=True))
            assert found.over is None or found.over <= over
        assert all(more >= less for more, less in pairwise(found.slow))


def test_a_block_has_what_was_counted_and_no_latencies_without_a_ruler() -> None:
    block = block_of(3, "ro", 2, 10.0, 12.0, figures((200, 0.1)), figures((500, 0.1), (404, 0.1)), None)
    assert (block.id, block.rollout, block.step, block.opened, block.closed) == (3, "ro", 2, 10.0, 12.0)
    assert (block.stable.requests, block.candidate.requests) == (1, 2)
    assert (block.candidate.errors, block.candidate.refused) == (1, 1)
    assert block.latency is None
