"""A person promotes in MLflow's own UI, and the rollout follows."""

from __future__ import annotations

import shutil

import pytest

from tests.e2e.loop import Loop
from tests.e2e.mlflow_ui import promote_in_ui


@pytest.mark.chromium
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium on this machine")
def test_production_picked_in_the_stage_menu_makes_the_version_live(loop: Loop) -> None:
    version = loop.register("picked")
    promote_in_ui(loop.mlflow_url, "picked", version)
    loop.await_state("picked", version, "succeeded")
    assert loop.served("picked") == str(version)
