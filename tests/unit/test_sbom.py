"""The document of what is in an image: by CycloneDX's own schema, whole, and the same every time."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from registry_hooks.model_version import ModelVersion
from serving.environment import Lock
from serving.image import Proof
from serving.made import Base, Made
from serving.sbom import sbom

VERSION = ModelVersion("churn", 7)
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
LOCK = Lock("3.11", (Path(__file__).parents[2] / "requirements.lock").read_text())
"""A real one, with markers, which some hundreds of packages are in."""
NATIVE = Made("1" * 64, "2" * 64, "sklearn", "3" * 64, LOCK, Proof(compiled=False, why="it was asked for"))
COMPILED = replace(NATIVE, proof=Proof(compiled=True, why="trees", rows=9, model="4" * 64))
ELSEWHERE = Lock("3.11", f"ours @ https://pypi.example/ours.whl --hash=sha256:{'a' * 64}\n./six-1.0-py3-none-any.whl\n")
PYTHON = Base("python:3.11-slim", f"sha256:{'6' * 64}")
BASED = replace(COMPILED, image=f"registry.example:5000/churn@sha256:{'5' * 64}", base=PYTHON)


def read(made: Made) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(sbom(VERSION, made, AT))
    return document


def parts(made: Made, kind: str) -> dict[str, dict[str, Any]]:
    return {part["bom-ref"]: part for part in read(made)["components"] if part["type"] == kind}


def hashes(part: dict[str, Any]) -> set[str]:
    return {found["content"] for found in part["hashes"]}


@pytest.mark.parametrize(
    "made",
    [NATIVE, COMPILED, BASED, replace(NATIVE, lock=ELSEWHERE), replace(NATIVE, lock=Lock("3.12", ""), flavor="")],
    ids=["native", "compiled", "with a base", "not from an index", "without packages"],
)
def test_it_is_valid_by_the_schema(made: Made) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom(VERSION, made, AT)) is None


def test_the_schema_would_tell() -> None:
    document = read(NATIVE)
    document["components"][0]["type"] = "soup"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is not None


def test_every_package_of_the_lock_is_in_it_with_all_its_hashes() -> None:
    pinned = r"^([a-zA-Z0-9._-]+)(?:\[.*?\])?==(\S+)(.*?)(?=^\S)"
    written = re.findall(pinned, f"{LOCK.text}\nend", re.MULTILINE | re.DOTALL)
    assert len(written) > 200
    found = {part["purl"]: hashes(part) for part in parts(NATIVE, "library").values()}
    for name, version, rest in written:
        assert found.pop(f"pkg:pypi/{name}@{version}") == set(re.findall(r"--hash=sha256:(\S+)", rest)), name
    assert found == {}


def test_the_model_is_in_it_and_the_compiled_one_where_there_is_one() -> None:
    (native,) = parts(NATIVE, "machine-learning-model").values()
    assert (native["name"], native["version"], hashes(native)) == ("churn", "7", {"2" * 64})
    compiled = parts(COMPILED, "machine-learning-model")
    assert {key: hashes(part) for key, part in compiled.items()} == {"model": {"2" * 64}, "compiled": {"4" * 64}}


def test_the_model_server_and_python_are_in_it() -> None:
    assert hashes(parts(NATIVE, "application")["server"]) == {"3" * 64}
    assert parts(NATIVE, "platform")["python"]["version"] == "3.11"


def test_it_is_about_the_image_and_what_that_stands_on() -> None:
    about = read(BASED)["metadata"]["component"]
    assert (about["type"], hashes(about)) == ("container", {"5" * 64})
    assert about["properties"] == [{"name": "promote:image", "value": BASED.image}]
    (base,) = parts(BASED, "container").values()
    assert (base["name"], hashes(base)) == ("python:3.11-slim", {"6" * 64})
    assert read(NATIVE)["metadata"]["component"]["type"] == "application"


def test_the_image_depends_on_every_part() -> None:
    document = read(BASED)
    (whole,) = [one for one in document["dependencies"] if one["ref"] == "image"]
    assert set(whole["dependsOn"]) == {part["bom-ref"] for part in document["components"]}


def test_packages_that_are_not_from_an_index_say_where_they_are_from() -> None:
    ours, six = sorted(parts(replace(NATIVE, lock=ELSEWHERE), "library").values(), key=lambda part: str(part["name"]))
    assert ours["externalReferences"] == [{"type": "distribution", "url": "https://pypi.example/ours.whl"}]
    assert (six["name"], six["version"]) == ("six", "1.0")
    assert "purl" not in ours | six


def test_the_same_image_gives_the_same_bytes_and_another_one_another_number() -> None:
    assert sbom(VERSION, BASED, AT) == sbom(VERSION, replace(BASED), AT)
    numbers = {read(made)["serialNumber"] for made in (NATIVE, COMPILED, BASED)}
    assert len(numbers) == 3
