"""Scripts for connections, drawn from a seed, and what must become of each. Pure: ``stream_players`` plays them.

    0 s ........ opens .... writes, silences, a FIN, a stop of reading ........ CHANGE_S .............. END_S
                                                                           a policy denies        everybody says
                                                                           some of them           a last piece and ends

What a right data plane does with a connection is what TCP does with it (RFC 9293): every byte that one end sends comes
to the other, once, in order, however slowly it is read and however long nobody says anything; an end (FIN) in one
direction ends that direction only, and comes behind all bytes; a reset ends both. A policy ends what it denies, in
whatever state it is, and nothing else.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from meshlab.model import FAMILIES, Family

CHANGE_S = 17.0
"""When the policies change. Until then nothing is configured, and the oldest connections are as old by then."""
END_S = 21.0
LATEST_S = 6.0
"""When the last connection opens."""
LASTS_S = 2.0
"""What is sent so long after the change must not come through a denied connection."""
LATE_S = 3.0
"""What is sent in small pieces, and read at once, comes sooner: others that are slow are no reason."""
FIRST_PORT = 7001
SERVICE_PORTS = 12
"""How many of the ports a service has as well."""
CONNECTIONS = 120
DENIED_SHARE = 0.4
_EVERY_S = 0.25
_WORD = 64
_BULK = 2 << 20

SOURCES = ("shop/client", "shop/client", "shop/other", "out/plain")
"""Most connections of one pod, so that many share a tunnel."""


@dataclass(frozen=True, slots=True)
class Half:
    """What one end does."""

    writes: tuple[tuple[float, int], ...]
    """When, in seconds of the run, and how many bytes."""
    unread: tuple[float, float]
    """From when to when it reads nothing."""
    fin_s: float
    """When it ends its side."""

    @property
    def size(self) -> int:
        return sum(size for _, size in self.writes)

    def sent_at(self, offset: int) -> float:
        """When the byte at that place of what it says is sent."""
        ends = accumulate(size for _, size in self.writes)
        return next(when for (when, _), end in zip(self.writes, ends, strict=True) if offset < end)

    @property
    def is_quick(self) -> bool:
        """It sends little at a time, and reads at once."""
        return max((size for _, size in self.writes), default=0) == _WORD and not any(self.unread)

    def sent_by(self, at_s: float) -> int:
        """How many bytes it has wanted to send until then."""
        return sum(size for when, size in self.writes if when <= at_s)


@dataclass(frozen=True, slots=True)
class Script:
    """One connection."""

    number: int
    source: str
    family: Family
    by_service: bool
    denied: bool
    """Whether the change denies it."""
    opens_s: float
    client: Half
    server: Half
    reset_s: float | None
    """When its client resets it."""

    @property
    def port(self) -> int:
        return FIRST_PORT + self.number

    def __str__(self) -> str:
        how = [f"{self.source} -> :{self.port} over IPv{self.family}", f"opens at {self.opens_s:.1f} s"]
        for name, half in (("client", self.client), ("server", self.server)):
            pause = f", reads nothing from {half.unread[0]:.1f} s to {half.unread[1]:.1f} s" if any(half.unread) else ""
            how.append(
                f"{name} writes {half.size} bytes in {len(half.writes)} pieces{pause}, ends at {half.fin_s:.1f} s"
            )
        if self.reset_s is not None:
            how.append(f"client resets at {self.reset_s:.1f} s")
        return "; ".join([*how, "denied by the change"] if self.denied else how)


@dataclass(slots=True)
class Seen:
    """What came to one end."""

    got: bytearray = field(default_factory=bytearray)
    end: str = ""
    """``fin``, ``reset``, or empty while it is open."""
    end_s: float = 0.0
    came: list[tuple[int, float]] = field(default_factory=list)
    """Of all that was read at once, the place of its first byte, and when."""
    more: int = 0
    """Of a server: connections that came beside its client's."""


