"""A connection's own end, where it ends before it stands."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address

from meshlab.lab.calls.stream import Stream


def test_a_connection_that_is_ended_while_it_connects_closes_its_socket_when_the_loop_has_let_go_of_it() -> None:
    """Else the next socket gets its number, and the loop takes the one for the other."""
    seen_open: list[bool] = []

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as server, socket.socket() as queued:
            queued.connect(server.getsockname())  # the queue is full: Linux drops the next SYN
            sock = socket.socket()
            sock.setblocking(False)
            stream = Stream(sock, lambda: None)
            connecting = asyncio.ensure_future(stream.connect(IPv4Address("127.0.0.1"), server.getsockname()[1]))
            for _ in range(3):  # turns of the loop, until it waits for the socket
                await asyncio.sleep(0)
            stream.end("the end of its pod")
            seen_open.append(sock.fileno() >= 0)
            await asyncio.wait_for(connecting, 5)
            assert stream.over
            assert stream.closed_by == "the end of its pod"
            assert sock.fileno() == -1

    asyncio.run(scenario())
    assert seen_open == [True]
