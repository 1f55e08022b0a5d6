"""The life of one model server: it starts its engine, is ready, stops; and every prediction, whatever protocol asks.

Protocols parse with `Service.parser` and write answers; between the two stands `Service.predict`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from serving.prediction_log_entry import Served
from serving.runtime.exchange import Engine, Event, Health, NotReadyError, Predictions, Raw, Rows, Written
from serving.runtime.figures import Figures
from serving.runtime.parsing import Parser
from serving.runtime.plan import Plan
from serving.runtime.settings import Settings
from serving.runtime.warming import warm_up

if TYPE_CHECKING:
    from serving.prediction_log_front import PredictionLog


class State(str, Enum):  # noqa: UP042
    """How far the server is. (A model's own Python may be 3.10, which has no StrEnum.)"""

    STARTING = "starting"
    """Has no model that answers: it is being loaded, or loaded again."""
    READY = "ready"
    """Answers predictions."""
    DEGRADED = "degraded"
    """Answers predictions, and something is wrong."""
    STOPPING = "stopping"
    """Was asked to end and finishes what is in flight."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request says of itself."""

    request_id: str
    mode: str = "live"
    """``live``, ``shadow`` or ``replay``."""
    entity: str | None = None
    deadline: float = math.inf
    """By the event loop's clock, in seconds."""
    trace: str | None = None
    """Its W3C ``traceparent``."""


_FOUND_OUT = "the compiled model answered otherwise than the model itself, in another process of this server"


@runtime_checkable
class OfCompiled(Engine, Protocol):
    """An engine over a compiled model."""

    @property
    def compiled(self) -> bool:
        """Whether the compiled model answers."""

    def distrust(self, why: str) -> None:
        """The model itself answers from now on."""


class Service:
    """The model of this server, what is counted and logged of it, and how far it is."""

    def __init__(self, settings: Settings, plan: Plan, figures: Figures) -> None:
        self.settings, self.plan, self.figures = settings, plan, figures
        self.parser = Parser(plan)
        self.log: PredictionLog | None = None
        self.stopping = False
        self.doing = "the model is being loaded"
        """What the server is at while it starts."""
        self.fetched: int | None = None
        """Percent of a model that is not in the image, while it is fetched."""
        self._replaced = 0
        """How many writers of the log are counted as replaced."""
        self._engine: Engine | None = None
        self._started = False

    @property
    def state(self) -> State:
        if self.stopping:
            return State.STOPPING
        health = self._health()
        if not self._started or not health.ready:
            return State.STARTING
        return State.DEGRADED if health.trouble or self._lost() else State.READY

    @property
    def loaded(self) -> bool:
        """Whether predictions are answered, also while stopping."""
        return self._started

    async def start(self, engine: Engine) -> None:
        """Make the engine ready, and a first prediction; `RuntimeError` with the reason where it cannot be done."""
        self._engine = engine
        if self.settings.log:
            self.log = await asyncio.get_running_loop().run_in_executor(None, _log, self.settings)
        await engine.start()
        await warm_up(engine, self.parser, self.plan, self.settings.model)
        self._started = True

    async def predict(self, ask: Rows | Raw, caller: Caller) -> Predictions | Written:
        """Predictions for `ask`; raises a `ServingError`. What is returned is also in the prediction log."""
        if not self._started or self._engine is None:
            raise NotReadyError(self.doing)
        began = time.time()
        answer = await self._engine.predict(ask, caller.deadline)
        if self.log is not None:
            self.log.put(_served(ask, answer, caller, began))
        return answer

    def told(self) -> dict[str, Any]:
        """What the server says of itself."""
        origin = self.settings.origin
        unsigned = "" if self.plan.signature else "the model has no signature: inputs are typed as they come"
        return {
            "status": self.state.value,
            "detail": (self._health().trouble or self.doing) if self.state is State.STARTING else "",
            **({} if self.fetched is None else {"fetched": self.fetched}),
            "model": origin.model,
            "version": origin.version,
            "revision": origin.revision,
            "signature": self.plan.signature,
            "path": "compiled" if self.compiled else "native",
            "why": self._why(),
            "device": self._health().device,
            "warnings": [warning for warning in (unsigned, self._lost(), self._health().trouble) if warning],
        }

    @property
    def compiled(self) -> bool:
        """Whether the compiled model answers."""
        return isinstance(self._engine, OfCompiled) and self._engine.compiled

    def _why(self) -> str:
        """Why the model is served as it is."""
        asked_for = self.plan.compiled is not None and self.settings.uncompiled
        return "the model itself was asked for" if asked_for else self.plan.why

    def look(self) -> None:
        """Take note of what nobody reports; to be called every second or so."""
        self.figures.look(self.log)
        if self.log is not None:
            self.figures.event(Event.LOG_REPLACED, self.log.replaced - self._replaced)
            self._replaced = self.log.replaced
        if isinstance(self._engine, OfCompiled) and self.figures.counted(Event.PARITY_MISMATCH):
            self._engine.distrust(_FOUND_OUT)
        self.figures.compiled(self.compiled)

    async def close(self) -> None:
        """Write what the log still has, and end the engine. Nothing is in flight any more."""
        ends: list[Awaitable[None]] = []
        if self.log is not None:
            ends.append(asyncio.get_running_loop().run_in_executor(None, self.log.close))
        if self._engine is not None:
            ends.append(self._engine.close())
        await asyncio.gather(*ends)

    def _lost(self) -> str:
        """Why the prediction log is not written."""
        return self.log.trouble if self.log is not None else ""

    def _health(self) -> Health:
        return self._engine.health() if self._engine else Health(ready=False)


def _log(settings: Settings) -> PredictionLog:
    """The prediction log; `RuntimeError` where there can be none at that place."""
    try:
        from serving.prediction_log_front import PredictionLog  # which few servers need

        return PredictionLog(
            settings.log,
            settings.origin,
            privacy=settings.privacy,
            sample=settings.log_sample,
            seconds=settings.log_seconds,
        )
    except OSError as error:
        raise RuntimeError(f"predictions cannot be logged to {settings.log}: {error}") from error


def _served(ask: Rows | Raw, answer: Predictions | Written, caller: Caller, began: float) -> Served:
    took = (time.time() - began) * 1000
    count = ask.count if isinstance(ask, Rows) else None
    inputs = ask.columns if isinstance(ask, Rows) else None
    outputs: Any = None
    if isinstance(answer, Written):
        inputs, outputs = inputs or answer.inputs, answer.outputs
    else:
        outputs = answer.columns.get("", answer.columns)
    return Served(caller.request_id, began, caller.mode, caller.entity, took, inputs, outputs, count)
