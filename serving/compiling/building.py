"""From a model's folder to its plan: load, describe, probe, convert, prove.

Whatever goes wrong after the model has answered its own input example leaves the safe default standing: the model is
served natively, and the plan says why.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel

from serving.compiling.conversion import Loaded, NotConvertible, NotProved
from serving.compiling.describing import describe
from serving.compiling.hints import Hints
from serving.compiling.met_rows import Met, read_met
from serving.compiling.probing import Probed, probe
from serving.compiling.rows import Native, results_of, rows_of
from serving.compiling.telling import told
from serving.runtime.devices import load
from serving.runtime.exchange import Rows
from serving.runtime.plan import Plan


class UnusableModel(Exception):
    """The model cannot be loaded, or fails on its own input example; one line."""


def build(folder: Path, out: Path, native: bool = False, why: str = "", rows: Path | None = None) -> str:
    """Write the plan of the model in `folder` to `out`, and the compiled model if there is one; one line about it.

    With `native` nothing is compiled, and `why` is the reason that the plan gives. The proof also takes what is in
    `rows`, as `read_met` has it.
    """
    pyfunc = _loaded(folder)
    plan = describe(pyfunc.metadata)
    example = _example(pyfunc, folder)
    if plan.typed:
        model = _Model(folder, pyfunc, _raw(pyfunc), plan, None if example is None else rows_of(example, plan))
        met = read_met(rows) if rows else Met()
        plan = model.looked_at(why or "compiling was not asked for") if native else model.compiled(out, met)
    plan.write(out)
    return f"The compiled path is {'on' if plan.compiled else 'off'}: {plan.why}."


def _loaded(folder: Path) -> PyFuncModel:
    try:
        return load(folder, threads=1)
    except Exception as error:
        raise UnusableModel(f"the model cannot be loaded: {told(error)}") from error


def _example(pyfunc: PyFuncModel, folder: Path) -> Any:
    """The model's input example, on which it has predicted; None where there is none, or it is refused."""
    try:
        example = pyfunc.metadata.load_input_example(str(folder))
        if example is not None:
            pyfunc.predict(example, params=pyfunc.metadata.load_input_example_params(str(folder)))
    except MlflowException as error:
        if error.get_http_status_code() < 500:  # type: ignore[no-untyped-call]
            return None
        raise UnusableModel(f"the model fails on its own input example: {told(error)}") from error
    except Exception as error:
        raise UnusableModel(f"the model fails on its own input example: {told(error)}") from error
    return example


def _raw(pyfunc: PyFuncModel) -> Any:
    """The flavour's own object."""
    try:
        return pyfunc.get_raw_model()  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - flavours without one raise anything
        return None


@dataclass(frozen=True, slots=True)
class _Model:
    """A typed model to be tried."""

    folder: Path
    pyfunc: PyFuncModel
    raw: Any
    plan: Plan
    example: Rows | None

    def looked_at(self, why: str) -> Plan:
        """The plan of a model that is served natively."""
        return _native(probe(self._native, self.plan, self.example, self._hints()), why)

    def compiled(self, out: Path, met: Met) -> Plan:
        """The plan with a compiled model, or with the reason why there is none."""
        hints = self._hints()
        example = self.example or met.some(self.plan)
        probed = probe(self._native, self.plan, example, hints)
        try:
            return _certified(self._loaded(probed), met, example, hints, out)
        except (NotConvertible, NotProved) as error:
            return _native(probed, str(error))

    @property
    def _native(self) -> Native:
        return Native(self.pyfunc, self.plan)

    def _hints(self) -> Hints:
        if self.plan.flavor != "sklearn":
            return Hints()
        from serving.compiling.sklearn_features import hints_of  # other models come without scikit-learn

        return hints_of(self.raw, [column.name for column in self.plan.columns])

    def _loaded(self, probed: Probed) -> Loaded:
        """What a converter is given; `NotConvertible` where too little is known of the model."""
        if probed.base is None:
            raise NotConvertible("it cannot be compared with the model")
        if not probed.plan.batching:
            raise NotConvertible("the model was not seen to answer a row alike alone and among others")
        answer = self._native.predict(probed.base)
        results = results_of(answer)
        return Loaded(self.folder, self.pyfunc, self.raw, probed.plan, probed.base, results, answer.frame)


def _certified(loaded: Loaded, met: Met, example: Rows | None, hints: Hints, out: Path) -> Plan:
    try:
        from serving.compiling.certifying import certified  # what is served natively has no ONNX Runtime
    except ImportError as error:
        raise NotConvertible(f"a package for compiling is missing: {error}") from error
    return certified(loaded, met, example, hints, out)


def _native(probed: Probed, why: str) -> Plan:
    return replace(probed.plan, why="; ".join(part for part in (why, probed.doubt) if part))
