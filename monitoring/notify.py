"""Where alerts go: one port, a channel that writes to the log, and the fan-out to all channels.

An alert is told by each channel on its own, so a dead channel costs the others nothing, and it is told from
a thread of its own, so a slow one holds up nobody. The price is that an alert can be lost: when the process
ends before it is told, or when a hundred wait already. The history keeps what happened either way.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

_logger = logging.getLogger(__name__)


class Severity(StrEnum):
    """How soon somebody should look."""

    INFO = "info"
    """Nothing to do."""
    WARNING = "warning"
    """Look at it today."""
    CRITICAL = "critical"
    """Look at it now: the software cannot put it right by itself."""


@dataclass(frozen=True, slots=True)
class Alert:
    """What somebody should know about a model. Same model and title: the same alert."""

    severity: Severity
    model: str
    title: str
    text: str
    at: datetime
    url: str = ""
    """Where to read more."""
    data: Mapping[str, object] = field(default_factory=dict, hash=False)
    """The numbers behind it; values that JSON knows."""


class NotifyError(Exception):
    """An alert was not delivered; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class Notifier(Protocol):
    """Somewhere an alert can go."""

    def notify(self, alert: Alert) -> None:
        """Deliver it, within a bounded time; `NotifyError` where that fails."""
        ...


LEVELS = {Severity.INFO: logging.INFO, Severity.WARNING: logging.WARNING, Severity.CRITICAL: logging.CRITICAL}


class LogNotifier:
    """Writes alerts to the log of this process."""

    def notify(self, alert: Alert) -> None:
        more = f" ({alert.url})" if alert.url else ""
        _logger.log(LEVELS[alert.severity], "%s: %s. %s%s", alert.model, alert.title, alert.text, more)


class Notifiers:
    """Tells every channel, and does not tell the same alert again for a while. A `Notifier` itself."""

    def __init__(self, channels: Sequence[Notifier], repeat_seconds: float = 3600.0) -> None:
        self._channels = tuple(channels)
        self._repeat = timedelta(seconds=repeat_seconds)
        self._told: dict[tuple[str, str], datetime] = {}

    def notify(self, alert: Alert) -> None:
        """Never raises: what a channel could not deliver is logged, and told again if no channel could."""
        self._told = {key: at for key, at in self._told.items() if alert.at - at < self._repeat}
        if (alert.model, alert.title) in self._told:
            return
        delivered = [self._deliver(channel, alert) for channel in self._channels]
        if any(delivered):
            self._told[alert.model, alert.title] = alert.at

    def _deliver(self, channel: Notifier, alert: Alert) -> bool:
        try:
            channel.notify(alert)
        except NotifyError as error:
            _logger.warning("the alert %r of %s was not delivered: %s", alert.title, alert.model, error)
            return False
        return True


class BackgroundNotifier:
    """Tells alerts from a thread of its own, in their order. A `Notifier` itself."""

    WAITING = 100
    """Most alerts that wait; further ones are dropped and logged."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._waiting: queue.Queue[Alert | None] = queue.Queue(self.WAITING)
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)
        self._thread.start()

    def notify(self, alert: Alert) -> None:
        """Never waits and never raises."""
        try:
            self._waiting.put_nowait(alert)
        except queue.Full:
            _logger.warning("too many alerts wait; %r of %s was dropped", alert.title, alert.model)

    def close(self, seconds: float = 30.0) -> None:
        """Tell what waits, for at most `seconds`, and end the thread."""
        try:
            self._waiting.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _run(self) -> None:
        while (alert := self._waiting.get()) is not None:
            try:
                self._notifier.notify(alert)
            except NotifyError as error:
                _logger.warning("the alert %r of %s was not delivered: %s", alert.title, alert.model, error)
