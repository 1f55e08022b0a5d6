"""Why a command was not carried out: a code for programs, one line and what to do for people."""

from __future__ import annotations

from enum import StrEnum

from pipelines.store import StoreError
from registry_hooks.registry import RegistryError


class Code(StrEnum):
    """What kind of refusal it is; part of the API."""

    UNKNOWN_MODEL = "unknown_model"
    """The registry has no model of that name."""
    UNKNOWN_VERSION = "unknown_version"
    """The model has no such version."""
    UNKNOWN_ROLLOUT = "unknown_rollout"
    """The store has no rollout with that id."""
    UNKNOWN_INTENT = "unknown_intent"
    """The store has no intent with that id."""
    NOT_MANAGED = "not_managed"
    """No policy manages the model."""
    NOT_READY = "not_ready"
    """MLflow has not finished registering the version."""
    ALREADY_LIVE = "already_live"
    """The version holds the traffic."""
    IN_PROGRESS = "in_progress"
    """What was asked for is under way."""
    NO_ROLLOUT = "no_rollout"
    """The model has no rollout that the command could concern."""
    TOO_LATE = "too_late"
    """The rollout's decision is being carried out."""
    NOTHING_BEFORE = "nothing_before"
    """No version was live before that could be live again."""
    FORBIDDEN = "forbidden"
    """The model's policy does not allow it."""
    NO_REPORT = "no_report"
    """There was no drift check yet."""
    INVALID = "invalid"
    """A field of the request is missing or wrong; `CommandError.field` names it."""
    UNKNOWN_PATH = "unknown_path"
    """The API has no such path, or not for that method."""
    UNAUTHORIZED = "unauthorized"
    """The bearer token is missing or wrong."""
    REGISTRY_UNREACHABLE = "registry_unreachable"
    """MLflow did not answer."""
    REGISTRY_REFUSED = "registry_refused"
    """MLflow answered, and said no."""
    STORE_UNREACHABLE = "store_unreachable"
    """The controller's database did not answer."""
    FAILED = "failed"
    """It was tried and did not work."""


class CommandError(Exception):
    """A command was refused. The message is one line; `hint` says what to do."""

    def __init__(self, code: Code, message: str, hint: str = "", *, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.field = field

    @property
    def retryable(self) -> bool:
        return self.code in (Code.REGISTRY_UNREACHABLE, Code.STORE_UNREACHABLE)


def from_registry(error: RegistryError) -> CommandError:
    if error.retryable:
        hint = "see that the MLflow server runs, then try again; 'mlflow-promote doctor' checks it"
        return CommandError(Code.REGISTRY_UNREACHABLE, f"MLflow does not answer: {one_line(error)}", hint)
    return CommandError(Code.REGISTRY_REFUSED, f"MLflow refused: {one_line(error)}", "see MLflow's own log")


def from_store(error: StoreError) -> CommandError:
    hint = "'mlflow-promote doctor' checks the store"
    return CommandError(Code.STORE_UNREACHABLE, f"the store did not do as asked: {one_line(error)}", hint)


def one_line(error: BaseException) -> str:
    """The error's text without line breaks, at most 300 characters."""
    return " ".join(str(error).split())[:300]
