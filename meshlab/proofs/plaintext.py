"""How many bytes passed in plaintext between pods of the mesh, on new connections and on older ones.

    first packet at a moment at which every mesh that may be in effect has enrolled both pods     in_plaintext
    first packet before                                                                           kept_plaintext

A mesh may keep what a pod had open before it was enrolled, so only the first number has to be 0. Of an older
connection between pods that are enrolled now, those bytes count that passed after the last change came into effect.

What counts is payload of TCP that is not TLS on 15008. A connection passes up to four links, and may be in plaintext on
some of them only: each direction counts once, by the link that carried the most of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from meshlab.model import Mesh
from meshlab.model.ambient import HBONE_PORT
from meshlab.model.report import Grade, Proof
from meshlab.proofs.draft import Draft
from meshlab.proofs.flows import Finding, Flow
from meshlab.proofs.links import Link
from meshlab.proofs.packets import TCP
from meshlab.proofs.window import Window

KIND = "in-plaintext"
_TOLD = 1000
"""Of so many flows a sentence is kept."""

MeshesAt = Callable[[int], Sequence[Mesh]]
"""The meshes that may have been in effect at a moment of CLOCK_REALTIME."""
_Direction = tuple[bytes, int, bytes, int]


@dataclass(frozen=True, slots=True)
class Plaintext:
    """What a window shows; bytes are of payload."""

    in_plaintext: int
    kept_plaintext: int
    leaks: tuple[str, ...]
    """A sentence for each direction of a connection that is in ``in_plaintext``."""
    kept: tuple[str, ...]
    """The same of ``kept_plaintext``."""
    packets: int
    """Packets on 15008 between enrolled pods that carried bytes, which are TLS."""
    unfollowed: Flow | None
    """A flow on 15008 of which bytes were not seen, so that nobody knows whether it is TLS."""
    stray: Finding | None
    """A canary of the lab in plaintext that came from, or went to, an address of no pod."""


@dataclass(slots=True)
class _Roll:
    """The pods of a mesh by their addresses."""

    enrolled: frozenset[bytes]
    others: frozenset[bytes]

    @classmethod
    def of(cls, mesh: Mesh) -> _Roll:
        sides: dict[bool, set[bytes]] = {True: set(), False: set()}
        for pod in mesh.pods:
            sides[mesh.is_enrolled(pod) or bool(pod.gateway)] |= {pod.ipv4.packed, pod.ipv6.packed}
        return cls(frozenset(sides[True]), frozenset(sides[False]))

    def both(self, flow: Flow | Finding) -> bool:
        return {flow.source, flow.destination} <= self.enrolled

    def strays(self, finding: Finding) -> bool:
        """Whether a canary in plaintext has an end that is no pod, and none that is a pod outside the mesh."""
        ends = {finding.source, finding.destination}
        return not ends & self.others and not ends <= self.enrolled


@dataclass(slots=True)
class _Rolls:
    """Who was enrolled when; each mesh is read once."""

    meshes_at: MeshesAt
    _known: dict[int, tuple[Mesh, _Roll]] = field(default_factory=dict)

    def at(self, time_ns: int) -> list[_Roll]:
        return [self.of(mesh) for mesh in self.meshes_at(time_ns)]

    def of(self, mesh: Mesh) -> _Roll:
        if id(mesh) not in self._known:
            self._known[id(mesh)] = mesh, _Roll.of(mesh)
        return self._known[id(mesh)][1]


@dataclass(slots=True)
class _Sum:
    """Bytes by direction of a connection, as each link saw them."""

    seen: dict[_Direction, dict[Link, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    words: dict[_Direction, str] = field(default_factory=dict)

    def add(self, flow: Flow, count: int) -> None:
        direction = flow.source, flow.source_port, flow.destination, flow.destination_port
        self.seen[direction][flow.link] += count
        self.words.setdefault(direction, f"{flow}{f': {flow.not_tls}' if flow.not_tls else ''}")

    def total(self) -> int:
        return sum(max(links.values()) for links in self.seen.values())

    def sentences(self) -> tuple[str, ...]:
        some = list(self.seen.items())[:_TOLD]
        return tuple(f"{max(links.values())} bytes in plaintext: {self.words[of]}" for of, links in some)


def plaintext(window: Window, meshes_at: MeshesAt, changed_ns: int, now: Mesh) -> Plaintext:
    """Count what passed in plaintext in ``window``.

    Args:
        changed_ns: when the last change of the mesh had come into effect.
        now: the mesh that is in effect at the end.
    """
    rolls = _Rolls(meshes_at)
    new, kept = _Sum(), _Sum()
    packets, unfollowed = 0, None
    for flow in window.flows:
        if flow.protocol != TCP:
            continue
        began_ns = window.began_ns(flow)
        is_new = bool(there := rolls.at(began_ns)) and all(roll.both(flow) for roll in there)
        if not is_new and not rolls.of(now).both(flow):
            continue
        if flow.is_hbone and not flow.not_tls:
            packets += len(flow.data)  # an empty ACK carries no TLS, and is no control
            unfollowed = unfollowed or (flow if flow.hole or not flow.from_birth else None)
        elif is_new and flow.payload_bytes:
            new.add(flow, flow.payload_bytes)
        elif later := sum(size for time_ns, size in flow.data if time_ns > changed_ns):
            kept.add(flow, later)
    return Plaintext(
        in_plaintext=new.total(),
        kept_plaintext=kept.total(),
        leaks=new.sentences(),
        kept=kept.sentences(),
        packets=packets,
        unfollowed=unfollowed,
        stray=next((one for one in window.findings if _is_stray(rolls.at(one.time_ns), one)), None),
    )


def prove(window: Window, found: Plaintext) -> Proof:
    """Prove that ``in_plaintext`` is 0: nothing was counted, and what shows that it would have been."""
    draft = Draft(KIND, "*", "*", HBONE_PORT, 4, Grade.WIRE, window.control, 0)
    return replace(_proof(draft, window, found), id=KIND)


def _proof(draft: Draft, window: Window, found: Plaintext) -> Proof:
    if found.leaks:
        return draft.failed(found.leaks[0])
    if found.stray:
        return draft.failed(str(found.stray))
    if window.exposed:
        return draft.failed(str(window.exposed[0]))
    if window.blind:
        return draft.cannot_tell(window.blind)
    if found.unfollowed:
        return draft.cannot_tell(f"bytes of {found.unfollowed} were not seen, so nobody knows whether they are TLS")
    if not found.packets:
        return draft.cannot_tell("no packet on 15008 between pods of the mesh was seen")
    kept = f"; older connections carried {found.kept_plaintext} bytes in plaintext" if found.kept_plaintext else ""
    return draft.held(found.packets, f"{found.packets} packets of TLS on 15008{kept}")


def _is_stray(rolls: Sequence[_Roll], finding: Finding) -> bool:
    return bool(rolls) and all(roll.strays(finding) for roll in rolls)
