"""The scenes of ``fixtures/captures``: one conversation, clean or leaking in one way each, as pcapng files.

``python tests/unit/capture_scenes.py`` writes them again, byte for byte the same: all that is random in them, a true
TLS 1.3 handshake, was recorded once (``--handshake``) into ``fixtures/captures/tls-1.3.json``.

    node-1                              node-2
      shop/client    10.128.0.1           shop/server    10.64.0.2   (enrolled, as client and intruder)
      shop/intruder  10.128.0.3           shop/plain     10.64.0.4   (not in the mesh)

    call 1   client -> server    allowed, in a tunnel of its own
    call 2   intruder -> server  refused: the tunnel stands, then RST
    call 3   client -> plain     in clear by right
"""

from __future__ import annotations

import base64
import gzip
import json
import ssl
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

import trustme

from meshlab.model import Call, Outcome, Peer, PodPort, direct
from meshlab.model import Path as CallPath
from meshlab.proofs import beacon, pcapng
from meshlab.proofs.arrivals import Arrival, Arrivals
from meshlab.proofs.canary import canary, secret_of
from meshlab.proofs.follower import Follower
from meshlab.proofs.links import Link, Site, Wiring
from meshlab.proofs.packets import FIN, RST, SYN
from meshlab.proofs.window import Window

FOLDER = Path(__file__).parents[2] / "fixtures" / "captures"
SECRET = secret_of(bytes(range(8)))
BEACON_SECRET = secret_of(bytes(range(8, 16)))
T0 = 1_700_000_000_000_000_000
STEP_NS = 10_000
ACK = 0x10

CLIENT, INTRUDER, FABRIC_1, SERVER, PLAIN, FABRIC_2 = LINKS = (
    Link("node-1", 2, "shop/client"),
    Link("node-1", 3, "shop/intruder"),
    Link("node-1", 4, "fabric"),
    Link("node-2", 2, "shop/server"),
    Link("node-2", 3, "shop/plain"),
    Link("node-2", 4, "fabric"),
)
ADDRESSES = {
    "shop/client": ("10.128.0.1", "fd5a::1:1"),
    "shop/intruder": ("10.128.0.3", "fd5a::1:3"),
    "shop/server": ("10.64.0.2", "fd5a::2:2"),
    "shop/plain": ("10.64.0.4", "fd5a::2:4"),
    "elsewhere": ("198.51.100.7", "2001:db8::7"),
}
SERVER_8080 = PodPort("shop/server", 8080)
PLAIN_9090 = PodPort("shop/plain", 9090)


def to_server(call: Call) -> list[CallPath]:
    """The one path that a call to the server may take."""
    return [direct(call.source, SERVER_8080.pod, SERVER_8080.port)]


def to_plain(call: Call) -> list[CallPath]:
    """The one path that a call to the pod outside the mesh may take."""
    return [direct(call.source, PLAIN_9090.pod, PLAIN_9090.port, "plain")]


def wiring() -> Wiring:
    """As in the files: ring 0, and the interface's place as its ifindex."""
    sites = {
        link.name: Site(
            link.name,
            link,
            frozenset(ip_address(text).packed for text in ADDRESSES[link.name]),
            link is not PLAIN,
        )
        for link in (CLIENT, INTRUDER, SERVER, PLAIN)
    }
    return Wiring({(0, place): link for place, link in enumerate(LINKS)}, sites)


def beacons() -> tuple[beacon.Beacons, beacon.Beacons]:
    """Those of the opening and of the closing."""
    links = [(0, place) for place in range(len(LINKS))]
    opening = beacon.opening(BEACON_SECRET, links, 1)
    return opening, beacon.closing(BEACON_SECRET, links, 1 + len(opening.expected))


