"""The wheel in an empty environment: what was built is whole, and its command works from anywhere.

The packages come through uv's cache, so that only the first run on a machine downloads them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

import pytest
from uv import find_uv_bin

ROOT = Path(__file__).parents[2]
SOURCES = (
    "registry_hooks",
    "serving",
    "monitoring",
    "pipelines",
    "k8s",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(command: Sequence[str | Path], directory: Path) -> str:
    """What the command prints; nothing of this repository or environment may help it."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PROMOTE_", "PYTHON", "VIRTUAL_"))
    }
    home = {"PROMOTE_HOME": str(directory / "home")}
    ended = subprocess.run(command, cwd=directory, env=kept | home, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{ended.stdout[-2000:]}{ended.stderr[-4000:]}"
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that nothing left over from an earlier build gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "sources"
    copy.mkdir()
    for name in SOURCES:
        subprocess.run(["cp", "-r", ROOT / name, copy], check=True)
    run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, copy],
        folder,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Folder of the programs of an environment that has only the wheel and what it asks for."""
    environment = wheel.parent / "environment"
    venv.create(environment, symlinks=True)
    programs = environment / "bin"
    lock = ROOT / "requirements.lock"
    run([find_uv_bin(), "pip", "install", "--quiet", "--python", programs / "python", "-c", lock, wheel], wheel.parent)
    return programs


def test_the_wheel_holds_everything_but_tests_and_caches(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    for part in (
        "pipelines/migrations/script.py.mako",
        "pipelines/py.typed",
        "serving/runtime/__main__.py",
        "serving/compiling/__main__.py",
        "k8s/base/controller.yaml",
        "k8s/rights/rights.yaml",
        "k8s/routes/rights.yaml",
        "/LICENSE",
    ):
        assert any(name.endswith(part) for name in names), part
    assert not [name for name in names if name.startswith(("tests/", "examples/")) or "__pycache__" in name]


def test_the_command_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    command = installed / "mlflow-promote"
    assert "Exit codes" in run([command, "--help"], tmp_path)
    assert "properties" in json.loads(run([command, "policy", "schema"], tmp_path))
    assert json.loads(run([command, "policy", "check", "--json"], tmp_path))["ok"]


def test_the_environment_is_well_and_the_store_can_be_made(installed: Path, tmp_path: Path) -> None:
    make = "from pipelines.sql_store import SqlStore; SqlStore('sqlite:///store.db').close()"
    run([installed / "python", "-c", make], tmp_path)
    look = "from pipelines import doctor; print(*doctor.check_packages().detail, doctor.check_envoy().ok, sep='')"
    assert run([installed / "python", "-c", look], tmp_path).strip().endswith("within boundsTrue")


def test_a_model_server_can_be_put_together_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    copy = "from pathlib import Path; from serving.image import copy_server; copy_server(Path('server'))"
    run([installed / "python", "-c", copy], tmp_path)
    for part in ("runtime/__main__.py", "compiling/__main__.py", "prediction_log.py"):
        assert (tmp_path / "server" / "serving" / part).exists(), part
    assert "--plan" in run(
        ["env", f"PYTHONPATH={tmp_path / 'server'}", installed / "python", "-m", "serving.runtime", "--help"], tmp_path
    )
