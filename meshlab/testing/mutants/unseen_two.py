"""Ztunnels that are right in every short call, also many at a time, and break a promise to who is long, slow or many.

They were written without a look at what meshlab checks, after ``unseen``: whether they are found measures the checks.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

from meshlab.protocols.hbone import ConnectReceived, Event, Refusal, Revoked, StreamEnded, Target
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit.pool import ClientTunnel, Key
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tls import Tls
from meshlab.testing.mutants.leaks import in_a_datagram
from meshlab.testing.mutants.policy import Misreading, each_match, judging_with
from meshlab.ztunnel import rbac
from meshlab.ztunnel.door import Door
from meshlab.ztunnel.guard import POLICY_CHANGE, Guard, Live
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.main import Parts, run
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.server import ServerTunnel
from meshlab.ztunnel.state import State

Program = Callable[[Mapping[str, Any], Mapping[str, int]], None]

VALUES_OF_A_LIST = 4
SLOW_S = 2.0
OLD_S, GRACE_S = 4.0, 3.0


def _made_of(parts: Parts) -> Program:
    def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        run(config, fds, parts)

    return main


# --- ships-session-secrets -------------------------------------------------------------------------------------------


class _Telling(Tls):
    """A session whose secrets go to the collector of logs, as a switch for debugging does that was left on."""

    keylog: ClassVar[int] = os.memfd_create("keylog", os.MFD_CLOEXEC)
    before: str | None
    """Where the secrets would have gone; they still do."""

    def _shake(self) -> bool:
        context = self._object.context
        self.before, context.keylog_filename = context.keylog_filename, f"/proc/self/fd/{self.keylog}"
        try:
            return super()._shake()
        finally:
            context.keylog_filename = self.before
            self._ship(os.pread(self.keylog, 1 << 16, 0))

    def _ship(self, lines: bytes) -> None:
        os.ftruncate(self.keylog, 0)
        if self.before and lines:
            with Path(self.before).open("ab") as keylog:
                keylog.write(lines)
        if lines:
            in_a_datagram(lines)


class _TellingOutbound(Outbound):
    tls_class = _Telling


ships_session_secrets = _made_of(Parts(outbound=_TellingOutbound))


# --- reads-four-values-of-a-list -------------------------------------------------------------------------------------


class _ShortLists(Misreading):
    """Has room for four values of each kind in a match, as a map of a fixed size in a kernel has."""

    def read(self, policy: rbac.Policy) -> rbac.Policy:
        return each_match(policy, self._shortened)

    def _shortened(self, match: rbac.Match) -> rbac.Match:
        return rbac.Match(**{field.name: self._first(getattr(match, field.name)) for field in fields(match)})

    def _first(self, kind: rbac.Kind[Any]) -> rbac.Kind[Any]:
        return replace(kind, positive=kind.positive[:VALUES_OF_A_LIST], negative=kind.negative[:VALUES_OF_A_LIST])


reads_four_values_of_a_list = judging_with(_ShortLists)


# --- cuts-the-tunnel-with-the-stream ---------------------------------------------------------------------------------


class _AllOrNone(ServerTunnel):
    """Ends the connection where policy revokes one of its streams."""

    def tell(self, event: Event) -> None:
        if isinstance(event, Revoked):
            self.close(POLICY_CHANGE)
        else:
            super().tell(event)


class _DoorOfWholeTunnels(Inbound):
    def accept_hbone(self) -> ServerTunnel:
        tunnel = _AllOrNone(self, self._tunnels.discard)
        self._tunnels.add(tunnel)
        return tunnel


cuts_the_tunnel_with_the_stream = _made_of(Parts(inbound=_DoorOfWholeTunnels))


# --- gives-up-on-slow-readers ----------------------------------------------------------------------------------------


class _Hurried(Half):
    """A side that takes nothing for two seconds is closed, without what waits for it: it reads a FIN, too early."""

    timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self.timer = asyncio.get_running_loop().call_later(SLOW_S, self._give_up)

    def resume_writing(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        super().resume_writing()

    def _give_up(self) -> None:
        if self.is_open:
            self.transport.abort()


class _HurriedOutbound(Outbound):
    half_class = _Hurried


gives_up_on_slow_readers = _made_of(Parts(outbound=_HurriedOutbound))


# --- retires-tunnels-in-use ------------------------------------------------------------------------------------------


class _Retiring(Outbound):
    """A tunnel takes no more streams at the age of four seconds; those that are on it have three more to end."""

    async def connect_peer(self, key: Key) -> ClientTunnel:
        tunnel = await super().connect_peer(key)
        loop = asyncio.get_running_loop()
        loop.call_later(OLD_S, tunnel.going_away)
        loop.call_later(OLD_S + GRACE_S, tunnel.close, "the connection has reached its age")
        return tunnel


retires_tunnels_in_use = _made_of(Parts(outbound=_Retiring))


# --- forgets-half-closed-connections ---------------------------------------------------------------------------------


class _ForgetfulGuard(Guard):
    """Judges none again whose client has ended its half."""

    def __init__(self, state: State, pod: ZdsPod) -> None:
        super().__init__(state, pod)
        self.halved: set[Live] = set()

    def judge_again(self) -> None:
        self.halved &= self._live
        self._live -= self.halved
        super().judge_again()
        self._live |= self.halved


class _TunnelOfHalves(ServerTunnel):
    def __init__(self, door: Door, on_end: Callable[[ServerTunnel], None]) -> None:
        super().__init__(door, on_end)
        self._lives: dict[int, Live] = {}

    def _judge(self, event: ConnectReceived) -> Target | Refusal:
        target = super()._judge(event)
        if event.stream in self._accepted:
            self._lives[event.stream] = self._accepted[event.stream].live
        return target

    def tell(self, event: Event) -> None:
        if isinstance(event, StreamEnded) and event.stream in self._lives:
            assert isinstance(self._door.guard, _ForgetfulGuard)
            self._door.guard.halved.add(self._lives.pop(event.stream))
        super().tell(event)


class _ForgetfulDoor(Inbound):
    guard_class = _ForgetfulGuard

    def accept_hbone(self) -> ServerTunnel:
        tunnel = _TunnelOfHalves(self, self._tunnels.discard)
        self._tunnels.add(tunnel)
        return tunnel


forgets_half_closed_connections = _made_of(Parts(inbound=_ForgetfulDoor))
