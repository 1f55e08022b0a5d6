"""The comparison of two data sets: how often it cries wolf, what it finds, and that its page is safe to open."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import sync_playwright

from monitoring.chance import by_chance, distances
from monitoring.comparable import least, pair_up
from monitoring.drift import Aspect, DriftPolicy, DriftState, Samples, calibrate, conclude
from monitoring.drift_page import with_finding
from monitoring.drift_report import DriftReport, DriftReporter
from monitoring.evidently_drift import EvidentlyDrift
from registry_hooks.model_version import ModelVersion
from tests.fakes.drift import FakeDriftReporter
from tests.fixtures.drift import customers

POLICY = DriftPolicy()
NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)


CHROMIUM = shutil.which("chromium")
EVIDENTLY = pytest.mark.parametrize("reporter", ["evidently"], indirect=True)


@pytest.fixture(scope="module", params=["memory", "evidently"])
def reporter(request: pytest.FixtureRequest) -> DriftReporter:
    return FakeDriftReporter() if request.param == "memory" else EvidentlyDrift()


def drifted(report: DriftReport) -> set[str]:
    return {c.column for c in report.comparisons if c.drifted}


def quickly_drifted(reference: pd.DataFrame, current: pd.DataFrame, policy: DriftPolicy = POLICY) -> set[str]:
    """What drifted, by the same distances and thresholds as the report's, without its page."""
    pairs, _ = pair_up(reference, current, policy)
    chance = calibrate(by_chance(pairs), policy.false_alarms)
    own = np.repeat([[True, False]], [len(reference), len(current)], axis=1)
    return {p.column for p in pairs if distances(p, own)[0] >= max(chance[p.name], least(p.column, policy))}


@EVIDENTLY
@pytest.mark.parametrize("rows", [500, 1000, 5000])
def test_distances_are_evidentlys_own(reporter: DriftReporter, rows: int) -> None:
    reference, current = customers(rows, 1), customers(rows, 2, older=0.2)
    pairs, _ = pair_up(reference, current, POLICY)
    own = np.repeat([[True, False]], [rows, rows], axis=1)
    expected = {(p.column, p.aspect): distances(p, own)[0] for p in pairs}
    report = reporter.compare(reference, current, POLICY)
    assert {(c.column, c.aspect): c.distance for c in report.comparisons} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("rows", "checks"),
    [(500, 60), *(pytest.param(*more, marks=pytest.mark.nightly) for more in ((1000, 40), (5000, 8)))],
)
def test_the_same_customers_rarely_drift(rows: int, checks: int) -> None:
    """14 comparisons a check. The policy allows 1 false alarm in 100 checks."""
    alarms = sum(bool(quickly_drifted(customers(rows, 2 * n), customers(rows, 2 * n + 1))) for n in range(checks))
    assert alarms <= checks / 50


def test_without_the_distance_that_matters_the_rate_of_false_alarms_is_the_policys() -> None:
    bare = DriftPolicy(distance=1e-9, false_alarms=0.1)
    alarms = sum(bool(quickly_drifted(customers(500, 2 * n), customers(500, 2 * n + 1), bare)) for n in range(60))
    # Mean 6, standard deviation 2.3.
    assert 1 <= alarms <= 13


@pytest.mark.parametrize(
    ("rows", "older", "fibre", "checks"),
    [(500, 0.4, 0.62, 20), (1000, 0.3, 0.56, 20), (5000, 0.2, 0.55, 5)],
)
def test_real_drift_is_found(rows: int, older: float, fibre: float, checks: int) -> None:
    """Mean tenure moved by `older` standard deviations, fibre's share raised from 0.40: both found 9 times in 10."""
    pairs = [(customers(rows, n), customers(rows, 1000 + n, older=older, fibre=fibre)) for n in range(checks)]
    found = sum({"input.tenure", "input.internet"} <= quickly_drifted(*pair) for pair in pairs)
    assert found >= 0.9 * checks


