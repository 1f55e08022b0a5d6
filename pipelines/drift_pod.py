"""``python -m pipelines.drift_pod``: one drift check, in a pod of its own.

It is told by its environment what to check, and prints the result. It ends badly where another attempt may help, so
that the cluster makes one; where none would, it ends well and says so.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

from monitoring.evidently_drift import EvidentlyDrift
from monitoring.logged_rows import LoggedRows
from pipelines.drift_checks import DriftCheckError
from pipelines.drift_here import DriftChecksHere
from pipelines.drift_wire import Order, Refused, Result, printed, read_order
from registry_hooks.mlflow_reference import MlflowReference
from registry_hooks.mlflow_registry import MlflowRegistry

ORDER = "PROMOTE_DRIFT_ORDER"
MLFLOW = "MLFLOW_TRACKING_URI"

_AGAIN = 75
"""Exit status that asks for another attempt: EX_TEMPFAIL."""


def main(out: TextIO = sys.stdout) -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    result = carried_out(read_order(os.environ[ORDER]), os.environ[MLFLOW])
    out.write("".join(f"{line}\n" for line in printed(result)))
    out.flush()
    if result.refused is None:
        return 0
    print(result.refused.reason, file=sys.stderr)
    return _AGAIN if result.refused.retryable else 0


def carried_out(order: Order, mlflow: str) -> Result:
    """With what the real parts find."""
    registry, reference = MlflowRegistry(mlflow), MlflowReference(mlflow)
    here = DriftChecksHere(registry, reference, LoggedRows(order.url), EvidentlyDrift())
    try:
        return Result(checked=here.carry_out(order.check, order.now))
    except DriftCheckError as error:
        return Result(refused=Refused(str(error), error.retryable))


if __name__ == "__main__":
    sys.exit(main())
