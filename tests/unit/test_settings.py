"""Where settings come from, which win, and what is said about mistakes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from pipelines.policy import Policy
from pipelines.settings import Settings, SettingsError, load

TOKEN = "a token that nobody guesses"
A_STORE = "the http, https, s3, gs, abfs or az URL of a store, without credentials"
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variables of whoever runs the tests, and a home of the test's own."""
    for name in [name for name in os.environ if name.upper().startswith(("PROMOTE_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PROMOTE_HOME", str(tmp_path))


def refused() -> list[str]:
    with pytest.raises(SettingsError) as error:
        load()
    return str(error.value).splitlines()


def test_the_defaults_need_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load()
    assert (settings.home, settings.policies) == (tmp_path, tmp_path / "policies")
    assert settings.store == f"sqlite:///{tmp_path}/store.db"
    assert settings.predictions == str(tmp_path / "predictions")
    assert settings.mlflow_uri is None
    assert settings.default_policy == Policy()
    assert settings.api_url == "http://127.0.0.1:8400"
    monkeypatch.delenv("PROMOTE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert load().home == tmp_path / "me" / ".local" / "state" / "mlflow-promote"


def test_the_file_in_the_home_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(
        "poll_seconds: 2m\nmanage_models_without_policy: false\nnotify: [json://x]\n"
    )
    settings = load()
    assert (settings.poll_seconds, settings.default_policy, settings.notify) == (120, None, ("json://x",))


def test_the_file_that_is_named_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMOTE_CONFIG", str(tmp_path / "other.yaml"))
    monkeypatch.delenv("PROMOTE_HOME")
    (tmp_path / "other.yaml").write_text("home: there\npolicies: mine\nthreads: 3\n")
    settings = load()
    assert (settings.home, settings.policies, settings.threads) == (tmp_path / "there", tmp_path / "mine", 3)
    assert settings.store == f"sqlite:///{tmp_path}/there/store.db"


def test_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.yaml").write_text(
        "threads: many\nnotify: [json://x]\napi_port: 1234\nmlflow_uri: http://file\n"
    )
    monkeypatch.setenv("PROMOTE_THREADS", "4")
    monkeypatch.setenv("PROMOTE_NOTIFY", "slack://a, https://b")
    monkeypatch.setenv("PROMOTE_POLL_SECONDS", "500ms")
    monkeypatch.setenv("PROMOTE_POLICIES", str(tmp_path / "mine"))
    monkeypatch.setenv("PROMOTE_MANAGE_MODELS_WITHOUT_POLICY", "false")
    monkeypatch.setenv("PROMOTE_MLFLOW_URI", "http://variable/")
    settings = load()
    assert (settings.threads, settings.notify, settings.poll_seconds) == (4, ("slack://a", "https://b"), 0.5)
    assert (settings.policies, settings.api_port, settings.default_policy) == (tmp_path / "mine", 1234, None)
    assert settings.mlflow_uri == "http://variable"


@pytest.mark.parametrize("variable", ["PROMOTE_MLFLOW_URI", "MLFLOW_TRACKING_URI"])
def test_mlflow_is_found_as_its_own_clients_find_it(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "http://mlflow:5000/")
    assert load().mlflow_uri == "http://mlflow:5000"


def test_empty_variables_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.yaml").write_text("threads: 3\n")
    monkeypatch.setenv("PROMOTE_THREADS", "")
    assert load().threads == 3


@pytest.mark.parametrize(
    ("variable", "given", "said"),
    [
        ("PROMOTE_THREADS", "0", "must be greater than or equal to 1, not '0'"),
        ("PROMOTE_THREADS", "many", "must be a valid integer, not 'many'"),
        ("PROMOTE_API_PORT", "70000", "must be less than or equal to 65535, not '70000'"),
        ("PROMOTE_POLL_SECONDS", "0", "must be greater than 0, not '0'"),
        ("PROMOTE_POLL_SECONDS", "soon", "must be seconds or a duration such as 30s, 10m or 24h, not 'soon'"),
        ("PROMOTE_POLL_SECONDS", "inf", "must be a finite number, not 'inf'"),
        ("PROMOTE_TARGET", "moon", "must be 'local', 'docker', 'podman' or 'kubernetes', not 'moon'"),
        ("PROMOTE_MLFLOW_URI", "sqlite:///x", "must be the http:// or https:// address of an MLflow server"),
        ("MLFLOW_TRACKING_URI", "databricks", "must be the http:// or https:// address of an MLflow server"),
        ("PROMOTE_BAKED_MODEL_MB", "-1", "must be greater than or equal to 0, not '-1'"),
        ("PROMOTE_ARTIFACTS_URL", "mlflow:5000", f"must be {A_STORE}"),
        ("PROMOTE_ARTIFACTS_URL", "https://me:hunter2@x/y", f"must be {A_STORE}"),
        ("PROMOTE_STORE", "mysql://root:hunter2@x/y", "must begin with sqlite:/// or postgresql+psycopg://"),
        ("PROMOTE_TOKEN", "hunter2", "must have at least 16 characters"),
        ("PROMOTE_PACKAGE_INDEX", "me:hunter2@index", "must be the http:// or https:// address of a package index"),
        ("PROMOTE_WEBHOOK_SECRET", "hunter2", "must have at least 16 characters"),
        ("PROMOTE_PORL_SECONDS", "5", "is not known; did you mean PROMOTE_POLL_SECONDS?"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, given: str, said: str) -> None:
    monkeypatch.setenv(variable, given)
    (line,) = refused()
    assert line == f"environment variable {variable}: {said}"
    assert SECRET not in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("threads: many", "threads: must be a valid integer, not 'many'"),
        ("notify: [5]", "notify[0]: must be a valid string"),
        ("poll: 5", "poll: is not known; Allowed here: admin_port, alias_requests_per_minute, api_host"),
        ("poll_second: 5", "poll_second: is not known; did you mean 'poll_seconds'? Allowed here: admin_port"),
        ("home: 5", "home: must be a path, not 5"),
        ("store: hunter2", "store: must begin with sqlite:/// or postgresql+psycopg://"),
        ("threads: 3\nthreads: 4", "is not YAML: line 1: the key 'threads' stands twice"),
        ("threads", "must hold keys and values (key: value)"),
    ],
)
def test_a_wrong_line_in_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.delenv("PROMOTE_HOME")
    file = tmp_path / "settings.yaml"
    monkeypatch.setenv("PROMOTE_CONFIG", str(file))
    file.write_text(text)
    (line,) = refused()
    assert line.startswith(f"{file}: {said}")
    assert SECRET not in line


def test_every_mistake_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.yaml").write_text("threads: 0\nzzz: 1\n")
    monkeypatch.setenv("PROMOTE_API_PORT", "x")
    assert sorted(line.rpartition("settings.yaml: ")[2].split(":")[0] for line in refused()) == [
        "environment variable PROMOTE_API_PORT",
        "threads",
        "zzz",
    ]


def test_a_file_that_is_named_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMOTE_CONFIG", str(tmp_path / "gone.yaml"))
    assert refused() == [f"{tmp_path / 'gone.yaml'}: cannot be read: No such file or directory"]


@pytest.mark.parametrize("name", ["PROMOTE_SERVICE_HOST", "PROMOTE_PORT", "PROMOTE_URL", "PROMOTE_SEED"])
def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    load()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "promote.example.org"])
def test_commands_from_elsewhere_need_a_token(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("PROMOTE_API_HOST", host)
    expected = f"settings: token: must be given (PROMOTE_TOKEN) when api_host is not this machine's own, as {host}"
    assert refused() == [expected]
    monkeypatch.setenv("PROMOTE_TOKEN", TOKEN)
    assert load().token == SecretStr(TOKEN)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("localhost", "http://localhost:8400"),
        ("127.0.0.2", "http://127.0.0.2:8400"),
        ("::1", "http://[::1]:8400"),
        ("0.0.0.0", "http://127.0.0.1:8400"),
    ],
)
def test_where_commands_are_sent(monkeypatch: pytest.MonkeyPatch, host: str, url: str) -> None:
    monkeypatch.setenv("PROMOTE_API_HOST", host)
    monkeypatch.setenv("PROMOTE_TOKEN", "" if host != "0.0.0.0" else TOKEN)
    assert load().api_url == url


