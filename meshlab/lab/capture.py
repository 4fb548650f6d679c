"""One window over a lab's captures, and what it proves. Proofs take calls; they raise where a claim does not hold.

    with lab.capture() as capture:
        allowed = client.http("http://server:8080/hello")
        denied = intruder.http("http://server:8080/hello")
    capture.prove_encrypted(allowed)
    capture.prove_denied(denied, twin=allowed)

The conclusions are drawn by ``proofs``; here is gathered what they need.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshlab.errors import CannotTellError, ProofFailedError, UsageError
from meshlab.lab.arguments import checks_arguments
from meshlab.lab.identities import AccessLogs, Sighting
from meshlab.lab.names import behind
from meshlab.model import Call, Mesh, SpiffeId
from meshlab.model.report import Grade, Proof, Result
from meshlab.proofs import verdicts
from meshlab.proofs.links import FABRIC, Wiring
from meshlab.proofs.route import Target
from meshlab.proofs.window import Window

if TYPE_CHECKING:
    from meshlab.lab.lab import Lab

_ORDER = (Grade.PEER, Grade.KEYS, Grade.CLAIM)
"""Grades of identities, best first."""


@checks_arguments
class Capture:
    """See the module."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._window: Window | None = None
        self._logs = AccessLogs(lab)
        self.proofs: list[Proof] = []
        """Every proof that was asked for, in order."""

    def open(self) -> None:
        self._lab.captures.open_window()

    def close(self) -> None:
        if self._window is None:
            self._window = self._lab.captures.close_window()

    @property
    def window(self) -> Window:
        """What was seen. Asked for within the window, this is its end."""
        self.close()
        assert self._window is not None
        return self._window

    @property
    def mesh(self) -> Mesh:
        """Whose traffic is captured, with the policies now in effect."""
        return self._lab.mesh

    @property
    def wiring(self) -> Wiring:
        return self._lab.captures.wiring()

    # --- proofs ------------------------------------------------------------------------------------------------------

    def prove_encrypted(self, *calls: Call) -> list[Proof]:
        """No byte of these calls in clear on any link, and their packets, TLS records on 15008, between the two pods.

        Raises:
            ProofFailedError: something was in clear.
            CannotTellError: it could not have been seen.
        """
        __tracebackhide__ = True
        return self._hold(self.encrypted(calls))

    def prove_denied(self, call: Call, twin: Call | None = None) -> Proof:
        """No byte of ``call`` at the server; ``twin``, allowed to the same place, shows that one could have arrived.

        Raises:
            ProofFailedError: bytes arrived, or it was answered.
            CannotTellError: nothing shows that they could have.
        """
        __tracebackhide__ = True
        return self._hold([self.denied(call, twin)])[0]

    def prove_path(self, call: Call) -> Proof:
        """The call's packets on each link between the two pods, on 15008 where both are in the mesh."""
        __tracebackhide__ = True
        return self._hold([self.path(call)])[0]

    def prove_identity(self, call: Call, who: SpiffeId, at_least: Grade = Grade.PEER) -> Proof:
        """One end of the call showed ``who`` to the other: the caller's identity, or that of the pod it called.

        Raises:
            ProofFailedError: another identity was seen.
            CannotTellError: nobody saw one at this grade; the message says how it could be had.
        """
        __tracebackhide__ = True
        return self._hold([self.identity(call, who, at_least)])[0]

    def encrypted(self, calls: Iterable[Call]) -> list[Proof]:
        """As ``prove_encrypted``, as values."""
        window, wiring = self.window, self.wiring
        return [verdicts.encrypted(window, wiring, call, self.targets(call)) for call in calls]

    def denied(self, call: Call, twin: Call | None = None, instead: str = "") -> Proof:
        """As ``prove_denied``, as a value; ``instead`` names the control where there can be no twin."""
        calls = [call] if twin is None else [call, twin]
        received = self._received(calls)
        return verdicts.denied(self.window, self.wiring, call, self.targets(call), received, twin=twin, instead=instead)

    def path(self, call: Call) -> Proof:
        """As ``prove_path``, as a value."""
        return verdicts.path(self.window, self.wiring, call, self.targets(call))

    def identity(self, call: Call, who: SpiffeId, at_least: Grade = Grade.PEER) -> Proof:
        """As ``prove_identity``, as a value."""
        found = _best(self._logs.sightings(call, self.targets(call)), who)
        packets = verdicts.tunnel_packets(self.window, self.wiring, call, self.targets(call))
        return verdicts.identity(
            call,
            who,
            found.identity if found else None,
            found.grade if found else Grade.CLAIM,
            packets=packets,
            control=found.control if found else "",
            at_least=at_least,
            how="put a reference ztunnel at one end: nodes: [node-1, {name: node-2, ztunnel: reference}]",
        )

    def best_identity(self, call: Call) -> Proof:
        """The identity of the call's end that was seen at the best grade; of the caller's, where both are alike."""
        seen = self._logs.sightings(call, self.targets(call))
        mesh = self._lab.mesh
        caller = mesh.pod(call.source).identity(mesh.trust_domain)
        about = sorted(seen, key=lambda sighting: (_ORDER.index(sighting.grade), sighting.about != caller))
        return self.identity(call, about[0].about if about else caller, at_least=Grade.CLAIM)

    def nothing_in_clear(self, calls: Sequence[Call]) -> list[Proof]:
        """Of each node's fabric link and family: between enrolled pods nothing but TCP 15008, carrying TLS."""
        window, wiring = self.window, self.wiring
        links = sorted(link for link in wiring.links.values() if link.name == FABRIC)
        families = sorted({call.family for call in calls})
        return [
            verdicts.nothing_in_clear(window, wiring, link, family, [c for c in calls if c.family == family])
            for link in links
            for family in families
        ]

    # --- looking -----------------------------------------------------------------------------------------------------

    def packets(self) -> Iterator[Any]:
        """Every packet as scapy knows it, beacons left out; ``packet.sniffed_on`` is ``node:namespace/pod``.

        Raises:
            UsageError: scapy is not installed.
        """
        try:
            import scapy.layers.inet6  # noqa: F401 - with it Ether knows IP and what is in it
            from scapy.layers.l2 import Ether
        except ImportError:
            raise UsageError("scapy is not installed: pip install 'meshlab[scapy]'") from None
        wiring = self.wiring
        for (ring, ifindex), _, time_ns, frame in self.window.frames():
            packet = Ether(frame)
            packet.time = time_ns / 1e9
            packet.sniffed_on = str(wiring.link(ring, ifindex))
            yield packet

    def save(self, path: Path) -> Path:
        """Write the window as pcapng, with the pods' names as interface names."""
        from meshlab.proofs.pcapng import write

        wiring = self.wiring
        frames = ((wiring.link(*link), out, at, frame) for link, out, at, frame in self.window.frames())
        path.write_bytes(b"".join(write(sorted(wiring.links.values()), frames)))
        return path

    def targets(self, call: Call) -> list[Target]:
        """The pods that a call may have reached."""
        return [Target(pod.key, port) for pod, port in behind(self._lab.mesh, call.to)]

    def _received(self, calls: Sequence[Call]) -> Mapping[int, int] | None:
        if not all(self._lab.is_echo(call.to) for call in calls):
            return None
        bytes_of = {call.number: len(call.canary) for call in calls}
        return {number: bytes_of[number] if got else 0 for number, got in self._lab.received(calls).items()}

    def _hold(self, proofs: list[Proof]) -> list[Proof]:
        __tracebackhide__ = True  # pytest points at the line of the test
        self.proofs += proofs
        for proof in proofs:
            if proof.result is Result.FAILED:
                raise ProofFailedError(f"{proof.id}: {proof.reason}")
        for proof in proofs:
            if proof.result is not Result.HELD:
                raise CannotTellError(f"{proof.id}: {proof.reason}")
        return proofs


def _best(seen: Sequence[Sighting], who: SpiffeId) -> Sighting | None:
    """A sighting that contradicts ``who`` beats all; else the best grade of those that are about the same end."""
    about = [sighting for sighting in seen if sighting.about == who]
    wrong = [sighting for sighting in about if sighting.identity != str(who)]
    return min(wrong or about, key=lambda sighting: _ORDER.index(sighting.grade), default=None)
