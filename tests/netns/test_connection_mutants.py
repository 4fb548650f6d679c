"""Ztunnels that are wrong about open connections and refused configuration are seen by what any data plane is asked.

Each is caught here by what a test of ``test_dataplane_*.py`` asks.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest
import stream_players
from drawn_streams import CONNECTIONS, draw, wrong
from long_streams import (
    answer_after_a_hang_up,
    answer_after_the_clients_fin,
    calls_after_abandoned_downloads,
    is_denied_in_a_crowd,
    is_in_clear_after_a_pause,
)
from odd_planes import WITHOUT_A_SECOND_SENDING, WITHOUT_CONFIGURATION
from open_connections import (
    DENY_CLIENT,
    FIRST_WORDS,
    LAB,
    STRICT,
    is_cut_by_a_policy,
    is_cut_while_its_app_is_dialled,
    is_denied_after_a_version_was_refused,
    is_lifted_by_a_namesake,
    keeps_its_first_action,
    reaches_loopback,
    readiness,
    says_in_plaintext,
)

from meshlab.errors import AuditError
from meshlab.model import Outcome
from meshlab.testing.registry import MUTANTS

if TYPE_CHECKING:
    from meshlab.lab import Lab


def _admits_in_a_crowd(lab: Lab) -> bool:
    lab.apply(DENY_CLIENT)
    return not is_denied_in_a_crowd(lab)


def _gives_anothers_answer(lab: Lab) -> bool:
    return answer_after_a_hang_up(lab, "with a FIN", "shop/other") != b"own answer"


def _calls_an_undeclared_port(lab: Lab) -> bool:
    [service] = lab.mesh.services
    return lab.pod("shop/client").http(f"http://{service.ipv4}:8080/").answered


def _passes_strict(lab: Lab, words: bytes) -> bool:
    lab.apply(STRICT)
    return says_in_plaintext(lab, words)


CAUGHT: dict[str, Callable[[Lab], bool]] = {
    "never-cuts-open-connections": lambda lab: not is_cut_by_a_policy(lab, "shop/client"),
    "cuts-tunnels-only": lambda lab: not is_cut_by_a_policy(lab, "out/plain"),
    "admits-after-dialling": lambda lab: not is_cut_while_its_app_is_dialled(lab, "out/plain"),
    "drops-what-it-refuses": lambda lab: not is_denied_after_a_version_was_refused(lab),
    "ready-at-once": lambda lab: readiness(lab, "node-1") == 200,
    "leaks-after-a-pause": is_in_clear_after_a_pause,
    "cuts-slow-answers-after-a-fin": lambda lab: answer_after_the_clients_fin(lab, "shop/client") == [],
    "gives-a-late-answer-to-the-next": _gives_anothers_answer,
    "admits-when-busy": _admits_in_a_crowd,
    "keeps-the-window-of-abandoned-answers": lambda lab: set(calls_after_abandoned_downloads(lab)) == {Outcome.TIMEOUT},
    "opens-every-port-of-a-service": _calls_an_undeclared_port,
    "takes-any-tls-for-strict": lambda lab: _passes_strict(lab, FIRST_WORDS["TLS"]),
    "keeps-policies-by-name": is_lifted_by_a_namesake,
    "sees-changes-of-rules-only": keeps_its_first_action,
    "opens-loopback-to-the-mesh": lambda lab: reaches_loopback(lab, "shop/client", 6),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "drops-what-it-refuses": WITHOUT_A_SECOND_SENDING,
    "ready-at-once": WITHOUT_CONFIGURATION,
}
DRAWN = (
    "cuts-the-tunnel-with-the-stream",
    "gives-up-on-slow-readers",
    "retires-tunnels-in-use",
    "forgets-half-closed-connections",
    "discards-after-the-servers-fin",
    "asks-again-without-an-answer",
    "waits-for-the-client-to-speak",
    "stops-the-tunnel-for-a-slow-reader",
    "ends-with-the-policy-that-admitted",
)
"""Caught by a crowd of drawn connections."""
ELSEWHERE = {
    "replicas-share-a-tunnel",
    "delivers-twice",
    "ships-session-secrets",
    "mixes-up-bulk",
    "admits-at-ephemeral-ports",
    "keeps-one-port-of-a-service",
    "reads-four-values-of-a-list",
    "shows-certificates-to-everybody",
    "hands-out-its-session-keys",
    "takes-the-last-peer-for-this-one",
    "fails-open-when-busy",
    "hedges-its-requests",
    "carries-ipv6-over-ipv4",
    "pads-with-what-the-buffer-held",
}
"""Caught by ``check`` or ``fuzz``."""
LABS_AT_ONCE = 5
HERE = {"makes-keys-from-names", "forgets-policies-when-nothing-changes"}
BY_NOBODY = {"encrypts-with-a-zero-key"}
"""What it sends has the form of TLS, and only who has the keys of the session can tell that they were not used."""


def test_each_mutant_of_connections_has_its_test_here() -> None:
    rooms = (".mutants.connections:", ".mutants.unseen")
    made = {
        name
        for name, mutant in MUTANTS.items()
        if any(room in mutant.entry for room in rooms) and mutant.part == "ztunnel"
    }
    assert made == {*CAUGHT, *DRAWN, *ELSEWHERE, *HERE, *BY_NOBODY}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_mutant_is_caught(name: str, lab_factory: Callable[..., AbstractContextManager[Lab]]) -> None:
    with lab_factory(LAB, ztunnel="reference", mutant=name, **SETTINGS.get(name, {})) as lab:
        assert CAUGHT[name](lab)


def test_keys_that_follow_from_names_are_found_when_the_lab_closes(
    lab_factory: Callable[..., AbstractContextManager[Lab]],
) -> None:
    """One account has pods on both nodes."""
    with (
        pytest.raises(AuditError, match=r"one private key is that of spiffe://cluster\.local/ns/shop/sa/server at "),
        lab_factory(LAB, ztunnel="reference", mutant="makes-keys-from-names"),
    ):
        pass


def test_a_crowd_of_drawn_connections_catches_each_of_these(
    lab_factory: Callable[..., AbstractContextManager[Lab]],
) -> None:
    """Several labs at a time: mostly they wait."""
    scripts = draw(1, CONNECTIONS)

    def found(name: str) -> list[str]:
        with lab_factory(stream_players.LAB, ztunnel="reference", mutant=name) as lab:
            return wrong(scripts, stream_players.play(lab, scripts).seen)

    with ThreadPoolExecutor(LABS_AT_ONCE) as threads:
        faults = dict(zip(DRAWN, threads.map(found, DRAWN), strict=True))
    assert [name for name, of in faults.items() if not of] == []


def test_policies_that_are_forgotten_in_a_quiet_mesh_are_missed(
    lab_factory: Callable[..., AbstractContextManager[Lab]],
) -> None:
    with lab_factory(stream_players.LAB, ztunnel="reference", mutant="forgets-policies-when-nothing-changes") as lab:
        assert stream_players.play(lab, draw(1, 20)).denied.outcome is Outcome.OK
