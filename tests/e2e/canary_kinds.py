"""Candidates of every kind beside a stable version, under load: what becomes of each, and what its clients notice.

The models sleep and fail by chance, so that how bad a candidate is does not depend on the machine.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, dataclass
from typing import Any

from tests.e2e.loop import Loop, failed

CODE = """
import random, time, mlflow, pandas

def answer(x):
    if x != 0.0:
        time.sleep(0.008 * {slower} * random.lognormvariate(0.0, 0.25) + (0.03 if random.random() < {tail} else 0.0))
        if random.random() < {fails}:
            raise RuntimeError("this version fails")
    return {score}

class Model(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: pandas.DataFrame, params=None):
        return model_input["x"].map(answer).astype("float64")

mlflow.models.set_model(Model())
"""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a version answers."""

    fails: float = 0.0
    """Share of requests that it raises on."""
    slower: float = 1.0
    """Times the usual 8 ms."""
    tail: float = 0.0
    """Share of requests that take 30 ms more."""
    score: str = "x * x"
    """Its answer, for x evenly distributed from 0 to 1."""

    @property
    def code(self) -> str:
        return CODE.format(**asdict(self))


@dataclass(frozen=True, slots=True)
class Kind:
    """A stable version, a candidate, and what is right to become of the candidate."""

    candidate: Behaviour
    right: str
    stable: Behaviour = Behaviour()
    exact: bool = False
    """Two milliseconds are noticed, which takes a calm machine."""
    rate: float = 40.0
    """Requests per second; fewer where a version takes so long that its queue would tell of the load instead."""


KINDS = {
    "equal": Kind(Behaviour(), "succeeded"),
    "better": Kind(Behaviour(slower=0.7), "succeeded", Behaviour(fails=0.02)),
    "five times the errors": Kind(Behaviour(fails=0.10), "failed", Behaviour(fails=0.02)),
    "failing on 5 %": Kind(Behaviour(fails=0.05), "failed"),
    "dead": Kind(Behaviour(fails=1.0), "failed"),
    "three times as slow": Kind(Behaviour(slower=3.0), "failed"),
    "1.5 times as slow": Kind(Behaviour(slower=3.0), "failed", Behaviour(slower=2.0), exact=True, rate=15.0),
    "slow in the tail": Kind(Behaviour(tail=0.10), "failed"),
    "always the same answer": Kind(Behaviour(score="0.5"), "failed"),
    "shifted scores": Kind(Behaviour(score="min(1.0, x * x + 0.3)"), "failed"),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one candidate."""

    phase: str
    reason: str
    seconds: float
    """From the transition to the verdict, with the start of the candidate."""
    requests: int
    """That clients sent from the transition on."""
    client_failures: dict[str, int]
    """By status, or by what happened instead of an answer."""
    stable: dict[str, Any]
    candidate: dict[str, Any]

    @property
    def unanswered(self) -> int:
        """Requests that did not get what they asked for."""
        return sum(self.client_failures.values())


def payload(number: int) -> bytes:
    """The body of a request; never the input example, which no version fails on."""
    del number
    return json.dumps({"dataframe_split": {"columns": ["x"], "data": [[random.uniform(0.001, 1.0)]]}}).encode()


def made_live(loop: Loop, model: str, behaviour: Behaviour) -> int:
    """A first version, live and asked for long enough that its usual latencies and answers are known."""
    version = loop.register(model, code=behaviour.code)
    loop.transition(model, version, "Production")
    loop.await_state(model, version, "succeeded")
    return version


def tried(loop: Loop, model: str, behaviour: Behaviour, *, rate: float, usual_seconds: float) -> Outcome:
    """Put a candidate into Production under load, after `usual_seconds` of load on the stable version alone."""
    version = loop.register(model, code=behaviour.code)
    with loop.traffic(model, rate, payload=payload):
        time.sleep(usual_seconds)
    began = time.monotonic()
    with loop.traffic(model, rate, payload=payload) as results:
        loop.transition(model, version, "Production")
        phase = loop.await_state(model, version, "succeeded", "failed", "paused", seconds=600)
        seconds = time.monotonic() - began
    rollout = loop.ask(f"/rollouts/{loop.tags(model, version)['promote.rollout']}")
    evidence = rollout["evidence"] or {"stable": {}, "candidate": {}}
    return Outcome(
        phase=phase,
        reason=rollout["reason"],
        seconds=round(seconds, 1),
        requests=sum(result.sent for result in results),
        client_failures=failed(results),
        stable=evidence["stable"],
        candidate=evidence["candidate"],
    )
