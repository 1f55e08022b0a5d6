"""`mlflow-promote k8s`: thin, over `pipelines.cluster_install`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.text import Text

from pipelines import cli_views as views
from pipelines.cli_context import AsJson, show
from pipelines.cli_context import settings as own_settings
from pipelines.client import ClientError

if TYPE_CHECKING:
    from types import ModuleType

    from pipelines.settings import Settings

k8s = typer.Typer(
    help="The controller in a Kubernetes cluster: its image, its manifests, in and out.", no_args_is_help=True
)

Image = Annotated[str | None, typer.Option(help="The controller's image with its digest; made where it is not given.")]
Inside = Annotated[
    str | None, typer.Option("--registry-url", help="Where the controller reaches the registry, if not as from here.")
]

Standby = Annotated[
    bool, typer.Option("--standby", help="With a second controller; its volume has to be one that several nodes mount.")
]


@k8s.command("image")
def make_image(*, as_json: AsJson = False) -> None:
    """Make the controller's image and send it to the registry of image_repository; its name with its digest."""
    image = _package().make_image(_settings(), _tell(quiet=as_json))
    show({"image": image}, lambda _: Text(image), as_json=as_json)


@k8s.command()
def render(*, image: Image = None, registry_url: Inside = None, standby: Standby = False) -> None:
    """Print the manifests, for whoever applies them by other means. Secrets are in them."""
    package, settings = _package(), _settings()
    made = image or package.make_image(settings, _tell(quiet=False))
    objects = package.render(settings, made, registry_url, standby=standby)
    sys.stdout.write(yaml.safe_dump_all(objects, sort_keys=False))


@k8s.command()
def install(
    *, image: Image = None, registry_url: Inside = None, standby: Standby = False, as_json: AsJson = False
) -> None:
    """Have the controller run in the cluster with the settings that are in force here, and wait until it answers."""
    package, settings, tell = _package(), _settings(), _tell(quiet=as_json)
    done = package.install(settings, image or package.make_image(settings, tell), registry_url, tell, standby=standby)
    told = f"the controller answers at {done['url']}\nreach it with: {done['forward']}"
    show(done, lambda _: Text(told), as_json=as_json)


@k8s.command()
def uninstall(
    *,
    purge: Annotated[bool, typer.Option("--purge", help="Also remove what the controller kept on its volume.")] = False,
    as_json: AsJson = False,
) -> None:
    """End the controller, the gateway and every revision, traffic included."""
    done = _package().uninstall(_settings(), purge=purge, tell=_tell(quiet=as_json))
    kept = "" if purge else "; the volume with what the controller kept is left"
    show(done, lambda _: Text(f"{len(done['removed'])} objects are removed{kept}"), as_json=as_json)


def _package() -> ModuleType:
    """What it takes is installed only by those who ask for it."""
    try:
        from pipelines import cluster_install
    except ModuleNotFoundError as error:
        hint = "pip install 'mlflow-promote[kubernetes]'"
        raise ClientError("invalid", f"this takes the package {error.name}", hint) from error
    return cluster_install


def _settings() -> Settings:
    from pipelines.settings import Target

    settings = own_settings()
    if settings.target is not Target.KUBERNETES:
        message = f"target: must be kubernetes (PROMOTE_TARGET) for this, not {settings.target.value}"
        raise ClientError("settings", message, "see docs/kubernetes.md")
    return settings


def _tell(*, quiet: bool) -> Callable[[str], None]:
    return (lambda _: None) if quiet else views.print_note
