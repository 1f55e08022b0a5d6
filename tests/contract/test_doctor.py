"""The doctor's checks, each against the thing it checks: well, missing, and wrong."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from pipelines import doctor
from pipelines.doctor import Check
from pipelines.settings import Settings, Target
from pipelines.sql_store import SqlStore
from tests.fixtures.cluster import connection
from tests.fixtures.engines import engine_of
from tests.fixtures.gateway import free_port
from tests.fixtures.registry import MlflowServer


class Stranger(BaseHTTPRequestHandler):
    """A server that is not ours: an MLflow of long ago, with a clock of long ago."""

    def do_GET(self) -> None:
        self.send_response_only(200 if self.path in ("/version", "/health") else 404)
        self.send_header("date", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(b"2.9.0")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def stranger() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens, kept from everybody else."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def said(check: Check, *, ok: bool, detail: str) -> None:
    assert check.ok is ok, check
    assert detail in check.detail
    assert bool(check.advice) is not ok


@pytest.mark.parametrize("check", [doctor.check_python, doctor.check_packages, doctor.check_envoy, doctor.check_uv])
def test_this_environment_is_well(check: Callable[[], Check]) -> None:
    said(check(), ok=True, detail="")


def test_mlflow_is_well(mlflow_server: MlflowServer) -> None:
    said(doctor.check_mlflow(mlflow_server.uri), ok=True, detail=mlflow_server.uri)
    said(doctor.check_clock(mlflow_server.uri), ok=True, detail="s from MLflow's")


def test_mlflow_of_another_age(stranger: str) -> None:
    said(doctor.check_mlflow(stranger), ok=False, detail="2.9.0")
    said(doctor.check_clock(stranger), ok=False, detail="s from MLflow's")


def test_mlflow_that_does_not_answer_is_wrong_unless_up_would_start_it(nobody: str) -> None:
    said(doctor.check_mlflow(nobody), ok=False, detail="does not answer")
    said(doctor.check_mlflow(nobody, ours=True), ok=True, detail="'mlflow-promote up' starts it")
    said(doctor.check_clock(nobody), ok=True, detail="not compared")


def test_a_port_is_free_ours_or_somebody_elses(stranger: str) -> None:
    taken = int(stranger.rpartition(":")[2])
    said(doctor.check_port("gateway", "127.0.0.1", taken, None), ok=False, detail="in use")
    said(doctor.check_port("gateway", "127.0.0.1", taken, f"{stranger}/ready"), ok=False, detail="in use")
    said(doctor.check_port("gateway", "127.0.0.1", taken, f"{stranger}/health"), ok=True, detail="is ours")
    said(doctor.check_port("gateway", "127.0.0.1", 0, None), ok=True, detail="is free")


def test_the_store_is_made_opened_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    url = f"sqlite:///{file}"
    said(doctor.check_store(url), ok=True, detail="not there yet")
    assert not file.exists()

    SqlStore(url).close()
    said(doctor.check_store(url), ok=True, detail="with schema")

    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = 'from the future'")
    database.close()
    said(doctor.check_store(url), ok=False, detail="from the future")

    file.write_text("no database")
    said(doctor.check_store(url), ok=False, detail="not a database")
    said(doctor.check_store("nonsense"), ok=False, detail="URL")


def test_a_password_is_not_repeated() -> None:
    check = doctor.check_store("postgresql+psycopg://ada:secret@127.0.0.1:1/x")
    said(check, ok=False, detail="")
    assert "secret" not in f"{check.detail}{check.advice}"


def test_disk_is_looked_at_where_the_home_will_be(tmp_path: Path) -> None:
    assert str(tmp_path) in doctor.check_disk(tmp_path / "not" / "there").detail


def test_policies() -> None:
    said(doctor.check_policies([]), ok=True, detail="valid")
    said(doctor.check_policies(["a.yaml: steps: must rise"]), ok=False, detail="a.yaml: steps: must rise")


def test_an_engine_that_does_not_answer_is_told_of() -> None:
    said(
        doctor.check_engine(f"tcp://127.0.0.1:{free_port()}", Target.DOCKER), ok=False, detail="cannot reach the engine"
    )


@pytest.mark.docker
def test_an_engine_has_to_be_of_the_kind_that_the_target_names() -> None:
    engine = engine_of("docker", "doctor")
    engine.close()
    said(doctor.check_engine(engine.url, Target.DOCKER), ok=True, detail="docker at")
    said(doctor.check_engine(engine.url, Target.PODMAN), ok=False, detail="docker at")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubeconfig that leads nowhere."""
    file = tmp_path / "kubeconfig"
    clusters = [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{free_port()}"}}]
    contexts = [{"name": "c", "context": {"cluster": "c", "user": "u"}}]
    users = [{"name": "u", "user": {}}]
    config = {"clusters": clusters, "contexts": contexts, "users": users, "current-context": "c"}
    file.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(file))
    return file


def kubernetes(tmp_path: Path, **more: str) -> Settings:
    return Settings(home=tmp_path, target=Target.KUBERNETES, image_repository="127.0.0.1:5000/x", **more)  # type: ignore[arg-type]


@pytest.mark.usefixtures("elsewhere")
def test_a_cluster_that_does_not_answer_or_is_not_known_is_told_of(tmp_path: Path) -> None:
    said(doctor.check_cluster(kubernetes(tmp_path)), ok=False, detail="cannot apply ConfigMap")
    said(doctor.check_cluster(kubernetes(tmp_path, kube_context="other")), ok=False, detail="other")


@pytest.mark.kubernetes
def test_a_cluster_has_to_have_the_namespace(tmp_path: Path) -> None:
    connection()
    said(doctor.check_cluster(kubernetes(tmp_path, namespace="default")), ok=True, detail="namespace default at")
    missing = doctor.check_cluster(kubernetes(tmp_path, namespace="not-there"))
    said(missing, ok=False, detail='namespaces "not-there" not found')
    assert "kubectl create namespace not-there" in missing.advice
