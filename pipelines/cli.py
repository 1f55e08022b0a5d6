"""The command line: thin, over the same HTTP API as every other program.

Imports of the heavy parts stand inside the verbs that need them, so that asking for help or a status costs
a fraction of a second.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.text import Text

from pipelines import cli_views as views
from pipelines.client import Client, ClientError, Json
from pipelines.following import Ending, Exit, follow

if TYPE_CHECKING:
    from pipelines.settings import Settings

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
policy = typer.Typer(help="Check policy files, or print their JSON Schema.", no_args_is_help=True)
hooks = typer.Typer(help="Let MLflow tell the controller of changes at once.", no_args_is_help=True)
app.add_typer(drift, name="drift")
app.add_typer(policy, name="policy")
app.add_typer(hooks, name="hooks")

Model = Annotated[str, typer.Argument(help="Name of the registered model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end; without, return at once.")]
Url = Annotated[str | None, typer.Option("--url", envvar="PROMOTE_URL", help="Address of the controller.")]
Token = Annotated[str | None, typer.Option("--token", envvar="PROMOTE_TOKEN", help="Bearer token of the controller.")]


class Environment(StrEnum):
    """Where a model that is served on its own gets its packages."""

    UV = "uv"
    """An environment of its own, made by uv."""
    LOCAL = "local"
    """The one in which the command runs."""


@app.callback()
def connect(ctx: typer.Context, url: Url = None, token: Token = None) -> None:
    ctx.obj = lambda: _client(url, token)


def _client(url: str | None, token: str | None) -> Client:
    """The controller that was named, else the one of this installation's settings."""
    if url is not None:
        return Client(url, token)
    settings = _settings()
    secret = settings.token
    return Client(settings.api_url, token or (secret.get_secret_value() if secret else None))


def _settings() -> Settings:
    """This installation's settings; whoever wrote them wrong is told as with any other argument."""
    from pipelines.settings import SettingsError, load

    try:
        return load()
    except SettingsError as error:
        raise ClientError("settings", f"the settings cannot be used: {error}", "see docs/settings.md") from error


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
    _show(answer, views.calibration_view, as_json=as_json)
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
    _show(ctx.obj().status(model), views.status_view, as_json=as_json)


@app.command()
def history(
    ctx: typer.Context,
    model: Model,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many of the newest events.")] = 50,
    as_json: AsJson = False,
) -> None:
    """What happened to a model, and who did it."""
    _show(ctx.obj().history(model, limit), lambda found: views.history_view(found["events"]), as_json=as_json)


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
    with views.counting("labels", quiet=as_json) as show:
        for batch, rows in read_labels(file):
            answer = client.label(batch)
            kept = {key: count + answer[key] for key, count in kept.items()}
            show(len(batch), rows)
    _show(kept, views.labels_view, as_json=as_json)


@drift.command("run")
def drift_run(ctx: typer.Context, model: Model, *, as_json: AsJson = False) -> None:
    """Check the model for drift now."""
    _show(ctx.obj().drift_run(model), views.report_view, as_json=as_json)


@drift.command("report")
def drift_report(ctx: typer.Context, model: Model, *, as_json: AsJson = False) -> None:
    """Show the last check."""
    _show(ctx.obj().drift_report(model), views.report_view, as_json=as_json)


def _show(answer: Json, view: Callable[[Json], object], *, as_json: bool) -> None:
    if as_json:
        views.print_json(answer)
    else:
        views.out().print(view(answer))


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
        with views.progress(quiet=as_json) as show:
            return follow(client, accepted, show)
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


@app.command()
def up(
    *,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return as soon as it answers.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start the controller, the gateway and, where no other is named, MLflow."""
    from pipelines import cli_local

    settings = _settings()
    cli_local.refuse_second(settings)
    if detach:
        cli_local.up_detached(settings)
    _show(cli_local.addresses(settings), views.addresses_view, as_json=as_json)
    if not detach:
        cli_local.up(settings)
        views.print_note("the controller has stopped; traffic goes on, and 'mlflow-promote down' ends it")


@app.command()
def down(*, as_json: AsJson = False) -> None:
    """Stop everything that `up` started on this machine, traffic included."""
    from pipelines import cli_local

    ran = cli_local.down(_settings())
    told = "everything is stopped" if ran else "no controller was running; whatever was left is stopped"
    _show({"stopped": True, "controller_ran": ran}, lambda _: Text(told), as_json=as_json)


@app.command("serve")
def serve_model(
    uri: Annotated[
        str, typer.Argument(help="A folder, or what MLflow takes: models:/churn/7, models:/churn@champion.")
    ],
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0 for any free one.")] = 5001,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, max=64, help="Processes that answer.")] = 1,
    native: Annotated[bool, typer.Option("--native", help="Never the compiled model, only the model itself.")] = False,
    grpc_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Also serve gRPC there.")] = None,
    env_manager: Annotated[Environment, typer.Option(help="An own environment by uv, or the one of this command.")] = (
        Environment.UV
    ),
    tracking_uri: Annotated[str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="Where MLflow is.")] = None,
    as_json: AsJson = False,
) -> None:
    """Serve one model here, without registry, controller or gateway, until Ctrl-C."""
    from pipelines.cli_serve import Listening, serve
    from pipelines.serve import Wanted

    os.environ.pop("MLFLOW_TRACKING_URI", None)  # may name a database, which is fine here and nowhere else
    settings = _settings()
    wanted = Wanted(
        uri=uri,
        home=settings.home,
        tracking_uri=tracking_uri or settings.mlflow_uri,
        native=native,
        own=env_manager is Environment.LOCAL,
        compile_seconds=settings.compile_seconds,
    )
    raise typer.Exit(serve(wanted, Listening(host, port, grpc_port, workers), quiet=as_json))


@policy.command("check")
def policy_check(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files or folders; this installation's without.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong in policy files: file, field and what is allowed."""
    from pipelines.policies import check

    if not paths:
        installed = _settings().policies
        paths = [installed] if installed.exists() else []
    wrong = check(paths)
    answer = {"ok": not wrong, "problems": wrong}
    _show(answer, lambda _: Text("\n".join(wrong) or "every policy is valid"), as_json=as_json)
    if wrong:
        raise typer.Exit(Exit.ROLLED_BACK)


@policy.command("schema")
def policy_schema() -> None:
    """Print the JSON Schema of policy files, for editors."""
    from pipelines.policy_file import schema

    views.print_json(schema())


@hooks.command("install")
def hooks_install(
    url: Annotated[str, typer.Argument(help="Address of the controller as MLflow reaches it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Register MLflow's webhooks for the controller, and say what MLflow requires of the address."""
    from pipelines import cli_local
    from registry_hooks.webhook_install import REQUIREMENTS

    if not as_json:
        views.print_note(REQUIREMENTS)
    webhook = cli_local.install_hooks(_settings(), url)
    _show({"webhook": webhook}, lambda _: Text(f"webhook {webhook} is registered"), as_json=as_json)


@app.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Check everything that has to be there, and say what to do."""
    from pipelines.doctor import examine

    checks = [asdict(check) for check in examine(_settings())]
    well = all(check["ok"] for check in checks)
    _show({"ok": well, "checks": checks}, lambda _: views.checks_view(checks), as_json=as_json)
    if not well:
        raise typer.Exit(Exit.ROLLED_BACK)


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
