"""Real model processes: one bad request fails alone, a process that dies is replaced, and nobody waits for nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest

from serving.runtime.exchange import (
    BadRequestError,
    DeadlineError,
    Event,
    Health,
    MediaTypeError,
    ModelDiedError,
    ModelError,
    NotReadyError,
    Predictions,
    QueueFullError,
    Raw,
    Rows,
    Stage,
    Written,
)
from serving.runtime.native_pool import NativePool, NativeSettings
from serving.runtime.plan import Column, Plan, Tensor
from tests.fixtures.models import COUNTS, NUMBERS, WORDS, customers
from tests.fixtures.pools import SECONDS, TROUBLE, Driven, Figures, driven, row, save_troublesome, value_of

JSON = "application/json"
KILLED = "one was ended by SIGKILL, as the system does for want of memory"


@pytest.fixture(scope="module")
def troublesome_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_troublesome(tmp_path_factory.mktemp("troublesome") / "model")


@pytest.fixture(scope="module")
def pool(troublesome_model: Path) -> Iterator[Driven]:
    """One process of the troublesome model; whatever is done to it, it is there again for the next test."""
    with driven(troublesome_model, predict_timeout=6.0, queue=200, log=True) as started:
        yield started


@pytest.fixture(autouse=True)
def _quiet(request: pytest.FixtureRequest) -> None:
    """Figures of one test only, and a process that is there."""
    if "pool" in request.fixturenames:
        pool: Driven = request.getfixturevalue("pool")
        pool.await_ready()
        pool.figures.batches.clear()
        pool.figures.events.clear()


def died(pool: Driven, act: str) -> tuple[list[Any], float]:
    """What two requests get: one that kills its process, and one that waits meanwhile; and the process before."""
    before = pool.act("pid")

    async def ask() -> list[Any]:
        killing = asyncio.create_task(pool.outcome(row(act)))
        await pool.until(lambda: bool(pool.figures.batches))
        waiting = asyncio.create_task(pool.outcome(row("pid")))
        return list(await asyncio.gather(killing, waiting))

    pool.figures.batches.clear()
    return pool.run(ask), before


def gone(pid: float) -> bool:
    return not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


def await_gone(pid: float) -> None:
    deadline = time.monotonic() + SECONDS
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_a_request_is_answered_and_measured(pool: Driven) -> None:
    pool.figures.stages.clear()
    assert pool.act("fine", 2.5) == 2.5
    assert pool.figures.batches == [(1, 1)]
    assert [stage for stage, _ in pool.figures.stages] == [Stage.QUEUE, Stage.PREDICT]
    assert all(0 < seconds < SECONDS for _, seconds in pool.figures.stages)
    assert pool.pool.health().ready


def test_waiting_requests_are_predicted_together_and_each_gets_its_own(pool: Driven) -> None:
    answers = pool.outcomes([row(value=float(number)) for number in range(120)])
    assert [value_of(answer) for answer in answers] == list(range(120))
    assert max(requests for requests, _ in pool.figures.batches) > 10
    assert sum(rows for _, rows in pool.figures.batches) == 120


def test_of_many_requests_only_the_bad_ones_fail(pool: Driven) -> None:
    bad = set(range(7, 240, 16))
    pool.outcomes([row()] * 60)
    answers = pool.outcomes([row("raise" if number in bad else "fine", float(number)) for number in range(240)][:200])
    answers += pool.outcomes([row("raise" if number in bad else "fine", float(number)) for number in range(200, 240)])
    assert {number for number, answer in enumerate(answers) if isinstance(answer, ModelError)} == bad
    assert all(value_of(answer) == number for number, answer in enumerate(answers) if number not in bad)
    assert str(answers[7]) == "The model raised ValueError: nobody can work with 7.0"


def test_nan_fails_only_the_request_that_it_answers(pool: Driven) -> None:
    answers = pool.outcomes([row("nan" if number == 3 else "fine", float(number)) for number in range(9)])
    assert isinstance(answers[3], ModelError)
    assert "NaN" in str(answers[3])
    assert [value_of(answer) for answer in answers if answer is not answers[3]] == [0, 1, 2, 4, 5, 6, 7, 8]


def test_other_columns_and_other_parameters_are_not_mixed(pool: Driven) -> None:
    asks = [row(), row(note="a"), row(factor=2.0), row(), row(note="b"), row(factor=2.0), row(factor=3.0)]
    pool.act("fine")
    pool.figures.batches.clear()
    assert [value_of(answer) for answer in pool.outcomes(asks)] == [1.5, 1.5, 3.0, 1.5, 1.5, 3.0, 4.5]
    assert sorted(pool.figures.batches) == [(1, 1), (2, 2), (2, 2), (2, 2)]


def test_code_that_was_saved_with_the_model_is_there(pool: Driven) -> None:
    assert pool.act("price", 2.0) == 200.0


def test_what_a_model_prints_spoils_nothing(pool: Driven, capfd: pytest.CaptureFixture[str]) -> None:
    assert [value_of(answer) for answer in pool.outcomes([row("print")] * 5)] == [1.5] * 5
    assert capfd.readouterr().out == ""


def test_an_answer_of_another_form_is_as_mlflow_writes_it(pool: Driven) -> None:
    answer = pool.ask(row("mapping", 4.5))
    assert isinstance(answer, Written)
    assert json.loads(answer.predictions) == answer.outputs == {"answers": [4.5], "of": "a mapping"}
    assert answer.inputs == {"act": ["mapping"], "value": [4.5]}


def test_a_request_as_it_came_is_parsed_and_answered_by_mlflow(pool: Driven) -> None:
    body = {"dataframe_records": [{"act": "fine", "value": 2.0}] * 2, "params": {"factor": 3.0}}
    answer = pool.ask(Raw(json.dumps(body).encode(), JSON))
    assert answer == Written(b"[6.0, 6.0]", {"act": ["fine"] * 2, "value": [2.0] * 2}, [6.0, 6.0])


@pytest.mark.parametrize(
    ("body", "content_type", "error", "words"),
    [
        ({"dataframe_records": [{"act": "fine"}]}, JSON, BadRequestError, "Model is missing inputs ['value']"),
        ({"nonsense": 1}, JSON, BadRequestError, "exactly one of the input fields"),
        ({"dataframe_records": [{"act": "fine", "value": 1.0}]}, "text/plain", MediaTypeError, "content types"),
        ({"dataframe_records": [{"act": "raise", "value": 1.0}]}, JSON, ModelError, "ValueError: nobody can work"),
        ({"dataframe_records": [{"act": "nan", "value": 1.0}]}, JSON, ModelError, "NaN"),
    ],
)
def test_requests_that_mlflow_refuses_are_told_from_models_that_raise(
    pool: Driven, body: Any, content_type: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as raised:
        pool.ask(Raw(json.dumps(body).encode(), content_type))
    assert type(raised.value) is error
    assert words in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_a_full_queue_says_when_to_come_again(pool: Driven) -> None:
    async def ask() -> list[Any]:
        slow = asyncio.create_task(pool.outcome(row("sleep 0.3")))
        await pool.until(lambda: bool(pool.figures.batches))
        answers = await asyncio.gather(*(pool.outcome(row()) for _ in range(201)))
        return [await slow, *answers]

    answers = pool.run(ask)
    (full,) = (answer for answer in answers if not isinstance(answer, Predictions))
    assert isinstance(full, QueueFullError)
    assert full.retry_after is not None
    assert 0 < full.retry_after < SECONDS
    assert max(pool.figures.waiting) == 200


def test_a_request_whose_time_is_over_in_the_queue_is_not_predicted(pool: Driven) -> None:
    async def ask() -> tuple[Any, float]:
        slow = asyncio.create_task(pool.outcome(row("sleep 0.5")))
        await pool.until(lambda: bool(pool.figures.batches))
        began = time.monotonic()
        late = await pool.outcome(row("fine", 77000.0), seconds=0.1)
        took = time.monotonic() - began
        assert (pool.figures.waiting[-2:], slow.done()) == ([1, 0], False)
        await slow
        return late, took

    late, took = pool.run(ask)
    assert isinstance(late, DeadlineError)
    assert took > 0.09
    assert pool.act("count 77000") == 0


def test_a_caller_is_told_when_its_time_is_over_and_the_prediction_goes_on(pool: Driven) -> None:
    before = pool.act("pid")
    began = time.monotonic()
    with pytest.raises(DeadlineError):
        pool.ask(row("sleep 3", 78000.0), seconds=0.1)
    assert time.monotonic() - began < 2.9
    assert pool.act("count 78000") == 1
    assert pool.act("pid") == before


def test_a_caller_that_leaves_is_taken_out_of_the_queue(pool: Driven) -> None:
    async def ask() -> None:
        slow = asyncio.create_task(pool.outcome(row("sleep 0.3")))
        await pool.until(lambda: bool(pool.figures.batches))
        waiting = asyncio.create_task(pool.outcome(row("fine", 79000.0)))
        await asyncio.sleep(0)
        assert pool.figures.waiting[-1] == 1
        waiting.cancel()
        await asyncio.sleep(0)
        assert (pool.figures.waiting[-1], slow.done()) == (0, False)
        await slow

    pool.run(ask)
    assert pool.act("count 79000") == 0


def test_checks_wait_until_nothing_else_does(pool: Driven) -> None:
    order = []

    async def ask() -> None:
        async def told(name: str, call: Any) -> None:
            await call
            order.append(name)

        slow = asyncio.create_task(told("slow", pool.predict(row("sleep 0.2"))))
        await pool.until(lambda: bool(pool.figures.batches))
        check = asyncio.create_task(told("check", pool.pool.recompute(row())))
        await asyncio.sleep(0)
        later = asyncio.create_task(told("later", pool.predict(row("sleep 0.1", 3.0))))
        await asyncio.gather(slow, check, later)

    pool.run(ask)
    assert order == ["slow", "later", "check"]


def test_signals_meant_for_the_server_do_not_touch_its_model_processes(pool: Driven) -> None:
    pid = pool.act("pid")
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(int(pid), number)
    assert pool.act("pid") == pid


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("abort", "was ended by SIGABRT"),
        ("exit", "exited with status 3"),
        ("hang", "gave no answer for 6 s"),
    ],
)
def test_a_process_that_dies_takes_only_its_own_requests_with_it(pool: Driven, act: str, reason: str) -> None:
    (killed, waited), before = died(pool, act)
    assert isinstance(killed, ModelDiedError)
    assert str(killed) == f"The model's process {reason} during this prediction."
    assert value_of(waited) != before
    assert pool.figures.events == [Event.WORKER_REPLACED]
    await_gone(before)


def test_a_killed_process_is_replaced_what_it_started_ends_and_health_tells_the_truth(pool: Driven) -> None:
    pid, child, forked = pool.act("pid"), pool.act("child"), pool.act("fork")
    os.kill(int(pid), signal.SIGKILL)
    pool.run(lambda: pool.until(lambda: not pool.pool.health().ready))
    assert pool.pool.health().trouble == "0 of 1 model processes are there: " + KILLED
    for process in (pid, child, forked):
        await_gone(process)
    assert pool.act("fine") == 1.5
    assert pool.pool.health().trouble == ""


def test_without_batching_every_request_is_predicted_alone(pool: Driven, troublesome_model: Path) -> None:
    whole = [row("whole", float(number)) for number in range(20)]
    with driven(troublesome_model, batching=False) as alone:
        assert [value_of(answer) for answer in alone.outcomes(whole)] == [1.0] * 20
    assert {value_of(answer) for answer in pool.outcomes(whole)} != {1.0}


def test_a_model_that_answers_too_few_rows_is_never_batched_again(troublesome_model: Path) -> None:
    with driven(troublesome_model) as pool:
        answers = pool.outcomes([row("short" if number == 2 else "fine", float(number)) for number in range(4)])
        assert [value_of(answer) for answer in answers if isinstance(answer, Predictions)] == [0.0, 1.0, 3.0]
        assert answers[2] == Written(b"[]")
        pool.figures.batches.clear()
        pool.outcomes([row()] * 10)
        assert pool.figures.batches == [(1, 1)] * 10


def test_several_predictions_at_once_in_one_process(troublesome_model: Path) -> None:
    with driven(troublesome_model, threads=2, batching=False) as pool:
        began = time.monotonic()
        answers = [value_of(answer) for answer in pool.outcomes([row("share")] * 4)]
        assert len(set(answers)) == 2
        assert time.monotonic() - began < 1.9
        (killed, _), _ = died(pool, "exit")
        assert isinstance(killed, ModelDiedError)


def test_a_process_that_leaks_is_replaced_and_no_request_fails(troublesome_model: Path) -> None:
    limit = 900 * 2**20
    with driven(troublesome_model, memory=limit) as pool:
        before = pool.act("pid")
        assert pool.act("leak 800") == 1.5

        async def ask_on() -> list[float]:
            pids = [before]
            deadline = time.monotonic() + SECONDS
            while pids[-1] == before:
                assert time.monotonic() < deadline
                pids.append(value_of(await pool.predict(row("pid"))))
                await asyncio.sleep(0.01)
            return pids

        assert set(pool.run(ask_on)[:-1]) == {before}
        pool.run(lambda: pool.until(lambda: gone(before)))
        assert pool.figures.events == [Event.WORKER_REPLACED]
        assert pool.pool.health().trouble == ""


def test_idle_processes_end_and_come_back_with_the_next_request(troublesome_model: Path) -> None:
    with driven(troublesome_model, idle=0.3, lazy=True) as pool:
        assert pool.pool.health().ready
        first = pool.act("pid")
        pool.run(lambda: pool.until(lambda: gone(first)))
        assert pool.pool.health().ready
        assert pool.act("pid") != first
        assert pool.figures.events == []


def test_a_model_that_cannot_be_loaded_says_why(troublesome_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUBLE", "load")
    with pytest.raises(RuntimeError, match=r"^is not there$"), driven(troublesome_model):
        pass


def test_a_lazy_pool_whose_model_cannot_be_loaded_rests_and_says_why(
    troublesome_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first rest is one second, the second one two; only where somebody asks meanwhile the model is tried again."""
    aborts = tmp_path / "aborts"
    aborts.touch()
    monkeypatch.setenv("TROUBLE_ABORTS", str(aborts))
    why = "the model cannot be loaded: the model's process was ended by SIGABRT while the model was being loaded"
    others = psutil.Process().children()

    def tries() -> int:
        return sum(record.name == "serving.runtime.native_crew" for record in caplog.records)

    with driven(troublesome_model, lazy=True) as pool:
        assert pool.pool.health() == Health(ready=True)
        assert 0 < refused(pool, why) <= 1.0
        assert pool.figures.waiting == [1, 1, 0]
        assert pool.pool.health() == Health(ready=False, trouble=f"0 of 1 model processes are there: {why}")
        pool.run(lambda: asyncio.sleep(1.3))
        assert (tries(), psutil.Process().children()) == (1, others)

        assert 1.0 < refused(pool, why) <= 2.0
        assert 0 < refused(pool, why) <= 2.0
        assert tries() == 2
        with pytest.raises(NotReadyError, match="cannot be loaded"):
            pool.run(lambda: pool.pool.recompute(row()))
        aborts.unlink()
        pool.await_ready()
        assert pool.act("fine") == 1.5


