"""Parts that are wrong about waypoints: a ztunnel that goes round them, and waypoints that carry what they must not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from meshlab.model import PodPort
from meshlab.protocols.hbone import Target
from meshlab.proxykit.pool import ClientTunnel, Key
from meshlab.proxykit.splice import Half
from meshlab.waypoint import main as waypoint
from meshlab.waypoint.serving import Client
from meshlab.ztunnel.main import Parts
from meshlab.ztunnel.main import run as run_ztunnel
from meshlab.ztunnel.state import State


class _GoingRound(State):
    def _index(self) -> None:
        """Know of no waypoint."""
        for name, workload in self.workloads.items():
            self.workloads[name] = dataclasses.replace(workload, waypoint=None)
        for name, service in self.services.items():
            self.services[name] = dataclasses.replace(service, waypoint=None)
        super()._index()


def goes_round_the_waypoint(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run_ztunnel(config, fds, Parts(state=_GoingRound))


class _InPlaintext(waypoint.Waypoint):
    async def connect(self, target: Target, endpoint: PodPort) -> Half:
        """Go on without a tunnel."""
        return await waypoint.connect_plain(target)


def waypoint_forwards_in_plaintext(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    waypoint.run(config, fds, _InPlaintext)


class _OneEndpoint(waypoint.Waypoint):
    def pick(self, endpoints: Sequence[PodPort], client: Client) -> tuple[Target, PodPort]:
        """Take the first endpoint, always."""
        return super().pick(endpoints[:1], client)


def waypoint_keeps_to_one_endpoint(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    waypoint.run(config, fds, _OneEndpoint)


class _Unpooled(waypoint.Waypoint):
    """A legal variant: each connection goes on in a tunnel of its own."""

    async def tunnel(self, key: Key) -> ClientTunnel:
        tunnel = await self.connect_peer(key)
        tunnel.idle_s = 0.0
        return tunnel


def waypoint_without_a_pool(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    waypoint.run(config, fds, _Unpooled)
