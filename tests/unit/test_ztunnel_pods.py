"""Which pods a ztunnel serves: its conversation with an agent over a real socket, and what follows from it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from meshlab.errors import ProtocolError
from meshlab.protocols.zds import Acknowledged, AgentSession, Refused, Removed, SendPacket, Synced, ZdsPod
from meshlab.ztunnel.pods import Pods
from meshlab.ztunnel.zds_client import ZdsClient


def _pod(name: str) -> ZdsPod:
    return ZdsPod(uid=f"uid-{name}", name=name, namespace="shop", service_account=name)


class Node:
    """Pods whose listeners are only noted."""

    def __init__(self) -> None:
        self.serving: dict[str, tuple[int, int]] = {}
        self.refuse: set[str] = set()
        self.pauses: list[asyncio.Future[None]] = []
        self.pods = Pods(self._make, self._pause)

    def _make(self, pod: ZdsPod, netns: int) -> Any:
        return Listeners(self, pod, netns)

    async def _pause(self, seconds: float) -> None:
        assert seconds == 5
        self.pauses.append(asyncio.get_running_loop().create_future())
        await self.pauses[-1]


class Listeners:
    """Stands for a ``PodProxy``."""

    def __init__(self, node: Node, pod: ZdsPod, netns: int) -> None:
        self.node, self.pod, self.netns = node, pod, netns
        status = os.fstat(netns)
        self.inode = status.st_dev, status.st_ino

    def start(self) -> None:
        if self.pod.name in self.node.refuse:
            raise OSError(98, "Address already in use")
        self.node.serving[self.pod.uid] = self.inode

    async def close(self) -> None:
        if self.node.serving.get(self.pod.uid) == self.inode:
            del self.node.serving[self.pod.uid]
        os.close(self.netns)


class Agent:
    """An agent's end of one connection."""

    def __init__(self, sock: socket.socket, folder: Path, pods: tuple[ZdsPod, ...]) -> None:
        self.sock = sock
        self.folder = folder
        self.session = AgentSession(pods)

    async def until(self, event: Any) -> Any:
        """Converse until something of this kind has happened."""
        while True:
            packet = await asyncio.get_running_loop().sock_recv(self.sock, 2048)
            assert packet, "the proxy left"
            found = await self.do(self.session.receive(packet), event)
            if found is not None:
                return found

    async def do(self, effects: list[Any], event: Any = None) -> Any:
        found = None
        for effect in effects:
            if isinstance(effect, SendPacket):
                self.send(effect.data, effect.netns_of)
            elif event is not None and isinstance(effect, event):
                found = effect
        return found

    def send(self, data: bytes, netns_of: str | None) -> None:
        fds = []
        if netns_of is not None:
            file = self.folder / netns_of
            file.touch()
            fds.append(os.open(file, os.O_RDONLY))
        socket.send_fds(self.sock, [data], fds)
        for fd in fds:
            os.close(fd)


@contextlib.asynccontextmanager
async def _ztunnel(node: Node, folder: Path) -> AsyncIterator[tuple[ZdsClient, Callable[..., Awaitable[Agent]]]]:
    path = folder / "zds"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        client = ZdsClient(str(path), node.pods)
        task = asyncio.ensure_future(client.run())
        agents: list[Agent] = []

        async def accept(*pods: ZdsPod) -> Agent:
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            agents.append(Agent(sock, folder, pods))
            return agents[-1]

        try:
            async with asyncio.timeout(10):
                yield client, accept
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await node.pods.close()
            for agent in agents:
                agent.sock.close()


