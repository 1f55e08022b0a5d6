"""MLflow's scoring protocol: ``POST /invocations``."""

from __future__ import annotations

import asyncio
from time import perf_counter

from serving.runtime import answers
from serving.runtime.exchange import Raw, Rows, Stage
from serving.runtime.prediction_header import told
from serving.runtime.routes import JSON, Asked, Protocol, Reply
from serving.runtime.service import Service

PATH = "/invocations"

_LARGE = 1_000_000
"""Bytes of a body that is read in a thread: it can take a second, and others want their answers meanwhile."""


class Invocations:
    """The protocol of one server."""

    def __init__(self, service: Service) -> None:
        self._parse, self._predict, self._stage = service.parser.parse, service.predict, service.figures.stage

    def protocol(self) -> Protocol:
        return Protocol(PATH.__eq__, self._answer, answers.error)

    async def _answer(self, asked: Asked) -> Reply:
        began = perf_counter()
        ask = await self._asked(asked.body, asked.headers.get(b"content-type", b"").decode("latin-1"))
        self._stage(Stage.PARSE, perf_counter() - began)
        predictions = await self._predict(ask, asked.caller)
        began = perf_counter()
        body = answers.write(predictions)
        self._stage(Stage.WRITE, perf_counter() - began)
        return Reply(body, 200, (JSON, *told(predictions)))

    async def _asked(self, body: bytes, content_type: str) -> Rows | Raw:
        if len(body) < _LARGE:
            return self._parse(body, content_type)
        return await asyncio.get_running_loop().run_in_executor(None, self._parse, body, content_type)
