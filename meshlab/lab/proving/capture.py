"""One window over a lab's captures, and what it proves. Proofs take calls; they raise where a claim does not hold.

    with lab.capture() as capture:
        allowed = client.http("http://server:8080/hello")
        denied = intruder.http("http://server:8080/hello")
    capture.prove_encrypted(allowed)
    capture.prove_denied(denied, twin=allowed)

Proofs, ``window``, ``packets`` and ``save`` may be asked for within the ``with`` too: they take what was captured until
then, and capturing goes on. The conclusions are drawn by ``proofs``; here is gathered what they need.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from meshlab.errors import CannotTellError, ProofFailedError, UsageError
from meshlab.lab.arguments import checks_arguments
from meshlab.lab.calls.names import due_of
from meshlab.lab.proving.arrivals import beyond, by_kernel, copies
from meshlab.lab.proving.identities import AccessLogs
from meshlab.lab.view import ViewForProofs
from meshlab.model import Call, Expected, Family, Mesh, Path, PodPort, SpiffeId, Verdict
from meshlab.model.report import Grade, Proof, Result
from meshlab.oracle.http import TIMED_OUT
from meshlab.proofs import verdicts
from meshlab.proofs.arrivals import Arrivals, Kernel
from meshlab.proofs.cohorts import Together, cohorts
from meshlab.proofs.denial import Twin, denied
from meshlab.proofs.identities import BEST_FIRST, ENDS, End, identity
from meshlab.proofs.links import Wiring
from meshlab.proofs.window import Window


@checks_arguments
class Capture:
    """See the module."""

    def __init__(self, lab: ViewForProofs) -> None:
        self._lab = lab
        self._window: Window | None = None
        self._logs = AccessLogs(lab)
        self._opened_ns = 0
        self._before: Kernel = {}
        """What the kernel had counted then at programs of pods' own."""
        self._calls: dict[int, Call] = {}
        """Those that were made within the window, by number."""
        self._due: dict[int, Expected] = {}
        """By number of a call: which mesh was in effect when it began does not change."""
        self._cohorts: Mapping[int, Together] | None = None
        self._arrivals: Arrivals | None = None
        self._copied: dict[int, list[PodPort]] = {}
        self.proofs: list[Proof] = []
        """Every proof that was asked for, in order."""

    def open(self) -> None:
        """Begin.

        Raises:
            UsageError: a capture of this lab is open already.
        """
        self._lab.captures.open_window()
        self._logs.begin()
        self._before = by_kernel(self._lab.site, self._lab.mesh)
        self._opened_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)

    def saw(self, calls: Sequence[Call]) -> None:
        """Take note of calls that were made in the window."""
        self._calls.update((call.number, call) for call in calls)
        self._cohorts = self._arrivals = None
        self._logs.follow()

    def close(self) -> None:
        if self._window is None:
            self._window = self._lab.captures.close_window()

    @property
    def window(self) -> Window:
        """What was seen; within the ``with``, what was seen until now: then it is gathered anew each time."""
        return self._window or self._lab.captures.look()

    @property
    def mesh(self) -> Mesh:
        """Whose traffic is captured, with the policies now in effect."""
        return self._lab.mesh

    @property
    def wiring(self) -> Wiring:
        """Which link is whose now; links that have gone meanwhile are in it, too."""
        return self._lab.captures.wiring()

    def _wiring(self, call: Call) -> Wiring:
        """Which link was whose when ``call`` began: a pod may have gone since, or another have its address."""
        return self._lab.captures.wiring(call.started_ns)

    def mesh_at(self, call: Call) -> Mesh:
        """The mesh that was in effect when ``call`` began: the one before, where it was just about to change."""
        return self._mesh_at(call)

    def _mesh_at(self, call: Call) -> Mesh:
        meshes = self._lab.history.between(call.started_ns, call.started_ns)
        return meshes[0] if meshes else self._lab.mesh

    # --- proofs ------------------------------------------------------------------------------------------------------

    def prove_encrypted(self, *calls: Call) -> list[Proof]:
        """No byte of these calls in plaintext on any link, and their packets, TLS on 15008, between the two pods.

        Raises:
            ProofFailedError: something was in plaintext.
            CannotTellError: it could not have been seen.
            UsageError: no call was given.
        """
        __tracebackhide__ = True
        return self._hold(self.encrypted(calls))

    def prove_denied(self, call: Call, twin: Call | None = None) -> Proof:
        """Nothing of ``call`` reached a server; ``twin``, allowed to the same place, shows that it could have.

        Raises:
            ProofFailedError: a connection or bytes arrived, or it was answered.
            CannotTellError: nothing shows that they could have.
        """
        __tracebackhide__ = True
        return self._hold([self.denied(call, twin)])[0]

    def prove_path(self, call: Call) -> Proof:
        """The call's packets on each link between the two pods, on 15008 where both are in the mesh."""
        __tracebackhide__ = True
        return self._hold([self.path(call)])[0]

    def prove_identity(self, call: Call, who: SpiffeId, at_least: Grade = Grade.PEER, of: End | None = None) -> Proof:
        """One end of the call showed ``who`` to the other: the caller's identity, or that of the pod it called.

        Args:
            of: ``client`` or ``server``, where only that end is meant.

        Raises:
            ProofFailedError: another identity was seen, or the leg carried no certificate.
            CannotTellError: nobody saw one at this grade; the message says how it could be had.
        """
        __tracebackhide__ = True
        return self._hold([self.identity(call, who, at_least, of)])[0]

    def encrypted(self, calls: Iterable[Call]) -> list[Proof]:
        """As ``prove_encrypted``, as values.

        Raises:
            UsageError: no call was given.
        """
        asked = _some(calls, "encrypted")
        window = self.window
        return [
            verdicts.encrypted(window, self._wiring(call), call, self._paths_of(call), self._together(call))
            for call in asked
        ]

    def denied(self, call: Call, twin: Call | None = None, instead: str = "") -> Proof:
        """As ``prove_denied``, as a value; ``instead`` names the control where there can be no twin.

        Of a Service only the endpoints are looked at that the policies in effect deny to the caller, if there are some:
        at the others its bytes may arrive.
        """
        return denied(
            self.window,
            self._wiring(call),
            call,
            self._denying(call),
            self._counted(call),
            twin=Twin(twin, self._paths_of(twin)) if twin else None,
            instead=instead,
            calls=list(self._calls.values()),
            statuses=self._due_of(call).statuses,
            late={one.number: late for one in self._calls.values() if (late := self._late(one))},
            copied=self._where_copies_go(),
        )

    def received(self) -> Mapping[int, Mapping[str, int]]:
        """Number of a call of this window -> pod -> how many connections brought its canary there, by the echoes."""
        return self._counted(None).received

    def beyond(self) -> dict[int, str]:
        """Number of a call of this window -> a connection at a server beyond those that the calls made, in words."""
        return beyond(self._lab.mesh, self.wiring, self._counted(None), list(self._calls.values()))

    def path(self, call: Call) -> Proof:
        """As ``prove_path``, as a value."""
        return verdicts.path(self.window, self._wiring(call), call, self._paths_of(call), self._together(call))

    def identity(self, call: Call, who: SpiffeId, at_least: Grade = Grade.PEER, of: End | None = None) -> Proof:
        """As ``prove_identity``, as a value.

        Raises:
            UsageError: ``of`` is no end of a call.
        """
        if of is not None and of not in ENDS:
            raise UsageError(f"of={of!r} is no end of a call ({', '.join(ENDS)})")
        window, paths = self.window, self._paths_of(call)
        return identity(
            window,
            self._wiring(call),
            call,
            paths,
            who,
            self._logs.sightings(call, paths),
            self._logs.expected(call, paths),
            of=of,
            at_least=at_least,
            how=self._logs.how(),
        )

    def best_identity(self, call: Call) -> Proof:
        """The identity of the call's end that was seen at the best grade; of the caller's, where both are alike."""
        paths = self._paths_of(call)
        seen = sorted(self._logs.sightings(call, paths), key=lambda one: (BEST_FIRST.index(one.grade), one.end))
        end = seen[0].end if seen else "client"
        who = sorted(self._logs.expected(call, paths)[end], key=str)
        return self.identity(call, who[0], at_least=Grade.CLAIM, of=end)

    def nothing_in_clear(self, calls: Sequence[Call]) -> list[Proof]:
        """Between enrolled pods nothing but TCP 15008, carrying TLS: a proof for each link and family.

        The links are those that ``calls``, which are between enrolled pods, should have crossed, and those on which
        anything speaks against it.

        Raises:
            UsageError: no call was given.
        """
        asked, window = _some(calls, "nothing in plaintext"), self.window
        proofs: list[Proof] = []
        spans = self._lab.captures.wirings()
        first_ns = spans[0][0]
        for since_ns, until_ns, wiring in spans:
            by_family: dict[Family, list[Call]] = {}
            for call in asked:
                if since_ns <= max(call.started_ns, first_ns) < until_ns:
                    by_family.setdefault(call.family, []).append(call)
            for family, some in sorted(by_family.items()):
                reached = [(call, self._paths_of(call)) for call in some]
                proofs += [
                    verdicts.nothing_in_clear(window, wiring, link, family, some, until_ns)
                    for link in verdicts.links_to_prove(window, wiring, family, reached, until_ns)
                ]
        return proofs

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

    def save(self, path: pathlib.Path) -> pathlib.Path:
        """Write the window as pcapng, with the pods' names as interface names."""
        from meshlab.proofs.pcapng import write

        wiring = self.wiring
        frames = ((wiring.link(*link), out, at, frame) for link, out, at, frame in self.window.frames())
        path.write_bytes(b"".join(write(sorted(wiring.links.values()), frames)))
        return path

    def due(self, call: Call) -> Expected:
        """What the policies of its time say of a call, with the paths that it may have taken."""
        return self._due_of(call)

    def paths(self, call: Call) -> tuple[Path, ...]:
        """The paths that a call may have taken."""
        return self._paths_of(call)

    def _due_of(self, call: Call) -> Expected:
        """As ``due``, without looking at the argument, which proofs do thousands of times."""
        if (known := self._due.get(call.number)) is None:
            known = self._due[call.number] = due_of(self._mesh_at(call), call)
        return known

    def _paths_of(self, call: Call) -> tuple[Path, ...]:
        return self._due_of(call).paths

    def _late(self, call: Call) -> frozenset[PodPort]:
        """The servers of which one may have got the request of ``call``, and answered too late."""
        if call.status != TIMED_OUT or call.peer is not None:
            return frozenset()
        return frozenset(way.path.server for way in self._due_of(call).ways if not way.kept_from)

    def _denying(self, call: Call) -> tuple[Path, ...]:
        """Of the paths of ``call``, those on which the policies in effect deny it; all, where none does."""
        told = self._due_of(call)
        denied = [way for way in told.ways if way.verdict is Verdict.DENY and not way.too_late]
        return tuple(path for way in denied for path in way.kept_from or (way.path,)) or told.paths

    def _counted(self, call: Call | None) -> Arrivals:
        """What the servers have counted since the window opened; while it is open, they are asked each time."""
        others = [call] if call is not None and call.number not in self._calls else []
        if self._arrivals is None or self._window is None or others:
            self._arrivals = self._lab.arrivals([*self._calls.values(), *others], self._opened_ns, self._before)
        return self._arrivals

    def _where_copies_go(self) -> Mapping[int, Sequence[PodPort]]:
        for call in self._calls.values():
            if call.number not in self._copied:
                self._copied[call.number] = copies(self._mesh_at(call), call)
        return self._copied

    def _together(self, call: Call) -> Together | None:
        if self._cohorts is None:
            taken = ((one, self._taken(one)) for one in self._calls.values())
            read = {one.number for one in self._calls.values() if self._due_of(one).is_read}
            self._cohorts = cohorts(((one, path) for one, path in taken if path is not None), read)
        return self._cohorts.get(call.number)

    def _taken(self, call: Call) -> Path | None:
        """The path that a call took or tried; ``None`` where it may be one of several."""
        paths = tuple(dict.fromkeys(self._paths_of(call)))
        if call.peer is not None:
            paths = tuple(path for path in paths if path.server.pod == call.peer.pod)
        return paths[0] if len(paths) == 1 else None

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


def _some(calls: Iterable[Call], what: str) -> list[Call]:
    asked = list(calls)
    if not asked:
        raise UsageError(f"{what}: of no call nothing can be proven; give at least one")
    return asked
