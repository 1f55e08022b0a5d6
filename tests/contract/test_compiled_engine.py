"""The compiled engine on ONNX Runtime: what it answers, together and alone, and what it leaves to the model itself.

The compiled model here knows a table of three prices, and the model itself a fourth one, so that it shows who answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
import uvloop
from mlflow.models import infer_signature
from onnx import TensorProto, helper, numpy_helper

from serving.runtime.compiled import CompiledModel
from serving.runtime.compiled_engine import CompiledEngine, Limits
from serving.runtime.exchange import (
    DeadlineError,
    Event,
    Health,
    ModelError,
    NotReadyError,
    Predictions,
    QueueFullError,
    Raw,
    Rows,
    ServingError,
    Written,
)
from serving.runtime.native_pool import NativePool, NativeSettings
from serving.runtime.parity import Native, Pace
from serving.runtime.plan import Column, Compiled, Feed, Plan, Result, Tensor
from tests.fixtures.pools import SECONDS, Figures
from tests.fixtures.revisions import REQUIREMENTS

PRICES = [1.0, 2.0, 3.0]
WRONG_PRICES = [1.0, 2.0, 3.5]
QUICK = Pace(first=0.05, shortest=0.05, longest=0.1, awake=0.05)

SOURCE = """
import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Prices(PythonModel):
    def predict(self, context, model_input: pd.DataFrame, params=None):
        prices = np.array([1.0, 2.0, 3.0, 4.0])
        return np.log(model_input["size"].to_numpy()) * prices[model_input["kind"].to_numpy().astype(int)]

set_model(Prices())
"""

_T = TypeVar("_T")


@dataclass
class Itself:
    """The model itself, in this process: it also knows the fourth price."""

    asked: list[Rows | Raw] = field(default_factory=list)

    async def start(self) -> None: ...

    async def predict(self, ask: Rows | Raw, deadline: float) -> Predictions | Written:
        self.asked.append(ask)
        return Written(b"[]") if isinstance(ask, Raw) else await self.recompute(ask)

    async def recompute(self, rows: Rows) -> Predictions | Written:
        size, kind = rows.columns["size"], rows.columns["kind"].astype(int)
        if (size <= 0).any():
            raise ModelError("sizes are positive")
        return Predictions({"": np.log(size) * np.array([*PRICES, 4.0])[kind]}, rows.count)

    def health(self) -> Health:
        return Health(ready=True)

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Driven:
    """An engine, and the loop that it runs on."""

    engine: CompiledEngine
    native: Native
    figures: Figures
    runner: asyncio.Runner

    def run(self, call: Callable[[], Awaitable[_T]]) -> _T:
        async def called() -> _T:
            return await call()

        return self.runner.run(called())

    async def predict(self, ask: Rows | Raw, seconds: float = SECONDS) -> Any:
        try:
            return await self.engine.predict(ask, asyncio.get_running_loop().time() + seconds)
        except ServingError as error:
            return error

    def ask(self, *asks: Rows | Raw, seconds: float = SECONDS) -> list[Any]:
        """What requests that come at the same time get."""
        return self.run(lambda: asyncio.gather(*(self.predict(ask, seconds) for ask in asks)))

    def until(self, true: Callable[[], bool]) -> None:
        async def wait() -> None:
            deadline = asyncio.get_running_loop().time() + SECONDS
            while not true():
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.01)

        self.run(wait)

    def settle(self) -> None:
        """Ask until it is known that a row takes less than a millisecond, and requests come alone."""
        for _ in range(100):
            self.ask(rows((1.0, 0)))
        self.figures.batches.clear()
        self.figures.events.clear()


def rows(*values: tuple[float, int]) -> Rows:
    size, kind = (np.array(part) for part in zip(*values, strict=True))
    return Rows({"size": size.astype(float), "kind": kind.astype(np.int64)}, len(values))


def price(size: float, kind: int) -> float:
    return round(float(np.log(size) * [*PRICES, 4.0][kind]), 9)


def values(answers: Sequence[Any]) -> list[list[float]]:
    assert all(isinstance(answer, Predictions) and answer.count == len(answer.columns[""]) for answer in answers), (
        answers
    )
    return [answer.columns[""].round(9).tolist() for answer in answers]


def save(folder: Path, graph: onnx.GraphProto, plan: Plan, **compiled: Any) -> Plan:
    """Write a compiled model, and the plan that names it."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content = model.SerializeToString()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    known: dict[str, Any] = {"frame": False, "tolerance": 1e-9, "rows": 0}
    return replace(plan, compiled=Compiled("model.onnx", digest, **known | compiled))


