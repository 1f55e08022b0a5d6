"""``mlflow-promote serve``: any MLflow model, one command, nothing left behind."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pandas as pd
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import DatasetInput

from pipelines import serve_process
from pipelines.cli_serve import curl, example
from registry_hooks.model_uri import ModelUris
from registry_hooks.registry import RegistryError
from serving.runtime.plan import Column, Plan, Tensor
from tests.contract.serve_command import SECONDS, Serving, command, environment, gone, run, serving
from tests.fixtures.registry import MlflowServer
from tests.fixtures.revisions import with_kept_environments

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation's home, in which the tests of this file find what earlier ones built."""
    return with_kept_environments(tmp_path_factory.mktemp("serve") / "home")


@pytest.fixture(scope="module")
def light(home: Path, light_model: Path) -> Iterator[Serving]:
    with serving(home, light_model) as served:
        yield served
        assert served.end() == 0


def test_a_folder_is_served_under_its_name(light: Serving) -> None:
    assert (light.told["model"], light.told["version"]) == ("light", None)
    answer = light.ask(light.told["example"])
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["predictions"]) == 1
    assert httpx.get(f"{light.url}/v2/models/light/ready").status_code == 200


def test_it_says_whether_the_fast_path_is_on(light: Serving) -> None:
    assert light.told["compiled"], light.told["why"]
    assert light.told["rows"] > 0
    assert light.told["warning"] == ""


def test_a_second_start_finds_what_the_first_one_built(home: Path, light: Serving, light_model: Path) -> None:
    with serving(home, light_model) as again:
        assert {**again.told, "url": ""} == {**light.told, "url": ""}
        assert again.end(signal.SIGINT) == 0
    assert not set(again.log.read_text().splitlines()) & {"installing", "compiling"}


def test_people_are_told_what_happens_and_how_to_ask(home: Path, light: Serving, light_model: Path) -> None:
    asked = command(light_model, "--port", "0")
    with subprocess.Popen(
        asked, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(4)]
        assert said[0].startswith("light is served at http://127.0.0.1:")
        assert said[1].startswith("fast path on: ")
        tried = subprocess.run(shlex.split(said[2].removeprefix("try: ")), capture_output=True, text=True, timeout=30)
        assert "predictions" in tried.stdout, tried
        process.terminate()
        assert process.wait(SECONDS) == 0


def test_the_model_itself_is_served_where_that_is_asked_for(home: Path, light_model: Path, light: Serving) -> None:
    with serving(home, light_model, "--native") as native:
        assert (native.told["compiled"], native.told["why"]) == (False, "it was asked for")
        body = native.told["example"]
        assert native.ask(body).json()["predictions"] == light.ask(body).json()["predictions"]
        assert native.end() == 0


def test_several_processes_may_answer(home: Path, light_model: Path, light: Serving) -> None:
    with serving(home, light_model, "--workers", "2") as several:
        assert len(several.family()) > len(light.family())
        assert several.ask(several.told["example"]).status_code == 200
        assert several.end() == 0


def test_it_may_be_served_in_the_environment_of_the_command(home: Path, light_model: Path) -> None:
    with serving(home, light_model, "--env-manager", "local") as own:
        assert own.ask(own.told["example"]).status_code == 200
        assert own.told["compiled"], own.told["why"]
        assert own.end() == 0


def test_a_model_without_signature_is_served_with_a_warning(home: Path, bare_model: Path) -> None:
    with serving(home, bare_model) as bare:
        assert "no signature" in bare.told["warning"]
        assert bare.ask({"dataframe_records": [{"tenure": 1.0}]}).status_code == 200
        assert bare.end() == 0


def test_nothing_is_left_when_the_command_is_killed(home: Path, light_model: Path) -> None:
    with serving(home, light_model) as killed:
        family = killed.family()
        killed.process.kill()
        assert gone(family)


@pytest.fixture(scope="module")
def registered(mlflow_server: MlflowServer, light_model: Path) -> str:
    """Version 1 of ``served`` is the champion; the URI of the model of its run."""
    client = MlflowClient(mlflow_server.uri, mlflow_server.uri)
    run = client.create_run("0").info.run_id
    client.log_artifacts(run, str(light_model), "model")
    client.create_registered_model("served")
    client.create_model_version("served", f"runs:/{run}/model", run)
    client.set_registered_model_alias("served", "champion", "1")
    return f"runs:/{run}/model"


