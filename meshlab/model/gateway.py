"""Waypoints, as the Gateway API and Istio's labels attach them.

Source: https://istio.io/latest/docs/ambient/usage/waypoint/ and https://gateway-api.sigs.k8s.io/reference/spec/#gateway
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

USE_WAYPOINT = "istio.io/use-waypoint"
"""Label of a namespace, a Service or a pod: the name of its waypoint, or ``none``."""
USE_WAYPOINT_NAMESPACE = "istio.io/use-waypoint-namespace"
"""Label beside it: the namespace of that waypoint; the object's own, where it is not given."""
WAYPOINT_FOR = "istio.io/waypoint-for"
"""Label of a Gateway: what traffic its waypoint serves."""
GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"
"""Label of a waypoint's pod: the Gateway that it belongs to."""
WAYPOINT_CLASS = "istio-waypoint"

Serves = Literal["service", "workload", "all", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waypoint:
    """A ``Gateway`` of the class ``istio-waypoint``. What runs for it is a pod of its own name."""

    name: str
    namespace: str
    serves: Serves = "service"
    """Calls to a Service's address, calls to a pod's own address, both, or none."""
    from_all: bool = False
    """Whether objects of other namespaces may use it (``allowedRoutes.namespaces.from: All``)."""

    @property
    def key(self) -> str:
        """``namespace/name``: also its pod's."""
        return f"{self.namespace}/{self.name}"

    @property
    def hostname(self) -> str:
        """Of its Service."""
        return f"{self.name}.{self.namespace}.svc.cluster.local"
