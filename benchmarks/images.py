"""Images beside those of ``mlflow models build-docker`` of the same model: time to build, size, time to an answer.

Cold: nothing is known but the base image, and every package is downloaded. Warm: another version with the same
requirements follows. Both stand on the same base, made anew for each run, so that no layer of an earlier run is
found again. Needs Docker, and containers that reach a package index, which MLflow's build does and ours does not.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import mlflow
import pandas as pd
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

from registry_hooks.model_version import ModelVersion
from serving.builds import Builds
from serving.docker_engine import Engine
from serving.docker_image import DockerImages, ImageNames
from serving.image import BuildState, ImageRequest, server_digest
from serving.image_context import PORT, Context, Entry
from serving.local_image import LocalImages
from tests.fixtures.engines import url_of
from tests.fixtures.gateway import free_port
from tests.fixtures.revisions import REQUIREMENTS, FolderRegistry

STARTS = 3
BUILD_SECONDS = 1800.0
START_SECONDS = 120.0
ROWS = {"dataframe_records": [{"tenure": 3.0, "charges": 80.0}]}


def measure() -> dict[str, object]:
    name = f"promote-bench-{uuid.uuid4().hex[:8]}"
    engine = Engine(url_of("docker"), name)
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
        models = _models(Path(folder))
        try:
            base = _base(engine, name)
            ours = _measured(engine, _our_builder(engine, name, Path(folder), models), base)
            peer = _measured(engine, _peer_builder(engine, name, models), base)
        finally:
            engine.purge(name)
            engine.remove_image(f"python:{name}")
            engine.close()
    return {
        "mlflow_promote": ours,
        "mlflow_build_docker": peer,
        "ratios": {key: round(peer[key] / ours[key], 1) for key in ours},
        "docker": engine.api.version()["Version"],
    }


Built = Callable[[str], str]
"""Makes the image of one of the models; its id."""


def _measured(engine: Engine, build: Built, base: str) -> dict[str, float]:
    seconds, images = [], []
    for model in ("first", "second"):
        print(f"  {model} version", file=sys.stderr, flush=True)
        began = time.perf_counter()
        images.append(build(model))
        seconds.append(time.perf_counter() - began)
    starts = [_first_answer(engine, images[1]) for _ in range(STARTS)]
    whole, below = (engine.api.inspect_image(image)["Size"] / 1e6 for image in (images[1], base))
    return {
        "cold_build_seconds": round(seconds[0], 1),
        "warm_build_seconds": round(seconds[1], 1),
        "megabytes": round(whole),
        "megabytes_above_the_base": round(whole - below),
        "seconds_to_first_answer": round(statistics.median(starts), 2),
    }


def _models(folder: Path) -> dict[str, Path]:
    """Two versions with the same requirements, the second of 5 MB."""
    rows = pd.DataFrame({"tenure": [1.0, 5.0, 30.0, 60.0] * 5, "charges": [90.0, 70.0, 40.0, 20.0] * 5})
    model = LogisticRegression().fit(rows, rows["tenure"] < 10)
    first, second = folder / "first", folder / "second"
    signature = infer_signature(rows, model.predict(rows))
    mlflow.sklearn.save_model(
        model, str(first), signature=signature, input_example=rows.head(2), pip_requirements=REQUIREMENTS
    )
    shutil.copytree(first, second)
    (second / "weights.bin").write_bytes(os.urandom(5_000_000))
    return {"first": first, "second": second}


def _base(engine: Engine, name: str) -> str:
    """The official slim image with a label of this run."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    context = Context(f"python:{version}-slim", {"opt/run": Entry(name.encode())}, {"run": name})
    return engine.build(context, f"python:{name}", lambda _: None)


def _our_builder(engine: Engine, name: str, folder: Path, models: dict[str, Path]) -> Built:
    os.environ["UV_CACHE_DIR"] = str(folder / "uv")
    images = LocalImages(folder / "home", FolderRegistry(models))
    maker = DockerImages(folder / "home", images, engine, ImageNames(name, base=f"python:{name}"))
    builds = Builds(folder / "home", maker)

    def build(model: str) -> str:
        request = ImageRequest(ModelVersion(model, 1), model, server_digest())
        builds.build(request)
        while (status := builds.find(request)).state is BuildState.BUILDING:
            time.sleep(0.05)
        if status.image is None:
            raise RuntimeError(f"{model}: {status}")
        return status.image

    return build


def _peer_builder(engine: Engine, name: str, models: dict[str, Path]) -> Built:
    """By its function, because its command takes no base image."""

    def build(model: str) -> str:
        tag = f"{name}/peer:{model}"
        told = {"model_uri": str(models[model]), "name": tag, "env_manager": "local", "base_image": f"python:{name}"}
        ran = subprocess.run(
            [sys.executable, "-c", f"import mlflow.models; mlflow.models.build_docker(**{told})"],
            env={**os.environ, "DOCKER_HOST": engine.url},
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
        if ran.returncode:
            raise RuntimeError(f"{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
        return str(engine.image(tag))

    return build


def _first_answer(engine: Engine, image: str) -> float:
    """Seconds from the container's start to its first prediction."""
    port = free_port()
    began = time.perf_counter()
    with _running(engine, image, port), httpx.Client(trust_env=False) as client:
        while time.perf_counter() - began < START_SECONDS:
            try:
                if client.post(f"http://127.0.0.1:{port}/invocations", json=ROWS).is_success:
                    return time.perf_counter() - began
            except httpx.HTTPError:
                time.sleep(0.02)
    raise RuntimeError(f"{image} does not answer")


@contextmanager
def _running(engine: Engine, image: str, port: int) -> Iterator[None]:
    bindings = {f"{PORT}/tcp": ("127.0.0.1", port)}
    started = engine.start(
        f"{engine.installation}-run",
        image,
        network="bridge",
        labels={"role": "bench"},
        environment={"MODEL_NAME": "bench", "MODEL_VERSION": "2", "MLFLOW_MODELS_WORKERS": "1"},
        ports=(PORT,),
        port_bindings=bindings,
    )
    try:
        yield
    finally:
        engine.remove(started)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
