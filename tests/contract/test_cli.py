"""The real console command as a process, against the real API over an installation in memory."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest

from monitoring.blocks import ArmCount, Seen
from monitoring.labels import Label
from pipelines.rollout import Goal, Phase, Rollout
from registry_hooks.model_version import ModelVersion
from serving.workshop import workshop
from tests.contract.api_server import Served, serving
from tests.fakes.installation import Installation

COMMAND = Path(sys.executable).with_name("mlflow-promote")
CHURN = [ModelVersion("churn", version) for version in range(5)]


@pytest.fixture
def served() -> Iterator[Served]:
    """Versions 1 and 2 of churn went live one after the other; version 3 is registered."""
    office = Installation()
    office.went_live(CHURN[1], CHURN[2])
    office.registered("churn", 1)
    with serving(office) as served:
        yield served


def environment(url: str | None, more: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROMOTE_")}
    return {**kept, **({"PROMOTE_URL": url} if url else {}), "COLUMNS": "200", "LOGNAME": "ada", **(more or {})}


def run(url: str | None, *words: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [COMMAND, *words], env=environment(url, environ), capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in ended.stderr
    return ended


def answer(url: str | None, *words: str, code: int = 0, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The one JSON object that the command prints, with the exit code that it has to have."""
    ended = run(url, *words, "--json", environ=environ)
    assert ended.returncode == code, ended.stdout + ended.stderr
    body = json.loads(ended.stdout)
    assert isinstance(body, dict)
    return body


@contextmanager
def controller(office: Installation, *moves: Callable[[Rollout], Rollout]) -> Iterator[None]:
    """Takes up what waits, and from the first intent on moves the rollout in progress by one of `moves` at a time."""
    over = threading.Event()

    def work() -> None:
        left: list[Callable[[Rollout], Rollout]] = []
        while not over.wait(0.1):
            for intent in office.store.pending():
                left = list(moves)
                if intent.goal in (Goal.LIVE, Goal.RESTORE):
                    office.taken_up(intent)
                else:
                    office.store.settle([intent.id], f"rollout {office.store.active()[0].id}")
            for rollout in office.store.active() if left else ():
                office.store.save(left.pop(0)(rollout))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=30)


def to(phase: Phase, reason: str = "", *, settled: bool = False, **more: Any) -> Callable[[Rollout], Rollout]:
    return lambda rollout: replace(rollout, phase=phase, reason=reason, settled=settled, **more)


def test_promote_waits_until_the_version_is_live_and_prints_a_line_per_change(served: Served) -> None:
    counted = served.office.counted

    def compared(rollout: Rollout) -> Rollout:
        moved = counted(rollout, ArmCount(950, 5), ArmCount(50, 1))
        return replace(moved, phase=Phase.PROGRESSING, reason="Too early")

    def later(rollout: Rollout) -> Rollout:
        time.sleep(1.2)
        return replace(rollout, phase=Phase.SUCCEEDED, reason="Good enough", settled=True)

    with controller(served.office, to(Phase.BUILDING), compared, later):
        ended = run(served.url, "promote", "churn", "3")

    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()
    assert said[0].startswith("live churn 3 (rollout ")
    assert "About " in said[0]
    assert any("progressing, weight 5 %" in line and "candidate 50 requests, 1 failed" in line for line in said)
    assert said[-1] == "churn 3: live, Good enough"


@pytest.mark.parametrize(
    ("moves", "code", "result"),
    [
        ([to(Phase.SUCCEEDED, settled=True)], 0, "live"),
        ([to(Phase.ROLLING_BACK, "worse"), to(Phase.FAILED, "worse", settled=True)], 1, "rolled back"),
        ([to(Phase.PAUSED, "not enough evidence", resume=Phase.PROGRESSING)], 3, "not enough evidence"),
        ([to(Phase.PAUSED, "paused by bob", resume=Phase.PROGRESSING, held=True)], 3, "paused"),
        ([to(Phase.HALTED, "no other revision is ready")], 4, "halted"),
    ],
)
def test_the_exit_code_tells_how_a_promotion_ended(
    served: Served, moves: Sequence[Callable[[Rollout], Rollout]], code: int, result: str
) -> None:
    with controller(served.office, *moves):
        body = answer(served.url, "promote", "churn", "3", code=code)
    assert body["result"] == result
    assert body["rollout"]["version"] == 3


def test_a_promotion_that_the_controller_refuses_later_is_not_waited_for_forever(served: Served) -> None:
    office = served.office
    over = threading.Event()

    def refuse() -> None:
        while not over.wait(0.1):
            office.store.settle([intent.id for intent in office.store.pending()], "superseded by version 4")

    thread = threading.Thread(target=refuse)
    thread.start()
    try:
        body = answer(served.url, "promote", "churn", "3", code=1)
    finally:
        over.set()
        thread.join()
    assert body["error"] == "refused"
    assert "superseded by version 4" in body["message"]


