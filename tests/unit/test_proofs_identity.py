"""An identity was shown where a proxy saw it on a leg that carried mutual TLS, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import capture_scenes as scenes
import pytest

from meshlab.model import SpiffeId
from meshlab.model.report import Grade, Proof, Result
from meshlab.proofs.identities import End, Sighting, identity
from meshlab.proofs.window import Window

CLIENT, SERVER, OTHER = (SpiffeId("cluster.local", "shop", name) for name in ("client", "server", "other"))
CALL = scenes.call(scenes.play(scenes.SCENES["clean"]), 1)
WINDOW = scenes.window_of(scenes.as_pcapng("clean"))
EXPECTED: dict[End, frozenset[SpiffeId]] = {"client": frozenset({CLIENT}), "server": frozenset({SERVER})}


def saw(end: End, who: SpiffeId | str, grade: Grade = Grade.PEER) -> Sighting:
    return Sighting(end, str(who), grade, f"{grade} control")


BOTH = [saw("client", CLIENT), saw("server", SERVER, Grade.CLAIM)]


def prove(who: SpiffeId, sightings: list[Sighting], window: Window = WINDOW, **options: Any) -> Proof:
    options = {"how": "do so", **options}
    return identity(window, scenes.wiring(), CALL, scenes.to_server(CALL), who, sightings, EXPECTED, **options)


def test_each_end_is_known_at_the_grade_of_who_saw_it() -> None:
    client, server = prove(CLIENT, BOTH), prove(SERVER, BOTH, at_least=Grade.CLAIM)
    assert (client.result, client.grade, client.control) == (Result.HELD, Grade.PEER, "peer control")
    assert (server.result, server.grade, server.control) == (Result.HELD, Grade.CLAIM, "claim control")
    assert client.packets > 4


@pytest.mark.parametrize(
    ("who", "sightings", "options", "says"),
    [
        (CLIENT, [saw("client", CLIENT, Grade.CLAIM)], {}, "known at grade claim, asked for at least peer; do so"),
        (CLIENT, [], {}, "nobody saw the certificate of the client; do so"),
        (SERVER, [saw("client", CLIENT)], {}, "nobody saw the certificate of the server; do so"),
        (OTHER, [], {}, "nobody saw the certificate of the client or the server; do so"),
    ],
)
def test_what_nobody_saw_well_enough_cannot_be_told(
    who: SpiffeId, sightings: list[Sighting], options: dict[str, Any], says: str
) -> None:
    proof = prove(who, sightings, **options)
    assert (proof.result, proof.reason) == (Result.CANNOT_TELL, says)


@pytest.mark.parametrize(
    ("who", "of", "says"),
    [
        (OTHER, None, f"the client showed {CLIENT} and the server showed {SERVER}, not {OTHER} (grade peer)"),
        (OTHER, "server", f"the server showed {SERVER}, not {OTHER} (grade claim)"),
        (CLIENT, "server", f"the server showed {SERVER}, not {CLIENT} (grade claim)"),
    ],
)
def test_the_identity_of_somebody_else_fails_with_what_was_seen(who: SpiffeId, of: End | None, says: str) -> None:
    proof = prove(who, BOTH, of=of, at_least=Grade.CLAIM)
    assert (proof.result, proof.reason) == (Result.FAILED, says)


def test_one_wrong_sighting_outweighs_every_right_one() -> None:
    proof = prove(CLIENT, [saw("client", CLIENT), saw("client", "spiffe://x/ns/a/sa/b", Grade.CLAIM)])
    assert (proof.result, "the client showed spiffe://x/ns/a/sa/b" in proof.reason) == (Result.FAILED, True)


def test_a_held_identity_needs_a_control() -> None:
    assert prove(CLIENT, [replace(BOTH[0], control="")]).result is Result.CANNOT_TELL


@pytest.mark.parametrize("name", ["clear-on-15008", "scrambled-on-15008"])
def test_in_plaintext_nobody_has_shown_a_certificate_whatever_a_log_says(name: str) -> None:
    proof = prove(CLIENT, BOTH, scenes.window_of(scenes.as_pcapng(name)))
    assert (proof.result, "in plaintext nobody has shown a certificate" in proof.reason) == (Result.FAILED, True)


def test_a_client_whose_handshake_cannot_hold_a_certificate_has_shown_none() -> None:
    flows = tuple(flow._replace(no_certificate="too small") if flow.is_hbone else flow for flow in WINDOW.flows)
    proof = prove(CLIENT, BOTH, replace(WINDOW, flows=flows))
    assert (proof.result, proof.reason.endswith(": too small")) == (Result.FAILED, True)


def test_a_call_to_a_pod_out_of_the_mesh_shows_no_identity() -> None:
    call = scenes.call(scenes.play(scenes.SCENES["clean"]), 3)
    proof = identity(WINDOW, scenes.wiring(), call, scenes.to_plain(call), CLIENT, BOTH, EXPECTED)
    assert (proof.result, "shop/plain is not in the mesh" in proof.reason) == (Result.CANNOT_TELL, True)


def test_a_call_without_packets_has_shown_nothing() -> None:
    call = replace(CALL, started_ns=1, ended_ns=2)
    proof = identity(WINDOW, scenes.wiring(), call, scenes.to_server(call), CLIENT, BOTH, EXPECTED)
    assert (proof.result, proof.reason) == (Result.CANNOT_TELL, "no packet of the call was seen")
