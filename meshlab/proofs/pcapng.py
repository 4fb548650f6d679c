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
_SECTION_HEAD = struct.Struct("<IHHq")
_INTERFACE_HEAD = struct.Struct("<HHI")
_STATISTICS_HEAD = struct.Struct("<III")
_SECRETS_HEAD = struct.Struct("<II")
_MOST_DIGITS = 10


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
    yield _block(_SECTION, _SECTION_HEAD.pack(_MAGIC, 1, 0, -1), options)
    for link in links:
        described = [(_NAME, link.name.encode()), (_DESCRIPTION, f"{link.node} {link.ifindex}".encode())]
        yield _block(_INTERFACE, _INTERFACE_HEAD.pack(_ETHERNET, 0, 0), [*described, (_RESOLUTION, _NANOSECONDS)])
    if secrets:  # before the packets that need them
        yield _block(_SECRETS, _SECRETS_HEAD.pack(_TLS_KEY_LOG, len(secrets)) + _padded(secrets), [])
    numbers = {link: number for number, link in enumerate(links)}
    said = comments or {}
    for place, (link, outgoing, time_ns, frame) in enumerate(frames):
        options = [(_FLAGS, struct.pack("<I", _OUTBOUND if outgoing else _INBOUND))]
        if place in said:
            options.append((_COMMENT, said[place].encode()))
        head = _PACKET_HEAD.pack(numbers[link], time_ns >> 32, time_ns & 0xFFFFFFFF, len(frame), len(frame))
        yield _block(_PACKET, head + _padded(frame), options)
    for link, lost in (drops or {}).items():
        yield _block(_STATISTICS, _STATISTICS_HEAD.pack(numbers[link], 0, 0), [(_DROPS, struct.pack("<Q", lost))])


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


class _BrokenError(Exception):
    """What a block holds is not what ``write`` writes."""


def read(buffer: bytes) -> Capture:
    """Read what ``write`` wrote.

    Raises:
        ValueError: it is no little-endian pcapng file, or a block of it is broken; the message says at which byte.
    """
    capture = Capture(buffer)
    if struct.unpack_from("<IxxxxI", buffer.ljust(12)) != (_SECTION, _MAGIC):
        raise ValueError("this is no little-endian pcapng file")
    for at, kind, body in _blocks(buffer):
        try:
            _take(capture, kind, body)
        except (_BrokenError, struct.error, UnicodeDecodeError) as broken:
            raise ValueError(f"the pcapng block at byte {at} (type {kind}) is broken: {broken}") from None
    return capture


@dataclass(frozen=True, slots=True)
class _Body:
    """What stands between the two sizes of a block: ``buffer[start:end]``."""

    buffer: bytes
    start: int
    end: int

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        """Read the fields at its beginning."""
        if self.end - self.start < form.size:
            raise _BrokenError(f"it has {self.end - self.start} bytes, not {form.size} or more")
        return form.unpack_from(self.buffer, self.start)

    def option(self, skipped: int, code: int) -> bytes:
        """Return the option of this code; the options stand behind ``skipped`` bytes.

        Raises:
            _BrokenError: there is none.
        """
        value = self.options(skipped).get(code)
        if value is None:
            raise _BrokenError(f"it has no option {code}")
        return value

    def options(self, skipped: int) -> dict[int, bytes]:
        """Return all options behind ``skipped`` bytes."""
        found: dict[int, bytes] = {}
        at = self.start + skipped
        while at + 4 <= self.end:
            code, size = struct.unpack_from("<HH", self.buffer, at)
            if not code:
                break
            if at + 4 + size > self.end:
                raise _BrokenError(f"its option {code} goes beyond its end")
            found[code] = self.buffer[at + 4 : at + 4 + size]
            at += 4 + size + -size % 4
        return found


def _take(capture: Capture, kind: int, body: _Body) -> None:
    match kind:
        case 0x0A0D0D0A:
            capture.comment = body.options(_SECTION_HEAD.size).get(_COMMENT, b"").decode()
        case 1:
            _interface(capture, body)
        case 6:
            _packet(capture, body)
        case 5:
            node = _link(capture, body.unpack(_STATISTICS_HEAD)[0]).node
            lost = struct.unpack("<Q", body.option(_STATISTICS_HEAD.size, _DROPS))[0]
            capture.drops[node] = capture.drops.get(node, 0) + lost
        case 10:
            _, size = body.unpack(_SECRETS_HEAD)
            start = body.start + _SECRETS_HEAD.size
            capture.secrets = capture.buffer[start : min(start + size, body.end)]
        case _:  # the format asks readers to skip what they do not know
            pass


def _interface(capture: Capture, body: _Body) -> None:
    node, _, ifindex = body.option(_INTERFACE_HEAD.size, _DESCRIPTION).decode().partition(" ")
    if not (ifindex.isascii() and ifindex.isdecimal() and len(ifindex) <= _MOST_DIGITS):
        raise _BrokenError("its description is not a node and an ifindex")
    name = body.option(_INTERFACE_HEAD.size, _NAME).decode()
    capture.links[0, len(capture.links)] = Link(node, int(ifindex), name)


def _link(capture: Capture, number: int) -> Link:
    link = capture.links.get((0, number))
    if link is None:
        raise _BrokenError(f"no interface {number} was described before it")
    return link


def _packet(capture: Capture, body: _Body) -> None:
    interface, high, low, kept, length = body.unpack(_PACKET_HEAD)
    _link(capture, interface)
    frame = body.start + _PACKET_HEAD.size
    if frame + kept > body.end:
        raise _BrokenError(f"its {kept} bytes of packet go beyond its end")
    flags = body.option(_PACKET_HEAD.size + kept + -kept % 4, _FLAGS)
    outgoing = struct.unpack("<I", flags)[0] & 3 == _OUTBOUND
    capture.packets.append(Packet(0, interface, outgoing, high << 32 | low, frame, frame + kept, kept == length))


def _block(kind: int, body: bytes, options: Sequence[tuple[int, bytes]]) -> bytes:
    told = b"".join(struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    tail = told + struct.pack("<HH", 0, 0) if told else b""
    size = struct.pack("<I", 12 + len(body) + len(tail))
    return struct.pack("<I", kind) + size + body + tail + size


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _blocks(buffer: bytes) -> Iterator[tuple[int, int, _Body]]:
    """Where each block begins, its type and its body.

    Raises:
        ValueError: a size is none: 12 bytes or more, in fours, said alike at both ends, within the file.
    """
    at = 0
    while at < len(buffer):
        kind, size = struct.unpack_from("<II", buffer, at) if len(buffer) - at >= 12 else (0, 0)
        end = at + size
        if size < 12 or size % 4 or end > len(buffer) or buffer[end - 4 : end] != buffer[at + 4 : at + 8]:
            raise ValueError(f"the pcapng block at byte {at} has no valid size: the file is cut off, or broken")
        yield at, kind, _Body(buffer, at + 8, end - 4)
        at = end
