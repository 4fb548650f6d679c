"""What a stock Envoy is sent to be a waypoint: manifests to clusters and listeners, as JSON forms of its own messages.

    15008 --connect_terminate--> TLS, HTTP/2 CONNECT; keeps the authority and the client's address and identity
          --main_internal------> a chain for each address and port that the waypoint serves
          --connect_originate--> HTTP/2 CONNECT to the endpoint's 15008, whose identity must be the endpoint's

Bytes are passed on as they come. What is not served matches no chain, and its CONNECT is answered with 503.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/other_features/internal_listener and
https://github.com/istio/istio/blob/master/pilot/pkg/networking/core/listener_waypoint.go (the same three listeners)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshlab.model import FAMILIES, Address, Family, Mesh, Pod, PodPort
from meshlab.model.ambient import HBONE_PORT

CLUSTER_TYPE = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
LISTENER_TYPE = "type.googleapis.com/envoy.config.listener.v3.Listener"
SECRET_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - no secret itself
OWN, ROOT = "default", "ROOTCA"
"""Names of the secrets, as Istio's agent gives them: the waypoint's own certificate, and the mesh's root."""
Json = Mapping[str, Any]

_FROM_ADS: Json = {"ads": {}, "resource_api_version": "V3"}

_EXTENSIONS = "type.googleapis.com/envoy.extensions."
_TEXT = "type.googleapis.com/google.protobuf.StringValue"
_PEER = "meshlab.peer"
"""Filter state: the identity of the client whose connection this is."""
_TUNNEL = "meshlab.tunnel"
"""Metadata of an endpoint: the identity that it must show."""
_ORIGINAL = "envoy.filters.listener.original_dst"
_TIME = "%START_TIME(%Y-%m-%dT%H:%M:%S.%6fZ)%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """PEM texts."""

    chain: str
    key: str
    root: str


def resources(
    mesh: Mesh, key: str, own: Credentials, unhealthy: Collection[str] = (), also: Mesh | None = None
) -> dict[str, dict[str, Json]]:
    """Everything that the Envoy of the waypoint ``key`` subscribes to: type URL -> resource name -> JSON form.

    Args:
        own: the waypoint's certificate, and the root that the mesh's certificates chain to.
        unhealthy: keys of the pods that are not to be chosen as endpoints *now*.
        also: a mesh of the same pods whose attachments are served, too.
    """
    before = _served(also, key, unhealthy) if also is not None else ()
    served = list({one.name: one for one in (*before, *_served(mesh, key, unhealthy))}.values())
    clusters = [_MAIN, _hbone(mesh), *(_cluster(mesh, one) for one in served if one.endpoints)]
    listeners = [_terminate(mesh), _main(served), _originate(str(mesh.pod(key).identity(mesh.trust_domain)))]
    return {
        CLUSTER_TYPE: {str(cluster["name"]): cluster for cluster in clusters},
        LISTENER_TYPE: {str(listener["name"]): listener for listener in listeners},
        SECRET_TYPE: {
            OWN: {
                "name": OWN,
                "tls_certificate": {
                    "certificate_chain": {"inline_string": own.chain},
                    "private_key": {"inline_string": own.key},
                },
            },
            ROOT: {"name": ROOT, "validation_context": {"trusted_ca": {"inline_string": own.root}}},
        },
    }


# --- what is served --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Served:
    """An address and a port of it at which the waypoint takes calls."""

    address: Address
    port: int | None
    """``None``: every port."""
    family: Family
    endpoints: tuple[PodPort, ...]
    """None: nobody is healthy. Of every port there is one, whose own port is 0."""

    @property
    def name(self) -> str:
        return f"to|{self.address}|{self.port or '*'}"


def _served(mesh: Mesh, key: str, unhealthy: Collection[str]) -> Iterator[_Served]:
    for service in mesh.services:
        waypoint = mesh.waypoint_of(service)
        for port in service.ports if waypoint is not None and waypoint.key == key else ():
            endpoints = tuple(
                PodPort(pod.key, number) for pod, number in mesh.backends(service, port) if pod.key not in unhealthy
            )
            for family in FAMILIES:
                if (address := service.address(family)) is not None:
                    yield _Served(address, port.port, family, endpoints)
    for pod in mesh.pods:
        waypoint = mesh.waypoint_of(pod)
        if waypoint is not None and waypoint.key == key:
            for family in FAMILIES:
                yield _Served(pod.address(family), None, family, (PodPort(pod.key, 0),))


# --- listeners -------------------------------------------------------------------------------------------------------


def _terminate(mesh: Mesh) -> Json:
    context = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        **_certified(f"spiffe://{mesh.trust_domain}/"),
    }
    kept = {
        f"{_ORIGINAL}.local_ip": "%REQ(:AUTHORITY)%",
        f"{_ORIGINAL}.remote_ip": "%DOWNSTREAM_REMOTE_ADDRESS%",
        _PEER: "%DOWNSTREAM_PEER_URI_SAN%",
    }
    keeping = {"on_request_headers": [_kept(name, text) for name, text in kept.items()]}
    connect = {"upgrade_type": "CONNECT", "connect_config": {}}
    route = {
        "match": {"connect_matcher": {}},
        "route": {"cluster": "main_internal", "timeout": "0s", "upgrade_configs": [connect]},
    }
    log = {
        "direction": "inbound",
        "src.addr": "%DOWNSTREAM_REMOTE_ADDRESS%",
        "src.identity": "%DOWNSTREAM_PEER_URI_SAN%",
        "dst.hbone_addr": "%REQ(:AUTHORITY)%",
        "dst.identity": "%DOWNSTREAM_LOCAL_URI_SAN%",
    }
    manager = {
        "stat_prefix": "connect_terminate",
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "delayed_close_timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "http2_protocol_options": {"allow_connect": True, "max_concurrent_streams": 100},
        "access_log": [_log(log)],
        "route_config": {
            "name": "connect",
            "validate_clusters": False,
            "virtual_hosts": [{"name": "any", "domains": ["*"], "routes": [route]}],
        },
        "http_filters": [
            _extension("keep", "filters.http.set_filter_state.v3.Config", keeping),
            _extension("router", "filters.http.router.v3.Router", {"suppress_envoy_headers": True}),
        ],
    }
    chain = {
        "transport_socket": _tls("DownstreamTlsContext", context, {"require_client_certificate": True}),
        "filters": [_extension("http", "filters.network.http_connection_manager.v3.HttpConnectionManager", manager)],
    }
    return {
        "name": "connect_terminate",
        "address": {"socket_address": {"address": "::", "port_value": HBONE_PORT, "ipv4_compat": True}},
        "filter_chains": [chain],
    }


def _kept(name: str, text: str) -> Json:
    """A hashable value parts the pools of those who differ in it; else one client would ride another's tunnel."""
    hashable = {"factory_key": "envoy.hashable_string"} if name == _PEER else {}
    return {
        "object_key": name,
        "format_string": {"text_format_source": {"inline_string": text}, "omit_empty_values": True},
        "skip_if_empty": True,
        # the authority goes on to connect_originate, for endpoints that have no address of their own in metadata
        "shared_with_upstream": "TRANSITIVE" if name.endswith(".local_ip") else "ONCE",
        **hashable,
    }