def test_predictions_that_moved_alone(reporter: DriftReporter) -> None:
    report = reporter.compare(customers(1000, 1), customers(1000, 2, lifted=0.15), POLICY)
    assert drifted(report) == {"output.prediction"}


CHANGES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "input.score": lambda rows: rows["input.score"].where(np.arange(len(rows)) % 2 == 0),
    "input.age": lambda rows: rows["input.age"].astype(str) + " years",
    "input.tenure": lambda rows: rows["input.tenure"] * 30,
    "input.calls": lambda rows: rows["input.calls"] * np.nan,
    "input.contract": lambda rows: rows["input.contract"].str.upper(),
}


@pytest.mark.parametrize("column", CHANGES)
def test_a_change_of_encoding_is_found(reporter: DriftReporter, column: str) -> None:
    """More missing values, words for numbers, other units, nothing at all, other spelling."""
    current = customers(1000, 2)
    current[column] = CHANGES[column](current)
    assert drifted(reporter.compare(customers(1000, 1), current, POLICY)) == {column}


def test_missing_values_are_compared_by_themselves(reporter: DriftReporter) -> None:
    report = reporter.compare(customers(1000, 1), customers(1000, 2), POLICY)
    aspects = {c.aspect for c in report.comparisons if c.column == "input.score"}
    assert aspects == {Aspect.VALUES, Aspect.MISSING}


@pytest.mark.parametrize("as_json", [True, False])
def test_another_way_of_writing_the_same_values_is_no_change(reporter: DriftReporter, as_json: bool) -> None:
    current = customers(1000, 2)
    if as_json:
        senior = current["input.senior"].astype(float)
        current = current.astype({"input.paperless": object}).assign(**{"input.senior": senior})
    else:
        internet = current["input.internet"].astype("category")
        current = current.convert_dtypes().assign(**{"input.internet": internet})
    assert not drifted(reporter.compare(customers(1000, 1), current, POLICY))


def test_what_cannot_be_compared_is_named(reporter: DriftReporter) -> None:
    reference, current = customers(600, 1), customers(600, 2)
    for table in (reference, current):
        table["input.id"] = [f"customer {n}" for n in range(600)]
        table["input.when"] = pd.Timestamp("2026-01-01")
        table["input.list"] = [[1, 2]] * 600
        table["input.never"] = None
        table["input.secret"] = 1.0
        table["entity"] = "x"
    current["input.new"] = 1
    report = reporter.compare(reference.drop(columns="input.age"), current, DriftPolicy(ignore=("secret",)))
    reasons = {
        "input.id": "almost every value is different",
        "input.when": "neither numbers nor categories",
        "input.list": "neither numbers nor categories",
        "input.never": "all values are missing",
        "input.secret": "ignored",
        "input.new": "not in the reference",
        "input.age": "not in the reference",
    }
    assert report.left_out.keys() == reasons.keys()
    assert all(report.left_out[column].startswith(reason) for column, reason in reasons.items())
    assert not {c.column for c in report.comparisons} & {*reasons, "entity"}


def test_nothing_in_common(reporter: DriftReporter) -> None:
    report = reporter.compare(pd.DataFrame({"input.a": [1.0] * 600}), pd.DataFrame({"input.b": [1.0] * 600}), POLICY)
    assert report.comparisons == ()
    assert report.left_out.keys() == {"input.a", "input.b"}


def test_a_large_data_set_is_thinned(reporter: DriftReporter) -> None:
    policy = DriftPolicy(most_rows=1000)
    report = reporter.compare(customers(50_000, 1), customers(1000, 2, lifted=0.15), policy)
    assert drifted(report) == {"output.prediction"}


def test_single_columns_have_thresholds_of_their_own(reporter: DriftReporter) -> None:
    current = customers(1000, 2, older=0.4)
    report = reporter.compare(customers(1000, 1), current, DriftPolicy(distances={"tenure": 0.9}))
    assert "input.tenure" not in drifted(report)


