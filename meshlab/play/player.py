"""Plays the steps of a file on a lab, one after the other, and says what was not as it should be.

    call              its verdict; later, with the window: nothing in plaintext, nobody taken for somebody else
    push              a resource that every node proxy has to refuse
    apply, delete ... what ``lab.apply`` and its like do
    connect, ask      a connection that stays open, and whether it still carries a question
    restart ...       a verb on an instance or a node
    traffic           steps during calls and open connections, and the three numbers

``traffic`` has a window of its own, so that of the other steps is closed before it, and another is opened behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

from meshlab.errors import ConnectionEndedError, DeadlineError, LabError, ProtocolError
from meshlab.lab import Lab
from meshlab.lab.calls.attempt import Request
from meshlab.lab.calls.background import Traffic
from meshlab.lab.calls.connections import OpenConnection
from meshlab.lab.calls.names import behind, due_of, resolve
from meshlab.lab.calls.requests import ask
from meshlab.lab.proving.arrivals import arrived
from meshlab.lab.proving.capture import Capture
from meshlab.model import (
    FAMILIES,
    AskStep,
    Call,
    CallStep,
    ChangeStep,
    ConnectStep,
    Family,
    Mesh,
    PolicyStep,
    PushStep,
    Step,
    TrafficStep,
    VerbStep,
    Verdict,
)
from meshlab.model.report import Grade, Result
from meshlab.play.faults import Wrong, fault, in_clear, is_tunnelled, miscounted, named, shaped
from meshlab.topology import after

_ANSWER_S = 3.0
"""How long a connection that is open may take to answer, or one that has to end may take to end."""
_QUESTION = b"still there?\n"
NUMBERS = ("failed_new", "broken_open", "in_plaintext")


@dataclass(slots=True)
class Player:
    """Plays steps on one lab. ``close`` ends what it holds open and gives what was wrong."""

    lab: Lab
    busy: frozenset[str] = frozenset()
    """The pods that call meanwhile, as traffic."""
    prove: bool = True
    """Also that nothing was in plaintext and that identities are the pods' own; else verdicts only."""
    numbers: dict[int, Traffic] = field(default_factory=dict)
    """What ``traffic`` came to, by the place of its step."""
    wrong: list[Wrong] = field(default_factory=list)
    doubt: str = ""
    """Why something could not be told; the last reason."""
    _leaks: list[Wrong] = field(default_factory=list)
    _mistaken: list[Wrong] = field(default_factory=list)
    _held: dict[str, OpenConnection] = field(default_factory=dict)
    _made: dict[int, tuple[int, Call]] = field(default_factory=dict)
    """Those of the open window: the place of the step, and the call."""
    _window: ExitStack | None = None
    _capture: Capture | None = None

    def play(self, place: int, step: Step) -> None:
        """Play the step at ``place``.

        Raises:
            LabError: a change or a verb did not come into effect.
        """
        match step:
            case CallStep():
                self._call(place, step)
            case PolicyStep():
                self.lab.transitions.edit(lambda mesh: after(replace(self.lab.topology, mesh=mesh), step), _CHANGE_S)
            case ChangeStep():
                getattr(self.lab, step.verb)(step.manifests)
            case PushStep():
                self._push(place, step)
            case ConnectStep():
                self._connect(place, step)
            case AskStep():
                self._ask(place, step)
            case VerbStep():
                self._verb(step)
            case TrafficStep():
                self._traffic(place, step)

    def close(self) -> tuple[list[Wrong], str]:
        """End what is held open; what was wrong, what could be read first, and what could not be told."""
        try:
            self._close_window()
        finally:
            for line in self._held.values():
                with suppress(LabError):
                    line.close()
        return [*self._leaks, *self.wrong, *self._mistaken], self.doubt

    # --- windows -----------------------------------------------------------------------------------------------------

    def open_window(self) -> None:
        """Begin to capture, where that is asked for and not done."""
        if self.prove and self._window is None:
            self._window = ExitStack()
            self._capture = self._window.enter_context(self.lab.capture())

    def _close_window(self) -> None:
        capture, made = self._capture, self._made
        if self._window is not None:
            window, self._window, self._capture, self._made = self._window, None, None, {}
            window.close()
        if capture is None:
            return
        tunnelled = [call for _, call in made.values() if is_tunnelled(capture.mesh_at(call), call)]
        leaked, unseen = in_clear(capture, tunnelled)
        self.doubt = self.doubt or unseen
        self._leaks += [replace(one, stage=made[one.number][0]) for one in leaked]
        answered = [call for call in tunnelled if call.answered and not leaked]  # in plaintext nobody has shown one
        for one in _mistaken(capture, answered):
            self._mistaken.append(replace(one, stage=made[one.number][0]))

    # --- steps -------------------------------------------------------------------------------------------------------

    def _call(self, place: int, step: CallStep) -> None:
        self.open_window()
        calls = self.lab.calls(list(_requests(self.lab, step)))
        self.wrong += [replace(one, stage=place) for one in _wrong(self.lab, step, calls, self.busy)]
        if not calls:
            self.doubt = f"nobody can be called at {step.to}: it has no address of that family, or nobody listens"
        self._made |= {call.number: (place, call) for call in calls}

    def _push(self, place: int, step: PushStep) -> None:
        if not self.lab.push_raw(step.type_name, step.name, step.body):
            text = f"{step.type_name} {step.name} should be refused, and every node proxy has accepted it"
            self.wrong.append(Wrong("accepted", text, stage=place))

    def _connect(self, place: int, step: ConnectStep) -> None:
        self.open_window()
        host, _, port = step.to.rpartition(":")
        line = self.lab.pod(step.source).connect(f"{host}:{port}", half_close=step.half_close, family=step.family)
        self._held[step.name] = line
        if line.closed_by:
            text = f"the connection '{step.name}' of {step.source} to {step.to} did not open: {line.closed_by}"
            self.wrong.append(Wrong("open", text, step.source, step.to, line.family, line.closed_by, stage=place))

    def _ask(self, place: int, step: AskStep) -> None:
        line = self._held[step.name]
        seen = _alive(line) if step.alive else _closed(line)
        if not seen:
            return
        what = f"the connection '{step.name}' of {line.source} to {line.to}"
        text = f"{what} should be alive, and is not: {seen}" if step.alive else f"{what} should be closed: {seen}"
        self.wrong.append(Wrong("open", text, line.source, line.to, line.family, seen, stage=place))

    def _verb(self, step: VerbStep) -> None:
        if step.verb == "reboot":
            self.lab.node(step.instance).reboot()
            return
        one = self.lab.instance(step.instance)
        verbs: Mapping[str, Callable[[], None]] = {
            "restart": one.restart,
            "kill": one.kill,
            "stop": one.stop,
            "pause": one.pause,
            "resume": one.resume,
            "upgrade": lambda: one.upgrade(to=step.to or None),
        }
        verbs[step.verb]()

    def _traffic(self, place: int, step: TrafficStep) -> None:
        self._close_window()
        busy = frozenset(source for source, _ in step.pairs)
        inner = Player(self.lab, busy=busy, prove=False, _held=self._held)
        with self.lab.traffic(list(step.pairs), rate=step.rate, open=step.open) as traffic:
            for each in step.during:
                inner.play(place, each)
        self.numbers[place] = traffic
        self.wrong += [replace(one, stage=place) for one in inner.wrong]
        self.doubt = self.doubt or inner.doubt
        for name in NUMBERS:
            expected, seen = getattr(step, name), getattr(traffic, name)
            if expected is not None and seen != expected:
                source, to = step.pairs[0]
                why = _reason(traffic, name)
                text = f"{name} should be {expected}, and is {seen}{f': {why}' if why else ''}"
                self.wrong.append(Wrong("traffic", text, source, to, 4, f"{name} {seen}", stage=place))