def _main(served: Collection[_Served]) -> Json:
    reachable = [one for one in served if one.endpoints]
    by_address: dict[Address, list[_Served]] = {}
    for one in reachable:
        by_address.setdefault(one.address, []).append(one)
    ranges = [
        {
            "ranges": [{"address_prefix": str(address), "prefix_len": address.max_prefixlen}],
            "on_match": _on_port(some),
        }
        for address, some in by_address.items()
    ]
    chains = [{"name": one.name, "filters": [_tcp_proxy(one.name, one.name)]} for one in reachable]
    return {
        "name": "main_internal",
        "internal_listener": {},
        "listener_filters": [_extension("original_dst", "filters.listener.original_dst.v3.OriginalDst")],
        # a listener has one chain at least, and nothing leads to the one that is there where nothing is served
        "filter_chains": chains or [{"name": "nothing", "filters": [_tcp_proxy("nothing", "nothing")]}],
        **({"filter_chain_matcher": _by_address(ranges)} if ranges else {}),
    }


def _by_address(ranges: Sequence[Json]) -> Json:
    matcher = {"@type": "type.googleapis.com/xds.type.matcher.v3.IPMatcher", "range_matchers": ranges}
    return {
        "matcher_tree": {
            "input": _extension("address", "matching.common_inputs.network.v3.DestinationIPInput"),
            "custom_match": {"name": "address", "typed_config": matcher},
        }
    }


def _on_port(some: Collection[_Served]) -> Json:
    whole = next((one for one in some if one.port is None), None)
    if whole is not None:
        return _take(whole)
    return {
        "matcher": {
            "matcher_tree": {
                "input": _extension("port", "matching.common_inputs.network.v3.DestinationPortInput"),
                "exact_match_map": {"map": {str(one.port): _take(one) for one in some}},
            }
        }
    }


def _take(one: _Served) -> Json:
    return {"action": {"name": "chain", "typed_config": {"@type": _TEXT, "value": one.name}}}


def _originate(own: str) -> Json:
    san = {
        "object_key": "envoy.network.upstream_subject_alt_names",
        "format_string": {
            "text_format_source": {"inline_string": f"%DYNAMIC_METADATA({_TUNNEL}:san)%"},
            "omit_empty_values": True,
        },
        "skip_if_empty": True,
    }
    log = {
        "direction": "outbound",
        "src.addr": "%UPSTREAM_LOCAL_ADDRESS%",
        "src.identity": own,
        "dst.hbone_addr": "%DOWNSTREAM_LOCAL_ADDRESS%",
        "dst.identity": "%UPSTREAM_PEER_URI_SAN%",
    }
    tunnelling = {"tunneling_config": {"hostname": "%DOWNSTREAM_LOCAL_ADDRESS%"}, "access_log": [_log(log)]}
    return {
        "name": "connect_originate",
        "internal_listener": {},
        "listener_filters": [_extension("original_dst", "filters.listener.original_dst.v3.OriginalDst")],
        "filter_chains": [
            {
                "filters": [
                    _extension("identity", "filters.network.set_filter_state.v3.Config", {"on_new_connection": [san]}),
                    _tcp_proxy("connect_originate", "hbone", tunnelling),
                ]
            }
        ],
    }


