"""TLS sessions whose secrets are on a link: whoever sees them there reads what the session carries.

A line of a key log (SSLKEYLOGFILE) names its session by the client's random and gives a secret of it:

    CLIENT_TRAFFIC_SECRET_0 <64 hexadecimal digits of the random> <the secret>

The random stands in the ClientHello, for all to see, and nowhere else. So wherever else it is found, somebody has sent
such a line. The secrets themselves need not be known for this, and they are not: a proxy keeps them.

Source: https://datatracker.ietf.org/doc/draft-ietf-tls-keylogfile/
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from meshlab.proofs.flows import Flow
from meshlab.proofs.forms import BASE64, HEX, RAW
from meshlab.proofs.packets import TCP
from meshlab.proofs.pieces import Key
from meshlab.proofs.places import PacketTexts, Streams, standing


@dataclass(frozen=True, slots=True)
class Exposed:
    """A session, and a flow in which its random stands."""

    session: Flow
    """Its client's side, on one of the links that it passed."""
    flow: Flow
    encoding: str

    def __str__(self) -> str:
        return (
            f"the random of the TLS session {self.session} stands in {self.flow} ({self.encoding}), as in a line of a"
            " key log, which gives the session's secrets away"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Written:
    """A random, written in one way."""

    session: Flow
    encoding: str
    needle: bytes


def exposed(texts: PacketTexts, streams: Streams, flows: Mapping[Key, Flow]) -> tuple[Exposed, ...]:
    """Find where the sessions that were opened in the window are exposed in it, each once in each flow."""
    sessions = {stream.tls.random: flows[key] for key, stream in streams if stream.tls and stream.tls.random}
    needles = [one for random, session in sessions.items() for one in _written(random, session)]
    passed = _passed(texts, streams) if needles else {}
    found = {
        (one.session, key): Exposed(one.session, flows[key], one.encoding)
        for text, some in standing(needles, passed).items()
        for one in some
        for key in passed[text]
        if key in flows and not (one.encoding == RAW and flows[key].is_hbone)  # there it stands in the ClientHello
    }
    return tuple(found.values())


def _written(random: bytes, session: Flow) -> Iterator[_Written]:
    yield _Written(session, RAW, random)
    yield _Written(session, HEX, random.hex().encode())
    yield _Written(session, HEX, random.hex().upper().encode())
    for pad in range(3):  # bytes before it in its group; characters that depend on its neighbours are left out
        text = base64.b64encode(bytes(pad) + random)
        yield _Written(session, BASE64, text[-(-pad * 8 // 6) : (pad + len(random)) * 8 // 6])


def _passed(texts: PacketTexts, streams: Streams) -> dict[bytes, set[Key]]:
    """Return, by each text of a packet or of a stream of several packets, the flows in which it passed."""
    passed: dict[bytes, set[Key]] = {}
    for (text, _), packets in texts.items():
        passed.setdefault(text, set()).update(piece.keys[index] for piece, index in packets)
    for key, stream in streams:
        if key[3] == TCP and len(stream.chunks) > 1:
            passed.setdefault(b"".join(stream.chunks), set()).add(key)
    return passed
