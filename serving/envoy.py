"""Routes to Envoy configuration, and back.

Pure: configuration is data, written to files elsewhere. One cluster per revision, whose name is the revision
id, and one table of routes for all models. Model, step and candidate stand in the metadata of the scoring
routes, where the access log prints them and where `routes_of` reads them again: what is in force is learned
from Envoy, never remembered.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.envoy_control import Control, control_clusters, control_listener
from serving.envoy_copies import copied, for_copies
from serving.envoy_log import LOG_FIELDS
from serving.revision import Address, Weights
from serving.router import Route

Config = dict[str, Any]
"""A message of Envoy's API in its JSON form."""

TYPES = "type.googleapis.com/envoy"
TABLE = "models"
"""Name of the one table of routes."""
CLUSTERS_FILE = "clusters.json"
ROUTES_FILE = "routes.json"
HEALTH_PATH = "/healthz"
"""Where the gateway says whether it takes requests."""
ENTITY_HEADER = "x-entity-id"
"""Requests with the same value stay on the same revision while the weights stand."""
INTERNAL_PREFIX = "x-promote-"
"""Headers that begin so belong to us; they are taken from every client's request and from every answer."""
SHIELDED = "~shielded"
"""Ends the name of a candidate's cluster whose failures the stable revision answers."""
RUNTIME = {"re2.max_program_size.error_level": 100_000}
"""Envoy's own limit refuses the expression for a model name of some sixty characters, and every route with it."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """How Envoy listens, and what it allows. Times in seconds."""

    host: str = "127.0.0.1"
    """Address that clients reach."""
    port: int = 8080
    """Port that clients reach."""
    admin_port: int = 9901
    """Port of Envoy's own administration, on 127.0.0.1 only."""
    workers: int = 2
    """Threads that carry traffic."""
    connect_seconds: float = 1.0
    """A revision that does not take a connection in this time has refused it."""
    request_seconds: float = 30.0
    """A request that was sent whole is answered with 504 after this time, one that was not with 408."""
    idle_seconds: float = 4.0
    """Unused connections to a revision are closed after this time, before the model server does (5 s)."""
    connections: int = 1024
    """Most connections to one revision; also the most requests in progress."""
    waiting: int = 1024
    """Most requests that wait for a connection to one revision; beyond it 503 at once."""
    copies: int = 64
    """Most copies of requests in progress at one candidate; beyond it requests are not copied."""
    copied_bytes: int = 2**20
    """Requests up to this size are copied. Envoy reads no faster than the copy is taken, once its buffers are full."""


def bootstrap(settings: GatewaySettings, folder: str, access_log: str, control: Control | None = None) -> Config:
    """What Envoy starts with; everything about models comes from the two watched files in `folder`."""
    listener = {
        "name": "gateway",
        "address": _socket(Address(settings.host, settings.port)),
        "enable_reuse_port": False,
        "filter_chains": [{"filters": [_connection_filter(settings, folder, access_log)]}],
    }
    return {
        "node": {"id": "gateway", "cluster": "mlflow-promote"},
        "admin": {"address": _socket(Address("127.0.0.1", settings.admin_port))},
        "layered_runtime": {"layers": [{"name": "gateway", "static_layer": RUNTIME}]},
        "static_resources": {
            "listeners": [listener, *([control_listener(control)] if control else [])],
            "clusters": control_clusters() if control else [],
        },
        "dynamic_resources": {"cds_config": _watched(folder, CLUSTERS_FILE)},
    }


def _socket(address: Address) -> Config:
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _watched(folder: str, name: str) -> Config:
    source = {"path": f"{folder}/{name}", "watched_directory": {"path": folder}}
    return {"resource_api_version": "V3", "path_config_source": source}


def _connection_filter(settings: GatewaySettings, folder: str, access_log: str) -> Config:
    return _extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="gateway",
        rds={"route_config_name": TABLE, "config_source": _watched(folder, ROUTES_FILE)},
        http_filters=[_health_filter(), _header_filter(), _router_filter(access_log)],
        access_log=[_log(access_log, filter={"response_flag_filter": {"flags": ["UH", "NC"]}})],
        local_reply_config=_local_replies(),
        use_remote_address=True,
        generate_request_id=True,
        always_set_request_id_in_response=True,
        normalize_path=True,
        request_headers_timeout="10s",
        request_timeout=f"{settings.request_seconds}s",
    )


