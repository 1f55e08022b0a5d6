"""`k8s/overlays/trial` as it lies there: everything in one namespace, applied by kubectl, and a version that goes live.

With the component `k8s/standby`, so that two controllers run.

Only the images of PostgreSQL and of the registry are of Debian's programs, so that nothing is pulled from elsewhere.
The cluster's node has to be this machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest
import yaml
from kubernetes.client import ApiClient, CoreV1Api

from pipelines.cluster_install import MANIFESTS
from pipelines.cluster_manifests import CONTROLLER
from serving.cluster import DEPLOYMENTS, PODS, Cluster, Kind
from tests.e2e.loop import PORTS, PROGRAM, Loop, answers, failed, until
from tests.e2e.test_in_cluster import publish, volume
from tests.fixtures.cluster import NODE_PORTS, connection
from tests.fixtures.composed import image_of, run
from tests.fixtures.engines import engine_of
from tests.fixtures.registries import open_registry

pytestmark = [pytest.mark.kubernetes, pytest.mark.docker, pytest.mark.nightly, pytest.mark.timeout(1800)]

TRIAL = MANIFESTS / "overlays" / "trial"
SPACE = "mlflow-promote"
REPOSITORY = "127.0.0.1:30500/models"
"""As the overlay has it, with the gateway at the port below."""
GATEWAY = 30808
CLAIMS = ("mlflow-promote-home", "mlflow", "postgres", "registry")
MODEL = "tried"
TOKEN = "token-for-trying-it-out"


@pytest.fixture
def applied(tmp_path: Path) -> Iterator[Path]:
    """The overlay is in the cluster; the folder of whoever put it there."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here")
    where, registry = connection(), open_registry()
    core = CoreV1Api(ApiClient(where))
    if core.list_namespace(field_selector=f"metadata.name={SPACE}").items:
        pytest.skip(f"the cluster has a namespace {SPACE} already")
    name = f"trial-{uuid.uuid4().hex[:8]}"
    tmp_path.chmod(0o755)
    overlay = tmp_path / "overlay"
    with ExitStack() as left:
        engine = left.enter_context(closing(engine_of("docker", name)))
        cluster = left.enter_context(closing(Cluster(where, SPACE)))
        images = {"postgres:17-bookworm": "postgres", "registry:2": "registry"}
        written = []
        for theirs, program in images.items():
            engine.api.tag(image_of(program), f"{registry}/{name}/{program}", "tests")
            engine.push(f"{registry}/{name}/{program}:tests")
            engine.remove_image(f"{registry}/{name}/{program}:tests")
            written.append(
                {"name": theirs.partition(":")[0], "newName": f"{registry}/{name}/{program}", "newTag": "tests"}
            )
        for claim in CLAIMS:
            left.enter_context(volume(core, SPACE, claim, tmp_path / "volume" / claim))
        overlay.mkdir()
        standby = standby_of(cluster, tmp_path / "standby")
        settings = f"base_image: {REPOSITORY}/python:{{python}}-slim\n"
        (overlay / "settings.yaml").write_text((TRIAL / "settings.yaml").read_text() + settings)
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": SPACE,
            "resources": [os.path.relpath(TRIAL, overlay)],
            "components": [os.path.relpath(standby, overlay)],
            "images": written,
            "configMapGenerator": [
                {"name": "mlflow-promote-settings", "behavior": "replace", "files": ["settings.yaml"]}
            ],
        }
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        try:
            run(["kubectl", "apply", "-k", str(overlay)])
            yield tmp_path
        finally:
            core.delete_namespace(SPACE)
            until(lambda: not core.list_namespace(field_selector=f"metadata.name={SPACE}").items, 240, "it is gone")


def standby_of(cluster: Cluster, folder: Path) -> Path:
    """The component, with its budget as the cluster knows such."""
    shutil.copytree(MANIFESTS / "standby", folder)
    budget = folder / "budget.yaml"
    budget.write_text(budget.read_text().replace("policy/v1\n", f"{cluster.budgets()}\n"))
    return folder


