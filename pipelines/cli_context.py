"""What the verbs of the command line share: this installation's settings, and how an answer is printed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import cli_views as views
from pipelines.client import ClientError, Json

if TYPE_CHECKING:
    from pipelines.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def settings() -> Settings:
    """This installation's settings; whoever wrote them wrong is told as with any other argument."""
    from pipelines.settings import SettingsError, load

    try:
        return load()
    except SettingsError as error:
        raise ClientError("settings", f"the settings cannot be used: {error}", "see docs/configuration.md") from error


def show(answer: Json, view: Callable[[Json], object], *, as_json: bool) -> None:
    """The answer as JSON, or as people read it."""
    if as_json:
        views.print_json(answer)
    else:
        views.out().print(view(answer))