_CHANGE_S = 10.0


def _reason(traffic: Traffic, name: str) -> str:
    """The first thing that a number is made of, as a sentence."""
    found: Mapping[str, Sequence[object]] = {
        "failed_new": traffic.failures,
        "broken_open": traffic.broken,
        "in_plaintext": traffic.leaks,
    }
    return str(found[name][0]) if found[name] else ""


def _alive(line: OpenConnection) -> str:
    """Why the connection does not answer; empty where it does."""
    if not line.can_be_asked:
        return "" if line.alive else f"it was closed by {line.closed_by}"
    try:
        line.ask(_QUESTION, timeout_s=_ANSWER_S)
    except (ConnectionEndedError, DeadlineError, ProtocolError) as error:
        return str(error)
    return ""


def _closed(line: OpenConnection) -> str:
    """Why the connection counts as open; empty where it has ended, or ends now."""
    try:
        line.wait_closed(_ANSWER_S)
    except DeadlineError:
        return f"it is open after {_ANSWER_S:g} s"
    return ""


# --- calls -----------------------------------------------------------------------------------------------------------


def _mistaken(capture: Capture, calls: Sequence[Call]) -> Iterator[Wrong]:
    """Calls between pods of which one end was taken for somebody else."""
    for call in calls:
        mesh = capture.mesh_at(call)
        ends = [mesh.pod(key) for key in (call.source, call.peer.pod if call.peer else "") if key]
        for who in dict.fromkeys(pod.identity(mesh.trust_domain) for pod in ends):
            proof = capture.identity(call, who, at_least=Grade.CLAIM)
            if proof.result is Result.FAILED:
                text = f"{named(call)}: {proof.reason}"
                yield Wrong("identity", text, call.source, call.to, call.family, number=call.number)


