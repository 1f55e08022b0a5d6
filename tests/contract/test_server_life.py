"""How a model server ends, survives its parts, and deals with clients that are slow, large or gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serving.image import digest_of_file
from serving.prediction_log import read
from serving.runtime.model_files import listed, write
from serving.runtime.plan import Column, Plan
from serving.runtime.plan import read as read_plan
from tests.fixtures.gateway import free_port, until
from tests.fixtures.scoring import ScoringServer, our_server, planned

BODY = json.dumps({"dataframe_records": [{"tenure": 3.0, "charges": 80.0}]}).encode()
HEAD = b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
MOODY = Plan("python_function", True, (Column("mood", "string"), Column("value", "double")))
SECONDS = 20.0
"""How long anything here may take on a busy machine."""


@pytest.fixture(scope="module")
def moody_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    MOODY.write(folder)
    return folder


@pytest.fixture(scope="module")
def impatient(churn_model: Path) -> Iterator[ScoringServer]:
    """A server that cuts its clients after half a second."""
    how = {f"{what}_SECONDS": "0.5" for what in ("HEADER", "BODY", "WRITE")}
    with our_server(churn_model, HEADER_LIMIT="4096", PARITY_SHARE="0", **how) as server:  # type: ignore[arg-type]
        yield server


def moods(mood: str, value: float) -> bytes:
    return json.dumps({"dataframe_records": [{"mood": mood, "value": value}]}).encode()


def family(server: ScoringServer) -> list[psutil.Process]:
    """The server's first process and all that it has started."""
    first = psutil.Process(server.process.pid)
    return [first, *first.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def figure(server: ScoringServer, name: str) -> float:
    """The sum of the samples whose line begins so, by whichever process takes a new connection."""
    told = httpx.get(server.client.base_url.join("/metrics"), timeout=SECONDS).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in told if line.startswith(name))


def connected(server: ScoringServer) -> socket.socket:
    connection = socket.create_connection((server.client.base_url.host, server.client.base_url.port or 0), SECONDS)
    connection.settimeout(SECONDS)
    return connection


def status_of(connection: socket.socket) -> int:
    answer = HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def test_what_is_in_flight_and_in_the_queue_is_answered_before_the_end(
    moody_model: Path, moody_plan: Path, tmp_path: Path
) -> None:
    """16 predictions at once, as many wait, and one more request comes while the server lingers."""
    how: dict[str, Any] = {"THREADS": "16", "PREDICTION_LOG": str(tmp_path), "PREDICTION_LOG_SECONDS": "60"}
    with our_server(moody_model, plan=moody_plan, LINGER="0.5", **how) as server, ThreadPoolExecutor(33) as pool:
        members = family(server)
        jobs = [pool.submit(server.score, moods("sleep 0.7", float(n))) for n in range(32)]
        assert until(lambda: figure(server, "promote_queue_requests") == 16)
        server.process.terminate()
        health = until(lambda: found if (found := server.client.get("/health")).status_code == 503 else None)
        assert health is not None
        assert (health.json()["status"], health.headers["connection"]) == ("stopping", "close")
        assert server.client.get("/ping").status_code == server.client.get("/v2/health/ready").status_code == 503
        late = pool.submit(server.score, moods("fine", 32.0))
        answers = [job.result() for job in [*jobs, late]]
        assert server.process.wait(SECONDS) == 0
        assert gone(members)
    assert [answer.json() for answer in answers] == [{"predictions": [float(n)]} for n in range(33)]
    assert sorted(read(str(tmp_path), "model")["input.value"].to_pylist()) == [float(n) for n in range(33)]


def test_what_does_not_end_in_time_is_told_so(moody_model: Path, moody_plan: Path) -> None:
    how: dict[str, Any] = {"DRAIN": "1.2", "LINGER": "0.1"}
    with our_server(moody_model, plan=moody_plan, **how) as server, ThreadPoolExecutor(1) as pool:
        members = family(server)
        stuck = pool.submit(server.score, moods("sleep 60", 1.0))
        assert until(lambda: figure(server, 'promote_stage_seconds_count{stage="queue"}') >= 1)
        server.process.terminate()
        answer = stuck.result()
        assert (answer.status_code, answer.json()["message"]) == (503, "the server ends")
        assert server.process.wait(SECONDS) == 0
        assert gone(members)


def test_several_processes_share_model_port_and_connections_and_replace_each_other(churn_model: Path) -> None:
    how: dict[str, Any] = {"WORKERS": "2", "LINGER": "0.3", "PARITY_SHARE": "0"}
    with ExitStack() as opened, our_server(churn_model, **how) as server:
        workers = family(server)[1:]
        assert len(workers) == 2
        connections = [opened.enter_context(connected(server)) for _ in range(20)]
        for connection in connections:
            connection.sendall(WHOLE)
        assert {status_of(connection) for connection in connections} == {200}
        per_worker = [figure(server, f'promote_connections{{worker="{n}"}}') for n in range(2)]
        assert min(per_worker) >= 8
        assert figure(server, 'promote_requests_total{code="200"') == 20
        workers[0].kill()
        assert until(lambda: figure(server, 'promote_events_total{event="worker_replaced"}') == 1)
        assert until(lambda: len(family(server)) == 3)
        assert server.score(BODY).status_code == 200
        assert figure(server, 'promote_requests_total{code="200"') == 21
        members = family(server)
        server.process.terminate()
        assert server.process.wait(SECONDS) == 0
        assert gone(members)


