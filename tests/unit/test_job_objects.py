"""Work as a Job of a cluster, and why there is no result of it."""

from __future__ import annotations

import json
from typing import Any

import kubernetes_validate
import pytest

from serving.job_objects import RUNS, JobSettings, Seen, job, why
from serving.pod_parts import Object
from tests.fixtures.kubernetes_schemas import Check

OWNER: Object = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "controller", "uid": "u-1"}}
SETTINGS = JobSettings(
    "live",
    "one",
    "drift-check",
    f"registry/controller@sha256:{'0' * 64}",
    memory_mb=512,
    cpus=0.5,
    seconds=600,
    retries=2,
    environment={"PLAIN": "1"},
    environment_secrets=("storage",),
    pull_secrets=("login",),
    log_claim="rows",
    owner=OWNER,
)


def made(**told: str) -> Any:
    return job("drift-churn-1", ("python", "-m", "work"), told, SETTINGS)


@pytest.mark.parametrize("version", [f"1.{minor}" for minor in range(25, 38)])
def test_every_cluster_of_the_last_years_takes_it(version: str) -> None:
    kubernetes_validate.validate(json.loads(json.dumps(made(A="b"))), version, strict=True)


def test_kubernetes_1_24_takes_it(kubernetes_1_24: Check) -> None:
    kubernetes_1_24([made(A="b")])


def test_it_comes_to_an_end_by_itself_and_goes_with_its_owner() -> None:
    spec = made()["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (2, 600)
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert made()["metadata"]["ownerReferences"] == [
        {"apiVersion": "apps/v1", "kind": "Deployment", "name": "controller", "uid": "u-1"}
    ]


def test_its_pods_are_confined_and_found_by_the_labels_of_the_installation() -> None:
    metadata, pod = (made()["spec"]["template"][part] for part in ("metadata", "spec"))
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for part in SETTINGS.selector.split(","):
        name, _, value = part.partition("=")
        assert metadata["labels"][name] == made()["metadata"]["labels"][name] == value


def test_it_has_what_the_settings_give_it() -> None:
    pod = made(ORDER="x")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"cpu": "500m", "memory": "512Mi"}
    told = {one["name"]: one["value"] for one in container["env"]}
    assert {"PLAIN": "1", "ORDER": "x", "HOME": "/tmp"}.items() <= told.items()
    assert container["envFrom"] == [{"secretRef": {"name": "storage"}}]
    assert pod["imagePullSecrets"] == [{"name": "login"}]
    assert [one.get("persistentVolumeClaim") for one in pod["volumes"]] == [None, {"claimName": "rows"}]


def seen(condition: str = "", reason: str = "", *pods: Object, **more: Any) -> Seen:
    told = [{"type": condition, "status": "True", "reason": reason}] if condition else []
    return Seen({"metadata": {"name": "j", "uid": "job"}, "status": {"conditions": told}}, pods, **more)


def pod(state: Object | None = None, uid: str = "p", **status: Any) -> Object:
    container = {"name": "work", "state": state or {}}
    return {
        "metadata": {"name": uid, "uid": uid, "creationTimestamp": f"2026-11-29T08:00:0{len(uid)}Z"},
        "status": {"phase": "Pending", "containerStatuses": [container], **status},
    }


def ended(code: int, reason: str = "Error") -> Object:
    return {"terminated": {"exitCode": code, "reason": reason}}


def warning(message: str, uid: str, reason: str = "Failed") -> Object:
    of = {"uid": uid}
    return {"type": "Warning", "reason": reason, "message": message, "involvedObject": of, "lastTimestamp": "1"}


UNPLACED = [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient cpu."}]
PULL = {"waiting": {"reason": "ErrImagePull", "message": "rpc error"}}
QUOTA = "pods is forbidden: exceeded quota"


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (seen(), RUNS),
        (seen("", "", pod(conditions=UNPLACED)), "no node takes it: 0/1 nodes are available: 1 Insufficient cpu."),
        (seen("", "", pod(PULL), warnings=[warning("no such image", "p")]), "ErrImagePull: no such image"),
        (seen("", "", pod(PULL), warnings=[warning("waits", "p", "BackOff")]), "ErrImagePull: rpc error"),
        (seen(warnings=[warning(QUOTA, "job")]), f"its pod cannot be made: {QUOTA}"),
        (
            seen("Failed", "BackoffLimitExceeded", pod(ended(3)), pod(ended(7), "pp"), words=["last words"]),
            "ended with status 7 (tried 2 times)\nlast words",
        ),
        (seen("Failed", "BackoffLimitExceeded", pod(ended(139))), "was ended by signal 11"),
        (
            seen("", "", pod(ended(137, "OOMKilled"))),
            "was ended by the system for want of memory (the limit is 512 MiB)",
        ),
        (
            seen("", "", pod(ended(137, "OOMKilled")), pod(uid="pp")),
            "was ended by the system for want of memory (the limit is 512 MiB)",
        ),
        (
            seen("Failed", "DeadlineExceeded", pod(), warnings=[warning("0/1 nodes", "p")]),
            "did not end within 600 s; 0/1 nodes",
        ),
        (
            seen("Failed", "BackoffLimitExceeded", pod(phase="Failed", reason="Evicted", message="low on disk")),
            "its pod was ended: Evicted: low on disk",
        ),
        (seen("Failed", "DeadlineExceeded"), "did not end within 600 s"),
        (
            seen("Failed", "DeadlineExceeded", pod(conditions=UNPLACED)),
            "did not end within 600 s; no node takes it: 0/1 nodes are available: 1 Insufficient cpu.",
        ),
    ],
)
def test_why_there_is_no_result(there: Seen, expected: str) -> None:
    assert why(there, SETTINGS) == expected


def test_how_it_is_going() -> None:
    assert (seen().succeeded, seen().failed) == (False, False)
    assert seen("Complete").succeeded
    assert seen("Failed").failed
    assert seen("", "", pod(ended(137, "OOMKilled"))).out_of_memory
    assert not seen("", "", pod(ended(137))).out_of_memory
