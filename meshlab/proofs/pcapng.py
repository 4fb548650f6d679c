"""pcapng, written and read back: interfaces named after pods, so that Wireshark shows ``shop/client`` where it looks.

Writes section header, interface descriptions, decryption secrets, enhanced packets and interface statistics; reads only
what it writes.

Source: https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-02.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from meshlab.proofs.links import Link
from meshlab.proofs.packets import Packet

_SECTION, _INTERFACE, _PACKET, _STATISTICS, _SECRETS = 0x0A0D0D0A, 1, 6, 5, 10
_MAGIC = 0x1A2B3C4D
_TLS_KEY_LOG = 0x544C534B
_ETHERNET = 1
_COMMENT, _NAME, _DESCRIPTION, _RESOLUTION, _FLAGS, _DROPS = 1, 2, 3, 9, 2, 5
_INBOUND, _OUTBOUND = 1, 2
_NANOSECONDS = b"\x09"
_PACKET_HEAD = struct.Struct("<IIIII")


def write(
    links: Sequence[Link],
    frames: Iterable[tuple[Link, bool, int, bytes]],
    *,
    drops: Mapping[Link, int] | None = None,
    comment: str = "",
    comments: Mapping[int, str] | None = None,
    secrets: bytes = b"",
) -> Iterator[bytes]:
    """The file in pieces.

    Args:
        links: the interfaces, in the order of their numbers.
        frames: link, whether the node sent it there, time in ns, frame.
        drops: packets that were lost, by link.
        comment: of the whole section.
        comments: by the frame's place, from 0.
        secrets: of TLS sessions, as SSLKEYLOGFILE has them: who opens the file sees what they said.
    """
    options = [(_COMMENT, comment.encode())] if comment else []
    yield _block(_SECTION, struct.pack("<IHHq", _MAGIC, 1, 0, -1), options)
    for link in links:
        described = [(_NAME, link.name.encode()), (_DESCRIPTION, f"{link.node} {link.ifindex}".encode())]
        yield _block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, 0), [*described, (_RESOLUTION, _NANOSECONDS)])
    if secrets:  # before the packets that need them
        yield _block(_SECRETS, struct.pack("<II", _TLS_KEY_LOG, len(secrets)) + _padded(secrets), [])
    numbers = {link: number for number, link in enumerate(links)}
    said = comments or {}
    for place, (link, outgoing, time_ns, frame) in enumerate(frames):
        options = [(_FLAGS, struct.pack("<I", _OUTBOUND if outgoing else _INBOUND))]
        if place in said:
            options.append((_COMMENT, said[place].encode()))
        head = _PACKET_HEAD.pack(numbers[link], time_ns >> 32, time_ns & 0xFFFFFFFF, len(frame), len(frame))
        yield _block(_PACKET, head + _padded(frame), options)
    for link, lost in (drops or {}).items():
        yield _block(_STATISTICS, struct.pack("<III", numbers[link], 0, 0), [(_DROPS, struct.pack("<Q", lost))])


@dataclass(slots=True)
class Capture:
    """A file that was read: ``packets`` are places in ``buffer``, their ring 0, their ifindex the interface's place."""

    buffer: bytes
    links: dict[tuple[int, int], Link] = field(default_factory=dict)
    packets: list[Packet] = field(default_factory=list)
    drops: dict[str, int] = field(default_factory=dict)
    """By node."""
    comment: str = ""
    secrets: bytes = b""


def read(buffer: bytes) -> Capture:
    """Read what ``write`` wrote.

    Raises:
        ValueError: it is no little-endian pcapng file.
    """
    capture = Capture(buffer)
    if struct.unpack_from("<IxxxxI", buffer.ljust(12)) != (_SECTION, _MAGIC):
        raise ValueError("this is no little-endian pcapng file")
    for kind, start, end in _blocks(buffer):
        match kind:
            case 0x0A0D0D0A:
                capture.comment = _options(buffer, start + 16, end).get(_COMMENT, b"").decode()
            case 1:
                _interface(capture, _options(buffer, start + 8, end))
            case 6:
                _packet(capture, start, end)
            case 5:
                node = capture.links[0, struct.unpack_from("<I", buffer, start)[0]].node
                lost = struct.unpack("<Q", _options(buffer, start + 12, end)[_DROPS])[0]
                capture.drops[node] = capture.drops.get(node, 0) + lost
            case 10:
                capture.secrets = buffer[start + 8 : start + 8 + struct.unpack_from("<I", buffer, start + 4)[0]]
            case _:  # the format asks readers to skip what they do not know
                pass
    return capture


def _interface(capture: Capture, options: dict[int, bytes]) -> None:
    node, _, ifindex = options[_DESCRIPTION].decode().partition(" ")
    capture.links[0, len(capture.links)] = Link(node, int(ifindex), options[_NAME].decode())


def _packet(capture: Capture, start: int, end: int) -> None:
    interface, high, low, kept, length = _PACKET_HEAD.unpack_from(capture.buffer, start)
    frame = start + _PACKET_HEAD.size
    flags = _options(capture.buffer, frame + kept + -kept % 4, end)[_FLAGS]
    outgoing = struct.unpack("<I", flags)[0] & 3 == _OUTBOUND
    capture.packets.append(Packet(0, interface, outgoing, high << 32 | low, frame, frame + kept, kept == length))


def _block(kind: int, body: bytes, options: Sequence[tuple[int, bytes]]) -> bytes:
    told = b"".join(struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    tail = told + struct.pack("<HH", 0, 0) if told else b""
    size = struct.pack("<I", 12 + len(body) + len(tail))
    return struct.pack("<I", kind) + size + body + tail + size


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _blocks(buffer: bytes) -> Iterator[tuple[int, int, int]]:
    at = 0
    while at + 12 <= len(buffer):
        kind, size = struct.unpack_from("<II", buffer, at)
        yield kind, at + 8, at + size - 4
        at += size


def _options(buffer: bytes, at: int, end: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while at + 4 <= end:
        code, size = struct.unpack_from("<HH", buffer, at)
        if not code:
            break
        found[code] = buffer[at + 4 : at + 4 + size]
        at += 4 + size + -size % 4
    return found
