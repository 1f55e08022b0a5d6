"""Every request that docs/serving.md shows is made, and answered as it says there."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.contract.serve_command import Serving, serving
from tests.fixtures.revisions import with_kept_environments

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
SHOWN = "http://127.0.0.1:5001"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, churn_model: Path) -> Iterator[Serving]:
    with serving(with_kept_environments(tmp_path_factory.mktemp("page") / "home"), churn_model) as served:
        yield served


def requests() -> list[tuple[str, str]]:
    """Every command with ``curl`` in it, and the answer below it."""
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    shown = [part.partition("\n") for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)]
    return [(command, answer.strip()) for command, _, answer in shown if "curl " in command]


@pytest.mark.parametrize(("command", "answer"), requests(), ids=[str(n) for n in range(len(requests()))])
def test_a_request_is_answered_as_the_page_says(served: Serving, command: str, answer: str) -> None:
    assert SHOWN in command
    made = ["sh", "-c", command.replace(SHOWN, served.url)]
    said = subprocess.run(made, capture_output=True, text=True, timeout=60, check=True).stdout
    assert json.loads(said)
    if answer:
        assert json.loads(said) == json.loads(answer)


def test_the_page_shows_every_form_of_a_request() -> None:
    text = "".join(command for command, _ in requests())
    for form in ("dataframe_split", "dataframe_records", "instances", '"inputs": {', "text/csv", "/infer", "/health"):
        assert form in text


def test_every_path_of_the_page_is_there(served: Serving) -> None:
    paths = re.findall(r"^\| (`/.*?) \|", PAGE.read_text(), re.MULTILINE)
    for path in re.findall(r"`(/[^`]+)`", " ".join(paths)):
        assert httpx.get(served.url + path).status_code == 200, path


def test_every_figure_of_the_page_is_there_and_no_other(served: Serving) -> None:
    figures = httpx.get(f"{served.url}/metrics").text
    have = set(re.findall(r"^# TYPE (\w+) ", figures, re.MULTILINE))
    assert have == set(re.findall(r"`(promote_\w+)`", PAGE.read_text()))
