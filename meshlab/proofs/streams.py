"""One direction of one flow on one link: order restored, TLS records followed, and what was seen in the open window.

segments --> Stream.order --> bytes in order --> TlsRecords (on 15008), and kept for the search while a window is open
"""

from __future__ import annotations

from meshlab.proofs.packets import FIN, RST, SYN, Header
from meshlab.proofs.tls import CLIENT_HELLO, SERVER_HELLO, TlsRecords

HBONE_PORT = 15008

_MOST_PENDING = 4096
"""Segments that wait for one that was lost; beyond this the stream is taken up again behind the gap."""
_MASK = 0xFFFFFFFF
_HALF = 0x80000000


class Stream:
    """Lives from the first packet to a while after the last; ``epoch`` says to which window the counts belong."""

    __slots__ = (
        "born",
        "chunks",
        "data_times",
        "ended",
        "epoch",
        "isn",
        "next_seq",
        "packets",
        "payload_bytes",
        "pending",
        "stuck_at",
        "times",
        "tls",
    )

    def __init__(self, head: Header) -> None:
        self.born = False
        """The SYN was seen, so the bytes are known from the first."""
        self.isn = -1
        self.next_seq = -1
        self.pending: dict[int, bytes] = {}
        """By sequence number: what came before what stands ahead of it."""
        self.stuck_at = -1
        """What it waited for at the last ``give_up``."""
        self.ended = 0
        """The epoch in which FIN or RST was seen; 0 while it lives. Late copies of segments still find it."""
        self.tls: TlsRecords | None = None
        if HBONE_PORT in {head.source_port, head.destination_port}:
            self.tls = TlsRecords(CLIENT_HELLO if head.destination_port == HBONE_PORT else SERVER_HELLO)
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Forget the counts of the window before."""
        self.epoch = epoch
        self.packets = 0
        self.payload_bytes = 0
        self.times: list[int] = []
        self.data_times: list[int] = []
        """Of the packets that carried something."""
        self.chunks: list[bytes] = []
        """What came in order in this window."""

    def is_reused_by(self, head: Header) -> bool:
        """The segment begins another connection on the same ports."""
        return bool(head.flags & SYN) and head.seq != self.isn

    def segment(self, head: Header, payload: bytes, order: Order, *, keep: bool) -> None:
        """Take one TCP segment; ``keep`` its bytes for the search."""
        seq = head.seq
        if head.flags & SYN:
            seq = seq + 1 & _MASK
            if not self.born:
                self.born, self.isn, self.next_seq = True, head.seq, seq
        if head.flags & (FIN | RST):
            self.ended = self.ended or self.epoch
        if not payload:
            return
        if len(self.pending) > _MOST_PENDING:
            self._resume()
        for data in order.take(self, seq, payload):
            if keep:
                self.chunks.append(data)
            if self.tls and self.born:  # from the middle nobody can tell a record's beginning
                self.tls.feed(data)

    def give_up(self) -> None:
        """Wait no longer for what was missing at the last ``give_up`` too: a hole must not blind all later windows.

        What waits behind it goes on as a stream whose birth nobody saw.
        """
        if self.pending and self.stuck_at == self.next_seq:
            self._resume()
        self.stuck_at = self.next_seq if self.pending else -1

    def _resume(self) -> None:
        self.born, self.next_seq = False, -1
        self.pending.clear()


class Order:
    """How segments become a stream: by sequence number, each byte once, the first copy of it wins (RFC 9293 3.4)."""

    def take(self, stream: Stream, seq: int, payload: bytes) -> list[bytes]:
        """The bytes that are now known to follow what was there before."""
        if stream.next_seq < 0:
            stream.next_seq = seq
        new = self._unseen(stream, seq, payload)
        if not new:
            return []
        ready = [new]
        stream.next_seq = stream.next_seq + len(new) & _MASK
        while stream.pending:
            more = self._next_pending(stream)
            if not more:
                break
            ready.append(more)
            stream.next_seq = stream.next_seq + len(more) & _MASK
        return ready

    def _unseen(self, stream: Stream, seq: int, payload: bytes) -> bytes:
        ahead = seq - stream.next_seq & _MASK
        if ahead == 0:
            return payload
        if ahead >= _HALF:  # begins before what is known: only what reaches beyond it is new
            return payload[(_MASK + 1) - ahead :]
        kept = stream.pending.get(seq, b"")
        if len(payload) > len(kept):
            stream.pending[seq] = kept + payload[len(kept) :]
        return b""

    def _next_pending(self, stream: Stream) -> bytes:
        """The pending segment that continues the stream; those that it made old are dropped."""
        for seq in sorted(stream.pending, key=lambda seq: seq - stream.next_seq + _HALF & _MASK):
            if 0 < seq - stream.next_seq & _MASK < _HALF:
                return b""
            data = stream.pending.pop(seq)[stream.next_seq - seq & _MASK :]
            if data:
                return data
        return b""
