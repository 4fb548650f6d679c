"""The empty cluster: netd, the network of the nodes, and the programs that are there before the first pod.

    netd -> netns and links of the nodes -> recorder, control plane, agents, echoes, node proxies, in one fork
         -> rings of the captures, which open while the first pods are made

What starts a program is used again when it is restarted: each start is another generation of the instance.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from meshlab.agent.requests import PodAsked
from meshlab.implementations import Choice, NodeSlot, WaypointSlot
from meshlab.kernel.forkserver import ForkServer
from meshlab.kernel.sandbox import NO_DESCRIPTORS, Sandbox, too_few_descriptors
from meshlab.lab.running.mounts import Mounts, binds
from meshlab.lab.running.programs import WARM, Peer, Program, Programs
from meshlab.lab.settings import Settings
from meshlab.lab.site import NodeProxy, Site, Started
from meshlab.lab.steps import no_step
from meshlab.model import Mesh, Pod, Topology
from meshlab.pki import MeshCA
from meshlab.plan.netns import CONTROL_PLANE, node_netns, pod_netns
from meshlab.plan.network import CONTROL_PLANE4, second_proxy
from meshlab.plan.network import plan as plan_network
from meshlab.translate import for_envoy

XDS_PORT = 15012
PROXY_CAPABILITIES = ("NET_ADMIN", "SYS_ADMIN")
"""What a ztunnel needs, measured: to enter a pod's netns, and for SO_MARK and IP_TRANSPARENT there."""
_AGENT_CAPABILITIES = ("NET_ADMIN", "SYS_ADMIN")


def begin(topology: Topology, settings: Settings, visible: tuple[str, ...]) -> Site:
    """Begin a lab: a netd and what is known of it. Nothing is in it yet; whatever fails, nothing of it is left."""
    choices, waypoint = settings.choices(topology), settings.waypoint_choice(topology)
    sandbox: Sandbox | None = None
    try:
        forks = ForkServer.shared(WARM)
        network, ca = plan_network(topology.nodes), MeshCA()
        sandbox = Sandbox.start(binds(visible), step=None if settings.step is no_step else settings.step)
        return Site(
            topology=topology,
            settings=settings,
            choices=choices,
            first_choices=dict(choices),
            network=network,
            sandbox=sandbox,
            programs=Programs(sandbox, forks),
            mounts=Mounts(sandbox, binds(visible)),
            ca=ca,
            waypoint=waypoint,
            mesh=Mesh(
                trust_domain=topology.mesh.trust_domain,
                root_namespace=topology.mesh.root_namespace,
                profile=topology.mesh.profile,
            ),
        )
    except BaseException as error:
        if sandbox is not None:
            sandbox.close()
        if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
            raise too_few_descriptors() from error
        raise


def start(site: Site) -> Peer:
    """Build the nodes and start their programs; the recorder is returned, the others are still starting."""
    site.make_netns(site.network.netns)
    site.sandbox.sysctl([(site.netns[entry.netns], entry.name, entry.value) for entry in site.network.sysctls])
    for batch in site.network.build:
        site.apply(batch)
    for netns, end in site.network.settle:
        site.settle(netns, end)
    site.settings.step("nodes built")
    if site.settings.keylog:
        site.keylog = os.memfd_create("keylog", os.MFD_CLOEXEC)
    with site.programs.at_once():
        recorder = _start_recorder(site)
        for node in site.topology.nodes:
            site.proxies[node.name] = _first_proxies(site, node.name)
        start_control_plane(site)
        for node in site.topology.nodes:
            start_agent(site, node.name)
            start_echo(site, node.name)
        for node in site.topology.nodes:
            for proxy in site.proxies[node.name]:
                launch(site, node.name, proxy)
    site.settings.step("programs started")
    return recorder


def _start_recorder(site: Site) -> Peer:
    program = site.programs.python(
        site.programs.next_of("recorder"),
        site.settings.part("recorder"),
        {},
        {},
        netns=site.netns[CONTROL_PLANE],
        mntns=site.mounts.of_node(site.topology.nodes[0].name),
    )
    assert program.peer is not None
    site.programs.record_logs_with(program.peer)
    return program.peer


def start_control_plane(site: Site) -> Peer:
    """Start one; it says ``listening`` when it does."""
    config = {
        "listen": str(CONTROL_PLANE4),
        "port": XDS_PORT,
        "clients": site.clients(),
        "trust_domain": site.topology.mesh.trust_domain,
        "ca": site.ca.control_plane(str(CONTROL_PLANE4)),
        "record": site.settings.record,
    }
    program = site.programs.python(
        site.programs.next_of("control-plane"),
        site.settings.part("controlplane"),
        config,
        {},
        netns=site.netns[CONTROL_PLANE],
        mntns=site.mounts.of_node(site.topology.nodes[0].name),
    )
    assert program.peer is not None
    return program.peer


