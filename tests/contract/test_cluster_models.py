"""A model that pods fetch, each to a volume of its own; and what only the servers that fetch are told."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from serving.cluster import DEPLOYMENTS, SECRETS
from serving.cluster_access import Outside
from serving.cluster_secrets import ServerSecrets, names_of
from serving.kubernetes_objects import name_of
from serving.large_models import artifacts_at, fetching
from serving.pod_health import PodHealth
from serving.registry_depot import RegistryDepot
from serving.revision import RevisionState
from tests.contract.test_large_models import SECONDS, SIZE, at_half, in_state, large_image, started, stopped
from tests.fixtures.artifacts import ArtifactServer, artifacts, enlarged
from tests.fixtures.cluster import LONG, ClusterInstallation
from tests.fixtures.gateway import until
from tests.fixtures.large_models import Place, cluster_target, in_cluster

pytestmark = LONG

TOKEN = "token-of-these-tests"


@pytest.fixture
def there(cluster_installation: ClusterInstallation, tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "claim").mkdir()
    with in_cluster(cluster_installation, tmp_path / "claim") as place:
        yield place


def was_cut(store: ArtifactServer) -> bool:
    """Whether it did so since it was told to."""
    return store.cut_at is None


def test_a_pod_goes_on_where_its_server_ended_and_shows_its_token_to_nobody_but_the_store(
    there: Place, cluster_installation: ClusterInstallation, churn_model: Path, tmp_path: Path
) -> None:
    cluster = cluster_installation
    model = enlarged(churn_model, tmp_path / "churn", SIZE)
    with (
        artifacts(model, there.host) as store,
        closing(PodHealth(Outside(cluster.cluster), 1.0)) as health,
    ):
        # given a pod that has half of its model
        image = large_image(there, store, model, "again")
        told = fetching(store.url, artifacts_at(store.url), {"MLFLOW_TRACKING_TOKEN": TOKEN})
        target = cluster_target(cluster, told, health, RegistryDepot())
        store.hold_at = SIZE // 2
        revision = started(target, image, 1)
        at_half(target, revision)
        # when its server ends, is started again, and the connection is cut once more
        cluster.end(revision)
        ended = in_state(target, revision, RevisionState.FAILED)
        target.start(revision)
        store.cut_at = store.sent + SIZE // 4
        store.release()
        # then it has fetched what was missing, and no more
        ready = in_state(target, revision, RevisionState.READY)
        assert ready.restarts == 1, ended
        assert was_cut(store)
        assert store.sent < SIZE * 3 // 2
        # and the token went to the store by way of the Secret alone
        assert {one.get("authorization") for one in store.heard} == {f"Bearer {TOKEN}"}
        (pod,) = cluster.pods(revision)
        assert TOKEN not in json.dumps([cluster.cluster.get(DEPLOYMENTS, name_of(revision.id)), pod])
        (own,) = (one for one in pod["spec"]["volumes"] if one["name"] == "models")
        assert own["emptyDir"]["sizeLimit"]
        assert there.caches() == 0
        stopped(target, revision)
    until(lambda: not cluster.pods(revision), SECONDS)


def test_secrets_hold_what_is_valid_now_and_go_with_the_installation(
    cluster_installation: ClusterInstallation,
) -> None:
    cluster, name = cluster_installation.cluster, "secrets-1"
    servers, models = names_of(name)

    def content(of: str) -> dict[str, str] | None:
        there = cluster.get(SECRETS, of)
        return there and {key: base64.b64decode(value).decode() for key, value in there["data"].items()}

    first = ServerSecrets(cluster, name, {"KEY": "k"}, {"TOKEN": "old", "USER": "me"})
    first.renew()
    assert content(servers) is content(models) is None
    first.ensure(fetches=False)
    assert (content(servers), content(models)) == ({"KEY": "k"}, None)
    first.ensure(fetches=True)
    second = ServerSecrets(cluster, name, {"KEY": "k"}, {"TOKEN": "new"})
    second.renew()
    assert content(models) == {"TOKEN": "new"}
    nothing = ServerSecrets(cluster, name, {}, {})
    nothing.ensure(fetches=True)
    assert (nothing.every, nothing.fetching, content(models)) == ((), (), {"TOKEN": "new"})
    nothing.purge()
    until(lambda: content(servers) is content(models) is None, SECONDS)
