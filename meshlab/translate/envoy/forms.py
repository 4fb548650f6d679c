"""JSON forms of Envoy's messages that several of its resources have in common.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-v3/api
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]

CLUSTER_TYPE = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
LISTENER_TYPE = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTE_TYPE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
SECRET_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - no secret itself
OWN, ROOT = "default", "ROOTCA"
"""Names of the secrets, as Istio's agent gives them: the waypoint's own certificate, and the mesh's root."""

PEER = "meshlab.peer"
"""Filter state: the identity of the client whose connection this is."""
SOURCE = "meshlab.source"
"""Filter state: the address of that client."""
TUNNEL = "meshlab.tunnel"
"""Metadata of an endpoint: the identity that it must show."""
TOKENS = "envoy.filters.http.jwt_authn"
"""Metadata of a request: under ``payload``, what its token says."""
ORIGINAL = "envoy.filters.listener.original_dst"
NOT_FOUND = "no such cluster"
FROM_ADS: Json = {"ads": {}, "resource_api_version": "V3"}

_EXTENSIONS = "type.googleapis.com/envoy.extensions."


def typed(kind: str, more: Json | None = None) -> Json:
    return {"@type": f"{_EXTENSIONS}{kind}", **(more or {})}


def extension(name: str, kind: str, more: Json | None = None) -> Json:
    return {"name": name, "typed_config": typed(kind, more)}


def tcp_proxy(stat_prefix: str, cluster: str, more: Json | None = None) -> Json:
    return tcp_split(stat_prefix, [(cluster, 1)], more)


def tcp_split(stat_prefix: str, clusters: Sequence[tuple[str, int]], more: Json | None = None) -> Json:
    """A proxy of TCP that shares connections out by the weights of clusters."""
    weighted = [{"name": name, "weight": weight} for name, weight in clusters]
    to: Json = {"cluster": clusters[0][0]} if len(clusters) == 1 else {"weighted_clusters": {"clusters": weighted}}
    proxy = {"stat_prefix": stat_prefix, **to, "idle_timeout": "0s", **(more or {})}
    return extension("tcp", "filters.network.tcp_proxy.v3.TcpProxy", proxy)


def tls(kind: str, context: Json, more: Json | None = None) -> Json:
    return extension("tls", f"transport_sockets.tls.v3.{kind}", {"common_tls_context": context, **(more or {})})


def certified(prefix: str) -> Json:
    """The own certificate, and a peer whose certificate names an identity that begins like this."""
    san = {"san_type": "URI", "matcher": {"prefix": prefix}}
    return {
        "tls_certificate_sds_secret_configs": [{"name": OWN, "sds_config": FROM_ADS}],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [san]},
            "validation_context_sds_secret_config": {"name": ROOT, "sds_config": FROM_ADS},
        },
    }


def regex(text: str) -> Json:
    """A matcher of strings; the whole string has to match."""
    return {"safe_regex": {"regex": text}}
