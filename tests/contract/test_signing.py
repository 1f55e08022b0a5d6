"""Keys in files, signatures of images, and a target that starts nothing without one."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from registry_hooks.model_version import ModelVersion
from serving.image import BuildState, ImageError
from serving.local_image import LocalImageBuilder
from serving.revision import Revision
from serving.signing import KeyFileError, Signatures, SigningKey, VerifyKey
from serving.target import TargetError
from serving.verified_target import VerifiedTarget
from tests.contract.test_image import built, request_for
from tests.fakes.target import FakeTarget
from tests.fixtures.keys import KeyFiles, key_pair
from tests.fixtures.revisions import FolderRegistry

IMAGE, OTHER = "1" * 64, f"registry.example:5000/churn@sha256:{'2' * 64}"


@pytest.fixture
def keys(tmp_path: Path) -> KeyFiles:
    return key_pair(tmp_path)


def test_a_signature_is_confirmed_by_its_key_for_its_image_alone(tmp_path: Path, keys: KeyFiles) -> None:
    signature = keys.signing.sign(IMAGE)
    assert keys.verify.confirms(signature, IMAGE)
    assert not keys.verify.confirms(signature, OTHER)
    assert not keys.verify.confirms(replace(signature, image=OTHER), OTHER)
    assert not key_pair(tmp_path, "other").verify.confirms(signature, IMAGE)


@pytest.mark.parametrize("value", ["", "no base64!", "AAAA", base64.b64encode(bytes(64)).decode()])
def test_what_is_no_signature_confirms_nothing(keys: KeyFiles, value: str) -> None:
    assert not keys.verify.confirms(replace(keys.signing.sign(IMAGE), value=value), IMAGE)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_makes_the_keys_and_verifies_what_they_sign(tmp_path: Path) -> None:
    def openssl(*arguments: str) -> bytes:
        return subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True).stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", "key.pem")
    openssl("pkey", "-in", "key.pem", "-pubout", "-out", "key.pub")
    keys = KeyFiles(tmp_path / "key.pem", tmp_path / "key.pub")
    signature = keys.signing.sign(IMAGE)
    assert signature.key == hashlib.sha256(openssl("pkey", "-pubin", "-in", "key.pub", "-outform", "DER")).hexdigest()
    (tmp_path / "signed").write_text(f"mlflow-promote image v1\n{IMAGE}")
    (tmp_path / "signature").write_bytes(base64.b64decode(signature.value))
    parts = ("-pubin", "-inkey", "key.pub", "-sigfile", "signature")
    assert b"Verified Successfully" in openssl("pkeyutl", "-verify", *parts, "-rawin", "-in", "signed")


def test_a_key_file_that_cannot_be_used_says_why(tmp_path: Path, keys: KeyFiles) -> None:
    nonsense, elliptic, locked = tmp_path / "nonsense", generate_private_key(SECP256R1()), tmp_path / "locked"
    nonsense.write_text("no key")
    private, public = tmp_path / "elliptic.pem", tmp_path / "elliptic.pub"
    plain = (Encoding.PEM, PrivateFormat.PKCS8)
    locked.write_bytes(elliptic.private_bytes(*plain, BestAvailableEncryption(b"a password")))
    private.write_bytes(elliptic.private_bytes(*plain, NoEncryption()))
    public.write_bytes(elliptic.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    wrong: list[tuple[Callable[[Path], object], Path, str]] = [
        (SigningKey.read, tmp_path / "gone", "cannot be read: No such file"),
        (SigningKey.read, nonsense, "holds no private key in PEM"),
        (SigningKey.read, keys.public, "holds no private key in PEM"),
        (SigningKey.read, locked, "is encrypted"),
        (SigningKey.read, private, "another kind than Ed25519"),
        (VerifyKey.read, tmp_path / "gone", "cannot be read: No such file"),
        (VerifyKey.read, keys.private, "holds no public key in PEM"),
        (VerifyKey.read, public, "another kind than Ed25519"),
    ]
    for read, file, words in wrong:
        with pytest.raises(KeyFileError, match=words) as refused:
            read(file)
        assert str(file) in str(refused.value)


def test_signatures_are_kept_by_image_and_key(tmp_path: Path, keys: KeyFiles) -> None:
    other = key_pair(tmp_path, "other")
    for key in (keys, other):
        for image in (IMAGE, OTHER):
            Signatures(tmp_path).keep(key.signing.sign(image))
    for key in (keys, other):
        for image in (IMAGE, OTHER):
            found = Signatures(tmp_path).find(image, key.verify.id)
            assert found is not None
            assert key.verify.confirms(found, image)
    assert Signatures(tmp_path).find("3" * 64, keys.verify.id) is None
    for file in (tmp_path / "signatures").iterdir():
        file.write_text("no signature")
    assert Signatures(tmp_path).find(IMAGE, keys.verify.id) is None


class TestATargetThatVerifies:
    def test_starts_what_is_signed(self, tmp_path: Path, keys: KeyFiles) -> None:
        target, revision = FakeTarget(), Revision(ModelVersion("churn", 1), IMAGE)
        Signatures(tmp_path).keep(keys.signing.sign(IMAGE))
        VerifiedTarget(target, keys.verify, Signatures(tmp_path)).start(revision)
        assert revision.id in target.status()

    @pytest.mark.parametrize(
        ("forged", "words"),
        [
            (None, "has no signature by the key"),
            ("by another", "has no signature by the key"),
            ("renamed", "has a signature that was not made by the key"),
            ("of another image", "has a signature that was not made by the key"),
        ],
    )
    def test_refuses_for_good_what_is_not(self, tmp_path: Path, keys: KeyFiles, forged: str | None, words: str) -> None:
        target, revision, kept = FakeTarget(), Revision(ModelVersion("churn", 1), IMAGE), Signatures(tmp_path)
        other = key_pair(tmp_path, "other")
        if forged == "by another":
            kept.keep(other.signing.sign(IMAGE))
        if forged == "renamed":
            kept.keep(replace(other.signing.sign(IMAGE), key=keys.verify.id))
        if forged == "of another image":
            kept.keep(replace(keys.signing.sign(OTHER), image=IMAGE))
        with pytest.raises(TargetError, match=words) as refused:
            VerifiedTarget(target, keys.verify, kept).start(revision)
        assert not refused.value.retryable
        assert all(part in str(refused.value) for part in (IMAGE, keys.verify.id[:16], "verify_key", "signing_key"))
        assert target.status() == {}


def signing_builder(home: Path, model: Path, key: SigningKey | None) -> LocalImageBuilder:
    return LocalImageBuilder(home, FolderRegistry({"churn": model}), signing=key)


def test_an_image_is_signed_when_it_is_built_and_counts_as_missing_without(
    builder_home: Path, churn_model: Path, keys: KeyFiles
) -> None:
    unsigned = built(signing_builder(builder_home, churn_model, None), request_for("churn"))
    assert "signature.json" not in [document.name for document in unsigned.documents]
    builder = signing_builder(builder_home, churn_model, keys.signing)
    assert builder.find(request_for("churn")).state is BuildState.MISSING
    signed = built(builder, request_for("churn"))
    assert signed.image == unsigned.image
    written = {document.name: builder.document(document.digest) for document in signed.documents}
    assert json.loads(written["signature.json"])["key"] == keys.verify.id
    found = Signatures(builder_home).find(str(signed.image), keys.verify.id)
    assert found is not None
    assert keys.verify.confirms(found, str(signed.image))
    builder.close()


def test_a_document_that_is_lost_or_changed_is_told_of(builder_home: Path, churn_model: Path) -> None:
    builder = signing_builder(builder_home, churn_model, None)
    lock, *_ = built(builder, request_for("churn")).documents
    file = builder_home / "documents" / lock.digest
    file.write_text("numpy==0")
    with pytest.raises(ImageError, match="not what it was"):
        builder.document(lock.digest)
    file.unlink()
    with pytest.raises(ImageError, match="is lost"):
        builder.document(lock.digest)
    builder.close()
