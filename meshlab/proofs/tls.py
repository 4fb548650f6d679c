"""Is a byte stream a sequence of TLS records? One direction of one connection, fed in pieces; it decrypts nothing.

    first record: a handshake that opens with the expected hello --> any record --> any record ...
    anything else, at any byte --> ``fault`` says what, and stays
    resume(): bytes are missing --> nothing is read (``unread``) until some data begins with a record's header

After ``resume`` eight records in a row must follow before anything else is a fault: until then the header may have been
bytes that only look like one, and the search begins again.

A client's certificate is encrypted, but its size shows. In TLS 1.3 the first encrypted record of a client is its
Certificate message, alone or with what follows it, unless it was asked for none or resumes an earlier session by a
pre-shared key. A Certificate message without a certificate, even together with Finished, is 77 bytes; one with the
smallest X.509 certificate that can hold a SPIFFE ID has more than 250. So a first encrypted record that is shorter than
128 bytes holds no certificate: ``no_certificate`` says so.

A server's hello says which version both will speak. Before 1.3 the certificates of both ends pass in plaintext, so that
is a fault: whoever sees the link learns who calls whom.

Source: RFC 8446 5.1 (record layer), 4 (handshake types), 4.2.1 (supported_versions), 4.2.11 (pre_shared_key), 4.4.2
(Certificate).
"""

from __future__ import annotations

CLIENT_HELLO = 1
SERVER_HELLO = 2

_HANDSHAKE = 22
_APPLICATION_DATA = 23
"""Also the type of every encrypted record of TLS 1.3."""
_SMALLEST_CERTIFICATE = 128
_PRE_SHARED_KEY = 41
_SUPPORTED_VERSIONS = 43
_TLS_1_3 = b"\x03\x04"
_RANDOM = slice(4 + 2, 4 + 2 + 32)
"""Behind the handshake header and legacy_version."""
_TYPES = frozenset({20, 21, 22, 23})
_VERSIONS = frozenset({b"\x03\x01", b"\x03\x03"})
_LONGEST = 16384 + 256
_HEADER_BYTES = 5
_SURE_AFTER = 8
"""Records in a row, each header of which is true by chance once in sixteen millions."""
_NAMES = {CLIENT_HELLO: "ClientHello", SERVER_HELLO: "ServerHello"}


