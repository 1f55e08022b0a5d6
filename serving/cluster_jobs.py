"""Carries out work as Jobs of a cluster: each is made, waited for, read and removed.

What the cluster does not answer for a while is no reason to give up: a Job runs on without us. Whoever made a Job and
died leaves it behind, labelled; the next one removes it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from serving.cluster import EVENTS, PODS, Cluster, ClusterError, Kind
from serving.job_objects import CONTAINER, RUNS, JobSettings, Seen, job, why
from serving.pod_parts import Object

JOBS = Kind("batch/v1", "jobs")

_logger = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
"""Between two looks at a Job."""
_LATE_SECONDS = 120.0
"""How long after its time a Job may still be waited for: until then the cluster has ended it, or does not answer."""
_LINES = 5000
"""So many lines of a pod's log are read."""
_LAST_LINES = 10


class JobError(Exception):
    """There is no result: why, in the cluster's words. `lines`: what the last pod printed."""

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = tuple(lines)


class JobStoppedError(Exception):
    """It was not waited for to the end."""


class ClusterJobs:
    """Work of one kind of one installation. Any thread may use it."""

    def __init__(self, cluster: Cluster, selector: str, look_seconds: float = _LOOK_SECONDS) -> None:
        """`selector`: of that kind's labels."""
        self._cluster = cluster
        self._selector = selector
        self._look_seconds = look_seconds
        self._stopped = threading.Event()
        self._guard = threading.Lock()
        self._own: set[str] = set()
        """Names of Jobs that are waited for."""

    def run(self, name: str, command: Sequence[str], told: Mapping[str, str], settings: JobSettings) -> tuple[str, ...]:
        """What the command printed, once it has ended well. Raises `JobError`, `JobStoppedError`.

        A name is used once. Nothing of the Job is left afterwards, unless the cluster does not answer then.
        """
        with self._guard:
            self._own.add(name)
        try:
            return self._carried_out(job(name, command, told, settings), settings)
        except ClusterError as error:
            raise JobError(str(error)) from error
        finally:
            with self._guard:
                self._own.discard(name)

    def clear(self) -> None:
        """Remove what others left behind. Raises `ClusterError`."""
        found, _ = self._cluster.list(JOBS, labelSelector=self._selector)
        with self._guard:
            left = [one for one in found if one["metadata"]["name"] not in self._own]
        for one in left:
            self._remove(one)

    def stop(self) -> None:
        """Nobody waits any more; what is under way is removed."""
        self._stopped.set()

    def _carried_out(self, wanted: Object, settings: JobSettings) -> tuple[str, ...]:
        made = self._cluster.apply(wanted)
        try:
            return self._await(made, settings)
        finally:
            try:
                self._remove(made)
            except ClusterError as error:
                _logger.warning("Job %s is left behind for now: %s", made["metadata"]["name"], error)

    def _await(self, made: Object, settings: JobSettings) -> tuple[str, ...]:
        deadline = time.monotonic() + settings.seconds + _LATE_SECONDS
        known: dict[str, Object] = {}
        told = RUNS
        while time.monotonic() < deadline:
            if self._stopped.wait(self._look_seconds):
                raise JobStoppedError("the controller ends")
            try:
                seen = self._look(made, known)
            except ClusterError as error:
                if not error.retryable:
                    raise
                _logger.warning("%s", error)
                continue
            if seen.succeeded:
                return self._lines(seen)
            if seen.failed or seen.out_of_memory:
                raise self._failure(seen, settings)
            told = why(seen, settings)
        raise JobError(f"the cluster did not end it in time: {told}")

    def _look(self, made: Object, known: dict[str, Object]) -> Seen:
        """`known`: its pods by their uids, as they were last seen; the cluster removes those that ran out of time."""
        name, uid = made["metadata"]["name"], made["metadata"]["uid"]
        there = self._cluster.get(JOBS, name)
        if there is None or there["metadata"]["uid"] != uid or "deletionTimestamp" in there["metadata"]:
            raise JobError("its Job was removed by somebody")
        pods, _ = self._cluster.list(PODS, labelSelector=f"controller-uid={uid}")
        known.update({pod["metadata"]["uid"]: pod for pod in pods})
        return Seen(there, tuple(known.values()), self._warnings([uid, *known]))

    def _warnings(self, uids: Sequence[str]) -> list[Object]:
        """They explain, and are not worth a failure."""
        found: list[Object] = []
        with suppress(ClusterError):
            for uid in uids:
                found += self._cluster.list(EVENTS, fieldSelector=f"involvedObject.uid={uid},type=Warning")[0]
        return found

    def _failure(self, seen: Seen, settings: JobSettings) -> JobError:
        lines = self._lines(seen)
        return JobError(why(replace(seen, words=lines[-_LAST_LINES:]), settings), lines)

    def _lines(self, seen: Seen) -> tuple[str, ...]:
        """Of the pod that tells most; none where they cannot be had."""
        pod = seen.telling
        if pod is None:
            return ()
        return self._persistently(lambda: self._cluster.log(pod["metadata"]["name"], CONTAINER, _LINES))

    def _persistently(self, read: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        for _ in range(3):
            try:
                return read()
            except ClusterError as error:
                _logger.warning("%s", error)
                self._stopped.wait(self._look_seconds)
        return ()

    def _remove(self, one: Object) -> None:
        self._cluster.delete(JOBS, one["metadata"]["name"], one["metadata"]["uid"])