def draw(seed: int, count: int) -> list[Script]:
    """So many connections; the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 (a script is to be had again, not kept secret)
    return [_script(chance, number) for number in range(count)]


def _script(chance: random.Random, number: int) -> Script:
    opens_s = chance.choice((0.0, 0.0, 0.0, chance.uniform(0.5, LATEST_S)))
    reset_s = chance.uniform(opens_s + 0.5, 9.0) if chance.random() < 0.1 else None
    by_service = number < SERVICE_PORTS
    halves = [_half(chance, opens_s), _half(chance, opens_s)]
    for one, other in ((0, 1), (1, 0)):
        halves[one] = _reading(chance, halves[one], halves[other])
    return Script(
        number=number,
        source=chance.choice(SOURCES[:3] if by_service else SOURCES),
        family=chance.choice(FAMILIES),
        by_service=by_service,
        denied=reset_s is None and chance.random() < DENIED_SHARE,
        opens_s=opens_s,
        client=halves[0],
        server=halves[1],
        reset_s=reset_s,
    )


def _half(chance: random.Random, opens_s: float) -> Half:
    """Chatter, silence between a first and a last word, one bulk, or not a word."""
    fin_s = chance.uniform(opens_s + 0.5, 9.0) if chance.random() < 0.3 else END_S
    first = opens_s + chance.choice((0.0, 0.2))
    kind = chance.choices(("chatter", "silence", "bulk", "mute"), (12, 8, 2, 2))[0]
    if kind == "chatter":
        writes = [(first + _EVERY_S * step, _WORD) for step in range(int((fin_s - first) / _EVERY_S))]
    elif kind == "silence":
        writes = [(first, _WORD)]
    elif kind == "bulk":
        writes = [(first, _WORD), (max(first, min(fin_s, chance.uniform(first, 5.0))), _BULK)]
    else:
        writes = []
    last = [(fin_s, _WORD)] if writes else []
    return Half((*writes, *last), (0.0, 0.0), fin_s)


def _reading(chance: random.Random, half: Half, other: Half) -> Half:
    """Some of those to whom much is sent do not read it for a while."""
    bulk = [when for when, size in other.writes if size == _BULK]
    if not bulk or chance.random() < 0.3:
        return half
    return Half(half.writes, (bulk[0], bulk[0] + chance.uniform(2.5, 4.5)), half.fin_s)


def content(script: Script, from_client: bool) -> bytes:
    """What one end says in all: of no two ends the same."""
    half = script.client if from_client else script.server
    return hashlib.shake_256(f"{script.number} {from_client}".encode()).digest(half.size)


def faults(script: Script, at_client: Seen, at_server: Seen) -> Iterator[str]:
    """What a right data plane would not have done with this connection, in words."""
    ends = (("client", at_client, script.client, script.server), ("server", at_server, script.server, script.client))
    for name, seen, own, half in ends:
        said, got = content(script, name == "server"), bytes(seen.got)
        if got != said[: len(got)]:
            yield f"the {name} got bytes that nobody sent to it"
        if half.is_quick and not any(own.unread) and (late := _lateness(half, seen)) > LATE_S:
            yield f"the {name} got something {late:.1f} s after it was sent"
        if seen.more:
            yield f"{seen.more} more connections came to the {name}"
        if not seen.end:
            yield f"the {name}'s side never ended"
        if script.denied:
            if len(got) > half.sent_by(CHANGE_S + LASTS_S):
                yield f"the {name} got what was sent more than {LASTS_S:g} s after the policy that denies it"
        elif script.reset_s is None:
            if len(got) < len(said):
                end = f"{seen.end or 'no more'} at {seen.end_s:.1f} s"
                yield f"the {name} got {len(got)} of {len(said)} bytes, then {end}"
            elif seen.end == "reset":
                yield f"the {name} got all, and then a reset in place of a FIN"


def _lateness(half: Half, seen: Seen) -> float:
    """By how much the latest of what was sent came later than it was sent."""
    return max((when - half.sent_at(offset) for offset, when in seen.came if offset < half.size), default=0.0)


def wrong(scripts: Sequence[Script], seen: Sequence[tuple[Seen, Seen]]) -> list[str]:
    """Every fault, with the story of its connection."""
    return [f"{fault}: {one}" for one, both in zip(scripts, seen, strict=True) for fault in faults(one, *both)]


def is_varied(scripts: Sequence[Script]) -> bool:
    """Whether a run of these shows what it is for: each kind of connection, denied and not."""
    wanted: list[Callable[[Script], bool]] = [
        lambda one: one.client.fin_s < CHANGE_S < one.server.fin_s,
        lambda one: one.server.fin_s < CHANGE_S < one.client.fin_s,
        lambda one: any(half.unread[1] - half.unread[0] > 2.5 for half in (one.client, one.server)),
        lambda one: any(b - a > 5 for half in (one.client, one.server) for (a, _), (b, _) in pairwise(half.writes)),
        lambda one: one.opens_s == 0 and one.client.fin_s == one.server.fin_s == END_S,
        lambda one: one.source == "out/plain",
        lambda one: one.by_service,
    ]
    return all({one.denied for one in scripts if is_so(one)} == {False, True} for is_so in wanted)
