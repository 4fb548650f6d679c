"""From a topology to a running lab, in the order that a cluster has: network, recorder, control plane, agents, pods.

    netd -> netns and links -> programs that wait to be spoken to -> rings -> pods -> proxies, the first to speak
         -> configuration is pushed while agents enrol -> links of the pods open -> pods' own programs -> barrier

Each step's requests are sent before the answers of the one before are waited for, wherever order allows it.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass

from meshlab.errors import LabError, NotEnrolledError
from meshlab.implementations import NodeSlot
from meshlab.kernel.forkserver import ForkServer
from meshlab.kernel.netlink import RouteSocket
from meshlab.kernel.sandbox import NO_DESCRIPTORS, Sandbox, too_few_descriptors
from meshlab.lab.configuration import Configuration
from meshlab.lab.pod import capabilities_of
from meshlab.lab.proving import arrivals
from meshlab.lab.proving.captures import Captures, open_rings
from meshlab.lab.running.mounts import Mounts, binds
from meshlab.lab.running.programs import WARM, Peer, Programs
from meshlab.lab.running.readiness import wait_for_programs
from meshlab.lab.settings import Settings
from meshlab.lab.site import Site
from meshlab.lab.steps import no_step
from meshlab.model import Pod, Topology
from meshlab.pki import MeshCA
from meshlab.plan.network import CONTROL_PLANE, CONTROL_PLANE4, node_netns, pod_netns, proxy_netns
from meshlab.plan.network import plan as plan_network

XDS_PORT = 15012
_PROXY_CAPABILITIES = ("NET_ADMIN", "SYS_ADMIN")
"""What a ztunnel needs, measured: to enter a pod's netns, and for SO_MARK and IP_TRANSPARENT there."""
_AGENT_CAPABILITIES = ("NET_ADMIN", "SYS_ADMIN")
_BACKLOG = 512
_LISTEN_S = 10.0


@dataclass(slots=True)
class Built:
    """A lab that is ready to be called in."""

    site: Site
    captures: Captures
    configuration: Configuration
    timings_ms: dict[str, float]
    """``build``: until every program runs; ``ready``: until everything is in effect."""


def build(topology: Topology, settings: Settings, visible: tuple[str, ...]) -> Built:
    """Build a lab; whatever fails, nothing of it is left."""
    choices = settings.choices(topology)
    started = time.monotonic()
    site: Site | None = None
    sandbox: Sandbox | None = None
    try:
        forks = ForkServer.shared(WARM)
        network, ca = plan_network(topology), MeshCA()
        sandbox = Sandbox.start(binds(visible), step=None if settings.step is no_step else settings.step)
        site = Site(
            topology=topology,
            settings=settings,
            choices=choices,
            network=network,
            sandbox=sandbox,
            programs=Programs(sandbox, forks),
            mounts=Mounts(sandbox, topology.mesh, binds(visible)),
            ca=ca,
            tokens={f"ztunnel@{node.name}": secrets.token_urlsafe(16) for node in topology.nodes},
        )
        return _build(site, started)
    except BaseException as error:
        if (unfinished := site or sandbox) is not None:
            unfinished.close()
        if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
            raise too_few_descriptors() from error
        raise


def _build(site: Site, started: float) -> Built:
    step = site.settings.step
    _make_netns(site)
    _build_nodes(site)
    step("nodes built")
    with site.programs.at_once():
        recorder = _start_recorder(site)
        control_plane = start_control_plane(site)
        _start_agents(site)
        listening = _start_echoes(site)
    for node, number in listening.items():
        site.echoes[node].answer(number, _LISTEN_S)
    opening = open_rings(site, recorder)
    _build_pods(site)
    arrivals.watch(site)
    step("pods built")
    with site.programs.at_once():
        _start_proxies(site)
    step("programs started")
    control_plane.wait_event("listening", site.topology.ready_timeout_s + 10)
    configuration = Configuration(
        control_plane,
        site.topology.mesh,
        enrolled_keys(site),
        _nodes_with_proxy(site),
        site.programs,
        site.settings.after_nack,
    )
    timeout_s = site.settings.ready_timeout_s or site.topology.ready_timeout_s
    push = configuration.begin(_identities(site), timeout_s)
    step("enrolling")
    _enrol(site, timeout_s)
    step("enrolled")
    captures = Captures.start(site, recorder, opening, site.settings.part("analyzer"))
    with ExitStack() as undo:
        undo.callback(captures.close)
        _open_links(site)
        step("links open")
        _start_pod_programs(site)
        built = time.monotonic()
        _settle(site, configuration, push, timeout_s)
        wait_for_programs(site, timeout_s)
        step("ready")
        undo.pop_all()
    ready = time.monotonic()
    timings = {"build": (built - started) * 1000, "ready": (ready - started) * 1000}
    return Built(site, captures, configuration, {name: round(value, 1) for name, value in timings.items()})


# --- kernel ----------------------------------------------------------------------------------------------------------


