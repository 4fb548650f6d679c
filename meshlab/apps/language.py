"""What the built-in echo and its callers say to each other. Pure: both ends read this file.

HTTP   the answer is JSON (``answer``): who answered, the client as the server's socket saw it, and the request as it
       came. Headers of the request ask for more:
           X-Meshlab-Canary: mlc-7-...   comes back in the JSON
           X-Meshlab-Status: 503          the status of the answer
           X-Meshlab-Echo: body           the body comes back as it came, and the JSON in X-Meshlab-Answer, as it does
                                          where there can be no body (HEAD, 204, 304); without the request's headers
       A query of ?delay=200ms, or 1.5s, has the answer wait so long, 4 s at most; any other value asks for nothing.
TCP    a first line asks for a greeting, which says who answered, before everything comes back as it came:
           MESHLAB echo mlc-7-...        at once
           MESHLAB half-close mlc-7-...  only when the client has closed its side
       Bytes that begin otherwise come back as they came. A listener in mode ``server-first`` greets before it reads.
           MESHLAB shop/server 8080 10.0.0.1 40404
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from ipaddress import ip_address

from meshlab.model import Address, Peer

OWN_HEADERS = "x-meshlab-"
"""How the names of all headers of the lab's own begin, in lower case."""
CANARY_HEADER = "X-Meshlab-Canary"
STATUS_HEADER = "X-Meshlab-Status"
ECHO_HEADER = "X-Meshlab-Echo"
ANSWER_HEADER = "X-Meshlab-Answer"

ECHO = b"echo"
HALF_CLOSE = b"half-close"
HOLD = b"hold"
"""As ``echo``, and the end of what the client sends is not the end of the connection: it stays half-closed."""
MOST_DELAY_S = 4.0
"""An answer waits no longer, so that a call of the lab (``requests.TIMEOUT_S``) still gets it."""
LINE_BYTES = 512
"""The longest first line or greeting."""

_WORD = b"MESHLAB "
_GREETING = re.compile(r"MESHLAB ([^ ]+) ([0-9]{1,5}) ([^ ]+) ([0-9]{1,5})")
_DELAY = re.compile(r"[?&]delay=([0-9]{1,6}(?:\.[0-9]{1,6})?)(ms|s)(?![^&#])")
_METHODS = tuple(
    b"%s " % method
    for method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT")
)


def opening(mode: bytes, canary: bytes) -> bytes:
    """The first line of a TCP call."""
    return b"MESHLAB %s %s\n" % (mode, canary)


def greeting(pod: str, server_port: int, client: Address, port: int) -> bytes:
    """The first line of a TCP answer: who answers, at which of its ports, and the client as the server sees it."""
    return f"MESHLAB {pod} {server_port} {client} {port}\n".encode()


def read_greeting(line: bytes) -> Peer | None:
    """Who answered; ``None`` where ``line`` (without its end) is no greeting."""
    try:
        found = _GREETING.fullmatch(line.decode())
        if found is None:
            return None
        return Peer(
            pod=found[1],
            server_port=_port(int(found[2])),
            address=ip_address(found[3]),
            port=_port(int(found[4])),
        )
    except ValueError:
        return None


def may_greet(data: bytes) -> bool:
    """Whether ``data``, without a line's end, may be the beginning of a greeting."""
    return len(data) < LINE_BYTES and _WORD.startswith(data[: len(_WORD)])


def sniff(data: bytes) -> str | None:
    """``http``, ``echo``, ``half-close``, ``hold`` or ``raw`` by the first bytes; ``None``: it may be several still."""
    if data.startswith(_METHODS):
        return "http"
    if data.startswith(_WORD):
        line, newline, _ = data.partition(b"\n")
        if not newline:
            return None if len(line) < LINE_BYTES else "raw"
        mode = line.split(b" ")[1]
        return mode.decode() if mode in {ECHO, HALF_CLOSE, HOLD} else "raw"
    if any(known.startswith(data) for known in (_WORD, *_METHODS)):
        return None
    return "raw"


def delay_s(target: str) -> float:
    """How long the answer to a request for ``target`` waits, in the form of Istio's echo: ``/?delay=200ms``."""
    found = _DELAY.search(target)
    if found is None:
        return 0.0
    return min(MOST_DELAY_S, float(found[1]) / (1000 if found[2] == "ms" else 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The echo's JSON."""

    peer: Peer
    """With the request's headers, in lower case."""
    method: str
    path: str
    body_bytes: int
    body_sha256: str
    canary: str
    """Empty where the request had none."""

    def to_json(self) -> str:
        return json.dumps(
            {
                "pod": self.peer.pod,
                "port": self.peer.server_port,
                "peer": {"address": str(self.peer.address), "port": self.peer.port},
                "method": self.method,
                "path": self.path,
                "headers": dict(self.peer.headers),
                "bodyBytes": self.body_bytes,
                "bodySha256": self.body_sha256,
                "canary": self.canary,
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: bytes | str) -> Answer:
        """Read an answer.

        Raises:
            ValueError: ``text`` is anything else.
        """
        try:
            document = json.loads(text)
            peer = document["peer"]
            headers = {_text(name): _text(value) for name, value in document["headers"].items()}
            address = ip_address(_text(peer["address"]))
            return cls(
                peer=Peer(
                    pod=_text(document["pod"]),
                    server_port=_port(document["port"]),
                    address=address,
                    port=_port(peer["port"]),
                    headers=headers,
                ),
                method=_text(document["method"]),
                path=_text(document["path"]),
                body_bytes=_whole(document["bodyBytes"]),
                body_sha256=_text(document["bodySha256"]),
                canary=_text(document["canary"]),
            )
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"not an answer of the echo: {type(error).__name__}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    value.encode()  # JSON can spell half of a surrogate pair, which no text has: a UnicodeEncodeError is a ValueError
    return value


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("not a whole number")
    return value


def _port(value: object) -> int:
    port = _whole(value)
    if port > 65535:
        raise ValueError("not a port")
    return port
