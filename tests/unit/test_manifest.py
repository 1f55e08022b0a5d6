"""The list of a model's files: made from a folder, read back as it was written, and nothing in it leads elsewhere."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.runtime.manifest import FILE, Listed, Manifest, of_folder, read

SOURCE = "http://store/models/churn"
NOTHING = hashlib.sha256().hexdigest()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_bytes(b"")
    (folder / "data" / "é weights.bin").write_bytes(b"abc")
    return folder


def test_it_is_read_as_it_was_made(model: Path, tmp_path: Path) -> None:
    made = of_folder(model, SOURCE)
    weights = Listed("data/é weights.bin", 3, hashlib.sha256(b"abc").hexdigest())
    assert made == Manifest(SOURCE, (Listed("MLmodel", 0, NOTHING), weights))
    assert made.size == 3
    made.write(tmp_path / "image")
    assert read(tmp_path / "image") == made
    assert read(model) is None


def test_its_digest_tells_any_two_apart(model: Path) -> None:
    made = of_folder(model, SOURCE)
    (model / "data" / "é weights.bin").write_bytes(b"abd")
    others = [replace(made, source="http://store/other"), replace(made, files=made.files[:1]), of_folder(model, SOURCE)]
    assert len({other.digest for other in [made, *others]}) == 4


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../MLmodel", "a/../../b", "a//b", "a/", "./a", "a/.", "..\\a", "a\0b"]
)
def test_a_path_that_leads_out_of_the_folder_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="inside a model's folder"):
        Listed(path, 0, NOTHING)


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b/c", "a/b")])
def test_no_file_is_two_or_a_folder_too(paths: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="twice"):
        Manifest(SOURCE, tuple(Listed(path, 0, NOTHING) for path in paths))


@pytest.mark.parametrize(
    "url", ["models/churn", "http://me:secret@store/m", "https://me@store/m", "http://store/m?key=s"]
)
def test_a_url_is_one_and_has_no_credentials(url: str) -> None:
    with pytest.raises(ValueError, match="to fetch a model from"):
        Manifest(url, ())


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": None},
        {"source": None},
        {"files": None},
        {"files": [{"path": "a", "bytes": -1, "sha256": NOTHING}]},
        {"files": [{"path": "a", "bytes": 1, "sha256": "no"}]},
        {"files": [{"path": "../a", "bytes": 1, "sha256": NOTHING}]},
    ],
)
def test_what_is_no_manifest_is_said_with_its_place(model: Path, change: dict[str, Any]) -> None:
    of_folder(model, SOURCE).write(model)
    told = json.loads((model / FILE).read_text())
    (model / FILE).write_text(json.dumps(told | change))
    with pytest.raises(ValueError, match=f"{FILE} is no manifest"):
        read(model)