# --- frames ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Script:
    """Frames in the order in which they pass."""

    family: int = 4
    frames: list[tuple[Link, bool, int, bytes]] = field(default_factory=list)
    times: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of each call: when it began and ended."""

    def put(self, link: Link, outgoing: bool, frame: bytes) -> None:
        self.frames.append((link, outgoing, self.now_ns(), frame))

    def now_ns(self) -> int:
        return T0 + len(self.frames) * STEP_NS

    def mark(self, number: int, conversation: Callable[[], None]) -> None:
        start = self.now_ns()
        conversation()
        self.times[number] = (start, self.now_ns())


@dataclass(slots=True)
class Tcp:
    """One connection, seen on each link of its way."""

    script: Script
    source: str
    destination: str
    source_port: int
    port: int
    way: Sequence[Link]
    sent: list[int] = field(default_factory=lambda: [0x7FFFFFF0, 0xFFFFFF00])
    """Next sequence number of either end: the second soon wraps."""

    def open(self) -> None:
        for back, flags in ((False, SYN), (True, SYN | ACK)):
            self.segment(b"", back=back, flags=flags)
            self.sent[back] += 1

    def say(self, data: bytes, *, back: bool = False, size: int = 1400) -> None:
        for at in range(0, len(data), size):
            self.segment(data[at : at + size], back=back)
            self.sent[back] += len(data[at : at + size])

    def shuffled(self, pieces: Sequence[bytes], order: Sequence[int]) -> None:
        """Send these pieces of a stream in this order; a place that stands twice is sent twice."""
        starts = [sum(len(piece) for piece in pieces[:place]) for place in range(len(pieces))]
        for place in order:
            self.segment(pieces[place], at=self.sent[0] + starts[place])
        self.sent[0] += sum(map(len, pieces))

    def end(self, flags: int = FIN | ACK) -> None:
        self.segment(b"", back=True, flags=flags)
        self.segment(b"", flags=flags)

    def segment(self, data: bytes, *, back: bool = False, flags: int = ACK, at: int | None = None) -> None:
        ends, ports = (self.source, self.destination), (self.source_port, self.port)
        if back:
            ends, ports = (ends[1], ends[0]), (ports[1], ports[0])
        seq = self.sent[back] if at is None else at
        packet = tcp(ports[0], ports[1], seq & 0xFFFFFFFF, flags, data)
        frame = ethernet(ends[0], ends[1], self.script.family, packet)
        way = list(self.way)
        for link in way[::-1] if back else way:
            outgoing = (link is way[-1] or (link.name == "fabric" and link is way[1])) != back
            self.script.put(link, outgoing, frame)


def tcp(source_port: int, port: int, seq: int, flags: int, data: bytes) -> bytes:
    return struct.pack("!HHIIBBHHH", source_port, port, seq, 1, 5 << 4, flags, 65535, 0, 0) + data


def ethernet(source: str, destination: str, family: int, packet: bytes, protocol: int = 6) -> bytes:
    """Checksums are left 0, as offloading leaves them wrong on a veth."""
    one, other = (ip_address(ADDRESSES[name][family == 6]).packed for name in (source, destination))
    macs = bytes.fromhex("020000000001020000000002")
    if family == 6:
        return macs + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(packet), protocol, 64) + one + other + packet
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(packet), 0, 0x4000, 64, protocol, 0)
    return macs + b"\x08\x00" + head + one + other + packet


# --- a true TLS 1.3 conversation ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tls:
    """What either end sent, as records."""

    hello: bytes
    server: bytes
    finished: bytes
    request: bytes
    response: bytes
    bulk: bytes
    """64 KiB from the client."""


def recorded_tls() -> Tls:
    return Tls(
        **{key: base64.b64decode(text) for key, text in json.loads((FOLDER / "tls-1.3.json").read_text()).items()}
    )


def shake_hands() -> Tls:
    """Make one, with two MemoryBIO pairs."""
    authority = trustme.CA()
    contexts = [ssl.SSLContext(kind) for kind in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)]
    for context in contexts:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["h2"])
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
        authority.issue_cert("server.test").configure_cert(context)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = contexts[0].wrap_bio(to_client, to_server, server_hostname="server.test")
    server = contexts[1].wrap_bio(to_server, to_client, server_side=True)
    hello = _step(client, to_server)
    _feed(to_server, hello)
    answer = _step(server, to_client)
    _feed(to_client, answer)
    client.do_handshake()
    finished = to_server.read()
    _feed(to_server, finished)
    server.do_handshake()
    tickets = to_client.read()
    said = []
    for data in (b"CONNECT server:8080", bytes(64 << 10)):
        client.write(data)
        said.append(to_server.read())
    server.write(b"200")
    return Tls(hello, answer, finished, said[0], tickets + to_client.read(), said[1])


def _step(end: ssl.SSLObject, out: ssl.MemoryBIO) -> bytes:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return out.read()
    raise AssertionError("the handshake ended too early")


def _feed(bio: ssl.MemoryBIO, data: bytes) -> None:
    bio.write(data)


# --- scenes ----------------------------------------------------------------------------------------------------------

Leak = Callable[[Script], None]
IN_BOTH_HALVES = (16, 38)
"""Where to cut, so that no segment holds a whole half of the secret, nor the number and the beginning of the first."""


def _leak(form: Callable[[bytes], bytes], order: Sequence[int] = (0,), cuts: Sequence[int] = ()) -> Leak:
    """Call 1's canary to an address elsewhere, over node-1's fabric: in some form, cut and sent in some order."""

    def leak(script: Script) -> None:
        word = canary(SECRET, 1)
        request = b"GET /?q=" + form(word) + b" HTTP/1.1\r\n\r\n"
        pieces = [request[start:end] for start, end in pairwise([0, *cuts, len(request)])]
        connection = Tcp(script, "shop/client", "elsewhere", 40001, 443, (CLIENT, FABRIC_1))
        connection.open()
        connection.shuffled(pieces, order)
        connection.end()

    return leak


def _hbone(script: Script, source: str, source_port: int, *, end: int = FIN | ACK, clear: bytes = b"") -> None:
    tls = recorded_tls()
    link = CLIENT if source == "shop/client" else INTRUDER
    connection = Tcp(script, source, "shop/server", source_port, 15008, (link, FABRIC_1, FABRIC_2, SERVER))
    connection.open()
    connection.say(tls.hello)
    connection.say(tls.server, back=True)
    connection.say(tls.finished + tls.request)
    connection.say(tls.response, back=True)
    if clear:
        connection.say(tls.bulk)
        connection.say(clear)
    connection.end(end)


def _clear_hbone(script: Script, word: bytes) -> None:
    connection = Tcp(script, "shop/client", "shop/server", 40000, 15008, (CLIENT, FABRIC_1, FABRIC_2, SERVER))
    connection.open()
    connection.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + word)
    connection.say(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + word, back=True)
    connection.end()


def _plain(script: Script) -> None:
    connection = Tcp(script, "shop/client", "shop/plain", 40003, 9090, (CLIENT, FABRIC_1, FABRIC_2, PLAIN))
    connection.open()
    connection.say(b"GET /" + canary(SECRET, 3))
    connection.say(b"HTTP/1.1 200 OK\r\n\r\n" + canary(SECRET, 3), back=True)
    connection.end()


@dataclass(frozen=True, slots=True)
class Scene:
    """How a capture differs from the clean one."""

    story: str
    leak: Leak | None = None
    tunnel: Callable[[Script], None] = lambda script: _hbone(script, "shop/client", 40000)
    family: int = 4
    drops: int = 0
    """Packets that node-1's ring says it lost."""
    deaf: Link | None = None
    """A link on which the closing beacons that arrive were not seen."""


