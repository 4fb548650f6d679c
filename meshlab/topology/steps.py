"""``spec.steps``: calls with what should come of them, and what happens between them, in order.

steps:
  - {call: {from: shop/client, to: "shop/server:8080"}, expect: allow}
  - replace: [{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, ...}]    # or apply, or delete; any kind
  - {call: {from: shop/client, to: "shop/server:8080", family: 6, kind: tcp, mode: half-close}, expect: deny}
  - {connect: {from: shop/client, to: "shop/server:8080", as: session}}
  - {push: {type: istio.security.Authorization, name: shop/mangled, body: ////}}    # has to be refused
  - {restart: ztunnel@node-1}                                # or kill, stop, pause, resume
  - {upgrade: {ztunnel@node-2: reference}}
  - {reboot: node-1}
  - {ask: session, expect: closed}
  - traffic: {pairs: [[shop/client, "http://server:8080/"]], rate: 50, open: 5, during: [{restart: agent@node-1}]}
    expect: {failed_new: 0, broken_open: 0, in_plaintext: 0}

Each change is tried on the mesh that the steps before it leave, so that what is wrong with it is an error of the file,
and a pod that came by a step can be called by the next.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast, get_args

from meshlab.model import (
    FAMILIES,
    AskStep,
    CallShape,
    CallStep,
    ChangeStep,
    ConnectStep,
    Expectation,
    Family,
    InstanceId,
    Mesh,
    PolicyStep,
    PushStep,
    Role,
    Step,
    Topology,
    TrafficStep,
    Verb,
    VerbStep,
    Verdict,
)
from meshlab.topology import changes
from meshlab.topology.assembly import merged
from meshlab.topology.check import check_below
from meshlab.topology.expect import Ends, faults
from meshlab.topology.gathered import expanded
from meshlab.topology.nodes import Map, Scalar, Sequence
from meshlab.topology.notes import Notes, did_you_mean, listed, shown
from meshlab.topology.writing import plain, write

_CHANGES = ("apply", "replace", "delete")
_ON_AN_INSTANCE = tuple(verb for verb in get_args(Verb) if verb not in ("upgrade", "reboot"))
_VERBS = ("call", *_CHANGES, "push", "connect", "ask", *_ON_AN_INSTANCE, "upgrade", "reboot", "traffic")
_EXPECTING: Mapping[str, tuple[str, ...]] = {"call": ("allow", "deny"), "ask": ("alive", "closed"), "traffic": ()}
_POLICIES = ("AuthorizationPolicy", "PeerAuthentication")
MOST_WORK = 500_000
"""Changes of a file, each times the pods that are there then: a few bytes can ask for many of both."""
TRAFFIC_NUMBERS = ("failed_new", "broken_open", "in_plaintext")
"""What ``traffic`` can expect a number of."""


def steps(entries: tuple[Map, ...], topology: Topology, notes: Notes) -> tuple[Step, ...]:
    """The steps that hold; every other is an issue.

    Args:
        entries: of ``spec.steps``.
        topology: as the rest of the file has it.
        notes: takes the issues.
    """
    return _Reader(topology, notes).steps(entries)


def after(topology: Topology, step: Step) -> Mesh:
    """The mesh when ``step`` is done in a lab of ``topology``.

    Raises:
        TopologyError: it is a change that this mesh does not allow.
    """
    mesh = topology.mesh
    match step:
        case PolicyStep():
            if step.replaces:
                mesh = replace(mesh, authorization_policies=(), peer_authentications=())
            return replace(
                mesh,
                authorization_policies=merged(mesh.authorization_policies, step.authorization_policies),
                peer_authentications=merged(mesh.peer_authentications, step.peer_authentications),
            )
        case ChangeStep(verb="apply"):
            return changes.load_manifests(step.manifests, "<apply>", topology)
        case ChangeStep(verb="delete"):
            return changes.without(step.manifests, "<delete>", topology)
        case ChangeStep():
            return changes.replaced(step.manifests, "<replace>", topology)
        case TrafficStep():
            for each in step.during:
                mesh = after(replace(topology, mesh=mesh), each)
            return mesh
        case CallStep() | PushStep() | ConnectStep() | AskStep() | VerbStep():
            return mesh


class _Reader:
    """Steps of one file, read one after the other."""

    def __init__(self, topology: Topology, notes: Notes) -> None:
        self._topology = topology
        self._notes = notes
        self._ends = Ends.of(topology.mesh)
        self._work = 0
        self._connections: dict[str, int] = {}
        """Name -> line of its ``connect``."""

    def steps(self, entries: tuple[Map, ...], verbs: tuple[str, ...] = _VERBS) -> tuple[Step, ...]:
        return tuple(step for entry in entries if (step := self._step(entry, verbs)) is not None)

    def _step(self, entry: Map, known: tuple[str, ...]) -> Step | None:
        verbs = [verb for verb in _VERBS if verb in entry]
        if len(verbs) != 1 or verbs[0] not in known:
            said = f"not {' and '.join(verbs)}" if verbs else "and has none"
            self._notes.refuse(entry.place, f"a step does one thing: {', '.join(known)}; {said}")
            return None
        (verb,) = verbs
        if not self._expects(entry, verb):
            return None
        if verb == "call":
            return self._call(entry)
        if verb == "push":
            return self._push(entry.map("push"))
        if verb == "connect":
            return self._connect(entry.map("connect"))
        if verb == "ask":
            return self._ask(entry)
        if verb == "traffic":
            return self._traffic(entry)
        return self._change(entry, verb) if verb in _CHANGES else self._verb(entry, cast("Verb", verb))

    def _expects(self, entry: Map, verb: str) -> bool:
        """Whether ``expect`` is there where it must be, and says what this verb can come to."""
        words, given = _EXPECTING.get(verb), entry.entries.get("expect")
        if words is None:
            if given is not None:
                self._notes.refuse(given.place, "only a call, ask or traffic has something to expect")
        elif given is None:
            if words:
                self._notes.refuse(entry.place, f"{_a(verb)} needs the key 'expect': {' or '.join(words)}")
                return False
        elif (isinstance(given, Map) and words) or (isinstance(given, Scalar) and given.text not in words):
            wanted = f"one of {', '.join(words)}" if words else f"a mapping of {', '.join(TRAFFIC_NUMBERS)}"
            self._notes.refuse(given.place, f"what {_a(verb)} expects must be {wanted}")
            return False
        return True

    # --- calls and connections ---------------------------------------------------------------------------------------

    def _call(self, entry: Map) -> CallStep | None:
        call = entry.map("call")
        row = self._row(call, Verdict(entry.text("expect")))
        if row is None:
            return None
        shape = _shape(call, self._notes)
        times = _whole(call, "times") or 1
        return CallStep(source=row.source, to=row.to, expect=row.verdict, family=row.family, shape=shape, times=times)

    def _row(self, call: Map, expect: Verdict) -> Expectation | None:
        """Who calls whom, if the mesh as it is then has both."""
        if "from" not in call or "to" not in call:
            return None  # already noted by the table
        row = Expectation(source=call.text("from"), to=call.text("to"), verdict=expect, family=_family(call))
        found = faults(row, self._ends)
        for key, fault in found:
            self._notes.refuse(call.at(key), fault)
        return None if found else row

    def _connect(self, call: Map) -> ConnectStep | None:
        row, name = self._row(call, Verdict.ALLOW), call.text("as")
        if name in self._connections:
            line = self._connections[name]
            self._notes.refuse(call.at("as"), f"the connection '{name}' is already on line {line}")
        if not name:
            return None  # already noted by the table
        self._connections.setdefault(name, call.place.line)
        if row is None:
            return None
        half_close = call.text("mode") == "half-close"
        return ConnectStep(source=row.source, to=row.to, name=name, family=row.family, half_close=half_close)

    def _ask(self, entry: Map) -> AskStep | None:
        name = entry.text("ask")
        if name not in self._connections:
            known = f"({listed(self._connections)})" if self._connections else "(there is none)"
            hint = did_you_mean(name, self._connections)
            self._notes.refuse(entry.at("ask"), f"no step before connects as {shown(name)} {known}.{hint}")
            return None
        return AskStep(name=name, alive=entry.text("expect") == "alive")

    def _push(self, push: Map) -> PushStep | None:
        if any(key not in push for key in ("type", "name", "body")):
            return None  # already noted by the table
        return PushStep(type_name=push.text("type"), name=push.text("name"), body=base64.b64decode(push.text("body")))

    # --- changes -----------------------------------------------------------------------------------------------------

    def _change(self, entry: Map, verb: str) -> Step | None:
        notes = self._notes
        if not self._affords(entry):
            return None
        documents = list(changes.kinds_of(list(expanded(list(entry.maps(verb)), notes)), notes))
        if verb == "delete":
            return self._delete(entry, documents)
        checked = changes.checked(documents, notes)
        if len(checked) < len(entry.items(verb)):
            return None
        if all(kind in _POLICIES for kind, _ in checked):
            given = changes.gathered(checked, notes)
            step = PolicyStep(
                authorization_policies=tuple(given.authorization_policies),
                peer_authentications=tuple(given.peer_authentications),
                replaces=verb == "replace",
            )
            self._go_on(after(self._topology, step))
            return step
        self._go_on(changes.applied(checked, notes, self._topology, remake=verb == "replace"))
        text = write(plain(document) for _, document in checked)
        return ChangeStep(verb=cast('Literal["apply", "replace"]', verb), manifests=text)

    def _affords(self, entry: Map) -> bool:
        """Whether one more change can be tried; the first that cannot is an issue."""
        before, self._work = self._work, self._work + len(self._topology.mesh.pods)
        if before <= MOST_WORK < self._work:
            message = f"the changes up to here, each times the pods that are there, are more than {MOST_WORK}"
            self._notes.refuse(entry.place, message)
        return self._work <= MOST_WORK

    def _delete(self, entry: Map, documents: list[tuple[str, Map]]) -> ChangeStep | None:
        if not entry.items("delete"):
            self._notes.refuse(entry.at("delete"), "a delete names what it takes away")
        self._go_on(changes.removed(documents, self._notes, self._topology))
        return ChangeStep(verb="delete", manifests=write(_named(document) for _, document in documents))

    def _go_on(self, mesh: Mesh) -> None:
        self._topology = replace(self._topology, mesh=mesh)
        self._ends = Ends.of(mesh)

    # --- what happens to programs and nodes --------------------------------------------------------------------------

    def _verb(self, entry: Map, verb: Verb) -> VerbStep | None:
        if verb == "reboot":
            name = entry.text(verb)
            return VerbStep(verb=verb, instance=name) if self._is_node(entry, verb, name) else None
        if verb != "upgrade":
            instance = self._instance(entry, verb, entry.text(verb))
            return VerbStep(verb=verb, instance=instance) if instance else None
        upgrades = entry.map(verb)
        if len(upgrades.entries) != 1:
            self._notes.refuse(upgrades.place, "an upgrade names one ztunnel: {ztunnel@NODE: what takes over}")
            return None
        (text,) = upgrades.entries
        instance = self._instance(entry, verb, text)
        if instance and InstanceId.parse(instance).role != "ztunnel":
            self._notes.refuse(entry.at(verb), f"only a ztunnel can be upgraded, not {instance}")
            return None
        return VerbStep(verb=verb, instance=instance, to=upgrades.text(text)) if instance else None

    def _instance(self, entry: Map, verb: str, text: str) -> str:
        """``text`` as an instance of this lab writes it; empty, and an issue, where there is none."""
        try:
            instance = InstanceId.parse(text)
        except ValueError as error:
            self._notes.refuse(entry.at(verb), f"{error}.{did_you_mean(text, self._instances())}")
            return ""
        if instance.generation:
            self._notes.refuse(entry.at(verb), f"write {instance.first}: which generation runs then is not known here")
            return ""
        if instance.role == "program":
            return str(instance) if self._is_pod(entry, verb, instance.place) else ""
        if instance.role == "waypoint":
            return str(instance) if self._is_waypoint(entry, verb, instance.place) else ""
        if instance.place and not self._is_node(entry, verb, instance.place):
            return ""
        return str(instance)

    def _instances(self) -> list[str]:
        roles: tuple[Role, ...] = ("ztunnel", "agent", "echo")
        on_nodes = [str(InstanceId(role, node.name)) for role in roles for node in self._topology.nodes]
        gates = [str(InstanceId("waypoint", pod.key)) for pod in self._topology.mesh.pods if pod.gateway]
        return [*on_nodes, *gates, "control-plane", "recorder", *self._ends.pods]

    def _is_pod(self, entry: Map, verb: str, key: str) -> bool:
        if key in self._ends.pods:
            return True
        hint = did_you_mean(key, self._ends.pods)
        self._notes.refuse(entry.at(verb), f"no pod {shown(key)} ({listed(self._ends.pods)}).{hint}")
        return False

    def _is_waypoint(self, entry: Map, verb: str, key: str) -> bool:
        keys = [pod.key for pod in self._topology.mesh.pods if pod.gateway]
        if key not in keys:
            there = listed(keys) if keys else "there is none"
            self._notes.refuse(entry.at(verb), f"no waypoint {shown(key)} ({there}).{did_you_mean(key, keys)}")
        return key in keys

    def _is_node(self, entry: Map, verb: str, name: str) -> bool:
        nodes = [node.name for node in self._topology.nodes]
        if name not in nodes:
            self._notes.refuse(entry.at(verb), f"no node {shown(name)} ({listed(nodes)}).{did_you_mean(name, nodes)}")
        return name in nodes

    # --- traffic -----------------------------------------------------------------------------------------------------

    def _traffic(self, entry: Map) -> TrafficStep | None:
        traffic, expect = entry.map("traffic"), entry.map("expect")
        pairs = [self._pair(item) for item in traffic.items("pairs") if isinstance(item, Sequence)]
        if not pairs:
            self._notes.refuse(traffic.at("pairs"), "traffic needs `pairs`: a list of [NAMESPACE/POD, URL]")
        if not traffic.items("during"):
            self._notes.refuse(traffic.at("during"), "traffic needs `during`: the steps that are done while it goes on")
        inner = tuple(check_below("Lab", "spec.steps[]", step, self._notes) for step in traffic.maps("during"))
        during = self.steps(inner, tuple(verb for verb in _VERBS if verb != "traffic"))
        given = {name: traffic.value(name) for name in ("rate", "open") if name in traffic}
        numbers: dict[str, Any] = {name: expect.value(name) for name in TRAFFIC_NUMBERS}
        step = TrafficStep(pairs=tuple(filter(None, pairs)), during=during, **numbers)
        return replace(step, **{name: type(getattr(step, name))(value) for name, value in given.items()})

    def _pair(self, item: Sequence) -> tuple[str, str] | None:
        texts = [part.text for part in item.items if isinstance(part, Scalar)]
        if len(texts) != 2:
            self._notes.refuse(item.place, "a pair is [NAMESPACE/POD, URL]")
            return None
        source, url = texts
        if source not in self._ends.pods:
            hint = did_you_mean(source, self._ends.pods)
            self._notes.refuse(item.items[0].place, f"no pod {shown(source)} ({listed(self._ends.pods)}).{hint}")
            return None
        return source, url


def _a(verb: str) -> str:
    return {"call": "a call", "ask": "an ask"}.get(verb, verb)


def _named(document: Map) -> dict[str, Any]:
    """What a delete reads of a manifest."""
    metadata = document.map("metadata")
    about = {key: metadata.text(key) for key in ("name", "namespace") if key in metadata}
    return {"apiVersion": document.text("apiVersion"), "kind": document.text("kind"), "metadata": about}


def _family(call: Map) -> Family | None:
    family = call.value("family")
    return family if family in FAMILIES else None  # type: ignore[return-value]  # a literal, by the test


def _shape(call: Map, notes: Notes) -> CallShape:
    body = call.map("body")
    given: dict[str, Any] = {key: call.text(key) for key in ("kind", "mode", "method", "path") if key in call}
    headers = tuple(call.strings("headers").items())
    shape = CallShape(**given, headers=headers, body_bytes=_whole(body, "bytes"), body_seed=_whole(body, "seed"))
    if shape.mode == "half-close" and shape.kind == "http":
        notes.refuse(call.at("mode"), "half-close is of kind: tcp; an HTTP request ends by its length")
    if shape.mode == "echo-body" and (shape.kind == "tcp" or shape.method == "HEAD"):
        notes.refuse(call.at("mode"), "echo-body asks an HTTP answer for the body: not kind: tcp, nor method: HEAD")
    for key in ("method", "path", "headers") if shape.kind == "tcp" else ():
        if key in call:
            notes.refuse(call.at(key), f"{key} is of kind: http")
    return shape


def _whole(body: Map, key: str) -> int:
    value = body.value(key)
    return value if isinstance(value, int) else 0
