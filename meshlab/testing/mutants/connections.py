"""Ztunnels that are wrong about what changes under them: connections that outlive a policy, and refused configuration.

A call that is made, answered and closed sees nothing of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from meshlab.model import Connection
from meshlab.protocols.hbone import Target
from meshlab.protocols.xds import Update
from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit.splice import Half
from meshlab.ztunnel.guard import Guard, Live
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.main import Parts, Ztunnel, run
from meshlab.ztunnel.state import State, Workload

# --- never-cuts-open-connections, cuts-tunnels-only ------------------------------------------------------------------


class _Lasting(Guard):
    def judge_again(self) -> None:
        """Who is in stays in."""


class _LastingDoor(Inbound):
    guard_class = _Lasting


def never_cuts_open_connections(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(inbound=_LastingDoor))


class _PlainLasting(Guard):
    def admit(self, own: Workload, connection: Connection, cut: Callable[[], None]) -> Live:
        return super().admit(own, connection, cut if connection.source is not None else lambda: None)


class _PlainLastingDoor(Inbound):
    guard_class = _PlainLasting


def cuts_tunnels_only(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(inbound=_PlainLastingDoor))


# --- admits-after-dialling -------------------------------------------------------------------------------------------


class _Late(Guard):
    """Overlooks connections whose app is still being dialled."""

    def __init__(self, state: State, pod: ZdsPod) -> None:
        super().__init__(state, pod)
        self.reached: set[tuple[IPv4Address | IPv6Address, Target]] = set()

    def judge_again(self) -> None:
        known = self._live
        self._live = {live for live in known if _way(live.connection) in self.reached}
        super().judge_again()
        self._live |= {live for live in known if _way(live.connection) not in self.reached}


def _way(connection: Connection) -> tuple[IPv4Address | IPv6Address, Target]:
    return connection.source_ip, Target(connection.destination_ip, connection.port)


class _LateDoor(Inbound):
    guard_class = _Late

    async def connect_app(self, target: Target, source: IPv4Address | IPv6Address) -> Half:
        assert isinstance(self.guard, _Late)
        app = await super().connect_app(target, source)
        self.guard.reached.add((source, target))
        return app


def admits_after_dialling(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(inbound=_LateDoor))


# --- drops-what-it-refuses -------------------------------------------------------------------------------------------


class _Dropping(State):
    def apply(self, update: Update) -> dict[str, str]:
        return super().apply(dataclasses.replace(update, removed=(*update.removed, *update.errors)))


def drops_what_it_refuses(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(state=_Dropping))


# --- ready-at-once ---------------------------------------------------------------------------------------------------


class _Hasty(Ztunnel):
    def _pending(self) -> list[str]:
        return []


def ready_at_once(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, program=_Hasty)