def _base64(pad: int) -> Leak:
    return _leak(lambda word: base64.b64encode(b"x" * pad + word + b"tail"))


SCENES: dict[str, Scene] = {
    "clean": Scene("nothing leaks"),
    "clean-ipv6": Scene("nothing leaks, over IPv6", family=6),
    "leak-raw": Scene("in clear", _leak(bytes)),
    "leak-raw-ipv6": Scene("in clear, over IPv6", _leak(bytes), family=6),
    "leak-hex": Scene("in hex", _leak(lambda word: word.hex().encode())),
    "leak-hex-upper": Scene("in hex, upper case", _leak(lambda word: word.hex().upper().encode())),
    "leak-base64-0": Scene("in base64, at the beginning of a group", _base64(0)),
    "leak-base64-1": Scene("in base64, one byte into a group", _base64(1)),
    "leak-base64-2": Scene("in base64, two bytes into a group", _base64(2)),
    "leak-gzip": Scene("in a gzip stream", _leak(lambda word: gzip.compress(b"<p>" + word + b"</p>" * 9, mtime=0))),
    "leak-gzip-split": Scene(
        "in a gzip stream over two segments",
        _leak(lambda word: gzip.compress(b"<p>" + word + b"</p>" * 9, mtime=0), (0, 1), cuts=(40,)),
    ),
    "leak-split": Scene("over three segments", _leak(bytes, (0, 1, 2), cuts=IN_BOTH_HALVES)),
    "leak-out-of-order": Scene("over three segments, the last first", _leak(bytes, (2, 1, 0), cuts=IN_BOTH_HALVES)),
    "leak-retransmitted": Scene(
        "over three segments, the first sent twice", _leak(bytes, (0, 0, 1, 2), cuts=IN_BOTH_HALVES)
    ),
    "clear-on-15008": Scene("no TLS on 15008", tunnel=lambda script: _clear_hbone(script, canary(SECRET, 1))),
    "clear-after-handshake": Scene(
        "in clear on 15008 after a true handshake and 64 KiB",
        tunnel=lambda script: _hbone(script, "shop/client", 40000, clear=b"DATA " + canary(SECRET, 1)),
    ),
    "scrambled-on-15008": Scene(
        "no TLS on 15008, and the canary in no form that the search knows",
        tunnel=lambda script: _clear_hbone(script, canary(SECRET, 1)[::-1]),
    ),
    "drops": Scene("node-1's ring lost three packets", drops=3),
    "beacon-missing": Scene("a beacon that arrived from shop/client was not seen", deaf=CLIENT),
}


