"""What is in an image is enough: everything imports as in the environment, and the model serves in both ways."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow.dataset as ds
import pytest

from serving.docker_engine import CONFINED, give, runs_as
from serving.environment import variables
from serving.envoy_control import DOMAIN
from serving.image_context import HOME, PORT
from serving.local_image import LocalImage
from tests.fixtures.engines import ENGINES, EngineInstallation
from tests.fixtures.gateway import until

pytestmark = pytest.mark.timeout(900)
"""The first image of all takes minutes on a busy machine."""
Served = tuple[str, Path, str]
"""Address of a server, where it logs, and its container."""
IMPORTS = """
import importlib, importlib.metadata, json, pkgutil, sys, warnings
warnings.simplefilter("ignore")
import serving, serving.runtime
names = [name for name in importlib.metadata.packages_distributions() if name.isidentifier() and name[:2] != "__"]
names += [f"serving.runtime.{module.name}" for module in pkgutil.iter_modules(serving.runtime.__path__)]
names += ["mlflow.pyfunc", "mlflow.sklearn", "pyarrow.dataset", "pyarrow.fs", "pyarrow.parquet"]
def imported(name):
    try:
        importlib.import_module(name)
    except BaseException as error:
        return type(error).__name__
    return "yes"
print("found", json.dumps({name: imported(name) for name in sorted(names)}))
"""
SLOW = """
import importlib.util, json, os, sys, warnings
warnings.simplefilter("ignore")
import mlflow.pyfunc, pandas
import serving.runtime.native_model, serving.runtime.open_inference_grpc, serving.prediction_log_process
model = mlflow.pyfunc.load_model(sys.argv[1])
model.predict(pandas.DataFrame({"tenure": [1.0], "charges": [2.0]}))
files = {name: module.__file__ for name, module in sys.modules.items() if getattr(module, "__file__", None)}
packages = {name: file for name, file in files.items() if "/site-packages/" in file and file.endswith(".py")}
assert len(packages) > 1000
cached = importlib.util.cache_from_source
print("found", json.dumps(sorted(name for name, file in packages.items() if not os.path.exists(cached(file)))))
"""


@pytest.fixture(params=ENGINES, scope="module")
def there(request: pytest.FixtureRequest) -> EngineInstallation:
    installation: EngineInstallation = request.getfixturevalue(f"{request.param}_installation")
    return installation


def told(there: EngineInstallation, code: str, *arguments: str) -> object:
    """What Python in a container of the image finds."""
    api = there.engine.api
    command = ["-c", code, *arguments]
    alone = api.create_host_config(network_mode="none")
    asked = api.create_container(
        there.image("churn"), entrypoint=[f"{HOME}/bin/python"], command=command, host_config=alone
    )["Id"]
    try:
        api.start(asked)
        api.wait(asked)
        lines = until(lambda: [line for line in there.engine.logs(asked, 1000) if line.startswith("found ")], 20)
        return json.loads(lines[0].removeprefix("found "))
    finally:
        there.engine.remove(asked)


def local_image(there: EngineInstallation) -> LocalImage:
    there.image("churn")
    found = [LocalImage.find(there.home, place.name) for place in (there.home / "images").glob("[!.]*")]
    return next(one for one in found if one and "sklearn" in (one.model / "MLmodel").read_text())


def test_every_package_is_imported_as_in_the_environment(there: EngineInstallation, tmp_path: Path) -> None:
    image = local_image(there)
    told_here = subprocess.run(
        [str(image.python), "-B", "-c", IMPORTS],
        cwd=tmp_path,
        env={**variables(image.server), "PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = json.loads(told_here.stdout.partition("found ")[2])
    assert told(there, IMPORTS) == here
    for needed in (
        "mlflow.pyfunc",
        "mlflow.sklearn",
        "onnxruntime",
        "serving.runtime.native_worker",
        "sklearn",
        "uvloop",
    ):
        assert here[needed] == "yes"


def test_whatever_a_model_imports_to_serve_is_compiled(there: EngineInstallation) -> None:
    assert told(there, SLOW, f"{HOME}/model") == []


@pytest.fixture(params=[(), ("--native",)], ids=["compiled", "native"])
def served(there: EngineInstallation, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    """A server in a container."""
    give(tmp_path)
    name = f"{there.network}-contents-{uuid.uuid4().hex[:8]}"
    container = there.engine.start(
        name,
        there.image("churn"),
        network=there.network,
        aliases=[f"{name}.{DOMAIN}"],
        labels={"role": "test"},
        command=request.param,
        environment={"PREDICTION_LOG": "/log", "MODEL_NAME": "churn", "MODEL_VERSION": "1", "REVISION": "one"},
        user=runs_as(),
        stop_seconds=20,
        tmpfs={"/tmp": "size=64m,mode=1777"},
        binds={str(tmp_path): {"bind": "/log", "mode": "rw"}},
        **CONFINED,
    )
    yield f"http://{name}.{DOMAIN}:{PORT}", tmp_path, container
    there.engine.remove(container)


def test_it_answers_and_logs(there: EngineInstallation, served: Served) -> None:
    address, log, container = served
    rows = {"dataframe_split": {"columns": ["tenure", "charges"], "data": [[1.0, 90.0], [60.0, 20.0]]}}
    door = httpx.Proxy(there.door.url, headers=dict(there.door.headers))
    with httpx.Client(proxy=door, trust_env=False, timeout=60) as client:
        until(lambda: client.get(f"{address}/v2/health/ready").status_code == 200, 280)
        answer = client.post(f"{address}/invocations", json=rows)
    assert (answer.status_code, answer.json()) == (200, {"predictions": [True, False]})
    there.engine.stop(container, 20)
    logged = ds.dataset(log, format="parquet").to_table().to_pylist()
    assert [row["input.tenure"] for row in logged] == [1.0, 60.0]


def test_what_was_left_out_is_not_there(there: EngineInstallation) -> None:
    code = (
        "import importlib.util as u, json, sys; print('found', json.dumps([n for n in sys.argv[1:] if u.find_spec(n)]))"
    )
    unwanted = ("pyarrow.flight", "pandas.tests", "onnxruntime.quantization", "google.auth", "flask")
    assert told(there, code, "pyarrow.parquet", *unwanted) == ["pyarrow.parquet"]
