"""Can this machine hold a lab? What is needed is tried, not looked up, and what is missing comes with its fix.

The probe makes one throw-away netd and ends it again; nothing of the host is touched.
"""

from __future__ import annotations

import os
import platform
import resource
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

from meshlab.errors import HostNotReadyError, KernelRefusedError
from meshlab.kernel.nft_wire import NETLINK_NETFILTER
from meshlab.kernel.nftables import NftSocket
from meshlab.kernel.sandbox import MIN_DESCRIPTORS, MORE_DESCRIPTORS, Furniture, Netns, Sandbox
from meshlab.plan.redirect import inpod_rules

_SOL_PACKET = 263
_PACKET_VERSION = 10
_TPACKET_V3 = 2
_LEAST_DESCRIPTORS = 64
"""Enough for a lab of three pods; each costs its owner three."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a lab needs, and whether it is there."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    """The command that mends it; empty where nothing needs mending."""


def probe() -> list[Finding]:
    """Try everything a lab needs, in the order in which it needs it."""
    found = [_linux()]
    if not found[0].ok:
        return found
    try:
        sandbox = Sandbox.start()
    except HostNotReadyError as error:
        return [*found, Finding("namespaces", False, "a lab's netd could not start", str(error))]
    try:
        mode = "in a user namespace of your own" if sandbox.rootless else "as root"
        found.append(Finding("namespaces", True, f"user, net, mnt, pid, ipc, uts: {mode}"))
        netns = sandbox.netns(["probe"])[0]
        found += [_mounts(sandbox), _netfilter(sandbox, netns), _ring(sandbox, netns), _descriptors()]
    finally:
        sandbox.close()
    return found


def _linux() -> Finding:
    if sys.platform != "linux":
        return Finding("Linux", False, f"this is {sys.platform}", "`vagrant up` gives a Linux machine")
    return Finding("Linux", True, f"{platform.release()}, Python {platform.python_version()}, uid {os.geteuid()}")


def _try(name: str, detail: str, fix: str, attempt: Callable[[], None]) -> Finding:
    try:
        attempt()
    except (OSError, HostNotReadyError, KernelRefusedError) as error:
        return Finding(name, False, str(error), f"{fix} ({error})")
    return Finding(name, True, detail)


def _mounts(sandbox: Sandbox) -> Finding:
    fix = "run as root, or in a container with `--privileged`: a private mount namespace could not be furnished"
    files = {"/etc/hosts": "127.0.0.1 localhost\n", "/etc/resolv.conf": "nameserver 127.0.0.1\n"}
    return _try(
        "mounts",
        "tmpfs, binds, /proc and /sys of the lab's own",
        fix,
        lambda: _furnish(sandbox, Furniture(files=files)),
    )


def _furnish(sandbox: Sandbox, furniture: Furniture) -> None:
    sandbox.mntns(furniture)


def _netfilter(sandbox: Sandbox, netns: Netns) -> Finding:
    """Write the very rules that a pod of the mesh gets: each expression may be a module of its own."""
    fix = "`sudo modprobe -a nf_tables nft_redir nft_ct nft_chain_nat`: redirection needs nf_tables"

    def attempt() -> None:
        for sock in sandbox.sockets([(netns, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)]):
            with sock:
                NftSocket(sock, netns.name).apply(inpod_rules().ruleset)

    return _try("nf_tables", "the redirect rules of a pod, both families", fix, attempt)


def _ring(sandbox: Sandbox, netns: Netns) -> Finding:
    fix = "`sudo modprobe af_packet`: captures need packet sockets with TPACKET_V3"

    def attempt() -> None:
        for sock in sandbox.sockets([(netns, socket.AF_PACKET, socket.SOCK_RAW, 0)]):
            with sock:
                sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)

    return _try("captures", "packet sockets with TPACKET_V3", fix, attempt)


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _LEAST_DESCRIPTORS:
        return Finding("descriptors", False, f"at most {hard} open files", MORE_DESCRIPTORS)
    few = hard != resource.RLIM_INFINITY and hard < MIN_DESCRIPTORS
    return Finding(
        "descriptors",
        True,
        f"{soft} open files, {hard} at most{f'; for labs of many pods {MORE_DESCRIPTORS}' if few else ''}",
    )