def _health_filter() -> Config:
    """Answers whoever spreads requests over several gateways: 200, and 503 from when it is told to end."""
    asked = {"name": ":path", "string_match": {"exact": HEALTH_PATH}}
    return _extension(
        "envoy.filters.http.health_check",
        "extensions.filters.http.health_check.v3.HealthCheck",
        pass_through_mode=False,
        headers=[asked],
    )


def _header_filter() -> Config:
    """Takes off what is between us and the model servers, and by which a client would say how often it is tried."""
    ours, tries = (
        {"remove_on_match": {"key_matcher": {"prefix": prefix, "ignore_case": True}}}
        for prefix in (INTERNAL_PREFIX, "x-envoy-")
    )
    return _extension(
        "envoy.filters.http.header_mutation",
        "extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"request_mutations": [ours, tries], "response_mutations": [ours]},
    )


def _router_filter(access_log: str) -> Config:
    return _extension(
        "envoy.filters.http.router",
        "extensions.filters.http.router.v3.Router",
        suppress_envoy_headers=True,
        upstream_log=[_log(access_log)],
        upstream_log_options={"flush_upstream_log_on_upstream_stream": True},
    )


def _extension(name: str, kind: str, **fields: object) -> Config:
    return {"name": name, "typed_config": {"@type": f"{TYPES}.{kind}", **fields}}


def _log(path: str, **rest: object) -> Config:
    file = {"path": path, "log_format": {"json_format": LOG_FIELDS}}
    return _extension("envoy.access_loggers.file", "extensions.access_loggers.file.v3.FileAccessLog", **file) | rest


def _local_replies() -> Config:
    """Envoy's own answers have the form of MLflow's errors."""
    missing = _reply("RESOURCE_DOES_NOT_EXIST", "no model is live at %REQ(:PATH)%")
    failed = _reply("TEMPORARILY_UNAVAILABLE", "%LOCAL_REPLY_BODY%")
    return {
        "mappers": [{"filter": _status("EQ", 404), **missing}, {"filter": _status("GE", 500), **failed}],
        "body_format": _reply("BAD_REQUEST", "%LOCAL_REPLY_BODY%")["body_format_override"],
    }


def _status(operator: str, code: int) -> Config:
    value = {"default_value": code, "runtime_key": "gateway.unset"}
    return {"status_code_filter": {"comparison": {"op": operator, "value": value}}}


def _reply(code: str, message: str) -> Config:
    fields = {"error_code": code, "message": message, "request_id": "%REQ(X-REQUEST-ID)%"}
    return {"body_format_override": {"json_format": fields, "content_type": "application/json"}}


def cluster_table(routes: Iterable[Route], settings: GatewaySettings, leaving: Iterable[Config] = ()) -> Config:
    """One cluster per revision of any of `routes`, per shield and per shadow, and those that are `leaving`."""
    routes = tuple(routes)
    endpoints = {revision: hosts for route in routes for revision, hosts in route.endpoints.items()}
    staying = [_cluster(revision, endpoints[revision], settings) for revision in endpoints]
    staying += [_shield_cluster(shield, settings) for route in routes if (shield := _shield(route)) is not None]
    copying = {
        route.shadow: _cluster(route.shadow, endpoints[route.shadow], settings) for route in routes if route.shadow
    }
    staying += [for_copies(revision, cluster, settings.copies) for revision, cluster in copying.items()]
    return _table(sorted([*staying, *leaving], key=lambda cluster: str(cluster["name"])))


def _table(resources: Sequence[Config]) -> Config:
    """The version is the content's digest, so that Envoy can be asked whether exactly this is in force."""
    version = hashlib.sha256(json.dumps(resources, sort_keys=True).encode()).hexdigest()[:16]
    return {"version_info": version, "resources": list(resources)}


@dataclass(frozen=True, slots=True)
class _Shield:
    """Requests for the candidate that fail there are tried once more on the stable revision."""

    candidate: str
    stable: str

    @property
    def name(self) -> str:
        return f"{self.candidate}{SHIELDED}"


def _shield(route: Route) -> _Shield | None:
    others = [revision for revision, share in route.weights.shares.items() if share and revision != route.candidate]
    shares = route.weights.shares.get(route.candidate or "", 0)
    if not route.shield_bytes or route.candidate is None or not shares or len(others) != 1:
        return None
    return _Shield(route.candidate, others[0])


