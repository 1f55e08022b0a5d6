"""What a policy file means, and what it may not say."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import pipelines
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.drift import Action, DriftPolicy
from monitoring.label_policy import LabelMode, LabelPolicy
from monitoring.replay_gate_policy import ReplayGatePolicy
from monitoring.shadow_policy import ShadowMode, ShadowPolicy
from monitoring.written import seconds
from pipelines.policy import OnEmpty, Policy, PolicyError
from pipelines.policy_file import read_policy, schema
from pipelines.rollout import RolloutPolicy
from registry_hooks.model_version import Channel
from serving.revision import RevisionSettings

EXAMPLES = Path(__file__).parents[2] / "examples" / "policies"
SCHEMA = Path(pipelines.__path__[0]) / "policy_schema.json"


def write(folder: Path, text: str, name: str = "churn.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def refused(folder: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(PolicyError) as error:
        read_policy(write(folder, text))
    return error.value.problems


def test_a_policy_that_only_names_its_model_has_the_defaults(tmp_path: Path) -> None:
    read = read_policy(write(tmp_path, "model: churn"))
    assert (read.names, read.policy) == (("churn",), Policy())


EVERYTHING = """
models: [churn, "fraud-*"]
channels: {live: "@champion", pre_live: "@challenger"}
require: [Staging, "@checked"]
on_empty: remove
rollout: {steps: [1, 10, 100], step_min: 30s, step_max: 2h, build: 1.5h, ready: 90, promote: 1h30m, pause: 2d,
          keep_warm: 0, restarts: 0, require_signature: true}
analysis: {alpha_rollback: 0.02, alpha_promote: 0.1, margin_ratio: 0, margin_points: 0.001, exposure: 0.05}
serving: {workers: 4, memory_mb: 2048, cpus: 2, drain: 10s, environment: {B: "2", A: "1"},
          log_drop: [email, phone], log_hash: [customer]}
drift: {schedule: 30 6 * * 1, timezone: Europe/Berlin, window: 7d, minimum_rows: 1000, distances: {age: 0.2},
        ignore: [id], action: rollback}
