"""A lab is what its mesh says, whatever it went through: one that has a history equals a fresh one of its end state."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab_states import differences, make_mounts, matrix_of, state_of

from meshlab.kernel.nft_wire import NETLINK_NETFILTER
from meshlab.kernel.nftables import NftSocket
from meshlab.lab import LabSettings, open_lab
from meshlab.model import Topology
from meshlab.plan.changes import Route, host_network
from meshlab.plan.netns import node_netns, pod_netns
from meshlab.plan.redirect import inpod_rules
from meshlab.play.player import Player
from meshlab.protocols.messages import ADDRESS_TYPE, message
from meshlab.strategies.choices import Choices
from meshlab.strategies.histories import draw_history
from meshlab.topology import dump, load

if TYPE_CHECKING:
    from meshlab.lab import Lab

_HISTORIES = int(os.environ.get("MESHLAB_HISTORIES", "3"))
_FIRST = int(os.environ.get("MESHLAB_FIRST_HISTORY", "0"))
_HAPPENINGS = 20
_BYTES = 4000
TEXT = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: history}
spec:
  nodes: [node-1, node-2]
  images: {"*": {}}
  pods:
    shop/client: {node: node-1, ports: [8080], serviceAccount: client}
    shop/server: {node: node-2, ports: [8080, 9090], serviceAccount: server, labels: {app: server}}
    shop/other: {node: node-1, ports: [8080], serviceAccount: server, labels: {app: server}}
    plain/guest: {node: node-2, ports: [8080], serviceAccount: client}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: plain}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-9090, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {ports: ["9090"]}}]}]}
"""
GUEST = """
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: shop}
spec:
  nodeName: node-1
  serviceAccountName: late
  containers: [{name: c, image: any, ports: [{containerPort: 8080}]}]
"""


def history(number: int) -> Topology:
    """The history of this number: the same on every machine."""
    choices = Choices(random.Random(number).randbytes(_BYTES))  # noqa: S311
    topology = load(TEXT, "history")
    while True:
        drawn = draw_history(choices, topology, _HAPPENINGS)
        if len(drawn.steps) >= _HAPPENINGS:
            return drawn
        choices = Choices(random.Random(f"{number} {len(drawn.steps)}").randbytes(_BYTES))  # noqa: S311


@contextmanager
def fresh(lab: Lab) -> Iterator[Lab]:
    """A new lab of the mesh that is in effect in ``lab``, with its pods at their addresses."""
    text = dump(replace(lab.topology, mesh=lab.mesh, expect=(), steps=()))
    with open_lab(load(text, "end state")) as other:
        make_mounts(other)
        yield other


def live_through(lab: Lab, drawn: Topology) -> None:
    """Play all that happens; each pod has its names from the moment on at which it comes."""
    player = Player(lab, prove=False)
    for place, step in enumerate(drawn.steps):
        make_mounts(lab)
        player.play(place, step)
    wrong, _ = player.close()
    assert [one.text for one in wrong] == []


@pytest.mark.parametrize("number", range(_FIRST, _FIRST + _HISTORIES))
def test_a_lab_with_a_history_equals_a_fresh_one_of_its_end_state(number: int) -> None:
    drawn = history(number)
    with open_lab(drawn) as lab:
        live_through(lab, drawn)
        with fresh(lab) as other:
            assert list(differences(state_of(lab), state_of(other))) == []
            assert list(differences(matrix_of(lab), matrix_of(other))) == []


@pytest.mark.parametrize("number", range(_FIRST, _FIRST + _HISTORIES))
def test_a_lab_with_a_history_is_renewed_to_a_fresh_one_of_its_file(number: int) -> None:
    drawn = history(number)
    with open_lab(drawn) as lab:
        live_through(lab, drawn)
        lab.renew()
        make_mounts(lab)
        assert lab.mesh.authorization_policies == drawn.mesh.authorization_policies
        with fresh(lab) as other:
            assert list(differences(state_of(lab), state_of(other))) == []


def test_the_names_in_a_pod_follow_the_pods_that_come_and_go() -> None:
    with open_lab(load(TEXT, "history")) as lab:
        make_mounts(lab)
        for verb, known in ((lab.apply, True), (lab.delete, False)):
            verb(GUEST)
            hosts = lab.pod("shop/client").exec("cat", "/etc/hosts").stdout.decode()
            assert (" late.shop.pod late" in hosts) is known


