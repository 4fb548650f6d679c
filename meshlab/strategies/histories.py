"""What happens to a living mesh: steps of a file, drawn one after the other on the mesh as the ones before leave it.

    pods come, also on the address of one that went and under another service account, and go
    namespaces and pods enter and leave the mesh
    policies come and go
    node proxies, agents and the control plane are restarted; node proxies upgraded; nodes reboot
    connections are held open; calls are made in between
    a policy denies what is held open; a policy goes after something has been restarted since it came

Each call expects what the oracle says of it then, and each connection what ``lab.calls.fates`` says, so that a right
mesh holds whatever is drawn. The last steps are calls of every pair: the whole matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from meshlab.errors import TopologyError
from meshlab.lab.calls.fates import Fates
from meshlab.lab.calls.names import behind, due
from meshlab.model import (
    DATAPLANE_MODE,
    FAMILIES,
    Action,
    AskStep,
    AuthorizationPolicy,
    CallStep,
    ChangeStep,
    ConnectStep,
    InstanceId,
    Mesh,
    Operation,
    Pod,
    PolicyStep,
    Role,
    Rule,
    Source,
    Step,
    Topology,
    VerbStep,
    Verdict,
)
from meshlab.strategies.choices import Choices, drawn
from meshlab.strategies.policies import Drawing, draw_policies
from meshlab.topology import after
from meshlab.topology.writing import write

_CHOICES = 900
ECHO_IMAGE = "echo"
"""What pods that come are made of: the built-in echo answers for them."""
_NEW = ("late", "later", "latest")
"""Names of pods that come."""
_MATRIX = 24
"""So many calls, at most, end a history."""
_RESTARTED: tuple[Role, ...] = ("control-plane", "agent", "ztunnel", "agent", "control-plane")
"""A node proxy waits for what is open before it ends, which takes seconds."""


def histories(topology: Topology, most: int = 8) -> st.SearchStrategy[Topology]:
    """``topology`` with steps: up to ``most`` things that happen, calls in between, and the whole matrix at the end.

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
            *(self.deny_what_is_held, self.deny_until_a_restart) * 3,
        )
        for step in self.choices.one_of(kinds)():
            self.take(step)

    def look(self) -> None:
        """Draw a call, or ask a connection that is held."""
        asks: bool = self.choices.one_of((True, False))
        for step in self.ask() if self.lines and asks else self.call():
            self.take(step)

    def finish(self) -> None:
        """Ask every connection, and call every pair."""
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
        there = {pod.key for pod in self.mesh.pods}
        namespaces = sorted({pod.namespace for pod in self.base.mesh.pods})
        namespace = self.choices.one_of(namespaces)
        names = [name for name in _NEW if f"{namespace}/{name}" not in there]
        if not names:
            return
        like = self.choices.one_of(self.base.mesh.pods)
        account = self.choices.one_of((like.service_account, "late"))
        addresses = self._free_addresses()
        manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": names[0], "namespace": namespace, "labels": {"app": like.labels.get("app", "late")}},
            "spec": {
                "nodeName": self.choices.one_of([node.name for node in self.base.nodes]),
                "serviceAccountName": account,
                "containers": [_container(ECHO_IMAGE, [port.number for port in like.ports if not port.server_first])],
            },
        }
        if addresses is not None:
            manifest["status"] = {"podIPs": [{"ip": str(address)} for address in addresses]}
        yield ChangeStep(verb="apply", manifests=_text(manifest))

    def _free_addresses(self) -> tuple[object, object] | None:
        """Those of the pod that went last, half of the time."""
        taken = {pod.ipv4 for pod in self.mesh.pods}
        free = [pod for pod in self._former if pod.ipv4 not in taken]
        if not free or not self.choices.one_of((True, False)):
            return None
        return free[-1].ipv4, free[-1].ipv6

    def go(self) -> Iterator[Step]:
        pods = [pod for pod in self.mesh.pods if len(self.mesh.pods) > 2]
        late = [pod for pod in pods if pod.name in _NEW]
        if not pods:
            return
        pod = self.choices.one_of(self.choices.one_of([late or pods, pods]))
        metadata = {"name": pod.name, "namespace": pod.namespace}
        yield ChangeStep(verb="delete", manifests=_text({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}))

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
        yield ChangeStep(verb="apply", manifests=_text(_manifest(pod, {**pod.labels, DATAPLANE_MODE: mode})))

    def restart(self) -> Iterator[Step]:
        role = self.choices.one_of(_RESTARTED)
        node = self.choices.one_of([node.name for node in self.base.nodes])
        yield VerbStep(verb="restart", instance=str(InstanceId(role, "" if role == "control-plane" else node)))

    def upgrade(self) -> Iterator[Step]:
        node = self.choices.one_of([node.name for node in self.base.nodes])
        yield VerbStep(verb="upgrade", instance=str(InstanceId("ztunnel", node)), to="same")

    def reboot(self) -> Iterator[Step]:
        yield VerbStep(verb="reboot", instance=self.choices.one_of([node.name for node in self.base.nodes]))

    def connect(self) -> Iterator[Step]:
        calls = [call for call in self.calls() if "/" in call.to and call.expect is Verdict.ALLOW]
        if not calls:
            return
        call = self.choices.one_of(calls)
        half_close = self.choices.one_of((False, True))
        name = f"line-{len(self.lines)}"
        yield ConnectStep(source=call.source, to=call.to, name=name, family=4, half_close=half_close)

    def ask(self) -> Iterator[Step]:
        if self.lines:
            yield AskStep(name=self.choices.one_of(self.lines), alive=True)

    def call(self) -> Iterator[Step]:
        calls = list(self.calls())
        if calls:
            yield self.choices.one_of(calls)

    # --- what shows only in the order of several ----------------------------------------------------------------------

    def deny_what_is_held(self) -> Iterator[Step]:
        """A connection is opened, a policy comes that denies it, and it is asked."""
        held = len(self.lines)
        for step in self.connect():
            yield step
            if len(self.lines) > held and isinstance(step, ConnectStep):
                yield PolicyStep(authorization_policies=(self._denial(step),))
                yield AskStep(name=self.lines[-1], alive=False)

    def deny_until_a_restart(self) -> Iterator[Step]:
        """A policy denies a call, something comes back, the policy goes, and the call is made again."""
        calls = [call for call in self.calls() if "/" in call.to and call.expect is Verdict.ALLOW]
        if not calls:
            return
        call = self.choices.one_of(calls)
        kept = PolicyStep(
            authorization_policies=self.mesh.authorization_policies,
            peer_authentications=self.mesh.peer_authentications,
            replaces=True,
        )
        yield PolicyStep(authorization_policies=(self._denial(call),))
        yield from self.restart()
        yield kept
        yield from (again for again in self.calls() if (again.source, again.to) == (call.source, call.to))

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
        for source in mesh.pods:
            for destination in mesh.pods:
                for port in destination.ports if destination.key != source.key else ():
                    yield from self._call(source, f"{destination.key}:{port.number}")
            for service in mesh.services:
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


def _manifest(pod: Pod, labels: dict[str, str]) -> dict[str, Any]:
    """A pod that came, with other labels."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": labels},
        "spec": {
            "nodeName": pod.node,
            "serviceAccountName": pod.service_account,
            "containers": [_container(pod.image, [port.number for port in pod.ports])],
        },
    }


def _container(image: str, ports: list[int]) -> dict[str, Any]:
    return {"image": image, **({"ports": [{"containerPort": port} for port in ports]} if ports else {})}


def _text(manifest: dict[str, Any]) -> str:
    return write([manifest])
