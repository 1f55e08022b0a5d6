"""Where alerts go: every channel against something real that takes them, and the fan-out over all."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from monitoring.apprise_notify import AppriseNotifier
from monitoring.notify import Alert, BackgroundNotifier, LogNotifier, Notifier, Notifiers, NotifyError, Severity
from monitoring.webhook_notify import WebhookNotifier
from tests.fixtures.drift import Receiver

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
ALERT = Alert(
    Severity.WARNING,
    "churn",
    "predictions drifted",
    "Look at it.",
    NOW,
    "http://127.0.0.1/7",
    {"version": 7, "at": NOW},
)


def later(seconds: float, title: str = ALERT.title) -> Alert:
    return Alert(ALERT.severity, ALERT.model, title, ALERT.text, NOW + timedelta(seconds=seconds))


def webhook(url: str) -> Notifier:
    return WebhookNotifier(url, headers={"authorization": "Bearer t"}, seconds=5.0, pause_seconds=0.01)


def apprised(url: str) -> Notifier:
    return AppriseNotifier([url.replace("http://", "json://")])


@pytest.mark.parametrize("channel", [webhook, apprised])
def test_an_alert_arrives(channel: Callable[[str], Notifier], receiver: Receiver) -> None:
    channel(receiver.url).notify(ALERT)
    [body] = receiver.bodies
    told = json.dumps(body)
    assert all(word in told for word in ("churn", "predictions drifted", "Look at it."))


@pytest.mark.parametrize("channel", [webhook, apprised])
def test_a_refusal_is_an_error(channel: Callable[[str], Notifier], receiver: Receiver) -> None:
    receiver.answers = [403] * 5
    with pytest.raises(NotifyError):
        channel(receiver.url).notify(ALERT)


@pytest.mark.parametrize("channel", [webhook, apprised])
def test_nobody_there_is_an_error(channel: Callable[[str], Notifier]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(NotifyError) as failure:
            channel(f"http://127.0.0.1:{closed.getsockname()[1]}/secret").notify(ALERT)
    assert failure.value.retryable
    assert "secret" not in str(failure.value)


def test_the_log_takes_an_alert(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        LogNotifier().notify(ALERT)
    [record] = [record for record in caplog.records if record.name == "monitoring.notify"]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "churn: predictions drifted. Look at it. (http://127.0.0.1/7)"


def test_what_a_webhook_is_sent(receiver: Receiver) -> None:
    webhook(receiver.url).notify(ALERT)
    assert receiver.bodies == [
        {
            "text": "churn: predictions drifted. Look at it.",
            "severity": "warning",
            "model": "churn",
            "title": "predictions drifted",
            "at": "2026-03-10T12:00:00+00:00",
            "url": "http://127.0.0.1/7",
            "data": {"version": 7, "at": "2026-03-10 12:00:00+00:00"},
        }
    ]
    assert receiver.headers[0]["authorization"] == "Bearer t"
    assert receiver.headers[0]["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("answers", "posts", "delivered"),
    [([503, 200], 2, True), ([503, 429, 200], 3, True), ([503, 503, 503, 200], 3, False), ([400, 200], 1, False)],
)
def test_a_webhook_is_tried_twice_more_where_that_can_help(
    receiver: Receiver, answers: list[int], posts: int, delivered: bool
) -> None:
    receiver.answers = answers
    try:
        webhook(receiver.url).notify(ALERT)
    except NotifyError:
        assert not delivered
    else:
        assert delivered
    assert len(receiver.bodies) == posts


def test_a_webhook_that_does_not_answer_costs_a_bounded_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        begun = time.monotonic()
        with pytest.raises(NotifyError):
            WebhookNotifier(f"http://127.0.0.1:{port}", seconds=0.2, pause_seconds=0.01).notify(ALERT)
        assert time.monotonic() - begun < 5


def test_a_webhook_follows_no_redirect(receiver: Receiver) -> None:
    receiver.answers = [302]
    with pytest.raises(NotifyError, match="302"):
        webhook(receiver.url).notify(ALERT)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "/alerts", ""])
def test_a_webhook_without_a_web_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http"):
        WebhookNotifier(url)


def test_a_url_that_apprise_does_not_know_is_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="URL 2 of 2") as refusal:
        AppriseNotifier(["json://127.0.0.1", "nonsense://user:password@x"])
    assert "password" not in str(refusal.value)


def test_a_failing_channel_does_not_stop_the_others(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = webhook(f"http://127.0.0.1:{closed.getsockname()[1]}/secret")
        Notifiers([dead, webhook(receiver.url)]).notify(ALERT)
    assert len(receiver.bodies) == 1
    assert "was not delivered" in caplog.text
    assert "secret" not in caplog.text


def test_the_same_alert_is_told_once_in_a_while(receiver: Receiver) -> None:
    notifiers = Notifiers([webhook(receiver.url)], repeat_seconds=3600)
    for alert in (later(0), later(3599), later(10, "drift is over"), later(3600), later(3601)):
        notifiers.notify(alert)
    assert [body["title"] for body in receiver.bodies] == [
        "predictions drifted",
        "drift is over",
        "predictions drifted",
    ]


def test_an_alert_that_reached_nobody_is_told_again(receiver: Receiver) -> None:
    notifiers = Notifiers([webhook(receiver.url)])
    receiver.answers = [403]
    notifiers.notify(later(0))
    notifiers.notify(later(1))
    assert len(receiver.bodies) == 2


class Slow:
    """Takes alerts when it is let."""

    def __init__(self) -> None:
        self.told: list[Alert] = []
        self.let = threading.Event()

    def notify(self, alert: Alert) -> None:
        self.let.wait(10)
        self.told.append(alert)
        if alert.title == "broken":
            raise NotifyError("no", retryable=False)


def test_nobody_waits_for_a_slow_channel(caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow()
    background = BackgroundNotifier(slow)
    begun = time.monotonic()
    for second in range(BackgroundNotifier.WAITING * 2):
        background.notify(later(second))
    assert time.monotonic() - begun < 5
    assert "was dropped" in caplog.text
    slow.let.set()
    background.close()
    assert BackgroundNotifier.WAITING <= len(slow.told) <= BackgroundNotifier.WAITING + 1
    assert slow.told == sorted(slow.told, key=lambda alert: alert.at)


def test_an_error_does_not_end_the_thread_that_tells(caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow()
    slow.let.set()
    background = BackgroundNotifier(slow)
    background.notify(later(0, "broken"))
    background.notify(later(1))
    background.close()
    assert [alert.title for alert in slow.told] == ["broken", "predictions drifted"]
    assert "was not delivered" in caplog.text
