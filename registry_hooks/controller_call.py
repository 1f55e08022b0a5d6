"""How our MLflow app speaks to the controller: tells it to look, and asks whether a move is allowed.

MLflow must work as ever when the controller is down, so that telling never waits (a bounded queue and one
thread) and asking has a second: no answer means yes.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from dataclasses import asdict, dataclass

import httpx

logger = logging.getLogger(__name__)

URL = "PROMOTE_URL"
"""Environment variable: where the controller is; http://127.0.0.1:8400 where it is not set."""
TOKEN = "PROMOTE_TOKEN"  # noqa: S105 - the variable's name
"""Environment variable: the token that a controller on another machine asks for."""
ANSWER_SECONDS = 1.0
"""A controller that takes longer to say no has said yes."""
MOST_WAITING = 1000
"""Wake-ups kept while the controller does not take them; the poll finds what is dropped."""


@dataclass(frozen=True, slots=True)
class Move:
    """A version about to enter a channel."""

    model: str
    version: str
    channel: str


class ControllerCall:
    """Speaks to the controller at `url`."""

    def __init__(self, url: str, token: str) -> None:
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=ANSWER_SECONDS,
            trust_env=False,
        )
        self._waiting: queue.Queue[str] = queue.Queue(MOST_WAITING)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    @classmethod
    def from_environment(cls) -> ControllerCall:
        return cls(os.environ.get(URL, "http://127.0.0.1:8400"), os.environ.get(TOKEN, ""))

    def wake(self, model: str) -> None:
        """Have the controller look at `model` soon; returns at once."""
        try:
            self._waiting.put_nowait(model)
        except queue.Full:
            return
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._tell, name="promote-wake", daemon=True)
                self._thread.start()

    def refusal(self, move: Move) -> str | None:
        """Why the policy forbids the move; None where it is allowed or the controller does not say."""
        try:
            answer = self._client.post("/hooks/allowed", json=asdict(move))
            said = answer.raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            logger.warning("the controller did not say whether %s may enter %s: %s", move.model, move.channel, error)
            return None
        if isinstance(said, dict) and said.get("allowed") is False:
            return str(said.get("reason") or "the policy forbids it")
        return None

    def _tell(self) -> None:
        while True:
            model = self._waiting.get()
            try:
                self._client.post("/hooks/wake", json={"model": model}).raise_for_status()
            except httpx.HTTPError as error:
                logger.info("the controller did not hear of %s and will find it by polling: %s", model, error)
