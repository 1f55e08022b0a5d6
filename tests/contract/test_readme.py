"""What the documents show is true: every block in them is run, checked or compiled, and every link leads somewhere.

Shell lines that only ask are run as they stand. Verbs of make are looked up in the Makefile and not run, since
some of them run this test; what would change a machine is only held against the commands' own help.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from typer.main import get_command

from docs import reference
from pipelines.api import create_api
from pipelines.cli import app
from pipelines.following import Exit
from serving.runtime import settings as server_settings
from tests.fakes.installation import Installation

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/configuration.md",
    "docs/commands.md",
    "docs/compose.md",
    "docs/kubernetes.md",
    "docs/serving.md",
    "examples/README.md",
)
COMMANDS = ROOT / "docs" / "commands.md"
SHELL = ("console", "bash", "sh")
ASKING = ("mlflow-promote --help", "mlflow-promote policy")
"""Commands that change nothing and need nothing running: these are run."""
NOT_OURS = ("git ", "curl ", "printf ", "python -m examples", "docker compose ", "kubectl ", "tar ")
"""What other programs do; `test_serving_page` runs the requests to the model server."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a document."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks() -> Iterator[Block]:
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield Block(document, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def of(*languages: str) -> list[Block]:
    return [block for block in blocks() if block.language in languages]


def commands() -> list[tuple[Block, str]]:
    """Every command of every shell block; in ``console`` blocks those after a prompt."""
    shown = [(block, line) for block in of(*SHELL) for line in block.text.splitlines() if line.strip()]
    prompted = [(b, line[2:] if b.language == "console" else line) for b, line in shown if _is_command(b, line)]
    return [(block, part.strip()) for block, line in prompted for part in line.split("&&")]


def _is_command(block: Block, line: str) -> bool:
    return line.startswith("$ ") if block.language == "console" else not line.startswith("#")


def the_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("mlflow-promote")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROMOTE_")}
    return subprocess.run([program, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_every_block_says_its_language_and_is_checked() -> None:
    known = {*SHELL, "yaml", "python", "json", "mermaid", "text"}
    assert [f"{block} {block.language}" for block in blocks() if block.language not in known] == []


@pytest.mark.parametrize(("block", "command"), commands(), ids=str)
def test_a_shell_line_can_be_typed(block: Block, command: str) -> None:
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    if command.startswith(ASKING):
        done = the_program(*words[1:])
        assert done.returncode == 0, done.stdout + done.stderr
    elif words[:1] == ["make"]:
        assert words[1] in verbs(), f"the Makefile has no verb {words[1]}"
    elif words[:1] == ["mlflow-promote"]:
        assert_known(words[1:])
    else:
        assert not words or words[0] == "export" or command.startswith((*NOT_OURS, "cd ")), f"unchecked: {command}"


def verbs() -> set[str]:
    return set(re.findall(r"^([\w.-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def assert_known(words: list[str]) -> None:
    """The command exists and knows every option that is shown."""
    verb = [word for word in words if not word.startswith("-")][: 2 if words[0] in ("drift", "policy", "hooks") else 1]
    helped = the_program(*verb, "--help")
    assert helped.returncode == 0, f"no command {' '.join(verb)}: {helped.stderr}"
    assert [word for word in words if word.startswith("--") and word.partition("=")[0] not in helped.stdout] == []


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml_is_accepted_by_those_who_read_it(block: Block, tmp_path: Path) -> None:
    title = block.text.splitlines()[0].removeprefix("#").strip()
    if title == "settings.yaml":
        (tmp_path / "settings.yaml").write_text(block.text)
        settings(tmp_path / "settings.yaml")
    else:
        (tmp_path / Path(title).name).write_text(block.text)
        checked = the_program("policy", "check", str(tmp_path))
        assert checked.returncode == 0, checked.stdout + checked.stderr
    assert yaml.safe_load(block.text)


def settings(file: Path) -> None:
    """Load settings in a process of its own, so that nothing of this one's environment takes part."""
    loads = "from pipelines.settings import load; load()"
    done = subprocess.run(
        [sys.executable, "-c", loads],
        env={"PROMOTE_CONFIG": str(file), "PATH": os.environ["PATH"], "HOME": str(file.parent)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_runs(block: Block) -> None:
    exec(compile(block.text, str(block), "exec"), {"__name__": "block"})


def test_the_example_policies_are_accepted() -> None:
    checked = the_program("policy", "check", "examples/policies")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_command_and_no_other_is_documented() -> None:
    shown = re.findall(r"^\| `mlflow-promote ([a-z0-9 ]+?)(?: \[?[A-Z]|`)", COMMANDS.read_text(), re.MULTILINE)
    assert set(shown) == set(leaves(get_command(app)))


def leaves(command: Any, path: str = "") -> Iterator[str]:
    below = getattr(command, "commands", None)
    if below is None or (path and command.invoke_without_command):
        yield path.strip()
    for name, part in (below or {}).items():
        yield from leaves(part, f"{path} {name}")


def test_exit_codes_are_documented_in_the_words_of_the_code() -> None:
    documented = dict(re.findall(r"^\| (\d+) \| (.*) \|$", COMMANDS.read_text(), re.MULTILINE))
    assert documented == dict(re.findall(r'= (\d+)\n\s+"""(.*)"""', inspect.getsource(Exit)))


def test_every_path_of_the_api_is_documented() -> None:
    documented = set(re.findall(r"`((?:GET|POST) /[^` ]*)` \|", COMMANDS.read_text().partition("## The gateway")[0]))
    given = Installation()
    api = create_api(
        given.commands,
        given.overview,
        drift=given.checked_for_drift,
        wake=given.woken.append,
        metrics=CollectorRegistry(),
    )
    served = {f"{verb.upper()} {path}" for path, verbs in api.openapi()["paths"].items() for verb in verbs}
    assert documented == served


def test_links_lead_somewhere() -> None:
    links = [
        (document, link)
        for document in (*DOCUMENTS, "CHANGELOG.md", "ARCHITECTURE.md")
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / document).read_text())
        if "://" not in link
    ]
    assert [(d, link) for d, link in links if not (ROOT / d).parent.joinpath(link).exists()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_configuration_page_is_what_the_code_says() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run python -m docs.reference"
    assert reference.SERVING.read_text() == reference.serving_page(), "run python -m docs.reference"


def test_every_setting_says_what_it_means() -> None:
    lines = [*reference.PAGE.read_text().splitlines(), *reference.SERVING.read_text().splitlines()]
    assert [line for line in lines if line.startswith("|") and line.endswith("|  |")] == []


def test_every_variable_of_the_model_server_is_documented() -> None:
    known = set(re.findall(r"[(\s]\"([A-Z][A-Z_]+)\"[,:]", inspect.getsource(server_settings)))
    shown = set(re.findall(r"`([A-Z][A-Z_]+)`", reference.SERVING.read_text()))
    assert known - shown == {"MODEL_NAME", "MODEL_VERSION", "REVISION"}, "whoever starts the server says these"
