"""Which policy a model has, and what becomes of models whose policy is broken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.policies import Policies, check
from pipelines.policy import Policy

DEFAULT = Policy()
BROKEN = "rollout: {steps: [200]}"


class Folder:
    """A folder of policies in which a file can be told by its steps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writes = 0

    def write(self, name: str, text: str) -> Path:
        """Every write looks later than the one before, also where the clock is coarse."""
        self.writes += 1
        file = self.path / name
        file.write_text(text)
        os.utime(file, ns=(self.writes * 10**9,) * 2)
        return file

    def policy(self, name: str, head: str, first_step: int) -> Path:
        return self.write(name, f"{head}\nrollout: {{steps: [{first_step}, 100]}}\n")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def first_step(policies: Policies, model: str) -> int | None:
    policy = policies.for_model(model)
    return None if policy is None else policy.rollout.steps[0]


def test_a_model_that_no_file_names(folder: Folder) -> None:
    folder.policy("churn.yaml", "model: churn", 7)
    assert Policies(folder.path, DEFAULT).for_model("fraud") == DEFAULT
    assert Policies(folder.path, None).for_model("fraud") is None
    assert first_step(Policies(folder.path, None), "churn") == 7


def test_a_folder_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    policies = Policies(tmp_path / "none", DEFAULT)
    assert policies.for_model("churn") == DEFAULT
    assert policies.problems() == {}


@pytest.mark.parametrize(
    ("model", "expected"),
    [("churn", 1), ("churn-eu", 2), ("churn-eu-old", 3), ("churn-us", 4), ("fraud", 5), ("CHURN", 5), ("other.v2", 6)],
)
def test_the_most_exact_claim_decides(folder: Folder, model: str, expected: int) -> None:
    folder.policy("z.yaml", "model: churn", 1)
    folder.policy("y.yml", "models: [churn-eu, unrelated]", 2)
    folder.policy("x.yaml", "models: 'churn-eu-*'", 3)
    folder.policy("w.yaml", "models: ['churn-*', 'churned-*']", 4)
    folder.policy("a.yaml", "models: '*'", 5)
    folder.policy("b.yaml", "models: '*.v[0-9]'", 6)
    policies = Policies(folder.path, DEFAULT)
    assert first_step(policies, model) == expected
    assert policies.problem(model) is None


def test_a_folder_that_vanishes_keeps_what_was_read_from_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "policies")
    folder.path.mkdir()
    folder.policy("churn.yaml", "model: churn", 7)
    policies = Policies(folder.path, DEFAULT)
    moved = folder.path.rename(tmp_path / "elsewhere")
    policies.load()
    assert first_step(policies, "churn") == 7
    assert policies.problems() == {str(folder.path): "is gone; the policies that were read from it still hold"}
    moved.rename(folder.path)
    (folder.path / "churn.yaml").unlink()
    policies.load()
    assert (policies.for_model("churn"), policies.problems()) == (DEFAULT, {})


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "policies"
    file.write_text("model: churn")
    assert Policies(file, DEFAULT).problems() == {str(file): "cannot be read: Not a directory"}


def test_files_that_are_none_of_ours_are_left_alone(folder: Folder) -> None:
    folder.write("README.md", "no policy")
    folder.write(".hidden.yaml", "no policy")
    (folder.path / "..data").mkdir()
    assert Policies(folder.path, DEFAULT).problems() == {}


def test_changes_are_seen(folder: Folder) -> None:
    file = folder.policy("churn.yaml", "model: churn", 7)
    policies = Policies(folder.path, DEFAULT)
    assert first_step(policies, "churn") == 7
    folder.policy("churn.yaml", "model: churn", 8)
    folder.policy("fraud.yaml", "model: fraud", 9)
    policies.load()
    assert (first_step(policies, "churn"), first_step(policies, "fraud")) == (8, 9)
    file.unlink()
    policies.load()
    assert policies.for_model("churn") == DEFAULT


