"""What every proof says of every capture in ``fixtures/captures``: the table that no kernel is needed for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import capture_scenes as scenes
import pytest

from meshlab.model.report import Result
from meshlab.proofs import verdicts
from meshlab.proofs.denial import Twin, denied
from meshlab.testing.mutants.capture import CaptureWithoutReassembly

HELD, FAILED, CANNOT_TELL = Result.HELD, Result.FAILED, Result.CANNOT_TELL


@dataclass(frozen=True)
class Row:
    """Results of: encrypted (call 1), denied (call 2), path (1 and 3), nothing-in-clear (node-1's fabric)."""

    encrypted: Result
    denied: Result
    path: Result
    plain: Result
    fabric: Result
    says: str
    """What the reason of ``encrypted`` holds."""


CLEAN = Row(HELD, HELD, HELD, HELD, HELD, "packets on port 15008")


def leaking(says: str) -> Row:
    return replace(CLEAN, encrypted=FAILED, fabric=FAILED, says=says)


def unseen(says: str) -> Row:
    return Row(CANNOT_TELL, CANNOT_TELL, CANNOT_TELL, CANNOT_TELL, CANNOT_TELL, says)


TABLE = {
    "clean": CLEAN,
    "clean-ipv6": CLEAN,
    "leak-raw": leaking("canary of call 1 in clear (raw) on node-1:shop/client"),
    "leak-raw-ipv6": leaking("canary of call 1 in clear (raw) on node-1:shop/client: [fd5a::1:1]:40001"),
    "leak-hex": leaking("(hex)"),
    "leak-hex-upper": leaking("(hex)"),
    "leak-base64-0": leaking("(base64)"),
    "leak-base64-1": leaking("(base64)"),
    "leak-base64-2": leaking("(base64)"),
    "leak-gzip": leaking("(gzip)"),
    "leak-gzip-split": leaking("(gzip, over several segments)"),
    "leak-split": leaking("(raw, over several segments)"),
    "leak-out-of-order": leaking("(raw, over several segments)"),
    "leak-retransmitted": leaking("(raw, over several segments)"),
    "clear-on-15008": leaking("canary of call 1 in clear (raw)"),
    "clear-after-handshake": leaking("canary of call 1 in clear (raw)"),
    "scrambled-on-15008": leaking("after 0 TLS records come bytes that are none (50 52 49 20 2a 20)"),
    "drops": unseen("the capture lost packets: 3 on node-1"),
    "beacon-missing": unseen("2 of 48 beacons were not seen"),
}


def prove(name: str) -> Row:
    buffer = (scenes.FOLDER / f"{name}.pcapng").read_bytes()
    script = scenes.play(scenes.SCENES[name])
    window, wiring = scenes.window_of(buffer), scenes.wiring()
    one, two, three = (scenes.call(script, number) for number in (1, 2, 3))
    encrypted = verdicts.encrypted(window, wiring, one, scenes.to_server(one))
    counted, twin = scenes.arrivals(script, {1: 100}), Twin(one, scenes.to_server(one))
    refused = denied(window, wiring, two, scenes.to_server(two), counted, twin=twin)
    return Row(
        encrypted.result,
        refused.result,
        verdicts.path(window, wiring, one, scenes.to_server(one)).result,
        verdicts.path(window, wiring, three, scenes.to_plain(three)).result,
        verdicts.nothing_in_clear(window, wiring, scenes.FABRIC_1, one.family, [one, two]).result,
        encrypted.reason,
    )


@pytest.mark.parametrize("name", list(scenes.SCENES))
def test_each_capture_gets_the_verdicts_that_its_story_asks_for(name: str) -> None:
    expected, got = TABLE[name], prove(name)
    assert expected.says in got.says
    assert replace(got, says="") == replace(expected, says="")


@pytest.mark.parametrize("name", list(scenes.SCENES))
def test_each_capture_is_made_again_byte_for_byte(name: str) -> None:
    assert (scenes.FOLDER / f"{name}.pcapng").read_bytes() == scenes.as_pcapng(name)


def test_clear_text_after_a_true_handshake_is_seen_by_its_records_too() -> None:
    buffer = (scenes.FOLDER / "clear-after-handshake.pcapng").read_bytes()
    window = scenes.window_of(buffer)
    faults = {flow.not_tls for flow in window.flows if flow.not_tls}
    assert len(faults) == 1
    assert "TLS records come bytes that are none (44 41 54 41 20)" in faults.pop()


@pytest.mark.parametrize("name", ["clean", "leak-split"])
def test_an_analyser_that_does_not_reassemble_cannot_tell(name: str) -> None:
    window = scenes.window_of((scenes.FOLDER / f"{name}.pcapng").read_bytes(), CaptureWithoutReassembly)
    one = scenes.call(scenes.play(scenes.SCENES[name]), 1)
    proof = verdicts.encrypted(window, scenes.wiring(), one, scenes.to_server(one))
    assert proof.result is CANNOT_TELL
    assert "24 of 48 beacons were not seen" in proof.reason


def test_a_proof_that_holds_names_its_control_and_its_packets() -> None:
    window, wiring = scenes.window_of((scenes.FOLDER / "clean.pcapng").read_bytes()), scenes.wiring()
    script = scenes.play(scenes.SCENES["clean"])
    one, two = scenes.call(script, 1), scenes.call(script, 2)
    proofs = [
        verdicts.encrypted(window, wiring, one, scenes.to_server(one)),
        verdicts.encrypted(window, wiring, two, scenes.to_server(two)),
        denied(
            window,
            wiring,
            two,
            scenes.to_server(two),
            scenes.arrivals(script, {1: 100}),
            twin=Twin(one, scenes.to_server(one)),
        ),
    ]
    assert [proof.result for proof in proofs] == [HELD] * 3
    assert all(proof.packets and "48 beacons" in proof.control for proof in proofs)
    assert "call 1 of shop/client was allowed" in proofs[2].control
    assert proofs[0].id == "encrypted:shop/client->shop/server:8080/4#1"


def test_a_call_that_left_no_packet_is_not_proven_encrypted() -> None:
    window, script = scenes.window_of(scenes.as_pcapng("clean")), scenes.play(scenes.SCENES["clean"])
    silent = replace(scenes.call(script, 1), number=9, started_ns=1, ended_ns=2)
    proof = verdicts.encrypted(window, scenes.wiring(), silent, scenes.to_server(silent))
    assert (proof.result, proof.reason) == (CANNOT_TELL, "no packet of it on port 15008 was seen on node-1:shop/client")


def test_traffic_of_a_pod_out_of_the_mesh_is_never_called_encrypted() -> None:
    window, script = scenes.window_of(scenes.as_pcapng("clean")), scenes.play(scenes.SCENES["clean"])
    proof = verdicts.encrypted(window, scenes.wiring(), scenes.call(script, 3), scenes.to_plain(scenes.call(script, 3)))
    assert (proof.result, proof.reason) == (
        CANNOT_TELL,
        "shop/plain is not in the mesh: its traffic is rightly in plaintext",
    )
