"""Blocks from what model servers count, for gateways that tell of no single request.

Somebody else's gateway has its own access log, or none, and some put the figures of both arms together. So both arms
are read where they are certainly apart: at their own servers. Every few seconds each server that takes requests is
asked for its figures, and what both arms counted since is one block.

What that cannot see: requests that never reached a server, or whose server ended before it was asked; what single
requests were about (entities, predictions, losses, labels); copies. Requests are counted when they end, so one that
hangs counts once it is over. An interval with a server that does not answer is no block: it goes on until all answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from monitoring.block_store import BlockStore, Progress
from monitoring.blocks import Block, BlockError, Scale, Seen
from monitoring.label_policy import LabelPolicy
from monitoring.labels import Kept, Label, LabelBlock
from monitoring.log_line import UNCOMPARED
from monitoring.remote_log import Ask
from monitoring.ruler import Ruler
from monitoring.server_figures import ServerFigures, block_of, history, together
from monitoring.shadow_blocks import ShadowBlock
from serving.router import Route, RouterError

_logger = logging.getLogger(__name__)

REST_SECONDS = 2.0
"""Servers are not asked more often than this."""
MOST_SECONDS = 60.0
"""A block ends after this long, also where an arm has no request."""
_RATE_SECONDS = 60.0
"""A rate that is older is not told."""


class Servers(Protocol):
    """Who serves a revision."""

    def of(self, revision: str) -> Mapping[str, Ask]:
        """How each server that takes requests is asked, by a name that none before it had. Raises `OSError`."""
        ...


Readings = dict[str, ServerFigures]
"""Figures of the servers of one revision, by their names."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What was read at one time."""

    at: float
    tag: str
    """Step of the route in force."""
    stable: Readings
    candidate: Readings


@dataclass(slots=True)
class _Followed:
    """What is known of one rollout."""

    scale: Scale | None = None
    ruler: Ruler | None = None
    last: _Look | None = None
    """From which the next block counts."""
    number: int = 0
    """Of the last block."""
    looked: float = field(default=float("-inf"))


