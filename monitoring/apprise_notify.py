"""Alerts to everything that Apprise knows: mail, Slack, Teams, PagerDuty and a hundred others, by URL.

The URLs hold passwords, so that neither errors nor the log show them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import apprise

from monitoring.notify import Alert, NotifyError, Severity

TYPES = {
    Severity.INFO: apprise.NotifyType.INFO,
    Severity.WARNING: apprise.NotifyType.WARNING,
    Severity.CRITICAL: apprise.NotifyType.FAILURE,
}


class AppriseNotifier:
    """Hands alerts to Apprise, which bounds the time of each service by itself."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._services = apprise.Apprise()
        with warnings.catch_warnings():
            # Apprise loads its plugins at the first URL, and one of them a module that Python 3.13 drops.
            warnings.filterwarnings("ignore", "'imghdr' is deprecated", DeprecationWarning)
            understood = [self._services.add(url) for url in urls]
        if not all(understood):
            raise ValueError(f"Apprise does not understand alert URL {understood.index(False) + 1} of {len(urls)}")

    def notify(self, alert: Alert) -> None:
        body = f"{alert.text}\n{alert.url}".strip()
        title = f"{alert.model}: {alert.title}"
        if not self._services.notify(body=body, title=title, notify_type=TYPES[alert.severity]):
            raise NotifyError("at least one of Apprise's services did not take it", retryable=True)
