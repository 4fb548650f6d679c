"""What each program of a lab may do, read from outside: its effective and its bounding set, and nobody is forgotten."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from leftovers import capabilities, inhabitants, pid_inside

from meshlab.kernel.namespaces import CAPABILITIES

if TYPE_CHECKING:
    from meshlab.lab import Lab

TOPOLOGY = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: capabilities}
spec:
  nodes: [node-1, node-2]
  pods:
    shop/client: {node: node-1, run: [sleep, infinity]}
    shop/server: {node: node-2, ports: [8080]}
    shop/tool: {node: node-2, run: [sleep, infinity], capabilities: [NET_ADMIN]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
"""
OF_A_POD = frozenset({"NET_BIND_SERVICE", "NET_RAW"})
ENTERS_PODS = frozenset({"NET_ADMIN", "SYS_ADMIN"})
NONE: frozenset[str] = frozenset()
EXPECTED = {
    "recorder": NONE,
    "control-plane": NONE,
    "agent@node-1": ENTERS_PODS,
    "agent@node-2": ENTERS_PODS,
    "ztunnel@node-1": ENTERS_PODS,
    "ztunnel@node-2": ENTERS_PODS,
    "echo@node-1": NONE,
    "echo@node-2": NONE,
    "shop/client": OF_A_POD,
    "shop/tool": OF_A_POD | {"NET_ADMIN"},
}


def _names(bits: int) -> frozenset[str]:
    return frozenset(name for number, name in enumerate(CAPABILITIES) if bits >> number & 1)


@pytest.mark.meshlab_dataplane
@pytest.mark.meshlab(TOPOLOGY)
def test_every_program_has_the_capabilities_it_needs_and_no_more(lab: Lab) -> None:
    named = {program.pid: name for name, program in lab.site.programs.by_name.items()}
    namespace = f"pid:[{os.fstat(lab.sandbox.pid_fd).st_ino}]"
    seen = {pid_inside(pid): capabilities(pid) for pid in inhabitants([namespace])}
    del seen[1]  # netd makes the namespaces; in a lab of an ordinary user its rights end at that user's
    for kind in ("CapEff", "CapBnd"):
        assert {named[pid]: _names(sets[kind]) for pid, sets in seen.items()} == EXPECTED


@pytest.mark.meshlab(TOPOLOGY, ztunnel="none", allow_pending=True)
def test_a_command_in_a_pod_has_what_its_programs_have(lab: Lab) -> None:
    for pod in ("shop/client", "shop/server", "shop/tool"):
        status = lab.pod(pod).exec("cat", "/proc/self/status").stdout.decode()
        fields = dict(line.split(":\t") for line in status.splitlines())
        expected = EXPECTED["shop/tool"] if pod == "shop/tool" else OF_A_POD
        for kind in ("CapEff", "CapBnd", "CapAmb"):
            assert _names(int(fields[kind], 16)) == expected


@pytest.mark.meshlab(TOPOLOGY, ztunnel="none", allow_pending=True)
def test_a_pods_program_cannot_touch_its_own_redirection(lab: Lab) -> None:
    link_down = (
        "import fcntl, socket, struct; s = socket.socket(); "
        "fcntl.ioctl(s, 0x8914, struct.pack('16sh14x', b'eth0', 0))"  # SIOCSIFFLAGS
    )
    done = lab.pod("shop/client").exec("/usr/bin/env", "python3", "-c", link_down)
    assert done.status != 0
    assert b"PermissionError" in done.stderr
