"""How the command line shows things: tables for people on a terminal, plain lines where nobody watches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.cli_charts import charts, sparks
from pipelines.client import Json
from pipelines.following import Ending

_COLOURS = {"succeeded": "green", "failed": "red", "halted": "red", "rolling_back": "yellow", "paused": "yellow"}


def out() -> Console:
    return Console(soft_wrap=True, highlight=False)


def print_json(value: object) -> None:
    """One JSON object on standard output, for programs."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_refusal(message: str, hint: str) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[red]error:[/] {escape(message)}")
    if hint:
        console.print(f"  {escape(hint)}")


def print_note(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(text))


def print_accepted(accepted: Json) -> None:
    """What a command started, or would start."""
    did = f"rollout {accepted['rollout']}" if accepted["intent"] else "not started"
    out().print(Text(f"{accepted['goal']} {accepted['model']} {accepted['version']} ({did}): {accepted['plan']}"))
    for note in accepted.get("notes", ()):
        out().print(Text(f"  {note}", style="dim"))


def print_ending(ending: Ending) -> None:
    rollout = ending.rollout
    style = {"live": "green", "paused": "yellow", "not enough evidence": "yellow"}.get(ending.result, "red")
    text = Text.assemble(f"{rollout['model']} {rollout['version']}: ", (ending.result, style))
    out().print(text.append(f", {rollout['reason']}" if rollout["reason"] else ""))
    if ending.result == "not enough evidence":
        model = rollout["model"]
        out().print(f"  it goes on by itself once the evidence is in; 'mlflow-promote abort {escape(model)}' ends it")


def labels_view(kept: Json) -> Text:
    told = f"{kept['new']:,} labels kept, {kept['awaited']:,} of them of answers that a rollout waits for"
    known = f"; {kept['repeated']:,} rows had one already, which counts" if kept["repeated"] else ""
    return Text(told + known)


def calibration_view(found: Json) -> Group:
    """How often the live version was taken back for being itself, and what to do."""
    record = f"{found['requests']:,} requests of {found['seconds'] / 60:.0f} min, {found['replicas']} replicas"
    rows = [Text(record)]
    for share in found["shares"]:
        style = "green" if share["promised"] else "red"
        text = Text.assemble(f"  {share['way']}: ", (f"{share['taken_back']} of {share['runs']} taken back", style))
        rows.append(text.append(f" ({'; '.join(share['blamed'])})" if share["blamed"] else ""))
    return Group(*rows, Text(found["advice"]))


class Progress(Protocol):
    """Shows how a rollout is doing, each time it is told."""

    def __call__(self, rollout: Json) -> None: ...


@contextmanager
def progress(*, quiet: bool) -> Iterator[Progress]:
    """A display that renews itself on a terminal, a line per change elsewhere, nothing where `quiet`."""
    console = out()
    if quiet:
        yield lambda _: None
    elif console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            yield lambda rollout: live.update(rollout_view(rollout))
    else:
        yield Lines(console)


