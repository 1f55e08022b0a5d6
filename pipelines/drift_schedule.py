"""Drift checks by the clock: APScheduler runs each model's check when `next_run` says so.

Only the controller that leads starts it. A check that is missed, because nobody led or the machine slept, is
caught up once; a check that takes longer than its interval is never run twice at the same time.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from zoneinfo import ZoneInfoNotFoundError

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger

from monitoring.drift import DriftPolicy, next_run

_logger = logging.getLogger(__name__)

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
WEEKDAY_PART = re.compile(r"(?:(\*)|(\w+)(?:-(\w+))?)(?:/([1-9]\d*))?", re.ASCII)


class DriftSchedule:
    """Keeps one job per model. `run`, `policies` and `last_run` are called from threads of its own."""

    def __init__(
        self,
        run: Callable[[str], object],
        policies: Callable[[], Mapping[str, DriftPolicy]],
        last_run: Callable[[str], datetime | None],
        workers: int = 1,
    ) -> None:
        """`run` makes a model's check, `policies` tells the models to be checked, `workers` how many at a time."""
        self._run, self._policies, self._last_run = run, policies, last_run
        self._workers = workers
        self._scheduled: dict[str, DriftPolicy] = {}
        self._scheduler: BackgroundScheduler | None = None

    def start(self) -> None:
        """Begin, also again after `stop`; missed checks are caught up."""
        if self._scheduler is None:
            pool = ThreadPoolExecutor(self._workers)
            self._scheduler = BackgroundScheduler(timezone=UTC, executors={"default": pool})
            self._scheduler.start()
        self.sync()

    def stop(self, *, wait: bool = True) -> None:
        """No further check begins; with `wait`, one that runs is waited for."""
        if self._scheduler is not None:
            self._scheduler.pause()
            self._scheduler.shutdown(wait=wait)
        self._scheduler, self._scheduled = None, {}

    def sync(self) -> None:
        """Follow the policies: new models are added, others removed, changed policies take effect.

        A schedule that cannot be understood is logged and leaves its model unchecked, and no other.
        """
        if self._scheduler is None:
            return
        wanted = dict(self._policies())
        for model, policy in wanted.items():
            if self._scheduled.get(model) != policy:
                self._scheduled[model] = policy
                self._schedule(self._scheduler, model, policy)
        for job in self._scheduler.get_jobs():
            if job.id not in wanted:
                job.remove()
        self._scheduled = {model: policy for model, policy in self._scheduled.items() if model in wanted}

    def next_runs(self) -> dict[str, datetime]:
        """When each model is due."""
        jobs = self._scheduler.get_jobs() if self._scheduler else []
        return {job.id: job.next_run_time for job in jobs}

    def _schedule(self, scheduler: BackgroundScheduler, model: str, policy: DriftPolicy) -> None:
        try:
            scheduler.add_job(
                self._run,
                PolicyTrigger(model, policy, self._last_run(model)),
                args=(model,),
                id=model,
                replace_existing=True,
                coalesce=True,
                max_instances=1,
                misfire_grace_time=None,
            )
        except (ValueError, ZoneInfoNotFoundError) as error:
            _logger.warning("%s is not checked for drift: schedule %r: %s", model, policy.schedule, error)
            if scheduler.get_job(model):
                scheduler.remove_job(model)


class PolicyTrigger(BaseTrigger):  # type: ignore[misc]
    """`next_run` as APScheduler asks for it."""

    def __init__(self, model: str, policy: DriftPolicy, last: datetime | None) -> None:
        self._model, self._policy, self._last = model, policy, last

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        return next_run(self._policy, previous_fire_time or self._last, now, self._model, next_cron)


def next_cron(expression: str, timezone: str, after: datetime) -> datetime | None:
    """The first time after `after` that the cron expression names; `ValueError` where it is none."""
    times = [trigger.get_next_fire_time(after, after) for trigger in _triggers(expression, timezone)]
    return min((time for time in times if time is not None), default=None)


def _triggers(expression: str, timezone: str) -> list[CronTrigger]:
    """As cron has it and APScheduler not: weekdays count from Sunday, and either kind of day is enough."""
    fields = expression.split()
    if len(fields) != 5:
        raise ValueError("a cron expression has five fields")
    minute, hour, day, month, weekday = fields
    weekday = _named(weekday)
    either = [("*", weekday), (day, "*")] if day != "*" and weekday != "*" else [(day, weekday)]
    return [CronTrigger.from_crontab(f"{minute} {hour} {d} {month} {w}", timezone) for d, w in either]


def _named(weekdays: str) -> str:
    parts = [_days(part) for part in weekdays.lower().split(",")]
    days = sorted({day for part in parts for day in part})
    return "*" if len(days) == len(WEEKDAYS) else ",".join(WEEKDAYS[day] for day in days)


def _days(part: str) -> list[int]:
    match = WEEKDAY_PART.fullmatch(part)
    if not match:
        raise ValueError(f"{part!r} is no day of the week")
    every, first, last, step = match.groups()
    begin = 0 if every else _day(first)
    end = 6 if every else _day(last or first)
    if last and end < begin:
        end += 7
    return [day % 7 for day in range(begin, end + 1, int(step or 1))]


def _day(word: str) -> int:
    """Cron's own numbers, in which both 0 and 7 are Sunday."""
    if word in WEEKDAYS:
        return WEEKDAYS.index(word)
    if word.isdigit() and int(word) <= 7:
        return int(word)
    raise ValueError(f"{word!r} is no day of the week")
