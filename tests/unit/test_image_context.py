"""The build context of an image: the same inputs give the same bytes, and whatever matters changes its digest."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from serving.image_context import HOME, ROOT, Context, Entry, gateway_context, model_context, packages_context


def folder_of(place: Path, **files: str) -> Path:
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_text(content)
    return place


def packed(context: Context) -> bytes:
    file = io.BytesIO()
    context.write(file)
    return file.getvalue()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "model", MLmodel="flavors: {}", weights="1 2 3")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "plan", plan="{}")


def test_the_same_files_give_the_same_bytes_whoever_wrote_them_and_when(tmp_path: Path, model: Path) -> None:
    again = folder_of(tmp_path / "elsewhere" / "model", weights="1 2 3", MLmodel="flavors: {}")
    os.utime(again / "weights", (1, 1))
    contexts = [packages_context("base", "3.11", place) for place in (model, again)]
    assert packed(contexts[0]) == packed(contexts[1])
    assert contexts[0].digest == contexts[1].digest


def test_nothing_of_the_machine_is_in_the_bytes(model: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(packages_context("base", "3.11", model)))) as tar:
        members = tar.getmembers()
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", 0)}


@pytest.mark.parametrize(
    "changed",
    [
        Context("other", {"a": Entry(b"1")}),
        Context("base", {"a": Entry(b"2")}),
        Context("base", {"b": Entry(b"1")}),
        Context("base", {"a": Entry(b"1", executable=True)}),
        Context("base", {"a": Entry(b"1", link=True)}),
        Context("base", {"a": Entry(b"1"), "b": Entry(b"")}),
        Context("base", {"a": Entry(b"1")}, {"promote.version": "2"}),
    ],
)
def test_whatever_is_other_changes_the_digest(changed: Context) -> None:
    assert changed.digest != Context("base", {"a": Entry(b"1")}).digest


def test_links_and_programs_arrive_as_such(tmp_path: Path) -> None:
    envoy = tmp_path / "envoy"
    envoy.write_bytes(b"program")
    with tarfile.open(fileobj=io.BytesIO(packed(gateway_context("base", envoy)))) as tar:
        assert tar.getmember(f"{ROOT}/usr/local/bin/envoy").mode == 0o755
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "current").symlink_to("release")
    with tarfile.open(fileobj=io.BytesIO(packed(packages_context("base", "3.12", tmp_path / "packages")))) as tar:
        link = tar.getmember(f"{ROOT}{HOME}/lib/python3.12/site-packages/current")
        python = tar.getmember(f"{ROOT}{HOME}/bin/python")
    assert (link.issym(), link.linkname) == (True, "release")
    assert (python.issym(), python.linkname) == (True, "/usr/local/bin/python3")


def test_what_changes_most_stands_last_and_nobody_is_root(model: Path, plan: Path) -> None:
    lines = model_context("packages:1", model, plan, {}).dockerfile.splitlines()
    assert lines[0] == "FROM packages:1"
    assert [line.split()[-1] for line in lines if line.startswith("COPY")] == [
        f"{HOME}/server",
        f"{HOME}/plan",
        f"{HOME}/model",
    ]
    assert "USER 65532:65532" in lines
    assert not any(line.startswith("RUN") for line in lines)


def test_the_compiler_of_models_is_no_part_of_their_images(model: Path, plan: Path) -> None:
    entries = model_context("packages:1", model, plan, {}).entries
    assert f"{HOME[1:]}/server/serving/runtime/__main__.py" in entries
    assert not any("/compiling/" in path for path in entries)


def test_system_packages_stand_below_all_others(model: Path) -> None:
    lines = packages_context("base", "3.11", model, ("libgomp1",)).dockerfile.splitlines()
    assert "libgomp1" in lines[1]
    assert lines[2].startswith("COPY")
