"""Work as Jobs of a real cluster, with the rights of the controller: what comes of it, and that nothing is left."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import utils
from kubernetes.client import ApiClient, AuthenticationV1TokenRequest, Configuration, CoreV1Api, V1TokenRequestSpec

from pipelines.own_pod import OwnPod
from serving.cluster import PODS, Cluster
from serving.cluster_jobs import JOBS, ClusterJobs, JobError, JobStoppedError
from serving.job_objects import JobSettings, job
from tests.fixtures.cluster import namespace
from tests.fixtures.engines import engine_of
from tests.fixtures.gateway import until
from tests.fixtures.registries import open_registry

pytestmark = [pytest.mark.kubernetes, pytest.mark.docker, pytest.mark.nightly, pytest.mark.timeout(900)]
SECONDS = 300.0
RIGHTS = Path(__file__).parents[2] / "k8s" / "rights" / "rights.yaml"
ACCOUNT = "mlflow-promote"


@dataclass(frozen=True)
class There:
    """A namespace, as the controller's account sees it."""

    cluster: Cluster
    settings: JobSettings

    @property
    def jobs(self) -> ClusterJobs:
        return ClusterJobs(self.cluster, self.settings.selector, look_seconds=0.5)

    def run(self, code: str, jobs: ClusterJobs | None = None, **changes: Any) -> tuple[str, ...]:
        """What this code of Python prints."""
        settings, name = replace(self.settings, **changes), f"work-{uuid.uuid4().hex[:8]}"
        return (jobs or self.jobs).run(name, ("python", "-c", code), {"TOLD": "so"}, settings)

    def left(self) -> list[str]:
        kinds = (JOBS, PODS)
        found = [self.cluster.list(kind, labelSelector=self.settings.selector)[0] for kind in kinds]
        return [one["metadata"]["name"] for objects in found for one in objects]


@pytest.fixture(scope="module")
def there(cluster_connection: Configuration) -> Iterator[There]:
    with namespace(cluster_connection) as space, closing(Cluster(account(cluster_connection, space), space)) as cluster:
        yield There(cluster, JobSettings(space, space, "work", image(), 64, 0.1, int(SECONDS), 0))


def account(connection: Configuration, space: str) -> Configuration:
    """The way there for the controller's account, with the rights of `k8s/rights`."""
    api = ApiClient(connection)
    for made in yaml.safe_load_all(RIGHTS.read_text()):
        made["subjects"] = [{**one, "namespace": space} for one in made.get("subjects", ())]
        utils.create_from_dict(api, {key: value for key, value in made.items() if value}, namespace=space)
    wanted = AuthenticationV1TokenRequest(spec=V1TokenRequestSpec(audiences=[]))
    told = CoreV1Api(api).create_namespaced_service_account_token(ACCOUNT, space, wanted).to_dict()
    limited = Configuration(host=connection.host)
    limited.ssl_ca_cert = connection.ssl_ca_cert
    limited.api_key = {"authorization": f"Bearer {told['status']['token']}"}
    return limited


def image() -> str:
    """Of Python alone, as the cluster pulls it."""
    repository = f"{open_registry()}/promote-tests-jobs/python"
    engine = engine_of("docker", "jobs")
    engine.api.tag("python:3.11-slim", repository, "3.11-slim")
    digest = engine.push(f"{repository}:3.11-slim")
    engine.remove_image(f"{repository}:3.11-slim")
    engine.close()
    return f"{repository}@{digest}"


def test_what_it_prints_is_read_and_nothing_is_left(there: There) -> None:
    code = (
        "import os; print(os.environ['TOLD'], os.getuid(), os.path.exists('/var/run/secrets/kubernetes.io'));"
        "print('x' * 100_000)"
    )
    first, *_ = there.run(code)
    assert first == "so 65532 False"
    until(lambda: there.left() == [], SECONDS)


def test_one_that_fails_is_tried_again_and_its_last_words_are_told(there: There) -> None:
    with pytest.raises(JobError, match=r"ended with status 7 \(tried 2 times\)\nlast words") as failed:
        there.run("import sys; print('last words'); sys.exit(7)", retries=1)
    assert failed.value.lines == ("last words",)
    until(lambda: there.left() == [], SECONDS)


def test_want_of_memory_is_said_as_such_and_not_tried_again(there: There) -> None:
    with pytest.raises(JobError, match=r"want of memory \(the limit is 64 MiB\)"):
        there.run("print(len(bytearray(10**9)))", retries=5)
    until(lambda: there.left() == [], SECONDS)


def test_one_that_no_node_takes_is_given_up_in_its_time(there: There) -> None:
    with pytest.raises(JobError, match=r"did not end within 15 s; no node takes it: .*Insufficient cpu"):
        there.run("pass", cpus=1000.0, seconds=15)
    until(lambda: there.left() == [], SECONDS)


def test_an_image_that_does_not_exist_is_said_in_the_clusters_words(there: There) -> None:
    missing = f"{there.settings.image.partition('@')[0]}@sha256:{'0' * 64}"
    with pytest.raises(JobError, match=r"did not end within 30 s; .*(ErrImagePull|ImagePullBackOff)"):
        there.run("pass", image=missing, seconds=30)
    until(lambda: there.left() == [], SECONDS)


def test_nobody_is_kept_waiting_once_it_is_stopped(there: There) -> None:
    jobs, raised = there.jobs, []

    def wait() -> None:
        with pytest.raises(JobStoppedError) as stopped:
            there.run("import time; time.sleep(600)", jobs)
        raised.append(stopped.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: len(there.left()) == 2, SECONDS)
    (pod,) = there.cluster.list(PODS, labelSelector=there.settings.selector)[0]
    own = OwnPod(there.cluster, pod["metadata"]["name"])
    assert (own.image(), own.owner()) == (there.settings.image, None)
    jobs.stop()
    waiting.join(SECONDS)
    assert raised
    until(lambda: there.left() == [], SECONDS)


def test_what_another_controller_left_is_removed_and_nobody_elses(there: There) -> None:
    there.cluster.apply(job("work-of-another", ("python", "-c", "import time; time.sleep(600)"), {}, there.settings))
    other = replace(there.settings, component="something-else")
    there.cluster.apply(job("work-of-another-kind", ("python", "-c", "pass"), {}, other))
    jobs, done = there.jobs, threading.Event()

    def work() -> None:
        there.run("import time; time.sleep(5)", jobs)
        done.set()

    waiting = threading.Thread(target=work)
    waiting.start()
    until(lambda: len(there.cluster.list(JOBS, labelSelector=there.settings.selector)[0]) == 2, SECONDS)
    jobs.clear()
    until(lambda: "work-of-another" not in there.left(), SECONDS)
    waiting.join(SECONDS)
    assert done.is_set()
    assert there.cluster.get(JOBS, "work-of-another-kind") is not None


def test_one_that_somebody_removes_is_not_waited_for(there: There) -> None:
    def remove() -> None:
        (found,) = until(lambda: there.cluster.list(JOBS, labelSelector=there.settings.selector)[0], SECONDS)
        there.cluster.delete(JOBS, found["metadata"]["name"], found["metadata"]["uid"])

    removing = threading.Thread(target=remove)
    removing.start()
    with pytest.raises(JobError, match="removed by somebody"):
        there.run("import time; time.sleep(600)")
    removing.join(SECONDS)
