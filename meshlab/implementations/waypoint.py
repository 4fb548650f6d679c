"""The waypoints that come with meshlab: the reference, and a stock Envoy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshlab.implementations.protocol import API_VERSION, Implementation, Launch, WaypointSlot
from meshlab.version import __version__

ENTRY = "meshlab.waypoint.main:main"
_FLAGS = (
    *("--concurrency", "1", "--disable-hot-restart", "--drain-time-s", "86400"),
    *("--file-flush-interval-msec", "20", "-l", "warn", "--component-log-level", "misc:error"),
)
"""One worker is enough for a lab, what is open stays open when its listener changes, and log lines are waited for."""
_EXTENSIONS = "type.googleapis.com/envoy.extensions."


@dataclass(frozen=True, slots=True)
class ReferenceWaypoint:
    """The waypoint that comes with meshlab, written to be read."""

    entry: str = ENTRY
    """A mutant or a legal variant of it is another entry."""
    api_version: int = API_VERSION

    def describe(self) -> Implementation:
        return Implementation(
            name="reference",
            version=__version__,
            roles=("waypoint",),
            claims=frozenset({"identity"}),
            config="manifests",
        )

    def launch(self, slot: WaypointSlot) -> Launch:
        namespace, _, name = slot.gateway.partition("/")
        env = {
            "XDS_ADDRESS": slot.xds_address,
            "CA_ADDRESS": slot.xds_address,
            "XDS_ROOT_CA": slot.ca_root_pem,
            "CA_ROOT_CA": slot.ca_root_pem,
            "AUTH_TOKEN": slot.token,
            "POD_NAME": name,
            "POD_NAMESPACE": namespace,
            "INSTANCE_IP": slot.instance_ip,
            "CLUSTER_ID": slot.cluster_id,
            "WORKLOAD_IDENTITY": slot.identity,
        }
        return Launch(entry=self.entry, env=env, access_log="istio-json")


@dataclass(frozen=True, slots=True)
class EnvoyWaypoint:
    """An Envoy executable, unpatched."""

    name: str
    path: Path
    """Absolute."""
    api_version: int = API_VERSION

    def describe(self) -> Implementation:
        return Implementation(name=self.name, version="", roles=("waypoint",), claims=frozenset({"identity"}))

    def launch(self, slot: WaypointSlot) -> Launch:
        return Launch(argv=(str(self.path), "--config-yaml", _bootstrap(slot), *_FLAGS), access_log="istio-json")


def _bootstrap(slot: WaypointSlot) -> str:
    """What Envoy is started with, as JSON: who it is, and how it reaches the control plane."""
    host, _, port = slot.xds_address.rpartition(":")
    bearer = {"key": "authorization", "value": f"Bearer {slot.token}"}
    service = {"envoy_grpc": {"cluster_name": "xds"}, "initial_metadata": [bearer]}
    trusted = {"validation_context": {"trusted_ca": {"inline_string": slot.ca_root_pem}}, "alpn_protocols": ["h2"]}
    http = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    address = {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
    from_ads = {"ads": {}, "resource_api_version": "V3"}
    xds = {
        "name": "xds",
        "type": "STATIC",
        "connect_timeout": "5s",
        "transport_socket": {
            "name": "tls",
            "typed_config": _typed("transport_sockets.tls.v3.UpstreamTlsContext", {"common_tls_context": trusted}),
        },
        "typed_extension_protocol_options": {
            http: {"@type": f"type.googleapis.com/{http}", "explicit_http_config": {"http2_protocol_options": {}}}
        },
        "load_assignment": {
            "cluster_name": "xds",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    return json.dumps(
        {
            "node": {"id": slot.instance, "cluster": slot.gateway},
            "bootstrap_extensions": [
                {"name": "internal", "typed_config": _typed("bootstrap.internal_listener.v3.InternalListener", {})}
            ],
            "dynamic_resources": {
                "ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [service]},
                "cds_config": from_ads,
                "lds_config": from_ads,
            },
            "static_resources": {"clusters": [xds]},
        }
    )


def _typed(kind: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"@type": f"{_EXTENSIONS}{kind}", **fields}