def _shield_cluster(shield: _Shield, settings: GatewaySettings) -> Config:
    """Both revisions' clusters one after the other; only here is what a server has seen tried again."""
    return {
        "@type": f"{TYPES}.config.cluster.v3.Cluster",
        "name": shield.name,
        "connect_timeout": f"{settings.connect_seconds}s",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": _extension(
            "envoy.clusters.aggregate",
            "extensions.clusters.aggregate.v3.ClusterConfig",
            clusters=[shield.candidate, shield.stable],
        ),
        "circuit_breakers": {"thresholds": [{"max_retries": settings.connections}]},
    }


def _cluster(revision: str, hosts: Sequence[Address], settings: GatewaySettings) -> Config:
    limits = {
        "max_connections": settings.connections,
        "max_requests": settings.connections,
        "max_pending_requests": settings.waiting,
        "max_retries": settings.connections,
    }
    resolved = {"type": "STATIC"} if all(_numeric(address.host) for address in hosts) else _BY_NAME
    return {
        "@type": f"{TYPES}.config.cluster.v3.Cluster",
        "name": revision,
        **resolved,
        "connect_timeout": f"{settings.connect_seconds}s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [limits]},
        "typed_extension_protocol_options": _http1(settings.idle_seconds),
        "load_assignment": {
            "cluster_name": revision,
            "endpoints": [{"lb_endpoints": [_endpoint(revision, host) for host in hosts]}],
        },
    }


_BY_NAME = {"type": "STRICT_DNS", "dns_refresh_rate": "1s", "dns_lookup_family": "V4_PREFERRED"}
"""A container that is started again may have another address."""


def _endpoint(revision: str, host: Address) -> Config:
    return {
        "endpoint": {"address": _socket(host)},
        "metadata": {"filter_metadata": {"promote": {"revision": revision}}},
    }


def _numeric(host: str) -> bool:
    return ":" in host or re.fullmatch(r"[0-9.]+", host) is not None


def _http1(idle_seconds: float) -> Config:
    options = {
        "@type": f"{TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        "common_http_protocol_options": {"idle_timeout": f"{idle_seconds}s"},
    }
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}


def route_table(routes: Iterable[Route], settings: GatewaySettings) -> Config:
    """Every model's routes: those that score first, because most requests take them."""
    ordered = sorted(routes, key=lambda route: route.model)
    entries = [entry for route in ordered for entry in _scoring(route, settings)]
    entries += [entry for route in ordered for entry in _asking(route, settings)]
    host = {"name": TABLE, "domains": ["*"], "routes": entries}
    return _table([{"@type": f"{TYPES}.config.route.v3.RouteConfiguration", "name": TABLE, "virtual_hosts": [host]}])


def _scoring(route: Route, settings: GatewaySettings) -> list[Config]:
    revisions = sorted(route.endpoints)
    notes: Config = {"model": route.model, "step": route.step, "candidate": route.candidate or ""}
    notes |= {"revisions": revisions, "shield_bytes": route.shield_bytes, "shadow": route.shadow or ""}
    metadata: Config = {"metadata": {"filter_metadata": {"promote": notes}}}
    name, action = _pattern(route.model), _action(route, settings, _shield(route))
    if _shield(route) is not None:
        metadata["per_request_buffer_limit_bytes"] = route.shield_bytes
    rewrite = {"regex_rewrite": {"pattern": {"regex": "^.*$"}, "substitution": "/invocations"}}
    entries: list[Config] = [
        {"match": _match(f"/models/{name}/invocations"), "route": action | rewrite, **metadata},
        {"match": _match(f"/v2/models/{name}/infer"), "route": action, **metadata},
    ]
    return [*copied(entries, route.shadow, route.step, settings.copied_bytes), *entries] if route.shadow else entries


def _asking(route: Route, settings: GatewaySettings) -> list[Config]:
    name, action = _pattern(route.model), _action(route, settings, None)
    rewrite = {"regex_rewrite": {"pattern": {"regex": "^.*/"}, "substitution": "/"}}
    return [
        {"match": _match(f"/models/{name}/(ping|health|version)"), "route": action | rewrite},
        {"match": _match(f"/v2/models/{name}(/.*)?"), "route": action},
    ]


