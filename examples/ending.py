"""After the story: everything ended and removed, or left running and named."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from examples.installation import PROGRAM
from examples.stage import MODEL, Stage

WAIT_SECONDS = 20.0


def clear_away(stage: Stage, home: Path) -> int:
    """Stop the installation and remove `home`; 1 where a process outlived it (it is ended then), else 0."""
    stage.teller.chapter("Everything is stopped and removed")
    stage.teller.say("$ mlflow-promote down")
    stage.installation.stop()
    _, left = psutil.wait_procs(processes_of(home), WAIT_SECONDS)
    for process in left:
        stage.teller.failed(f"still running after the end: {process.pid} {process.name()}")
        process.kill()
    shutil.rmtree(home, ignore_errors=True)
    return 1 if left else 0


def processes_of(home: Path) -> list[psutil.Process]:
    """Processes other than this one whose command or environment names `home`."""
    return [p for p in psutil.process_iter() if p.pid != psutil.Process().pid and _belongs(p, str(home))]


def _belongs(process: psutil.Process, home: str) -> bool:
    try:
        return any(home in word for word in (*process.cmdline(), *process.environ().values()))
    except psutil.Error:
        return False


def tell_where(stage: Stage, home: Path) -> None:
    """Where everything is that was left running, and how to end it."""
    installation, teller = stage.installation, stage.teller
    teller.chapter("Left running, because KEEP is set")
    teller.say(f"MLflow      {installation.mlflow_url}")
    teller.say(f"API         {installation.api_url}/docs")
    teller.say(f"gateway     {installation.gateway_url}/models/{MODEL}/invocations")
    teller.say(f"commands    PROMOTE_HOME={home} {PROGRAM} status")
    teller.say(f"to end it   PROMOTE_HOME={home} {PROGRAM} down; rm -r {home}")
