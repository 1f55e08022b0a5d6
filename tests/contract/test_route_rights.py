"""The rights that `k8s/routes` gives are those to routes of one namespace, by the word of a real API server.

It is asked who may do what, which takes no definition of Gateway API.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import utils
from kubernetes.client import ApiClient, AuthorizationV1Api, Configuration

from serving.gateway_api import GROUP, ROUTES
from tests.fixtures.cluster import namespace

pytestmark = pytest.mark.kubernetes
FOLDER = Path(__file__).parents[2] / "k8s"


@pytest.fixture(scope="module")
def there(cluster_connection: Configuration) -> Iterator[str]:
    """A namespace with the account of the controller and its rights to routes."""
    with namespace(cluster_connection) as name:
        for file in ("rights/rights.yaml", "routes/rights.yaml"):
            for made in yaml.safe_load_all((FOLDER / file).read_text()):
                made["subjects"] = [{**one, "namespace": name} for one in made.get("subjects", ())]
                given = {key: value for key, value in made.items() if value}
                utils.create_from_dict(ApiClient(cluster_connection), given, namespace=name)
        yield name


@pytest.mark.parametrize(
    ("verb", "resource", "where", "allowed"),
    [
        *((verb, ROUTES, "own", True) for verb in ("get", "list", "watch", "create", "patch", "delete")),
        ("update", ROUTES, "own", False),
        ("deletecollection", ROUTES, "own", False),
        ("patch", f"{ROUTES}/status", "own", False),
        ("list", ROUTES, "default", False),
        ("create", ROUTES, "default", False),
        *((verb, "gateways", "own", False) for verb in ("get", "create", "patch", "delete")),
        ("create", "referencegrants", "own", False),
    ],
)
def test_the_controller_may_write_its_own_routes_and_nothing_else_of_gateway_api(
    there: str, cluster_connection: Configuration, verb: str, resource: str, where: str, allowed: bool
) -> None:
    plural, _, part = resource.partition("/")
    asked = {"group": GROUP, "resource": plural, "subresource": part, "verb": verb}
    asked["namespace"] = there if where == "own" else where
    review = {"spec": {"user": f"system:serviceaccount:{there}:mlflow-promote", "resourceAttributes": asked}}
    reviews: Any = AuthorizationV1Api(ApiClient(cluster_connection))
    assert reviews.create_subject_access_review(review).status.allowed is allowed
