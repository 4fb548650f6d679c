"""A session whose random stands anywhere but in its ClientHello has been given away, however that is written."""

from __future__ import annotations

import base64
from collections.abc import Callable

import capture_scenes as scenes
import pytest
from test_proofs_windows import connection, windows, wiring

from meshlab.model.report import Result
from meshlab.proofs import verdicts
from meshlab.proofs.packets import UDP
from meshlab.proofs.window import Window

RANDOM = scenes.recorded_tls().hello[5 + 4 + 2 :][:32]
"""Behind the headers of record and handshake, and the version."""
LINE = b"CLIENT_TRAFFIC_SECRET_0 %s " + bytes(range(100, 148)).hex().encode()


def _session(script: scenes.Script, port: int = 15008) -> scenes.Tcp:
    tls = scenes.recorded_tls()
    tunnel = connection(script, port)
    tunnel.open()
    tunnel.say(tls.hello)
    tunnel.say(tls.server, back=True)
    tunnel.say(tls.finished + tls.request)
    return tunnel


def _window(log: bytes, *, cut: int | None = None) -> Window:
    """A session, and what somebody sends of it: in a datagram, or over TCP in two segments."""
    script = scenes.Script()
    _session(script)
    if cut is None:
        datagram = b"\x27\x0f\x02\x02" + (8 + len(log)).to_bytes(2) + b"\0\0" + log
        script.put(scenes.FABRIC_1, True, scenes.ethernet("shop/plain", "shop/intruder", 4, datagram, protocol=UDP))
    else:
        stream = scenes.Tcp(script, "shop/plain", "shop/intruder", 999, 514, [scenes.FABRIC_1])
        stream.open()
        stream.shuffled([log[:cut], log[cut:]], [1, 0])
    [window] = windows([(True, script.frames)])
    return window


def _base64(pad: int) -> Callable[[bytes], bytes]:
    return lambda random: base64.b64encode(b"x" * pad + random + b"and more")


WRITTEN: dict[str, Callable[[bytes], bytes]] = {
    "as it is": bytes,
    "in hex": lambda random: random.hex().encode(),
    "in capital hex": lambda random: random.hex().upper().encode(),
    **{f"in base64, {pad} bytes into a group": _base64(pad) for pad in range(3)},
}


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("cut", [None, 30], ids=["in a datagram", "over two segments"])
def test_a_line_of_a_key_log_exposes_its_session(how: str, cut: int | None) -> None:
    window = _window(LINE % WRITTEN[how](RANDOM), cut=cut)
    assert {(str(one.flow.link), one.session.destination_port) for one in window.exposed} == {("node-1:fabric", 15008)}
    proof = verdicts.nothing_in_clear(window, wiring(), scenes.FABRIC_1, 4, [])
    assert (proof.result, proof.reason) == (Result.FAILED, str(window.exposed[0]))
    assert scenes.FABRIC_1 in verdicts.links_to_prove(window, wiring(), 4, [])


def test_the_calls_of_that_session_were_readable() -> None:
    window = _window(LINE % RANDOM.hex().encode())
    call = scenes.call(scenes.play(scenes.SCENES["clean"]), 1)
    proof = verdicts.encrypted(window, wiring(), call, scenes.to_server(call))
    assert (proof.result, "key log" in proof.reason) == (Result.FAILED, True)


def test_a_session_alone_exposes_nothing_nor_does_the_line_of_another() -> None:
    assert _window(b"a line of a log").exposed == ()
    assert _window(LINE % bytes(reversed(RANDOM)).hex().encode()).exposed == ()


def test_a_client_that_says_hello_twice_exposes_nothing() -> None:
    """After a HelloRetryRequest the second ClientHello has the same random (RFC 8446 4.1.2)."""
    script, tls = scenes.Script(), scenes.recorded_tls()
    tunnel = connection(script)
    tunnel.open()
    tunnel.say(tls.hello)
    tunnel.say(tls.hello)
    tunnel.say(tls.server, back=True)
    tunnel.say(tls.finished + tls.request)
    [window] = windows([(True, script.frames)])
    assert window.exposed == ()
