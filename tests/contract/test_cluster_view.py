"""What is known of a cluster stays true when the cluster is away, forgets, answers late, or refuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serving.cluster import DEPLOYMENTS, Cluster, ClusterError
from serving.cluster_view import Watched
from tests.fakes.cluster import Refusal, SmallCluster, small_cluster
from tests.fixtures.gateway import free_port, until

SECONDS = 30.0


@pytest.fixture
def there() -> Iterator[SmallCluster]:
    with small_cluster() as made:
        yield made


@pytest.fixture
def cluster(there: SmallCluster) -> Iterator[Cluster]:
    cluster = Cluster(there.connection, "models")
    yield cluster
    cluster.close()


@pytest.fixture
def watched(there: SmallCluster, cluster: Cluster) -> Iterator[Watched]:
    there.put("a")
    watched = Watched(cluster, DEPLOYMENTS, labelSelector="x=y")
    until(there.watching, SECONDS)
    yield watched
    watched.close()


def names(watched: Watched) -> list[str]:
    return sorted(one["metadata"]["name"] for one in watched.all())


def knows(watched: Watched, *wanted: str) -> bool:
    """As soon as that is known; while the cluster is away nothing is."""
    try:
        return names(watched) == sorted(wanted)
    except ClusterError:
        return False


def told(watched: Watched) -> str:
    """Why nothing is known; empty where something is."""
    try:
        watched.all()
    except ClusterError as error:
        return str(error)
    return ""


def lists(there: SmallCluster) -> int:
    return sum("limit=" in one for one in there.asked)


def test_looking_again_and_again_costs_no_request(there: SmallCluster, watched: Watched) -> None:
    asked = len(there.asked)
    for _ in range(100):
        assert names(watched) == ["a"]
    assert len(there.asked) == asked


def test_what_becomes_of_objects_is_seen(there: SmallCluster, watched: Watched) -> None:
    there.put("b")
    until(lambda: knows(watched, "a", "b"), SECONDS)
    there.put("b", spec={"replicas": 3})
    until(lambda: any(one.get("spec") == {"replicas": 3} for one in watched.all()), SECONDS)
    there.remove("a")
    until(lambda: knows(watched, "b"), SECONDS)
    assert not any("managedFields" in one["metadata"] for one in watched.all())


def test_every_page_is_read_and_only_what_is_chosen_is_asked_for(there: SmallCluster, cluster: Cluster) -> None:
    there.most = 2
    for name in "abcde":
        there.put(name)
    found, version = cluster.list(DEPLOYMENTS, labelSelector="x=y")
    assert [one["metadata"]["name"] for one in found] == list("abcde")
    assert version == str(there.version)
    assert all("labelSelector=x%3Dy" in one for one in there.asked)


def test_a_watch_that_is_dropped_goes_on_where_it_was(there: SmallCluster, watched: Watched) -> None:
    there.put("b")
    until(lambda: knows(watched, "a", "b"), SECONDS)
    version = there.version
    there.drop()
    until(there.watching, SECONDS)
    there.put("c")
    until(lambda: knows(watched, "a", "b", "c"), SECONDS)
    assert lists(there) == 1
    assert f"resourceVersion={version}" in there.asked[-1]


def test_a_bookmark_moves_that_place_on(there: SmallCluster, watched: Watched) -> None:
    there.bookmark()
    version = there.version
    until(lambda: watched._version == version, SECONDS)
    there.drop()
    until(there.watching, SECONDS)
    assert f"resourceVersion={version}" in there.asked[-1]
    assert names(watched) == ["a"]


def test_what_the_cluster_does_not_remember_is_listed_anew(there: SmallCluster, watched: Watched) -> None:
    there.objects.pop("a")
    there.put("b")
    there.expire()
    until(lambda: knows(watched, "b"), SECONDS)
    assert lists(there) == 2
    there.drop()
    there.oldest = there.version = there.version + 1
    there.objects.pop("b")
    until(lambda: knows(watched), SECONDS)
    assert lists(there) == 3


def test_while_the_cluster_is_away_nothing_is_claimed_and_afterwards_all_is_known(
    there: SmallCluster, watched: Watched
) -> None:
    there.away = True
    there.drop()

    def lost() -> ClusterError | None:
        try:
            watched.all()
        except ClusterError as error:
            return error
        return None

    error = until(lost, SECONDS)
    assert error is not None
    assert error.retryable
    there.put("b")
    there.away = False
    until(lambda: knows(watched, "a", "b"), SECONDS)
    assert lists(there) == 1


def test_one_that_refuses_is_asked_until_it_does_not(there: SmallCluster, watched: Watched) -> None:
    asked = len(there.asked)
    there.refusals = [Refusal(500)] * 3
    there.drop()
    until(lambda: not there.refusals and there.watching(), SECONDS)
    assert len(there.asked) == asked + 4
    until(lambda: knows(watched, "a"), SECONDS)


def test_one_that_asks_to_be_left_alone_is(there: SmallCluster, watched: Watched) -> None:
    there.refusals = [Refusal(429, headers={"retry-after": "1"})]
    there.drop()
    until(lambda: "not now" in told(watched), SECONDS)
    until(there.watching, SECONDS)
    until(lambda: knows(watched, "a"), SECONDS)


def test_what_was_written_is_seen_at_once_and_what_is_older_does_not_undo_it(
    there: SmallCluster, watched: Watched
) -> None:
    written = {"metadata": {"name": "mine", "resourceVersion": str(there.version + 5)}, "mine": True}
    watched.take(written)
    assert names(watched) == ["a", "mine"]
    there.tell_older("mine", there.version + 1)
    there.put("b")
    until(lambda: "b" in names(watched), SECONDS)
    assert any(one.get("mine") for one in watched.all())


def test_what_was_written_and_is_gone_already_does_not_come_back(there: SmallCluster, watched: Watched) -> None:
    written = there.put("mine")
    there.remove("mine")
    there.put("b")
    until(lambda: "b" in names(watched), SECONDS)
    watched.take(written)
    assert names(watched) == ["a", "b"]


def test_nothing_is_known_before_the_first_list(there: SmallCluster, cluster: Cluster) -> None:
    there.refusals = [Refusal(403, 'deployments.apps is forbidden: User "x" cannot list resource "deployments"')]
    watched = Watched(cluster, DEPLOYMENTS)
    with pytest.raises(ClusterError, match="cannot list resource") as refused:
        watched.all()
    assert not refused.value.retryable
    until(lambda: knows(watched), SECONDS)
    watched.close()


@pytest.mark.parametrize(
    ("refusal", "retryable", "after"),
    [
        (Refusal(403, "cannot create resource"), False, None),
        (Refusal(422, "spec.replicas: Invalid value: -1"), False, None),
        (Refusal(400, "what?"), False, None),
        (Refusal(401, "Unauthorized"), False, None),
        (Refusal(409, "the object has been modified"), True, None),
        (Refusal(429, "too many", {"retry-after": "7"}), True, 7.0),
        (Refusal(500, "etcd is away"), True, None),
        (Refusal(503, "not ready"), True, None),
    ],
)
def test_what_a_cluster_refuses_is_said_in_its_own_words_and_whether_to_try_again(
    there: SmallCluster, cluster: Cluster, refusal: Refusal, retryable: bool, after: float | None
) -> None:
    there.refusals = [refusal]
    wanted = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "mine"}}
    with pytest.raises(ClusterError) as refused:
        cluster.apply(wanted)
    assert str(refused.value) == f"cannot apply Deployment mine: {refusal.message}"
    assert (refused.value.retryable, refused.value.status, refused.value.after) == (retryable, refusal.status, after)
    assert there.asked == [
        "PATCH /apis/apps/v1/namespaces/models/deployments/mine?fieldManager=mlflow-promote&force=true"
    ]
    assert there.sent == [wanted]


def test_what_is_not_there_is_none_and_needs_no_deleting(there: SmallCluster, cluster: Cluster) -> None:
    there.refusals = [Refusal(404), Refusal(404), Refusal(404)]
    assert cluster.get(DEPLOYMENTS, "mine") is None
    assert cluster.delete(DEPLOYMENTS, "mine", "uid-1") is None
    assert there.sent[0]["preconditions"] == {"uid": "uid-1"}
    assert cluster.log("mine", "model", 10) == ()


def test_a_cluster_that_is_not_there_can_be_asked_again(there: SmallCluster) -> None:
    nowhere = there.connection
    nowhere.host = f"http://127.0.0.1:{free_port()}"
    cluster = Cluster(nowhere, "models")
    with pytest.raises(ClusterError, match="cannot read deployments mine") as refused:
        cluster.get(DEPLOYMENTS, "mine")
    assert refused.value.retryable
    cluster.close()


def test_while_it_asks_to_be_left_alone_nothing_at_all_is_sent(there: SmallCluster, cluster: Cluster) -> None:
    there.refusals = [Refusal(429, "too many", {"retry-after": "60"})]
    with pytest.raises(ClusterError, match="too many"):
        cluster.list(DEPLOYMENTS)
    wanted = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "mine"}}
    for ask in (lambda: cluster.list(DEPLOYMENTS), lambda: cluster.apply(wanted)):
        with pytest.raises(ClusterError, match="has asked for no request") as refused:
            ask()
        assert refused.value.retryable
        assert refused.value.after is not None
    assert len(there.asked) == 1


def test_once_that_time_is_over_it_is_asked_again(there: SmallCluster, cluster: Cluster) -> None:
    there.refusals = [Refusal(429, "too many", {"retry-after": "1"})]

    def listed() -> bool:
        try:
            return cluster.list(DEPLOYMENTS) == ([], str(there.version))
        except ClusterError:
            return False

    until(listed, SECONDS)
    assert len(there.asked) == 2