def test_one_process_checks_answers_and_the_one_that_takes_its_place_goes_on_with_that(churn_model: Path) -> None:
    how: dict[str, Any] = {"WORKERS": "2", "LINGER": "0.1", "PARITY_SHARE": "1"}
    with ExitStack() as opened, our_server(churn_model, **how) as server:
        first, second = family(server)[1:]
        first.kill()
        (third,) = until(lambda: [worker for worker in family(server)[1:] if worker not in (first, second)])

        def served() -> bool:
            connection = opened.enter_context(connected(server))
            connection.sendall(WHOLE)
            return status_of(connection) == 200 and figure(server, 'promote_connections{worker="0"}') >= 3

        assert until(served)
        assert figure(server, 'promote_connections{worker="1"}') >= 2
        assert until(third.children, 60)
        assert second.children() == []  # which would have begun before


@pytest.mark.parametrize("compiled", [True, False])
def test_nothing_is_left_where_the_first_process_is_killed(
    churn_model: Path, moody_model: Path, moody_plan: Path, compiled: bool
) -> None:
    model, plan = (churn_model, planned(churn_model)) if compiled else (moody_model, moody_plan)
    with our_server(model, plan=plan, WORKERS="2", LINGER="0.3", PARITY_SHARE="0") as server:
        members = family(server)
        assert len(members) == 3
        server.process.kill()
        assert until(lambda: gone(members), SECONDS)


def test_a_model_process_that_dies_is_replaced_and_readiness_tells_the_truth(
    moody_model: Path, moody_plan: Path
) -> None:
    with our_server(moody_model, plan=moody_plan) as server:
        assert server.score(moods("exit", 1.0)).status_code == 500
        told = server.client.get("/health")
        assert (told.status_code, told.json()["status"]) == (503, "starting")
        assert "exited with status 7" in told.json()["warnings"][0]
        assert until(lambda: server.client.get("/ping").status_code == 200, 60)
        assert server.score(moods("fine", 1.0)).status_code == 200
        assert figure(server, 'promote_events_total{event="worker_replaced"}') == 1


def test_a_server_that_is_told_to_end_while_its_model_is_loaded_ends_quietly(
    moody_model: Path, moody_plan: Path, tmp_path: Path
) -> None:
    """All its processes are told, as supervisors do; where the model's process was then is nothing for the log."""
    said = tmp_path / "said"
    command = [sys.executable, "-m", "serving.runtime", "--model", str(moody_model), "--plan", str(moody_plan)]
    with said.open("w") as output:
        server = subprocess.Popen(
            [*command, "--port", "0"], env={**os.environ, "LOG_FORMAT": "text"}, stderr=output, process_group=0
        )
    try:
        loading = until(psutil.Process(server.pid).children)
        until(lambda: loading[0].cpu_times().user > 0.5)
        os.killpg(server.pid, signal.SIGTERM)
        assert server.wait(SECONDS) == 0
        assert until(lambda: gone(loading))
    finally:
        server.kill()
    assert [line for line in said.read_text().splitlines() if " INFO " not in line] == []


