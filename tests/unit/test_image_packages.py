"""What is left out of an image's packages, and what ends a rule."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from serving.image_packages import RULES, Rule, digest_of_rules, lay_out, rules_for, without_symbols
from serving.needs import Needs

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
FLIGHT = next(rule for rule in RULES if "pyarrow/flight.py" in rule.paths)


def laid_out(folder: Path, files: dict[str, str], rules: tuple[Rule, ...] = RULES) -> dict[str, Path]:
    """The files of an image by their paths, where an environment has `files`; without compiled code."""
    python = folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    packages = folder / "environment" / "lib" / f"python{VERSION}" / "site-packages"
    for path, content in files.items():
        (packages / path).parent.mkdir(parents=True, exist_ok=True)
        (packages / path).write_text(content)
    copy = lay_out(python, VERSION, rules, folder / "image", "/opt/model/site-packages")
    found = {file.relative_to(copy).as_posix(): file for file in copy.rglob("*") if not file.is_dir()}
    return {path: file for path, file in found.items() if "__pycache__" not in path}


def test_tests_are_left_out_where_nothing_else_imports_them(tmp_path: Path) -> None:
    there = laid_out(
        tmp_path,
        {
            "one/__init__.py": "",
            "one/part/tests/test_one.py": "from one.part.tests import data",
            "two/__init__.py": "from .tests.runner import run",
            "two/tests/runner.py": "def run(): ...",
            "three/tests/data.py": "",
            "four/__init__.py": "# from tests of others\nimport three.tests.data",
            "tests/__init__.py": "",
        },
    )
    kept = {"one/__init__.py", "two/__init__.py", "two/tests/runner.py", "three/tests/data.py", "four/__init__.py"}
    assert set(there) == {*kept, "tests/__init__.py"}


@pytest.mark.parametrize("other", ["import pyarrow.flight", "from pyarrow import flight"])
def test_a_part_of_a_package_of_ours_is_there_where_another_package_speaks_of_it(tmp_path: Path, other: str) -> None:
    parts = {
        "pyarrow/__init__.py": "",
        "pyarrow/flight.py": "import pyarrow.flight",
        "pyarrow/libarrow_flight.so.1": "",
    }
    assert set(laid_out(tmp_path / "plain", parts)) == {"pyarrow/__init__.py"}
    assert set(laid_out(tmp_path / "used", {**parts, "client/rows.py": other})) == {*parts, "client/rows.py"}


def test_a_package_that_the_model_names_is_whole() -> None:
    assert FLIGHT in rules_for(Needs("3.11", ("mlflow==3.1", "numpy")))
    assert FLIGHT not in rules_for(Needs("3.11", ("mlflow==3.1", "PyArrow[x]>=14")))


def test_the_rules_are_part_of_what_names_an_image() -> None:
    assert digest_of_rules(RULES) != digest_of_rules(RULES[1:])


def test_sources_are_left_out_of_packages_that_do_not_read_them(tmp_path: Path) -> None:
    files = {"scipy/a.pyx": "", "scipy/a.py": "", "skimage/a.pyi": "", "skimage/a.py": ""}
    assert set(laid_out(tmp_path, files)) == {"scipy/a.py", "skimage/a.pyi", "skimage/a.py"}


def test_libraries_that_are_there_twice_are_links_to_one(tmp_path: Path) -> None:
    there = laid_out(
        tmp_path, {"one/lib.so": "same", "one/lib.so.1": "same", "one/lib.so.2": "else", "two/lib.so": "same"}
    )
    assert {path for path, file in there.items() if file.is_symlink()} == {"one/lib.so.1"}
    assert there["one/lib.so.1"].read_text() == "same"


def test_code_is_compiled_but_for_what_no_server_imports(tmp_path: Path) -> None:
    laid_out(tmp_path, {"mlflow/pyfunc/a.py": "", "mlflow/server/b.py": "", "one.py": ""})
    compiled = {file.name.partition(".")[0] for file in (tmp_path / "image").rglob("*.pyc")}
    assert compiled == {"a", "one"}


def test_a_library_without_symbols_works(tmp_path: Path) -> None:
    spec = find_spec("uvloop.loop")
    assert spec is not None
    assert spec.origin is not None
    whole = Path(spec.origin).read_bytes()
    small = tmp_path / Path(spec.origin).name
    small.write_bytes(without_symbols(whole))
    assert small.stat().st_size < len(whole)
    code = (
        "import asyncio, importlib.util as u, sys; spec = u.spec_from_file_location('uvloop.loop', sys.argv[1]);"
        "loop = u.module_from_spec(spec); spec.loader.exec_module(loop); print(loop.Loop().time() > 0)"
    )
    said = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(small)], capture_output=True, text=True)
    assert said.stdout == "True\n", said.stderr


@pytest.mark.parametrize("other", [b"", b"no library", b"\x7fELF\x01\x01 of 32 bits"])
def test_what_is_no_library_stays_as_it_is(other: bytes) -> None:
    assert without_symbols(other) == other
