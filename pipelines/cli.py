"""The command line: thin, over the same HTTP API as every other program.

Imports of the heavy parts stand inside the verbs that need them, so that asking for help or a status costs
a fraction of a second.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipelines import cli_views as views
from pipelines.cli_cluster import k8s
from pipelines.cli_context import AsJson, show
from pipelines.cli_context import settings as own_settings
from pipelines.cli_machine import machine
from pipelines.client import Client, ClientError, Json
from pipelines.following import Ending, Exit, follow

_EXITS = (
    "Exit codes: 0 live, or done; 1 rolled back, or it did not work; 2 wrong arguments, or refused; "
    "3 not enough evidence, or paused; 4 halted, a person is needed; 5 the controller or MLflow does not answer; "
    "130 stopped waiting by Ctrl-C."
)

app = typer.Typer(
    name="mlflow-promote",
    help="From 'Production' in the MLflow Model Registry to live traffic, and back.",
    epilog=_EXITS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
drift = typer.Typer(help="Check a model for drift, or read the last check.", no_args_is_help=True)
app.add_typer(drift, name="drift")
app.add_typer(machine)
app.add_typer(k8s, name="k8s")

Model = Annotated[str, typer.Argument(help="Name of the registered model.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end; without, return at once.")]
Url = Annotated[str | None, typer.Option("--url", envvar="PROMOTE_URL", help="Address of the controller.")]
Token = Annotated[str | None, typer.Option("--token", envvar="PROMOTE_TOKEN", help="Bearer token of the controller.")]


@app.callback()
def connect(ctx: typer.Context, url: Url = None, token: Token = None) -> None:
    ctx.obj = lambda: _client(url, token)


def _client(url: str | None, token: str | None) -> Client:
    """The controller that was named, else the one of this installation's settings."""
    if url is not None:
        return Client(url, token)
    settings = own_settings()
    secret = settings.token
    return Client(settings.api_url, token or (secret.get_secret_value() if secret else None))


@app.command()
def promote(
    ctx: typer.Context,
    model: Model,
    version: Annotated[int, typer.Argument(min=1, help="The version that is to be live.")],
    *,
    wait: Wait = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and plan only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version live, through the canary."""
    client = ctx.obj()
    accepted = client.promote(model, version, dry_run=dry_run)
    _carry(client, accepted, wait=wait and not dry_run, as_json=as_json)


@app.command()
def rollback(ctx: typer.Context, model: Model, *, wait: Wait = True, as_json: AsJson = False) -> None:
    """End the rollout in progress; where there is none, go back to the version that was live before."""
    client = ctx.obj()
    _carry(client, client.act("rollback", model), wait=wait, as_json=as_json)


@app.command()
def abort(ctx: typer.Context, model: Model, *, wait: Wait = True, as_json: AsJson = False) -> None:
    """End the rollout in progress and go back."""
    client = ctx.obj()
    _carry(client, client.act("abort", model), wait=wait, as_json=as_json)


@app.command()
def pause(ctx: typer.Context, model: Model, *, as_json: AsJson = False) -> None:
    """Keep the weights of the rollout in progress where they are."""
    client = ctx.obj()
    _carry(client, client.act("pause", model), wait=False, as_json=as_json)


@app.command()
def resume(ctx: typer.Context, model: Model, *, as_json: AsJson = False) -> None:
    """Go on with the paused rollout."""
    client = ctx.obj()
    _carry(client, client.act("resume", model), wait=False, as_json=as_json)


@app.command()
def calibrate(
    ctx: typer.Context,
    model: Model,
    *,
    runs: Annotated[int, typer.Option(min=10, max=10_000, help="How often the record is replayed.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Replay the live version's own requests as two equal arms, and say how often it would be taken back."""
    from pipelines.calibrating import calibrated

    answer = calibrated(ctx.obj().requests(model), runs)
    show(answer, views.calibration_view, as_json=as_json)
    if not all(share["promised"] for share in answer["shares"]):
        raise typer.Exit(Exit.ROLLED_BACK)


@app.command()
def status(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """What is live, what is under way, and what is wrong."""
    show(ctx.obj().status(model), views.status_view, as_json=as_json)


@app.command()
def history(
    ctx: typer.Context,
    model: Model,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many of the newest events.")] = 50,
    as_json: AsJson = False,
) -> None:
    """What happened to a model, and who did it."""
    show(ctx.obj().history(model, limit), lambda found: views.history_view(found["events"]), as_json=as_json)


@app.command()
def labels(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Parquet, CSV or JSON lines: request_id, row, and label or loss.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Say what became known of answers, for canaries whose policy waits for it."""
    from pipelines.label_file import read_labels

    client, kept = ctx.obj(), {"new": 0, "repeated": 0, "awaited": 0}
    with views.counting("labels", quiet=as_json) as tell:
        for batch, rows in read_labels(file):
            answer = client.label(batch)
            kept = {key: count + answer[key] for key, count in kept.items()}
            tell(len(batch), rows)
    show(kept, views.labels_view, as_json=as_json)


@drift.command("run")
def drift_run(ctx: typer.Context, model: Model, *, as_json: AsJson = False) -> None:
    """Check the model for drift now."""
    show(ctx.obj().drift_run(model), views.report_view, as_json=as_json)


@drift.command("report")
def drift_report(ctx: typer.Context, model: Model, *, as_json: AsJson = False) -> None:
    """Show the last check."""
    show(ctx.obj().drift_report(model), views.report_view, as_json=as_json)


def _carry(client: Client, accepted: Json, *, wait: bool, as_json: bool) -> None:
    """Say what was accepted, and where asked for wait for its end; exits with what came of it."""
    if not as_json:
        views.print_accepted(accepted)
    if not wait:
        if as_json:
            views.print_json(accepted)
        return
    _end(_wait(client, accepted, as_json=as_json), accepted, as_json=as_json)


def _wait(client: Client, accepted: Json, *, as_json: bool) -> Ending:
    try:
        with views.progress(quiet=as_json) as tell:
            return follow(client, accepted, tell)
    except KeyboardInterrupt:
        hint = (
            f"'mlflow-promote status {accepted['model']}' shows it, 'mlflow-promote abort {accepted['model']}' ends it"
        )
        views.print_note(f"not waiting any longer; the rollout goes on: {hint}")
        raise typer.Exit(Exit.INTERRUPTED) from None


def _end(ending: Ending, accepted: Json, *, as_json: bool) -> NoReturn:
    if as_json:
        views.print_json({"result": ending.result, "intent": accepted["intent"], "rollout": ending.rollout})
    else:
        views.print_ending(ending)
    raise typer.Exit(ending.code)


def main() -> None:
    """The console command: every expected failure is one line and a hint, never a traceback."""
    try:
        app()
    except ClientError as error:
        if "--json" in sys.argv:
            views.print_json({"error": error.code, "message": str(error), "hint": error.hint})
        else:
            views.print_refusal(str(error), error.hint)
        sys.exit(_code(error))
    except BrokenPipeError:
        sys.exit(Exit.OK)


def _code(error: ClientError) -> Exit:
    if error.retryable:
        return Exit.UNREACHABLE
    return Exit.ROLLED_BACK if error.code in ("refused", "failed") else Exit.USAGE


if __name__ == "__main__":
    main()
