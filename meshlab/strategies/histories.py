"""What happens to a living mesh: steps of a file, drawn one after the other on the mesh as the ones before leave it.

    pods come, also on the address of one that went and under another service account, and go
    namespaces and pods enter and leave the mesh
    policies come and go
    node proxies, agents and the control plane are restarted; node proxies upgraded; nodes reboot
    connections are held open; calls are made in between

Some faults show only in several of these that belong together, and hardly ever by chance. So there are stories:

    a policy denies what is held open; a policy goes after something has been restarted since it came
    a mangled policy is refused, and those in effect stay
    another pod takes the place of one; an endpoint of a Service comes and goes
    a pod is released; an agent is restarted, and each pod of its node calls
    a node proxy is restarted between two calls of one tunnel, or upgraded under slow calls

Each call expects what the oracle says of it then, and each connection what ``lab.calls.fates`` says, so that a right
mesh holds whatever is drawn. The last steps are calls of some pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hypothesis import strategies as st

from meshlab.errors import TopologyError
from meshlab.lab.calls.fates import Fates
from meshlab.lab.calls.names import behind, due
from meshlab.model import (
    DATAPLANE_MODE,
    FAMILIES,
    Action,
    Address,
    AskStep,
    AuthorizationPolicy,
    CallStep,
    ChangeStep,
    ConnectStep,
    InstanceId,
    Mesh,
    MtlsMode,
    Operation,
    PeerAuthentication,
    Pod,
    PolicyStep,
    PushStep,
    Role,
    Rule,
    Source,
    Step,
    Topology,
    TrafficStep,
    VerbStep,
    Verdict,
)
from meshlab.strategies.choices import Choices, drawn
from meshlab.strategies.policies import Drawing, draw_policies
from meshlab.topology import after
from meshlab.topology.shapes import XDS_TYPES
from meshlab.topology.writing import write

_CHOICES = 900
ECHO_IMAGE = "echo"
"""What pods that come are made of: the built-in echo answers for them."""
_NEW = ("late", "later", "latest")
"""Names of pods that come."""
_MATRIX = 8
"""So many calls, at most, end a history. Each costs more than a change of policies."""
_OFTEN = 8
"""So many calls over each family go to a Service one of whose two endpoints is no more: to miss it in all of them is a
matter of 1 in 65,536."""
_MANGLED = b"\xff\xff\xff"
"""No message of protobuf."""
_SLOW = "200ms"
_RATE = 20.0
"""Of slow calls that go on during an upgrade: some four are under way at any moment."""
_RESTARTED: tuple[Role, ...] = ("control-plane", "agent", "ztunnel", "agent", "control-plane")
"""A node proxy waits for what is open before it ends, which takes a second."""


def histories(topology: Topology, most: int = 8) -> st.SearchStrategy[Topology]:
    """``topology`` with steps: up to ``most`` things that happen, calls in between, and some calls at the end.

    Raises:
        ValueError: no pod can call another one.
    """
    if len(topology.mesh.pods) < 2 or not any(pod.ports for pod in topology.mesh.pods):
        raise ValueError("no pod can call another one: the mesh has one pod, or none with a port")
    return drawn(lambda choices: draw_history(choices, topology, most), _CHOICES)


def with_echo_image(topology: Topology) -> Topology:
    """``topology`` in which pods can come that the built-in echo answers for."""
    return replace(topology, images={**topology.images, ECHO_IMAGE: None})


def draw_history(choices: Choices, topology: Topology, most: int) -> Topology:
    base = with_echo_image(replace(topology, expect=(), steps=()))
    drawing = HistoryDrawing(choices, base)
    for _ in range(choices.one_of(range(1, most + 1))):
        drawing.happen()
        drawing.look()
    drawing.finish()
    return replace(base, steps=tuple(drawing.steps))


@dataclass(slots=True)
class HistoryDrawing:
    """A history while it is drawn. Each thing that may happen is a method, whose steps ``take`` adds one by one."""

    choices: Choices
    base: Topology
    steps: list[Step] = field(default_factory=list)
    _former: list[Pod] = field(default_factory=list)
    """Pods that went, and whose addresses may be had again."""
    lines: list[str] = field(default_factory=list)
    """Names of connections that are held."""
    _fates: Fates = field(default_factory=Fates)
    mesh: Mesh = field(init=False)
    """What is in effect after the steps."""

    def __post_init__(self) -> None:
        self.mesh = self.base.mesh

    def happen(self) -> None:
        """Draw one thing that happens; nothing, where what was drawn cannot happen now."""
        kinds: tuple[Callable[[], Iterator[Step]], ...] = (
            *(self.policies, self.come, self.connect, self.restart, self.go, self.namespace, self.label),
            *(self.policies, self.come, self.connect, self.restart, self.go),
            *(self.policies, self.label, self.upgrade, self.reboot),
            *(self.deny_what_is_held,) * 5,  # in half of them the caller has closed its side
            *(self.deny_until_a_restart,) * 3,  # half of the restarts are of the control plane
            *(self.refuse_a_mangled_policy, self.take_a_place, self.be_an_endpoint, self.release_a_pod) * 2,
            *(self.restart_an_agent, self.restart_the_peers_proxy, self.upgrade_under_calls) * 2,
        )
        for step in self.choices.one_of(kinds)():
            self.take(step)

    def look(self) -> None:
        """Draw a call, or ask a connection that is held."""
        asks: bool = self.choices.one_of((True, False))
        for step in self.ask() if self.lines and asks else self.call():
            self.take(step)

    def finish(self) -> None:
        """Ask every connection, and make some calls."""
        for name in self.lines:
            self.take(AskStep(name=name, alive=True))
        calls = list(self.calls())
        first = self.choices.number() % max(1, len(calls))
        for call in (calls[first:] + calls[:first])[:_MATRIX]:
            self.take(call)

    def take(self, step: Step) -> Step | None:
        """Add ``step``, with what it should come to, and give what was added.

        ``None`` is given, and nothing added, where nobody can say what it should come to, or it is no change of this
        mesh.
        """
        taken: Step | None = None
        match step:
            case AskStep():
                alive = self._fates.alive(step.name)
                taken = None if alive is None else replace(step, alive=alive)
            case ConnectStep():
                taken = step if self._fates.open(self.mesh, step) else None
                self.lines += [] if taken is None else [step.name]
            case _:
                taken = step if self._change(step) else None
        self.steps += [] if taken is None else [taken]
        return taken

    def _change(self, step: Step) -> bool:
        """Make of the mesh what ``step`` makes of it; whether it is a change of this one."""
        try:
            mesh = after(replace(self.base, mesh=self.mesh), step)
        except TopologyError:
            return False
        self._fates.live_through(self.mesh, mesh, step)
        self._former += [pod for pod in self.mesh.pods if pod.uid not in {one.uid for one in mesh.pods}]
        self.mesh = mesh
        return True

    # --- what happens ------------------------------------------------------------------------------------------------

    def policies(self) -> Iterator[Step]:
        mesh = self.mesh
        if self.choices.one_of((False, False, True)):
            yield PolicyStep(replaces=True)
            return
        drawn_mesh = draw_policies(Drawing.about(self.choices, mesh))
        yield PolicyStep(
            authorization_policies=drawn_mesh.authorization_policies,
            peer_authentications=drawn_mesh.peer_authentications,
            replaces=True,
        )

    def come(self) -> Iterator[Step]:
        namespace = self.choices.one_of(sorted({pod.namespace for pod in self.base.mesh.pods}))
        name = self._new_name(namespace)
        if not name:
            return
        like = self.choices.one_of([pod for pod in self.base.mesh.pods if not pod.gateway])
        yield _coming(
            replace(
                like,
                name=name,
                namespace=namespace,
                labels={"app": like.labels.get("app", "late")},
                service_account=self.choices.one_of((like.service_account, "late")),
            ),
            addresses=self._free_addresses(),
            node=self.choices.one_of([node.name for node in self.base.nodes]),
        )

    def _free_addresses(self) -> tuple[Address, Address] | None:
        """Those of the pod that went last, half of the time."""
        taken = {pod.ipv4 for pod in self.mesh.pods}
        free = [pod for pod in self._former if pod.ipv4 not in taken]
        if not free or not self.choices.one_of((True, False)):
            return None
        return free[-1].ipv4, free[-1].ipv6

    def go(self) -> Iterator[Step]:
        pods = [pod for pod in self.mesh.pods if len(self.mesh.pods) > 2 and not pod.gateway]
        late = [pod for pod in pods if pod.name in _NEW]
        if not pods:
            return
        pod = self.choices.one_of(self.choices.one_of([late or pods, pods]))
        yield _going(pod)

    def namespace(self) -> Iterator[Step]:
        namespace = self.choices.one_of(self.mesh.namespaces)
        mode = "none" if namespace.labels.get(DATAPLANE_MODE) == "ambient" else "ambient"
        labels = {**namespace.labels, DATAPLANE_MODE: mode}
        metadata = {"name": namespace.name, "labels": labels}
        yield ChangeStep(verb="apply", manifests=_text({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))

    def label(self) -> Iterator[Step]:
        """A pod that came enters or leaves the mesh by its own label."""
        late = [pod for pod in self.mesh.pods if pod.name in _NEW]
        if not late:
            return
        pod = self.choices.one_of(late)
        mode = "none" if self.mesh.is_enrolled(pod) else "ambient"
        yield _coming(replace(pod, labels={**pod.labels, DATAPLANE_MODE: mode}))

    def restart(self, roles: tuple[Role, ...] = _RESTARTED) -> Iterator[Step]:
        role = self.choices.one_of(roles)
        node = self._quiet_node() if role == "ztunnel" else self._node()
        yield VerbStep(verb="restart", instance=str(InstanceId(role, "" if role == "control-plane" else node)))

    def upgrade(self) -> Iterator[Step]:
        yield VerbStep(verb="upgrade", instance=str(InstanceId("ztunnel", self._quiet_node())), to="same")

    def _node(self) -> str:
        return self.choices.one_of([node.name for node in self.base.nodes])

    def _quiet_node(self) -> str:
        """One whose ztunnel need not wait for connections that are held, where there is one; else any."""
        busy = self._fates.nodes()
        nodes = [node.name for node in self.base.nodes]
        return self.choices.one_of([name for name in nodes if name not in busy] or nodes)

    def reboot(self) -> Iterator[Step]:
        yield VerbStep(verb="reboot", instance=self._node())

    def connect(self) -> Iterator[Step]:
        calls = [call for call in self.calls() if "/" in call.to and call.expect is Verdict.ALLOW]
        if not calls:
            return
        yield self._line(self.choices.one_of(calls))

    def _line(self, call: CallStep) -> ConnectStep:
        """A connection that goes where ``call`` goes."""
        half_close = self.choices.one_of((False, True))
        name = f"line-{len(self.lines)}"
        return ConnectStep(source=call.source, to=call.to, name=name, family=4, half_close=half_close)

    def ask(self) -> Iterator[Step]:
        if self.lines:
            yield AskStep(name=self.choices.one_of(self.lines), alive=True)

    def call(self) -> Iterator[Step]:
        calls = list(self.calls())
        if calls:
            yield self.choices.one_of(calls)

    # --- what shows only in the order of several ----------------------------------------------------------------------

    def deny_what_is_held(self) -> Iterator[Step]:
        """A connection is opened, a policy comes that denies it, it is asked, and the policy goes."""
        yield from self._open_up()
        if (call := self._some_call()) is None:
            return
        held = len(self.lines)
        line = self._line(call)
        yield line
        if len(self.lines) > held:
            kept = self._policies()
            yield PolicyStep(authorization_policies=(self._denial(line),))
            yield AskStep(name=line.name, alive=False)
            yield kept

    def deny_until_a_restart(self) -> Iterator[Step]:
        """A policy denies a call, something comes back, the call is made, the policy goes, and it is made again."""
        yield from self._open_up()
        if (call := self._some_call()) is None:
            return
        kept = self._policies()
        yield PolicyStep(authorization_policies=(self._denial(call),))
        yield from self.restart(("control-plane", "agent", "control-plane", "ztunnel"))
        yield from self._again(call)
        yield kept
        yield from self._again(call)

    def refuse_a_mangled_policy(self) -> Iterator[Step]:
        """A policy denies a call, another one is mangled and refused, and the call is made."""
        yield from self._open_up()
        if (call := self._some_call()) is None:
            return
        kept = self._policies()
        denial = self._denial(call)
        yield PolicyStep(authorization_policies=(denial,))
        yield PushStep(type_name=XDS_TYPES[0], name=f"{denial.namespace}/mangled", body=_MANGLED)
        yield from self._again(call)
        yield kept

    def take_a_place(self) -> Iterator[Step]:
        """A pod calls; another takes its place, under its name or at its address, calls, and is called."""
        yield from self._open_up()
        if (call := self._some_call()) is None:
            return
        yield call
        called, _ = behind(self.mesh, call.to)[0]
        before = self.choices.one_of((self.mesh.pod(call.source), called))
        account = "late" if before.service_account != "late" else "later"
        now = replace(before, service_account=account)
        if self.choices.one_of((True, False)):
            yield _coming(now, verb="replace")
        elif name := self._new_name(before.namespace):
            now = replace(now, name=name)
            yield _going(before)
            yield _coming(now, addresses=(before.ipv4, before.ipv6))
        some = [again for again in self.calls() if again.source == now.key and "/" in again.to][:2]
        some += [again for again in self.calls() if again.to.rpartition(":")[0] == now.key][:2]
        yield from some

    def be_an_endpoint(self) -> Iterator[Step]:
        """A pod becomes an endpoint of a Service, which is called, and goes; the Service is called often."""
        calls = [call for call in self.calls() if "/" not in call.to]
        if not calls:
            return
        call = self.choices.one_of(calls)
        like, _ = behind(self.mesh, call.to)[0]
        if name := self._new_name(like.namespace):
            late = replace(like, name=name)
            yield _coming(late, node=self._node())
            yield from self._again(call)
            yield _going(late)
            yield from (replace(again, times=_OFTEN) for again in self._again(call))

    def release_a_pod(self) -> Iterator[Step]:
        """A pod comes and calls one that takes no plaintext; it is released, and calls again."""
        yield from self._open_up()
        if (call := self._some_call()) is None:
            return
        called, _ = behind(self.mesh, call.to)[0]
        like = self.mesh.pod(call.source)
        if name := self._new_name(like.namespace):
            late = replace(like, name=name)
            strict = PeerAuthentication(name="late-strict", namespace=called.namespace, mode=MtlsMode.STRICT)
            yield PolicyStep(peer_authentications=(strict,))
            yield _coming(late, node=self._node())
            yield from self._again(replace(call, source=late.key))
            came = next((pod for pod in self.mesh.pods if pod.key == late.key), None)
            if came is not None:
                yield _coming(replace(came, labels={**came.labels, DATAPLANE_MODE: "none"}))
            yield from self._again(replace(call, source=late.key))

    def restart_an_agent(self) -> Iterator[Step]:
        """An agent is restarted; then each pod of its node calls or, where it may call nobody, is called."""
        node = self._node()
        yield VerbStep(verb="restart", instance=str(InstanceId("agent", node)))
        calls = self._tunnelled()
        for pod in self.mesh.pods:
            if pod.node == node:
                made = [call for call in calls if call.source == pod.key]
                yield from (made or [call for call in calls if call.to.rpartition(":")[0] == pod.key])[:1]

    def restart_the_peers_proxy(self) -> Iterator[Step]:
        """A pod calls another one, whose node proxy is restarted, and calls it again."""
        yield from self._open_up()
        if (call := self._some_call()) is None:
            return
        called, _ = behind(self.mesh, call.to)[0]
        yield call
        yield VerbStep(verb="restart", instance=str(InstanceId("ztunnel", called.node)))
        yield from self._again(call)

    def upgrade_under_calls(self) -> Iterator[Step]:
        """Slow calls go on while the node proxy of one end is upgraded, and all of them are answered."""
        yield from self._open_up()
        if (call := self._some_call()) is None:
            return
        called, port = behind(self.mesh, call.to)[0]
        node = self.choices.one_of((self.mesh.pod(call.source).node, called.node))
        speaks_first = any(each.server_first for each in called.ports if each.number == port)
        if node not in self._fates.nodes() and not speaks_first:  # it would wait for what is held
            url = f"http://{called.namespace}%2F{called.name}:{port}/?delay={_SLOW}"
            during = VerbStep(verb="upgrade", instance=str(InstanceId("ztunnel", node)), to="same")
            yield TrafficStep(pairs=((call.source, url),), rate=_RATE, during=(during,), failed_new=0)

    def _open_up(self) -> Iterator[Step]:
        """Take all policies away, where they allow no call that could be told of."""
        if not self._tunnelled():
            yield PolicyStep(replaces=True)

    def _some_call(self) -> CallStep | None:
        """A call of a pod to a pod, through a tunnel, that policies allow; ``None``, where there is none."""
        calls = self._tunnelled()
        return self.choices.one_of(calls) if calls else None

    def _tunnelled(self) -> list[CallStep]:
        """Calls of pods to pods that are allowed, of which both ends are in the mesh."""
        mesh = self.mesh
        enrolled = {pod.key for pod in mesh.pods if mesh.is_enrolled(pod)}
        return [
            call
            for call in self.calls()
            if call.expect is Verdict.ALLOW and {call.source, call.to.rpartition(":")[0]} <= enrolled
        ]

    def _again(self, call: CallStep) -> Iterator[CallStep]:
        """The same call, with what is expected of it now; nothing, where nobody can say."""
        source = next((pod for pod in self.mesh.pods if pod.key == call.source), None)
        if source is not None:
            yield from self._call(source, call.to)

    def _policies(self) -> PolicyStep:
        """A step that brings back the policies that are in effect now."""
        return PolicyStep(
            authorization_policies=self.mesh.authorization_policies,
            peer_authentications=self.mesh.peer_authentications,
            replaces=True,
        )

    def _new_name(self, namespace: str) -> str:
        """The name of a pod that can come; empty, where all of them are there."""
        there = {pod.key for pod in self.mesh.pods}
        return next((name for name in _NEW if f"{namespace}/{name}" not in there), "")

    def _denial(self, call: CallStep | ConnectStep) -> AuthorizationPolicy:
        """A policy of the namespace of one that is called which denies the caller by one thing that is true of it."""
        mesh = self.mesh
        source, (destination, port) = mesh.pod(call.source), behind(mesh, call.to)[0]
        rule = self.choices.one_of(
            (
                Rule(sources=(Source(namespaces=(source.namespace,)),)),
                Rule(sources=(Source(service_accounts=(f"{source.namespace}/{source.service_account}",)),)),
                Rule(operations=(Operation(ports=(str(port),)),)),
            )
        )
        return AuthorizationPolicy(
            name="late-denial", namespace=destination.namespace, action=Action.DENY, rules=(rule,)
        )

    # --- calls -------------------------------------------------------------------------------------------------------

    def calls(self) -> Iterator[CallStep]:
        """Every pair, with what the policies say of it, where they say one thing in both families."""
        mesh = self.mesh
        for source in (pod for pod in mesh.pods if not pod.gateway):
            for destination in mesh.pods:
                for port in destination.ports if destination.key != source.key else ():
                    yield from self._call(source, f"{destination.key}:{port.number}")
            for service in (each for each in mesh.services if not mesh.is_of_waypoint(each)):
                if mesh.is_enrolled(source):
                    for entry in service.ports:
                        yield from self._call(source, f"{service.key}:{entry.port}")

    def _call(self, source: Pod, to: str) -> Iterator[CallStep]:
        mesh = self.mesh
        reached = [(pod, number) for pod, number in behind(mesh, to) if pod.program is None]
        if not reached or any(pod.key == source.key for pod, _ in reached):
            return
        said = {way.verdict for family in FAMILIES for way in due(mesh, source.key, to, family).ways}
        if len(said) == 1:
            yield CallStep(source=source.key, to=to, expect=said.pop())


def _coming(
    pod: Pod,
    addresses: tuple[Address, Address] | None = None,
    node: str = "",
    verb: Literal["apply", "replace"] = "apply",
) -> ChangeStep:
    """A pod like ``pod`` comes, which the built-in echo answers for; or one that came changes its labels."""
    manifest: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": dict(pod.labels)},
        "spec": {
            "nodeName": node or pod.node,
            "serviceAccountName": pod.service_account,
            "containers": [_container(ECHO_IMAGE, [port.number for port in pod.ports if not port.server_first])],
        },
    }
    if addresses is not None:
        manifest["status"] = {"podIPs": [{"ip": str(address)} for address in addresses]}
    return ChangeStep(verb=verb, manifests=_text(manifest))


def _going(pod: Pod) -> ChangeStep:
    metadata = {"name": pod.name, "namespace": pod.namespace}
    return ChangeStep(verb="delete", manifests=_text({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}))


def _container(image: str, ports: list[int]) -> dict[str, Any]:
    return {"image": image, **({"ports": [{"containerPort": port} for port in ports]} if ports else {})}


def _text(manifest: dict[str, Any]) -> str:
    return write([manifest])