def _make_netns(site: Site) -> None:
    keys = site.network.netns
    site.netns = {netns.name: netns for netns in site.sandbox.netns(keys)}
    sockets = site.open_sockets([(key, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) for key in keys])
    site.routes = {key: RouteSocket(sock, key) for key, sock in zip(keys, sockets, strict=True)}
    site.sandbox.sysctl([(site.netns[entry.netns], entry.name, entry.value) for entry in site.network.sysctls])


def _build_nodes(site: Site) -> None:
    """Everything but the pods' own ends; their links are born with the node's, and stay down."""
    for batch in site.network.build:
        if not batch.netns.startswith("pod:"):
            site.apply(batch)
    for netns, end in site.network.settle:
        site.settle(netns, end)


def _build_pods(site: Site) -> None:
    batches = [batch for batch in site.network.build if batch.netns.startswith("pod:")]
    for place, batch in enumerate(batches):
        if place == len(batches) // 2:
            site.settings.step("mid-batch")
        site.apply(batch)


def _open_links(site: Site) -> None:
    keys = [pod.key for pod in site.topology.mesh.pods]
    for batch in site.network.opening(keys):
        site.apply(batch)
    for netns, end in site.network.settle_pods(keys):
        site.settle(netns, end)


# --- programs --------------------------------------------------------------------------------------------------------


def _start_recorder(site: Site) -> Peer:
    node = site.topology.nodes[0].name
    program = site.programs.python(
        "recorder",
        site.settings.part("recorder"),
        {},
        {},
        netns=site.netns[CONTROL_PLANE],
        mntns=site.mounts.of_node(node),
    )
    assert program.peer is not None
    site.programs.record_logs_with(program.peer)
    return program.peer


def start_control_plane(site: Site) -> Peer:
    """Start one; it says ``listening`` when it does."""
    config = {
        "listen": str(CONTROL_PLANE4),
        "port": XDS_PORT,
        "clients": {token: name for name, token in site.tokens.items()},
        "trust_domain": site.topology.mesh.trust_domain,
        "ca": site.ca.control_plane(str(CONTROL_PLANE4)),
        "record": site.settings.record,
    }
    program = site.programs.python(
        "control-plane",
        site.settings.part("controlplane"),
        config,
        {},
        netns=site.netns[CONTROL_PLANE],
        mntns=site.mounts.of_node(site.topology.nodes[0].name),
    )
    assert program.peer is not None
    return program.peer


def _start_agents(site: Site) -> None:
    for node in site.topology.nodes:
        if not any(pod.node == node.name for pod in _enrolled(site)):
            continue
        program = site.programs.python(
            f"agent@{node.name}",
            site.settings.part("agent"),
            {"node": node.name, "uds": _slot(site, node.name).uds, "record": site.settings.record},
            {},
            netns=site.netns[node_netns(node.name)],
            mntns=site.mounts.of_node(node.name),
            capabilities=_AGENT_CAPABILITIES,
        )
        assert program.peer is not None
        site.agents[node.name] = program.peer


def _start_proxies(site: Site) -> None:
    if site.settings.keylog:
        site.keylog = os.memfd_create("keylog", os.MFD_CLOEXEC)
    for node, choice in site.choices.items():
        if choice.proxy is None:
            continue
        launch = choice.launch(_slot(site, node))
        name = f"ztunnel@{node}"
        netns, mntns = site.netns[proxy_netns(node)], site.mounts.of_node(node)
        if launch.entry:
            site.programs.python(
                name,
                launch.entry,
                {"env": dict(launch.env)},
                {"keylog": os.dup(site.keylog)} if site.settings.keylog else {},
                netns=netns,
                mntns=mntns,
                capabilities=_PROXY_CAPABILITIES,
                control=False,
            )
        else:
            site.programs.command(
                name, launch.argv, launch.env, netns=netns, mntns=mntns, capabilities=_PROXY_CAPABILITIES
            )


def _slot(site: Site, node: str) -> NodeSlot:
    return NodeSlot(
        node=node,
        xds_address=f"{CONTROL_PLANE4}:{XDS_PORT}",
        ca_root_pem=site.ca.cert_pem.bytes().decode(),
        token=site.tokens[f"ztunnel@{node}"],
        instance_ip=str(site.network.nodes[node].proxy4),
    )