def test_a_snapshot_then_live_changes(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Node()
        async with _ztunnel(node, tmp_path) as (client, accept):
            agent = await accept(_pod("a"), _pod("b"))
            assert not client.synced
            await agent.until(Synced)
            assert client.synced
            assert set(node.serving) == {"uid-a", "uid-b"}
            await agent.do(agent.session.add(_pod("c")))
            assert await agent.until(Acknowledged) == Acknowledged("uid-c")
            await agent.do(agent.session.remove("uid-a"))
            assert await agent.until(Removed) == Removed("uid-a")
            assert set(node.serving) == {"uid-b", "uid-c"}

    asyncio.run(scenario())


def test_pods_are_served_while_the_agent_is_away_and_a_new_snapshot_stops_those_it_does_not_name(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        node = Node()
        async with _ztunnel(node, tmp_path) as (client, accept):
            agent = await accept(_pod("a"), _pod("b"))
            await agent.until(Synced)
            agent.sock.close()
            successor = await accept(_pod("b"))
            assert not client.synced
            assert set(node.serving) == {"uid-a", "uid-b"}
            await successor.until(Synced)
            assert set(node.serving) == {"uid-b"}

    asyncio.run(scenario())


def test_a_pod_whose_listeners_cannot_be_bound_is_refused_tried_again_and_holds_up_readiness(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Node()
        node.refuse.add("a")
        async with _ztunnel(node, tmp_path) as (_, accept):
            agent = await accept(_pod("a"))
            refused = await agent.until(Refused)
            assert refused.text.startswith("failure to start proxy : ")
            await agent.until(Synced)
            assert node.pods.failing == ["uid-a"]
            node.refuse.clear()
            node.pauses[0].set_result(None)
            for _ in range(5):
                await asyncio.sleep(0)
            assert (list(node.serving), node.pods.failing) == (["uid-a"], [])

    asyncio.run(scenario())


def test_an_unreadable_packet_is_refused_and_the_connection_opened_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Node()
        async with _ztunnel(node, tmp_path) as (_, accept):
            agent = await accept()
            await agent.until(Synced)
            agent.send(b"\xff", "uid-stray")  # with a descriptor that must not be kept
            packet = await asyncio.get_running_loop().sock_recv(agent.sock, 2048)
            assert b"failure to read message" in packet
            await (await accept()).until(Synced)

    asyncio.run(scenario())


def test_what_has_no_place_in_the_conversation_ends_the_program(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Node()
        path = tmp_path / "zds"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            listener.listen()
            run = asyncio.ensure_future(ZdsClient(str(path), node.pods).run())
            listener.setblocking(False)
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            agent = Agent(sock, tmp_path, ())
            await agent.until(Synced)
            agent.send(bytes.fromhex("1a00"), None)  # a second snapshot_sent
            with pytest.raises(ProtocolError, match="second snapshot_sent"):
                await asyncio.wait_for(run, 10)
            sock.close()

    asyncio.run(scenario())


def test_the_same_pod_again_is_no_change_and_in_another_netns_it_is_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Node()
        first, second = tmp_path / "first", tmp_path / "second"
        for file in (first, second):
            file.touch()
        await node.pods.add(_pod("a"), os.open(first, os.O_RDONLY))
        before = node.serving["uid-a"]
        again = os.open(first, os.O_RDONLY)
        await node.pods.add(_pod("a"), again)
        assert node.serving["uid-a"] == before
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(again)
        await node.pods.add(_pod("a"), os.open(second, os.O_RDONLY))
        assert node.serving["uid-a"][1] == second.stat().st_ino
        await node.pods.close()
        assert node.serving == {}

    asyncio.run(scenario())


def test_a_pod_that_could_not_be_served_and_comes_again_in_another_netns_leaves_no_descriptor(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Node()
        first, second = tmp_path / "first", tmp_path / "second"
        for file in (first, second):
            file.touch()
        node.refuse.add("a")
        unserved = os.open(first, os.O_RDONLY)
        with pytest.raises(OSError, match="in use"):
            await node.pods.add(_pod("a"), unserved)
        node.refuse.clear()
        await asyncio.sleep(0)  # it waits to try again
        await node.pods.add(_pod("a"), os.open(second, os.O_RDONLY))
        for _ in range(5):
            await asyncio.sleep(0)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(unserved)
        assert node.serving["uid-a"][1] == second.stat().st_ino
        await node.pods.close()

    asyncio.run(scenario())


def test_a_pod_that_is_removed_when_its_netns_has_no_name_any_more_is_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Node()
        file = tmp_path / "netns"
        file.touch()
        await node.pods.add(_pod("a"), os.open(file, os.O_RDONLY))
        file.unlink()
        await node.pods.remove("uid-a")
        await node.pods.remove("uid-a")
        assert node.serving == {}

    asyncio.run(scenario())


def test_a_drain_gives_up_pods_that_could_not_be_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Node()
        node.refuse.add("a")
        file = tmp_path / "netns"
        file.touch()
        netns = os.open(file, os.O_RDONLY)
        with pytest.raises(OSError, match="in use"):
            await node.pods.add(_pod("a"), netns)
        await asyncio.sleep(0)
        node.refuse.clear()
        node.pods.drain()
        for _ in range(5):
            await asyncio.sleep(0)
        assert node.serving == {}
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(netns)

    asyncio.run(scenario())
