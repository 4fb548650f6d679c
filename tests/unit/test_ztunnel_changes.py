"""What a ztunnel does about each update from xDS: the whole program, with a door and a pool that have no pod."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from ztunnel_world import ca, named, policy, update, who, workload

from meshlab.model import Connection, SpiffeId
from meshlab.protocols.hbone import Target
from meshlab.protocols.messages import ADDRESS_TYPE, AUTHORIZATION_TYPE, message
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit.config import Config
from meshlab.proxykit.pool import Key
from meshlab.ztunnel.main import Parts, Ztunnel
from meshlab.ztunnel.proxy import PodProxy
from meshlab.ztunnel.routing import route

CLIENT, SERVER = who("client"), who("server")
POD = ZdsPod(uid="u", name="server", namespace="shop", service_account="server")
ADDRESS = ip_address("10.2.0.2")


class Node:
    """A ztunnel that serves one pod, and the connections that are open to it."""

    def __init__(self, folder: Path) -> None:
        root = ca().cert_pem.bytes().decode()
        env = {"XDS_ADDRESS": "127.0.0.1:1", "CA_ADDRESS": "127.0.0.1:1", "XDS_ROOT_CA": root, "CA_ROOT_CA": root}
        self.program = Ztunnel(Config.from_env({**env, "INPOD_UDS": str(folder / "uds")}), Parts())
        self.proxy: PodProxy = self.program._proxy(POD, -1)
        self.program._pods._proxies[POD.uid] = self.proxy
        self.cut: list[str] = []

    def apply(self, type_url: str, *resources: Any, removed: tuple[str, ...] = ()) -> None:
        assert self.program._apply(update(type_url, *resources, removed=removed)) == {}

    def admit(self, name: str, source: SpiffeId | None, port: int = 8080) -> None:
        own = named(self.program._state, "server")
        connection = Connection(
            source=source,
            source_ip=ip_address("10.1.0.1"),
            destination="shop/server",
            destination_ip=ADDRESS,
            port=port,
        )
        self.proxy.inbound.guard.admit(own, connection, lambda: self.cut.append(name))


def _on(folder: Path, scenario: Callable[[Node], Awaitable[None]]) -> None:
    async def run() -> None:
        node = Node(folder)
        node.apply(ADDRESS_TYPE, workload("client", "10.1.0.1"), workload("server", str(ADDRESS)))
        node.apply(AUTHORIZATION_TYPE)
        async with asyncio.timeout(20):
            await scenario(node)
        del node.program._pods._proxies[POD.uid]
        await node.proxy.outbound.close()
        await node.proxy.inbound.close()
        await node.program._tasks.cancel()
        await node.program._xds.close()
        await node.program._ca.close()

    asyncio.run(run())


def _selecting(name: str, **match: Any) -> Any:
    """A policy that denies at the workloads that list it."""
    return message("istio.security.Authorization")(
        name=name,
        namespace="shop",
        scope="WORKLOAD_SELECTOR",
        action="DENY",
        groups=[{"rules": [{"matches": [match]}]}],
    )


BY_CLIENT: dict[str, Any] = {"principals": [{"exact": CLIENT.principal}]}
STRICT = message("istio.security.Authorization")(
    name="istio_converted_static_strict",
    namespace="istio-system",
    scope="WORKLOAD_SELECTOR",
    action="DENY",
    groups=[{"rules": [{"matches": [{"not_principals": [{"presence": {}}]}]}]}],
)


def test_a_policy_that_comes_and_one_that_changes_cut_what_they_deny_and_nothing_else(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        node.admit("client", CLIENT)
        node.admit("other", who("other"))
        node.apply(AUTHORIZATION_TYPE, policy("p", "DENY", destination_ports=[1]))
        assert node.cut == []
        node.apply(AUTHORIZATION_TYPE, policy("p", "DENY", **BY_CLIENT))
        assert node.cut == ["client"]

    _on(tmp_path, scenario)


def test_an_allow_that_is_removed_cuts_nothing_and_one_of_two_cuts_what_it_alone_let_in(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        node.apply(AUTHORIZATION_TYPE, policy("a", "ALLOW", **BY_CLIENT), policy("b", "ALLOW", destination_ports=[1]))
        node.admit("by port", who("other"), port=1)
        node.admit("client", CLIENT)
        node.apply(AUTHORIZATION_TYPE, removed=("shop/a",))
        assert node.cut == ["client"]
        node.apply(AUTHORIZATION_TYPE, removed=("shop/b",))
        assert node.cut == ["client"]

    _on(tmp_path, scenario)


@pytest.mark.parametrize("first", ["policy", "workload"])
def test_a_selector_policy_that_is_attached_cuts_whichever_of_its_two_updates_comes_last(
    first: str, tmp_path: Path
) -> None:
    async def scenario(node: Node) -> None:
        node.admit("client", CLIENT)
        updates = {
            "policy": (AUTHORIZATION_TYPE, _selecting("late", **BY_CLIENT)),
            "workload": (ADDRESS_TYPE, workload("server", str(ADDRESS), authorization_policies=["shop/late"])),
        }
        node.apply(*updates.pop(first))
        assert node.cut == []
        node.apply(*updates.popitem()[1])
        assert node.cut == ["client"]

    _on(tmp_path, scenario)


def test_a_policy_that_loses_its_selector_is_everybodys_and_one_that_gets_one_is_nobodys(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        node.apply(AUTHORIZATION_TYPE, _selecting("p", **BY_CLIENT))
        node.admit("first", CLIENT)
        node.apply(AUTHORIZATION_TYPE, policy("p", "DENY", **BY_CLIENT))
        assert node.cut == ["first"]
        node.apply(AUTHORIZATION_TYPE, _selecting("p", **BY_CLIENT))
        node.admit("second", CLIENT)
        assert node.cut == ["first"]

    _on(tmp_path, scenario)


def test_strict_cuts_what_is_in_plaintext_and_leaves_what_is_tunnelled(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        node.admit("plain", None)
        node.admit("tunnelled", CLIENT)
        node.apply(AUTHORIZATION_TYPE, STRICT)
        assert node.cut == []
        listed = ["istio-system/istio_converted_static_strict"]
        node.apply(ADDRESS_TYPE, workload("server", str(ADDRESS), authorization_policies=listed))
        assert node.cut == ["plain"]

    _on(tmp_path, scenario)


def test_a_client_that_changes_or_goes_and_a_server_that_goes_from_xds_cut_nothing(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        node.apply(AUTHORIZATION_TYPE, policy("only", "ALLOW", **BY_CLIENT))
        node.admit("client", CLIENT)
        node.apply(ADDRESS_TYPE, workload("client", "10.1.0.1", service_account="someone-else"))
        node.apply(ADDRESS_TYPE, removed=("Kubernetes//Pod/shop/client",))
        node.apply(ADDRESS_TYPE, removed=("Kubernetes//Pod/shop/server",))
        assert node.cut == []

    _on(tmp_path, scenario)


def test_a_policy_is_heeded_while_the_node_drains(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        node.admit("client", CLIENT)
        node.program._pods.drain()
        node.apply(AUTHORIZATION_TYPE, policy("p", "DENY", **BY_CLIENT))
        assert node.cut == ["client"]

    _on(tmp_path, scenario)


# --- an address that another workload had ----------------------------------------------------------------------------


class Tunnel:
    """Stands for a pooled connection."""

    def __init__(self) -> None:
        self.has_room = True

    def going_away(self) -> None:
        self.has_room = False

    def close(self) -> None:
        self.has_room = False


def _pooled(node: Node, *peers: SpiffeId) -> Tunnel:
    tunnel = Tunnel()
    key = Key(SERVER, ADDRESS, frozenset(map(str, peers)), Target(ip_address("10.3.0.3"), 15008))
    node.proxy.outbound.pool._tunnels[key] = [tunnel]  # type: ignore[list-item]
    return tunnel


OLD = "Kubernetes//Pod/shop/old"


def test_a_call_to_an_address_that_is_anothers_since_this_update_expects_the_new_identity(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        dialled = Target(ip_address("10.3.0.3"), 8080)
        source = named(node.program._state, "server")
        for name, removed in (("old", ()), ("new", (OLD,))):
            node.apply(ADDRESS_TYPE, workload(name, "10.3.0.3"), removed=removed)
            way = route(node.program._state, source, dialled, lambda endpoints: endpoints[0])
            assert way.identities == {str(who(name))}

    _on(tmp_path, scenario)


def test_a_pool_gives_up_connections_to_an_address_that_is_another_identitys_now(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        node.apply(ADDRESS_TYPE, workload("old", "10.3.0.3"))
        tunnel = _pooled(node, who("old"))
        node.apply(ADDRESS_TYPE, workload("new", "10.3.0.3"), removed=(OLD,))
        assert not tunnel.has_room

    _on(tmp_path, scenario)


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node.apply(ADDRESS_TYPE, removed=(OLD,)),
        lambda node: node.apply(ADDRESS_TYPE, workload("new", "10.3.0.3", service_account="old"), removed=(OLD,)),
        lambda node: node.apply(ADDRESS_TYPE, workload("further", "10.3.0.3"), removed=(OLD,)),
        lambda node: node.apply(AUTHORIZATION_TYPE, policy("p", "DENY", **BY_CLIENT)),
    ],
    ids=["nobody has it", "the same identity has it", "another identity that the service names has it", "a policy"],
)
def test_a_pool_keeps_connections_to_an_address_that_is_nobodys_or_of_an_expected_identity(
    change: Callable[[Node], None], tmp_path: Path
) -> None:
    async def scenario(node: Node) -> None:
        node.apply(ADDRESS_TYPE, workload("old", "10.3.0.3"))
        tunnel = _pooled(node, who("old"), who("further"))
        change(node)
        assert tunnel.has_room

    _on(tmp_path, scenario)


# --- certificates ----------------------------------------------------------------------------------------------------


def test_the_certificates_of_pods_that_are_served_are_kept_whatever_node_xds_says(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        certificates = node.program._shared.certificates
        node.apply(ADDRESS_TYPE, workload("server", str(ADDRESS), node="another", hbone=False))
        assert list(certificates.states()) == [SERVER]
        node.apply(ADDRESS_TYPE, removed=("Kubernetes//Pod/shop/server",))
        assert list(certificates.states()) == []

    _on(tmp_path, scenario)
