"""The replay gate at work: logged requests of the stable revision go to it and to the candidate, one by one.

Each replay has a thread of its own, because a tick does not wait; a controller that starts again begins it anew, which
costs time and harms nobody. The two revisions are asked in turns, and who is first changes, so that both meet the same
noise. Their own logs mark what they answer here as replayed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import httpx

from monitoring.log_entry import prediction
from monitoring.logged_requests import LoggedRequest, last_requests
from monitoring.replay_gate import Answer, Finding, Outcome, Replayed, conclude
from monitoring.replay_gate_policy import ReplayGatePolicy
from monitoring.served_rows import ServedRowsError
from pipelines.rollout import GateResult, Goal, Rollout
from registry_hooks.model_version import ModelVersion
from serving.revision import RevisionStatus

NAME = "replay"
AGAIN = 2
"""A request that failed on the candidate is sent to both so many times more."""
_ENOUGH = 20
"""After so many requests more than may fail, the rest is not sent."""
_MOST_WORDS = 500
"""Characters of an error."""
_AT_ONCE = 4
_TOLD_EVERY = 50
_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Replay:
    """One replay, in the thread that carries it out."""

    log_url: str
    policy: ReplayGatePolicy
    slack_ms: float
    stable: ModelVersion
    stable_url: str
    candidate_url: str
    client: Callable[[], httpx.Client]
    stop: threading.Event = field(default_factory=threading.Event)
    sent: int = 0
    total: int = 0
    _form: int = 0
    """Of the bodies of a request, the one that the stable revision took last."""

    def run(self) -> GateResult:
        """Raises `ServedRowsError`."""
        began = time.monotonic()
        requests = last_requests(self.log_url, self.stable, datetime.now(UTC), self.policy.requests)
        self.total = len(requests)
        if not requests:
            return GateResult(NAME, passed=True, detail=f"no requests of {self.stable} are logged; nothing was sent")
        with self.client() as client:
            client.timeout = httpx.Timeout(self.policy.request_seconds)
            replayed = self._all(client, requests, began + self.policy.max_seconds)
        return _result(conclude(self.policy, self.slack_ms, replayed, time.monotonic() - began))

    def _all(self, client: httpx.Client, requests: Sequence[LoggedRequest], until: float) -> list[Replayed]:
        replayed: list[Replayed] = []
        failed = 0
        for request in requests:
            if time.monotonic() >= until or self.stop.is_set() or failed > self.policy.most_failed + _ENOUGH:
                break
            replayed.append(self._one(client, request))
            failed += replayed[-1].steady
            self.sent += 1
        return replayed

    def _one(self, client: httpx.Client, request: LoggedRequest) -> Replayed:
        """In the form that the stable revision takes, where it takes any."""
        bodies = request.bodies
        order = [self._form, *(form for form in range(len(bodies)) if form != self._form)]
        asked = self._both(client, request, bodies[self._form])
        for form in order[1:]:
            if asked.stable.outcome is not Outcome.REFUSED:
                break
            asked = self._both(client, request, bodies[form])
            self._form = form if asked.stable.outcome is Outcome.ANSWERED else self._form
        return replace(asked, steady=self._steady(client, request, bodies[self._form], asked))

    def _steady(self, client: httpx.Client, request: LoggedRequest, body: bytes, asked: Replayed) -> bool:
        for _ in range(AGAIN):
            if not _only_candidate_failed(asked):
                return False
            asked = self._both(client, request, body)
        return _only_candidate_failed(asked)

    def _both(self, client: httpx.Client, request: LoggedRequest, body: bytes) -> Replayed:
        urls = [self.stable_url, self.candidate_url]
        if self.sent % 2:
            urls.reverse()
        answers = {url: self._ask(client, url, request.id, body) for url in urls}
        return Replayed(request.id, request.at, request.columns, answers[self.stable_url], answers[self.candidate_url])

    def _ask(self, client: httpx.Client, url: str, request_id: str, body: bytes) -> Answer:
        headers = {"content-type": "application/json", "x-promote-mode": "replay", "x-request-id": request_id}
        began = time.perf_counter()
        try:
            answer = client.post(url, content=body, headers=headers)
        except httpx.HTTPError as error:
            return Answer(Outcome.FAILED, _since(began), words=str(error) or type(error).__name__)
        latency, status = _since(began), answer.status_code
        if answer.is_success:
            said = prediction(answer.headers.get("x-promote-prediction"))
            return Answer(Outcome.ANSWERED, latency, status, prediction=said)
        outcome = Outcome.REFUSED if 400 <= status < 500 else Outcome.FAILED
        return Answer(outcome, latency, status, words=_words(answer))


@dataclass(frozen=True, slots=True)
class _Begun:
    replay: Replay
    result: Future[GateResult]


class Replays:
    """The replays that are under way, or over and not yet forgotten. Safe to use from several threads."""

    def __init__(self, log_url: str, client: Callable[[], httpx.Client] = httpx.Client) -> None:
        """`log_url` is that of the prediction log; `client` makes what reaches revisions at their addresses."""
        self._log_url = log_url
        self._client = client
        self._begun: dict[str, _Begun] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="replay")

    def results(
        self, rollout: Rollout, candidate: RevisionStatus, stable: RevisionStatus | None
    ) -> tuple[GateResult, ...] | None:
        """Of the gate, where it is wanted; None while it is under way, and where the log is to be read again."""
        if not rollout.policy.replay.requests or rollout.stable is None or rollout.intent.goal is Goal.RESTORE:
            return ()
        if stable is None or not stable.addresses:
            return (GateResult(NAME, passed=True, detail="the stable version does not run; nothing was compared"),)
        with self._lock:
            if rollout.id not in self._begun:
                self._begun[rollout.id] = self._begin(rollout, candidate, stable)
            begun = self._begun[rollout.id]
            if not begun.result.done():
                return None
            try:
                return (begun.result.result(),)
            except ServedRowsError as error:
                _logger.warning("rollout %s: nothing could be replayed: %s", rollout.id, error)
                del self._begun[rollout.id]
                return None

    def progress(self, rollout: Rollout) -> str:
        """Of a replay under way; empty where there is none."""
        with self._lock:
            begun = self._begun.get(rollout.id)
        if begun is None or begun.result.done() or not begun.replay.total:
            return ""
        sent = begun.replay.sent // _TOLD_EVERY * _TOLD_EVERY
        return f"{sent} of {begun.replay.total} logged requests replayed"

    def forget(self, rollout: Rollout) -> None:
        """End the rollout's replay where it is under way."""
        with self._lock:
            begun = self._begun.pop(rollout.id, None)
        if begun is not None:
            begun.replay.stop.set()

    def close(self) -> None:
        """End what is under way."""
        with self._lock:
            for begun in self._begun.values():
                begun.replay.stop.set()
        self._threads.shutdown(cancel_futures=True)

    def _begin(self, rollout: Rollout, candidate: RevisionStatus, stable: RevisionStatus) -> _Begun:
        replay = Replay(
            self._log_url,
            rollout.policy.replay,
            rollout.policy.analysis.latency_slack_ms,
            stable.revision.version,
            f"http://{stable.addresses[0]}/invocations",
            f"http://{candidate.addresses[0]}/invocations",
            self._client,
        )
        return _Begun(replay, self._threads.submit(replay.run))


def _only_candidate_failed(asked: Replayed) -> bool:
    return asked.stable.outcome is Outcome.ANSWERED and asked.candidate.outcome is not Outcome.ANSWERED


def _since(began: float) -> float:
    return 1000 * (time.perf_counter() - began)


def _words(answer: httpx.Response) -> str:
    """The message of an error as MLflow writes it, or the beginning of whatever was sent."""
    try:
        told = answer.json()["message"]
    except (ValueError, KeyError, TypeError):
        told = answer.text
    return str(told)[:_MOST_WORDS]


def _result(found: Finding) -> GateResult:
    detail = "; ".join(found.problems) or found.summary
    return GateResult(NAME, passed=not found.problems, detail=detail, data=found.data)
