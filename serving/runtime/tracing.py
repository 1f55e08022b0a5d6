"""OpenTelemetry traces: a span per prediction, below the caller's own.

Only where OTEL_TRACES_EXPORTER asks for them (``console`` or ``otlp``) and the SDK is there; otherwise nothing is
imported, and predictions are not even wrapped.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from dataclasses import replace as changed
from importlib import import_module
from threading import Thread
from typing import Any, ParamSpec, TypeVar

from serving.prediction_log_entry import Origin
from serving.runtime.exchange import ServingError
from serving.runtime.routes import Protocol
from serving.runtime.service import Caller

P = ParamSpec("P")
R = TypeVar("R")
_VARIABLE = "OTEL_TRACES_EXPORTER"

_SEND_SECONDS = 1.0
"""How long the end of the server waits for spans to be sent; by itself, OpenTelemetry waits half a minute."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tracing:
    """Where spans go; nowhere without a provider."""

    origin: Origin
    provider: Any = None

    @classmethod
    def of_environment(cls, origin: Origin) -> Tracing:
        """As the environment says."""
        asked = os.environ.get(_VARIABLE, "none")
        if asked in ("", "none"):
            return cls(origin)
        try:
            return cls(origin, _provider(asked, origin))
        except (ImportError, ValueError) as error:
            _logger.warning("%s=%s: no traces: %s", _VARIABLE, asked, error)
            return cls(origin)

    def traced(self, protocol: Protocol) -> Protocol:
        """The same protocol, with a span around every answer."""
        return changed(protocol, answer=self.around(protocol.answer, lambda asked: (asked.caller, asked.path)))

    def around(
        self, answer: Callable[P, Awaitable[R]], about: Callable[P, tuple[Caller, str]]
    ) -> Callable[P, Awaitable[R]]:
        """The same with a span around it, of the caller and the path that it is `about`."""
        return answer if self.provider is None else self._around(answer, about)

    def close(self) -> None:
        """Send what was not sent yet, if somebody takes it soon."""
        if self.provider is not None:
            sending = Thread(target=self.provider.shutdown, name="traces", daemon=True)
            sending.start()
            sending.join(_SEND_SECONDS)

    def _around(
        self, answer: Callable[P, Awaitable[R]], about: Callable[P, tuple[Caller, str]]
    ) -> Callable[P, Awaitable[R]]:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        tracer, origin = self.provider.get_tracer("serving.runtime"), self.origin
        propagator = TraceContextTextMapPropagator()

        async def traced(*asked: P.args, **more: P.kwargs) -> R:
            caller, path = about(*asked, **more)
            parent = propagator.extract({"traceparent": caller.trace} if caller.trace else {})
            attributes = {
                "promote.model": origin.model,
                "promote.version": origin.version,
                "promote.request_id": caller.request_id,
                "url.path": path,
            }
            with tracer.start_as_current_span(
                "predict", context=parent, kind=SpanKind.SERVER, attributes=attributes, record_exception=False
            ) as span:
                try:
                    return await answer(*asked, **more)
                except ServingError as error:
                    span.set_status(Status(StatusCode.ERROR, error.cause))
                    raise

        return traced


def _provider(exporter: str, origin: Origin) -> Any:
    """What the environment (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) says of the service comes before ours."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    ours = Resource({"service.name": origin.model, "service.version": str(origin.version)})
    provider = TracerProvider(shutdown_on_exit=False, resource=ours.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(_exporter(exporter)))
    return provider


def _exporter(name: str) -> Any:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if name == "otlp":
        return import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter").OTLPSpanExporter()
    raise ValueError("only console and otlp are known")
