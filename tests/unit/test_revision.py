"""What names a revision."""

from __future__ import annotations

from dataclasses import replace

import pytest

from registry_hooks.model_version import ModelVersion
from serving.revision import Revision, RevisionSettings

CHURN = Revision(ModelVersion("Churn Model", 7), "sha256:1")
DIFFERENT = (
    {"workers": 2},
    {"memory_mb": 500},
    {"cpus": 0.5},
    {"drain_seconds": 5.0},
    {"environment": (("TEAM", "growth"),)},
    {"replicas": 2},
    {"max_replicas": 3},
    {"busy_percent": 50},
    {"gpus": 1},
    {"node_labels": (("disk", "fast"),)},
)


def test_a_name_lasts_over_releases_and_starts_as_people_know_the_model() -> None:
    assert CHURN.id == "churn-model-v7-16fa3bede6"
    assert replace(CHURN, settings=RevisionSettings(drain_seconds=30)).id == CHURN.id


@pytest.mark.parametrize("more", DIFFERENT, ids=lambda more: next(iter(more)))
def test_every_setting_makes_another_revision(more: dict[str, object]) -> None:
    assert replace(CHURN, settings=RevisionSettings(**more)).id != CHURN.id  # type: ignore[arg-type]


def test_version_and_image_make_another_revision() -> None:
    others = [replace(CHURN, version=ModelVersion("Churn Model", 8)), replace(CHURN, image="sha256:2")]
    assert len({CHURN.id, *(one.id for one in others)}) == 3
