"""Canaries under load, on real processes and a real Envoy: what becomes of a candidate, and what its clients notice."""

from __future__ import annotations

import pytest

from tests.e2e.canary_kinds import KINDS, made_live, tried
from tests.e2e.loop import Loop


@pytest.mark.parametrize(
    ("name", "blamed"),
    [
        ("equal", ""),
        ("dead", "error rate above"),
        ("three times as slow", "slower than the stable revision"),
        ("always the same answer", "predictions are different ones"),
    ],
)
def test_a_candidate_gets_what_it_deserves_and_clients_notice_nothing(loop: Loop, name: str, blamed: str) -> None:
    kind, model = KINDS[name], f"kind-{name.replace(' ', '-')}"
    made_live(loop, model, kind.stable)
    outcome = tried(loop, model, kind.candidate, rate=kind.rate, usual_seconds=6.0)
    assert outcome.phase == kind.right, outcome
    assert blamed in outcome.reason
    assert outcome.unanswered == 0, outcome
