"""Ztunnels that are right about a mesh at rest, and wrong about what comes, goes and starts again.

Each holds every cell of a mesh that has not changed since its lab was built. What tells it from the reference is a
history: a step or two, and then a call or a connection that a right proxy would treat otherwise.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar

from meshlab.model import Connection
from meshlab.protocols.hbone import HboneServer, Revoked, Target
from meshlab.protocols.hbone.streams import Moves
from meshlab.protocols.hbone.streams import State as StreamState
from meshlab.protocols.messages import AUTHORIZATION_TYPE
from meshlab.protocols.xds import DeltaClient, Request, Response, Update
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit.credentials import Credentials
from meshlab.proxykit.pool import ClientTunnel, Key
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tls import Tls, one_of
from meshlab.proxykit.xds_client import XdsClient
from meshlab.testing.mutants.policy import Program, judging_with
from meshlab.ztunnel import rbac
from meshlab.ztunnel.access_log import Record
from meshlab.ztunnel.door import Door
from meshlab.ztunnel.guard import Guard, Live
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.main import Parts, Ztunnel, run
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.routing import Route
from meshlab.ztunnel.server import ServerTunnel
from meshlab.ztunnel.shared import Shared
from meshlab.ztunnel.state import State, Workload


def _made_of(parts: Parts, program: type[Ztunnel] = Ztunnel) -> Program:
    """The reference ztunnel with these parts."""

    def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        run(config, fds, parts, program)

    return main


# --- address-reuse ---------------------------------------------------------------------------------------------------


class _FirstOfAnAddress(State):
    def __init__(self) -> None:
        super().__init__()
        self._first: dict[IPv4Address | IPv6Address, Workload] = {}

    def _index(self) -> None:
        """Link each address with the first workload that had it, which may be gone."""
        super()._index()
        for address, [now, *_] in self._by_address.items():
            first = self._first.get(address, now)
            if (first.uid, first.identity) == (now.uid, now.identity):
                first = now
            self._first[address] = first
            self._by_address[address] = [first]


address_reuse = _made_of(Parts(state=_FirstOfAnAddress))


# --- calls-deleted-endpoints -----------------------------------------------------------------------------------------


class _EveryEndpoint(State):
    def __init__(self) -> None:
        super().__init__()
        self._ever: dict[str, dict[str, Workload]] = {}

    def _index(self) -> None:
        """Link each service with every endpoint that it has had, as it was when it was healthy."""
        super()._index()
        for name, endpoints in self._endpoints.items():
            self._ever.setdefault(name, {}).update((each.uid, each) for each in endpoints if each.healthy)
        self._endpoints = {name: list(ever.values()) for name, ever in self._ever.items()}


calls_deleted_endpoints = _made_of(Parts(state=_EveryEndpoint))


# --- loses-a-policy-at-a-nack ----------------------------------------------------------------------------------------


class _UndoingTooMuch(State):
    def __init__(self) -> None:
        super().__init__()
        self._before: dict[str, rbac.Policy] = {}

    def apply(self, update: Update) -> dict[str, str]:
        """Go back, where a policy is refused, to what there was before the update that was accepted last."""
        held = dict(self.policies)
        refused = super().apply(update)
        if update.type_url == AUTHORIZATION_TYPE:
            if refused or update.errors:
                self.policies = dict(self._before)
            else:
                self._before = held
        return refused


loses_a_policy_at_a_nack = _made_of(Parts(state=_UndoingTooMuch))


# --- stale-after-reconnect, ready-before-its-snapshot ----------------------------------------------------------------


class _Reconnecting(DeltaClient):
    """Counts the streams on which the control plane has answered."""

    streams = 0
    _is_new = False

    def start(self) -> list[Request]:
        self._is_new = True
        return super().start()

    def receive(self, response: Response) -> Update:
        self.streams += self._is_new
        self._is_new = False
        return super().receive(response)


class _OnlyAdding(_Reconnecting):
    def receive(self, response: Response) -> Update:
        """On any stream but the first, pass over what is taken away."""
        update = super().receive(response)
        return update if self.streams == 1 else dataclasses.replace(update, removed=())


class _OnlyAddingStream(XdsClient):
    client_class = _OnlyAdding


class _Hasty(_Reconnecting):
    _snapshot_of = 1

    def receive(self, response: Response) -> Update:
        """Take the first answer on a new stream, which says what has changed, for every policy that there is."""
        update = super().receive(response)
        if update.type_url != AUTHORIZATION_TYPE or self._snapshot_of == self.streams:
            return update
        self._snapshot_of = self.streams
        missing = self._held[AUTHORIZATION_TYPE].keys() - update.resources.keys()
        return dataclasses.replace(update, removed=(*update.removed, *missing))


class _HastyStream(XdsClient):
    client_class = _Hasty


stale_after_reconnect = _made_of(Parts(xds=_OnlyAddingStream))
ready_before_its_snapshot = _made_of(Parts(xds=_HastyStream))


# --- half-closed-survives-a-deny -------------------------------------------------------------------------------------


class _HalvesGoOn(HboneServer):
    moves: ClassVar[Moves] = {
        **HboneServer.moves,
        **{(state, Revoked): (state, lambda _: []) for state in (StreamState.PEER_ENDED, StreamState.LOCAL_ENDED)},
    }


class _TunnelWhoseHalvesGoOn(ServerTunnel):
    def __init__(self, door: Door, on_end: Callable[[ServerTunnel], None]) -> None:
        super().__init__(door, on_end)
        self.rules = _HalvesGoOn(self._judge)


class _DoorWhereHalvesGoOn(Inbound):
    def accept_hbone(self) -> ServerTunnel:
        tunnel = _TunnelWhoseHalvesGoOn(self, self._tunnels.discard)
        self._tunnels.add(tunnel)
        return tunnel


half_closed_survives_a_deny = _made_of(Parts(inbound=_DoorWhereHalvesGoOn))


# --- open-connection-escapes-a-new-policy ----------------------------------------------------------------------------


class _OldPoliciesOnly(Guard):
    """Judges an open connection again by those policies only that were there when it came."""

    def __init__(self, state: State, pod: ZdsPod) -> None:
        super().__init__(state, pod)
        self._known: dict[Live, frozenset[str]] = {}

    def admit(self, own: Workload, connection: Connection, cut: Callable[[], None]) -> Live:
        live = super().admit(own, connection, cut)
        self._known[live] = frozenset(self.policies())
        return live

    def release(self, live: Live) -> bool:
        self._known.pop(live, None)
        return super().release(live)

    def judge_again(self) -> None:
        if (own := self._state.workload_of(self._pod)) is None:
            return
        for live in list(self._live):
            known = {key: policy for key, policy in self.policies().items() if key in self._known[live]}
            if not rbac.evaluate(known, own, live.connection).allowed:
                self._live.remove(live)
                live.cut()


open_connection_escapes_a_new_policy = judging_with(_OldPoliciesOnly)


# --- old-certificate-after-enrolment ---------------------------------------------------------------------------------


class _FirstCertificate(Outbound):
    _shown: ClassVar[dict[tuple[str, str], Credentials]] = {}
    """By namespace and name of a pod."""

    async def secure(self, key: Key) -> Tls:
        current = await self.shared.certificates.get(key.identity)
        shown = self._shown.setdefault((self.pod.namespace, self.pod.name), current)
        return self.tls_class(shown.client_context, server_side=False, check_peer=one_of(key.peers))


old_certificate_after_enrolment = _made_of(Parts(outbound=_FirstCertificate))


# --- plaintext-during-restart ----------------------------------------------------------------------------------------


class _GivingUpOnTunnels(Outbound):
    """Takes a peer whose tunnel was lost for one that does without."""

    def __init__(self, shared: Shared, pod: ZdsPod, netns: int) -> None:
        super().__init__(shared, pod, netns)
        self._opened: dict[Target, ClientTunnel] = {}

    async def connect_peer(self, key: Key) -> ClientTunnel:
        tunnel = self._opened[key.destination] = await super().connect_peer(key)
        return tunnel

    async def connect(self, way: Route, own: Workload, record: Record) -> Half:
        tunnel = self._opened.get(way.tunnel) if way.tunnel else None
        if tunnel is not None and tunnel.lost:
            return await self.connect_plain(way.target)
        return await super().connect(way, own, record)


plaintext_during_restart = _made_of(Parts(outbound=_GivingUpOnTunnels))


# --- drops-at-drain --------------------------------------------------------------------------------------------------


class _Abrupt(Ztunnel):
    async def _drain(self, zds: asyncio.Task[None]) -> None:
        """Wait for nobody."""
        zds.cancel()
        self._pods.drain()


drops_at_drain = _made_of(Parts(), _Abrupt)
