"""Waiting for what a command started, by asking the controller again and again.

The rollout does not depend on whoever waits: a controller that is away for a moment is waited for, and
whoever stops waiting changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from pipelines.client import Client, ClientError, Json

_AWAY_SECONDS = 60.0
"""How long a controller may be away; longer than another one needs to take over."""
_TOLD_SECONDS = 30.0
"""How long the registry may take to show an outcome that already holds for the traffic."""


class Exit(IntEnum):
    """Exit codes of the command line; part of its interface."""

    OK = 0
    """The version is live, or what was asked for is done."""
    ROLLED_BACK = 1
    """The rollout was taken back, or a check failed."""
    USAGE = 2
    """Wrong arguments, or a command that was refused."""
    PAUSED = 3
    """Not enough evidence in time, or paused by a person."""
    HALTED = 4
    """Traffic stays where it is and a person is needed."""
    UNREACHABLE = 5
    """The controller or MLflow does not answer."""
    INTERRUPTED = 130
    """Stopped waiting by Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How waiting ended."""

    result: str
    code: Exit
    rollout: Json


def follow(client: Client, accepted: Json, show: Callable[[Json], None], pause: float = 0.5) -> Ending:
    """Wait until the rollout in `accepted` has ended or paused; `show` gets its state every `pause` seconds.

    Raises `ClientError` where the intent was refused or the controller stays away.
    """
    answered = time.monotonic()
    decided: float | None = None
    while True:
        rollout = _look(client, accepted, answered)
        now = time.monotonic()
        if rollout is not None:
            answered = now
            show(rollout)
            decided = decided or (now if rollout["final"] else None)
            if _over(rollout, accepted["goal"], decided, now):
                return ending(rollout, accepted["goal"])
        time.sleep(pause)


def ending(rollout: Json, goal: str) -> Ending:
    """What `rollout` means to whoever asked for `goal`."""
    phase = rollout["phase"]
    wanted = "failed" if goal == "abort" else "succeeded"
    if phase == "halted":
        return Ending("halted", Exit.HALTED, rollout)
    if phase == "paused":
        return Ending("paused" if rollout["held"] else "not enough evidence", Exit.PAUSED, rollout)
    result = "live" if phase == "succeeded" else "rolled back"
    return Ending(result, Exit.OK if phase == wanted else Exit.ROLLED_BACK, rollout)


def _look(client: Client, accepted: Json, answered: float) -> Json | None:
    """The rollout; None while it does not exist yet or the controller is away."""
    try:
        return client.rollout(accepted["rollout"])
    except ClientError as error:
        if error.retryable and time.monotonic() - answered < _AWAY_SECONDS:
            return None
        if error.code != "unknown_rollout":
            raise
    intent = client.intent(accepted["intent"])
    if intent["state"] == "refused":
        raise ClientError("refused", f"not carried out: {intent['outcome']}", "'mlflow-promote history' tells more")
    return None


def _over(rollout: Json, goal: str, decided: float | None, now: float) -> bool:
    if rollout["phase"] == "paused":
        return goal != "abort"
    told = rollout["settled"] or rollout["phase"] == "halted"
    return decided is not None and (told or now - decided > _TOLD_SECONDS)
