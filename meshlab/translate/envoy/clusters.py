"""A cluster for each upstream, and those that lead from one listener to the next.

An endpoint of the mesh is reached by a tunnel of its own for each request, as its ztunnel judges tunnels and not
requests. Each tunnel has to end at whom the endpoint must be.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/other_features/internal_listener and
https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/upstreams/http/v3/http_protocol_options.proto
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from meshlab.model import Family, Mesh, Pod, PodPort
from meshlab.model.ambient import HBONE_PORT
from meshlab.translate.envoy.forms import ORIGINAL, TUNNEL, Json, certified, extension, tls
from meshlab.translate.envoy.serving import Served, Upstream

_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def clusters(
    mesh: Mesh, served: Iterable[Served], routed: Iterable[Upstream], unhealthy: Collection[str]
) -> dict[str, Json]:
    """Those of what is served and of the upstreams that routes lead to, by name."""
    upstreams = {one.name: one for one in routed}
    pods = {}
    for one in served:
        if isinstance(one.to, Upstream):
            upstreams[one.to.name] = one.to
        else:
            pods[one.name] = _of_pod(mesh, one.name, one.to, one.family)
    return {**{name: _of_upstream(mesh, one, unhealthy) for name, one in upstreams.items()}, **pods}


def _of_upstream(mesh: Mesh, one: Upstream, unhealthy: Collection[str]) -> Json:
    endpoints = [_endpoint(mesh, each, one.family) for each in one.endpoints(mesh, unhealthy)]
    requests = {
        "common_http_protocol_options": {"max_requests_per_connection": 1},
        "explicit_http_config": {"http_protocol_options": {}},
    }
    return {**_static(one.name, endpoints), **_http(requests)}


def _of_pod(mesh: Mesh, name: str, pod: Pod, family: Family) -> Json:
    if not mesh.is_enrolled(pod):
        return {"name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "5s"}
    return _static(name, [_endpoint(mesh, PodPort(pod.key, 0), family)])


def _static(name: str, endpoints: list[Json]) -> dict[str, Any]:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "transport_socket": _internal([ORIGINAL, TUNNEL]),
        "load_assignment": _assignment(name, endpoints),
    }


def _endpoint(mesh: Mesh, reached: PodPort, family: Family) -> Json:
    """Of port 0: the port is that of the call."""
    pod = mesh.pod(reached.pod)
    address = pod.address(family)
    if not mesh.is_enrolled(pod):
        return {"endpoint": {"address": {"socket_address": {"address": str(address), "port_value": reached.port}}}}
    where = f"[{address}]:{reached.port}" if family == 6 else f"{address}:{reached.port}"
    internal = {"server_listener_name": "connect_originate", "endpoint_id": where}
    metadata: dict[str, Json] = {TUNNEL: {"san": str(pod.identity(mesh.trust_domain))}}
    if reached.port:
        metadata[ORIGINAL] = {"local": where}
    return {
        "endpoint": {"address": {"envoy_internal_address": internal}},
        "metadata": {"filter_metadata": metadata},
    }


def hbone(mesh: Mesh) -> Json:
    """The tunnels themselves."""
    context = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        **certified(f"spiffe://{mesh.trust_domain}/"),
    }
    return {
        "name": "hbone",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "original_dst_lb_config": {"upstream_port_override": HBONE_PORT},
        **_http({"explicit_http_config": {"http2_protocol_options": {}}}),
        "transport_socket": tls("UpstreamTlsContext", context),
    }


def _http(options: Json) -> Json:
    return {"typed_extension_protocol_options": {_OPTIONS: {"@type": f"type.googleapis.com/{_OPTIONS}", **options}}}


def _internal(passed: list[str]) -> Json:
    raw = extension("raw", "transport_sockets.raw_buffer.v3.RawBuffer")
    metadata = [{"kind": {"host": {}}, "name": name} for name in passed]
    return extension(
        "internal_upstream",
        "transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        {"passthrough_metadata": metadata, "transport_socket": raw},
    )


def _assignment(name: str, endpoints: list[Json]) -> Json:
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}


MAIN: Json = {
    "name": "main_internal",
    "type": "STATIC",
    "connect_timeout": "5s",
    "transport_socket": _internal([]),
    "load_assignment": _assignment(
        "main_internal",
        [{"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": "main_internal"}}}}],
    ),
}