def compile_prices(folder: Path, prices: Sequence[float] = PRICES) -> Plan:
    """log(size) * prices[kind]: fails for kinds that are not in the table, and is NaN for negative sizes."""
    constants = {"zero": np.array(0), "one": np.array(1), "prices": np.array(prices)}
    nodes = [
        helper.make_node("Gather", ["x", "zero"], ["size"], axis=1),
        helper.make_node("Gather", ["x", "one"], ["kind"], axis=1),
        helper.make_node("Cast", ["kind"], ["position"], to=TensorProto.INT64),
        helper.make_node("Gather", ["prices", "position"], ["price"]),
        helper.make_node("Log", ["size"], ["log"]),
        helper.make_node("Mul", ["log", "price"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "prices",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [None, 2])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [None])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    columns = (Column("size", "double"), Column("kind", "long"), Column("note", "string", required=False))
    return save(
        folder,
        graph,
        Plan("python_function", signature=True, columns=columns, batching=True),
        feeds=(Feed("x", ("size", "kind"), "float64"),),
        results=(Result("", "y", "float64"),),
    )


@contextmanager
def driven(folder: Path, plan: Plan, native: Native | None = None, share: float = 0.0, **how: Any) -> Iterator[Driven]:
    figures, behind = Figures(), native or Itself()
    engine = CompiledEngine(CompiledModel(folder, plan), plan, behind, how.pop("meter", figures), share, **how)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(engine.start())
        try:
            yield Driven(engine, behind, figures, runner)
        finally:
            runner.run(engine.close())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return compile_prices(folder)


@pytest.fixture
def prices(folder: Path, plan: Plan) -> Iterator[Driven]:
    with driven(folder, plan) as started:
        started.settle()
        yield started


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model itself, as MLflow saves it."""
    folder = tmp_path_factory.mktemp("prices")
    (folder / "prices.py").write_text(SOURCE)
    frame = pd.DataFrame({"size": [1.5], "kind": [1]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            str(folder / "model"),
            python_model=str(folder / "prices.py"),
            signature=infer_signature(frame, [1.5]),
            pip_requirements=REQUIREMENTS,
        )
    return folder / "model"


def test_requests_are_answered_with_arrays(prices: Driven) -> None:
    answers = prices.ask(rows((2.0, 0), (3.0, 1)), rows((4.0, 2)))
    assert values(answers) == [[price(2.0, 0), price(3.0, 1)], [price(4.0, 2)]]
    assert prices.figures.events == []


def test_a_request_that_comes_alone_is_answered_without_a_turn_of_the_loop(prices: Driven) -> None:
    assert values([prices.run(lambda: stepped(prices, rows((2.0, 1))))]) == [[price(2.0, 1)]]


async def stepped(prices: Driven, ask: Rows) -> Any:
    """The answer, which has to come without waiting for anything."""
    asked = prices.engine.predict(ask, asyncio.get_running_loop().time() + SECONDS)
    with pytest.raises(StopIteration) as answered:
        asked.send(None)
    return answered.value.value


def test_requests_that_come_together_are_predicted_together(prices: Driven) -> None:
    asked = [(float(number + 1), number % 3) for number in range(64)]
    for _ in range(3):
        prices.figures.batches.clear()
        assert values(prices.ask(*(rows(one) for one in asked))) == [[price(*one)] for one in asked]
    assert sum(requests for requests, _ in prices.figures.batches) == 64
    assert len(prices.figures.batches) < 4


def test_requests_are_predicted_alone_where_answers_may_depend_on_it(folder: Path, plan: Plan) -> None:
    with driven(folder, replace(plan, batching=False)) as prices:
        prices.settle()
        asked = [(float(number + 1), number % 3) for number in range(20)]
        assert values(prices.ask(*(rows(one) for one in asked))) == [[price(*one)] for one in asked]
        assert prices.figures.batches == [(1, 1)] * 20


@pytest.mark.parametrize("settled", [True, False])
def test_a_bad_request_fails_alone(folder: Path, plan: Plan, settled: bool) -> None:
    """On the event loop, and in the thread."""
    with driven(folder, plan) as prices:
        if settled:
            prices.settle()
        asked = [(2.0, 1)] * 10 + [(2.0, 3), (-1.0, 1)] + [(3.0, 2)] * 10
        answers = prices.ask(*(rows(one) for one in asked))
        assert isinstance(answers[11], ModelError)
        assert values(answers[:11] + answers[12:]) == [[price(*one)] for one in asked[:11] + asked[12:]]
        assert prices.figures.events == [Event.NATIVE_FALLBACK] * 2


def test_what_the_compiled_model_does_not_cover_goes_to_the_model_itself(prices: Driven) -> None:
    full = rows((2.0, 1))
    uncovered: list[Rows | Raw] = [replace(full, params={"factor": 2}), Raw(b"{}", "application/json")]
    assert prices.ask(full, *uncovered)[1:] != []
    assert isinstance(prices.native, Itself)
    assert prices.native.asked == uncovered
    assert prices.figures.events == [Event.NATIVE_FALLBACK] * 2


def test_a_long_prediction_does_not_hold_up_a_short_one(prices: Driven) -> None:
    many = 1_000_000
    long = Rows({"size": np.full(many, 2.0), "kind": np.ones(many, np.int64)}, many)
    ended: list[str] = []

    async def ask(name: str, ask: Rows) -> Any:
        answer = await prices.predict(ask)
        ended.append(name)
        return answer

    async def both() -> Any:
        first = asyncio.create_task(ask("long", long))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await asyncio.gather(first, ask("short", rows((2.0, 1))))

    answers = prices.run(both)
    assert ended == ["short", "long"]
    assert values(answers) == [[price(2.0, 1)] * many, [price(2.0, 1)]]


def test_a_request_waits_no_longer_than_its_deadline(prices: Driven) -> None:
    many = 2_000_000
    long = Rows({"size": np.full(many, 2.0), "kind": np.ones(many, np.int64)}, many)
    assert isinstance(prices.ask(rows((1.0, 1)), seconds=-1.0)[0], DeadlineError)
    assert isinstance(prices.ask(long, seconds=0.001)[0], DeadlineError)
    assert values(prices.ask(rows((2.0, 1)))) == [[price(2.0, 1)]]


def test_requests_that_give_up_in_the_queue_are_not_told_as_waiting(prices: Driven) -> None:
    many = 2_000_000
    long = Rows({"size": np.full(many, 2.0), "kind": np.ones(many, np.int64)}, many)

    async def ask() -> bool:
        first = asyncio.create_task(prices.predict(long))
        await asyncio.sleep(0.001)
        left, late = asyncio.create_task(prices.predict(long)), asyncio.create_task(prices.predict(long, 0.01))
        await asyncio.sleep(0.001)
        assert prices.figures.waiting[-1] == 2
        left.cancel()
        assert isinstance(await late, DeadlineError)
        await asyncio.sleep(0)
        assert (prices.figures.waiting[-1], first.done()) == (0, False)
        return bool(await first)

    assert prices.run(ask)


def test_a_caller_that_is_gone_is_not_predicted_for(prices: Driven) -> None:
    async def leave() -> None:
        tasks = [asyncio.create_task(prices.predict(rows((2.0, 1)))) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        tasks[2].cancel()
        await asyncio.wait(tasks)

    prices.run(leave)
    assert sum(requests for requests, _ in prices.figures.batches) == 1


def test_no_more_wait_than_may(folder: Path, plan: Plan) -> None:
    with driven(folder, plan, limits=Limits(queue=10)) as prices:
        answers = prices.ask(*(rows((2.0, 1)) for _ in range(15)))
        assert values(answers[:10]) == [[price(2.0, 1)]] * 10
        assert all(isinstance(answer, QueueFullError) and answer.retry_after for answer in answers[10:])


def test_before_its_start_and_after_its_end_nothing_is_predicted(folder: Path, plan: Plan) -> None:
    engine = CompiledEngine(CompiledModel(folder, plan), plan, Itself(), Figures(), 0.0)

    async def use() -> None:
        for _ in range(2):
            with pytest.raises(NotReadyError):
                await engine.predict(rows((2.0, 1)), 1e9)
            assert not engine.health().ready
            await engine.start()
            assert engine.health() == Health(ready=True, device="cpu")
            await engine.close()

    asyncio.run(use())


def test_tensors_of_different_shapes_come_together_and_are_predicted_apart(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "axis"], ["y"], keepdims=0)],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [None, None])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [None])],
        [numpy_helper.from_array(np.array([1]), "axis")],
    )
    known = Plan("onnx", signature=True, tensors=(Tensor("x", "float64", (-1, -1)),), batching=True)
    plan = save(tmp_path, graph, known, feeds=(Feed("x", ("x",), "float64"),), results=(Result("", "y", "float64"),))
    with driven(tmp_path, plan) as sums:
        for _ in range(3):
            sums.figures.batches.clear()
            answers = sums.ask(*(Rows({"x": np.ones((2, width))}, 2) for width in (3, 4, 3, 4)))
            assert values(answers) == [[3.0] * 2, [4.0] * 2, [3.0] * 2, [4.0] * 2]
        assert sum(requests for requests, _ in sums.figures.batches) == 4


def test_a_compiled_model_that_is_wrong_is_found_out_and_not_used_any_more(tmp_path: Path, model: Path) -> None:
    plan = compile_prices(tmp_path, WRONG_PRICES)
    figures = Figures()
    native = NativePool(model, plan, NativeSettings(lazy=True), figures)
    with driven(tmp_path, plan, native, share=1.0, pace=QUICK, meter=figures) as prices:
        assert values(prices.ask(rows((2.0, 1), (2.0, 0)))) == [[price(2.0, 1), price(2.0, 0)]]
        prices.until(lambda: Event.PARITY_CHECKED in figures.events)
        assert prices.engine.health() == Health(ready=True, device="cpu")
        wrong = round(float(np.log(2.0) * 3.5), 9)
        while (answer := values(prices.ask(rows((2.0, 2))))) == [[wrong]]:
            prices.run(lambda: asyncio.sleep(0.01))
        assert answer == [[price(2.0, 2)]]
        assert Event.PARITY_MISMATCH in figures.events
        health = prices.engine.health()
        assert health.ready
        assert "answered otherwise than the model itself: the answer differs in 1 of 1 rows" in health.trouble
        assert not prices.engine.compiled
        assert values(prices.ask(rows((2.0, 3)), rows((2.0, 1)))) == [[price(2.0, 3)], [price(2.0, 1)]]


def test_where_the_model_itself_cannot_be_started_the_compiled_one_goes_on(tmp_path: Path) -> None:
    plan = compile_prices(tmp_path / "plan", WRONG_PRICES)
    figures = Figures()
    native = NativePool(tmp_path / "no-model", plan, NativeSettings(lazy=True), figures)
    with driven(tmp_path / "plan", plan, native, share=1.0, pace=QUICK, meter=figures) as prices:
        wrong = [[round(float(np.log(2.0) * 3.5), 9)]]
        assert values(prices.ask(rows((2.0, 2)))) == wrong
        prices.until(lambda: bool(prices.engine.health().trouble))
        assert prices.engine.health().ready
        assert "could not be checked: the model cannot be loaded" in prices.engine.health().trouble
        assert values(prices.ask(rows((2.0, 2)))) == wrong
        assert figures.events == []


def test_a_model_that_cannot_be_loaded_for_what_is_not_compiled_is_told(tmp_path: Path) -> None:
    plan = compile_prices(tmp_path / "plan", PRICES)
    native = NativePool(tmp_path / "no-model", plan, NativeSettings(lazy=True), Figures())
    with driven(tmp_path / "plan", plan, native) as prices:
        assert prices.engine.health() == Health(ready=True, device="cpu")
        assert isinstance(prices.ask(Raw(b"{}", "application/json"))[0], NotReadyError)
        assert prices.engine.health().ready
        assert "the model cannot be loaded" in prices.engine.health().trouble
