"""The figures of a server: added up over its processes, and as Prometheus reads them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.runtime.exchange import Event, Stage
from serving.runtime.figures import Figures, Part


def told(figures: Figures) -> dict[str, float]:
    """Sample, with its labels but the model's, to value."""
    families = text_string_to_metric_families(figures.text().decode())
    samples = [sample for family in families for sample in family.samples]
    own = [sorted((k, v) for k, v in sample.labels.items() if k not in ("model", "version")) for sample in samples]
    return {f"{sample.name}{labels}": sample.value for sample, labels in zip(samples, own, strict=True)}


def test_every_figure_is_told() -> None:
    figures = Figures("churn", 7)
    figures.request(200, 0.002)
    figures.request(200, 0.2)
    figures.request(418, 100.0)
    figures.error("deadline")
    figures.error("of an unknown kind")
    figures.stage(Stage.PARSE, 0.00002)
    figures.batch(3, 300)
    figures.queued(4)
    figures.event(Event.PARITY_CHECKED, 5)
    figures.compiled(True)
    found = told(figures)
    expected = {
        "promote_requests_total[('code', '200')]": 2,
        "promote_requests_total[('code', 'other')]": 1,
        "promote_errors_total[('cause', 'deadline')]": 1,
        "promote_errors_total[('cause', 'other')]": 1,
        "promote_errors_total[('cause', 'queue_full')]": 0,
        "promote_request_seconds_bucket[('le', '0.001')]": 0,
        "promote_request_seconds_bucket[('le', '0.0025')]": 1,
        "promote_request_seconds_bucket[('le', '0.25')]": 2,
        "promote_request_seconds_bucket[('le', '+Inf')]": 3,
        "promote_request_seconds_count[]": 3,
        "promote_request_seconds_sum[]": 100.202,
        "promote_stage_seconds_bucket[('le', '1e-05'), ('stage', 'parse')]": 0,
        "promote_stage_seconds_bucket[('le', '2.5e-05'), ('stage', 'parse')]": 1,
        "promote_stage_seconds_count[('stage', 'write')]": 0,
        "promote_batch_rows_bucket[('le', '256.0')]": 0,
        "promote_batch_rows_bucket[('le', '512.0')]": 1,
        "promote_batch_rows_sum[]": 300,
        "promote_batch_requests_sum[]": 3,
        "promote_queue_requests[]": 4,
        "promote_events_total[('event', 'parity_checked')]": 5,
        "promote_compiled[]": 1,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_model_and_version_are_labels() -> None:
    figures = Figures("churn", 7)
    figures.request(503, 0.1)
    assert 'promote_requests_total{code="503",model="churn",version="7"} 1.0' in figures.text().decode()


def test_a_bound_belongs_to_its_own_bucket() -> None:
    figures = Figures("churn", 7)
    figures.request(200, 0.001)
    assert told(figures)["promote_request_seconds_bucket[('le', '0.001')]"] == 1


def test_whichever_process_is_asked_answers_for_all() -> None:
    figures = Figures("churn", 7, workers=2)
    figures.request(200, 0.1)
    child = os.fork()
    if child == 0:
        figures.be(1)
        figures.request(200, 0.1)
        figures.request(500, 0.1)
        figures.queued(3)
        os._exit(0)
    os.waitpid(child, 0)
    figures.queued(2)
    found = told(figures)
    assert found["promote_requests_total[('code', '200')]"] == 2
    assert found["promote_requests_total[('code', '500')]"] == 1
    assert found["promote_queue_requests[]"] == 5


def test_a_process_that_takes_the_place_of_another_keeps_what_was_counted_and_not_what_was_measured() -> None:
    figures = Figures("churn", 7, workers=2)
    figures.be(1)
    figures.request(200, 0.1)
    figures.queued(9)
    figures.look(Log(written=3, dropped=2))
    figures.be(1)
    figures.look(Log(written=1, dropped=0))
    found = told(figures)
    assert found["promote_requests_total[('code', '200')]"] == 1
    assert found["promote_queue_requests[]"] == 0
    assert found["promote_prediction_log_written[]"] == 4
    assert found["promote_prediction_log_dropped[]"] == 2


def test_the_compiled_model_answers_only_where_it_does_in_all_processes() -> None:
    figures = Figures("churn", 7, workers=2)
    figures.compiled(True)
    assert told(figures)["promote_compiled[]"] == 0
    figures.be(1)
    figures.compiled(True)
    assert told(figures)["promote_compiled[]"] == 1


def test_requests_that_wait_in_two_places_are_added_up() -> None:
    figures, waiting = Figures("churn", 7), dict[Part, int]()
    one, other = Part(figures, waiting), Part(figures, waiting)
    one.queued(3)
    other.queued(2)
    assert told(figures)["promote_queue_requests[]"] == 5
    one.queued(0)
    one.batch(2, 2)
    assert told(figures)["promote_queue_requests[]"] == 2


def test_a_process_is_crowded_where_another_one_has_fewer_connections() -> None:
    figures = Figures("churn", 7, workers=2)
    figures.connections(1)
    assert figures.crowded()
    figures.be(1)
    figures.connections(1)
    assert not figures.crowded()


def test_the_first_connection_is_left_to_the_first_process_since_it_checks_answers() -> None:
    figures = Figures("churn", 7, workers=2)
    assert not figures.crowded()
    figures.be(1)
    assert figures.crowded()


@dataclass
class Log:
    written: int
    dropped: int
