"""istio-cni's part on one node: it writes the rules of pods, hands them to the node proxy, and says when they are in.

    lab --enrol{pods} + netns descriptors--> rules written and read back --> add to the newest proxy --> ack
    lab <--{enrolled, pending}-------------- when every pod was acknowledged or refused, or at the deadline
    lab --release{uids}--------------------> rules taken away --> del to every proxy --> ack
    lab --remove{uids}---------------------> del to every proxy --> ack: their rules end with their netns
    lab <--{unacknowledged}----------------- when every proxy has acknowledged or is gone, or at the deadline
    lab <--event synced{connection, pid, pods}-- a proxy has acknowledged its snapshot; ``status`` says it of all

Istio's order and rules hold: rules first, then ZDS; ``add`` goes to the proxy that connected last and ``del`` to all of
them, so that two can overlap in an upgrade; a proxy that comes (again) is told of every pod, and one that goes changes
nothing for the pods. One thread waits for everything in one selector, and only its step writes rules. An agent that
comes back is told of its pods before it listens (``pods`` of its config), and writes rules only where they are wrong.

Source: https://github.com/istio/istio/blob/master/cni/pkg/nodeagent/ztunnelserver.go
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshlab.agent import rules
from meshlab.agent.connection import Connection
from meshlab.agent.requests import (
    REQUESTS,
    AgentRequest,
    ConnectionStatus,
    Enrol,
    Enrolled,
    GiveUp,
    PodAsked,
    ReadRules,
    ReadStatus,
    Release,
    Released,
    Remove,
    Removed,
    RulesText,
    Status,
)
from meshlab.errors import KernelRefusedError, ProtocolError
from meshlab.kernel.channel import Channel, ChannelClosedError, wait_s
from meshlab.kernel.messages import Done, read
from meshlab.plan import nft
from meshlab.plan.netns import pod_netns
from meshlab.plan.redirect import inpod_rules
from meshlab.protocols import zds
from meshlab.protocols.zds import Acknowledged, AgentEffect, Refused, SendPacket, Synced, ZdsPod


@dataclass(frozen=True, slots=True)
class EnrolledPod:
    """A pod with its rules written, or about to be."""

    zds: ZdsPod
    netns: int
    """Descriptor, open as long as the pod is known: a proxy that comes again needs it."""
    bypass_inbound: bool = False
    """The annotation ``ambient.istio.io/bypass-inbound-capture``."""

    @property
    def key(self) -> str:
        return f"{self.zds.namespace}/{self.zds.name}"


@dataclass(slots=True)
class _Enrolment:
    """An ``enrol`` that has not been answered yet."""

    request: int
    deadline: float
    waiting: set[str]
    enrolled: list[str] = field(default_factory=list)
    pending: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Removal:
    """A ``remove`` or ``release`` that has not been answered yet."""

    request: int
    deadline: float
    answer: Released | Removed
    """Without what is not acknowledged."""
    waiting: set[tuple[Connection, str]]
    """What each proxy has not acknowledged: (connection, uid)."""


class Agent:
    """One node's agent. ``step`` is one turn of its loop; mutants override the small methods."""

    def __init__(self, config: Mapping[str, Any], channel: Channel, netns: Sequence[int] = ()) -> None:
        """``netns``: a descriptor for each of ``config["pods"]``, which are known before anybody can connect."""
        self.node: str = config["node"]
        self._record: bool = config.get("record", False)
        self._started = time.monotonic()
        self._channel = channel
        self._pods: dict[str, EnrolledPod] = {}
        self._connections: list[Connection] = []
        """In the order in which they came."""
        self._accepted = 0
        self._enrolments: list[_Enrolment] = []
        self._removals: list[_Removal] = []
        self._without_rules: dict[str, str] = {}
        """By uid, why the rules of a pod could not be written."""
        for asked, fd in zip(config.get("pods", ()), netns, strict=True):
            self._try_to_know(_enrolled_pod(asked, fd), known=True)
        self._listener = _listen(config["uds"])
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ, self._answer)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def run(self, stop: int) -> None:
        """Serve until the control channel ends or ``stop`` is readable."""
        stopped = False

        def end() -> None:
            nonlocal stopped
            stopped = True

        self._selector.register(stop, selectors.EVENT_READ, end)
        with contextlib.suppress(ChannelClosedError):
            while not stopped:
                self.step()
        self.close()

    def step(self, timeout_s: float | None = None) -> None:
        """Wait for something to happen, ``timeout_s`` at most, and do what follows from it.

        Raises:
            ChannelClosedError: the lab is gone.
        """
        self._channel.watch(self._selector)
        for key, _ in self._selector.select(self._patience(timeout_s)):
            if key.fileobj in self._connections or not isinstance(key.fileobj, Connection):
                key.data()
        self._meet_deadlines()

    def close(self) -> None:
        self._record = False  # nobody may be left to read it
        self._selector.close()
        for connection in self._connections:
            connection.close()
        self._listener.close()
        for pod in self._pods.values():
            os.close(pod.netns)
        self._channel.close()

    # --- what a pod gets ---

    def write_rules(self, pod: EnrolledPod, *, known: bool) -> None:
        """Redirect the pod's traffic to the node proxy.

        Args:
            known: the pod should have its rules already, which are left as they are where they are right.

        Raises:
            KernelRefusedError, ValueError: it is not as it should be; the pod stays pending.
        """
        write = rules.ensure if known else rules.write
        write(pod.netns, pod_netns(pod.key), inpod_rules(bypass_inbound=pod.bypass_inbound))

    def remove_rules(self, pod: EnrolledPod, closing: contextlib.ExitStack) -> None:
        """Let the pod's traffic go its own way again; ``closing`` as for ``rules.remove``.

        Raises:
            KernelRefusedError: it was refused; the pod stays known.
        """
        rules.remove(pod.netns, pod_netns(pod.key), inpod_rules(bypass_inbound=pod.bypass_inbound), closing)

    def read_rules(self, pod: EnrolledPod) -> str:
        return nft.text(rules.read(pod.netns, pod_netns(pod.key), inpod_rules()))

    # --- what the lab asks ---

    def _answer(self) -> None:
        self._channel.flush()
        if (message := self._channel.take()) is None:
            return
        asked, fds = message
        try:
            self._do(asked["id"], read(REQUESTS, asked), fds)
        except ChannelClosedError:
            raise
        except Exception as error:  # as netd: a request that makes no sense is answered as one that fails
            self._channel.send({"id": asked.get("id"), "error": f"{type(error).__name__}: {error}"})

    def _do(self, number: int, request: AgentRequest, fds: list[int]) -> None:
        match request:
            case Enrol():
                self._enrol(number, request, fds)
            case GiveUp(why):
                for enrolment in list(self._enrolments):
                    self._give_up(enrolment, why)
                self._reply(number, Done())
            case Release():
                self._release(number, request)
            case Remove(uids):
                answer = Removed(removed=list(uids), unacknowledged=[])
                self._take_away(number, uids, request.timeout_s, answer)
            case ReadRules(uid):
                self._reply(number, RulesText(text=self.read_rules(self._pods[uid])))
            case ReadStatus():
                self._reply(number, self._status())

    def _reply(self, number: int, answer: Mapping[str, object]) -> None:
        self._channel.send({"id": number, **answer})

    def _enrol(self, number: int, request: Enrol, fds: list[int]) -> None:
        deadline = time.monotonic() + wait_s(request.timeout_s)
        enrolment = _Enrolment(number, deadline, set())
        for asked, netns in zip(request.pods, fds, strict=True):
            pod = _enrolled_pod(asked, netns)
            if self._try_to_know(pod, known=pod.zds.uid in self._pods):
                enrolment.waiting.add(pod.zds.uid)
            else:
                enrolment.pending[pod.zds.uid] = self._without_rules[pod.zds.uid]
        self._enrolments.append(enrolment)
        if request.no_proxy:
            self._give_up(enrolment, "no node proxy was asked for")
        elif not enrolment.waiting:
            self._settle(enrolment)
        for uid in [uid for uid in self._pods if uid in enrolment.waiting]:
            self._hand_over(uid)

    def _try_to_know(self, pod: EnrolledPod, *, known: bool) -> bool:
        """Write the rules of a pod; from then on every proxy that comes is told of it."""
        uid = pod.zds.uid
        try:
            self.write_rules(pod, known=known)
        except (KernelRefusedError, OSError, ValueError) as error:
            self._without_rules[uid] = f"rules: {error}"
            os.close(pod.netns)
            return False
        self._without_rules.pop(uid, None)
        before = self._pods.pop(uid, None)
        if before is not None:
            os.close(before.netns)
        self._pods[uid] = pod
        return True

    def _release(self, number: int, request: Release) -> None:
        """Take pods out of the mesh that go on running: rules first, as Istio does, so that nothing new is captured."""
        failed: dict[str, str] = {}
        with contextlib.ExitStack() as closing:
            for uid in request.uids:
                try:
                    self.remove_rules(self._pods[uid], closing)
                except KeyError:
                    failed[uid] = f"the agent of {self.node} does not know it"
                except (KernelRefusedError, OSError) as error:
                    failed[uid] = f"rules: {error}"
            released = [uid for uid in request.uids if uid not in failed]
            answer = Released(released=released, failed=failed, unacknowledged=[])
            self._take_away(number, released, request.timeout_s, answer)

    def _take_away(self, number: int, uids: Sequence[str], timeout_s: float, answer: Released | Removed) -> None:
        """Forget pods, and tell every proxy. Rules are not touched: those of a pod that ends go with its netns."""
        known = [uid for uid in dict.fromkeys(uids) if uid in self._pods]
        deadline = time.monotonic() + wait_s(timeout_s)
        waiting = {(connection, uid) for connection in self._connections for uid in known}
        removal = _Removal(number, deadline, answer, waiting)
        self._removals.append(removal)
        for uid in known:
            pod = self._pods.pop(uid)
            self._decided(uid, "it was taken away meanwhile")
            for connection in list(self._connections):
                with self._surviving(connection):
                    self._take(connection, connection.remove(uid, time.monotonic()))
            os.close(pod.netns)
        self._settle_removals()

    def _status(self) -> Status:
        connections = [
            ConnectionStatus(
                number=connection.number,
                pid=connection.pid,
                synced=connection.session.synced,
                uids=sorted(connection.uids),
            )
            for connection in self._connections
        ]
        return Status(connections=connections, uids=sorted(self._pods), without_rules=self._without_rules)

    # --- proxies ---

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        self._accepted += 1
        pods = [pod.zds for pod in self._pods.values()]
        connection = Connection(sock, self._accepted, pods, lambda uid: self._pods[uid].netns, self._note)
        self._note({"k": "zds-accept", "conn": connection.number})
        self._connections.append(connection)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(connection))

    def _read(self, connection: Connection) -> None:
        with self._surviving(connection):
            self._take(connection, connection.receive(time.monotonic()))

    def _hand_over(self, uid: str) -> None:
        if not self._connections:
            return  # the next one to come is told of every pod
        newest = self._connections[-1]
        with self._surviving(newest):
            self._take(newest, newest.add(self._pods[uid].zds, time.monotonic()))

    @contextlib.contextmanager
    def _surviving(self, connection: Connection) -> Iterator[None]:
        """A connection that ends or breaks the protocol is dropped, and takes nothing with it."""
        try:
            yield
        except ProtocolError as error:
            self._drop(connection, str(error))

    def _drop(self, connection: Connection, why: str) -> None:
        sys.stderr.write(f"agent of {self.node}: ZDS connection {connection.number} ended: {why}\n")
        sys.stderr.flush()
        was_newest = connection is self._connections[-1]
        self._selector.unregister(connection)
        self._connections.remove(connection)
        connection.close()
        for removal in self._removals:
            removal.waiting = {(one, uid) for one, uid in removal.waiting if one is not connection}
        self._settle_removals()
        if not was_newest:
            return
        for uid in sorted({uid for enrolment in self._enrolments for uid in enrolment.waiting}):
            self._hand_over(uid)

    def _take(self, connection: Connection, effects: Iterable[AgentEffect]) -> None:
        for effect in effects:
            match effect:
                case Acknowledged(uid):
                    self._decided(uid, None)
                case Refused(uid, text):
                    self._decided(uid, f"the node proxy refused it: {text}")
                case zds.Removed(uid):
                    for removal in self._removals:
                        removal.waiting.discard((connection, uid))
                    self._settle_removals()
                case Synced():
                    told = {"connection": connection.number, "pid": connection.pid, "pods": sorted(connection.uids)}
                    self._channel.send({"event": "synced", **told})
                case SendPacket():
                    pass

    # --- answers ---

    def _decided(self, uid: str, why_not: str | None) -> None:
        for enrolment in list(self._enrolments):
            if uid not in enrolment.waiting:
                continue
            enrolment.waiting.remove(uid)
            if why_not is None:
                enrolment.enrolled.append(uid)
            else:
                enrolment.pending[uid] = why_not
            self._settle(enrolment)

    def _settle(self, enrolment: _Enrolment) -> None:
        """Answer, where nothing is waited for any more."""
        if enrolment.waiting:
            return
        self._enrolments.remove(enrolment)
        self._reply(enrolment.request, Enrolled(enrolled=enrolment.enrolled, pending=enrolment.pending))

    def _settle_removals(self, now: float = 0.0) -> None:
        """Answer those that every proxy has acknowledged, or that are due ``now``."""
        for removal in list(self._removals):
            if removal.waiting and removal.deadline > now:
                continue
            self._removals.remove(removal)
            removal.answer["unacknowledged"] = sorted({uid for _, uid in removal.waiting})
            self._reply(removal.request, removal.answer)

    def _give_up(self, enrolment: _Enrolment, why: str) -> None:
        enrolment.pending.update(dict.fromkeys(sorted(enrolment.waiting), why))
        enrolment.waiting.clear()
        self._settle(enrolment)

    def _patience(self, timeout_s: float | None) -> float | None:
        """Until the next deadline, at most ``timeout_s``."""
        dues = [enrolment.deadline for enrolment in self._enrolments]
        dues += [removal.deadline for removal in self._removals]
        dues += [connection.answer_due for connection in self._connections if connection.answer_due is not None]
        waits = [max(0.0, due - time.monotonic()) for due in dues]
        return min(waits + ([] if timeout_s is None else [timeout_s]), default=None)

    def _meet_deadlines(self) -> None:
        now = time.monotonic()
        for connection in list(self._connections):
            if connection.answer_due is not None and connection.answer_due <= now:
                self._drop(connection, "it did not answer in time")
        for enrolment in list(self._enrolments):
            if enrolment.deadline <= now:
                self._give_up(enrolment, self._why_waiting())
        self._settle_removals(now)

    def _why_waiting(self) -> str:
        if not self._connections:
            return "no node proxy is connected to the agent"
        return "the node proxy has not acknowledged it"

    def _note(self, entry: dict[str, Any]) -> None:
        if self._record:
            seconds = round(time.monotonic() - self._started, 5)
            self._channel.send({"event": "conversation", "t": seconds, "agent": self.node, **entry})


def _enrolled_pod(asked: PodAsked, netns: int) -> EnrolledPod:
    zds = ZdsPod(
        uid=asked["uid"],
        name=asked["name"],
        namespace=asked["namespace"],
        service_account=asked["service_account"],
    )
    return EnrolledPod(zds, netns, asked.get("bypass_inbound", False))


def _listen(path: str) -> socket.socket:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # an agent that was killed leaves its socket behind
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    return listener