def failed_start(model: Path, plan: Path, **environment: str) -> list[str]:
    """What a server says that ends by itself."""
    command = [sys.executable, "-m", "serving.runtime", "--model", str(model), "--plan", str(plan)]
    done = subprocess.run(
        [*command, "--port", str(free_port())],
        env={**os.environ, "LOG_FORMAT": "text", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return [line.split(": ", 1)[1] for line in done.stderr.splitlines() if "the server cannot start" in line]


def test_a_model_that_cannot_be_loaded_ends_the_server_with_the_reason(moody_model: Path, moody_plan: Path) -> None:
    (reason,) = failed_start(moody_model, moody_plan, MOOD="broken")
    assert "this model cannot be loaded" in reason


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_compiled_model_that_is_not_the_proved_one_ends_the_server(
    churn_model: Path, tmp_path: Path, workers: str
) -> None:
    plan = read_plan(planned(churn_model))
    assert plan.compiled is not None
    replace(plan, compiled=replace(plan.compiled, digest="0" * 64)).write(tmp_path)
    (tmp_path / plan.compiled.file).write_bytes((planned(churn_model) / plan.compiled.file).read_bytes())
    (reason,) = failed_start(churn_model, tmp_path, WORKERS=workers)
    assert "not the file that was proved" in reason


def test_without_a_plan_there_is_no_server(churn_model: Path, tmp_path: Path) -> None:
    (reason,) = failed_start(churn_model, tmp_path)
    assert "plan.json" in reason


def test_headers_that_are_too_large_are_refused(impatient: ScoringServer) -> None:
    for name in (b"x-much: ", b"x-%b: " % (b"n" * 3000)):
        with connected(impatient) as connection:
            connection.sendall(HEAD + name + b"a" * 2000 + b"\r\n" + b"x-more: " + b"b" * 4000 + b"\r\n\r\n")
            answer = rest_of(connection)
            assert answer.startswith(b"HTTP/1.1 431 ")
            assert b'"error_code": "BAD_REQUEST"' in answer
    with connected(impatient) as connection:
        for _ in range(100):
            try:
                connection.sendall(b"GET / HTTP/1.1\r\nx-endless: " if _ == 0 else b"a" * 100)
            except (BrokenPipeError, ConnectionResetError):
                break
        assert rest_of(connection).startswith(b"HTTP/1.1 431 ")


def test_what_is_not_http_is_refused_in_json(impatient: ScoringServer) -> None:
    with connected(impatient) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error_code"] == "BAD_REQUEST"


@pytest.mark.parametrize("sent", [b"POST /invoca", HEAD, HEAD + b"content-length: 100\r\n\r\n{"])
def test_who_sends_too_slowly_is_cut(impatient: ScoringServer, sent: bytes) -> None:
    with connected(impatient) as connection:
        began = time.monotonic()
        connection.sendall(sent)
        assert rest_of(connection).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began > 0.4


def test_who_sends_one_byte_after_the_other_is_cut_all_the_same(impatient: ScoringServer) -> None:
    letters = iter(HEAD + b"x-endless: " + b"a" * 1000)
    with connected(impatient) as connection:

        def cut() -> bool:
            try:
                connection.sendall(bytes([next(letters)]))
            except (BrokenPipeError, ConnectionResetError):
                return True
            return False

        assert until(cut, SECONDS)


def test_who_does_not_read_is_cut(impatient: ScoringServer) -> None:
    with connected(impatient) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        ask = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 100

        def cut() -> bool:
            try:
                connection.send(ask)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                return True
            return False

        assert until(cut, SECONDS)
    assert impatient.score(BODY).status_code == 200


def test_who_only_rests_between_requests_is_not_cut(impatient: ScoringServer) -> None:
    with connected(impatient) as connection:
        connection.sendall(WHOLE)
        assert status_of(connection) == 200
        began = time.monotonic()
        assert until(lambda: time.monotonic() - began > 1.2)
        connection.sendall(WHOLE)
        assert status_of(connection) == 200


def test_a_request_whose_client_is_gone_is_not_predicted(moody_model: Path, moody_plan: Path) -> None:
    with our_server(moody_model, plan=moody_plan) as server, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.score, moods("sleep 1", 1.0))
        assert until(lambda: figure(server, 'promote_stage_seconds_count{stage="queue"}') >= 1)
        body = moods("exit", 1.0)
        with connected(server) as connection:
            connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
            assert until(lambda: figure(server, "promote_queue_requests") == 1)
        assert until(lambda: figure(server, "promote_queue_requests") == 0)
        assert figure(server, 'promote_errors_total{cause="gone"}') == 1
        assert slow.result().status_code == 200
        assert server.score(moods("fine", 1.0)).status_code == 200


def a_file_is_another(model: Path) -> str:
    (model / "MLmodel").write_text((model / "MLmodel").read_text() + "\n")
    return f"MLmodel has SHA-256 {digest_of_file(model / 'MLmodel')}, not "


def a_file_is_new(model: Path) -> str:
    (model / "code.py").write_text("import os")
    return f"code.py is new; its SHA-256 is {digest_of_file(model / 'code.py')}"


def a_file_is_missing(model: Path) -> str:
    was = digest_of_file(model / "python_env.yaml")
    (model / "python_env.yaml").unlink()
    return f"python_env.yaml is missing; its SHA-256 was {was}"


@pytest.mark.parametrize("change", [a_file_is_another, a_file_is_new, a_file_is_missing])
@pytest.mark.parametrize("options", [(), ("--native",)], ids=["compiled", "native"])
def test_a_server_does_not_load_files_that_are_not_those_that_were_approved(
    churn_model: Path, tmp_path: Path, change: Callable[[Path], str], options: tuple[str, ...]
) -> None:
    model = Path(shutil.copytree(churn_model, tmp_path / "churn"))
    plan = Path(shutil.copytree(planned(churn_model), tmp_path / "plan"))
    files = listed(model)
    write(files, plan)
    if change is a_file_is_another:
        with our_server(model, *options, plan=plan) as server:
            assert server.score(BODY).status_code == 200
    told = change(model)
    where = ["--model", str(model), "--plan", str(plan), "--port", str(free_port()), *options]
    command = [sys.executable, "-m", "serving.runtime", *where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env={**os.environ, "WORKERS": "2"})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    message = json.loads(line)["message"]
    assert message.startswith("the server cannot start: the model's files are not those that were approved: ")
    assert told in message
    if change is a_file_is_another:
        assert message.endswith(files["MLmodel"].sha256)
