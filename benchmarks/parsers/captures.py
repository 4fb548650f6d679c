"""What proofs are drawn from: captured packets, what is searched in them, and the logs of node proxies."""

from __future__ import annotations

import base64
import gzip
import json

from benchmarks.parsers.parser import Parser, pieces, repeated
from meshlab.proofs import packets, pcapng
from meshlab.proofs.access_log import read_opened
from meshlab.proofs.canary import RANDOM_BYTES, canary, secret_of
from meshlab.proofs.links import Link
from meshlab.proofs.search import Search
from meshlab.proofs.tls import CLIENT_HELLO, TlsRecords

_SECRET = secret_of(bytes(range(RANDOM_BYTES)))
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


PARSERS = (
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
