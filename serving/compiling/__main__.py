"""``python -m serving.compiling MODEL_FOLDER OUT_FOLDER``: looks at a model once, and writes how it is to be served.

Standard output is one line that says whether the compiled path is on, and why not where it is not; whatever the model
prints goes to standard error. The exit status is 3 where the model itself cannot be used: the last line of standard
error says why.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path

UNUSABLE = 3
"""Exit status where the model cannot be loaded, or fails on its own input example."""


def main(arguments: list[str] | None = None) -> int:
    asked = _asked(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from serving.compiling.building import UnusableModel, build  # reads that: threads only slow small predictions down

    with os.fdopen(_take_stdout(), "w") as stdout:
        _quiet()
        try:
            line = build(asked.model, asked.out, asked.native, asked.why, asked.rows)
        except UnusableModel as error:
            print(error, file=sys.stderr)
            return UNUSABLE
        print(line, file=stdout)
    return 0


def _asked(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("serving.compiling", description="Write how an MLflow model is to be served.")
    parser.add_argument("model", type=Path, help="folder of the model, with its MLmodel file")
    parser.add_argument("out", type=Path, help="folder for the plan and the compiled model")
    parser.add_argument("--native", action="store_true", help="compile nothing, only look at the model")
    parser.add_argument("--why", default="", help="why nothing is to be compiled, for the plan")
    parser.add_argument("--rows", type=Path, help="file of rows that the model is known to meet, for the proof")
    return parser.parse_args(arguments)


def _take_stdout() -> int:
    """A new descriptor of standard output, which is standard error for everybody else from here on."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    return kept


def _quiet() -> None:
    """What libraries want to tell whoever trains models is of no use here."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
