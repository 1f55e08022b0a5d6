"""Convert and prove: the plan with a compiled model that was found to answer as the model does, or an exception.

Beside the plan this writes the compiled model and its proof: what was compared, with which packages and which seed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from serving.compiling.conversion import Conversion, Loaded, NotConvertible, NotProved
from serving.compiling.drawing import SEED, Drawing
from serving.compiling.flavors import converter
from serving.compiling.hints import Hints
from serving.compiling.met_rows import Met
from serving.compiling.proof import LOGGED, Proof, Prover
from serving.compiling.rows import Native
from serving.compiling.telling import told
from serving.runtime.compiled import CompiledModel
from serving.runtime.exchange import Rows
from serving.runtime.plan import Compiled, Plan

MODEL, PROOF = "model.onnx", "proof.json"
"""Names of the files beside the plan."""

_PACKAGES = (
    *("mlflow", "numpy", "onnx", "onnxruntime", "onnxmltools", "skl2onnx"),
    *("scikit-learn", "lightgbm", "xgboost", "xgboost-cpu", "torch", "onnxscript"),
)


def certified(loaded: Loaded, met: Met, example: Rows | None, hints: Hints, out: Path) -> Plan:
    """`met`: rows that the model is known to meet.

    `NotConvertible` or `NotProved` where there is no compiled model, and then no file of one.
    """
    try:
        return _certified(loaded, met, example, hints, out)
    except (NotConvertible, NotProved):
        (out / MODEL).unlink(missing_ok=True)
        raise


def _certified(loaded: Loaded, met: Met, example: Rows | None, hints: Hints, out: Path) -> Plan:
    conversion = _converted(loaded)
    plan = replace(loaded.plan, compiled=_written(conversion, out))
    prover = Prover(
        Native(loaded.pyfunc, plan), _opened(out, plan), conversion.tolerance, Drawing(plan, example, hints)
    )
    fitting = met.fitting(loaded.plan)
    proof = prover.prove(loaded.base, conversion.edges, fitting.rows)
    compiled = replace(_written(conversion, out), rows=proof.total)
    (out / PROOF).write_text(json.dumps(_told(proof, compiled) | {"data set": fitting.told}, indent=1))
    return replace(plan, compiled=compiled, why=_why(proof))


def _why(proof: Proof) -> str:
    logged = f", {proof.rows[LOGGED]} of them of its data set" if LOGGED in proof.rows else ""
    apart = f", scores within {proof.largest:.1g}" if proof.largest else ""
    return f"it answered {proof.total} rows as the model itself does{logged}{apart}"


def _converted(loaded: Loaded) -> Conversion:
    convert = converter(loaded.plan.flavor)
    try:
        return convert(loaded)
    except NotConvertible:
        raise
    except Exception as error:
        raise NotConvertible(f"it cannot be converted: {told(error)}") from error


def _written(conversion: Conversion, out: Path) -> Compiled:
    out.mkdir(parents=True, exist_ok=True)
    (out / MODEL).write_bytes(conversion.model)
    digest = hashlib.sha256(conversion.model).hexdigest()
    return Compiled(MODEL, digest, conversion.feeds, conversion.results, conversion.frame, conversion.tolerance, rows=0)


def _opened(out: Path, plan: Plan) -> CompiledModel:
    try:
        return CompiledModel(out, plan)
    except Exception as error:
        raise NotConvertible(f"ONNX Runtime does not take the converted model: {told(error)}") from error


def _told(proof: Proof, compiled: Compiled) -> dict[str, object]:
    return {
        "model": compiled.digest,
        "rows": proof.rows,
        "refused by both": proof.refused,
        "largest difference": proof.largest,
        "tolerance": compiled.tolerance,
        "seed": SEED,
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
