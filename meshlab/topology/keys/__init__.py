"""Every key of every kind that a topology may hold, and what becomes of it: one table for reader and documentation.

* honoured: it changes the model (each has a test in which it does);
* inert: it has no part in traffic, so it is read over, and listed by ``meshlab validate -v``;
* refused: it would change what is proven and is not supported; why is said here.

A path is written as in ``kubectl explain``, with ``[]`` for the entries of a list and ``*`` for keys that the user
names. What stands below an inert or refused key is not looked at. A key that is not here is unknown, and an error.

Sources: https://kubernetes.io/docs/reference/kubernetes-api/ and https://istio.io/latest/docs/reference/config/security/,
https://istio.io/latest/docs/reference/config/networking/, https://gateway-api.sigs.k8s.io/reference/spec/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from meshlab.topology import shapes
from meshlab.topology.keys.common import LABELS, NO_ANNOTATIONS, NO_LABELS, object_keys
from meshlab.topology.keys.gateways import GATEWAY
from meshlab.topology.keys.key import Key, Kind, Use, each, inert, refused
from meshlab.topology.keys.lab import LAB
from meshlab.topology.keys.pods import DEPLOYMENT, POD
from meshlab.topology.keys.policies import AUTHORIZATION_POLICY, PEER_AUTHENTICATION, REQUEST_AUTHENTICATION
from meshlab.topology.keys.routes import DESTINATION_RULE, HTTP_ROUTE, TCP_ROUTE, VIRTUAL_SERVICE
from meshlab.topology.keys.services import ENDPOINT_SLICE, ENDPOINTS, SERVICE

__all__ = ["KINDS", "LAB_API", "Branch", "Key", "Kind", "Use", "parts", "render_keys_page", "tree"]

NAMESPACE = {
    **object_keys(shapes.LABEL, namespaced=False),
    **LABELS,
    "metadata.labels.istio-injection": refused("the lab has no sidecars", unless=("disabled",)),
    **NO_ANNOTATIONS,
    "spec": inert("the API server's bookkeeping"),
}

SERVICE_ACCOUNT = {
    **object_keys(shapes.SUBDOMAIN),
    "metadata.name": inert("every account that a pod names exists"),
    **NO_LABELS,
    **NO_ANNOTATIONS,
    **each("automountServiceAccountToken imagePullSecrets secrets", inert("there is no API server")),
}

_MARK = re.compile(r"(.*?\b(?:labels|annotations))\.(.+)")

LAB_API = "meshlab.dev/v1alpha1"
_SECURITY = ("security.istio.io/v1", "security.istio.io/v1beta1")
_NETWORKING = ("networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3")
_GATEWAY_API = ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1")

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("Lab", (LAB_API,), LAB),
        Kind("Namespace", ("v1",), NAMESPACE),
        Kind("ServiceAccount", ("v1",), SERVICE_ACCOUNT),
        Kind("Pod", ("v1",), POD),
        Kind("Deployment", ("apps/v1",), DEPLOYMENT),
        Kind("Service", ("v1",), SERVICE),
        Kind("Endpoints", ("v1",), ENDPOINTS),
        Kind("EndpointSlice", ("discovery.k8s.io/v1",), ENDPOINT_SLICE),
        Kind("Gateway", _GATEWAY_API, GATEWAY),
        Kind("HTTPRoute", _GATEWAY_API, HTTP_ROUTE),
        Kind("TCPRoute", ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"), TCP_ROUTE),
        Kind("VirtualService", _NETWORKING, VIRTUAL_SERVICE),
        Kind("DestinationRule", _NETWORKING, DESTINATION_RULE),
        Kind("AuthorizationPolicy", _SECURITY, AUTHORIZATION_POLICY),
        Kind("PeerAuthentication", _SECURITY, PEER_AUTHENTICATION),
        Kind("RequestAuthentication", _SECURITY, REQUEST_AUTHENTICATION),
    )
}
"""In the order of the documentation. ``kind: List`` is its items."""


@dataclass(slots=True)
class Branch:
    """The table as a tree: ``children`` by the next part of the path."""

    key: Key | None = None
    children: dict[str, Branch] = field(default_factory=dict)


@cache
def tree(kind: str) -> Branch:
    """The table of ``kind`` as a tree, for walking beside a document."""
    root = Branch()
    for path, key in KINDS[kind].keys.items():
        branch = root
        for part in parts(path):
            branch = branch.children.setdefault(part, Branch())
        branch.key = key
    return root


def parts(path: str) -> Iterator[str]:
    """``a.b[].c`` -> a, b, [], c; ``a[][]`` -> a, [], [].

    The key of a label or an annotation may have dots of its own, and stays whole.
    """
    marked = _MARK.fullmatch(path)
    for part in (marked[1] if marked else path).split("."):
        name = part.rstrip("[]")
        yield name
        yield from ["[]"] * ((len(part) - len(name)) // 2)
    if marked:
        yield marked[2]


def render_keys_page() -> str:
    """The table as the reference page of the documentation, in Markdown."""
    intro = (
        "# Keys of a topology file\n\n"
        "Made from `meshlab/topology/keys/`. A key that is not listed is an error. "
        "What stands below an inert or refused key is not looked at.\n"
    )
    return intro + "".join(_section(kind) for kind in KINDS.values())


def _section(kind: Kind) -> str:
    rows = "".join(_row(path, key) for path, key in sorted(kind.keys.items(), key=lambda item: _order(*item)))
    versions = ", ".join(f"`{version}`" for version in kind.api_versions)
    return f"\n## {kind.name}\n\n{versions}\n\n| key | | value, or why |\n|---|---|---|\n{rows}"


def _order(path: str, key: Key) -> tuple[int, str]:
    return list(Use).index(key.use), path


def _row(path: str, key: Key) -> str:
    use = "required" if key.required else key.use.value
    words = key.shape.words if key.shape else ""
    unless = f"; may be {', '.join(map(repr, key.unless))}" if key.unless else ""
    about = "; ".join(part for part in (words, key.why) if part) + unless
    return f"| `{path}` | {use} | {about.replace('|', chr(92) + '|')} |\n"
