"""The keys of an installation: what is refused when it starts, and what the doctor says of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli_local import sign
from pipelines.client import ClientError
from pipelines.doctor import check_keys
from pipelines.keys import read_keys
from pipelines.settings import Settings, SettingsError, load
from serving.local_image import LocalImageBuilder
from serving.signing import Signatures
from tests.contract.test_image import built, request_for
from tests.fixtures.keys import KeyFiles, key_pair
from tests.fixtures.revisions import FolderRegistry, with_kept_environments


@pytest.fixture
def keys(tmp_path: Path) -> KeyFiles:
    return key_pair(tmp_path)


def settings(home: Path, private: Path | None = None, public: Path | None = None) -> Settings:
    return Settings(home=home, signing_key=private, verify_key=public)


def test_without_keys_nothing_is_signed_or_verified(tmp_path: Path) -> None:
    read = read_keys(settings(tmp_path))
    assert (read.signing, read.verify) == (None, None)
    assert (
        check_keys(settings(tmp_path)).detail == "images are not signed when built and not verified before they start"
    )


def test_each_key_can_be_given_alone(tmp_path: Path, keys: KeyFiles) -> None:
    assert read_keys(settings(tmp_path, keys.private)).verify is None
    assert read_keys(settings(tmp_path, None, keys.public)).signing is None
    both = read_keys(settings(tmp_path, keys.private, keys.public))
    assert both.signing
    assert both.verify
    assert both.signing.public.id == both.verify.id
    check = check_keys(settings(tmp_path, keys.private, keys.public))
    assert (check.ok, check.detail) == (True, "images are signed when built and verified before they start")


def test_keys_that_cannot_be_used_are_refused_by_the_name_of_the_setting(tmp_path: Path, keys: KeyFiles) -> None:
    other = key_pair(tmp_path, "other")
    wrong = {
        "signing_key: .*gone cannot be read": settings(tmp_path, tmp_path / "gone"),
        "signing_key: .*key.pub holds no private key": settings(tmp_path, keys.public),
        "verify_key: .*gone cannot be read": settings(tmp_path, keys.private, tmp_path / "gone"),
        "verify_key: .*key.pem holds no public key": settings(tmp_path, None, keys.private),
        "verify_key: .*other.pub is not the public half of signing_key": settings(tmp_path, keys.private, other.public),
    }
    for words, given in wrong.items():
        with pytest.raises(SettingsError, match=words) as refused:
            read_keys(given)
        check = check_keys(given)
        assert (check.ok, check.detail) == (False, str(refused.value))
        assert check.advice


def test_a_private_key_that_others_can_read_is_told_of(tmp_path: Path, keys: KeyFiles) -> None:
    keys.private.chmod(0o640)
    check = check_keys(settings(tmp_path, keys.private, keys.public))
    assert (check.ok, check.advice) == (False, f"chmod 600 {keys.private}")


def test_a_controller_does_not_start_with_a_key_that_cannot_be_used(tmp_path: Path) -> None:
    ours = {"PROMOTE_HOME": str(tmp_path / "home"), "PROMOTE_SIGNING_KEY": str(tmp_path / "gone.pem")}
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PROMOTE_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "up"],
        env={**environment, **ours},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert f"signing_key: {tmp_path / 'gone.pem'} cannot be read" in " ".join(done.stderr.split())
    assert not (tmp_path / "home" / "mlflow").exists()


def test_relative_paths_in_the_file_start_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PROMOTE_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PROMOTE_CONFIG", str(tmp_path / "settings.yaml"))
    (tmp_path / "settings.yaml").write_text("home: here\nsigning_key: keys/a.pem\nverify_key: keys/a.pub\n")
    loaded = load()
    assert (loaded.signing_key, loaded.verify_key) == (tmp_path / "keys" / "a.pem", tmp_path / "keys" / "a.pub")


def test_an_image_that_is_there_is_signed_by_command(builder_home: Path, churn_model: Path, keys: KeyFiles) -> None:
    builder = LocalImageBuilder(builder_home, FolderRegistry({"churn": churn_model}))
    image = str(built(builder, request_for("churn")).image)
    builder.close()
    with pytest.raises(ClientError, match="no signing_key"):
        sign(settings(builder_home), image)
    with pytest.raises(ClientError, match="there is no image 'nothing'"):
        sign(settings(builder_home, keys.private), "nothing")
    assert sign(settings(builder_home, keys.private), image) == keys.verify.id
    found = Signatures(builder_home).find(image, keys.verify.id)
    assert found is not None
    assert keys.verify.confirms(found, image)


def test_an_image_that_was_altered_is_not_signed(tmp_path: Path, churn_model: Path, keys: KeyFiles) -> None:
    home = with_kept_environments(tmp_path / "home")
    builder = LocalImageBuilder(home, FolderRegistry({"churn": churn_model}))
    image = str(built(builder, request_for("churn")).image)
    builder.close()
    (home / "images" / image / "model" / "MLmodel").write_text("another model")
    with pytest.raises(ClientError, match="its model has SHA-256"):
        sign(settings(home, keys.private), image)
    assert Signatures(home).find(image, keys.verify.id) is None
