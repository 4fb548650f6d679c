"""What proofs are drawn from: captured packets, what is searched in them, and the logs of node proxies."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from ipaddress import ip_address

from benchmarks.parsers.parser import Parser, Shape, pieces, repeated
from meshlab.model import Call
from meshlab.model.call import Outcome
from meshlab.model.report import Cell, Result
from meshlab.proofs import packets, pcapng
from meshlab.proofs.access_log import read_opened
from meshlab.proofs.beacon import Beacons
from meshlab.proofs.canary import RANDOM_BYTES, canary, secret_of
from meshlab.proofs.follower import Follower
from meshlab.proofs.links import Link, Site, Wiring
from meshlab.proofs.route import Hop
from meshlab.proofs.search import Search
from meshlab.proofs.tls import CLIENT_HELLO, TlsRecords
from meshlab.report.bundle.annotate import Told
from meshlab.report.bundle.evidence import log_lines

_SECRET = secret_of(bytes(range(RANDOM_BYTES)))
_BEACON_SECRET = secret_of(bytes(range(RANDOM_BYTES, 2 * RANDOM_BYTES)))
_RECORD = json.dumps(
    {
        "level": "debug",
        "time": "2026-08-01T12:00:00.000001Z",
        "message": "connection opened",
        "direction": "inbound",
        "src.addr": "[fd00::1]:40404",
        "src.identity": "spiffe://cluster.local/ns/shop/sa/client",
        "dst.hbone_addr": "10.0.0.2:8080",
    }
).encode()


def _read_log(data: bytes) -> None:
    for record in read_opened(data.decode(errors="replace")):
        assert record.at_ns is None or record.at_ns < 1e30
        assert 0 <= record.destination_port + record.source_port < 200_000
        assert (record.source_identity + record.destination_identity).isprintable()


@cache
def _told() -> Told:
    """A call of all times, which any line may be about."""
    link = Link("node-1", 2, "shop/a")
    source, destination = (
        Site(name, link, frozenset({ip_address(address).packed}), enrolled=True)
        for name, address in (("shop/a", "fd00::1"), ("shop/b", "10.0.0.2"))
    )
    call = Call(
        number=1,
        source="shop/a",
        to="shop/b:8080",
        family=4,
        source_ip=ip_address("10.0.0.1"),
        source_port=40404,
        destination_ip=ip_address("10.0.0.2"),
        port=8080,
        canary=b"",
        outcome=Outcome.RESET,
        started_ns=0,
        ended_ns=1 << 62,
    )
    cell = Cell(
        source="shop/a",
        to="shop/b",
        port=8080,
        family=4,
        expected="allow",
        oracle="allow",
        seen="deny",
        outcome="reset",
        rule="no policy",
        result=Result.FAILED,
    )
    return Told(call, cell, (Hop(source, destination, 8080, True, (link,)),))


def _find_lines(data: bytes) -> None:
    """As a bundle shows the lines of a failed call."""
    log_lines({"ztunnel@node-1": data.decode(errors="replace")}, [_told()])


def _read_tls(data: bytes) -> None:
    records = TlsRecords(CLIENT_HELLO)
    for piece in pieces(data):
        records.feed(piece)


def _search(data: bytes) -> None:
    search = Search(_SECRET)
    search.begin(len(data))
    for _ in search.everywhere(data):
        pass


def _parse_frame(data: bytes) -> None:
    head = packets.parse(data, 0, len(data))
    assert head.payload <= len(data)
    assert head.end <= len(data)


def _frames() -> tuple[bytes, ...]:
    tcp = bytes.fromhex("9dd41f900000000100000002501800000000000068656c6c6f")
    ipv4 = bytes.fromhex("4500002d000040004006000000000000") + bytes([10, 0, 0, 1, 10, 0, 0, 2])
    ipv6 = bytes.fromhex("6000000000210040") + bytes(32) + bytes.fromhex("0600000000000000")
    return (bytes(12) + b"\x08\x00" + ipv4[:20] + tcp, bytes(12) + b"\x86\xdd" + ipv6 + tcp)


def _pcapng() -> tuple[bytes, ...]:
    link = Link("node-1", 2, "shop/a")
    frames = [(link, True, 10**18, frame) for frame in _frames()]
    return (b"".join(pcapng.write([link], frames, comment="a", drops={link: 1}, secrets=b"CLIENT_RANDOM")),)


def _block(frames: Iterable[bytes]) -> bytes:
    """A record of one block, as a ring hands it out, of a link with the ifindex 2."""
    parts = [_packet(frame) for frame in frames]
    body = b"".join(struct.pack("=I", 0 if part is parts[-1] else len(part)) + part[4:] for part in parts)
    desc = struct.pack("=IIIIIIQIIII", 3, 0, 1, len(parts), 48, 48 + len(body), 0, 0, 0, 0, 0)
    return packets.RECORD.pack(packets.BLOCK, 0, len(desc) + len(body)) + desc + body


def _packet(frame: bytes) -> bytes:
    head = struct.pack("=IIIIIIHH", 0, 1, 2, len(frame), len(frame), 1, 82, 96).ljust(48, b"\0")
    whole = (head + struct.pack("=HHiHBB8x", 17, 8, 2, 1, 3, 6)).ljust(82, b"\0") + frame
    return whole + bytes(-len(whole) % 16)


def _ipv4(payload: bytes, protocol: int = 6, ident: int = 0, fragment: int = 0) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), ident, fragment, 64, protocol, 0)
    return bytes(12) + b"\x08\x00" + head + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + payload


def _ipv6(payload: bytes, follows: int = 6) -> bytes:
    return bytes(12) + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(payload), follows, 64) + bytes(32) + payload


def _tcp(seq: int, payload: bytes = b"", flags: int = 0x18, port: int = 15008) -> bytes:
    return struct.pack("!HHIIBBHHH", 40404, port, seq & 0xFFFFFFFF, 0, 5 << 4, flags, 65535, 0, 0) + payload


def _joined(frames: Iterable[bytes]) -> bytes:
    """Frames as one input: each behind its length."""
    return b"".join(struct.pack("!H", len(frame)) + frame for frame in frames)


def _apart(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2])
        yield data[at + 2 : at + 2 + size]
        at += 2 + size


def _look(data: bytes) -> None:
    """As the lab does in a window: follow the packets, then search what was kept."""
    follower = Follower(_SECRET)
    follower.open()
    follower.feed(data)
    for flow in follower.close(Wiring({}, {}), Beacons(_BEACON_SECRET, {}), {}).flows:
        str(flow)


def _follow_frames(data: bytes) -> None:
    frames = list(_apart(data))
    _look(b"".join(_block(frames[at : at + 1000]) for at in range(0, len(frames), 1000)))


def _conversations() -> tuple[bytes, ...]:
    hello = bytes.fromhex("1603010005010000012a") + bytes.fromhex("17030300020102")
    word = b"GET /" + canary(_SECRET, 7) + b" HTTP/1.1\r\n\r\n"
    whole = struct.pack("!HHHH", 9, 9, 8 + len(word) * 2, 0) + word * 2
    parts6 = [struct.pack("!BBHI", 17, 0, bits, 5) for bits in (1, 48)]
    return (
        _joined([_ipv4(_tcp(9, flags=2)), _ipv4(_tcp(10, hello)), _ipv4(_tcp(10 + len(hello), flags=4))]),
        _joined(
            [_ipv6(_tcp(9, flags=2, port=80)), _ipv6(_tcp(40, word, port=80)), _ipv6(_tcp(10, bytes(30), port=80))]
        ),
        _joined([_ipv4(whole[:48], 17, 5, 0x2000), _ipv4(whole[48:], 17, 5, 6)]),
        _joined([_ipv6(parts6[0] + whole[:48], 44), _ipv6(parts6[1] + whole[48:], 44)]),
    )


def _segments(places: Callable[[int], Iterable[int]], size: int) -> Shape:
    """A connection whose segments come at these places of its stream."""

    def shape(count: int) -> bytes:
        begin = _ipv4(_tcp(-1, flags=2, port=80))
        return _joined([begin, *(_ipv4(_tcp(place, b"a" * size, port=80)) for place in places(count))])

    return shape


def _recordings() -> tuple[bytes, ...]:
    lost = packets.RECORD.pack(packets.GAP, 0, 8) + packets.LOST.pack(5)
    return tuple(_block(_apart(data)) + lost for data in _conversations())


PARSERS = (
    Parser(
        name="captured packets",
        run=_follow_frames,
        seeds=_conversations,
        shapes={
            "in order": _segments(range, 1),
            "backwards": _segments(lambda count: range(count, -1, -1), 1),
            "every second one, then the others": _segments(
                lambda count: [*range(1, count // 2, 2), *range(0, count // 2, 2)], 1
            ),
            "many connections": lambda count: _joined(
                _ipv4(struct.pack("!HH", n & 0xFFFF, n >> 16) + _tcp(9, flags=2)[4:]) for n in range(count)
            ),
            "fragments of many datagrams": lambda count: _joined(
                _ipv4(bytes(8), 17, n & 0xFFFF, 0x3FFF - 8) for n in range(count)
            ),
            "copies of a fragment": lambda count: _joined([_ipv4(bytes(8), 17, 5, 0x2001)] * count),
            "small fragments": lambda count: _joined(
                _ipv4(bytes(8), 17, n // 8000, 0x2000 | n % 8000) for n in range(count)
            ),
            "ICMP": lambda count: _joined([_ipv4(b"\x08\0" + bytes(6), 1)] * count),
        },
        unit=1000,
        share=0.3,
    ),
    Parser(
        name="recording",
        run=_look,
        seeds=_recordings,
        documented=(ValueError,),
        share=0.3,
    ),
    Parser(
        name="access log",
        run=_read_log,
        seeds=lambda: (_RECORD, _RECORD + b"\n" + _RECORD.replace(b"inbound", b"outbound")),
        shapes={
            "deep nesting": repeated(b'{"message":"connection opened","a":', b"["),
            "many records": repeated(b"", _RECORD + b"\n"),
            "a long line": repeated(b'"connection opened"', b"a"),
        },
    ),
    Parser(
        name="lines about a call",
        run=_find_lines,
        seeds=lambda: (_RECORD, b"a line\n" + _RECORD),
        shapes={
            "deep nesting": repeated(b"", b"["),
            "many records": repeated(b"", _RECORD + b"\n"),
            "a long number": repeated(b"", b"9"),
        },
    ),
    Parser(
        name="TLS records",
        run=_read_tls,
        seeds=lambda: (bytes.fromhex("1603010005010000012a") + bytes.fromhex("17030300020102"),),
        shapes={"small records": repeated(bytes.fromhex("160301000101"), bytes.fromhex("170303000101"))},
    ),
    Parser(
        name="canary search",
        run=_search,
        seeds=lambda: (
            b"a " + canary(_SECRET, 7) + b" b",
            canary(_SECRET, 7).hex().encode() + base64.b64encode(canary(_SECRET, 8)),
            b"x" + gzip.compress(b"a " + canary(_SECRET, 7), mtime=0),
        ),
        shapes={
            "gzip magic": repeated(b"", b"\x1f\x8b\x08"),
            "prefixes": repeated(b"", _SECRET),
            "prefixes in hex": repeated(b"", _SECRET.hex().encode()),
            "a bomb": lambda size: gzip.compress(bytes(size * 1000), mtime=0),
        },
    ),
    Parser(name="frames", run=_parse_frame, seeds=_frames),
    Parser(name="pcapng", run=pcapng.read, seeds=_pcapng, documented=(ValueError,)),
)
