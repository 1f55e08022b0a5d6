"""What a model's own files say that it needs, and how that is asked of a resolver."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serving.image import ImageError
from serving.runtime.requirements import COMPILED, CONVERTERS, REQUIREMENTS

_MLFLOW = re.compile(r"mlflow\s*((?:[=<>!~][^;\[@#]*)?)(?:#.*)?")
"""The whole of MLflow, with nothing but a version specifier."""
UNSERVED = "google-auth"
"""What ``mlflow-skinny`` brings, through Databricks' client, to log in to Google's clouds, with cryptography behind it.

From MLflow 3 on, nothing imports that client when a model is loaded or served.
"""


@dataclass(frozen=True, slots=True)
class Needs:
    """What one model asks for."""

    python: str
    """Major and minor version, such as ``3.11``."""
    requirements: tuple[str, ...]
    """Lines of ``requirements.txt``."""
    constraints: str = ""
    """Content of the ``constraints.txt`` that the lines may name."""
    flavor: str = ""
    """MLflow's name of the flavour by which the model is loaded; empty where it is a class of somebody's own."""

    @property
    def key(self) -> str:
        """Names the question that is put to the resolver."""
        return named(self, REQUIREMENTS, COMPILED if self.compilable else (), UNSERVED)

    @property
    def compilable(self) -> bool:
        """Whether the flavour is one that can be compiled at all."""
        return self.flavor in CONVERTERS

    @property
    def kind(self) -> str:
        """What kind of models it is, in words."""
        return f"models of the flavour {self.flavor}" if self.flavor else "Python classes of somebody's own"


def read_needs(folder: Path) -> Needs:
    """What the model in `folder` asks for; `ImageError` where it is not an MLflow model."""
    try:
        model = yaml.safe_load((folder / "MLmodel").read_text())
        python = _python(folder, model["flavors"]["python_function"])
        loader = str(model["flavors"]["python_function"].get("loader_module", ""))
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        message = f"not a model that MLflow can serve (no python_function flavor): {error}"
        raise ImageError(message, retryable=False) from error
    lines = _lines(folder / "requirements.txt")
    if not any(re.match(r"mlflow(-skinny)?\b(?!-)", line) for line in lines):
        lines.append(f"mlflow=={model['mlflow_version']}" if "mlflow_version" in model else "mlflow")
    if str(model.get("mlflow_version", "")).partition(".")[0] in ("1", "2"):
        lines += [_setuptools(folder), "flask"]
    constraints = folder / "constraints.txt"
    flavor = loader.removeprefix("mlflow.") if loader.startswith("mlflow.") and loader.count(".") == 1 else ""
    return Needs(python, tuple(lines), constraints.read_text() if constraints.exists() else "", flavor)


def slim(requirements: Sequence[str]) -> tuple[str, ...]:
    """The same requirements with ``mlflow-skinny`` for ``mlflow``, where that stands alone with its version."""
    found = [_MLFLOW.fullmatch(line) for line in requirements]
    kept = [f"mlflow-skinny{hit[1].strip()}" if hit else line for hit, line in zip(found, requirements, strict=True)]
    return tuple(kept + (["numpy", "pandas"] if any(found) else []))


def names_of(requirements: Sequence[str]) -> frozenset[str]:
    """The packages that lines name, as indexes write them."""
    found = (re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line) for line in requirements)
    return frozenset(re.sub(r"[-_.]+", "-", hit[0]).lower() for hit in found if hit)


def named(*question: object) -> str:
    """A name for what is asked on this kind of machine."""
    return hashlib.sha256(repr((*question, platform.machine())).encode()).hexdigest()


def _lines(path: Path) -> list[str]:
    text = path.read_text() if path.exists() else ""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _setuptools(folder: Path) -> str:
    """MLflow before 3 imports ``pkg_resources`` without saying so: the release at hand when the model was logged.

    (Its scoring code also imports Flask, which comes with the whole of MLflow only.)
    """
    told = [str(line) for line in _environment(folder).get("build_dependencies") or ()]
    return next((line for line in told if line.startswith("setuptools=")), "setuptools<81")


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / "python_env.yaml"
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def _python(folder: Path, flavor: Mapping[str, object]) -> str:
    python = _environment(folder).get("python") or flavor.get("python_version") or platform.python_version()
    return ".".join(str(python).split(".")[:2])
