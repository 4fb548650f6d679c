"""Follows every flow on every link of a lab from birth, so that a window that opens mid-stream knows where it is.

feed(buffer) while no window is open     states go on, nothing is kept
open() ... feed(buffer) ... close()      packets and bytes are kept, then searched: a ``Window``
           look()                        the ``Window`` until now, which stays open
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import ClassVar

from meshlab.proofs.beacon import Beacons, may_carry
from meshlab.proofs.exposed import exposed
from meshlab.proofs.flows import Flow
from meshlab.proofs.fragments import Fragment, Fragments
from meshlab.proofs.links import Wiring
from meshlab.proofs.packets import RST, SYN, TCP, Header, Packet, lost_bytes, parse, recorded
from meshlab.proofs.pieces import Key, Piece
from meshlab.proofs.places import Place, Streams, findings, packet_texts, places, raw_places
from meshlab.proofs.search import Search
from meshlab.proofs.streams import Order, Stream
from meshlab.proofs.unread import Unread
from meshlab.proofs.window import Window

_MOST_STREAMS = 1 << 17
"""How many streams are remembered from one window to the next: a pod can begin one with each packet that it sends."""
_LATE_NS = 120_000_000_000
"""How long after the end of a tunnel copies of its last bytes may come: to a pod that is gone Linux sends them again,
eight times, after pauses that double.