def test_the_same_data_gives_the_same_comparisons(reporter: DriftReporter) -> None:
    again = [reporter.compare(customers(600, 1), customers(600, 2), POLICY).comparisons for _ in range(2)]
    assert again[0] == again[1]


@EVIDENTLY
def test_the_page_draws_the_lines_that_decide(reporter: DriftReporter) -> None:
    report = reporter.compare(customers(600, 1), customers(600, 2), POLICY)
    metrics = [m["config"] for m in json.loads(report.json)["metrics"] if "column" in m["config"]]
    lines = {m["column"]: m["threshold"] for m in metrics}
    assert lines["input.tenure"] == next(c.threshold for c in report.comparisons if c.column == "input.tenure")


@EVIDENTLY
def test_the_page_does_not_contradict_the_finding(reporter: DriftReporter) -> None:
    """Evidently's headline goes by the share of all columns: one drifted prediction among thirteen is none to it."""
    reference, current = customers(1000, 1), customers(1000, 2, lifted=0.15)
    report = reporter.compare(reference, current, POLICY)
    finding = conclude(POLICY, Samples(NOW, "<b>2025", 1000, 1000), report.comparisons, {"input.<i>": "text"})
    page = with_finding(report.html, ModelVersion("churn", 7), finding).decode()
    assert "Dataset Drift is" not in page
    assert "Data Drift Summary" in page
    body = page.partition("<body>")[2]
    assert body.startswith("<section")
    assert "churn 7: drifted" in body
    assert "&lt;b&gt;2025" in body
    assert "input.&lt;i&gt;" in body


@EVIDENTLY
@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_page_in_a_browser_without_a_network(reporter: DriftReporter, tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    reference, current = customers(600, 1), customers(600, 2)
    for table in (reference, current):
        table.loc[::7, "input.contract"] = attack
        table["input.<b onclick=alert(3)>"] = table["input.age"]
    (tmp_path / "page.html").write_bytes(reporter.compare(reference, current, POLICY).html)
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    asked: list[str] = []
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=root)
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto((tmp_path / "page.html").as_uri())
        page.get_by_text("input.tenure").first.wait_for()
        browser.close()
    assert wrong == []
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}


@EVIDENTLY
def test_the_page_loads_nothing(reporter: DriftReporter) -> None:
    page = reporter.compare(customers(600, 1), customers(600, 2), POLICY).html.decode()
    outside = re.findall(r"""<(?:script|link|img|iframe)[^>]*\s(?:src|href)\s*=\s*["']?(?!data:)[^\s>]+""", page)
    assert outside == []
    assert 1_000_000 < len(page) < 8_000_000


@EVIDENTLY
def test_what_clients_send_is_no_code_of_the_page(reporter: DriftReporter) -> None:
    attack = "</script><script>alert(1)</script>"
    reference, current = customers(600, 1), customers(600, 2)
    for table in (reference, current):
        table.loc[::7, "input.contract"] = attack
        table[f"input.{attack}"] = table["input.age"]
    report = reporter.compare(reference, current, POLICY)
    assert b"alert(1)" in report.html
    assert b"<script>alert(1)" not in report.html
    assert f"input.{attack}" in {c.column for c in report.comparisons}


def test_a_finding_of_real_customers_who_changed(reporter: DriftReporter) -> None:
    reference, current = customers(2000, 1), customers(2000, 2, fibre=0.7)
    report = reporter.compare(reference, current, POLICY)
    finding = conclude(POLICY, Samples(NOW, "the training data", 2000, 2000), report.comparisons, report.left_out)
    assert finding.state is DriftState.DRIFTED
    assert finding.drifted[0] == "output.prediction"
    assert "input.internet" in finding.diagnosis
    assert not finding.rollback_helps
