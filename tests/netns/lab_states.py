"""What a lab is, read back from where it holds: ``state_of``; two labs of one mesh have the same state.

    netns          links, addresses, routes, routing rules, nf_tables: of every netns of the plan but second proxies'
    proxies        what each node proxy holds, by its own ``/config_dump``
    agents         which pods each agent has
    served         what the control plane serves
    names          ``/etc/hosts`` of each pod
    matrix         every cell and every proof (``matrix_of``, apart: it makes calls)

What two labs of one mesh may differ in is left out: interface indexes and the MACs that follow from them, pods'
incarnations in uids, generations of programs, and the place that an upgrade makes for a node's second proxy.

Sources: man 7 rtnetlink; include/uapi/linux/{rtnetlink,if_addr,if_link,fib_rules}.h
"""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from meshlab.agent.requests import ReadStatus
from meshlab.kernel import nft_wire
from meshlab.kernel.netlink import NETLINK_ROUTE, NetlinkSocket, attributes
from meshlab.kernel.nft_decode import decode, text_of
from meshlab.lab.proving.check import check_cells
from meshlab.lab.proving.matrix import cells
from meshlab.plan import nft
from meshlab.plan.netns import NetnsKey, pod_netns

if TYPE_CHECKING:
    from meshlab.lab import Lab

State = Mapping[str, Any]

_GETLINK, _GETADDR, _GETROUTE, _GETRULE = 18, 22, 26, 34
_GETTABLE = nft_wire.SUBSYSTEM | 1
_IFLA_IFNAME, _IFLA_MTU, _IFLA_OPERSTATE = 3, 4, 16
_RTA = {1: "to", 4: "dev", 5: "via", 6: "metric", 7: "src", 8: "metrics", 15: "table", 20: "pref"}
_FRA = {1: "to", 2: "from", 3: "iif", 6: "preference", 10: "mark", 14: "suppress", 15: "table", 16: "mask", 17: "oif"}
_INCARNATION = re.compile(r"^uid\d*-")
_CALL = re.compile(r"#\d+$")
"""The number of a call in the id of a proof."""
_ADMIN = ("127.0.0.1", 15000)
_ANSWER_S = 5.0


def state_of(lab: Lab) -> dict[str, Any]:
    """Everything but the matrix, as plain values that can be compared and printed."""
    return {
        "netns": {key: netns_of(lab, key) for key in sorted(lab.site.netns) if key not in _second_places(lab)},
        "proxies": {node: _proxy(lab, node) for node in lab.site.network.nodes},
        "agents": {node: _agent(lab, node) for node in lab.site.network.nodes},
        "served": lab.transitions.configuration.served,
        "names": {
            pod.key: lab.pod(pod.key).exec("cat", "/etc/hosts").stdout.decode().splitlines() for pod in lab.mesh.pods
        },
    }


def matrix_of(lab: Lab) -> dict[str, Any]:
    """Name of each cell and of each proof -> its result, with what was seen."""
    topology = replace(lab.topology, mesh=lab.mesh, expect=(), steps=())
    report = check_cells(lab, cells(topology, lab.not_listening)).report
    return {
        "cells": {
            f"{cell.source}->{cell.to}:{cell.port}/{cell.family}": f"{cell.result}: {cell.expected} {cell.seen}"
            for cell in report.cells
        },
        "proofs": {_CALL.sub("", proof.id): str(proof.result) for proof in report.proofs},
    }


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two states differ, each as ``path: one | other``."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}):
            yield from differences(one.get(key), other.get(key), f"{where}/{key}")
    elif (
        isinstance(one, list) and isinstance(other, list) and all(isinstance(item, Mapping) for item in (*one, *other))
    ):
        pairs: list[tuple[Any, Any]] = list(zip_longest(one, other, fillvalue={}))
        for place, (left, right) in enumerate(pairs):
            yield from differences(left, right, f"{where}/{place}")
    elif isinstance(one, list) and isinstance(other, list):
        yield from (f"{where}: only the first has {item}" for item in one if item not in other)
        yield from (f"{where}: only the second has {item}" for item in other if item not in one)
        if sorted(map(str, one)) == sorted(map(str, other)) and one != other:
            yield f"{where}: another order"
    elif one != other:
        yield f"{where}: {one} | {other}"


# --- the kernel ------------------------------------------------------------------------------------------------------