def _start_echoes(site: Site) -> dict[str, int]:
    """One process a node serves all its pods that run nothing else, on sockets that already listen in them.

    It may start early: nobody reaches a pod before its link opens. Returns, by node, the number of the request whose
    answer says that it serves.
    """
    listening: dict[str, int] = {}
    for node in site.topology.nodes:
        served = [
            (pod, port)
            for pod in site.topology.mesh.pods
            if pod.node == node.name and pod.program is None
            for port in pod.ports
        ]
        if not served:
            continue
        listeners = site.open_sockets(
            [(pod_netns(pod.key), socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP) for pod, _ in served]
        )
        for (_, port), listener in zip(served, listeners, strict=True):
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("::", port.number))
            listener.listen(_BACKLOG)
        program = site.programs.python(
            f"echo@{node.name}",
            site.settings.part("echo"),
            {},
            {},
            netns=site.netns[node_netns(node.name)],
            mntns=site.mounts.of_node(node.name),
        )
        assert program.peer is not None
        entries = [
            {
                "pod": pod.key,
                "port": port.number,
                "listener": place,
                "mode": "server-first" if port.server_first else "echo",
            }
            for place, (pod, port) in enumerate(served)
        ]
        listening[node.name] = program.peer.post("listen", [sock.fileno() for sock in listeners], pods=entries)
        for listener in listeners:
            listener.close()
        site.echoes[node.name] = program.peer
    return listening


def _start_pod_programs(site: Site) -> None:
    for pod in site.topology.mesh.pods:
        if pod.program is not None:
            site.programs.command(
                pod.key,
                pod.program.argv,
                pod.program.env,
                netns=site.netns[pod_netns(pod.key)],
                mntns=site.mounts.of_pod(pod, site.netns[pod_netns(pod.key)]),
                capabilities=capabilities_of(pod),
                cwd=pod.program.working_dir or "/",
            )


# --- the mesh --------------------------------------------------------------------------------------------------------


def _enrolled(site: Site) -> list[Pod]:
    return [pod for pod in site.topology.mesh.pods if site.topology.mesh.is_enrolled(pod)]


def enrolled_keys(site: Site) -> frozenset[str]:
    return frozenset(pod.key for pod in _enrolled(site))


def _nodes_with_proxy(site: Site) -> tuple[str, ...]:
    return tuple(node for node, choice in site.choices.items() if choice.proxy is not None)


def _identities(site: Site) -> set[str]:
    """Of the enrolled pods on nodes with a proxy: each must have its certificate before the first call."""
    served = set(_nodes_with_proxy(site))
    trust_domain = site.topology.mesh.trust_domain
    return {str(pod.identity(trust_domain)) for pod in _enrolled(site) if pod.node in served}


def _enrol(site: Site, timeout_s: float) -> None:
    """Ask every agent at once; a pod is enrolled, or pending with a reason.

    Raises:
        NotEnrolledError: a pod is pending at the deadline, and the settings do not allow that.
    """
    posted = {}
    for node, agent in site.agents.items():
        pods = [pod for pod in _enrolled(site) if pod.node == node]
        asked = [_as_agents_know(pod) for pod in pods]
        fds = [site.netns[pod_netns(pod.key)].fd for pod in pods]
        no_proxy = site.choices[node].proxy is None
        posted[node] = agent.post("enrol", fds, pods=asked, timeout_s=timeout_s, no_proxy=no_proxy)
    by_uid = {pod.uid: pod.key for pod in _enrolled(site)}
    for node, number in posted.items():
        answer, _ = site.agents[node].answer(number, timeout_s + 5, _GiveUp(site, node))
        site.pending.update({by_uid[uid]: why for uid, why in answer["pending"].items()})
    if site.pending and not site.settings.allow_pending:
        missing = "; ".join(f"{key}: {why}" for key, why in sorted(site.pending.items()))
        raise NotEnrolledError(f"pending (at most {timeout_s:g} s were given): {missing}{_last_words(site)}")


@dataclass(slots=True)
class _GiveUp:
    """Tells the agent of a node, once, that its proxy is gone: nobody starts it again here."""

    site: Site
    node: str
    told: bool = False

    def __call__(self) -> None:
        proxy = f"ztunnel@{self.node}"
        if not self.told and self.site.programs.has_ended(proxy):
            self.told = True
            how = self.site.programs.how_ended(proxy)
            self.site.agents[self.node].post("give_up", why=f"the node proxy is gone: {how}")


def _as_agents_know(pod: Pod) -> dict[str, str]:
    return {
        "uid": pod.uid,
        "name": pod.name,
        "namespace": pod.namespace,
        "service_account": pod.service_account,
        "ipv4": str(pod.ipv4),
        "ipv6": str(pod.ipv6),
    }


def _settle(site: Site, configuration: Configuration, push: int, timeout_s: float) -> None:
    """Wait for the first push; where pods may stay pending, what it waited for in vain is told of them."""
    try:
        configuration.settle(push, timeout_s)
    except LabError as error:
        if not site.settings.allow_pending or not site.pending:
            raise
        site.pending.update({key: f"{why}; {error}" for key, why in site.pending.items()})


def _last_words(site: Site) -> str:
    """What the proxies printed last, and how they ended: mostly the reason."""
    site.sandbox.poll()
    said = []
    for name, program in sorted(site.programs.by_name.items()):
        if name.startswith("ztunnel@"):
            if program.pid in site.sandbox.exits:
                said.append(f"\n{name} ended: {site.programs.how_ended(name)}")
            lines = site.programs.logs(name).splitlines()[-6:]
            said += [f"\n{name}: {line}" for line in lines]
    return "".join(said)
