"""Which engine serves a plan: the compiled model with the model itself behind it, or the model alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from serving.runtime.exchange import Engine, Meter
from serving.runtime.figures import Part
from serving.runtime.native_pool import NativePool, NativeSettings
from serving.runtime.plan import Plan
from serving.runtime.settings import Batching, Device, Settings

if TYPE_CHECKING:
    from serving.runtime.compiled import CompiledModel

_IDLE_SECONDS = 300.0
"""After how long without a request the processes behind a compiled model are ended."""


def engine_for(settings: Settings, plan: Plan, meter: Meter, model: CompiledModel | None = None) -> Engine:
    """The engine, its compiled model loaded, and no thread or process started; `RuntimeError` where it cannot be.

    `model` is the compiled model where it has been loaded already.
    """
    native = _native(settings)
    if settings.batching is Batching.ON:
        plan = replace(plan, batching=True)
    if plan.compiled is None or settings.uncompiled:
        return NativePool(settings.model, plan, native, meter)
    from serving.runtime.compiled_engine import CompiledEngine, Limits

    waiting: dict[Part, int] = {}
    # On the CPU, where both were proved to be the same.
    native = replace(native, workers=1, lazy=True, idle=_IDLE_SECONDS, device=Device.CPU)
    behind = NativePool(settings.model, plan, native, Part(meter, waiting))
    model = model or compiled_model(settings, plan)
    if settings.batching is Batching.OFF:
        plan = replace(plan, batching=False)
    limits = Limits(budget=settings.budget, queue=settings.queue)
    meter, share = Part(meter, waiting), settings.parity_share
    return CompiledEngine(model, plan, behind, meter, share, privacy=settings.privacy, limits=limits)


def compiled_model(settings: Settings, plan: Plan) -> CompiledModel:
    """The compiled model, loaded; `RuntimeError` where it cannot be."""
    from serving.runtime.compiled import CompiledModel

    try:
        return CompiledModel(settings.plan, plan, settings.cores)
    except Exception as error:  # ONNX Runtime's exceptions have no parent of their own
        raise RuntimeError(f"the compiled model cannot be loaded: {error}") from error


def _native(settings: Settings) -> NativeSettings:
    return NativeSettings(
        workers=settings.workers,
        threads=settings.threads,
        cores=settings.cores,
        device=settings.device,
        queue=settings.queue,
        batching=settings.batching is not Batching.OFF,
        budget=settings.budget,
        predict_timeout=settings.predict_timeout,
        memory=settings.worker_memory,
        log=bool(settings.log),
    )
