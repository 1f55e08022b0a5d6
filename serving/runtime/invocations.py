"""MLflow's scoring protocol: ``POST /invocations``."""

from __future__ import annotations

from time import perf_counter

from serving.runtime import answers
from serving.runtime.exchange import Stage
from serving.runtime.routes import Asked, Protocol, Reply
from serving.runtime.service import Service

PATH = "/invocations"


class Invocations:
    """The protocol of one server."""

    def __init__(self, service: Service) -> None:
        self._parse, self._predict, self._stage = service.parser.parse, service.predict, service.figures.stage

    def protocol(self) -> Protocol:
        return Protocol(PATH.__eq__, self._answer, answers.error)

    async def _answer(self, asked: Asked) -> Reply:
        began = perf_counter()
        ask = self._parse(asked.body, asked.headers.get(b"content-type", b"").decode("latin-1"))
        self._stage(Stage.PARSE, perf_counter() - began)
        predictions = await self._predict(ask, asked.caller)
        began = perf_counter()
        body = answers.write(predictions)
        self._stage(Stage.WRITE, perf_counter() - began)
        return Reply(body)
