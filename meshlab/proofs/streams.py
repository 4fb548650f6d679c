"""One direction of one flow on one link: order restored, TLS records followed, and what was seen in the open window.

segments --> Stream.order --> bytes in order --> TlsRecords (on 15008), and kept for the search while a window is open

Bytes that the capture has lost never come. Then the stream is taken up again behind them: the window in which that
happens is not judged (``skipped``), a later one is, as soon as a segment begins with a TLS record.
"""

from __future__ import annotations

from heapq import heappop, heappush

from meshlab.model.ambient import HBONE_PORT
from meshlab.proofs.packets import FIN, RST, SYN, Header
from meshlab.proofs.tls import CLIENT_HELLO, SERVER_HELLO, TlsRecords

_MOST_PENDING = 4096
"""Segments that wait for one that is missing; beyond this the stream is taken up again behind the gap."""
_FARTHEST_AHEAD = 16 << 20
"""How far a segment may be ahead of a missing byte: receivers give no larger window. So ``pending`` has a bound too."""
_MASK = 0xFFFFFFFF
_HALF = 0x80000000


class Stream:
    """Lives from the first packet to a while after the last; ``epoch`` says to which window the counts belong."""

    __slots__ = (
        "began_ns",
        "born",
        "chunks",
        "data_sizes",
        "data_times",
        "doubtful",
        "ended",
        "epoch",
        "isn",
        "next_seq",
        "payload_bytes",
        "pending",
        "places",
        "skipped",
        "taken",
        "times",
        "tls",
        "waits",
    )

    def __init__(self, head: Header, began_ns: int) -> None:
        self.began_ns = began_ns
        self.born = False
        """The SYN was seen, so the bytes are known from the first."""
        self.isn = -1
        self.next_seq = -1
        self.taken = 0
        """How many bytes came in order: the place of ``next_seq``, which does not wrap."""
        self.pending: dict[int, bytes] = {}
        """By place: what came before what stands ahead of it."""
        self.places: list[int] = []
        """The places in ``pending``, as a heap."""
        self.waits = False
        """It waited already when the last epoch began."""
        self.doubtful = -1
        """The epoch in which the capture lost something, maybe of this stream; -1: nothing since its last segment."""
        self.ended = 0
        """The epoch in which FIN or RST was seen; 0 while it lives. Late copies of segments still find it."""
        self.tls: TlsRecords | None = None
        if HBONE_PORT in {head.source_port, head.destination_port}:
            self.tls = TlsRecords(CLIENT_HELLO if head.destination_port == HBONE_PORT else SERVER_HELLO)
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Forget the counts of the window before, and no longer wait for what did not come in a whole epoch."""
        if self.pending and self.waits:
            self.take_up()
        self.waits = bool(self.pending)
        self.skipped = False
        """Bytes of this window were lost, and it went on behind them."""
        if self.tls:
            self.tls.unread, self.tls.random = False, b""
        self.epoch = epoch
        self.payload_bytes = 0
        self.times: list[int] = []
        self.data_times: list[int] = []
        """Of the packets that carried something."""
        self.data_sizes: list[int] = []
        """How much each of them carried, in bytes."""
        self.chunks: list[bytes] = []
        """What came in order in this window."""

    def is_reused_by(self, head: Header) -> bool:
        """The segment begins another connection on the same ports."""
        return bool(head.flags & SYN) and head.seq != self.isn

    def is_part_of(self, whole: Stream) -> bool:
        """Whether the bytes of this one, by their numbers, are among those that ``whole`` has in order from birth."""
        if self.misses_bytes:
            return False
        first = self.next_seq - self.taken - whole.isn - 1 & _MASK
        return first < _HALF and first + self.taken <= whole.taken

    def lost(self) -> None:
        """The capture has lost something until here: what is missing never comes."""
        if self.pending:
            self.take_up()
        else:
            self.doubtful = self.epoch

    def take_up(self) -> None:
        """Go on with whatever comes next. Who has not seen the first TLS record yet cannot."""
        self.skipped = self.doubtful in {-1, self.epoch}  # else what is missing is from before this window
        self.waits, self.next_seq = False, -1
        self.pending.clear()
        self.places.clear()
        if self.tls is None or not self.tls.resume():
            self.born = False

    @property
    def misses_bytes(self) -> bool:
        """Bytes of this window are missing in the middle of others."""
        return bool(self.pending) or self.skipped

    @property
    def has_hole(self) -> bool:
        """Bytes of this window are missing, or nobody knows where their TLS records begin."""
        return self.misses_bytes or (self.tls is not None and self.tls.unread)

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
        if self._is_out_of_reach(seq):
            self.take_up()
        self.doubtful = -1
        for data in order.take(self, seq, payload):
            if keep:
                self.chunks.append(data)
            if self.tls and self.born:  # from the middle nobody can tell a record's beginning
                self.tls.feed(data)

    def _is_out_of_reach(self, seq: int) -> bool:
        """Whether what is missing before this segment will not come any more."""
        ahead = seq - self.next_seq & _MASK if self.next_seq >= 0 else 0
        if not 0 < ahead < _HALF:
            return False
        return self.doubtful >= 0 or ahead > _FARTHEST_AHEAD or len(self.pending) > _MOST_PENDING


class Order:
    """How segments become a stream: by sequence number, each byte once, the first copy of it wins (RFC 9293 3.4)."""

    def take(self, stream: Stream, seq: int, payload: bytes) -> list[bytes]:
        """The bytes that are now known to follow what was there before."""
        if stream.next_seq < 0:
            stream.next_seq = seq
        new = self._unseen(stream, seq, payload)
        ready = []
        while new:
            ready.append(new)
            stream.taken += len(new)
            stream.next_seq = stream.next_seq + len(new) & _MASK
            new = self._next_pending(stream)
        return ready

    def _unseen(self, stream: Stream, seq: int, payload: bytes) -> bytes:
        ahead = seq - stream.next_seq & _MASK
        if ahead == 0:
            return payload
        if ahead >= _HALF:  # begins before what is known: only what reaches beyond it is new
            return payload[(_MASK + 1) - ahead :]
        place = stream.taken + ahead
        kept = stream.pending.get(place)
        if kept is None:
            heappush(stream.places, place)
            stream.pending[place] = payload
        elif len(payload) > len(kept):
            stream.pending[place] = kept + payload[len(kept) :]
        return b""

    def _next_pending(self, stream: Stream) -> bytes:
        """The pending segment that continues the stream; those that it made old are dropped."""
        while stream.places and stream.places[0] <= stream.taken:
            place = heappop(stream.places)
            data = stream.pending.pop(place)[stream.taken - place :]
            if data:
                return data
        return b""
