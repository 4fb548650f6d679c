"""One TLS 1.3 session over memory: ciphertext in, plaintext out. It owns no socket.

Python checks the chain and the dates; who the peer is, SPIFFE says, and that is checked here after the handshake:
by a client before its CONNECT leaves, by a server before it reads one.

Source: https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md#5-validation
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

from meshlab.errors import ProtocolError
from meshlab.model import SpiffeId
from meshlab.pki import identity_of, read_certificate

CheckPeer = Callable[[SpiffeId], None]
"""Raises ``ProtocolError`` when the peer is not whom this end accepts."""
_READ_BYTES = 1 << 16


class TlsError(ProtocolError):
    """The session is over: a bad certificate, another protocol, an alert, or an end without warning."""


class Tls:
    """``start``, then ``receive`` and ``send``; what ``outgoing`` returns after each goes to the peer."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, check_peer: CheckPeer) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._check_peer = check_peer
        self.peer: SpiffeId | None = None
        """``None`` until the handshake is over and the peer accepted."""
        self.ended = False
        """The peer said that it will send no more."""

    def start(self) -> None:
        """Client: put the ClientHello into ``outgoing``."""
        self._shake()

    def receive(self, data: bytes) -> bytes:
        """The plaintext in it; empty while the handshake goes on.

        Raises:
            TlsError: the session failed; ``outgoing`` may hold the alert.
        """
        self._incoming.write(data)
        if self.peer is None and not self._shake():
            return b""
        return self._read()

    def send(self, plaintext: bytes) -> None:
        if plaintext:
            self._object.write(plaintext)

    def outgoing(self) -> bytes:
        """What is to be sent to the peer now."""
        return self._outgoing.read()

    def close(self) -> None:
        """Put a close_notify into ``outgoing``."""
        try:
            self._object.unwrap()
        except ssl.SSLError:
            return  # the peer's close_notify is not here yet; nobody waits for it

    def _shake(self) -> bool:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise TlsError(f"TLS handshake: {error}") from error
        if self._object.selected_alpn_protocol() != "h2":
            raise TlsError("TLS handshake: the peer did not offer h2")  # Python takes a mismatch for no answer
        peer = spiffe_id(self._object.getpeercert(binary_form=True))
        self._check_peer(peer)
        self.peer = peer
        return True

    def _read(self) -> bytes:
        parts: list[bytes] = []
        try:
            while data := self._read_some():
                parts.append(data)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            raise TlsError(f"TLS: {error}") from error
        return b"".join(parts)

    def _read_some(self) -> bytes:
        return self._object.read(_READ_BYTES)


def spiffe_id(der: bytes | None) -> SpiffeId:
    """Return the identity in a peer's certificate.

    Raises:
        TlsError: it has none, or is not one that identifies a workload.
    """
    if der is None:
        raise TlsError("the peer showed no certificate")
    try:
        return identity_of(read_certificate(der))
    except ValueError as error:
        raise TlsError(f"the peer's certificate: {error}") from error


def one_of(identities: frozenset[str]) -> CheckPeer:
    """Client: the server must be one of these."""

    def check(peer: SpiffeId) -> None:
        if str(peer) not in identities:
            raise TlsError(f"the peer is {peer}, expected {' or '.join(sorted(identities))}")

    return check


def in_trust_domain(trust_domain: str) -> CheckPeer:
    """Server: the client must be of its own trust domain."""

    def check(peer: SpiffeId) -> None:
        if peer.trust_domain != trust_domain:
            raise TlsError(f"the peer is {peer}, of another trust domain than {trust_domain}")

    return check
