"""A call that was made and how it ended, read from its bytes.

In ambient a TCP handshake that succeeds says nothing (the node proxy accepts first), and a refused call ends in RST or
FIN at random. So the outcome of a call is a class, not an exception, and ``Outcome.REFUSED`` is what a denial may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Flag

from meshlab.model.route import HttpRequest
from meshlab.model.workload import Address, Family


class Outcome(Flag):
    """How a call ended (conformance catalogue 1.4). ``outcome in Outcome.REFUSED`` asks for a class of them."""

    OK = 1
    """The bytes that were asked for came back."""
    CONNECT_REFUSED = 2
    """RST to the SYN."""
    RESET = 4
    """Accepted, then RST before a byte came back."""
    CLOSED = 8
    """Accepted, then FIN before a byte came back."""
    CLOSED_LATE = 16
    """Closed or reset after some, not all, bytes had come back."""
    TIMEOUT = 32
    TLS_ALERT = 64
    HTTP_STATUS = 128
    """An HTTP answer that is not 2xx."""
    WRONG_BACKEND = 256
    CORRUPTED = 512
    """Bytes came back that nobody sent."""
    UNREACHABLE = 1024
    """No route, or ICMP said so."""
    NOT_HTTP = 2048
    """Bytes in another protocol than HTTP, from a program of a pod's own: they may well be right in that protocol."""

    REFUSED = CONNECT_REFUSED | RESET | CLOSED
    """What a denied call may end in: at random, RST or FIN."""

    def __str__(self) -> str:
        return "|".join(member.name.lower().replace("_", "-") for member in self if member.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What the echo at the other end says of a call: the server's view of it."""

    pod: str
    """The pod that answered, ``namespace/name``."""
    server_port: int
    """The port of that pod at which the connection arrived."""
    address: Address
    """The client as the server's socket saw it."""
    port: int
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the request as it came, in lower case."""
    method: str = ""
    """Empty, like ``path``, where it was no HTTP."""
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call made by a pod, from its SYN to its end. Proofs take these."""

    number: int
    """Counted from 1 in its lab."""
    source: str
    """The calling pod, ``namespace/name``."""
    to: str
    """``namespace/pod:port`` or ``service.namespace:port``."""
    family: Family
    source_ip: Address
    source_port: int
    """0 where the socket never got one."""
    destination_ip: Address
    """What was dialled: a pod's address or a VIP."""
    port: int
    """What was dialled."""
    canary: bytes
    """The lab's 16-byte prefix and the call's number: it was in what the call sent."""
    outcome: Outcome
    started_ns: int
    """``time.clock_gettime_ns(CLOCK_REALTIME)``, the clock of the captures."""
    ended_ns: int
    request: HttpRequest | None = None
    """What was asked for, in HTTP; ``None`` for other calls."""
    status: int | None = None
    """HTTP status, for HTTP calls that got one."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    """What came back; of a long answer its first MiB, or as much as the request's own body has."""
    body_bytes: int = 0
    """How many bytes of a body came back, kept or not."""
    sent_bytes: int = 0
    received_bytes: int = 0
    """All that came back, heads included."""
    echo: bool = True
    """Whether only the built-in echo may have answered, so that every byte of the answer was known before."""
    peer: Peer | None = None
    """Where the built-in echo answered."""
    error: str = ""
    """The operating system's words, where there are some."""

    @property
    def answered(self) -> bool:
        """Whether the program at the other end answered. ``check``, ``fuzz`` and ``replay`` all mean this by it.

        From the built-in echo only the right bytes are an answer. Another program answers with any byte, such as an
        HTTP 404 or an error of its own protocol: no data plane here writes bytes of its own into a connection.
        """
        return self.outcome is Outcome.OK or (not self.echo and self.received_bytes > 0)

    @property
    def ok(self) -> bool:
        """Whether the bytes that were asked for came back."""
        return self.outcome is Outcome.OK

    @property
    def refused(self) -> bool:
        """Whether it ended as a denied call may, in any of the ways of ``Outcome.REFUSED``."""
        return self.outcome in Outcome.REFUSED

    def __repr__(self) -> str:
        """Short: this is what a failed assertion shows."""
        return f"<call {self.number}: {self.source} -> {self.to} over IPv{self.family}: {self.outcome}>"