class FigureBlocks:
    """`EvidenceSource` over the figures of model servers; blocks are kept in ``figures.sqlite3`` below `home`."""

    def __init__(
        self,
        routes: Callable[[], Mapping[str, Route]],
        servers: Servers,
        home: Path,
        *,
        rest_seconds: float = REST_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`routes`: those in force, by model. Raises `RouterError`."""
        self._routes, self._servers, self._clock = routes, servers, clock
        self._rest_seconds = rest_seconds
        self._guard, self._loaded = threading.Lock(), False
        self._store = BlockStore(home / "figures.sqlite3")
        self._rates: dict[str, tuple[float, float]] = {}
        """Requests per second of a model, and when that was."""

    def prepare(self, rollout: str, model: str, scale: Scale, labels: LabelPolicy = LabelPolicy()) -> None:  # noqa: ARG002
        """See `BlockSource`. Labels are not waited for."""
        with self._current():
            if rollout in self._forgotten or self._of(rollout).scale is not None:
                return
        route = self._in_force().get(model)
        alone = [*route.weights.shares] if route is not None else []
        figures = together(self._read(alone[0]).values()) if len(alone) == 1 else ServerFigures()
        with self._current():
            followed = self._of(rollout)
            followed.scale, followed.ruler = scale, Ruler.from_history(history(figures), scale)
            self._save()

    def blocks(self, rollout: str, after: int = 0) -> tuple[Block, ...]:
        with self._current():
            due = rollout not in self._forgotten and self._is_due(self._of(rollout))
        if due:
            look, model = self._look(rollout)
            with self._current():
                if rollout not in self._forgotten:
                    self._take(rollout, look, model)
        return self._store.blocks(rollout, after)

    def rate(self, model: str) -> float | None:
        """Known while two revisions of the model are compared, for nobody is asked otherwise."""
        with self._current():
            rate, at = self._rates.get(model, (0.0, float("-inf")))
            return rate if self._clock() - at <= _RATE_SECONDS else None

    def seen(self, model: str) -> tuple[Seen, ...]:  # noqa: ARG002
        """None: there are no single requests."""
        return ()

    def pairs(self, rollout: str, after: int = 0) -> tuple[ShadowBlock, ...]:  # noqa: ARG002
        """None: there are no copies."""
        return ()

    def keep_labels(self, labels: Sequence[Label]) -> Kept:  # noqa: ARG002
        """Refused: what is not known by its request cannot be told by it."""
        raise BlockError("the router httproute knows no single requests, so labels find none", retryable=False)

    def labelled(self, rollout: str, after: int = 0) -> tuple[LabelBlock, ...]:  # noqa: ARG002
        """None."""
        return ()

    def forget(self, rollout: str) -> None:
        with self._current():
            self._followed.pop(rollout, None)
            self._forgotten |= {rollout}
            self._save(forget=(rollout,))

    def pump(self) -> None:
        """Nothing grows while nobody asks."""

    def _of(self, rollout: str) -> _Followed:
        return self._followed.setdefault(rollout, _Followed())

    def _is_due(self, followed: _Followed) -> bool:
        now = self._clock()
        if 0 <= now - followed.looked < self._rest_seconds:
            return False
        followed.looked = now
        return True

    def _look(self, rollout: str) -> tuple[_Look | None, str]:
        """What both arms' servers say now, and the model; nothing where no two revisions are compared."""
        route = next((one for one in self._in_force().values() if _compares(one, rollout)), None)
        if route is None or route.candidate is None:
            return None, ""
        (stable,) = (revision for revision in route.weights.shares if revision != route.candidate)
        return _Look(self._clock(), route.step, self._read(stable), self._read(route.candidate)), route.model

    def _take(self, rollout: str, look: _Look | None, model: str) -> None:
        """Count on from the look, where there is a block up to it or it is at another step."""
        followed = self._of(rollout)
        last = followed.last
        if look is None:
            if last is not None:
                followed.last = None
                self._save()
            return
        block = self._block(rollout, followed, look, model)
        if block is None and last is not None and last.tag == look.tag:
            return
        followed.last = look
        self._save([block] if block is not None else [])

    def _block(self, rollout: str, followed: _Followed, look: _Look, model: str) -> Block | None:
        """What was counted since the last look; None where it was at another step, or an arm has nothing to say yet."""
        last = followed.last
        if last is None or last.tag != look.tag:
            return None
        stable, candidate = _counted(last.stable, look.stable), _counted(last.candidate, look.candidate)
        if not (stable.requests and candidate.requests) and look.at - last.at < MOST_SECONDS:
            return None
        self._rates[model] = (stable.requests + candidate.requests) / max(look.at - last.at, 1e-3), look.at
        step, number = int(look.tag.rpartition("/")[2]), followed.number + 1
        block = block_of(number, rollout, step, last.at, look.at, stable, candidate, followed.ruler)
        followed.number = number
        if followed.ruler is None and followed.scale is not None:
            known = together(look.stable.values())
            followed.ruler = Ruler.from_history(history(known), followed.scale)
        return block

    def _in_force(self) -> Mapping[str, Route]:
        try:
            return self._routes()
        except RouterError as error:
            raise BlockError(f"the routes in force are not known: {error}", retryable=error.retryable) from error

    def _read(self, revision: str) -> Readings:
        """Of every server, or of none: an interval in which one is not heard says nothing yet."""
        try:
            return {name: _asked(name, ask) for name, ask in self._servers.of(revision).items()}
        except (OSError, ValueError) as error:
            raise BlockError(f"the figures of {revision} cannot be read: {error}", retryable=True) from error

    @contextmanager
    def _current(self) -> Iterator[None]:
        """One at a time, with what is saved in memory."""
        with self._guard:
            if not self._loaded:
                self._load()
            yield

    def _load(self) -> None:
        saved = self._store.load()
        self._serial, self._forgotten = saved.serial, saved.forgotten
        self._followed = {name: _followed(state) for name, state in saved.state.get("followed", {}).items()}
        self._loaded = True

    def _save(self, blocks: Sequence[Block] = (), forget: Sequence[str] = ()) -> None:
        """What cannot be saved is forgotten, and counted again from the last look that was."""
        state = {"followed": {name: _state(one) for name, one in self._followed.items()}}
        self._loaded = False
        self._serial = self._store.save(self._serial, Progress(state, blocks, forget=forget))
        self._loaded = True


def _compares(route: Route, rollout: str) -> bool:
    """Whether the route's requests are shared by two revisions for the rollout's sake."""
    ours = route.step.startswith(f"{rollout}/") and not route.step.endswith(UNCOMPARED)
    return ours and len(route.weights.shares) == 2 and route.candidate in route.weights.shares


def _asked(name: str, ask: Ask) -> ServerFigures:
    status, _, body = ask("GET", "/metrics")
    if status != 200:
        raise OSError(f"server {name} answers {status}")
    return ServerFigures.read(body.decode(errors="replace"))


def _counted(before: Readings, now: Readings) -> ServerFigures:
    """Since then, by all servers; one that was not there began meanwhile. `BlockError` where they cannot be added."""
    try:
        return together(figures.since(before.get(name, ServerFigures())) for name, figures in now.items())
    except ValueError as error:
        raise BlockError(str(error), retryable=True) from error


def _state(followed: _Followed) -> list[Any]:
    last = followed.last
    look = None if last is None else [last.at, last.tag, _packed(last.stable), _packed(last.candidate)]
    scale = None if followed.scale is None else astuple(followed.scale)
    return [scale, None if followed.ruler is None else followed.ruler.state(), look, followed.number]


def _followed(state: Sequence[Any]) -> _Followed:
    scale, ruler, look, number = state
    return _Followed(
        None if scale is None else Scale(*scale),
        None if ruler is None else Ruler.restore(ruler),
        None if look is None else _Look(look[0], look[1], _unpacked(look[2]), _unpacked(look[3])),
        number,
    )


def _packed(readings: Readings) -> dict[str, list[Any]]:
    return {name: list(astuple(figures)) for name, figures in readings.items()}


def _unpacked(state: Mapping[str, Sequence[Any]]) -> Readings:
    return {name: ServerFigures(a, b, c, tuple(d), tuple(e)) for name, (a, b, c, d, e) in state.items()}
