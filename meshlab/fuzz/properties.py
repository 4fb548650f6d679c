"""What must hold of a live lab, whatever its policies: for tests, and what ``meshlab fuzz`` runs.

    verdict_equals_oracle(lab)             every call ends as the policies in effect say
    nothing_in_clear(capture, calls)       of calls between enrolled pods no byte, on no link
    identity_is_owned(lab)                 who a proxy saw at an address is whose address it is
    never_the_old_policy(lab, mesh)        after ``replace`` returned, no call is judged as before

Each raises ``ProofFailedError``, an ``AssertionError``, that names the call, what it came to and the deciding rule.
The functions whose names say what they give (``wrong_verdicts`` ...) are the same as values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from meshlab.errors import CannotTellError, ProofFailedError
from meshlab.fuzz.choose import Candidate, Chosen, candidates, choose
from meshlab.lab import Lab
from meshlab.lab.calls.attempt import Request
from meshlab.lab.calls.names import Target
from meshlab.lab.calls.requests import ask
from meshlab.lab.proving.arrivals import arrived
from meshlab.lab.proving.capture import Capture
from meshlab.model import Call, CallShape, InstanceId, Mesh, Pod
from meshlab.play.faults import Wrong, fault, in_clear, is_tunnelled, miscounted, named, shaped
from meshlab.proofs.access_log import Opened, read_opened

_PLAIN = CallShape()
_RECORDS = 400
"""Lines of each proxy's log that are read, from its end: its log is kept in part only, and reading costs."""


def verdict_equals_oracle(lab: Lab, most: int = 48) -> list[Call]:
    """Make calls that split what the policies in effect say; every one must end as the oracle decides.

    Raises:
        ProofFailedError: some did not; each with its deciding rule.
    """
    __tracebackhide__ = True
    chosen = choose(lab.mesh, candidates(lab.mesh, lab.not_listening), most=most)
    made = make(lab, chosen)
    _hold(wrong_verdicts(lab, chosen, made))
    return made


def nothing_in_clear(capture: Capture, calls: Sequence[Call]) -> None:
    """Of those ``calls`` that are between enrolled pods no byte was in clear on any link.

    Raises:
        ProofFailedError: there was one.
        CannotTellError: it could not have been seen, or none of the calls is between enrolled pods.
    """
    __tracebackhide__ = True
    tunnelled = [call for call in calls if is_tunnelled(capture.mesh, call)]
    if not tunnelled:
        raise CannotTellError(f"none of {len(calls)} calls is between enrolled pods")
    wrong, doubt = in_clear(capture, tunnelled)
    _hold(wrong)
    if doubt:
        raise CannotTellError(doubt)


def identity_is_owned(lab: Lab) -> int:
    """How many identities the proxies' last log lines name; each is that of the pod at its address.

    Raises:
        ProofFailedError: one is another's.
    """
    __tracebackhide__ = True
    checked, wrong = wrong_identities(lab)
    _hold(wrong)
    return checked


def never_the_old_policy(lab: Lab, policies: Mesh, most: int = 48) -> list[Call]:
    """Put ``policies`` in place of those in effect; the calls that this turns are judged by the new ones at once.

    Raises:
        ProofFailedError: one was not.
    """
    __tracebackhide__ = True
    before = lab.mesh
    lab.replace(policies)
    chosen = choose(lab.mesh, candidates(lab.mesh, lab.not_listening), most=most, before=before)
    made = make(lab, chosen)
    _hold(wrong_verdicts(lab, chosen, made))
    return made


# --- as values -------------------------------------------------------------------------------------------------------


def make(lab: Lab, chosen: Sequence[Chosen]) -> list[Call]:
    """Make the calls, all at once."""
    return lab.calls([_request(lab, one.call, one.shape) for one in chosen])


def _request(lab: Lab, call: Candidate, shape: CallShape) -> Request:
    plain = ask(lab.mesh, call.source.key, Target(call.to, call.address, call.dialled_port, call.family))
    return plain if shape == _PLAIN else shaped(lab, plain, shape)