# --- clusters --------------------------------------------------------------------------------------------------------


def _cluster(mesh: Mesh, one: _Served) -> Json:
    if one.port is None and not mesh.is_enrolled(mesh.pod(one.endpoints[0].pod)):
        return {"name": one.name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "5s"}
    return {
        "name": one.name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "transport_socket": _internal([_ORIGINAL, _TUNNEL]),
        "load_assignment": _assignment(one.name, [_endpoint(mesh, one, each) for each in one.endpoints]),
    }


def _endpoint(mesh: Mesh, one: _Served, reached: PodPort) -> Json:
    pod = mesh.pod(reached.pod)
    address = pod.address(one.family)
    if not mesh.is_enrolled(pod):
        return {"endpoint": {"address": _socket(str(address), reached.port)}}
    where = f"[{address}]:{reached.port}" if one.family == 6 else f"{address}:{reached.port}"
    internal = {"server_listener_name": "connect_originate", "endpoint_id": where}
    metadata: dict[str, Json] = {_TUNNEL: {"san": _identity(mesh, pod)}}
    if reached.port:
        metadata[_ORIGINAL] = {"local": where}
    return {
        "endpoint": {"address": {"envoy_internal_address": internal}},
        "metadata": {"filter_metadata": metadata},
    }


def _identity(mesh: Mesh, pod: Pod) -> str:
    return str(pod.identity(mesh.trust_domain))


def _hbone(mesh: Mesh) -> Json:
    context = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        **_certified(f"spiffe://{mesh.trust_domain}/"),
    }
    return {
        "name": "hbone",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "original_dst_lb_config": {"upstream_port_override": HBONE_PORT},
        "typed_extension_protocol_options": _http2(),
        "transport_socket": _tls("UpstreamTlsContext", context),
    }


# --- parts -----------------------------------------------------------------------------------------------------------


def _extension(name: str, kind: str, more: Json | None = None) -> Json:
    return {"name": name, "typed_config": {"@type": f"{_EXTENSIONS}{kind}", **(more or {})}}


def _tcp_proxy(stat_prefix: str, cluster: str, more: Json | None = None) -> Json:
    proxy = {"stat_prefix": stat_prefix, "cluster": cluster, "idle_timeout": "0s", **(more or {})}
    return _extension("tcp", "filters.network.tcp_proxy.v3.TcpProxy", proxy)


def _tls(kind: str, context: Json, more: Json | None = None) -> Json:
    return _extension("tls", f"transport_sockets.tls.v3.{kind}", {"common_tls_context": context, **(more or {})})


def _certified(prefix: str) -> Json:
    """The own certificate, and a peer whose certificate names an identity that begins like this."""
    san = {"san_type": "URI", "matcher": {"prefix": prefix}}
    return {
        "tls_certificate_sds_secret_configs": [{"name": OWN, "sds_config": _FROM_ADS}],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [san]},
            "validation_context_sds_secret_config": {"name": ROOT, "sds_config": _FROM_ADS},
        },
    }


def _internal(passed: list[str]) -> Json:
    raw = _extension("raw", "transport_sockets.raw_buffer.v3.RawBuffer")
    metadata = [{"kind": {"host": {}}, "name": name} for name in passed]
    return _extension(
        "internal_upstream",
        "transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        {"passthrough_metadata": metadata, "transport_socket": raw},
    )


def _http2() -> Json:
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    options = {"@type": f"type.googleapis.com/{kind}", "explicit_http_config": {"http2_protocol_options": {}}}
    return {kind: options}


def _log(fields: Json) -> Json:
    """Lines with a ztunnel's field names; each is written when its connection is over, with the time of its begin."""
    line = {"level": "info", "time": _TIME, "scope": "access", "message": "connection opened", **fields}
    log = {"path": "/dev/stdout", "log_format": {"json_format": line}}
    return _extension("log", "access_loggers.file.v3.FileAccessLog", log)


def _assignment(name: str, endpoints: list[Json]) -> Json:
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}


def _socket(address: str, port: int) -> Json:
    return {"socket_address": {"address": address, "port_value": port}}


_MAIN: Json = {
    "name": "main_internal",
    "type": "STATIC",
    "connect_timeout": "5s",
    "transport_socket": _internal([]),
    "load_assignment": _assignment(
        "main_internal",
        [{"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": "main_internal"}}}}],
    ),
}
