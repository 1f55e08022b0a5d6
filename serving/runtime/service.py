"""The life of one model server: it loads, is ready, stops; and one prediction at a time in a thread.

The event loop never predicts, so that health is answered while a prediction takes its time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum

from serving.prediction_log import PredictionLog, Served
from serving.runtime.scoring import Answer, Scorer
from serving.runtime.settings import Settings


class State(str, Enum):  # noqa: UP042
    """How far the server is. (A model's own Python may be 3.10, which has no StrEnum.)"""

    STARTING = "starting"
    """Loads the model and makes the warm-up prediction."""
    READY = "ready"
    """Answers predictions."""
    STOPPING = "stopping"
    """Was asked to end and finishes what is in flight."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request says of itself."""

    request_id: str
    mode: str
    entity: str | None


class Service:
    """The model of this server, its prediction log, and how far it is."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stopping = False
        self.scorer: Scorer | None = None
        self.log = _log(settings)
        self._predictions = ThreadPoolExecutor(1, "predict")

    @property
    def state(self) -> State:
        if self.stopping:
            return State.STOPPING
        return State.READY if self.scorer else State.STARTING

    def load(self) -> Future[None]:
        """Begin to load the model; the future tells when it is ready, or why it cannot be."""
        return self._predictions.submit(self._load)

    async def predict(self, score: Callable[[Scorer], Answer], caller: Caller) -> Answer:
        """Carry `score` out when its turn comes, and log what it predicted. Only once ready."""
        assert self.scorer is not None
        began = time.time()
        answer = await asyncio.get_running_loop().run_in_executor(self._predictions, score, self.scorer)
        if self.log is not None and answer.inputs is not None and answer.status == 200:
            took = (time.time() - began) * 1000
            self.log.put(
                Served(caller.request_id, began, caller.mode, caller.entity, took, answer.inputs, answer.outputs)
            )
        return answer

    def close(self) -> None:
        if self.log is not None:
            self.log.close()

    def _load(self) -> None:
        scorer = Scorer(self.settings.model)
        scorer.warm_up()
        self.scorer = scorer


def _log(settings: Settings) -> PredictionLog | None:
    if not settings.log:
        return None
    return PredictionLog(settings.log, settings.origin, privacy=settings.privacy, seconds=settings.log_seconds)