def netns_of(lab: Lab, key: NetnsKey) -> dict[str, list[str]]:
    """Links, addresses, routes, routing rules and nf_tables of one netns, each as sorted lines."""
    with lab.site.open_socket(key, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as sock:
        route = NetlinkSocket(sock, key)
        links = {struct.unpack_from("=i", body, 4)[0]: _link(body) for body in route.dump(_GETLINK, bytes(16))}
        names = {index: name for index, (name, _) in links.items()}
        lines = {
            "links": [f"{name} {rest}" for name, rest in links.values()],
            "addresses": [_address(body, names) for body in route.dump(_GETADDR, bytes(8))],
            "routes": [_route(body, names) for f in _FAMILIES for body in route.dump(_GETROUTE, _of(f))],
            "rules": [_rule(body) for f in _FAMILIES for body in route.dump(_GETRULE, _of(f))],
        }
    second = [f" dev={proxy.end.name} " for node in _nodes_of(lab, key) for proxy in node.proxies[1:]]
    far = [f" to={address}/" for address in _second_addresses(lab)]
    kept = {
        kind: sorted(line for line in some if not any(part in f" {line} " for part in (*second, *far)))
        for kind, some in lines.items()
    }
    kept["links"] = [line for line in kept["links"] if not any(line.startswith(part[5:]) for part in second)]
    with lab.site.open_socket(key, socket.AF_NETLINK, socket.SOCK_RAW, nft_wire.NETLINK_NETFILTER) as sock:
        return {**kept, "nft": _nft(NetlinkSocket(sock, key))}


_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def _of(family: int) -> bytes:
    return bytes([family]).ljust(12, b"\0")


def _link(body: bytes) -> tuple[str, str]:
    found = dict(attributes(body[16:]))
    flags = struct.unpack_from("=I", body, 8)[0]
    mtu = struct.unpack("=I", found[_IFLA_MTU])[0]
    return text_of(found[_IFLA_IFNAME]), f"flags={flags:#x} state={found[_IFLA_OPERSTATE].hex()} mtu={mtu}"


def _address(body: bytes, names: Mapping[int, str]) -> str:
    family, prefix, flags, scope, index = struct.unpack_from("=BBBBI", body)
    address = ip_address(dict(attributes(body[8:]))[1])  # IFA_ADDRESS
    assert address.version == (4 if family == socket.AF_INET else 6)
    return f"{address}/{prefix} dev={names[index]} flags={flags} scope={scope}"


def _route(body: bytes, names: Mapping[int, str]) -> str:
    family, to, source, tos, _, protocol, scope, kind, flags = struct.unpack_from("=BBBBBBBBI", body)
    words = [f"family={family}", f"tos={tos}", f"proto={protocol}", f"scope={scope}", f"type={kind}", f"flags={flags}"]
    for number, value in attributes(body[12:]):
        match _RTA.get(number):
            case None:
                continue  # RTA_CACHEINFO and the like
            case "dev":
                words.append(f"dev={names[struct.unpack('=I', value)[0]]}")
            case "to":
                words.append(f"to={ip_address(value)}/{to}")
            case "via" | "src" as name:
                words.append(f"{name}={ip_address(value)}")
            case name:
                words.append(f"{name}={value.hex()}")
    return " ".join([*words, f"from={source}"])


def _rule(body: bytes) -> str:
    values = [(_FRA[number], value.hex()) for number, value in attributes(body[12:]) if number in _FRA]
    return " ".join([f"family={body[0]}", f"action={body[7]}", *(f"{name}={value}" for name, value in values)])


def _nft(sock: NetlinkSocket) -> list[str]:
    """The tables, and what is in them as nft's text; what no plan has is told, too."""
    everything = b"\0\0\0\0"
    tables = sorted(text_of(dict(attributes(body[4:]))[1]) for body in sock.dump(_GETTABLE, everything))
    asked = ((nft_wire.GETCHAIN, nft_wire.NEWCHAIN), (nft_wire.GETRULE, nft_wire.NEWRULE))
    found = [(kind, body) for get, kind in asked for body in sock.dump(get, everything)]
    try:
        text = nft.text(decode(found))
    except ValueError as error:
        text = f"{len(found)} chains and rules that no plan has: {error}"
    return [*(f"table {table}" for table in tables), *text.splitlines()]


def _nodes_of(lab: Lab, key: str) -> list[Any]:
    return [node for node in lab.site.network.nodes.values() if node.netns == key]


def _second_places(lab: Lab) -> set[str]:
    return {proxy.netns for node in lab.site.network.nodes.values() for proxy in node.proxies[1:]}


def _second_addresses(lab: Lab) -> list[str]:
    return [
        str(address)
        for node in lab.site.network.nodes.values()
        for proxy in node.proxies[1:]
        for address in (proxy.ipv4, proxy.ipv6)
    ]


# --- programs --------------------------------------------------------------------------------------------------------


def _proxy(lab: Lab, node: str) -> list[Any]:
    """What each proxy of the node holds; of several, as at an upgrade, the oldest first."""
    return [
        _config_dump(lab, lab.site.network.nodes[node].proxies[proxy.place].netns) for proxy in lab.site.proxies[node]
    ]


def _config_dump(lab: Lab, netns: NetnsKey) -> dict[str, Any]:
    with lab.site.open_socket(netns, socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(_ANSWER_S)
        sock.connect(_ADMIN)
        sock.sendall(b"GET /config_dump HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    dump = json.loads(answer.partition(b"\r\n\r\n")[2])
    certificates = sorted(f"{one['identity']} {one['state']}" for one in dump.pop("certificates"))
    return {"certificates": certificates, **dump}


def _agent(lab: Lab, node: str) -> Any:
    agent = lab.site.peer("agent", node)
    if agent is None:
        return None
    status, _ = agent.ask(ReadStatus())
    return {
        "pods": _without_incarnations(status["uids"]),
        "proxies": [_without_incarnations(one["uids"]) for one in status["connections"]],
        "without_rules": status["without_rules"],
    }


def _without_incarnations(uids: list[str]) -> list[str]:
    return sorted(_INCARNATION.sub("uid-", uid) for uid in uids)


def make_mounts(lab: Lab) -> None:
    """Have every pod's ``/etc/hosts`` be there: from now on it has to follow what changes."""
    for pod in lab.mesh.pods:
        lab.mounts.of_pod(pod, lab.netns(pod_netns(pod.key)))