def test_without_waiting_the_answer_is_what_was_accepted(served: Served) -> None:
    body = answer(served.url, "promote", "churn", "3", "--no-wait")
    (intent,) = served.office.store.pending()
    assert body["intent"] == intent.id
    assert intent.actor == "ada"


def test_a_dry_run_starts_nothing(served: Served) -> None:
    ended = run(served.url, "promote", "churn", "3", "--dry-run")
    assert ended.returncode == 0
    assert "not started" in ended.stdout
    assert "Found in that time in 9 of 10 rollouts" in ended.stdout
    assert served.office.store.pending() == ()


def test_a_calm_version_is_calibrated(served: Served) -> None:
    calm = tuple(Seen(20.0 + number % 7, (0.5,), 1e9 + number / 8, error=number % 97 == 0) for number in range(800))
    served.office.blocks.requests["churn"] = calm
    ended = run(served.url, "calibrate", "churn", "--runs", "10")
    assert ended.returncode == 0
    assert "every request assigned by chance: 0 of 10 taken back" in ended.stdout
    assert "Nothing has to be changed" in ended.stdout


def test_without_requests_nothing_is_calibrated(served: Served) -> None:
    ended = run(served.url, "calibrate", "churn")
    assert ended.returncode == 1
    assert "0 requests of the stable version are recorded" in ended.stderr


@pytest.mark.parametrize("verb", ["abort", "rollback"])
def test_ending_a_rollout_is_done_when_it_is_taken_back(served: Served, verb: str) -> None:
    served.office.began(CHURN[3], Phase.PROGRESSING)
    with controller(served.office, to(Phase.ROLLING_BACK), to(Phase.FAILED, f"{verb} by ada", settled=True)):
        assert answer(served.url, verb, "churn")["result"] == "rolled back"


def test_rollback_without_a_rollout_makes_the_former_version_live(served: Served) -> None:
    with controller(served.office, to(Phase.SUCCEEDED, settled=True)):
        body = answer(served.url, "rollback", "churn")
    assert (body["result"], body["rollout"]["version"]) == ("live", 1)


def test_pause_and_resume(served: Served) -> None:
    rollout = served.office.began(CHURN[3], Phase.PROGRESSING)
    assert answer(served.url, "pause", "churn")["goal"] == "pause"
    served.office.store.save(replace(rollout, phase=Phase.PAUSED, resume=Phase.PROGRESSING))
    assert answer(served.url, "resume", "churn")["goal"] == "resume"


