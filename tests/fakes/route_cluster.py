"""A stand-in for a cluster's API server that has nothing but `HTTPRoute`s.

It is ours: what it does is what we take an API server to do. It lists, follows (with selectors of labels), reads,
makes, applies, changes and deletes, counts versions and generations, keeps status apart, refuses a change of another
version with 409 and, where it is given the schema of Gateway API, what that does not allow. It does not prove that a
real server does the same; in particular, rules in CEL are not looked at, one field manager applies, every list is
replaced whole, and unknown fields are refused also where a real one would leave them out.
"""

from __future__ import annotations

import copy
import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from jsonschema import Draft202012Validator
from kubernetes.client import Configuration

from serving.gateway_api import GROUP, ROUTES
from serving.pod_parts import Object


class RefusedError(Exception):
    """An answer that is no object."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RouteCluster:
    """Routes of one namespace."""

    def __init__(self, server: ThreadingHTTPServer, schemas: Mapping[str, Object], versions: tuple[str, ...]) -> None:
        self.server, self.schemas, self.versions = server, schemas, versions
        self.asked: list[str] = []
        """Method and path of every request, in order."""
        self.meanwhile: Callable[[], object] | None = None
        """Done once, after the next writing was sent and before it is looked at."""
        self._objects: dict[str, Object] = {}
        self._applied: dict[str, Object] = {}
        self._version = 10
        self._log: list[tuple[int, Object | None, Object | None]] = []
        """Version, and an object before and after."""
        self._changed = threading.Condition(threading.RLock())
        self._closed = False

    @property
    def connection(self) -> Configuration:
        return Configuration(host=f"http://127.0.0.1:{self.server.server_port}")

    def answer(self, method: str, path: str, query: Mapping[str, str], content: str, body: Object) -> Object:
        self.asked.append(f"{method} {path}")
        top, *rest = path.removeprefix(f"/apis/{GROUP}").split("/")
        if not path.startswith(f"/apis/{GROUP}") or top or not self.versions:
            raise RefusedError(404, "the server could not find the requested resource")
        if not rest:
            return {"versions": [{"groupVersion": f"{GROUP}/{version}"} for version in self.versions]}
        if rest[0] not in self.versions or rest[1] != "namespaces" or rest[3] != ROUTES:
            raise RefusedError(404, "the server could not find the requested resource")
        if method != "GET" and self.meanwhile is not None:
            first, self.meanwhile = self.meanwhile, None
            first()
        with self._changed:
            return self._answer(method, rest[0], [*rest[4:], "", ""], query, content, body)

    def _answer(
        self, method: str, version: str, where: list[str], query: Mapping[str, str], content: str, body: Object
    ) -> Object:
        name, part = unquote(where[0]), where[1]
        there = self._objects.get(name)
        if method == "GET" and not name:
            found = [one for one in self._objects.values() if _chosen(one, query)]
            return {"metadata": {"resourceVersion": str(self._version)}, "items": found}
        if method == "POST":
            return self._make(version, body)
        if method == "PATCH" and content.startswith("application/apply-patch"):
            return self._apply(version, name, body) if there else self._make(version, body)
        if there is None:
            raise RefusedError(404, f'{ROUTES}.{GROUP} "{name}" not found')
        if method == "DELETE":
            self._expect(there, "uid", body.get("preconditions", {}))
            del self._objects[name]
            self._tell(there, None)
            return {"kind": "Status", "status": "Success"}
        if method == "PATCH":
            kept = ("status",) if part == "status" else ("metadata", "spec")
            changes = {key: value for key, value in body.items() if key in kept}
            self._expect(there, "resourceVersion", body.get("metadata", {}))
            return self._put(version, there, _merged(there, changes))
        return there

    def _make(self, version: str, given: Object) -> Object:
        name = given["metadata"]["name"]
        if name in self._objects:
            raise RefusedError(409, f'{ROUTES}.{GROUP} "{name}" already exists')
        if "resourceVersion" in given["metadata"]:
            raise RefusedError(409, "the object that this is a change of is not there")
        made = copy.deepcopy({key: value for key, value in given.items() if key != "status"})
        made["metadata"] |= {"uid": str(uuid.uuid4()), "generation": 0}
        self._applied[name] = given
        return self._put(version, None, made)

    def _apply(self, version: str, name: str, given: Object) -> Object:
        there = self._objects[name]
        self._expect(there, "resourceVersion", given["metadata"])
        left = _without(there, self._applied.get(name, {}), given)
        self._applied[name] = given
        return self._put(version, there, _merged(left, {key: given[key] for key in ("metadata", "spec")}))

    def _put(self, version: str, there: Object | None, wanted: Object) -> Object:
        wanted["metadata"]["resourceVersion"] = (there or wanted)["metadata"].get("resourceVersion", "")
        if version in self.schemas:
            _fill(self.schemas[version], wanted)
            _check(self.schemas[version], wanted)
        if wanted == there:
            return there
        if there is None or wanted["spec"] != there["spec"]:
            wanted["metadata"]["generation"] += 1
        self._objects[wanted["metadata"]["name"]] = wanted
        self._tell(there, wanted)
        return wanted

    def _tell(self, before: Object | None, after: Object | None) -> None:
        self._version += 1
        if after is not None:
            after["metadata"]["resourceVersion"] = str(self._version)
        self._log.append((self._version, before, after))
        self._changed.notify_all()

    def _expect(self, there: Object, key: str, given: Mapping[str, Any]) -> None:
        if given.get(key) not in (None, there["metadata"][key]):
            message = f'Operation cannot be fulfilled on {ROUTES}.{GROUP} "{there["metadata"]["name"]}": '
            raise RefusedError(409, message + "the object has been modified")

    def events(self, version: int, query: Mapping[str, str]) -> Iterator[bytes]:
        """What became of the chosen objects after that version, until this ends; empty now and then."""
        seen = 0
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda seen=seen: len(self._log) > seen or self._closed, 1.0)  # type: ignore[misc]
                fresh, seen = [one for one in self._log[seen:] if one[0] > version], len(self._log)
                lines = [line for one in fresh for line in _event(*one, query)]
            yield b"".join(lines)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _event(version: int, before: Object | None, after: Object | None, query: Mapping[str, str]) -> Iterator[bytes]:
    was, now = before is not None and _chosen(before, query), after is not None and _chosen(after, query)
    if was or now:
        kind = "DELETED" if not now else "MODIFIED" if was else "ADDED"
        told = copy.deepcopy(after if after is not None else before or {})
        told["metadata"]["resourceVersion"] = str(version)
        yield json.dumps({"type": kind, "object": told}).encode() + b"\n"


def _chosen(one: Object, query: Mapping[str, str]) -> bool:
    labels = one["metadata"].get("labels") or {}
    pairs = [pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair]
    return all(labels.get(key) == value for key, value in pairs)


def _merged(there: Any, changes: Any) -> Any:
    """As a merge patch has it: None removes."""
    if not (isinstance(there, dict) and isinstance(changes, dict)):
        return copy.deepcopy(changes)
    made = {key: copy.deepcopy(value) for key, value in there.items() if key not in changes}
    return made | {key: _merged(there.get(key), value) for key, value in changes.items() if value is not None}


def _without(there: Any, before: Any, now: Any) -> Any:
    """Without the fields that were applied before and are not any more."""
    if not (isinstance(there, dict) and isinstance(before, dict) and isinstance(now, dict)):
        return there
    kept = {key: value for key, value in there.items() if key not in before or key in now}
    return {key: _without(value, before.get(key), now.get(key)) for key, value in kept.items()}


def _fill(schema: Object, given: Any) -> None:
    if isinstance(given, dict):
        for key, below in schema.get("properties", {}).items():
            if "default" in below:
                given.setdefault(key, copy.deepcopy(below["default"]))
            if key in given:
                _fill(below, given[key])
    elif isinstance(given, list):
        for one in given:
            _fill(schema.get("items", {}), one)


def _check(schema: Object, given: Object) -> None:
    wrong = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(given)]
    wrong += [f"{path}: field not declared in schema" for path in _undeclared(schema, given, "$")]
    if wrong:
        raise RefusedError(422, f"HTTPRoute is invalid: {'; '.join(wrong)}")


def _undeclared(schema: Object, given: Any, path: str) -> Iterator[str]:
    if isinstance(given, list):
        for one in given:
            yield from _undeclared(schema.get("items", {}), one, path)
    elif isinstance(given, dict) and "properties" in schema:
        for key, value in given.items():
            below = schema["properties"].get(key)
            if below is None:
                yield f"{path}.{key}"
            else:
                yield from _undeclared(below, value, f"{path}.{key}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    cluster: RouteCluster

    def _serve(self) -> None:
        url, body = urlsplit(self.path), self.rfile.read(int(self.headers.get("content-length") or 0))
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if query.get("watch") == "true":
            self._follow(query)
            return
        status, content = 200, self.headers.get("content-type", "")
        try:
            answer = self.cluster.answer(self.command, url.path, query, content, json.loads(body or b"{}"))
        except RefusedError as error:
            status, answer = error.status, {"kind": "Status", "message": str(error), "code": error.status}
        told = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - as the library calls them

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the library calls it
        """Nothing."""

    def _follow(self, query: Mapping[str, str]) -> None:
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        try:
            for lines in self.cluster.events(int(query["resourceVersion"]), query):
                if lines:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(lines), lines))
                    self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            """Whoever followed has left."""


@contextmanager
def route_cluster(
    schemas: Mapping[str, Object] | None = None, versions: tuple[str, ...] = ("v1", "v1beta1")
) -> Iterator[RouteCluster]:
    """`schemas`: of `HTTPRoute` by version; without, everything is valid. `versions`: that are served; may be none."""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        cluster = RouteCluster(server, schemas or {}, versions)
        handler.cluster = cluster  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield cluster
        finally:
            cluster.close()
            server.shutdown()
