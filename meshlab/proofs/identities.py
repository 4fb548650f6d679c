"""Who showed whom a certificate on a call's legs, and what that proves.

A sighting is what one end's proxy says of the other end's certificate. It counts only on a leg that carried mutual TLS:
on a leg in plaintext, or where the client's part of the handshake cannot hold a certificate, nobody has shown one,
whatever a log says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from meshlab.model import Call, Path, SpiffeId
from meshlab.model.report import Grade, Proof
from meshlab.proofs.draft import Draft
from meshlab.proofs.links import Wiring
from meshlab.proofs.route import hops, no_certificate, not_tls, passed, routes, unfollowed
from meshlab.proofs.window import Window

End = Literal["client", "server"]
ENDS: tuple[End, ...] = ("client", "server")
BEST_FIRST = (Grade.PEER, Grade.KEYS, Grade.CLAIM)
"""Grades of identities."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One end of a call, as the other end's proxy saw it."""

    end: End
    """Which end was seen."""
    identity: str
    """Whom its certificate named."""
    grade: Grade
    control: str
    """What shows that another identity would have been noticed, as a phrase."""


def identity(
    window: Window,
    wiring: Wiring,
    call: Call,
    paths: Sequence[Path],
    who: SpiffeId,
    sightings: Sequence[Sighting],
    expected: Mapping[End, frozenset[SpiffeId]],
    *,
    of: End | None = None,
    at_least: Grade = Grade.PEER,
    how: str = "",
) -> Proof:
    """One end of the call showed ``who`` to the other, known at this grade or a better one.

    Args:
        sightings: what the proxies at both ends saw.
        expected: the identities that each end should have. ``who`` is looked for at the ends that should have it.
        of: the end that is meant; either, if not given.
        how: how an identity could be had, or be had at a better grade.
    """
    meant = _meant(who, expected, of)
    judged = [one for one in sightings if one.end in meant]
    wrong = [one for one in judged if one.identity != str(who)]
    best = min(wrong or judged, key=lambda one: BEST_FIRST.index(one.grade), default=None)
    draft = Draft.of("identity", call, best.grade if best else Grade.CLAIM, best.control if best else "", 0)
    if plain := _in_plaintext(window, wiring, call, paths):
        return draft.failed(plain)
    if wrong:
        return draft.failed(f"{_seen(wrong)}, not {who} (grade {draft.grade})")
    if doubt := _doubt(window, wiring, call, paths):
        return draft.cannot_tell(doubt)
    hint = f"; {how}" if how else ""
    if best is None:
        return draft.cannot_tell(f"nobody saw the certificate of the {' or the '.join(meant)}{hint}")
    if BEST_FIRST.index(best.grade) > BEST_FIRST.index(at_least):
        return draft.cannot_tell(f"known at grade {best.grade}, asked for at least {at_least}{hint}")
    packets = sum(passed(window, hop, call) for hop in hops(routes(wiring, call, paths)))
    if not packets:
        return draft.cannot_tell("no packet of the call was seen")
    return draft.held(packets, f"{who}, grade {best.grade}")


def _meant(who: SpiffeId, expected: Mapping[End, frozenset[SpiffeId]], of: End | None) -> Sequence[End]:
    """The ends at which ``who`` should be; where it should be at none, every end that may be meant."""
    ends = (of,) if of else ENDS
    return tuple(end for end in ends if who in expected[end]) or ends


def _seen(sightings: Iterable[Sighting]) -> str:
    return " and ".join(dict.fromkeys(f"the {one.end} showed {one.identity}" for one in sightings))


def _in_plaintext(window: Window, wiring: Wiring, call: Call, paths: Sequence[Path]) -> str:
    """What shows that no certificate was shown; empty where nothing does."""
    for hop in hops(routes(wiring, call, paths)):
        if flow := not_tls(window, hop):
            return f"{flow}: {flow.not_tls}: in plaintext nobody has shown a certificate"
        if flow := no_certificate(window, hop):
            return f"{flow}: {flow.no_certificate}"
    return ""


def _doubt(window: Window, wiring: Wiring, call: Call, paths: Sequence[Path]) -> str:
    for hop in hops(routes(wiring, call, paths)):
        outside = [site.pod for site in (hop.source, hop.destination) if not site.enrolled]
        if outside:
            return f"{outside[0]} is not in the mesh: on its leg nobody shows a certificate"
        if flow := unfollowed(window, hop):
            return f"bytes of {flow} were not seen, so its TLS records cannot be followed"
    return ""
