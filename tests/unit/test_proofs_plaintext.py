"""How many bytes passed in plaintext between pods of the mesh: on new connections, and on those that were kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import capture_scenes as scenes
import pytest

from meshlab.lab.history import History
from meshlab.model import Mesh, Namespace, Pod
from meshlab.model.mesh import DATAPLANE_MODE
from meshlab.model.report import Result
from meshlab.proofs import pcapng, verdicts
from meshlab.proofs.follower import Follower
from meshlab.proofs.plaintext import Plaintext, plaintext, prove
from meshlab.proofs.window import Window

WAY = (scenes.CLIENT, scenes.FABRIC_1, scenes.FABRIC_2, scenes.SERVER)
TO_PLAIN = (scenes.CLIENT, scenes.FABRIC_1, scenes.FABRIC_2, scenes.PLAIN)
BEFORE_NS = scenes.T0 - 10**10


def mesh(*enrolled: str) -> Mesh:
    pods = tuple(
        Pod(
            name=key.partition("/")[2],
            namespace="shop",
            node="node-1",
            ipv4=IPv4Address(four),
            ipv6=IPv6Address(six),
            labels={} if key in enrolled else {DATAPLANE_MODE: "none"},
        )
        for key, (four, six) in scenes.ADDRESSES.items()
        if "/" in key
    )
    return Mesh(namespaces=(Namespace(name="shop", labels={DATAPLANE_MODE: "ambient"}),), pods=pods)


IN_MESH = mesh("shop/client", "shop/intruder", "shop/server")
OUTSIDE = mesh("shop/intruder")


def always(*meshes: Mesh) -> Callable[[int], Sequence[Mesh]]:
    return lambda at_ns: meshes


def seen(window: Window, now: Mesh = IN_MESH) -> Plaintext:
    return plaintext(window, always(now), BEFORE_NS, now)


def clear(script: scenes.Script, source_port: int = 41000, port: int = 8080) -> scenes.Tcp:
    connection = scenes.Tcp(script, "shop/client", "shop/server", source_port, port, WAY)
    connection.open()
    return connection


def window(script: scenes.Script) -> Window:
    return scenes.window_of(scenes.as_file(script))


def tunnel() -> scenes.Script:
    script = scenes.Script()
    scenes._hbone(script, "shop/client", 40000)
    return script


@pytest.mark.parametrize("name", ["clean", "clean-ipv6"])
def test_nothing_in_plaintext_holds_on_tls_between_the_pods(name: str) -> None:
    of = scenes.window_of(scenes.as_pcapng(name))
    found = seen(of)
    assert (found.in_plaintext, found.kept_plaintext) == (0, 0)
    proof = prove(of, found)
    assert (proof.id, proof.result) == ("in-plaintext", Result.HELD), proof
    assert proof.packets == found.packets > 0
    assert "beacons seen in clear" in proof.control


@pytest.mark.parametrize(("port", "why"), [(8080, ""), (15008, "TLS")])
def test_each_byte_of_a_new_connection_counts_once_on_whatever_links_it_passed(port: int, why: str) -> None:
    script = tunnel()
    connection = clear(script, port=port)
    connection.say(b"x" * 1000)
    connection.say(b"y" * 234, back=True)
    connection.end()
    of = window(script)
    found = seen(of)
    assert found.in_plaintext == 1234
    assert len(found.leaks) == 2
    assert found.leaks[0].startswith(f"1000 bytes in plaintext: TCP 10.128.0.1:41000 -> 10.64.0.2:{port} on node-1")
    assert why in found.leaks[0]
    assert prove(of, found).result is Result.FAILED


def test_a_connection_that_carries_no_byte_is_nothing_in_plaintext() -> None:
    script = tunnel()
    clear(script).end()
    assert seen(window(script)).in_plaintext == 0


def test_a_packet_on_15008_without_a_byte_shows_nothing() -> None:
    script = scenes.Script()
    clear(script, port=15008).end()
    of = window(script)
    assert prove(of, seen(of)).result is Result.CANNOT_TELL


def test_a_pod_outside_the_mesh_may_be_spoken_to_in_plaintext() -> None:
    script = tunnel()
    connection = scenes.Tcp(script, "shop/client", "shop/plain", 41000, 9090, TO_PLAIN)
    connection.open()
    connection.say(b"hello")
    assert seen(window(script)).in_plaintext == 0


def test_what_began_while_a_change_was_on_its_way_is_kept_and_what_began_afterwards_is_new() -> None:
    script = tunnel()
    first = clear(script, 41001)
    first.say(b"a" * 10)
    middle_ns = script.now_ns()
    second = clear(script, 41002)
    second.say(b"b" * 20)
    done_ns = script.now_ns()
    third = clear(script, 41003)
    third.say(b"c" * 40)
    first.say(b"d" * 80)
    clock = iter([0, 0, middle_ns - 1, done_ns - 1])
    history = History(lambda: next(clock))
    history.begin(OUTSIDE)
    history.effect()
    history.begin(IN_MESH)
    history.effect()
    found = plaintext(window(script), lambda at_ns: history.between(at_ns, at_ns), history.last_effect_ns(), IN_MESH)
    assert found.in_plaintext == 40
    assert found.kept_plaintext == 80
    assert ":41003 ->" in found.leaks[0]
    assert ":41001 ->" in found.kept[0]


def test_a_connection_from_before_the_window_is_an_old_one() -> None:
    script = scenes.Script()
    connection = clear(script)
    opened = len(script.frames)
    connection.say(b"still here")
    follower = Follower(scenes.SECRET)
    buffers = [
        b"".join(pcapng.write(scenes.LINKS, frames, drops={}, comment=""))
        for frames in (script.frames[:opened], script.frames[opened:])
    ]
    opening, closing = scenes.beacons()
    follower.feed(buffers[0], pcapng.read(buffers[0]).packets)
    follower.open()
    follower.feed(buffers[1], pcapng.read(buffers[1]).packets)
    of = follower.close(scenes.wiring(), opening.joined(closing), {})
    enrolled_ns = script.frames[opened][2]

    def at(time_ns: int) -> tuple[Mesh, ...]:
        return (OUTSIDE,) if time_ns < enrolled_ns else (IN_MESH,)

    found = plaintext(of, at, enrolled_ns - 1, IN_MESH)
    assert (found.in_plaintext, found.kept_plaintext) == (0, 10)


@pytest.mark.parametrize(("pause_s", "kept"), [(0, True), (20, False)])
def test_what_is_sent_again_to_a_pod_that_has_come_to_the_address_belongs_to_the_old_connection(
    pause_s: int, kept: bool
) -> None:
    script = tunnel()
    connection = clear(script)
    connection.say(b"hello")
    of = window(script)
    first = next(flow for flow in of.flows if flow.destination_port == 8080)
    later_ns = first.began_ns + 30 * 10**9
    old = first._replace(times=(*first.times, later_ns))
    after_ns = later_ns + pause_s * 10**9 + 1000
    again = first._replace(
        link=replace(first.link, name="shop/heir"), began_ns=after_ns, times=(after_ns,), data=((after_ns, 5),)
    )
    of = replace(of, flows=(old, again))
    found = plaintext(of, lambda at_ns: (IN_MESH if at_ns > first.began_ns else OUTSIDE,), BEFORE_NS, IN_MESH)
    assert (found.in_plaintext, found.kept_plaintext) == ((0, 5) if kept else (5, 5))


def test_while_two_meshes_may_be_in_effect_only_what_both_enrol_is_new() -> None:
    script = tunnel()
    clear(script).say(b"x" * 9)
    of = window(script)
    assert plaintext(of, always(OUTSIDE, IN_MESH), BEFORE_NS, IN_MESH).in_plaintext == 0
    assert plaintext(of, always(IN_MESH, IN_MESH), BEFORE_NS, IN_MESH).in_plaintext == 9
    assert plaintext(of, always(), BEFORE_NS, IN_MESH).in_plaintext == 0


def test_a_canary_that_goes_to_no_pod_fails_the_proof() -> None:
    of = scenes.window_of(scenes.as_pcapng("leak-raw"))
    found = seen(of)
    assert found.in_plaintext == 0
    proof = prove(of, found)
    assert proof.result is Result.FAILED
    assert "198.51.100.7" in proof.reason


def test_a_window_without_traffic_of_the_mesh_cannot_tell() -> None:
    of = window(scenes.Script())
    proof = prove(of, seen(of))
    assert proof.result is Result.CANNOT_TELL
    assert "no packet on 15008" in proof.reason


def test_a_window_that_is_blind_cannot_tell() -> None:
    of = replace(window(tunnel()), drops={"node-1": 3})
    proof = prove(of, seen(of))
    assert proof.result is Result.CANNOT_TELL
    assert "lost packets" in proof.reason


@pytest.mark.parametrize(("pause_s", "result"), [(0, Result.HELD), (20, Result.FAILED)])
def test_what_an_older_connection_sends_again_to_the_heir_of_an_address_is_nothing_in_clear(
    pause_s: int, result: Result
) -> None:
    """The heir's link sees a connection begin that began on other links before the heir was a member."""
    script = tunnel()
    clear(script).say(b"hello")
    of = window(script)
    first = next(flow for flow in of.flows if flow.destination_port == 8080)
    came_ns = max(first.times) + 1
    heir = replace(first.link, name="shop/heir")
    after_ns = came_ns + pause_s * 10**9
    again = first._replace(link=heir, began_ns=after_ns, times=(after_ns,), data=((after_ns, 5),))
    hbone = next(flow for flow in of.flows if flow.is_hbone)
    hbone = hbone._replace(link=heir, source_port=40001, began_ns=after_ns, times=(after_ns,))
    of = replace(of, flows=(first, again, hbone))
    wiring = scenes.wiring()
    sites = {**wiring.sites, "shop/server": replace(wiring.sites["shop/server"], since_ns=came_ns)}
    proof = verdicts.nothing_in_clear(of, replace(wiring, sites=sites), heir, 4, [])
    assert proof.result is result, proof.reason