def wrong_verdicts(lab: Lab, chosen: Sequence[Chosen], made: Sequence[Call]) -> list[Wrong]:
    """The calls that did not end as the oracle decides, or whose bytes arrived although they were denied."""
    denied = [call for one, call in zip(chosen, made, strict=True) if not one.decision.allowed]
    arrivals = arrived(lab, denied, made)
    found = [
        (one, call, told)
        for one, call in zip(chosen, made, strict=True)
        if (told := fault(lab.mesh, call, allowed=one.decision.allowed, arrived=arrivals.get(call.number, "")))
    ]
    for one, calls in () if found else _repeated(chosen, made):
        if told := miscounted(lab.mesh, calls):
            found.append((one, calls[0], told))
    return [
        Wrong(
            kind="verdict",
            text=f"{named(call, one.shape)}: {told}; the policies {one.decision.verdict} it ({one.decision.rule})",
            source=call.source,
            to=call.to,
            family=call.family,
            seen=told,
            number=call.number,
            expect=one.decision.verdict,
            shape=one.shape,
        )
        for one, call, told in found
    ]


def _repeated(chosen: Sequence[Chosen], made: Sequence[Call]) -> Iterator[tuple[Chosen, list[Call]]]:
    """Calls that were made more than once, because what comes of them is shared among outcomes."""
    for one, group in groupby(zip(chosen, made, strict=True), key=lambda pair: pair[0]):
        calls = [call for _, call in group]
        if len(calls) > 1:
            yield one, calls


def wrong_identities(lab: Lab) -> tuple[int, list[Wrong]]:
    """How many identities were looked at, and those that are not the pod's at the address."""
    owners = {str(address): pod for pod in lab.mesh.pods for address in (pod.ipv4, pod.ipv6)}
    checked, wrong = 0, []
    for node in lab.implementations:
        for sighting in _sightings(lab, node, owners):
            checked += 1
            right = str(sighting.pod.identity(lab.mesh.trust_domain))
            if sighting.identity != right:
                wrong.append(_mistaken(node, sighting, right))
    return checked, wrong


@dataclass(frozen=True, slots=True)
class _Sighting:
    """Whom a proxy took a pod for, as a record of its log says."""

    pod: Pod
    other: Pod
    """The pod at the other end."""
    record: Opened

    @property
    def inbound(self) -> bool:
        """Whether the record is of the destination's proxy, which sees the source's certificate."""
        return self.record.direction == "inbound"

    @property
    def identity(self) -> str:
        return self.record.source_identity if self.inbound else self.record.destination_identity


def _mistaken(node: str, sighting: _Sighting, right: str) -> Wrong:
    pod, record = sighting.pod, sighting.record
    source, destination = (pod, sighting.other) if sighting.inbound else (sighting.other, pod)
    return Wrong(
        kind="identity",
        text=f"{InstanceId('ztunnel', node)} took {pod.key} for {sighting.identity}, which is {right}",
        source=source.key,
        to=f"{destination.key}:{record.destination_port}",
        family=6 if record.hbone.startswith("[") else 4,
        seen=f"{'src' if sighting.inbound else 'dst'}.identity",
    )


def _sightings(lab: Lab, node: str, owners: dict[str, Pod]) -> Iterator[_Sighting]:
    newest = lab.site.programs.newest(InstanceId("ztunnel", node))
    if newest is None:
        return
    program = newest.name
    lines = lab.logs(program).rsplit("\n", _RECORDS)[1:]
    for record in read_opened("\n".join(lines)):
        source, destination = owners.get(record.source), owners.get(record.destination)
        if source is not None and destination is not None:
            ends = (source, destination) if record.direction == "inbound" else (destination, source)
            sighting = _Sighting(*ends, record)
            if sighting.identity:
                yield sighting


def _hold(wrong: Sequence[Wrong]) -> None:
    __tracebackhide__ = True
    if wrong:
        raise ProofFailedError("\n".join(one.text for one in wrong))