def test_what_did_not_change_is_not_read_again(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.policy("churn.yaml", "model: churn", 7)
    policies = Policies(folder.path, DEFAULT)
    monkeypatch.setattr("pipelines.policies.read_policy", lambda path: pytest.fail(f"{path} was read again"))
    policies.load()
    assert first_step(policies, "churn") == 7


def test_a_broken_file_leaves_its_models_alone_and_no_others(folder: Folder) -> None:
    folder.policy("a.yaml", "models: '*'", 5)
    folder.policy("churn.yaml", "model: churn", 7)
    folder.policy("fraud.yaml", "model: fraud", 9)
    policies = Policies(folder.path, DEFAULT)
    folder.write("churn.yaml", f"model: churn\n{BROKEN}")
    policies.load()
    assert policies.for_model("churn") is None
    assert first_step(policies, "fraud") == 9
    assert first_step(policies, "anything") == 5
    problem = "churn.yaml: rollout.steps[0]: must be less than or equal to 100, not 200"
    assert policies.problem("churn") == problem
    assert policies.problem("fraud") is None
    assert policies.problems() == {"churn": problem}
    folder.policy("churn.yaml", "model: churn", 8)
    policies.load()
    assert (first_step(policies, "churn"), policies.problems()) == (8, {})


def test_a_broken_pattern_leaves_alone_what_nothing_more_exact_names(folder: Folder) -> None:
    folder.write("rest.yaml", f"models: 'churn-*'\n{BROKEN}")
    folder.policy("eu.yaml", "model: churn-eu", 7)
    policies = Policies(folder.path, DEFAULT)
    assert (first_step(policies, "churn-eu"), policies.for_model("churn-us")) == (7, None)
    assert policies.for_model("fraud") == DEFAULT
    assert policies.problems().keys() == {"rest.yaml"}


@pytest.mark.parametrize(
    ("text", "models"),
    [
        (f"models: [a, b]\n{BROKEN}", "ab"),
        (f"models:\n  - a\n  - b\n{BROKEN}", "ab"),
        (f"model: a\nmodels: b\n{BROKEN}", "ab"),
        ("model: a # mine\nrollout: {steps: [", "a"),
        ("models: [a, 'b']\nrollout: {", "ab"),
        ('models:\n  - a # first\n  - "b"\nrollout: {', "ab"),
        ("models:\n- a\n- b\n\trollout:", "ab"),
        ("model: a\nmodel: b", "ab"),
        ("{", "c"),
        ("rollout: {}", "c"),
        ("model: 7", "c"),
    ],
)
def test_a_broken_file_claims_whatever_it_may_mean(folder: Folder, text: str, models: str) -> None:
    folder.write("c.yaml", text)
    policies = Policies(folder.path, DEFAULT)
    assert {model for model in "abcd" if policies.for_model(model) is None} >= set(models)
    assert policies.for_model("d") == DEFAULT


def test_a_file_that_broke_keeps_what_it_claimed_before(folder: Folder) -> None:
    folder.policy("team.yaml", "models: [churn, fraud]", 7)
    policies = Policies(folder.path, DEFAULT)
    folder.write("team.yaml", "{")
    policies.load()
    assert policies.for_model("churn") is policies.for_model("fraud") is None


def test_two_files_for_one_model(folder: Folder) -> None:
    folder.policy("a.yaml", "model: churn", 7)
    folder.policy("b.yaml", "models: [churn, fraud]", 8)
    policies = Policies(folder.path, DEFAULT)
    problem = "a.yaml and b.yaml: both are for churn; one policy per model"
    assert policies.for_model("churn") is None
    assert first_step(policies, "fraud") == 8
    assert policies.problem("churn") == problem
    assert policies.problems() == {"churn": problem}


def test_two_patterns_that_are_equally_exact(folder: Folder) -> None:
    folder.policy("a.yaml", "models: 'churn*'", 7)
    folder.policy("b.yaml", "models: '*churn'", 8)
    policies = Policies(folder.path, DEFAULT)
    assert (first_step(policies, "churn1"), first_step(policies, "1churn")) == (7, 8)
    assert policies.problem("churn") == "a.yaml and b.yaml: both are for churn; one policy per model"


def test_check_tells_everything_one_line_each(folder: Folder) -> None:
    folder.policy("a.yaml", "model: churn", 7)
    assert check([folder.path]) == []
    folder.policy("b.yaml", "model: churn", 8)
    folder.write("c.yaml", f"models: [x, y]\n{BROKEN}\nzzz: 1")
    lines = check([folder.path, folder.path / "gone.yaml"])
    assert [line.split(": ")[:2] for line in lines] == [
        ["c.yaml", "rollout.steps[0]"],
        ["c.yaml", "zzz"],
        ["gone.yaml", "cannot be read"],
        ["a.yaml and b.yaml", "both are for churn; one policy per model"],
    ]
