"""The three listeners of a waypoint, and the filter chains of the one in the middle.

A chain reads HTTP, with its routes from the control plane, or passes bytes on. Routes and what is allowed to requests
change with the routes, so that a connection that is open sees them at its next request; which tokens are good is in the
chain itself. Connections whose bytes are
passed on are judged when their CONNECT comes, and again in their chain.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/other_features/internal_listener and
https://github.com/istio/istio/blob/master/pilot/pkg/networking/core/listener_waypoint.go (the same three listeners)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from meshlab.model import Action, Address, AuthorizationPolicy, JwtRule, Mesh
from meshlab.model.ambient import HBONE_PORT
from meshlab.translate.envoy.forms import (
    FROM_ADS,
    ORIGINAL,
    PEER,
    SOURCE,
    TUNNEL,
    Json,
    certified,
    extension,
    tcp_proxy,
    tcp_split,
    tls,
)
from meshlab.translate.envoy.rbac import rules
from meshlab.translate.envoy.routes import ALLOW, CONNECT, DENY, FAULT
from meshlab.translate.envoy.serving import Served
from meshlab.translate.envoy.tokens import reader

_TIME = "%START_TIME(%Y-%m-%dT%H:%M:%S.%6fZ)%"
_TEXT = "type.googleapis.com/google.protobuf.StringValue"
_MANAGER = "filters.network.http_connection_manager.v3.HttpConnectionManager"
_JUDGES = (extension(DENY, "filters.http.rbac.v3.RBAC"), extension(ALLOW, "filters.http.rbac.v3.RBAC"))
"""What they go by is in the routes."""
_ROUTER = extension("router", "filters.http.router.v3.Router", {"suppress_envoy_headers": True})


def terminate(mesh: Mesh) -> Json:
    """Where tunnels to the waypoint end."""
    context = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        **certified(f"spiffe://{mesh.trust_domain}/"),
    }
    kept = {
        f"{ORIGINAL}.local_ip": "%REQ(:AUTHORITY)%",
        f"{ORIGINAL}.remote_ip": "%DOWNSTREAM_REMOTE_ADDRESS%",
        PEER: "%DOWNSTREAM_PEER_URI_SAN%",
        SOURCE: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    }
    keeping = {"on_request_headers": [_kept(name, text) for name, text in kept.items()]}
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
        "rds": {"route_config_name": CONNECT, "config_source": FROM_ADS},
        "http_filters": [
            extension("keep", "filters.http.set_filter_state.v3.Config", keeping),
            *_JUDGES,
            _ROUTER,
        ],
    }
    chain = {
        "transport_socket": tls("DownstreamTlsContext", context, {"require_client_certificate": True}),
        "filters": [extension("http", _MANAGER, manager)],
    }
    return {
        "name": "connect_terminate",
        "address": {"socket_address": {"address": "::", "port_value": HBONE_PORT, "ipv4_compat": True}},
        "filter_chains": [chain],
    }


def _kept(name: str, text: str) -> Json:
    """An object of filter state, which the inner connection gets, too.

    A hashable value parts the pools of those who differ in it; else one client would ride another's tunnel. An address
    can be compared with ranges.
    """
    made_by = {PEER: "envoy.hashable_string", SOURCE: "envoy.network.ip"}
    return {
        "object_key": name,
        "format_string": {"text_format_source": {"inline_string": text}, "omit_empty_values": True},
        "skip_if_empty": True,
        # the authority goes on to connect_originate, for endpoints that have no address of their own in metadata
        "shared_with_upstream": "TRANSITIVE" if name.endswith(".local_ip") else "ONCE",
        **({"factory_key": made_by[name]} if name in made_by else {}),
    }


def main(served: Collection[Served], chains: Sequence[Json]) -> Json:
    """Of the chains, each for one of what is served."""
    by_address: dict[Address, list[Served]] = {}
    for one in served:
        by_address.setdefault(one.address, []).append(one)
    ranges = [
        {
            "ranges": [{"address_prefix": str(address), "prefix_len": address.max_prefixlen}],
            "on_match": _on_port(some),
        }
        for address, some in by_address.items()
    ]
    return {
        "name": "main_internal",
        "internal_listener": {},
        "listener_filters": [extension("original_dst", "filters.listener.original_dst.v3.OriginalDst")],
        # a listener has one chain at least, and nothing leads to the one that is there where nothing is served
        "filter_chains": chains or [{"name": "nothing", "filters": [tcp_proxy("nothing", "nothing")]}],
        **({"filter_chain_matcher": _by_address(ranges)} if ranges else {}),
    }


def bytes_chain(one: Served, policies: Collection[AuthorizationPolicy], to: Sequence[tuple[str, int]]) -> Json:
    """One that judges a connection, and passes on its bytes, to one of some clusters by their weights."""
    judged = [
        extension(name, "filters.network.rbac.v3.RBAC", {"stat_prefix": name, "rules": some})
        for name, action in ((DENY, Action.DENY), (ALLOW, Action.ALLOW))
        if (some := rules(policies, action, reads_http=False)) is not None
    ]
    return {"name": one.name, "filters": [*judged, tcp_split(one.name, to)]}


def http_chain(one: Served, tokens: Collection[JwtRule]) -> Json:
    """One that reads requests; what becomes of them is in its routes, which are of the same name."""
    manager = {
        "stat_prefix": one.name,
        "codec_type": "AUTO",
        "rds": {"route_config_name": one.name, "config_source": FROM_ADS},
        "stream_idle_timeout": "0s",
        "delayed_close_timeout": "0s",
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        # Istio's default, BASE:
        # https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig-ProxyPathNormalization
        "normalize_path": True,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": [
            *reader(tokens),
            *_JUDGES,
            extension(FAULT, "filters.http.fault.v3.HTTPFault"),
            _ROUTER,
        ],
    }
    return {"name": one.name, "filters": [extension("http", _MANAGER, manager)]}


def _by_address(ranges: Sequence[Json]) -> Json:
    matcher = {"@type": "type.googleapis.com/xds.type.matcher.v3.IPMatcher", "range_matchers": ranges}
    return {
        "matcher_tree": {
            "input": extension("address", "matching.common_inputs.network.v3.DestinationIPInput"),
            "custom_match": {"name": "address", "typed_config": matcher},
        }
    }


def _on_port(some: Collection[Served]) -> Json:
    whole = next((one for one in some if one.port is None), None)
    if whole is not None:
        return _take(whole)
    return {
        "matcher": {
            "matcher_tree": {
                "input": extension("port", "matching.common_inputs.network.v3.DestinationPortInput"),
                "exact_match_map": {"map": {str(one.port): _take(one) for one in some}},
            }
        }
    }


def _take(one: Served) -> Json:
    return {"action": {"name": "chain", "typed_config": {"@type": _TEXT, "value": one.name}}}


def originate(own: str) -> Json:
    """Where tunnels to endpoints begin, under the identity ``own``."""
    san = {
        "object_key": "envoy.network.upstream_subject_alt_names",
        "format_string": {
            "text_format_source": {"inline_string": f"%DYNAMIC_METADATA({TUNNEL}:san)%"},
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
        "listener_filters": [extension("original_dst", "filters.listener.original_dst.v3.OriginalDst")],
        "filter_chains": [
            {
                "filters": [
                    extension("identity", "filters.network.set_filter_state.v3.Config", {"on_new_connection": [san]}),
                    tcp_proxy("connect_originate", "hbone", tunnelling),
                ]
            }
        ],
    }


def _log(fields: Json) -> Json:
    """Lines with a ztunnel's field names; each is written when its connection is over, with the time of its begin."""
    line = {"level": "info", "time": _TIME, "scope": "access", "message": "connection opened", **fields}
    log = {"path": "/dev/stdout", "log_format": {"json_format": line}}
    return extension("log", "access_loggers.file.v3.FileAccessLog", log)
