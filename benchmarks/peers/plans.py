"""The plan of a model, made as the build makes it, beside the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def compile_plan(folder: Path) -> str:
    """Write ``plan/`` into the model's folder; the line that says whether the compiled path is on."""
    command = [sys.executable, "-m", "serving.compiling", str(folder), str(folder / "plan")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