# --- what a transition could leave behind ----------------------------------------------------------------------------


def _a_route(lab: Lab) -> None:
    """To a pod's address, at another node than the pod's own."""
    netns, node = node_netns("node-2"), lab.site.network.nodes["node-2"]
    lab.site.routes[netns].apply([Route(destination=host_network(lab.pod("shop/other").ipv4), end=node.fabric)])


def _rules(lab: Lab) -> None:
    """Of a pod of the mesh, in one that is out of it."""
    netns = pod_netns("plain/guest")
    with lab.site.open_socket(netns, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        NftSocket(sock, netns).apply(inpod_rules().ruleset)


def _a_routing_rule(lab: Lab) -> None:
    lab.site.routes[pod_netns("plain/guest")].apply(inpod_rules().routing[:1])


def _a_name(lab: Lab) -> None:
    """Of a pod that has gone."""
    hosts = lab.pod("shop/client").exec("cat", "/etc/hosts").stdout.decode()
    mntns = lab.mounts.known("shop/client")
    assert mntns is not None
    lab.sandbox.write_files(mntns, {"/etc/hosts": f"{hosts}10.128.1.1 late.shop.pod late\n"})


def _a_subscription(lab: Lab) -> None:
    """The workload of a pod that has gone stays with the node proxies."""
    address = message("istio.workload.Address")()
    address.workload.uid = "Kubernetes//Pod/shop/late"
    address.workload.name, address.workload.namespace = "late", "shop"
    assert lab.push_raw(ADDRESS_TYPE, address.workload.uid, address.SerializeToString()) == ""


def _what_a_resource_said(lab: Lab) -> None:
    """The workload of a pod that is there says what it said earlier."""
    address = message("istio.workload.Address")()
    address.workload.uid = "Kubernetes//Pod/shop/server"
    address.workload.name, address.workload.namespace = "server", "shop"
    assert lab.push_raw(ADDRESS_TYPE, address.workload.uid, address.SerializeToString()) == ""


def _a_certificate(lab: Lab) -> None:
    """The node proxy of this lab forgets none, and one of its pods goes."""
    lab.delete(GUEST)


KEEPS_CERTIFICATES = """#!{python}
import os, sys
sys.path[:0] = {path!r}
from meshlab.proxykit.certificates import Certificates
from meshlab.ztunnel.main import Parts, run

class Keeps(Certificates):
    def keep(self, identities):
        super().keep({{*identities, *self.states()}})

run({{"env": dict(os.environ)}}, {{}}, Parts(certificates=Keeps))
"""
LEFT_BEHIND: dict[str, tuple[Callable[[Lab], None], str]] = {
    "a route": (_a_route, "/netns/node:node-2/routes: only the first"),
    "rules": (_rules, "/netns/pod:plain/guest/nft: only the first"),
    "a routing rule": (_a_routing_rule, "/netns/pod:plain/guest/r"),
    "a name": (_a_name, "/names/shop/client: only the first"),
    "a subscription": (_a_subscription, "/proxies/node-1/0/workloads/Kubernetes//Pod/shop/late: {"),
    "what a resource said": (_what_a_resource_said, "/proxies/node-2/0/workloads/Kubernetes//Pod/shop/server/node: "),
    "a certificate": (_a_certificate, "/proxies/node-1/0/certificates: only the first"),
}


@pytest.mark.parametrize(("leave", "seen"), LEFT_BEHIND.values(), ids=LEFT_BEHIND.keys())
def test_what_a_transition_leaves_behind_is_a_difference(
    leave: Callable[[Lab], None], seen: str, tmp_path: Path
) -> None:
    ztunnel = tmp_path / "ztunnel"
    ztunnel.write_text(KEEPS_CERTIFICATES.format(python=sys.executable, path=sys.path))
    ztunnel.chmod(0o755)
    chosen: LabSettings = {"ztunnel": str(ztunnel), "binds": [str(tmp_path)]} if leave is _a_certificate else {}
    with open_lab(load(TEXT, "history"), **chosen) as lab:
        make_mounts(lab)
        lab.apply(GUEST)
        if leave is not _a_certificate:
            lab.delete(GUEST)
            with fresh(lab) as other:
                assert list(differences(state_of(lab), state_of(other))) == []
        leave(lab)
        with fresh(lab) as other:
            found = list(differences(state_of(lab), state_of(other)))
        assert any(seen in line for line in found), found
