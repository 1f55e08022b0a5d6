"""How far a server is, and what it learns from its other processes, over an engine that does as it is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from serving.runtime.exchange import Event, Health, NotReadyError, Predictions, Raw, Rows, Written
from serving.runtime.figures import Figures
from serving.runtime.plan import Column, Plan
from serving.runtime.service import Caller, Service, State
from serving.runtime.settings import parse

PLAN = Plan("sklearn", True, (Column("x", "double"),))
ROWS = Rows({"x": np.array([1.0])}, 1)


class Doubling:
    """An engine over a compiled model that doubles."""

    def __init__(self) -> None:
        self.said = Health(ready=True)
        self.distrusted = ""
        self.asked: list[Rows | Raw] = []

    @property
    def compiled(self) -> bool:
        return not self.distrusted

    def distrust(self, why: str) -> None:
        self.distrusted = self.distrusted or why

    async def start(self) -> None:
        pass

    async def predict(self, ask: Rows | Raw, deadline: float) -> Predictions | Written:
        self.asked.append(ask)
        assert isinstance(ask, Rows)
        return Predictions({"": ask.columns["x"] * 2}, ask.count)

    def health(self) -> Health:
        return self.said

    async def close(self) -> None:
        pass


def made(folder: Path, workers: int = 1, plan: Plan = PLAN) -> tuple[Service, Doubling, Figures]:
    figures = Figures("m", 1, workers)
    return Service(parse(["--model", str(folder), "--plan", str(folder)], {}), plan, figures), Doubling(), figures


def test_a_server_says_how_far_it_is(tmp_path: Path) -> None:
    service, engine, _ = made(tmp_path)
    seen = [service.state]
    assert service.told()["detail"] == "the model is being loaded"
    asyncio.run(service.start(engine))
    for health in (Health(ready=True), Health(ready=True, trouble="it limps"), Health(ready=False, trouble="it fell")):
        engine.said = health
        seen.append(service.state)
    assert (service.told()["warnings"], service.told()["detail"]) == (["it fell"], "it fell")
    service.stopping = True
    assert service.told()["detail"] == ""
    assert [*seen, service.state] == [State.STARTING, State.READY, State.DEGRADED, State.STARTING, State.STOPPING]


def test_a_model_without_a_signature_is_a_warning(tmp_path: Path) -> None:
    service, _, _ = made(tmp_path, plan=Plan("sklearn", signature=False))
    assert "no signature" in service.told()["warnings"][0]


def test_nothing_is_predicted_before_the_model_is_there(tmp_path: Path) -> None:
    service, engine, _ = made(tmp_path)
    with pytest.raises(NotReadyError):
        asyncio.run(service.predict(ROWS, Caller("a")))
    asyncio.run(service.start(engine))
    answer = asyncio.run(service.predict(ROWS, Caller("a")))
    assert isinstance(answer, Predictions)
    assert answer.columns[""].tolist() == [2.0]


def test_the_first_prediction_is_of_the_input_example_or_else_of_drawn_rows(tmp_path: Path) -> None:
    service, engine, _ = made(tmp_path)
    asyncio.run(service.start(engine))
    (drawn,) = engine.asked
    assert isinstance(drawn, Rows)
    assert drawn.columns["x"].tolist() == [0.0]
    (tmp_path / "serving_input_example.json").write_text('{"inputs": {"x": [3.0, 4.0]}}')
    service, engine, _ = made(tmp_path)
    asyncio.run(service.start(engine))
    (example,) = engine.asked
    assert isinstance(example, Rows)
    assert example.columns["x"].tolist() == [3.0, 4.0]


def test_what_one_process_finds_out_of_the_compiled_model_holds_for_all(tmp_path: Path) -> None:
    service, engine, figures = made(tmp_path, workers=2)
    asyncio.run(service.start(engine))
    service.look()
    assert (service.compiled, service.told()["path"]) == (True, "compiled")
    figures.be(1)
    figures.event(Event.PARITY_MISMATCH)
    figures.be(0)
    service.look()
    assert (service.compiled, service.told()["path"]) == (False, "native")
    assert "another process" in engine.distrusted