class TlsRecords:
    """Follows the record boundaries of one direction."""

    __slots__ = (
        "_first",
        "_head",
        "_hello",
        "_left",
        "_opens_with",
        "_searching",
        "_unsure",
        "_watched",
        "fault",
        "no_certificate",
        "random",
        "records",
        "unread",
    )

    def __init__(self, opens_with: int) -> None:
        self._opens_with = opens_with
        self._first = True
        self._head = b""
        self._left = 0
        self._hello = bytearray()
        """The plaintext handshake: a client's until its first encrypted record, a server's until its second record."""
        self._watched = True
        self.records = 0
        self.fault = ""
        """Empty as long as all bytes were TLS records."""
        self.no_certificate = ""
        """Of a client: why it cannot have shown a certificate; empty where it may have."""
        self.random = b""
        """Of a client that began to encrypt: its ClientHello's random (RFC 8446 4.1.2), which names the session."""
        self.unread = False
        """There were bytes of which nobody knows whether they are records. Whoever asks sets it back."""
        self._searching = False
        self._unsure = 0
        """How many records must follow until the beginning that was found is one for sure."""

    def resume(self) -> bool:
        """Bytes are missing from here on. False where even the first record was not seen."""
        self._searching, self._head, self._left, self._watched = True, b"", 0, False
        return not self._first

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        if self._searching and len(data) >= _HEADER_BYTES and _is_header(data[:_HEADER_BYTES]):
            self._searching, self._unsure = False, _SURE_AFTER
        at, size = 0, len(data)
        while at < size and not self.fault and not self._searching:
            if self._left:
                step = min(self._left, size - at)
                if self._watched:
                    self._hello += data[at : at + step]
                self._left -= step
            else:
                step = self._header(data, at)
            at += step
        self.unread = self.unread or self._searching

    def _header(self, data: bytes, at: int) -> int:
        """Take what is missing of a header (of the first record: one byte more, the handshake's type)."""
        wanted = _HEADER_BYTES + self._first
        step = min(wanted - len(self._head), len(data) - at)
        self._head += data[at : at + step]
        if len(self._head) == wanted:
            self._open(self._head)
            self._head = b""
        return step

    def _open(self, head: bytes) -> None:
        length = head[3] << 8 | head[4]
        if not _is_header(head) and self._unsure:
            self._searching = True
            return
        self._unsure = max(0, self._unsure - 1)
        if not _is_header(head):
            self.fault = f"after {self.records} TLS records come bytes that are none ({head.hex(' ')})"
        elif self._first and (head[0] != _HANDSHAKE or head[5] != self._opens_with):
            self.fault = f"it does not open with a {_NAMES[self._opens_with]} ({head.hex(' ')})"
        elif self._watched:
            self._watch(head, length)
        self._left = length - self._first
        self._first = False
        self.records += 1

    def _watch(self, head: bytes, length: int) -> None:
        """Take note of the first records: of a client's up to its certificate, of a server's the hello."""
        if self._opens_with == SERVER_HELLO and not self._first:
            self._watched = False
            if not _speaks_1_3(bytes(self._hello)):
                self.fault = "its server chose TLS 1.2 or older, in which the certificates of both ends can be read"
            self._hello.clear()
            return
        if head[0] == _APPLICATION_DATA:
            self._watched = False
            self.random = bytes(self._hello[_RANDOM])
            if length < _SMALLEST_CERTIFICATE and not _resumes(bytes(self._hello)):
                self.no_certificate = (
                    f"the client's first encrypted record has {length} bytes, too few to hold a certificate"
                )
            self._hello.clear()
        elif head[0] == _HANDSHAKE and not self._first and self.records > 1:
            self._watched = False  # a handshake that goes on in plaintext records is TLS 1.2's
        self._hello += head[_HEADER_BYTES:]


def _resumes(hello: bytes) -> bool:
    """Whether a ClientHello offers a pre-shared key, or cannot be read: then no certificate need follow."""
    try:
        at = _RANDOM.stop
        at += 1 + hello[at]
        at += 2 + int.from_bytes(hello[at : at + 2])
        at += 1 + hello[at]
    except IndexError:
        return True
    found = _extensions(hello, at)
    return found is None or _PRE_SHARED_KEY in found


def _speaks_1_3(hello: bytes) -> bool:
    """Whether a ServerHello chooses TLS 1.3, or cannot be read."""
    if len(hello) <= _RANDOM.stop:
        return True
    found = _extensions(hello, _RANDOM.stop + 1 + hello[_RANDOM.stop] + 2 + 1)  # session id, cipher suite, compression
    return found is None or found.get(_SUPPORTED_VERSIONS) == _TLS_1_3


def _extensions(hello: bytes, at: int) -> dict[int, bytes] | None:
    """Return the extensions of a hello, the length of which stands at ``at``; ``None`` if they are not all there."""
    end = at + 2 + int.from_bytes(hello[at : at + 2])
    message_end = 4 + int.from_bytes(hello[1:4])
    if at == message_end:
        return {}
    found, at = dict[int, bytes](), at + 2
    if end > len(hello):
        return None
    while at + 4 <= end:
        size = int.from_bytes(hello[at + 2 : at + 4])
        found[int.from_bytes(hello[at : at + 2])] = hello[at + 4 : at + 4 + size]
        at += 4 + size
    return found


def _is_header(head: bytes) -> bool:
    return head[0] in _TYPES and head[1:3] in _VERSIONS and 0 < head[3] << 8 | head[4] <= _LONGEST
