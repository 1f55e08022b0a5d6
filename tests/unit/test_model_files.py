"""Which files a model consists of, and what is said where one of them is another."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.runtime.model_files import File, check, difference, digest, dumped, listed, loaded, write

ONE, TWO = (hashlib.sha256(content).hexdigest() for content in (b"one", b"two"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_bytes(b"one")
    (folder / "data" / "weights.bin").write_bytes(b"two")
    return folder


def test_files_are_listed_by_their_paths(model: Path) -> None:
    assert listed(model) == {"MLmodel": File(ONE, 3), "data/weights.bin": File(TWO, 3)}
    assert listed(model / "nothing") == {}


def test_a_digest_tells_names_and_contents_and_nothing_else(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy", copy_function=shutil.copyfile)
    assert digest(listed(copy)) == digest(listed(model)) == digest(dict(reversed(listed(model).items())))
    expected = hashlib.sha256(f"MLmodel\0{ONE}\ndata/weights.bin\0{TWO}\n".encode()).hexdigest()
    assert digest(listed(model)) == expected


def test_a_list_is_read_as_it_was_written(model: Path) -> None:
    (model / "späße \udce4").write_bytes(b"")
    assert loaded(dumped(listed(model))) == listed(model)
    digest(listed(model))


@pytest.mark.parametrize("text", ["", "[]", "3", '{"a": 1}', '{"a": ["b"]}', '{"a": ["b", "c"]}'])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        loaded(text)


def hidden_bytecode(model: Path) -> None:
    (model / "code" / "__pycache__").mkdir(parents=True)
    (model / "code" / "__pycache__" / "prices.cpython-311.pyc").write_bytes(b"one")


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda model: (model / "MLmodel").write_bytes(b"two"), f"MLmodel has SHA-256 {TWO}, not {ONE}"),
    (lambda model: (model / "MLmodel").unlink(), f"MLmodel is missing; its SHA-256 was {ONE}"),
    (lambda model: (model / "a.py").write_bytes(b"two"), f"a.py is new; its SHA-256 is {TWO}"),
    (hidden_bytecode, f"code/__pycache__/prices.cpython-311.pyc is new; its SHA-256 is {ONE}"),
    (
        lambda model: (model / "data" / "weights.bin").rename(model / "weights.bin"),
        f"data/weights.bin is missing; its SHA-256 was {TWO}",
    ),
]


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_a_change_is_told_with_both_digests(
    model: Path, tmp_path: Path, change: Callable[[Path], object], told: str
) -> None:
    files = listed(model)
    write(files, tmp_path)
    check(tmp_path, model)
    change(model)
    assert difference(files, listed(model)) == told
    assert digest(files) != digest(listed(model))
    with pytest.raises(ValueError, match=r"^the model's files are not those that were approved: ") as refused:
        check(tmp_path, model)
    assert str(refused.value).endswith(told)


def test_without_a_list_nothing_is_checked(model: Path, tmp_path: Path) -> None:
    check(tmp_path, model)


def test_a_link_to_a_file_counts_as_the_file_and_one_to_a_folder_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "same").symlink_to(model / "MLmodel")
    assert listed(model)["same"] == File(ONE, 3)
    (model / "data" / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="data/elsewhere is a link to a folder"):
        listed(model)