def start_agent(site: Site, node: str, pods: Sequence[Pod] = ()) -> Peer:
    """Start a node's agent, which knows these pods before it listens: one that comes back must forget nobody."""
    program = site.programs.python(
        site.programs.next_of("agent", node),
        site.settings.part("agent"),
        {
            "node": node,
            "uds": slot(site, node).uds,
            "record": site.settings.record,
            "pods": [as_asked(p) for p in pods],
        },
        {f"netns-{place}": os.dup(site.netns[pod_netns(pod.key)].fd) for place, pod in enumerate(pods)},
        netns=site.netns[node_netns(node)],
        mntns=site.mounts.of_node(node),
        capabilities=_AGENT_CAPABILITIES,
    )
    assert program.peer is not None
    return program.peer


def as_asked(pod: Pod) -> PodAsked:
    """A pod as agents know it."""
    return PodAsked(
        uid=pod.uid,
        name=pod.name,
        namespace=pod.namespace,
        service_account=pod.service_account,
        bypass_inbound=pod.bypasses_inbound,
    )


def start_echo(site: Site, node: str) -> Peer:
    """Start the process that serves all pods of a node that run nothing else; it gets their listeners as they come."""
    program = site.programs.python(
        site.programs.next_of("echo", node),
        site.settings.part("echo"),
        {},
        {},
        netns=site.netns[node_netns(node)],
        mntns=site.mounts.of_node(node),
    )
    assert program.peer is not None
    return program.peer


# --- node proxies ----------------------------------------------------------------------------------------------------


def _first_proxies(site: Site, node: str) -> list[NodeProxy]:
    choice = site.choices[node]
    return [] if choice.proxy is None else [next_proxy(site, node, choice, 0)]


def next_proxy(site: Site, node: str, choice: Choice, place: int) -> NodeProxy:
    """The next generation of a node's proxy, to be launched in one of the node's places."""
    return NodeProxy(site.programs.next_of("ztunnel", node), choice, place, site.new_token())


def launch(site: Site, node: str, proxy: NodeProxy) -> Program:
    """Start a node proxy in its place."""
    run = proxy.choice.launch(slot(site, node, proxy))
    site.launched[proxy.instance] = proxy.choice
    netns, mntns = site.netns[site.network.nodes[node].proxies[proxy.place].netns], site.mounts.of_node(node)
    if not run.entry:
        return site.programs.command(
            proxy.instance, run.argv, run.env, netns=netns, mntns=mntns, capabilities=PROXY_CAPABILITIES
        )
    return site.programs.python(
        proxy.instance,
        run.entry,
        {"env": dict(run.env)},
        {"keylog": os.dup(site.keylog)} if site.settings.keylog else {},
        netns=netns,
        mntns=mntns,
        capabilities=PROXY_CAPABILITIES,
        control=False,
    )


def next_waypoint(site: Site, pod: Pod) -> None:
    """Note the next generation of a pod's waypoint, which is about to be started."""
    svid = site.ca.svid(pod.identity(site.topology.mesh.trust_domain))
    own = for_envoy.Credentials(
        chain="".join(pem.bytes().decode() for pem in svid.cert_chain_pems),
        key=svid.private_key_pem.bytes().decode(),
        root=site.ca.cert_pem.bytes().decode(),
    )
    site.waypoints[pod.key] = Started(site.programs.next_of("waypoint", pod.key), site.new_token(), own)


def start_waypoint(site: Site, pod: Pod) -> Program:
    """Start the waypoint of a pod that was noted last; the control plane has to know it by then."""
    started, netns = site.waypoints[pod.key], site.netns[pod_netns(pod.key)]
    run = site.waypoint.launch(
        WaypointSlot(
            gateway=pod.key,
            instance=str(started.instance),
            identity=str(pod.identity(site.topology.mesh.trust_domain)),
            xds_address=f"{CONTROL_PLANE4}:{XDS_PORT}",
            ca_root_pem=started.own.root,
            token=started.token,
            instance_ip=str(pod.ipv4),
        )
    )
    site.launched[started.instance] = site.waypoint
    mntns = site.mounts.of_pod(pod, netns)
    if not run.entry:
        return site.programs.command(started.instance, run.argv, run.env, netns=netns, mntns=mntns, capabilities=())
    config = {"env": dict(run.env)}
    return site.programs.python(started.instance, run.entry, config, {}, netns=netns, mntns=mntns, control=False)


def make_place(site: Site, node: str, place: int) -> None:
    """Make a node's place for a second proxy, unless it is there."""
    network = site.network.nodes[node]
    proxy = network.proxies[place]
    if proxy.netns in site.netns:
        return
    site.make_netns([proxy.netns])
    for batch in second_proxy(network):
        site.apply(batch)
    site.settle(network.netns, proxy.end)


def slot(site: Site, node: str, proxy: NodeProxy | None = None) -> NodeSlot:
    return NodeSlot(
        node=node,
        xds_address=f"{CONTROL_PLANE4}:{XDS_PORT}",
        ca_root_pem=site.ca.cert_pem.bytes().decode(),
        token=proxy.token if proxy else "",
        instance_ip=str(site.network.nodes[node].proxies[proxy.place if proxy else 0].ipv4),
    )
