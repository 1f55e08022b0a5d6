"""The verbs that work on this machine's own installation, without asking a controller.

`up --detach` starts the same command in a session of its own, so that what runs is the same either way; both
leave the record that `down` looks for.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipelines import wiring
from pipelines.cleaning import Cleaning
from pipelines.cli_images import image_row
from pipelines.client import Client, ClientError, Json
from pipelines.doctor import check_port
from pipelines.keys import read_keys
from pipelines.mlflow_server import MlflowServerError
from pipelines.refusal import one_line
from pipelines.settings import Settings, SettingsError, Target
from pipelines.store import StoreError
from registry_hooks.registry import RegistryError
from registry_hooks.webhook_install import install
from serving.gateway import GatewayError
from serving.image import ImageError
from serving.local_image import LocalImage
from serving.processes import Process, adopt, launch
from serving.router import RouterError
from serving.signing import Signatures
from serving.stock import Removal
from serving.target import TargetError

_HEALTHY_SECONDS = 180.0
"""How long a detached controller may take to answer: the first start also makes MLflow's database."""
_END_SECONDS = 45.0
"""How long a controller may take to stop; longer than a request to the registry or the gateway."""
_FAILURES = (
    SettingsError,
    MlflowServerError,
    StoreError,
    RegistryError,
    RouterError,
    TargetError,
    GatewayError,
    ImageError,
    OSError,
)


def addresses(settings: Settings) -> Json:
    """Where everything of the installation listens."""
    return {
        "mlflow": settings.mlflow_uri or f"http://127.0.0.1:{settings.mlflow_port}",
        "gateway": f"{settings.gateway_address}/models/<model>/invocations",
        "controller": settings.api_url,
        "log": str(_log(settings)),
    }


def refuse_second(settings: Settings) -> None:
    """One controller per port. Raises `ClientError`."""
    if _answers(settings):
        hint = "'mlflow-promote status' asks it, 'mlflow-promote down' ends it"
        raise ClientError("running", f"a controller answers at {settings.api_url} already", hint)
    port = check_port("controller", settings.api_host, settings.api_port, None)
    if not port.ok:
        raise ClientError("port", port.detail, port.advice)


def up(settings: Settings) -> None:
    """Run the controller here until it is asked to stop; traffic goes on afterwards. Raises `ClientError`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "alembic.runtime.migration", "apscheduler"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _remember(wiring.controller_record(settings))
    with _told("the controller did not start"):
        wiring.run(settings, stop)


def up_detached(settings: Settings) -> None:
    """Start the controller in a session of its own and wait until it answers. Raises `ClientError`."""
    log = _log(settings)
    with _told("the controller could not be started"):
        process = launch(
            [sys.executable, "-m", "pipelines.cli", "up"], record=wiring.controller_record(settings), log=log
        )
    deadline = time.monotonic() + _HEALTHY_SECONDS
    while not _answers(settings):
        if not process.alive():
            raise ClientError("failed", f"the controller ended at once: {_last_words(log)}", f"all of it is in {log}")
        if time.monotonic() > deadline:
            raise ClientError("controller_unreachable", "the controller does not answer", f"see {log}")
        time.sleep(0.2)


def down(settings: Settings, *, purge: bool = False) -> bool:
    """End the controller, the gateway, the revisions and the embedded MLflow; whether a controller ran."""
    controller = adopt(wiring.controller_record(settings))
    ran = controller is not None and controller.alive()
    if controller is not None and ran:
        _ask_to_end(controller)
    with _told("not everything could be stopped"):
        wiring.stop(settings, purge=purge)
    return ran


def install_hooks(settings: Settings, url: str) -> str:
    """Have MLflow send its webhooks to the controller at `url`; the webhook's id. Raises `ClientError`."""
    if settings.webhook_secret is None:
        hint = "set PROMOTE_WEBHOOK_SECRET for the controller and for this command"
        raise ClientError("invalid", "the settings have no webhook_secret, so webhooks would be refused", hint)
    uri = str(addresses(settings)["mlflow"])
    with _told("MLflow did not take the webhook"):
        return install(uri, f"{url.rstrip('/')}/hooks/mlflow", settings.webhook_secret.get_secret_value())


def images(settings: Settings, model: str | None) -> Json:
    """Every image and what it stands on, and why it stays; of one model where it is named. Raises `ClientError`."""
    with _told("the images cannot be listed"), wiring.cleaning_of(settings) as cleaning:
        kept = cleaning.look()
    shown = [one for one in kept if model is None or one.stored.of(model)]
    return {"images": [{**image_row(one.stored), "goes": not one.why, "why": one.why} for one in shown]}


def clean(settings: Settings, *, dry_run: bool) -> Json:
    """Remove what nothing needs, or tell what would go. Raises `ClientError`."""
    with _told("the images cannot be cleaned"), wiring.cleaning_of(settings) as cleaning:
        done = _going(cleaning) if dry_run else cleaning.clean()
    gone = [one.stored for one in done if not one.trouble]
    return {
        "dry_run": dry_run,
        "removed": [image_row(one) for one in gone],
        "bytes": sum(one.size for one in gone),
        "refused": [{**image_row(one.stored), "why": one.trouble} for one in done if one.trouble],
    }


def _going(cleaning: Cleaning) -> tuple[Removal, ...]:
    """What would come of cleaning, as far as nothing is refused."""
    return tuple(Removal(one.stored) for one in cleaning.look() if not one.why)


def sign(settings: Settings, image: str) -> str:
    """Sign an image that is there already, whoever made it; the id of the key. Raises `ClientError`."""
    with _told("the image was not signed"):
        key = read_keys(settings).signing
        if key is None:
            hint = "set PROMOTE_SIGNING_KEY for this command"
            raise ClientError("invalid", "the settings have no signing_key to sign with", hint)
        if settings.target is Target.LOCAL:
            _check_image(settings.home, image)
        Signatures(settings.home).keep(key.sign(image))
    return key.public.id


def _check_image(home: Path, image: str) -> None:
    """On this machine nothing else sees to it that an image is what its digest says."""
    found = LocalImage.find(home, image)
    if found is None:
        hint = "the tag promote.image of the version names it"
        raise ClientError("invalid", f"there is no image {image!r} below {home}", hint)
    if wrong := found.changed:
        hint = f"remove {home / 'images' / image} and promote the version again, which makes it anew"
        raise ClientError("failed", f"the image is not what its digest says: {wrong}", hint)


def _answers(settings: Settings) -> bool:
    try:
        Client(settings.api_url).health()
    except ClientError:
        return False
    return True


def _ask_to_end(controller: Process) -> None:
    """A controller in the foreground of a terminal or of make leads no process group, so it is asked by its pid."""
    os.kill(controller.pid, signal.SIGTERM)
    controller.wait(_END_SECONDS)


def _remember(record: Path) -> None:
    """Leave the record of this very process, as `serving.processes.launch` would."""
    this = psutil.Process()
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"pid": this.pid, "create_time": this.create_time(), "command": this.cmdline()}))


def _log(settings: Settings) -> Path:
    return settings.home / "controller.log"


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "it left no word")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Expected failures of the parts as one line."""
    try:
        yield
    except _FAILURES as error:
        hint = "'mlflow-promote doctor' checks everything that has to be there"
        code = "registry_unreachable" if isinstance(error, RegistryError) and error.retryable else "failed"
        raise ClientError(code, f"{what}: {one_line(error)}", hint) from error
