"""The two node proxies that speak ztunnel's environment: the reference, and any ztunnel binary, unpatched.

Source: https://istio.io/latest/docs/ambient/architecture/data-plane/ and ztunnel's own configuration reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meshlab.implementations.protocol import API_VERSION, Implementation, Launch, NodeSlot
from meshlab.version import __version__

FEATURES = frozenset({"hbone", "ipv6", "l4-policy", "peer-authentication", "plaintext-passthrough", "services"})


@dataclass(frozen=True, slots=True)
class Reference:
    """The ztunnel that comes with meshlab, written to be read."""

    entry: str = "meshlab.ztunnel.main:main"
    """A mutant or a legal variant of it is another entry."""
    api_version: int = API_VERSION

    def describe(self) -> Implementation:
        return Implementation(name="reference", version=__version__, features=FEATURES, claims=frozenset({"identity"}))

    def launch(self, slot: NodeSlot) -> Launch:
        return Launch(entry=self.entry, env=environment(slot), access_log="istio-json")


@dataclass(frozen=True, slots=True)
class Binary:
    """A ztunnel executable. It is not run to be described, so its version is the lab's to read."""

    name: str
    path: Path
    """Absolute."""
    api_version: int = API_VERSION

    def describe(self) -> Implementation:
        return Implementation(name=self.name, version="", features=FEATURES, claims=frozenset({"identity"}))

    def launch(self, slot: NodeSlot) -> Launch:
        argv = (str(self.path), "proxy", "ztunnel")
        return Launch(argv=argv, env=environment(slot), access_log="istio-json")


def environment(slot: NodeSlot) -> dict[str, str]:
    """What a ztunnel reads at its start.

    Roots and token are literals, so that nothing secret is a file. NODE_NAME makes it fetch certificates before the
    first call. POD_NAME and its like are left out: the proxy itself is no workload of the mesh.
    """
    return {
        "INPOD_UDS": slot.uds,
        "XDS_ADDRESS": slot.xds_address,
        "CA_ADDRESS": slot.xds_address,
        "XDS_ROOT_CA": slot.ca_root_pem,
        "CA_ROOT_CA": slot.ca_root_pem,
        "AUTH_TOKEN": slot.token,
        "NODE_NAME": slot.node,
        "CLUSTER_ID": slot.cluster_id,
        "INSTANCE_IP": slot.instance_ip,
        "RUST_LOG": "info,access=debug",
        "LOG_FORMAT": "json",
        "ZTUNNEL_WORKER_THREADS": "2",
    }
