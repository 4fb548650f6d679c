"""Whole labs, and what is in them: names that look alike, replicas on two nodes, pods in and out of the mesh."""

from __future__ import annotations

import sys
from dataclasses import replace

from hypothesis import strategies as st

from meshlab.model import (
    DATAPLANE_MODE,
    FAMILIES,
    Action,
    AuthorizationPolicy,
    CallStep,
    ContainerPort,
    Mesh,
    MtlsMode,
    Namespace,
    Node,
    Operation,
    PeerAuthentication,
    Pod,
    Program,
    Rule,
    Service,
    ServicePort,
    Source,
    SpiffeId,
    Topology,
)
from meshlab.model import addresses as places
from meshlab.oracle import expected
from meshlab.strategies.choices import Choices, drawn
from meshlab.strategies.near import near_identities
from meshlab.strategies.policies import Drawing, draw_policies
from meshlab.strategies.shapes import draw_shape
from meshlab.topology import with_target_ports

NAMESPACES = ("shop", "shop-2", "sho", "xshop", "bank")
ACCOUNTS = ("web", "web-admin", "a", "default")
_PORTS = (8080, 9090, 80, 8081, 1, 1024, 40000, 65535)
"""The lowest, the highest, and one of those that Linux gives to clients (``ip_local_port_range``), among usual ones."""
_PLAIN = "plain"
"""A namespace out of the mesh."""
_PORT_NAME = "web"
_CHOICES = 480
_SERVER = """
import http.server, socket
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\\n")
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(("::", {port}), Answer).serve_forever()
"""


def topologies(max_pods: int = 8, *, allow_all: bool = False, programs: bool = False) -> st.SearchStrategy[Topology]:
    """A lab of one to three nodes with one to ``max_pods`` pods, Services or none, and policies.

    Some pods are replicas of others, on another node if there is one; some only call; the last may be out of the mesh.
    In every lab somebody can be called.

    Args:
        allow_all: policies that let every call through, or none at all; else ones that are near to some call.
        programs: some pods run an HTTP server of their own.
    """

    def make(choices: Choices) -> Topology:
        nodes = choices.one_of((2, 1, 3))
        pods = _pods(choices, nodes, choices.one_of(range(1, max_pods + 1)), programs)
        mesh = Mesh(namespaces=_namespaces(pods), pods=pods, places=len(pods))
        count = choices.one_of((1, 0, 2)) if len(pods) > 1 else 1
        mesh, _ = with_target_ports(
            replace(mesh, services=tuple(_service(choices, mesh, place) for place in range(count)))
        )
        return Topology(
            name="generated",
            nodes=tuple(Node(name=f"node-{number + 1}") for number in range(nodes)),
            mesh=_allowing(choices, mesh) if allow_all else draw_policies(Drawing.about(choices, mesh)),
        )

    return drawn(make, _CHOICES)


def _allowing(choices: Choices, mesh: Mesh) -> Mesh:
    """With policies that have a say and let everything through."""
    everything = choices.one_of((Rule(), Rule(sources=(Source(ip_blocks=("0.0.0.0/0", "::/0")),))))
    namespace = choices.one_of((mesh.pods[0].namespace, mesh.root_namespace))
    allow = AuthorizationPolicy(name="all", namespace=namespace, rules=(everything,))
    never = replace(allow, name="never", action=Action.DENY, rules=(Rule(operations=(Operation(ports=("7",)),)),))
    plain = PeerAuthentication(name="plain", namespace=namespace, mode=MtlsMode.PERMISSIVE)
    return replace(
        mesh,
        authorization_policies=choices.one_of(((), (allow,), (never,), (allow, never))),
        peer_authentications=choices.one_of(((), (plain,))),
    )


def services(mesh: Mesh, place: int = 0) -> st.SearchStrategy[Service]:
    """A Service over pods of ``mesh`` that have a label, with the VIPs of the ``place``-th of a file."""
    return drawn(lambda choices: _service(choices, mesh, place), 8)


def spiffe_ids(mesh: Mesh | None = None) -> st.SearchStrategy[SpiffeId]:
    """Identities of the pods of ``mesh`` and ones that are nearly theirs; without a mesh, of names used here."""
    known = sorted({pod.identity(mesh.trust_domain) for pod in mesh.pods}) if mesh else []
    known = known or [SpiffeId("cluster.local", namespace, account) for namespace in NAMESPACES for account in ACCOUNTS]
    return drawn(lambda choices: _identity(choices, known), 3)


def calls(mesh: Mesh) -> st.SearchStrategy[CallStep]:
    """A call between two pods of ``mesh``, with the verdict of its policies.

    Raises:
        ValueError: no pod can call another one.
    """
    called = [pod for pod in mesh.pods if pod.ports]
    if len(mesh.pods) < 2 or not called:
        raise ValueError("no pod can call another one: the mesh has one pod, or none with a port")

    def make(choices: Choices) -> CallStep:
        destination = choices.one_of(called)
        source = choices.one_of([pod for pod in mesh.pods if pod.key != destination.key])
        port, family = choices.one_of(destination.ports).number, choices.one_of(FAMILIES)
        due = expected(mesh, source, destination, port, family)
        return CallStep(
            source=source.key,
            to=f"{destination.key}:{port}",
            family=family,
            shape=draw_shape(choices),
            expect=due.ways[0].verdict,
        )

    return drawn(make, 12)