def _families(lab: Lab, step: CallStep) -> Iterator[Family]:
    """Those in which ``step`` can be judged: its target has an address, and somebody listens there."""
    name = step.to.rpartition(":")[0]
    for family in (step.family,) if step.family else FAMILIES:
        addressed = "/" in name or any(s.address(family) for s in lab.mesh.services if s.key == name)
        places = {(pod.key, port, family) for pod, port in behind(lab.mesh, step.to)}
        if addressed and places.isdisjoint(lab.not_listening):
            yield family


def _requests(lab: Lab, step: CallStep) -> Iterator[Request]:
    pod, (name, _, port) = lab.mesh.pod(step.source), step.to.rpartition(":")
    for family in _families(lab, step):
        target = resolve(lab.mesh, pod, name, int(port), family)
        yield from [shaped(lab, ask(lab.mesh, pod.key, target), step.shape)] * step.times


def _wrong(lab: Lab, step: CallStep, calls: Sequence[Call], busy: frozenset[str]) -> list[Wrong]:
    allowed = step.expect is Verdict.ALLOW
    due = "answered" if allowed else "refused"
    arrivals = arrived(lab, [] if allowed else calls, calls, busy)
    found = [
        (call, told)
        for call in calls
        if (told := fault(lab.mesh, call, allowed=allowed, arrived=arrivals.get(call.number, "")))
    ]
    for family in FAMILIES if step.times > 1 and not found else ():
        alike = [call for call in calls if call.family == family]
        if alike and (told := miscounted(lab.mesh, alike)):
            found.append((alike[0], told))
    return [
        Wrong(
            kind="verdict",
            text=f"{named(call, step.shape)} should be {due}: {told}; {said(lab.mesh, call)}",
            source=call.source,
            to=call.to,
            family=call.family,
            seen=told,
            number=call.number,
            expect=step.expect,
            shape=step.shape,
        )
        for call, told in found
    ]


def said(mesh: Mesh, call: Call) -> str:
    """What the policies now in effect say of a call, as half a sentence."""
    told = due_of(mesh, call)
    if told.passage == "mixed":
        return f"the policies allow it at some pods only ({told.rule})"
    return f"the policies {told.passage} it ({told.rule})"
