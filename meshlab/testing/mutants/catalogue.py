"""Ztunnels with bugs that a conformance catalogue warns of, in what they look at when they judge or share a tunnel.

They were chosen without a look at what meshlab checks: whether they are found measures the checks, not the mutants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar

from meshlab.model import Connection, Decision, SpiffeId
from meshlab.protocols.hbone import Target
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit.pool import ClientTunnel, Key, Pool
from meshlab.ztunnel import rbac
from meshlab.ztunnel.guard import Guard
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.main import Parts, run
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.state import State, Workload

Program = Callable[[Mapping[str, Any], Mapping[str, int]], None]


def _made_of(parts: Parts) -> Program:
    def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        run(config, fds, parts)

    return main


# --- policy-at-the-service-port --------------------------------------------------------------------------------------


class _ServicePorts(Inbound):
    def connection(self, own: Workload, source: IPv4Address | IPv6Address, target: Target) -> Connection:
        served = ((port, own_port) for ports in own.services.values() for port, own_port in ports.items())
        port = next((port for port, own_port in served if own_port == target.port), target.port)
        return super().connection(own, source, Target(target.address, port))


policy_at_the_service_port = _made_of(Parts(inbound=_ServicePorts))


# --- service-account-by-name-only ------------------------------------------------------------------------------------


class _NameOnly(tuple[str, str]):
    """A service account that is the same in every namespace."""

    __slots__ = ()
    __hash__ = tuple.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple) and self[1:] == other[1:]


class _AccountsByName(Guard):
    def policies(self) -> Mapping[str, rbac.Policy]:
        return {key: replace(p, rules=tuple(map(self._rule, p.rules))) for key, p in super().policies().items()}

    def _rule(self, rule: rbac.Rule) -> rbac.Rule:
        return tuple(
            tuple(replace(match, service_accounts=self._named(match.service_accounts)) for match in clause)
            for clause in rule
        )

    def _named(self, kind: rbac.Kind[rbac.ServiceAccount]) -> rbac.Kind[rbac.ServiceAccount]:
        return rbac.Kind(tuple(map(_NameOnly, kind.positive)), tuple(map(_NameOnly, kind.negative)))


class _DoorByName(Inbound):
    guard_class = _AccountsByName


service_account_by_name_only = _made_of(Parts(inbound=_DoorByName))


# --- selector-policies-hold-for-the-node -----------------------------------------------------------------------------


class _OfTheNode(Guard):
    def decide(self, own: Workload, connection: Connection) -> Decision:
        neighbours = [workload for workload in self._state.workloads.values() if workload.node == own.node]
        listed = dict.fromkeys(key for workload in neighbours for key in workload.authorization_policies)
        return super().decide(replace(own, authorization_policies=tuple(listed)), connection)


class _DoorOfTheNode(Inbound):
    guard_class = _OfTheNode


selector_policies_hold_for_the_node = _made_of(Parts(inbound=_DoorOfTheNode))


# --- one-verdict-for-a-tunnel ----------------------------------------------------------------------------------------


class _FirstStream(Guard):
    """A tunnel is known by what clients pool it by, and outlives any lab when it is idle."""

    def __init__(self, state: State, pod: ZdsPod) -> None:
        super().__init__(state, pod)
        self._verdicts: dict[tuple[SpiffeId, IPv4Address | IPv6Address], Decision] = {}

    def decide(self, own: Workload, connection: Connection) -> Decision:
        verdict = super().decide(own, connection)
        if connection.source is None:
            return verdict
        return self._verdicts.setdefault((connection.source, connection.source_ip), verdict)


class _DoorOfTunnels(Inbound):
    guard_class = _FirstStream


one_verdict_for_a_tunnel = _made_of(Parts(inbound=_DoorOfTunnels))


# --- one-tunnel-for-all-pods -----------------------------------------------------------------------------------------


class _PoolOfTheNode(Pool):
    _opened: ClassVar[dict[Target, ClientTunnel]] = {}
    _opening: ClassVar[dict[Target, asyncio.Lock]] = {}

    async def get(self, key: Key) -> ClientTunnel:
        async with self._opening.setdefault(key.destination, asyncio.Lock()):
            tunnel = self._opened.get(key.destination)
            if tunnel is None or not tunnel.has_room:
                tunnel = self._opened[key.destination] = await super().get(key)
            return tunnel


class _Pooling(Outbound):
    pool_class = _PoolOfTheNode


one_tunnel_for_all_pods = _made_of(Parts(outbound=_Pooling))