def _pods(choices: Choices, nodes: int, count: int, programs: bool) -> tuple[Pod, ...]:
    """The first has a port and is in the mesh, so that somebody can be called."""
    pods = [_pod(choices, 0, nodes, programs=programs)]
    for place in range(1, count):
        if choices.one_of((False, False, True)):
            pods.append(_replica(pods[-1], place, nodes))
        else:
            pods.append(_pod(choices, place, nodes, programs=programs, silent=choices.one_of(range(4)) == 3))
    if count > 1 and choices.one_of((True, True, False)):
        pods[-1] = _out_of_the_mesh(choices, _pod(choices, count - 1, nodes))
    return tuple(pods)


def _pod(choices: Choices, place: int, nodes: int, *, programs: bool = False, silent: bool = False) -> Pod:
    """Its name has its place in it, so that no two are alike; ``silent``: it has no port."""
    account, first, second = choices.one_of(ACCOUNTS), choices.one_of(_PORTS), choices.one_of(_PORTS)
    greets, runs = choices.one_of(range(8)) == 7, choices.one_of((False, False, True))
    ports = [ContainerPort(number=first, name=choices.one_of(("", _PORT_NAME)))]
    if second != first:
        ports.append(ContainerPort(number=second, server_first=greets))
    own = programs and runs and not silent
    return _placed(
        Pod(
            name=f"{account}-{place}",
            namespace=choices.one_of(NAMESPACES),
            node="",
            ipv4=places.pod4(0, place),
            ipv6=places.pod6(0, place),
            labels={"app": account, "workload": f"w{place}"},
            service_account=account,
            ports=() if silent else tuple(ports[:1] if own else ports),
            program=Program(argv=(sys.executable, "-c", _SERVER.format(port=first))) if own else None,
        ),
        place,
        choices.number() % nodes,
    )


def _replica(pod: Pod, place: int, nodes: int) -> Pod:
    """Another pod of the same workload, on the next node."""
    node = int(pod.node.rpartition("-")[2]) % nodes
    return _placed(replace(pod, name=f"{pod.service_account}-{place}"), place, node)


def _placed(pod: Pod, place: int, node: int) -> Pod:
    return replace(pod, node=f"node-{node + 1}", ipv4=places.pod4(node, place), ipv6=places.pod6(node, place))


def _out_of_the_mesh(choices: Choices, pod: Pod) -> Pod:
    """By its own label, or in a namespace that is not in the mesh."""
    if choices.one_of((True, False)):
        return replace(pod, labels={**pod.labels, DATAPLANE_MODE: "none"})
    return replace(pod, namespace=_PLAIN)


def _namespaces(pods: tuple[Pod, ...]) -> tuple[Namespace, ...]:
    names = dict.fromkeys(pod.namespace for pod in pods)
    return tuple(Namespace(name=name, labels={} if name == _PLAIN else {DATAPLANE_MODE: "ambient"}) for name in names)


def _service(choices: Choices, mesh: Mesh, place: int) -> Service:
    """Its pods all listen, and are all in the mesh or all out of it; its port is often not theirs."""
    pod = choices.one_of([pod for pod in mesh.pods if pod.ports and pod.labels])
    ports = choices.one_of((pod.ports[:1], pod.ports[-1:], pod.ports))
    families = choices.one_of(((4, 6), (4,), (6,)))
    first = choices.one_of((7000, 80))
    by_name = choices.one_of((True, False))
    service = Service(
        name=f"service-{place}",
        namespace=pod.namespace,
        ipv4=places.service4(place) if 4 in families else None,
        ipv6=places.service6(place) if 6 in families else None,
        ports=tuple(
            ServicePort(
                port=first + place,
                target_port=port.name if by_name and port.name else port.number,
                name=f"p{place}" if len(ports) > 1 else "",
            )
            for place, port in enumerate(ports)
        ),
    )
    keys = sorted(set(pod.labels) - {DATAPLANE_MODE}) or sorted(pod.labels)
    selecting = [replace(service, selector={key: pod.labels[key]}) for key in keys]
    return choices.one_of([one for one in selecting if _is_sound(mesh, one)] or selecting[-1:])


def _is_sound(mesh: Mesh, service: Service) -> bool:
    ends = mesh.endpoints(service)
    listening = all(
        mesh.target(service, port, pod) in {own.number for own in pod.ports} for pod in ends for port in service.ports
    )
    return listening and len({mesh.is_enrolled(pod) for pod in ends}) == 1


def _identity(choices: Choices, known: list[SpiffeId]) -> SpiffeId:
    identity = choices.one_of(known)
    return choices.one_of([*[identity] * 4, *near_identities(identity)])