@contextmanager
def counting(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar for so many more of so many; on a terminal only."""
    console = out()
    with Bar(console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(what)
        yield lambda more, of: bar.update(task, advance=more, total=of)


@dataclass(slots=True)
class Lines:
    """Prints a line whenever something about the rollout changed that a reader of a log wants to know."""

    console: Console
    _last: tuple[Any, ...] = field(default=())

    def __call__(self, rollout: Json) -> None:
        tenth = int(10 * rollout["evidence"]["progress"]) if rollout["evidence"] else 0
        now = (rollout["phase"], rollout["weight"], tenth)
        if now != self._last:
            self._last = now
            self.console.print(Text(line(rollout)))


def line(rollout: Json) -> str:
    """The rollout in one line."""
    parts = [rollout["phase"], f"weight {rollout['weight']} %"]
    evidence = rollout["evidence"]
    if evidence:
        parts.append(f"evidence {evidence['progress']:.0%}")
        parts += [f"{arm} {_count(evidence[arm])}" for arm in ("stable", "candidate")]
    if rollout["reason"]:
        parts.append(rollout["reason"])
    return ", ".join(parts)


def rollout_view(rollout: Json) -> Group:
    """The rollout as it is now, for a display that renews itself."""
    phase = Text(rollout["phase"], style=_COLOURS.get(rollout["phase"], "cyan"))
    head = Text.assemble(f"{rollout['model']} {rollout['version']}  ", phase, f"  weight {rollout['weight']} %")
    rows: list[Text | Table | Group] = [head]
    if rollout["evidence"]:
        rows.append(_evidence(rollout["evidence"]))
    elif rollout.get("shadow"):
        rows.append(_copies(rollout["shadow"]))
    if rollout["reason"]:
        rows.append(Text(rollout["reason"], style="dim"))
    if rollout["serving"] and rollout["serving"] != rollout["reason"]:
        rows.append(Text(rollout["serving"], style="dim"))
    return Group(*rows)


def _evidence(evidence: Json) -> Group:
    """Each metric in a row, and how the evidence came about."""
    table = Table(box=None, header_style="dim")
    for title in ("", "worse", "good enough for all", "candidate", "stable", "excess excluded"):
        table.add_column(title)
    trail = evidence["trail"]
    for metric in evidence["metrics"]:
        table.add_row(*_metric_row(metric, trail))
    worse = [*(moment["worse"] for moment in trail), evidence["worse"]]
    table.add_row("together", sparks(worse, "red"))
    table.add_row("next weight", "", _bar(evidence["progress"], "green"))
    rows: list[Table | Text] = [table, *(Text(f"held up: {alarm}", style="yellow") for alarm in evidence["alarms"])]
    rows += [Text(note, style="dim") for note in evidence.get("notes", ())]
    return Group(*rows, *charts(evidence["trail"]))


def _copies(shadow: Json) -> Group:
    """What copies told: all together, and the answers by what the stable version decided."""
    table = Table(box=None, header_style="dim")
    for title in ("copies", "worse", "good enough", "requests"):
        table.add_column(title)
    table.add_row("", _bar(shadow["worse"], "red"), _bar(shadow["enough"], "green"), f"{shadow['requests']:,}")
    segments = Table(box=None, header_style="dim")
    for title in ("decided", "rows", "otherwise", "difference"):
        segments.add_column(title)
    for one in shadow["segments"]:
        changed = "" if one["changed"] is None else f"{one['changed']:.1%}"
        difference = "" if one["difference"] is None else f"{one['difference']:+.3g}"
        segments.add_row(escape(one["decision"]), f"{one['rows']:,}", changed, difference)
    return Group(table, *([segments] if shadow["segments"] else []))


def _metric_row(metric: Json, trail: Iterable[Json]) -> Iterable[Text]:
    name = metric["name"]
    yield Text(name)
    yield sparks([*(moment["against"].get(name, 0.0) for moment in trail), metric["worse"]], "red")
    enough = [moment["enough"][name] for moment in trail if name in moment["enough"]]
    yield sparks(enough, "green") if enough else Text("-")
    yield from (Text(_share(metric, arm)) for arm in ("candidate", "stable"))
    yield Text("" if metric["margin95"] is None else f"{100 * metric['margin95']:g} points")


def _bar(done: float, style: str) -> ProgressBar:
    return ProgressBar(
        total=1.0, completed=min(1.0, max(0.0, done)), width=16, complete_style=style, finished_style=style
    )


def _share(metric: Json, arm: str) -> str:
    """What was bad, where its share lies with 95 %, and of how many: ``0.53% (0.2-1.2) of 950``."""
    told = metric[arm]
    if told["low"] is None or not told["requests"]:
        return f"{told['requests']:,.0f}"
    reach = f"{100 * told['low']:.1f}-{100 * told['high']:.1f}"
    return f"{told['bad'] / told['requests']:.2%} ({reach}) of {told['requests']:,.0f}"


def _count(arm: Json) -> str:
    return f"{arm['requests']:,} requests, {arm['errors']:,} failed"


def status_view(status: Json) -> Group:
    """Every model in a table, what is under way below it, then what is wrong."""
    models = Table(box=None, header_style="bold")
    for title in ("model", "channel", "live", "since", "traffic", "rollout", "served"):
        models.add_column(title, overflow="fold")
    for model in status["models"]:
        models.add_row(*map(_cell, _model_row(model)))
    rows: list[Text | Table | Group] = (
        [models] if status["models"] else [Text("nothing is live and nothing is under way")]
    )
    rows += [rollout_view(rollout) for model in status["models"] for rollout in model["rollouts"]]
    rows += [Text(f"problem: {text}", style="yellow") for text in _problems(status)]
    rows.append(Text(_footer(status), style="dim"))
    return Group(*rows)


def _cell(text: str) -> Text:
    return Text(text)


def _model_row(model: Json) -> Iterable[str]:
    yield model["model"]
    yield model["channel"]
    yield f"version {model['version']}" if model["version"] is not None else "nothing"
    yield ago(model["since"])
    weights = model["weights"]
    yield "unknown" if weights is None else ", ".join(f"{share} % {name}" for name, share in weights.items()) or "none"
    yield "; ".join(f"{r['version']} {r['phase']}" for r in model["rollouts"]) or "-"
    yield model["serving"] or "-"


def _problems(status: Json) -> list[str]:
    return [*status["problems"], *(f"{m['model']}: {text}" for m in status["models"] for text in m["problems"])]


def _footer(status: Json) -> str:
    leader = status["controller"]
    parts = [f"controller {leader['holder']}" if leader else "no controller is at work"]
    if status["alias_delay_seconds"] is not None:
        parts.append(f"a moved alias is noticed within {status['alias_delay_seconds']:.0f} s")
    parts += [
        f"{m['model']} {kept['version']} is kept warm for {_left(kept['until'])}"
        for m in status["models"]
        for kept in m["warm"]
    ]
    return "; ".join(parts)


def history_view(events: Iterable[Json]) -> Table:
    table = Table(box=None, header_style="bold")
    for title in ("time", "kind", "version", "rollout", "actor", "what"):
        table.add_column(title, overflow="fold")
    for event in events:
        version = "" if event["version"] is None else str(event["version"])
        cells = [
            _local(event["at"]),
            event["kind"],
            version,
            event["rollout"] or "",
            event["actor"] or "",
            event["text"],
        ]
        table.add_row(*map(_cell, cells))
    return table


def report_view(check: Json) -> Group:
    """One drift check: what it concluded, the numbers behind it, and where its documents are."""
    rows = [Text(f"{_local(check['at'])}  {check['model']} {check['version']}  {check['text']}")]
    rows += [Text(f"  {name}: {_plain(value)}") for name, value in check["data"].items() if name != "documents"]
    rows += [Text(f"  {link}") for link in check["links"].values()]
    return Group(*rows)


def addresses_view(addresses: Json) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, address in addresses.items():
        table.add_row(name, Text(address))
    return table


def checks_view(checks: Iterable[Json]) -> Table:
    table = Table(box=None, header_style="bold")
    for title in ("", "check", "what was found", "what to do"):
        table.add_column(title, overflow="fold")
    for check in checks:
        mark = Text("ok", style="green") if check["ok"] else Text("no", style="red")
        table.add_row(mark, *map(_cell, (check["name"], check["detail"], check["advice"])))
    return table


def compose_view(written: Json) -> Text:
    folder, changed = written["folder"], written["changed"]
    if not changed:
        return Text(f"{folder} is as it should be")
    return Text(f"written in {folder}: {', '.join(changed)}\nstart it there with: docker compose up --build --detach")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _local(at: str) -> str:
    return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ago(at: str | None) -> str:
    return f"{_span(datetime.now(UTC) - datetime.fromisoformat(at))} ago" if at else "-"


def _left(until: str) -> str:
    return _span(datetime.fromisoformat(until) - datetime.now(UTC))


def _span(length: Any) -> str:
    seconds = max(0, int(length.total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
