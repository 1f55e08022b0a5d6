"""What `mlflow-promote compose` writes, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import compose
from pipelines.settings import Settings

SERVER = compose.Server("/srv/promote", "team", 1000, 1001, "/run/docker.sock", 999)
TEXTS = {path.name: path.read_text() for path in Path(compose.__file__).with_name("compose_files").iterdir()}
OURS = ("controller", "mlflow")


def numbered() -> Any:
    """Secrets that are told apart."""
    numbers = count(1)
    return lambda size: f"{next(numbers):0{2 * size}d}"


ENV = compose.completed("", compose.variables(SERVER, numbered()))
VALUES = compose.parse(ENV)


def written(values: Mapping[str, str] = VALUES) -> dict[str, str]:
    return compose.files(values, TEXTS, "3.12", "ours.whl")


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(written()["compose.yaml"])["services"]
    return found


def test_what_stands_in_env_is_well_and_every_secret_is_another_one() -> None:
    assert compose.mistakes(VALUES) == []
    assert len({VALUES[name] for name in compose.SECRETS}) == len(compose.SECRETS)
    assert (VALUES["RUN_AS"], VALUES["ENGINE_GROUP"], VALUES["DATA"]) == ("1000:1001", "999", "/srv/promote")


def test_compose_finds_every_variable_in_env() -> None:
    used = set(re.findall(r"\$\{(\w+)\}", written()["compose.yaml"].partition("x-confined")[2]))
    assert used == VALUES.keys()


def test_no_secret_is_in_a_file_that_is_not_for_secrets() -> None:
    secrets = {VALUES[name] for name in compose.SECRETS}
    leaking = [path for path, text in written().items() if any(one in text for one in secrets)]
    assert leaking == ["token"]
    assert "/token" in written()[".gitignore"]
    assert "/.env" in written()[".gitignore"]


def test_lines_that_are_there_stay_and_what_lacks_is_added() -> None:
    mine = "# ours\nPROMOTE_TOKEN='as it was, once'\nPROMOTE_API_PORT=9000"
    text = compose.completed(mine, compose.variables(SERVER, numbered()))
    assert text.startswith(mine + "\n")
    assert compose.parse(text)["PROMOTE_TOKEN"] == "as it was, once"
    assert compose.parse(text).keys() == VALUES.keys()
    assert compose.completed(text, compose.variables(SERVER, numbered())) == text


def test_prometheus_asks_the_controller_at_its_port_with_the_token() -> None:
    files = written({**VALUES, "PROMOTE_API_PORT": "9000"})
    (job,) = yaml.safe_load(files["prometheus.yml"])["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:9000"]}]
    mounts = services()["prometheus"]["volumes"]
    assert f"./token:{job['authorization']['credentials_file']}:ro" in mounts
    assert files["token"] == VALUES["PROMOTE_TOKEN"]


def test_the_image_stands_on_the_python_that_the_lock_is_for_unless_another_is_named() -> None:
    bases = [
        re.findall(r"^FROM (\S+)", written(values)["image/Dockerfile"], re.MULTILINE)
        for values in (VALUES, VALUES | {"PYTHON_IMAGE": "example.org/python:3.12"})
    ]
    assert bases == [["python:3.12-slim"] * 2, ["example.org/python:3.12"] * 2]
    assert "COPY ours.whl" in written()["image/Dockerfile"]


def test_every_container_is_confined_and_has_another_user_than_root() -> None:
    for name, service in services().items():
        assert service["user"] == "${RUN_AS}", name
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name


def test_the_controller_has_its_home_at_the_path_of_the_server() -> None:
    controller = services()["controller"]
    home = controller["environment"]["PROMOTE_HOME"]
    assert f"{home}:{home}" in controller["volumes"]
    assert controller["environment"]["TMPDIR"].startswith(home)
    mounted = {one.partition(":")[0] for service in services().values() for one in service["volumes"]}
    assert {one for one in mounted if "docker" in one.lower() or "SOCKET" in one} == {"${ENGINE_SOCKET}"}


def test_the_controller_is_told_nothing_but_settings() -> None:
    told = {name for name in services()["controller"]["environment"] if name.startswith("PROMOTE_")}
    assert {name.removeprefix("PROMOTE_").lower() for name in told} <= Settings.model_fields.keys()


def test_whoever_needs_another_waits_until_it_is_healthy() -> None:
    waits = {name: service.get("depends_on", {}) for name, service in services().items()}
    assert {name: set(needed) for name, needed in waits.items()} == {
        "controller": {"postgres", "mlflow"},
        "mlflow": {"postgres"},
        "postgres": set(),
        "prometheus": set(),
    }
    assert {need["condition"] for needed in waits.values() for need in needed.values()} == {"service_healthy"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MLFLOW_PORT", "http", "must be a port from 1 to 65535, not 'http'"),
        ("POSTGRES_PORT", "70000", "must be a port from 1 to 65535, not '70000'"),
        ("PROMETHEUS_PORT", "8400", "8400 is PROMOTE_API_PORT already"),
        ("MLFLOW_HOST", "10.0.0.7", "must be 127.0.0.1 or 0.0.0.0"),
        ("DATA", "./data", "must be an absolute path"),
        ("DATA", "/srv/a b", "must be an absolute path"),
        ("RUN_AS", "0:0", "not root"),
        ("PROMOTE_TOKEN", "short", "at least 16 letters and digits"),
        ("POSTGRES_PASSWORD", "with@signs:and/slashes", "at least 16 letters and digits"),
    ],
)
def test_what_cannot_be_is_told_by_its_name(name: str, value: str, said: str) -> None:
    (mistake,) = compose.mistakes({**VALUES, name: value})
    assert mistake.startswith(f"{name}: ")
    assert said in mistake
    assert name not in compose.SECRETS or value not in mistake


@pytest.mark.parametrize(
    ("folder", "project"),
    [("team", "team"), ("ML Team_2", "mlteam_2"), ("_x", "x"), ("été", "t"), ("日本", "mlflow-promote")],
)
def test_a_project_is_called_as_compose_allows(folder: str, project: str) -> None:
    assert compose.project_of(folder) == project