def test_a_registered_version_is_downloaded_once(home: Path, mlflow_server: MlflowServer, registered: str) -> None:
    del registered
    where = {"MLFLOW_TRACKING_URI": mlflow_server.uri}
    with serving(home, "models:/served@champion", more=where) as first:
        assert (first.told["model"], first.told["version"]) == ("served", 1)
        answer = first.ask(first.told["example"])
        assert (answer.status_code, answer.headers["x-model-version"]) == (200, "1")
        assert first.end() == 0
    ended = run_to_its_end(home, "models:/served/1", "--tracking-uri", mlflow_server.uri)
    assert "downloading" not in ended
    assert "starting the model server" in ended


def run_to_its_end(home: Path, *words: str) -> str:
    """What the command says until its server is ready and it is ended."""
    asked = command(*words, "--port", "0")
    with subprocess.Popen(
        asked, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        said = process.communicate(timeout=SECONDS)[1]
        assert process.returncode == 0, said
        return str(said)


@pytest.mark.filterwarnings("ignore:The specified dataset source can be interpreted:UserWarning")
def test_the_data_set_of_the_models_run_is_part_of_the_proof(
    home: Path, mlflow_server: MlflowServer, churn_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "customers.csv").write_text("tenure,charges,left\n3,80.5,1\n400,-1,0\n")
    client = MlflowClient(mlflow_server.uri, mlflow_server.uri)
    run = client.create_run("0").info.run_id
    frame = pd.read_csv(tmp_path / "customers.csv")
    data = from_pandas(frame, source=str(tmp_path / "customers.csv"))._to_mlflow_entity()
    client.log_inputs(run, [DatasetInput(data)])
    of_run = shutil.copytree(churn_model, tmp_path / "churn")
    with (of_run / "MLmodel").open("a") as about:
        about.write(f"run_id: {run}\n")
    with serving(home, of_run, "--tracking-uri", mlflow_server.uri) as served:
        assert "2 of them of its data set" in served.told["why"]
        assert served.end() == 0


def test_a_logged_model_is_downloaded_by_its_id(mlflow_server: MlflowServer, bare_model: Path, tmp_path: Path) -> None:
    client = MlflowClient(mlflow_server.uri, mlflow_server.uri)
    logged = client.create_logged_model("0", "bare")
    client.log_model_artifacts(logged.model_id, str(bare_model))
    uris = ModelUris(mlflow_server.uri)
    named = uris.find(f"models:/{logged.model_id}")
    assert named.lasting
    assert (uris.download(named, tmp_path) / "model.skops").read_bytes() == (bare_model / "model.skops").read_bytes()


def test_the_model_of_a_run_is_served(home: Path, mlflow_server: MlflowServer, registered: str) -> None:
    with serving(home, registered, "--tracking-uri", mlflow_server.uri) as served:
        assert (served.told["model"], served.told["version"]) == ("model", None)
        assert served.ask(served.told["example"]).status_code == 200
        assert served.end() == 0


def refused(code: int, home: Path, *words: str | Path) -> str:
    """The one line, and the hint, with which the command gives up."""
    ended = run(home, *words)
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr
    lines = ended.stderr.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1
    return ended.stderr


def test_what_is_no_model_is_refused(home: Path, tmp_path: Path) -> None:
    assert "is no folder" in refused(2, home, tmp_path / "nothing")
    assert "holds no MLmodel" in refused(2, home, tmp_path)


def test_what_mlflow_does_not_have_is_refused(home: Path, mlflow_server: MlflowServer) -> None:
    assert "models:/nobody/7" in refused(2, home, "models:/nobody/7", "--tracking-uri", mlflow_server.uri)
    assert "models:/a/b/c" in refused(2, home, "models:/a/b/c", "--tracking-uri", mlflow_server.uri)


@pytest.mark.parametrize(
    ("uri", "exact"),
    [
        ("models:/served/1", "models:/served/1"),
        ("models:/served@champion", "models:/served/1"),
        ("models:/served/latest", "models:/served/1"),
        ("models:/served/None", "models:/served/1"),
        ("models:/m-0123", "models:/m-0123"),
        ("s3://bucket/models/churn/", "s3://bucket/models/churn/"),
    ],
)
def test_a_uri_stands_for_something_exact(mlflow_server: MlflowServer, registered: str, uri: str, exact: str) -> None:
    del registered
    assert ModelUris(mlflow_server.uri).find(uri).uri == exact


def test_what_a_uri_stands_for_is_of_a_run(mlflow_server: MlflowServer, registered: str) -> None:
    uris, run = ModelUris(mlflow_server.uri), registered.split("/")[1]
    assert [uris.find(uri).run_id for uri in (registered, "s3://bucket/models/churn")] == [run, None]
    assert uris.find("models:/served@champion").run_id == run


@pytest.mark.parametrize("uri", ["models:/nobody@champion", "models:/served@nobody", "models:/served/Staging"])
def test_a_uri_that_stands_for_nothing_is_an_error(mlflow_server: MlflowServer, registered: str, uri: str) -> None:
    del registered
    with pytest.raises(RegistryError) as refused:
        ModelUris(mlflow_server.uri).find(uri)
    assert not refused.value.retryable


def test_the_model_of_a_run_that_is_not_there_is_an_error(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    uris = ModelUris(mlflow_server.uri)
    with pytest.raises(RegistryError) as refused:
        uris.download(uris.find("runs:/0123456789abcdef0123456789abcdef/model"), tmp_path)
    assert not refused.value.retryable


def test_an_mlflow_that_does_not_answer_is_another_matter(home: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert "models:/churn/1" in refused(5, home, "models:/churn/1", "--tracking-uri", away)


def test_a_port_in_use_is_told_at_once(home: Path, light_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port} cannot be had" in refused(2, home, light_model, "--port", port)
        grpc = refused(2, home, light_model, "--port", "0", "--grpc-port", port)
        assert f"127.0.0.1:{port} cannot be had" in grpc


def test_requirements_that_cannot_be_met_are_told(home: Path, churn_model: Path, tmp_path: Path) -> None:
    wrong = shutil.copytree(churn_model, tmp_path / "wrong")
    (wrong / "requirements.txt").write_text("mlflow\nfastapi==0.50.0\n")
    assert "fastapi==0.50.0" in refused(1, home, wrong, "--port", "0")


def test_a_model_that_cannot_be_loaded_is_told(home: Path, churn_model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(churn_model, tmp_path / "broken")
    (broken / "model.skops").write_bytes(b"no model")
    assert "cannot be loaded" in refused(1, home, broken, "--port", "0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_it_serves_ends_the_build(home: Path, churn_model: Path, tmp_path: Path, number: int) -> None:
    slow = shutil.copytree(churn_model, tmp_path / "slow")
    (slow / "MLmodel").write_text((slow / "MLmodel").read_text().replace("mlflow.sklearn", "sleeps\n    code: code"))
    (slow / "code").mkdir()
    (slow / "code" / "sleeps.py").write_text("import time\ntime.sleep(600)\n")
    with subprocess.Popen(
        command(slow, "--port", "0"), env=environment(home), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("loading the model"):
                break
        assert line.startswith("loading the model")
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, number)
        assert process.wait(SECONDS) == 130
        assert gone(family)
    assert not list((home / "building").iterdir())


def test_an_address_is_one_that_this_machine_can_ask() -> None:
    with serve_process.bound("0.0.0.0", 0) as listener:
        assert serve_process.url(listener).startswith("http://127.0.0.1:")


def test_a_model_without_example_is_asked_with_a_made_up_row(tmp_path: Path) -> None:
    columns = (Column("a", "long"), Column("b", "string"), Column("c", "string", categories=("x", "y")))
    Plan("sklearn", True, columns).write(tmp_path)
    assert example(tmp_path, tmp_path) == {"dataframe_records": [{"a": 1, "b": "a", "c": "x"}]}
    Plan("sklearn", True, tensors=(Tensor("", "float32", (-1, 2)),)).write(tmp_path)
    assert example(tmp_path, tmp_path) == {"inputs": [[1.0, 1.0]]}


def test_a_long_example_is_named_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "an example.json"
    file.write_text("{}")
    assert f"-d @'{file}'" in curl("http://127.0.0.1:1", {"inputs": [1.0] * 1000}, file)
    assert "it'\"'\"'s" in curl("http://127.0.0.1:1", {"inputs": ["it's"]}, file)