def refused(pool: Driven, why: str) -> float:
    """Seconds after which to try again, as a request is told."""
    answer = pool.outcomes([row()])[0]
    assert isinstance(answer, NotReadyError)
    assert str(answer) == why
    assert answer.retry_after is not None
    return answer.retry_after


def test_a_model_that_dies_again_and_again_is_tried_less_and_less(
    troublesome_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    aborts = tmp_path / "aborts"
    monkeypatch.setenv("TROUBLE_ABORTS", str(aborts))
    with driven(troublesome_model) as pool:
        aborts.touch()
        os.kill(int(pool.act("pid")), signal.SIGKILL)
        pool.run(lambda: pool.until(lambda: "while the model was being loaded" in pool.pool.health().trouble))
        assert "was ended by SIGABRT while the model was being loaded" in pool.pool.health().trouble
        assert not pool.pool.health().ready
        aborts.unlink()
        pool.await_ready()
        assert pool.act("fine") == 1.5


FRONT = """
import asyncio, sys
from pathlib import Path
from serving.runtime.native_pool import NativePool, NativeSettings
from serving.runtime.plan import Column, Plan, Tensor
from tests.fixtures.models import COUNTS, NUMBERS, WORDS, customers
from tests.fixtures.pools import TROUBLE, Figures, row, value_of

async def main():
    pool = NativePool(Path(sys.argv[1]), TROUBLE, NativeSettings(workers=2, batching=False), Figures())
    await pool.start()
    async def ask(act):
        return await pool.predict(row(act), asyncio.get_running_loop().time() + 60)
    print(*[int(value_of(a)) for a in await asyncio.gather(ask("pid"), ask("pid"))], flush=True)
    await ask("hang")

asyncio.run(main())
"""


def test_no_model_process_outlives_the_front(troublesome_model: Path) -> None:
    """One is idle, the other blocks in native code and lets nobody else run in its process."""
    front = subprocess.Popen([sys.executable, "-c", FRONT, str(troublesome_model)], stdout=subprocess.PIPE, text=True)
    assert front.stdout is not None
    with front, front.stdout:
        pids = [int(word) for word in front.stdout.readline().split()]
        assert len(set(pids)) == 2
        deadline = time.monotonic() + SECONDS
        while not any(Path(f"/proc/{pid}/wchan").read_text().startswith("hrtimer") for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        front.kill()
    for pid in pids:
        await_gone(pid)


def test_nothing_is_left_after_close_and_who_asks_then_is_told(troublesome_model: Path) -> None:
    async def story() -> tuple[Any, float, Any]:
        pool = NativePool(troublesome_model, TROUBLE, NativeSettings(), Figures())
        started = Driven(pool, Figures(), asyncio.Runner())
        early = await started.outcome(row())
        await pool.start()
        pid = value_of(await started.predict(row("pid")))
        waiting = asyncio.create_task(started.outcome(row("sleep 30")))
        await asyncio.sleep(0.1)
        await pool.close()
        return [early, await waiting, await started.outcome(row())], pid, pool.health()

    outcomes, pid, health = asyncio.run(story())
    assert [type(outcome) for outcome in outcomes] == [NotReadyError, ModelDiedError, NotReadyError]
    assert gone(pid)
    assert not health.ready


@pytest.fixture(scope="module")
def light(light_model: Path) -> Iterator[Driven]:
    kinds = dict.fromkeys(NUMBERS, "double") | dict.fromkeys(COUNTS, "long") | dict.fromkeys(WORDS, "string")
    plan = Plan("sklearn", signature=True, columns=tuple(Column(*column) for column in kinds.items()), batching=True)
    with driven(light_model, plan) as started:
        yield started


def test_batched_answers_of_a_pipeline_are_those_of_single_ones_and_of_mlflow(light: Driven, light_model: Path) -> None:
    frame = customers(300, seed=5)
    asks = [rows_of(frame.iloc[start : start + 1 + start % 3]) for start in range(200)]
    together = light.outcomes(asks)
    assert max(requests for requests, _ in light.figures.batches) > 5
    alone = [light.ask(ask) for ask in asks[:40]]
    expected = mlflow.pyfunc.load_model(str(light_model)).predict(frame)
    for start, answer in enumerate(together):
        assert isinstance(answer, Predictions)
        assert answer.columns[""].tolist() == expected[start : start + 1 + start % 3].tolist()
    for one, other in zip(together, alone, strict=False):
        assert isinstance(one, Predictions)
        assert isinstance(other, Predictions)
        assert one.columns[""].tobytes() == other.columns[""].tobytes()


def rows_of(frame: pd.DataFrame) -> Rows:
    return Rows({str(name): frame[name].to_numpy() for name in frame.columns}, len(frame))


def test_tensors_are_put_together_where_their_shapes_are_alike_and_two_processes_share_the_work(
    tensor_model: Path,
) -> None:
    plan = Plan("sklearn", signature=True, tensors=(Tensor("", "float64", (-1, 4)),), batching=True)
    asks = [Rows({"": np.full((1 + number % 3, 4), float(number))}, 1 + number % 3) for number in range(100)]
    others = set(psutil.Process().children())
    with driven(tensor_model, plan, workers=2) as pool:
        for number, answer in enumerate(pool.outcomes(asks)):
            assert isinstance(answer, Predictions)
            assert answer.columns[""] == pytest.approx([10.0 * number] * (1 + number % 3))
        assert max(requests for requests, _ in pool.figures.batches) > 5
        next(process for process in psutil.Process().children() if process not in others).kill()
        pool.run(lambda: pool.until(lambda: pool.pool.health().trouble != ""))
        assert pool.pool.health().ready
        assert pool.pool.health().trouble == "1 of 2 model processes are there: " + KILLED
        assert isinstance(pool.ask(asks[0]), Predictions)
        refused = pool.outcomes([Rows({"": np.zeros((1, 3))}, 1)])[0]
        assert isinstance(refused, BadRequestError)
        assert "does not match expected shape" in str(refused)
