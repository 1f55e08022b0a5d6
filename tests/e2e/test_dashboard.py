"""The dashboard and the alert rules of `k8s/monitoring`, by a real Prometheus over the demo's traffic."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from examples import demo
from examples.ending import clear_away
from examples.stage import MODEL, Stage
from tests.e2e.loop import answers, until
from tests.fixtures.gateway import free_port

MONITORING = Path(__file__).parents[2] / "k8s" / "monitoring"
RULES = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
EVERY = "1s"


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here, Debian's package prometheus has it")
    return found


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    program("prometheus")
    home = tmp_path_factory.mktemp("dashboard")
    stage = demo.set_up(home)
    try:
        yield stage
    finally:
        stage.traffic.stop()
        clear_away(stage, home)
        stage.inbox.close()


@contextmanager
def prometheus(stage: Stage, folder: Path) -> Iterator[str]:
    """One that reads the controller, the gateway and every model server; its address."""
    port, servers = free_port(), folder / "servers.json"
    servers.write_text("[]")
    settings = yaml.safe_load((stage.installation.home / "settings.yaml").read_text())
    jobs = [
        {"job_name": "controller", "static_configs": [{"targets": [f"127.0.0.1:{settings['api_port']}"]}]},
        {
            "job_name": "gateway",
            "metrics_path": "/stats/prometheus",
            "static_configs": [{"targets": [f"127.0.0.1:{settings['admin_port']}"]}],
        },
        {"job_name": "models", "file_sd_configs": [{"files": [str(servers)], "refresh_interval": EVERY}]},
    ]
    (folder / "rules.yml").write_text(yaml.safe_dump(RULES))
    every = {"scrape_interval": EVERY, "evaluation_interval": EVERY}
    config = {"global": every, "rule_files": [str(folder / "rules.yml")], "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [program("prometheus"), f"--config.file={folder / 'prometheus.yml'}"]
    places = [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, *places], stdout=log, stderr=log)
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/-/ready"), 60, "Prometheus answers")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def find_servers(stage: Stage, folder: Path) -> None:
    """Tell Prometheus which model servers run."""
    home, found = str(stage.installation.home), set[str]()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "serving.runtime" in process.cmdline() and process.environ().get("PROMOTE_HOME", home) == home:
                listens = (one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN)
                found |= {f"127.0.0.1:{one.laddr.port}" for one in listens}
    new = folder / "servers.json.new"
    new.write_text(json.dumps([{"targets": sorted(found)}]))
    new.replace(folder / "servers.json")


def asked(url: str, expression: str) -> list[dict[str, Any]]:
    told = httpx.get(f"{url}/api/v1/query", params={"query": expression}, timeout=10.0).raise_for_status().json()
    found: list[dict[str, Any]] = told["data"]["result"]
    return found


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_every_query_of_the_dashboard_has_data_in_the_story(stage: Stage, tmp_path: Path) -> None:
    demo.begin(stage)
    missing = {title: re.sub(r"\$model", ".*", query) for title, query in QUERIES.items()}
    with prometheus(stage, tmp_path) as url:

        def looked() -> bool:
            for title, query in [*missing.items()]:
                if asked(url, query):
                    del missing[title]
            return not missing

        demo.first(stage)
        find_servers(stage, tmp_path)
        version = stage.train("better")
        stage.installation.run("promote", MODEL, str(version), "--no-wait")
        deadline = time.monotonic() + 240
        while not looked() and time.monotonic() < deadline:
            time.sleep(1.0)
            find_servers(stage, tmp_path)
        assert missing == {}
        alerts = httpx.get(f"{url}/api/v1/rules").json()["data"]["groups"][0]["rules"]
        assert {alert["name"]: alert["health"] for alert in alerts} == {
            rule["alert"]: "ok" for rule in RULES["groups"][0]["rules"]
        }
        firing = {alert["name"] for alert in alerts if alert["state"] != "inactive"}
        assert firing == set(), "nothing is wrong in the story so far"


HEALTHY, THERE = "envoy_cluster_membership_healthy", "envoy_cluster_membership_total"
CALLS = {
    "NoControllerLeads": ({"promote_leads": "0x60"}, {"promote_leads": "1x60"}),
    "RolloutHalted": ({'promote_rollout{phase="halted"}': "1x60"}, {'promote_rollout{phase="baking"}': "1x60"}),
    "RolloutStuck": (
        {'promote_rollout_phase_seconds{phase="progressing"}': "7201x60"},
        {'promote_rollout_phase_seconds{phase="progressing"}': "7199x60"},
    ),
    "RolloutPaused": (
        {'promote_rollout_phase_seconds{phase="paused"}': "43201x60"},
        {'promote_rollout_phase_seconds{phase="paused"}': "43199x60"},
    ),
    "GatewayWithoutModel": (
        {f'{THERE}{{envoy_cluster_name="a"}}': "2x60", f'{HEALTHY}{{envoy_cluster_name="a"}}': "0x60"},
        {f'{THERE}{{envoy_cluster_name="a"}}': "2x60", f'{HEALTHY}{{envoy_cluster_name="a"}}': "1x60"},
    ),
    "Drift": ({'promote_drift_state{state="drifted"}': "1x60"}, {'promote_drift_state{state="stable"}': "1x60"}),
    "PredictionsAreNotLogged": (
        {"promote_prediction_log_dropped": "0+5x60"},
        {"promote_prediction_log_dropped": "7x60"},
    ),
}
"""Of each alert, series for which it calls and such for which it does not, a value each minute."""


@pytest.mark.parametrize("alert", [rule["alert"] for rule in RULES["groups"][0]["rules"]])
def test_a_rule_calls_where_something_is_wrong_and_only_there(alert: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(RULES))
    firing = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in (quiet | series).items()],
            "promql_expr_test": [
                {"expr": firing, "eval_time": "50m", "exp_samples": [{"labels": "{}", "value": 1}] if calls else []}
            ],
        }
        for series, calls in zip(CALLS[alert], (True, False), strict=True)
        for quiet in ({} if alert == "NoControllerLeads" else {"promote_leads": "1x60"},)
    ]
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": tests}))
    command = [program("promtool"), "test", "rules", "tests.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