Source: ``tcp_orphan_retries`` in https://docs.kernel.org/networking/ip-sysctl.html
"""


class Follower:
    """The analyser of one lab. Not thread-safe."""

    order: ClassVar[Order] = Order()

    def __init__(self, secret: bytes) -> None:
        self.search = Search(secret)
        self._streams: dict[Key, Stream] = {}
        self._retired: list[tuple[Key, Stream]] = []
        """Of the open window: connections whose ports were used again."""
        self._epoch = 1
        self._newest_ns = 0
        """When the newest packet came."""
        self._open = False
        self._pieces: list[Piece] = []
        self._joined: list[Piece] = []
        """Of the open window: datagrams that were put together from fragments."""
        self._fragments = Fragments()
        self._fragmented = 0
        """Of the open window: datagrams of which fragments were missing when somebody looked."""
        self._lost = 0
        self._lost_before = 0
        """Before the window that is open, or the next one."""

    def open(self) -> None:
        """From here on the packets that are fed belong to a window."""
        if self._open:
            raise ValueError("a window is open already; calls within it are told apart by their canaries and times")
        self._epoch += 1
        self._lost_before, self._lost = self._lost_before + self._lost, 0
        self._open = True
        self._fragments.begin()
        self._fragmented = 0

    def feed(self, buffer: bytes, packets: Iterable[Packet] | None = None) -> None:
        """Take the next whole records (or ``packets`` of another container that ``buffer`` is)."""
        lost = 0
        if packets is None:
            packets = recorded(buffer)
            lost = lost_bytes(buffer)
        piece = Piece(buffer)
        packet = None
        for packet in packets:
            head = parse(buffer, packet.start, packet.end)
            key = (packet.node, packet.ifindex, packet.outgoing, *head[:5])
            if self._open:
                piece.add(packet, key, head)
            if head.fragment:
                self._join(Fragment(packet, key, head, piece, len(piece.packets) - 1))
            else:
                self._follow(key, packet, head, buffer)
        if packet is not None:
            self._newest_ns = packet.time_ns
        if lost:
            self.lost(lost)
        if self._open:
            self._pieces.append(piece)
        else:
            self._forget()

    def lost(self, count: int = 0) -> None:
        """So many bytes, or nobody knows how many, were lost until here: streams go on behind them."""
        self._lost += count
        for stream in self._streams.values():
            stream.lost()

    def close(self, wiring: Wiring, beacons: Beacons, drops: Mapping[str, int]) -> Window:
        """As ``look``, and end the window."""
        window = self.look(wiring, beacons, drops)
        self.abandon()
        return window

    def abandon(self) -> None:
        """End the window that is open, if one is, and forget what it holds."""
        self._open, self._pieces, self._joined, self._retired = False, [], [], []
        self._lost_before, self._lost = self._lost_before + self._lost, 0
        self._forget()

    def look(self, wiring: Wiring, beacons: Beacons, drops: Mapping[str, int]) -> Window:
        """Search what the window holds until now, and say what was seen.

        Args:
            wiring: which link is whose, by now.
            beacons: those that were put on the links since ``open``.
            drops: by node, packets that its ring lost since ``open``.
        """
        self._end_fragments()
        seen = [*self._retired, *((key, item) for key, item in self._streams.items() if item.epoch == self._epoch)]
        marks = raw_places(Search(beacons.secret), self._pieces, seen, may_carry)
        ours = frozenset(mark.key for mark in marks if beacons.is_ours(mark.hit.number))
        followed = [(key, stream) for key, stream in seen if key not in ours]
        pieces = [*self._pieces, *self._joined]
        self.search.begin(sum(len(piece.buffer) for piece in pieces))
        texts = packet_texts(pieces)
        canaries = places(self.search, texts, followed)
        unread = self.search.unread + Counter({Unread.FRAGMENTS: self._fragmented, Unread.HOLES: _holes(seen)})
        copies = self._copies(followed)
        flows = [(key, _flow(key, stream, wiring, is_copy=key in copies)) for key, stream in followed]
        return Window(
            flows=tuple(flow for _, flow in flows),
            exposed=exposed(texts, followed, dict(flows)),
            findings=findings(canaries, wiring),
            drops={node: count for node, count in drops.items() if count},
            lost_bytes=self._lost,
            lost_before_bytes=self._lost_before,
            cut_packets=sum(piece.cut for piece in self._pieces),
            unread=unread,
            beacons=beacons,
            missing=beacons.missing(_heard(marks)),
            pieces=tuple(self._pieces),
            beacon_keys=ours,
        )

    def _join(self, fragment: Fragment) -> None:
        """Follow the datagram of a fragment in place of its fragments, once all are there."""
        frame = self._fragments.take(fragment, keep=self._open)
        if frame is None:
            return
        packet = fragment.packet._replace(start=0, end=len(frame))
        head = parse(frame, 0, len(frame))
        key = (packet.node, packet.ifindex, packet.outgoing, *head[:5])
        self._follow(key, packet, head, frame)
        if self._open:
            piece = Piece(frame)
            piece.add(packet, key, head)
            self._joined.append(piece)

    def _end_fragments(self) -> None:
        """Count the datagrams that are not whole by now; their fragments are flows without ports."""
        missed = self._fragments.end()
        for fragment in (fragment for datagram in missed for fragment in datagram):
            self._seen(fragment.key, fragment.packet, fragment.head)
        self._fragmented += len(missed)

    def _follow(self, key: Key, packet: Packet, head: Header, buffer: bytes) -> None:
        stream = self._seen(key, packet, head)
        if head.protocol == TCP:
            stream.segment(head, buffer[head.payload : head.end], self.order, keep=self._open)
            if head.flags & RST:
                self._end_reverse(key)

    def _seen(self, key: Key, packet: Packet, head: Header) -> Stream:
        """Count a packet with the others of its flow."""
        stream = self._streams.get(key)
        if stream is None or (head.flags & SYN and stream.is_reused_by(head)):
            if stream is not None and self._open and stream.epoch == self._epoch:
                self._retired.append((key, stream))
            stream = self._streams[key] = Stream(head, packet.time_ns)
        if stream.epoch != self._epoch:
            stream.begin(self._epoch)
        stream.times.append(packet.time_ns)
        if head.end > head.payload:
            stream.data_times.append(packet.time_ns)
            stream.data_sizes.append(head.end - head.payload)
            stream.payload_bytes += head.end - head.payload
        return stream

    def _end_reverse(self, key: Key) -> None:
        """After a RST nothing is said in the other direction either."""
        ring, ifindex, outgoing, protocol, source, destination, source_port, destination_port = key
        reverse = self._streams.get(
            (ring, ifindex, not outgoing, protocol, destination, source, destination_port, source_port)
        )
        if reverse is not None:
            reverse.ended = reverse.ended or self._epoch

    def _forget(self) -> None:
        """Begin a new epoch without those that are over, and without what has no state (UDP, ICMP).

        Beyond a bound those go that were quiet the longest: if they speak again, it is in the middle of a connection.
        """
        self._streams = {
            key: stream for key, stream in self._streams.items() if key[3] == TCP and not self._is_over(stream)
        }
        if len(self._streams) > _MOST_STREAMS:
            for key in sorted(self._streams, key=lambda key: self._streams[key].epoch)[:-_MOST_STREAMS]:
                del self._streams[key]
        for stream in self._streams.values():
            stream.chunks = []
        self._epoch += 1

    def _copies(self, followed: Streams) -> set[Key]:
        """Those tunnels of which a link carried nothing but bytes that another link has carried before, from birth.

        They come where another pod has the address by now: what the one before did not acknowledge is sent to it.
        """
        begun = [(key, stream) for key, stream in followed if stream.tls and not stream.born and stream.payload_bytes]
        if not begun:
            return set()
        born: dict[tuple[object, ...], list[Stream]] = {}
        for key, stream in self._streams.items():
            if stream.tls and stream.born:
                born.setdefault(key[3:], []).append(stream)
        return {key for key, stream in begun if any(map(stream.is_part_of, born.get(key[3:], ())))}

    def _is_over(self, stream: Stream) -> bool:
        """It ended in an epoch before; a tunnel long before: late copies would be taken for bytes from its middle."""
        if not stream.ended or stream.ended >= self._epoch:
            return False
        return stream.tls is None or stream.times[-1] < self._newest_ns - _LATE_NS


def _holes(seen: Streams) -> int:
    return sum(stream.misses_bytes for _, stream in seen)


def _heard(marks: list[Place]) -> frozenset[tuple[int, int, int, bool]]:
    return frozenset((mark.hit.number, *mark.key[:3]) for mark in marks if mark.hit.number is not None)


def _flow(key: Key, stream: Stream, wiring: Wiring, *, is_copy: bool) -> Flow:
    ring, ifindex, outgoing, protocol, source, destination, source_port, destination_port = key
    # Processors may stamp packets in one order and queue them in another.
    data = sorted(zip(stream.data_times, stream.data_sizes, strict=True))
    return Flow(
        link=wiring.link(ring, ifindex),
        outgoing=outgoing,
        protocol=protocol,
        source=source,
        destination=destination,
        source_port=source_port,
        destination_port=destination_port,
        payload_bytes=stream.payload_bytes,
        times=tuple(sorted(stream.times)),
        data=tuple(data),
        from_birth=stream.born or not stream.payload_bytes or is_copy,
        hole=stream.has_hole,
        not_tls=stream.tls.fault if stream.tls else "",
        no_certificate=stream.tls.no_certificate if stream.tls else "",
        began_ns=stream.began_ns,
    )
