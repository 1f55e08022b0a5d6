"""What a model's files say that it needs, and how the requirements are made slimmer."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from serving.environment import Lock, variables
from serving.image import ImageError
from serving.needs import Needs, read_needs, slim


@pytest.mark.parametrize(
    ("requirements", "expected"),
    [
        (
            ["mlflow==3.17.2", "scikit-learn==1.9.1"],
            ["mlflow-skinny==3.17.2", "scikit-learn==1.9.1", "numpy", "pandas"],
        ),
        (["mlflow>=3,<4"], ["mlflow-skinny>=3,<4", "numpy", "pandas"]),
        (["mlflow"], ["mlflow-skinny", "numpy", "pandas"]),
        (["mlflow==3.17.2 # as logged"], ["mlflow-skinny==3.17.2", "numpy", "pandas"]),
        (["mlflow-skinny==3.17.2"], ["mlflow-skinny==3.17.2"]),
        (["mlflow[extras]==3.17.2"], ["mlflow[extras]==3.17.2"]),
        (["mlflow==3.17.2; python_version > '3'"], ["mlflow==3.17.2; python_version > '3'"]),
        (["mlflow @ https://example.org/mlflow.whl"], ["mlflow @ https://example.org/mlflow.whl"]),
        (["mlflow-export-import==1"], ["mlflow-export-import==1"]),
        ([], []),
    ],
)
def test_only_a_plain_mlflow_is_made_slimmer(requirements: list[str], expected: list[str]) -> None:
    assert slim(requirements) == tuple(expected)


def model(folder: Path, **files: str) -> Path:
    known = {"MLmodel": "mlflow_version: 3.1.0\nflavors: {python_function: {python_version: 3.10.4}}\n"} | files
    for name, content in known.items():
        (folder / name.replace("_txt", ".txt").replace("_yaml", ".yaml")).write_text(content)
    return folder


def test_everything_is_read(tmp_path: Path) -> None:
    files = {"requirements_txt": "# made by hand\n\nmlflow==3\n -c constraints.txt\n", "constraints_txt": "numpy<3\n"}
    needs = read_needs(model(tmp_path, python_env_yaml="python: 3.12.1\n", **files))
    assert needs == Needs("3.12", ("mlflow==3", "-c constraints.txt"), "numpy<3\n")


def test_what_is_not_said_is_taken_from_the_model(tmp_path: Path) -> None:
    assert read_needs(model(tmp_path)) == Needs("3.10", ("mlflow==3.1.0",))


@pytest.mark.parametrize(
    ("loader", "flavor", "compilable"),
    [
        ("mlflow.sklearn", "sklearn", True),
        ("mlflow.onnx", "onnx", True),
        ("mlflow.prophet", "prophet", False),
        ("mlflow.pyfunc.model", "", False),
        ("a_module_of_ours", "", False),
    ],
)
def test_the_flavour_is_the_one_that_loads_the_model(
    tmp_path: Path, loader: str, flavor: str, compilable: bool
) -> None:
    said = f"flavors: {{sklearn: {{}}, python_function: {{loader_module: {loader}}}}}\n"
    needs = read_needs(model(tmp_path, MLmodel=said))
    assert (needs.flavor, needs.compilable) == (flavor, compilable)


def test_a_flavour_that_can_be_compiled_is_another_question() -> None:
    assert Needs("3.11", ("a",), flavor="sklearn").key != Needs("3.11", ("a",), flavor="prophet").key


@pytest.mark.parametrize(
    ("version", "told", "added"),
    [
        ("2.14.0", "[pip==24.0, setuptools==65.5.0]", ("setuptools==65.5.0", "flask")),
        ("2.14.0", "[pip, setuptools]", ("setuptools<81", "flask")),
        ("1.30.0", "[]", ("setuptools<81", "flask")),
        ("3.1.0", "[pip==24.0, setuptools==65.5.0]", ()),
    ],
)
def test_what_older_mlflow_imports_without_saying_so_is_there(
    tmp_path: Path, version: str, told: str, added: tuple[str, ...]
) -> None:
    said = f"mlflow_version: {version}\nflavors: {{python_function: {{}}}}\n"
    environment = f"python: 3.11.0\nbuild_dependencies: {told}\n"
    needs = read_needs(model(tmp_path, MLmodel=said, python_env_yaml=environment))
    assert needs.requirements == (f"mlflow=={version}", *added)


def test_a_model_that_says_nothing_gets_our_python(tmp_path: Path) -> None:
    needs = read_needs(model(tmp_path, MLmodel="flavors: {python_function: {}}\n"))
    assert needs == Needs(".".join(platform.python_version_tuple()[:2]), ("mlflow",))


@pytest.mark.parametrize("content", ["", "flavors: {sklearn: {}}", "[", "flavors: 3", "flavors:\n  python_function: 3"])
def test_what_is_no_model_is_an_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(ImageError) as refused:
        read_needs(model(tmp_path, MLmodel=content))
    assert not refused.value.retryable


def test_locks_of_different_pythons_are_different() -> None:
    assert Lock("3.11", "a==1\n").digest != Lock("3.12", "a==1\n").digest
    assert Lock("3.11", "a==1 \\\n    --hash=sha256:0\nb==2\n").packages == 2


def test_a_lock_holds_what_stands_in_it_at_the_beginning_of_a_line() -> None:
    lock = Lock("3.11", "onnxruntime-gpu==1\nskl2onnx==1 \\\n    --hash=sha256:onnx\n")
    assert lock.holds("skl2onnx")
    assert not lock.holds("onnxruntime")
    assert not lock.holds("onnx")


def test_a_model_inherits_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "MLFLOW_TRACKING_URI", "PROMOTE_TOKEN", "OF_ITS_OWN"):
        monkeypatch.setenv(name, "given")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    apart = variables(tmp_path)
    assert not {"MLFLOW_TRACKING_URI", "PROMOTE_TOKEN"} & apart.keys()
    assert (apart["PYTHONPATH"], apart["OF_ITS_OWN"], apart["OMP_NUM_THREADS"]) == (str(tmp_path), "given", "1")


def test_in_our_own_environment_a_model_finds_what_we_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.org")
    own = variables(tmp_path, own=True)
    assert own["PYTHONPATH"] == f"{tmp_path}:/somewhere"
    assert own["MLFLOW_TRACKING_URI"] == "http://mlflow.example.org"
    assert "PYTHONNOUSERSITE" not in own


def test_needs_that_differ_are_another_question() -> None:
    questions = [Needs("3.11", ("a",)), Needs("3.12", ("a",)), Needs("3.11", ("b",)), Needs("3.11", ("a",), "a<2")]
    assert len({needs.key for needs in questions}) == len(questions)
