"""How the story is told: chapters, sentences, what was checked, and a rollout as it goes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_BAR = 20
_WIDTH = 110
"""For the table; sentences may be longer."""


class StoryError(Exception):
    """The story did not come true; the message says what did not."""


class Teller:
    """Tells the story line by line, so that it reads the same on a terminal and in a log."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True, width=_WIDTH)
        self._begun = time.monotonic()

    def chapter(self, title: str) -> None:
        self._console.print(f"\n[bold cyan]{time.monotonic() - self._begun:4.0f} s  {escape(title)}[/]")

    def say(self, text: str) -> None:
        self._console.print(f"        {escape(text)}")

    def check(self, holds: bool, what: str) -> None:
        """Say that `what` came true; `StoryError` where it did not."""
        if not holds:
            raise StoryError(what)
        self._console.print(f"        [green]✓[/] {escape(what)}")

    def alert(self, text: str) -> None:
        self._console.print(f"        [yellow]! alert:[/] {escape(text)}")

    def failed(self, text: str) -> None:
        self._console.print(f"\n[bold red]The story did not come true:[/] {escape(text)}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column, justify="left" if column == columns[0] else "right")
        for row in rows:
            table.add_row(*row)
        self._console.print()
        self._console.print(table)

    def seconds(self) -> float:
        return time.monotonic() - self._begun


class RolloutLines:
    """Says a line about a rollout whenever something about it changed."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        self._last: tuple[Any, ...] = ()

    def show(self, rollout: Mapping[str, Any]) -> None:
        evidence = rollout["evidence"]
        quarter = int(4 * evidence["progress"]) if evidence else 0
        now = (rollout["phase"], rollout["weight"], quarter)
        if now != self._last:
            self._last = now
            self._teller.say(_line(rollout))


def _line(rollout: Mapping[str, Any]) -> str:
    head = f"{rollout['phase']:<12} weight {rollout['weight']:>3} %"
    evidence = rollout["evidence"]
    if not evidence or not evidence["candidate"]["requests"]:
        return f"{head}  {rollout['reason']}".rstrip()
    full = round(_BAR * min(1.0, max(0.0, evidence["progress"])))
    arms = "; ".join(f"{arm} {_count(evidence[arm])}" for arm in ("stable", "candidate"))
    return f"{head}  {'█' * full}{'░' * (_BAR - full)} {evidence['verdict']:<4} {arms}"


def _count(arm: Mapping[str, int]) -> str:
    return f"{arm['requests']:,} requests, {arm['errors']:,} failed"