"""


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    read = read_policy(write(tmp_path, EVERYTHING))
    variables = (("A", "1"), ("B", "2"), ("PREDICTION_LOG_DROP", "email,phone"), ("PREDICTION_LOG_HASH", "customer"))
    rollout = RolloutPolicy(
        (1, 10, 100),
        step_min_seconds=30,
        step_max_seconds=7200,
        build_seconds=5400,
        ready_seconds=90,
        promote_seconds=5400,
        pause_seconds=172800,
        keep_warm_seconds=0,
        restarts=0,
        require_signature=True,
    )
    analysis = AnalysisPolicy(0.02, 0.1, 0, 0.001, 0.05)
    drift = DriftPolicy("30 6 * * 1", "Europe/Berlin", window_seconds=604800, minimum_rows=1000, action=Action.ROLLBACK)
    assert read.names == ("churn", "fraud-*")
    assert read.policy == Policy(
        Channel.parse("@champion"),
        Channel.parse("@challenger"),
        OnEmpty.REMOVE,
        (Channel.parse("Staging"), Channel.parse("@checked")),
        replace(rollout, analysis=analysis, settings=RevisionSettings(4, 2048, 2.0, 10.0, variables)),
        replace(drift, distances={"age": 0.2}, ignore=("id",)),
    )
    assert repr(read.policy.rollout.settings.cpus) == "2.0", "the id of a revision is made from the words"


@pytest.mark.parametrize("none", ["none", "null", "~", ""])
def test_no_pre_live_channel(tmp_path: Path, none: str) -> None:
    read = read_policy(write(tmp_path, f"model: churn\nchannels:\n  pre_live: {none}"))
    assert read.policy.pre_live is None


def test_a_model_that_is_not_watched(tmp_path: Path) -> None:
    assert read_policy(write(tmp_path, "model: churn\ndrift: {enabled: false}")).policy.drift is None


@pytest.mark.parametrize("names", ['"churn-*"', '["churn-*"]', '\n  - "churn-*"'])
def test_one_pattern_or_a_list_of_them(tmp_path: Path, names: str) -> None:
    assert read_policy(write(tmp_path, f"models: {names}")).names == ("churn-*",)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(90, 90), (0.5, 0.5), ("90", 90), ("30s", 30), ("10m", 600), ("24h", 86400), ("1.5d", 129600), ("250ms", 0.25)],
)
def test_durations(given: object, expected: float) -> None:
    assert seconds(given) == pytest.approx(expected)


MISTAKES = [
    ("rollout: {steps: [5, 101]}", "rollout.steps[1]: must be less than or equal to 100, not 101"),
    ("rollout: {steps: [0, 100]}", "rollout.steps[0]: must be greater than or equal to 1, not 0"),
    ("rollout: {steps: [5.5, 100]}", "rollout.steps[0]: must be a valid integer, not 5.5"),
    ("rollout: {steps: ['5', 100]}", "rollout.steps[0]: must be a valid integer, not '5'"),
    ("rollout: {steps: 100}", "rollout.steps: must be a list, not 100"),
    ("rollout: {steps: []}", "rollout.steps: must hold at least one step; the last one is 100"),
    ("rollout: {steps: [5, 5, 100]}", "rollout.steps[1]: must be above the step before it, 5, not 5"),
    ("rollout: {steps: [50, 20, 100]}", "rollout.steps[1]: must be above the step before it, 50, not 20"),
    ("rollout: {steps: [5, 50]}", "rollout.steps[1]: must be 100, because it is the last step, not 50"),
    ("rollout: {step_min: 2h}", "rollout.step_min: must not be above step_max, 3600 s, not 7200 s"),
    ("rollout: {step_max: 30s}", "rollout.step_min: must not be above step_max, 30 s, not 60 s"),
    ("rollout: {step_min: -1}", "rollout.step_min: must be greater than or equal to 0, not -1"),
    ("rollout: {step_min: .inf}", "rollout.step_min: must be a finite number, not inf"),
    ("rollout: {ready: 0}", "rollout.ready: must be greater than 0, not 0"),
    (
        "rollout: {ready: 10 min}",
        "rollout.ready: must be seconds or a duration such as 30s, 10m or 24h, not '10 min'",
    ),
    ("rollout: {ready: true}", "rollout.ready: must be a valid number, not True"),
    ("rollout: {restarts: -1}", "rollout.restarts: must be greater than or equal to 0, not -1"),
    ("rollout: {require_signature: 1}", "rollout.require_signature: must be a valid boolean, not 1"),
    ("rollout: fast", "rollout: must be keys and values (key: value), not 'fast'"),
    ("analysis: {alpha_rollback: 0}", "analysis.alpha_rollback: must be greater than 0, not 0"),
    ("analysis: {alpha_promote: 1}", "analysis.alpha_promote: must be less than 1, not 1"),
    ("analysis: {margin_points: -0.1}", "analysis.margin_points: must be greater than or equal to 0, not -0.1"),
    ("serving: {workers: 0}", "serving.workers: must be greater than or equal to 1, not 0"),
    ("serving: {cpus: 0}", "serving.cpus: must be greater than 0, not 0"),
    ("serving: {environment: {A: 1}}", "serving.environment.A: must be a valid string, not 1"),
    ("serving: {environment: [A]}", "serving.environment: must be keys and values (key: value), not ['A']"),
    ("serving: {replicas: 3, max_replicas: 2, cpus: 1}", "serving.max_replicas: must not be below replicas, 3, not 2"),
    (
        "serving: {max_replicas: 2}",
        "serving.cpus: must be given with max_replicas: a replica is busy by its share of them",
    ),
    ("serving: {log_drop: ['a,b']}", "serving.log_drop[0]: must not hold a comma, as 'a,b'"),
    (
        "serving: {log_drop: [a, b], log_hash: [b]}",
        "serving.log_hash: must not hold 'b', which log_drop leaves out",
    ),
    ("on_empty: drop", "on_empty: must be 'keep' or 'remove', not 'drop'"),
    (
        "channels: {live: Prod}",
        "channels.live: 'Prod' is neither a stage (Staging, Production, Archived) nor an alias (@name)",
    ),
    ("channels: {live: Staging}", "channels.pre_live: must be another channel than live, not Staging too"),
    ("channels: {live: null}", "channels.live: must be a valid string, not None"),
    ("require: [Production]", "require: must not hold the live channel itself, Production"),
    ("drift: {action: shout}", "drift.action: must be 'alert' or 'rollback', not 'shout'"),
    ("drift: {window: 0}", "drift.window: must be positive"),
    ("drift: {minimum_rows: 0}", "drift.minimum_rows: must be positive"),
    ("drift: {most_rows: 10}", "drift.most_rows: must not be less than minimum_rows"),
    ("drift: {false_alarms: 1}", "drift.false_alarms: must be at least 0.005 and below 1"),
    ("drift: {timezone: Mars}", "drift.timezone: must be the name of a time zone such as Europe/Berlin, not 'Mars'"),
    (
        "drift: {schedule: hourly}",
        "drift.schedule: must be seconds or a duration such as 30s, 10m or 24h, "
        "or a cron expression such as '0 6 * * *', not 'hourly'",
    ),
    (
        "drift: {schedule: 0}",
        "drift.schedule: must be a positive duration or a cron expression such as '0 6 * * *', not 0",
    ),
    (
        "rollout: {stesp: [100]}",
        "rollout.stesp: is not known; did you mean 'steps'? Allowed here: bake, bake_weight, build, keep_warm",
    ),
    ("rollouts: {}", "rollouts: is not known; did you mean 'rollout'? Allowed here: analysis, channels"),
    ("zzz: 1", "zzz: is not known; Allowed here: analysis, channels"),
    ("models: [churn]", "model: must name the model, or 'models' several; one of the two"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_each_mistake_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (line,) = refused(tmp_path, f"model: churn\n{text}")
    assert line.startswith(f"churn.yaml: {said}")
    assert line == f"churn.yaml: {said}" or "Allowed here" in said


def test_a_cron_expression_that_never_comes(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, "model: churn\ndrift: {schedule: 61 * * * *}")
    assert line.startswith("churn.yaml: drift.schedule: must be a duration or a cron expression, not '61 * * * *': ")


def test_every_mistake_of_a_file_is_told(tmp_path: Path) -> None:
    lines = refused(tmp_path, "model: 7\nrollout: {steps: [0], ready: soon}\nserving: {cpu: 1}\n")
    paths = [line.split(": ")[1] for line in lines]
    assert paths == ["model", "rollout.steps[0]", "rollout.ready", "serving.cpu"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: churn\nchannels:\n  live: @champion", "is not YAML: line 3: .*'@'.*in quotes: \"@champion\""),
        ("model: churn\nmodel: fraud", "is not YAML: line 1: the key 'model' stands twice"),
        ("model: [churn", "is not YAML: line 1: "),
        ("just words", r"must hold keys and values \(key: value\)"),
        ("1: 2", r"must hold keys and values \(key: value\)"),
        ("", "model: must name the model, or 'models' several"),
        ("model: 'churn-*'", "model: must be one name; patterns stand under 'models', not 'churn-"),
        ("models: []", "model: must name the model, or 'models' several"),
        ("model: ''", "model: must .*at least 1 character"),
        ("model: churn\nrequire: !!python/object:os.system x", "is not YAML: line 2: "),
    ],
)
def test_files_that_are_no_policy(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=f"^churn.yaml: {said}"):
        read_policy(write(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"^gone\.yaml: cannot be read: No such file"):
        read_policy(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: \xff")
    with pytest.raises(PolicyError, match=r"^latin\.yaml: cannot be read: "):
        read_policy(tmp_path / "latin.yaml")


# The JSON Schema


def test_the_schema_for_editors_is_current() -> None:
    """After a change of what a policy can say: mlflow-promote policy schema > pipelines/policy_schema.json."""
    assert json.loads(SCHEMA.read_text()) == schema()


def valid(policy: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).is_valid(policy))


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_the_examples_are_policies(file: Path) -> None:
    assert read_policy(file).names
    assert valid(yaml.safe_load(file.read_text()))


def test_the_schema_takes_what_the_reader_takes() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert valid(yaml.safe_load(EVERYTHING))
    assert valid({"model": "churn", "channels": {"pre_live": None}, "drift": {"schedule": "6h"}})


@pytest.mark.parametrize(
    "text",
    ["zzz: 1", "rollout: {stesp: [100]}", "rollout: {steps: [101]}", "rollout: {ready: soon}", "on_empty: drop"],
)
def test_the_schema_refuses_what_an_editor_can_see(text: str) -> None:
    assert not valid({"model": "churn", **yaml.safe_load(text)})


def test_every_field_has_a_key_with_words() -> None:
    parts = schema()["$defs"]
    made_of = {
        "Rollout": RolloutPolicy,
        "Replay": ReplayGatePolicy,
        "Shadow": ShadowPolicy,
        "Labels": LabelPolicy,
        "Serving": RevisionSettings,
        "Drift": DriftPolicy,
    }
    others = {"settings", "analysis", "replay", "shadow", "labels"}
    for name, cls in made_of.items():
        keys = {field.name.removesuffix("_seconds") for field in fields(cls)} - others
        assert keys <= parts[name]["properties"].keys()
        worded = [key for key, about in parts[name]["properties"].items() if "description" in about or "$ref" in about]
        assert set(worded) == set(parts[name]["properties"])


def test_a_replay_gate_is_written_as_it_is_called(tmp_path: Path) -> None:
    file = tmp_path / "churn.yaml"
    file.write_text("model: churn\nreplay: {requests: 50, max: 2m, most_failed: 1, values: false}\n")
    expected = ReplayGatePolicy(requests=50, max_seconds=120.0, most_failed=1, values=False)
    assert read_policy(file).policy.rollout.replay == expected


@pytest.mark.parametrize(
    "wrong", ["requests: -1", "max: 0s", "max: 10m", "request: 0s", "most_changed: 1.5", "latency_tolerance: -1"]
)
def test_a_wrong_replay_gate_is_named(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "churn.yaml"
    file.write_text(f"model: churn\nreplay: {{{wrong}}}\n")
    with pytest.raises(PolicyError, match=f"replay.{wrong.partition(':')[0]}"):
        read_policy(file)


@pytest.mark.parametrize("mode", [mode.value for mode in ShadowMode])
def test_every_mode_of_the_shadow_stage_is_written_as_it_is_called(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "churn.yaml"
    file.write_text(f"model: churn\nshadow: {{mode: {mode}, requests: 20, max: 2m, most_changed: 0.2}}\n")
    expected = ShadowPolicy(ShadowMode(mode), requests=20, max_seconds=120.0, most_changed=0.2)
    assert read_policy(file).policy.rollout.shadow == expected


@pytest.mark.parametrize(
    "wrong", ["mode: later", "requests: 0", "max: 0s", "most_changed: 1.5", "latency_tolerance: -1"]
)
def test_a_wrong_shadow_stage_is_named(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "churn.yaml"
    file.write_text(f"model: churn\nshadow: {{{wrong}}}\n")
    with pytest.raises(PolicyError, match=f"shadow.{wrong.partition(':')[0]}"):
        read_policy(file)


@pytest.mark.parametrize("mode", [mode.value for mode in LabelMode])
def test_every_mode_of_labels_is_written_as_it_is_called(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "churn.yaml"
    file.write_text(f"model: churn\nlabels: {{mode: {mode}, wait: 2h, deadline: 48h, scale: 2.5}}\n")
    expected = LabelPolicy(LabelMode(mode), wait_seconds=7200.0, deadline_seconds=172800.0, scale=2.5)
    assert read_policy(file).policy.rollout.labels == expected


@pytest.mark.parametrize("wrong", ["mode: later", "wait: 0s", "deadline: 0s", "scale: 0", "scale: -1"])
def test_wrong_labels_are_named(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "churn.yaml"
    file.write_text(f"model: churn\nlabels: {{{wrong}}}\n")
    with pytest.raises(PolicyError, match=f"labels.{wrong.partition(':')[0]}"):
        read_policy(file)


def test_a_weight_of_labels_that_nobody_waits_for_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "churn.yaml"
    weights = "analysis: {weight_latency: 0.3, weight_labels: 0.1}"
    file.write_text(f"model: churn\n{weights}\n")
    with pytest.raises(PolicyError, match=r"analysis\.weight_labels: must be 0 where labels\.mode is off"):
        read_policy(file)
    file.write_text(f"model: churn\n{weights}\nlabels: {{mode: report}}\n")
    assert read_policy(file).policy.rollout.analysis.weight_labels == 0.1


@pytest.mark.parametrize("without", ["rollout: {steps: [100]}", "shadow: {mode: instead}"])
def test_all_traffic_cannot_wait_for_labels_without_a_canary(tmp_path: Path, without: str) -> None:
    file = tmp_path / "churn.yaml"
    file.write_text(f"model: churn\nlabels: {{mode: report}}\n{without}\n")
    assert read_policy(file).policy.rollout.labels.mode is LabelMode.REPORT
    file.write_text(f"model: churn\nlabels: {{mode: gate}}\n{without}\n")
    with pytest.raises(PolicyError, match=r"labels\.mode: must not be gate where"):
        read_policy(file)