def _match(pattern: str) -> Config:
    """An exact path where the pattern has nothing special in it, which is far cheaper than an expression."""
    plain = pattern.replace("\\", "")
    return {"path": plain} if re.escape(plain) == pattern else {"safe_regex": {"regex": pattern}}


def _pattern(model: str) -> str:
    """Matches the model's name in a path, however a client escaped it."""
    return "".join(_character(c) for c in model)


def _character(c: str) -> str:
    if c.isascii() and (c.isalnum() or c in "-._~"):
        return re.escape(c)
    escaped = "".join("%" + "".join(_either_case(digit) for digit in f"{byte:02X}") for byte in c.encode())
    return f"(?:{re.escape(c)}|{escaped})" if c in "!$&'()*+,;=:@" else escaped


def _either_case(digit: str) -> str:
    return f"[{digit}{digit.lower()}]" if digit.isalpha() else digit


def _action(route: Route, settings: GatewaySettings, shield: _Shield | None) -> Config:
    """The candidate comes first: as its weight grows, the entities that it has stay with it."""
    shares = sorted(route.weights.shares.items(), key=lambda share: (share[0] != route.candidate, share[0]))
    behind = {shield.candidate: shield.name} if shield else {}
    weighted: list[Config] = [{"name": revision, "weight": weight} for revision, weight in shares]
    for each in weighted:
        if each["name"] in behind:
            each |= {"name": behind[each["name"]], "request_headers_to_add": [_SHIELDED_TOO]}
    return {
        "weighted_clusters": {"clusters": weighted, "use_hash_policy": True},
        "hash_policy": [_entity(route.candidate or "")],
        "timeout": f"{settings.request_seconds}s",
        "retry_policy": _ONCE_MORE,
    }


_ONCE_MORE = {
    "retry_on": "connect-failure,refused-stream",
    "num_retries": 1,
    "retry_host_predicate": [
        _extension(
            "envoy.retry_host_predicates.previous_hosts",
            "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
        )
    ],
    "host_selection_retry_max_attempts": 30,
    "retry_priority": _extension(
        "envoy.retry_priorities.previous_priorities",
        "extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
        update_frequency=1,
    ),
    "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"},
}
"""What no server has seen is tried again at another replica: one that was lost a moment ago is known for a while."""
_SHIELDED_TOO = {
    "header": {"key": "x-envoy-retry-on", "value": "5xx,reset,connect-failure,refused-stream"},
    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
}
"""What fails on a shielded candidate goes to the stable revision; what fails on that is not tried again."""


def _entity(salt: str) -> Config:
    """Salted by the candidate, so that it is not the same entities that try every candidate first."""
    rewrite = {"pattern": {"regex": "^"}, "substitution": f"{salt}/"}
    return {"header": {"header_name": ENTITY_HEADER, "regex_rewrite": rewrite}}


def routes_of(tables: Iterable[Config], clusters: Iterable[Config]) -> dict[str, Route]:
    """The routes that configuration describes, by model; a route without its clusters is not in force yet."""
    endpoints = {cluster["name"]: _addresses(cluster) for cluster in clusters if "load_assignment" in cluster}
    found: dict[str, Route] = {}
    for table in tables:
        for entry in (entry for host in table["virtual_hosts"] for entry in host.get("routes", ())):
            notes = entry.get("metadata", {}).get("filter_metadata", {}).get("promote")
            if notes is not None:
                _collect(found, entry["route"], notes, endpoints)
    return found


def _collect(
    found: dict[str, Route], action: Config, notes: Config, endpoints: Mapping[str, tuple[Address, ...]]
) -> None:
    weighted = action["weighted_clusters"]["clusters"]
    shares = {share["name"].removesuffix(SHIELDED): share["weight"] for share in weighted}
    known = {revision: endpoints[revision] for revision in notes["revisions"] if revision in endpoints}
    if len(known) == len(notes["revisions"]):
        found[notes["model"]] = Route(
            notes["model"],
            Weights(shares),
            known,
            notes["step"],
            notes["candidate"] or None,
            int(notes.get("shield_bytes", 0)),
            notes.get("shadow") or None,
        )


def _addresses(cluster: Config) -> tuple[Address, ...]:
    hosts = [host for group in cluster["load_assignment"]["endpoints"] for host in group["lb_endpoints"]]
    sockets = [host["endpoint"]["address"]["socket_address"] for host in hosts]
    return tuple(Address(socket["address"], socket["port_value"]) for socket in sockets)