def send_base() -> None:
    """What images stand on, into the registry of the overlay."""
    with closing(engine_of("docker", f"trial-{uuid.uuid4().hex[:8]}")) as engine:
        engine.api.tag("python:3.11-slim", f"{REPOSITORY}/python", "3.11-slim")
        engine.push(f"{REPOSITORY}/python:3.11-slim")
        engine.remove_image(f"{REPOSITORY}/python:3.11-slim")


def leads(person: Loop) -> str:
    """The name of the pod that leads, and its process; empty where nobody says so."""
    try:
        told = httpx.get(f"{person.api_url}/status", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30.0)
    except httpx.TransportError:
        return ""
    told.raise_for_status()
    return str((told.json()["controller"] or {}).get("holder", ""))


def ready(cluster: Cluster) -> int:
    return int((cluster.get(DEPLOYMENTS, CONTROLLER) or {}).get("status", {}).get("readyReplicas", 0))


def test_everything_for_trying_it_out(applied: Path) -> None:
    # given the overlay, whose pods wait for the controller's image
    until(lambda: answers(f"http://{REPOSITORY.partition('/')[0]}/v2/"), 240, "the registry answers")
    send_base()
    # when that is sent to the registry in the cluster
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROMOTE_", "MLFLOW_"))}
    told = {"PROMOTE_HOME": str(applied / "person"), "PROMOTE_TARGET": "kubernetes"}
    told |= {"PROMOTE_IMAGE_REPOSITORY": REPOSITORY, "PROMOTE_BASE_IMAGE": f"{REPOSITORY}/python:{{python}}-slim"}
    subprocess.run([PROGRAM, "k8s", "image"], env=kept | told, check=True, timeout=1200)
    # then MLflow and the controller come up by themselves, on PostgreSQL
    ports = dict(zip(PORTS, NODE_PORTS[-len(PORTS) :], strict=True)) | {"gateway_port": GATEWAY}
    person = Loop(applied / "person", ports=ports)
    person.home.mkdir(exist_ok=True)
    with closing(Cluster(connection(), SPACE)) as cluster:
        until(lambda: ready(cluster) == 2, 600, "both controllers are ready")
        publish(cluster, "mlflow", 5000, ports["mlflow_port"])
        publish(cluster, CONTROLLER, 8400, ports["api_port"])
        until(lambda: answers(f"{person.mlflow_url}/health"), 600, "MLflow answers")
        until(lambda: answers(f"{person.api_url}/healthz"), 600, "the controller answers")
        leases, _ = cluster.list(Kind("coordination.k8s.io/v1", "leases"))
        assert leases == [], "PostgreSQL has the lease"
    # and a version goes live, and the next one is tried beside it
    first = person.register(MODEL)
    person.transition(MODEL, first, "Production")
    person.await_state(MODEL, first, "succeeded", seconds=900)
    until(lambda: person.answers(MODEL), 60, "the gateway answers")
    with person.traffic(MODEL, 20.0) as results:
        second = person.register(MODEL)
        person.transition(MODEL, second, "Production")
        person.await_state(MODEL, second, "progressing", seconds=900)
        until(lambda: person.served(MODEL) == str(second), 120, "the candidate has traffic")
        # when the controller that leads is taken away
        leader = leads(person)
        with closing(Cluster(connection(), SPACE)) as cluster:
            pod = cluster.get(PODS, leader.rpartition("-")[0])
            assert pod is not None, leader
            cluster.delete(PODS, pod["metadata"]["name"], pod["metadata"]["uid"])
        # then the other one leads, and the rollout goes on
        until(lambda: leads(person) not in ("", leader), 60, "the other one leads")
        person.await_state(MODEL, second, "baking", "succeeded", seconds=600)
    assert failed(results) == {}
    # of which nobody is told who does not have the token
    refused = httpx.get(f"{person.api_url}/status", timeout=30.0)
    assert refused.status_code == 401
