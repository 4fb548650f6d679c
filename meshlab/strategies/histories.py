"""What happens to a living mesh: steps of a file, drawn one after the other on the mesh as the ones before leave it.

    pods come, also on the address of one that went and under another service account, and go
    namespaces and pods enter and leave the mesh
    policies come and go
    node proxies, agents and the control plane are restarted; node proxies upgraded; nodes reboot
    connections are held open; calls are made in between

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
from meshlab.lab.calls.names import behind
from meshlab.model import (
    DATAPLANE_MODE,
    AskStep,
    CallStep,
    ChangeStep,
    ConnectStep,
    InstanceId,
    Mesh,
    Pod,
    PolicyStep,
    Role,
    Step,
    Topology,
    VerbStep,
    Verdict,
)
from meshlab.oracle import connection, decide
from meshlab.strategies.choices import Choices, drawn
from meshlab.strategies.policies import Drawing, draw_policies
from meshlab.topology import after
from meshlab.topology.writing import write

_CHOICES = 900
_IMAGE = "echo"
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
    return replace(topology, images={**topology.images, _IMAGE: None})


def draw_history(choices: Choices, topology: Topology, most: int) -> Topology:
    base = with_echo_image(replace(topology, expect=(), steps=()))
    drawing = _Drawing(choices, base)
    for _ in range(choices.one_of(range(1, most + 1))):
        drawing.happen()
        drawing.look()
    drawing.finish()
    return replace(base, steps=tuple(drawing.steps))


@dataclass(slots=True)
class _Drawing:
    """A history while it is drawn."""

    choices: Choices
    base: Topology
    steps: list[Step] = field(default_factory=list)
    _former: list[Pod] = field(default_factory=list)
    """Pods that went, and whose addresses may be had again."""
    _lines: list[str] = field(default_factory=list)
    """Names of connections that are held."""
    _fates: Fates = field(default_factory=Fates)
    _mesh: Mesh = field(init=False)

    def __post_init__(self) -> None:
        self._mesh = self.base.mesh

    def happen(self) -> None:
        """Draw one thing that happens; nothing, where what was drawn cannot happen now."""
        kinds: tuple[Callable[[], Step | None], ...] = (
            *(self._policies, self._come, self._connect, self._restart, self._go, self._namespace, self._label),
            *(self._policies, self._come, self._connect, self._restart, self._go),
            *(self._policies, self._label, self._upgrade, self._reboot),
        )
        step = self.choices.one_of(kinds)()
        if step is not None:
            self._take(step)

    def look(self) -> None:
        """Draw a call, or ask a connection that is held."""
        asks: bool = self.choices.one_of((True, False))
        if self._lines and asks:
            self._take(AskStep(name=self.choices.one_of(self._lines), alive=True))
        else:
            calls = list(self._calls())
            if calls:
                self._take(self.choices.one_of(calls))

    def finish(self) -> None:
        """Ask every connection, and call every pair."""
        for name in self._lines:
            self._take(AskStep(name=name, alive=True))
        calls = list(self._calls())
        first = self.choices.number() % max(1, len(calls))
        for call in (calls[first:] + calls[:first])[:_MATRIX]:
            self._take(call)

    def _take(self, step: Step) -> None:
        """Add ``step``, with what it should come to; not where nobody can say that, or it is no change of this mesh."""
        if isinstance(step, AskStep):
            alive = self._fates.alive(step.name)
            if alive is not None:
                self.steps.append(replace(step, alive=alive))
            return
        if isinstance(step, ConnectStep):
            if self._fates.open(self._mesh, step):
                self._lines.append(step.name)
                self.steps.append(step)
            return
        try:
            mesh = after(replace(self.base, mesh=self._mesh), step)
        except TopologyError:
            return
        self._fates.live_through(self._mesh, mesh, step)
        self._former += [pod for pod in self._mesh.pods if pod.uid not in {one.uid for one in mesh.pods}]
        self.steps.append(step)
        self._mesh = mesh

    # --- what happens ------------------------------------------------------------------------------------------------

    def _policies(self) -> Step:
        mesh = self._mesh
        if self.choices.one_of((False, False, True)):
            return PolicyStep(replaces=True)
        drawn_mesh = draw_policies(Drawing.about(self.choices, mesh))
        return PolicyStep(
            authorization_policies=drawn_mesh.authorization_policies,
            peer_authentications=drawn_mesh.peer_authentications,
            replaces=True,
        )

    def _come(self) -> Step | None:
        there = {pod.key for pod in self._mesh.pods}
        namespaces = sorted({pod.namespace for pod in self.base.mesh.pods})
        namespace = self.choices.one_of(namespaces)
        names = [name for name in _NEW if f"{namespace}/{name}" not in there]
        if not names:
            return None
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
                "containers": [_container(_IMAGE, [port.number for port in like.ports if not port.server_first])],
            },
        }
        if addresses is not None:
            manifest["status"] = {"podIPs": [{"ip": str(address)} for address in addresses]}
        return ChangeStep(verb="apply", manifests=_text(manifest))

    def _free_addresses(self) -> tuple[object, object] | None:
        """Those of the pod that went last, half of the time."""
        taken = {pod.ipv4 for pod in self._mesh.pods}
        free = [pod for pod in self._former if pod.ipv4 not in taken]
        if not free or not self.choices.one_of((True, False)):
            return None
        return free[-1].ipv4, free[-1].ipv6

    def _go(self) -> Step | None:
        pods = [pod for pod in self._mesh.pods if len(self._mesh.pods) > 2]
        late = [pod for pod in pods if pod.name in _NEW]
        if not pods:
            return None
        pod = self.choices.one_of(self.choices.one_of([late or pods, pods]))
        metadata = {"name": pod.name, "namespace": pod.namespace}
        return ChangeStep(verb="delete", manifests=_text({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}))

    def _namespace(self) -> Step:
        namespace = self.choices.one_of(self._mesh.namespaces)
        mode = "none" if namespace.labels.get(DATAPLANE_MODE) == "ambient" else "ambient"
        labels = {**namespace.labels, DATAPLANE_MODE: mode}
        metadata = {"name": namespace.name, "labels": labels}
        return ChangeStep(
            verb="apply", manifests=_text({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        )

    def _label(self) -> Step | None:
        """A pod that came enters or leaves the mesh by its own label."""
        late = [pod for pod in self._mesh.pods if pod.name in _NEW]
        if not late:
            return None
        pod = self.choices.one_of(late)
        mode = "none" if self._mesh.is_enrolled(pod) else "ambient"
        return ChangeStep(verb="apply", manifests=_text(_manifest(pod, {**pod.labels, DATAPLANE_MODE: mode})))

    def _restart(self) -> Step:
        role = self.choices.one_of(_RESTARTED)
        node = self.choices.one_of([node.name for node in self.base.nodes])
        return VerbStep(verb="restart", instance=str(InstanceId(role, "" if role == "control-plane" else node)))

    def _upgrade(self) -> Step:
        node = self.choices.one_of([node.name for node in self.base.nodes])
        return VerbStep(verb="upgrade", instance=str(InstanceId("ztunnel", node)), to="same")

    def _reboot(self) -> Step:
        return VerbStep(verb="reboot", instance=self.choices.one_of([node.name for node in self.base.nodes]))

    def _connect(self) -> Step | None:
        calls = [call for call in self._calls() if "/" in call.to and call.expect is Verdict.ALLOW]
        if not calls:
            return None
        call = self.choices.one_of(calls)
        half_close = self.choices.one_of((False, False, True))
        name = f"line-{len(self._lines)}"
        return ConnectStep(source=call.source, to=call.to, name=name, family=4, half_close=half_close)

    # --- calls -------------------------------------------------------------------------------------------------------

    def _calls(self) -> Iterator[CallStep]:
        """Every pair, with what the policies say of it, where they say one thing in both families."""
        mesh = self._mesh
        for source in mesh.pods:
            for destination in mesh.pods:
                for port in destination.ports if destination.key != source.key else ():
                    yield from self._call(source, f"{destination.key}:{port.number}")
            for service in mesh.services:
                if mesh.is_enrolled(source):
                    for entry in service.ports:
                        yield from self._call(source, f"{service.key}:{entry.port}")

    def _call(self, source: Pod, to: str) -> Iterator[CallStep]:
        mesh = self._mesh
        reached = [(pod, number) for pod, number in behind(mesh, to) if pod.program is None]
        if not reached or any(pod.key == source.key for pod, _ in reached):
            return
        said = {
            decide(mesh, connection(mesh, source, pod, number, family)).verdict
            for pod, number in reached
            for family in (4, 6)
        }
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
