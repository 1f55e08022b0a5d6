"""What model servers in pods say of themselves, asked in the background and no more often than that is worth.

The cluster's own probes say whether a server is ready; how far one is that is not, and what is wrong with one that is,
only the server says. One that starts is asked every second. Those that are ready are asked in turn, a few a second
however many there are: of a thousand each is heard of once in a while, and no look has a thousand questions.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from serving.cluster_access import Access, Ask
from serving.image_context import PORT
from serving.kubernetes_objects import NAME, name_of
from serving.kubernetes_reading import Said, is_ready, runs
from serving.pod_parts import Object

_logger = logging.getLogger(__name__)

_STARTING_SECONDS, _READY_SECONDS = 1.0, 30.0
"""Between two questions to the same server, at least."""
_THREADS = 8


_NOTHING = Said()


@dataclass(slots=True)
class _Known:
    said: Said = _NOTHING
    at: float = float("-inf")
    """When it was last asked."""
    asking: Future[Said | None] | None = None

    def take(self) -> None:
        """Take the answer in, once it is there. One that says nothing is as it was."""
        if self.asking is not None and self.asking.done():
            self.said, self.asking = self.asking.result() or self.said, None


class PodHealth:
    """What is known of the servers of one namespace; for several threads."""

    def __init__(
        self,
        access: Access,
        ready_per_second: float,
        clock: Callable[[], float] = time.monotonic,
        threads: int = _THREADS,
    ) -> None:
        """`ready_per_second`: how many servers that are ready are asked in a second, at most."""
        self._access, self._rate, self._clock = access, ready_per_second, clock
        self._pool = ThreadPoolExecutor(threads, "pod-health")
        self._known: dict[str, _Known] = {}
        self._looked, self._allowed = clock(), 1.0
        self._guard = threading.Lock()

    def look(self, pods: Sequence[Object]) -> Mapping[str, Said]:
        """What is known of these, which are all there are, by their uids; nothing is waited for."""
        now = self._clock()
        running = {str(pod["metadata"]["uid"]): pod for pod in pods if runs(pod) and pod["status"].get("podIP")}
        with self._guard:
            self._known = {uid: self._known.get(uid) or _Known() for uid in running}
            for known in self._known.values():
                known.take()
            for uid in self._due(running, now):
                known = self._known[uid]
                known.at, known.asking = now, self._pool.submit(_asked, self._way(running[uid]), running[uid])
            return {uid: _fitting(known.said, running[uid]) for uid, known in self._known.items()}

    def close(self) -> None:
        """Nobody is asked any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _due(self, running: Mapping[str, Object], now: float) -> list[str]:
        """Those to be asked now; of those that are ready the ones that were asked longest ago."""
        self._allowed = min(self._allowed + (now - self._looked) * self._rate, max(1.0, self._rate))
        self._looked = now
        idle = {uid: now - known.at for uid, known in self._known.items() if known.asking is None}
        starting = [uid for uid, since in idle.items() if not is_ready(running[uid]) and since >= _STARTING_SECONDS]
        ready = [uid for uid, since in idle.items() if is_ready(running[uid]) and since >= _READY_SECONDS]
        chosen = sorted(ready, key=idle.__getitem__, reverse=True)[: int(self._allowed)]
        self._allowed -= len(chosen)
        return starting + chosen

    def _way(self, pod: Object) -> Ask:
        return self._access.pod(pod["metadata"]["name"], pod["status"]["podIP"], PORT, {})


def _asked(ask: Ask, pod: Object) -> Said | None:
    """None where no server of this revision says anything."""
    try:
        status, _, body = ask("GET", "/health")
        told = json.loads(body)
        if name_of(str(told["revision"])) != pod["metadata"]["labels"][NAME]:
            return None
        if status != 200:
            return Said(at=str(told.get("detail", "")), fetched=int(told["fetched"]) if "fetched" in told else None)
        return Said(ready=True, warning=str(told["warnings"][-1]) if told.get("status") == "degraded" else "")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        _logger.debug("pod %s does not say how it is: %s", pod["metadata"]["name"], error)
        return None


def _fitting(said: Said, pod: Object) -> Said:
    """What a server said before the cluster found it ready is not said of it any more."""
    return _NOTHING if is_ready(pod) and not said.ready else said
