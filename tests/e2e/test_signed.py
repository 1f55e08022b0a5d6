"""The story of an installation with keys: what is built is signed, and nothing else is started."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.signing import Signature, VerifyKey
from tests.e2e.loop import Loop
from tests.fixtures.keys import KeyFiles, key_pair
from tests.fixtures.revisions import end_revisions, with_kept_environments


@pytest.fixture
def keys(tmp_path: Path) -> KeyFiles:
    return key_pair(tmp_path)


@pytest.fixture
def signed(tmp_path: Path, keys: KeyFiles) -> Iterator[Loop]:
    """An installation that has both halves of a key."""
    loop = Loop(with_kept_environments(tmp_path / "home"))
    loop.prepare()
    loop.start(PROMOTE_SIGNING_KEY=str(keys.private), PROMOTE_VERIFY_KEY=str(keys.public))
    try:
        yield loop
    finally:
        loop.stop()
        end_revisions(loop.home)


def test_signed_images_go_live_and_others_are_not_started(signed: Loop, keys: KeyFiles) -> None:
    # given a version that goes live in an installation that signs
    first = signed.register("signed")
    signed.transition("signed", first, "Production")
    signed.await_state("signed", first, "succeeded")
    assert signed.served("signed") == str(first)
    # then its run holds what the image is made of, as the evidence names it, and the signature
    kept = documents(signed, first)
    assert set(kept) == {"lock.txt", "provenance.json", "sbom.json", "signature.json"}
    image = signed.tags("signed", first)["promote.image"]
    assert json.loads(kept["provenance.json"])["subject"][0]["digest"] == {"sha256": image}
    components = json.loads(kept["sbom.json"])["components"]
    assert sum("purl" in one for one in components) == kept["lock.txt"].count(b"==") > 20
    assert VerifyKey.read(keys.public).confirms(Signature(**json.loads(kept["signature.json"])), image)

    # when a controller that verifies and does not sign takes over, and another version enters
    signed.kill(signed.controllers[0])
    signed.start(PROMOTE_VERIFY_KEY=str(keys.public))
    second = signed.register("signed", factor=3)
    signed.transition("signed", second, "Production")
    # then that version is taken back, the reason says which key is wanted, and the first one serves on
    signed.await_state("signed", second, "failed")
    reason = signed.tags("signed", second)["promote.reason"]
    assert "has no signature by the key" in reason
    assert VerifyKey.read(keys.public).id[:16] in reason
    assert signed.served("signed") == str(first)
    assert len(signed.processes("signed")) == 1


def documents(loop: Loop, version: int) -> dict[str, bytes]:
    """By name, what the evidence of the version says was written about its image."""
    run = loop.run_id("signed", version)

    def artifact(path: str) -> bytes:
        return Path(loop.client.download_artifacts(run, path)).read_bytes()

    record = json.loads(artifact(loop.tags("signed", version)["promote.evidence"]))
    found = {one["name"]: artifact(one["artifact"]) for one in record["documents"]}
    for one in record["documents"]:
        assert hashlib.sha256(found[one["name"]]).hexdigest() == one["digest"]
    return found
