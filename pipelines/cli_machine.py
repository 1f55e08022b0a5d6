"""The verbs that work on this machine, without asking a controller: `up`, `down`, `serve`, images, policies, checks."""

from __future__ import annotations

import os
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from pipelines import cli_views as views
from pipelines.cli_context import AsJson, show
from pipelines.cli_context import settings as own_settings
from pipelines.client import ClientError
from pipelines.following import Exit

if TYPE_CHECKING:
    from pipelines.abilities import RouterKind

machine = typer.Typer()
"""Its verbs stand at the top, beside those that ask a controller."""
policy = typer.Typer(help="Check policy files, or print their JSON Schema.", no_args_is_help=True)
hooks = typer.Typer(help="Let MLflow tell the controller of changes at once.", no_args_is_help=True)
images = typer.Typer(help="List the images of this installation, or remove those that nothing needs.")
machine.add_typer(policy, name="policy")
machine.add_typer(hooks, name="hooks")
machine.add_typer(images, name="images")


class Environment(StrEnum):
    """Where a model that is served on its own gets its packages."""

    UV = "uv"
    """An environment of its own, made by uv."""
    LOCAL = "local"
    """The one in which the command runs."""


@machine.command()
def up(
    *,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return as soon as it answers.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start the controller, the gateway and, where no other is named, MLflow."""
    from pipelines import cli_local

    settings = own_settings()
    cli_local.refuse_second(settings)
    if detach:
        cli_local.up_detached(settings)
    show(cli_local.addresses(settings), views.addresses_view, as_json=as_json)
    if not detach:
        cli_local.up(settings)
        views.print_note("the controller has stopped; traffic goes on, and 'mlflow-promote down' ends it")


@machine.command()
def down(
    *,
    purge: Annotated[bool, typer.Option("--purge", help="Also remove its images and network from the engine.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop everything that `up` started, traffic included."""
    from pipelines import cli_local

    ran = cli_local.down(own_settings(), purge=purge)
    told = "everything is stopped" if ran else "no controller was running; whatever was left is stopped"
    show({"stopped": True, "controller_ran": ran}, lambda _: Text(told), as_json=as_json)


@machine.command("serve")
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
    settings = own_settings()
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
        installed = own_settings().policies
        paths = [installed] if installed.exists() else []
    wrong = check(paths, _router_here())
    answer = {"ok": not wrong, "problems": wrong}
    show(answer, lambda _: Text("\n".join(wrong) or "every policy is valid"), as_json=as_json)
    if wrong:
        raise typer.Exit(Exit.ROLLED_BACK)


def _router_here() -> RouterKind:
    """This installation's; where its settings cannot be read it is our own, for files can be checked anywhere."""
    from pipelines.abilities import RouterKind

    try:
        return own_settings().router
    except ClientError:
        return RouterKind.ENVOY


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
    webhook = cli_local.install_hooks(own_settings(), url)
    show({"webhook": webhook}, lambda _: Text(f"webhook {webhook} is registered"), as_json=as_json)


@images.callback(invoke_without_command=True)
def images_list(
    ctx: typer.Context,
    *,
    model: Annotated[str | None, typer.Option("--model", help="Only this model's.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the images of this installation and what they stand on, and why each stays."""
    if ctx.invoked_subcommand is None:
        from pipelines import cli_images, cli_local

        show(cli_local.images(own_settings(), model), cli_images.images_view, as_json=as_json)


@images.command("clean")
def images_clean(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what no rollout, no live or warm revision and none of the last versions needs."""
    from pipelines import cli_images, cli_local

    answer = cli_local.clean(own_settings(), dry_run=dry_run)
    show(answer, cli_images.cleaned_view, as_json=as_json)
    if answer["refused"]:
        raise typer.Exit(Exit.ROLLED_BACK)


@machine.command()
def sign(
    image: Annotated[str, typer.Argument(help="As the tag promote.image names it.")], *, as_json: AsJson = False
) -> None:
    """Sign an image that is there already with the key of the settings, so that it may start."""
    from pipelines import cli_local

    key = cli_local.sign(own_settings(), image)
    show({"image": image, "key": key}, lambda _: Text(f"{image} is signed by the key {key[:16]}"), as_json=as_json)


@machine.command("compose")
def write_compose(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")] = Path("mlflow-promote"),
    *,
    data: Annotated[Path | None, typer.Option(help="Where everything is kept; 'data' in the folder without.")] = None,
    socket: Annotated[Path, typer.Option(help="The Docker Engine's socket.")] = Path("/var/run/docker.sock"),
    as_json: AsJson = False,
) -> None:
    """Write what `docker compose` needs to run all of it on this server; what is in its .env stays."""
    from pipelines.compose_folder import write

    show(write(folder, data, socket), views.compose_view, as_json=as_json)


@machine.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Check everything that has to be there, and say what to do."""
    from pipelines.doctor import examine

    checks = [asdict(check) for check in examine(own_settings())]
    well = all(check["ok"] for check in checks)
    show({"ok": well, "checks": checks}, lambda _: views.checks_view(checks), as_json=as_json)
    if not well:
        raise typer.Exit(Exit.ROLLED_BACK)