def test_no_port_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMOTE_API_PORT", "5000")
    (line,) = refused()
    assert line.startswith(
        "settings: every port has to be another one, not gateway_port 8080, admin_port 8081, api_port 5000"
    )
    monkeypatch.setenv("PROMOTE_MLFLOW_URI", "http://mlflow:5000")
    assert load().api_port == 5000


@pytest.mark.parametrize(
    ("scheme", "package"),
    [("s3", "s3fs"), ("s3a", "s3fs"), ("gs", "gcsfs"), ("gcs", "gcsfs"), ("az", "adlfs"), ("abfss", "adlfs")],
)
def test_models_get_what_writes_to_the_store_of_the_prediction_log(
    monkeypatch: pytest.MonkeyPatch, scheme: str, package: str
) -> None:
    assert load().packages.served == ()
    monkeypatch.setenv("PROMOTE_PREDICTIONS", f"{scheme}://bucket/predictions")
    (line,) = load().packages.served
    assert line.startswith(package)


def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "TOKEN": f"{SECRET} and more of it",
        "WEBHOOK_SECRET": f"{SECRET} and more of it",
        "LOG_KEY": f"{SECRET} and more of it",
        "PACKAGE_INDEX": f"https://me:{SECRET}@index/simple",
        "PACKAGE_EXTRA_INDEXES": f"https://me:{SECRET}@one/simple https://me:{SECRET}@two/simple",
        "STORE": f"postgresql+psycopg://me:{SECRET}@db/x",
        "NOTIFY": f"slack://{SECRET}",
        "MLFLOW_URI": f"http://me:{SECRET}@mlflow",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"PROMOTE_{name}", value)
    settings = load()
    assert SECRET in settings.store
    assert SECRET not in f"{settings} {settings!r}"


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())