def test_ctrl_c_leaves_the_rollout_running_and_says_so(served: Served) -> None:
    with controller(served.office, to(Phase.BUILDING)):
        waiting = subprocess.Popen(
            [COMMAND, "promote", "churn", "3"],
            env=environment(served.url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stdout is not None
        while "building" not in waiting.stdout.readline():
            assert waiting.poll() is None
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert "the rollout goes on" in said
    assert "Traceback" not in said
    assert served.office.store.active()[0].phase is Phase.BUILDING


def test_status_as_a_table_and_as_json(served: Served) -> None:
    rollout = served.office.began(CHURN[3], Phase.PROGRESSING)
    served.office.counted(rollout, ArmCount(950, 5), ArmCount(50, 1))
    served.office.problems["other.yaml"] = "is [no] YAML"

    shown = run(served.url, "status").stdout
    for part in (
        "churn",
        "version 2",
        "3 progressing",
        "0.53% (0.2-1.2) of 950",
        "good enough for all",
        "other.yaml: is [no] YAML",
        "churn 1",
    ):
        assert part in shown
    assert answer(served.url, "status", "churn")["models"][0]["version"] == 2


def test_status_of_nothing(served: Served) -> None:
    with serving(Installation()) as empty:
        assert "nothing is live" in run(empty.url, "status").stdout


def test_history_and_drift(served: Served) -> None:
    answer(served.url, "rollback", "churn", "--no-wait")
    assert "asked for by ada" in run(served.url, "history", "churn").stdout
    assert answer(served.url, "history", "churn", "--limit", "1")["events"][0]["actor"] == "ada"
    assert answer(served.url, "drift", "report", "churn", code=2)["error"] == "no_report"
    assert "no drift in 700 rows" in run(served.url, "drift", "run", "churn").stdout
    assert answer(served.url, "drift", "report", "churn")["data"]["documents"] == ["promote/drift/latest.html"]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_file_of_labels_is_sent(served: Served, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"labels.{kind}"
    rows = pd.DataFrame(
        {
            "request_id": [f"r{number}" for number in range(6_000)],
            "label": [None, *range(5_999)],
            "customer": "somebody",
        }
    )
    write = {"parquet": rows.to_parquet, "csv": lambda to: rows.to_csv(to, index=False)}
    write.get(kind, lambda to: rows.to_json(to, orient="records", lines=True))(file)
    assert answer(served.url, "labels", str(file)) == {"new": 5_999, "repeated": 0, "awaited": 0}
    assert served.office.blocks.labels["r5999", 0] == Label("r5999", 0, 5998.0)
    again = run(served.url, "labels", str(file)).stdout
    assert (
        again
        == "0 labels kept, 0 of them of answers that a rollout waits for; 5,999 rows had one already, which counts\n"
    )


def test_an_empty_word_is_no_label(served: Served, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("request_id,label\na,yes\nb,\nc,no\n")
    assert answer(served.url, "labels", str(tmp_path / "labels.csv"))["new"] == 2
    assert {key for key, _ in served.office.blocks.labels} == {"a", "c"}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("labels.csv", "id,label\na,1\n", "no column request_id"),
        ("labels.csv", "request_id,truth\na,1\n", "no column label"),
        ("labels.csv", "request_id,label\n,1\na,1\n", "request_id is empty in 1 rows"),
        ("labels.jsonl", '{"request_id": "a", "label": [1, 2]}', "a column is of a kind that cannot be sent"),
        ("labels.parquet", "nonsense", "cannot be read"),
        ("labels.xlsx", "nonsense", "not a kind of file that is known"),
        ("labels.csv", "request_id,loss\na,1.5\n", "labels.0.loss"),
    ],
)
def test_a_wrong_file_of_labels_is_named(served: Served, tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    ended = run(served.url, "labels", str(tmp_path / name))
    assert ended.returncode == 2
    assert told in ended.stderr
    assert run(served.url, "labels", str(tmp_path / "none.csv")).returncode == 2


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["promote", "none", "1"], 2, "unknown_model"),
        (["promote", "churn", "99"], 2, "unknown_version"),
        (["promote", "churn", "2"], 2, "already_live"),
        (["abort", "churn"], 2, "no_rollout"),
    ],
)
def test_a_refusal_is_one_line_and_what_to_do(served: Served, words: list[str], code: int, error: str) -> None:
    assert answer(served.url, *words, code=code)["error"] == error
    ended = run(served.url, *words)
    assert (ended.returncode, ended.stdout) == (code, "")
    first, second = ended.stderr.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("  ")


def test_an_unreachable_registry_exits_with_5(served: Served) -> None:
    served.office.registry.broken = True
    assert answer(served.url, "promote", "churn", "3", code=5)["error"] == "registry_unreachable"


def test_an_unreachable_controller_exits_with_5_and_says_what_to_do() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        ended = run(url, "status")
        assert ended.returncode == 5
        assert ended.stderr.splitlines()[0] == f"error: no controller answers at {url}"
        assert "mlflow-promote up" in ended.stderr
        assert answer(url, "promote", "churn", "3", code=5)["error"] == "controller_unreachable"


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://[::1"])
def test_an_impossible_address_is_no_traceback(url: str) -> None:
    assert answer(url, "status", code=5)["error"] == "controller_unreachable"


def test_the_token_comes_from_the_environment() -> None:
    with serving(Installation(), token="secret") as served:
        assert answer(served.url, "status", code=2)["error"] == "unauthorized"
        assert answer(served.url, "status", environ={"PROMOTE_TOKEN": "secret"})["models"] == []


@pytest.mark.parametrize(
    "words", [["promote", "churn"], ["promote", "churn", "seven"], ["promote", "churn", "0"], ["fly"]]
)
def test_wrong_arguments_exit_with_2(words: list[str]) -> None:
    assert run("http://127.0.0.1:1", *words).returncode == 2


def test_help_documents_the_exit_codes() -> None:
    ended = run(None, "--help")
    assert ended.returncode == 0
    assert "Exit codes: 0 live" in ended.stdout


