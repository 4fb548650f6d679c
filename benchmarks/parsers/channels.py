"""Messages that the programs of a lab send each other over their channels, in both directions, and their output.

Pods and node proxies have no channel. But their bytes are in what the programs that have one send (logs, canaries,
refusals), and whoever overwrites such a program speaks in its name: so neither end trusts the other.

Not here, since it would fork and kill: requests to netd and to the fork server. netd answers whatever fails in one with
an error; the fork server has its owner's requests only.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import math
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from benchmarks.parsers.parser import Parser, numbered, pieces, repeated
from meshlab.agent.agent import Agent, EnrolledPod
from meshlab.apps.echo import Echo
from meshlab.apps.echo_requests import ReadReceived
from meshlab.controlplane.plane import Config, ControlPlane
from meshlab.errors import LabError
from meshlab.kernel.channel import Channel, ChannelClosedError, pair
from meshlab.kernel.recorder import Recorder
from meshlab.kernel.recording import Log
from meshlab.lab.running.programs import Peer
from meshlab.pki import MeshCA
from meshlab.protocols.messages import ADDRESS_TYPE

_INLINE, _IN_MEMFD = b"\0\0\0\0", b"\0\0\0\1"
_POD = {"uid": "1", "name": "a", "namespace": "shop", "service_account": "a"}


def _said(*messages: Mapping[str, Any]) -> Callable[[], tuple[bytes, ...]]:
    return lambda: tuple(json.dumps(message).encode() for message in messages)


def _send(end: Channel, packet: bytes, body: bytes = b"") -> None:
    """Send a packet as it is, with a memfd that holds ``body``."""
    memfd = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        os.write(memfd, body)
        end.sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memfd]))])
    finally:
        os.close(memfd)


def _say(end: Channel, body: bytes) -> None:
    """Send a message with one descriptor beside it."""
    memfd = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        os.write(memfd, body)
        end.sock.sendmsg([_IN_MEMFD], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memfd, memfd]))])
    finally:
        os.close(memfd)


@contextlib.contextmanager
def _ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = pair()
    try:
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()


# --- the channel itself ----------------------------------------------------------------------------------------------


def _take_packet(data: bytes) -> None:
    with _ends() as (ours, theirs):
        _send(theirs, data, data[len(_IN_MEMFD) :])
        message = ours.take()
        if message is not None:
            for fd in message[1]:
                os.close(fd)


def _take_memfd(data: bytes) -> None:
    with _ends() as (ours, theirs):
        _send(theirs, _IN_MEMFD, data)
        ours.take()


# --- what the lab hears ----------------------------------------------------------------------------------------------


def _hear(data: bytes) -> None:
    """As the lab asks a program: the first request has the number 1."""
    ours, theirs = pair()
    peer = Peer("echo@node-1", ours, lambda: "it is gone")
    try:
        number = peer.post(ReadReceived([], 0))
        _say(theirs, data)
        with contextlib.suppress(ChannelClosedError):  # it may be lost by now
            theirs.send({"event": "listening"})
            theirs.send({"id": number})
        peer.drain()
        peer.wait_event("listening", 0.0)
        peer.answer(number, 0.0)
    finally:
        peer.close()
        theirs.close()


# --- what programs are asked -----------------------------------------------------------------------------------------


def _ask_recorder(data: bytes) -> None:
    ours, theirs = pair()
    recorder = Recorder({"limit_bytes": 1 << 20}, {"control": theirs.sock.detach()})
    try:
        _say(ours, data)
        ours.close()
        recorder.run()
    finally:
        ours.close()
        recorder.channel.close()
        os.close(recorder.recording.fd)
        for log in recorder.logs.values():
            log.close()


class _Agent(Agent):
    """It has no kernel."""

    def write_rules(self, pod: EnrolledPod, *, known: bool) -> None:
        pass

    def remove_rules(self, pod: EnrolledPod, closing: contextlib.ExitStack) -> None:
        pass

    def read_rules(self, pod: EnrolledPod) -> str:
        return str(pod)


def _ask_agent(data: bytes) -> None:
    ours, theirs = pair()
    read, write = os.pipe()
    try:
        with tempfile.TemporaryDirectory() as folder:
            agent = _Agent({"node": "node-1", "uds": f"{folder}/zds.sock"}, theirs)
            _say(ours, data)
            ours.close()
            agent.run(read)
    finally:
        ours.close()
        os.close(read)
        os.close(write)


def _ask_echo(data: bytes) -> None:
    ours, theirs = pair()
    try:
        asyncio.run(_answered_by_echo(ours, theirs.sock.detach(), data))
    finally:
        ours.close()


async def _answered_by_echo(ours: Channel, control: int, data: bytes) -> None:
    loop, wrong, answered = asyncio.get_running_loop(), list[BaseException](), asyncio.Event()

    def failed(_: object, context: dict[str, Any]) -> None:
        wrong.append(context["exception"])
        answered.set()

    loop.set_exception_handler(failed)
    loop.add_reader(ours, answered.set)
    echo = Echo(Channel.from_fd(control))
    served = loop.create_task(echo.run())
    _say(ours, data)
    await answered.wait()
    loop.remove_reader(ours)
    echo.stop()
    await served
    if wrong:
        raise wrong[0]


@cache
def _ca() -> Mapping[str, str]:
    return MeshCA().control_plane("10.0.0.1")


class _Plane(ControlPlane):
    """It waits for nobody, and does not listen."""

    async def _until(self, reached: Callable[[], bool]) -> None:
        reached()

    async def asked(self, request: Mapping[str, Any]) -> None:
        await self._operate(request)


def _ask_plane(data: bytes) -> None:
    with _ends() as (ours, theirs):
        _say(theirs, data)
        message = ours.take()
        assert message is not None
        request, fds = message
        for fd in fds:
            os.close(fd)
        config = Config(
            listen="10.0.0.1", port=0, clients={"t": "ztunnel@node-1"}, trust_domain="cluster.local", ca=_ca()
        )
        asyncio.run(_Plane(config, ours).asked(request))


# --- what programs print ---------------------------------------------------------------------------------------------


def _print(data: bytes) -> None:
    read, write = os.pipe()
    log = Log(read)
    try:
        for piece in pieces(data):
            os.write(write, piece)
            log.read()
        report, since = log.report(), log.since(0)
        assert len(str(report)) < 1 << 22
        assert len(log.alarms) <= 20
        assert len(str(since["text"])) <= len(data)
    finally:
        os.close(write)
        log.close()


PARSERS = (
    Parser(
        name="channel packet",
        run=_take_packet,
        seeds=lambda: (_INLINE + b'{"id":1,"op":"reap"}', _IN_MEMFD + b'{"id":1}', b"\0\0\0\2", _INLINE + b"{}"),
        documented=(ChannelClosedError,),
    ),
    Parser(
        name="channel message",
        run=_take_memfd,
        seeds=_said({"id": 1, "logs": {"a": {"text": "\u00e4\n", "bytes": 3, "lost": 0, "alarms": []}}}),
        documented=(ChannelClosedError,),
        shapes={
            "deep nesting": repeated(b"", b'{"a":'),
            "many keys": numbered("{", lambda n: f'"{n}":{n},', '"":0}'),
            "a long text": repeated(b'{"a":"', b"\\u00e4", b'"}'),
            "a long number": repeated(b'{"a":', b"9"),
        },
        unit=1000,
    ),
    Parser(
        name="answer or event",
        run=_hear,
        seeds=_said({"id": 1, "received": [], "connections": []}, {"event": "listening", "port": 1}),
        documented=(LabError,),
        share=0.3,
    ),
    Parser(
        name="request to the recorder",
        run=_ask_recorder,
        seeds=_said(
            {"id": 1, "op": "ring", "node": "node-1"},
            {"id": 1, "op": "capture"},
            {"id": 1, "op": "position", "after": 0, "timeout_s": 0.5},
            {"id": 1, "op": "position", "after": -1, "timeout_s": math.inf},
            {"id": 1, "op": "release", "before": 4096},
            {"id": 1, "op": "log", "name": "shop/a"},
            {"id": 1, "op": "logs", "names": []},
            {"id": 1, "op": "log_since", "places": {}},
        ),
        share=0.3,
    ),
    Parser(
        name="request to the agent",
        run=_ask_agent,
        seeds=_said(
            {"id": 1, "op": "enrol", "pods": [_POD], "timeout_s": 1.5, "no_proxy": True},
            {"id": 1, "op": "enrol", "pods": [_POD], "timeout_s": 1.5},
            {"id": 1, "op": "enrol", "pods": [_POD], "timeout_s": math.inf},
            {"id": 1, "op": "give_up", "why": "it is gone"},
            {"id": 1, "op": "remove", "uids": ["1"]},
            {"id": 1, "op": "release", "uids": ["1"]},
            {"id": 1, "op": "status"},
            {"id": 1, "op": "rules", "uid": "1"},
        ),
        share=0.3,
    ),
    Parser(
        name="request to the echo",
        run=_ask_echo,
        seeds=_said(
            {"id": 1, "op": "received", "canaries": ["mlc-0f-7."], "since_ns": 0},
            {"id": 1, "op": "listen", "pods": [{"pod": "shop/a", "port": 80, "listener": 0}]},
            {"id": 1, "op": "leave", "pods": []},
        ),
        share=0.1,
    ),
    Parser(
        name="request to the plane",
        run=_ask_plane,
        seeds=_said(
            {
                "id": 1,
                "op": "set",
                "resources": {ADDRESS_TYPE: {"a": "CgA="}},
                "barrier": ["ztunnel@node-1"],
                "timeout_s": 1,
            },
            {"id": 1, "op": "set", "resources": {}, "fallback": {}, "certificates": ["a"], "after_nack": "leave"},
            {"id": 1, "op": "status"},
            {"id": 1, "op": "ca", "mode": "refuse"},
            {"id": 1, "op": "clients", "clients": {"t": "ztunnel@node-1#2"}},
        ),
        documented=(ChannelClosedError,),
        share=0.1,
    ),
    Parser(
        name="program output",
        run=_print,
        seeds=lambda: (
            b"a line\nthread 'main' panicked at a.rs:1\n",
            b"Traceback (most recent call last):\n  a",
        ),
        shapes={
            "lines": repeated(b"", b"a\n"),
            "one line": repeated(b"", b"ab"),
            "alarms": repeated(b"", b"panicked at\n"),
            "an alarm without end": repeated(b"panicked at", b" panicked at"),
        },
        unit=20_000,
    ),
)