def play(scene: Scene) -> Script:
    """Opening beacons, the calls, closing beacons."""
    script = Script(scene.family)
    opening, closing = beacons()
    _light(script, opening, None)
    script.mark(1, lambda: scene.tunnel(script))
    script.mark(2, lambda: _hbone(script, "shop/intruder", 40002, end=RST))
    script.mark(3, lambda: _plain(script))
    if scene.leak:
        scene.leak(script)
    _light(script, closing, scene.deaf)
    return script


def _light(script: Script, some: beacon.Beacons, deaf: Link | None) -> None:
    for one in some.expected.values():
        link = LINKS[one.link[1]]
        if one.outgoing or link is not deaf:
            for frame in beacon.frames(one, some.secret):
                script.put(link, one.outgoing, frame)


def call(script: Script, number: int) -> Call:
    """What the lab would know of it."""
    source, to, port, outcome = {
        1: ("shop/client", "shop/server", 8080, Outcome.OK),
        2: ("shop/intruder", "shop/server", 8080, Outcome.RESET),
        3: ("shop/client", "shop/plain", 9090, Outcome.OK),
    }[number]
    six = script.family == 6
    source_ip = ip_address(ADDRESSES[source][six])
    return Call(
        number=number,
        source=source,
        to=f"{to}:{port}",
        family=6 if six else 4,
        source_ip=source_ip,
        source_port=50000 + number,
        destination_ip=ip_address(ADDRESSES[to][six]),
        port=port,
        canary=canary(SECRET, number),
        outcome=outcome,
        started_ns=script.times[number][0],
        ended_ns=script.times[number][1],
        peer=Peer(pod=to, server_port=port, address=source_ip, port=40000) if outcome in Outcome.OK else None,
    )


def arrivals(script: Script, sizes: Mapping[int, int], **changes: Any) -> Arrivals:
    """What the servers would have counted: of each call in ``sizes`` one connection, with so many bytes."""
    calls = {number: call(script, number) for number in sizes}
    counted = Arrivals(
        since_ns=T0,
        connections=tuple(
            Arrival(
                pod=one.to.rpartition(":")[0],
                port=one.port,
                client=one.source_ip,
                client_port=40000 + number,
                opened_ns=one.started_ns + 1,
                last_ns=one.started_ns + 2,
                bytes=sizes[number],
            )
            for number, one in calls.items()
        ),
        echoes=frozenset({SERVER_8080, PLAIN_9090}),
    )
    return replace(counted, **changes)


def as_pcapng(name: str) -> bytes:
    scene = SCENES[name]
    drops = {FABRIC_1: scene.drops} if scene.drops else {}
    return b"".join(pcapng.write(LINKS, play(scene).frames, drops=drops, comment=f"meshlab fixture: {scene.story}"))


def as_file(script: Script) -> bytes:
    """A script without a scene, between the beacons of a window."""
    lit = Script(script.family)
    opening, closing = beacons()
    _light(lit, opening, None)
    lit.frames += script.frames
    _light(lit, closing, None)
    return b"".join(pcapng.write(LINKS, lit.frames, drops={}, comment=""))


def window_of(buffer: bytes, analyser: type[Follower] = Follower) -> Window:
    """The whole file as one window."""
    capture = pcapng.read(buffer)
    follower = analyser(SECRET)
    follower.open()
    follower.feed(buffer, capture.packets)
    opening, closing = beacons()
    return follower.close(wiring(), opening.joined(closing), capture.drops)


def _written() -> Iterator[str]:
    if "--handshake" in sys.argv:
        shake = shake_hands()
        fields = {name: base64.b64encode(getattr(shake, name)).decode() for name in Tls.__slots__}
        (FOLDER / "tls-1.3.json").write_text(json.dumps(fields, indent=1) + "\n")
        yield "tls-1.3.json"
    for name in SCENES:
        (FOLDER / f"{name}.pcapng").write_bytes(as_pcapng(name))
        yield f"{name}.pcapng"


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}\n" for name in _written())