def test_following_verbs_load_nothing_heavy() -> None:
    code = "import pipelines.cli, sys; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"mlflow", "pandas", "evidently", "fastapi", "pydantic", "sqlalchemy"}
    assert not heavy & set(ended.stdout.split())


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of an installation on ports of its own, where nothing runs."""
    names = ("PROMOTE_MLFLOW_PORT", "PROMOTE_API_PORT", "PROMOTE_GATEWAY_PORT", "PROMOTE_ADMIN_PORT")
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: str(probe.getsockname()[1]) for name, probe in zip(names, probes, strict=True)}
    for probe in probes:
        probe.close()
    return {"PROMOTE_HOME": str(tmp_path), **ports}


def test_the_address_comes_from_the_settings_where_none_is_named(home: dict[str, str]) -> None:
    body = answer(None, "status", code=5, environ=home)
    assert home["PROMOTE_API_PORT"] in body["message"]


def test_wrong_settings_are_told_with_their_name(home: dict[str, str]) -> None:
    ended = run(None, "status", environ=home | {"PROMOTE_API_PORT": "many"})
    assert ended.returncode == 2
    assert "PROMOTE_API_PORT" in ended.stderr


def test_policies_are_checked_with_file_and_field(home: dict[str, str]) -> None:
    assert answer(None, "policy", "check", environ=home) == {"ok": True, "problems": []}

    folder = Path(home["PROMOTE_HOME"]) / "policies"
    folder.mkdir()
    (folder / "churn.yaml").write_text("model: churn\nrollout:\n  steps: [50, 20]\n")
    body = answer(None, "policy", "check", code=1, environ=home)
    assert body["problems"]
    assert all(problem.startswith("churn.yaml: rollout.steps") for problem in body["problems"])
    assert "rollout.steps" in run(None, "policy", "check", str(folder / "churn.yaml")).stdout


def test_the_schema_is_a_json_schema() -> None:
    schema = json.loads(run(None, "policy", "schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert jsonschema.Draft202012Validator(schema).is_valid({"model": "churn"})


def test_the_doctor_tells_of_every_part_and_what_is_wrong(home: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(home["PROMOTE_GATEWAY_PORT"]))):
        body = answer(None, "doctor", code=1, environ=home)
    checks = {check["name"]: check for check in body["checks"]}
    assert {"MLflow", "Envoy", "Evidently", "store", "packages", "policies"} <= set(checks)
    assert [name for name, check in checks.items() if not check["ok"]] == ["port of the gateway"]
    assert "another port" in checks["port of the gateway"]["advice"]


def test_up_refuses_a_port_that_somebody_else_has(home: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(home["PROMOTE_API_PORT"]))):
        body = answer(None, "up", code=2, environ=home)
    assert body["error"] == "port"


def test_down_of_nothing_is_fine(home: dict[str, str]) -> None:
    assert answer(None, "down", environ=home) == {"stopped": True, "controller_ran": False}


def test_hooks_need_a_secret(home: dict[str, str]) -> None:
    body = answer(None, "hooks", "install", "https://promote.example", code=2, environ=home)
    assert "PROMOTE_WEBHOOK_SECRET" in body["hint"]


def test_on_a_terminal_the_display_renews_itself(served: Served) -> None:
    master, terminal = pty.openpty()
    with controller(served.office, to(Phase.BUILDING, "installing"), to(Phase.SUCCEEDED, settled=True)):
        waiting = subprocess.Popen(
            [COMMAND, "promote", "churn", "3"],
            env=environment(served.url, {"TERM": "xterm"}),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        shown = b"".join(_read(master))
    assert waiting.wait(timeout=60) == 0
    assert b"\x1b[" in shown
    assert b"live" in shown.splitlines()[-1]


def _read(master: int) -> Iterator[bytes]:
    """What a terminal shows, until the last program at its other end has ended."""
    with open(master, "rb", buffering=0) as screen:
        while True:
            try:
                part = screen.read(4096)
            except OSError:
                return
            if not part:
                return
            yield part


def test_images_are_listed_and_those_that_nothing_needs_are_removed(home: dict[str, str]) -> None:
    place = Path(home["PROMOTE_HOME"]) / "environments" / ("1" * 64)
    place.mkdir(parents=True)
    (place / "file").write_bytes(bytes(100_000))
    (row,) = answer(None, "images", environ=home)["images"]
    assert (row["name"], row["kind"], row["goes"], row["why"]) == (f"environments/{place.name}", "packages", True, "")
    assert row["bytes"] >= 100_000
    dry = answer(None, "images", "clean", "--dry-run", environ=home)
    assert (dry["dry_run"], dry["bytes"], dry["refused"]) == (True, row["bytes"], [])
    assert place.exists()
    done = answer(None, "images", "clean", environ=home)
    assert [one["name"] for one in done["removed"]] == [row["name"]]
    assert not place.exists()


def test_no_image_is_removed_while_one_is_being_built(home: dict[str, str]) -> None:
    with workshop(Path(home["PROMOTE_HOME"]) / "building"):
        refused = answer(None, "images", "clean", code=1, environ=home)
    assert "an image is being built" in refused["message"]
