"""From drafts to pods: each on a node, with its addresses and its program; and what Services add to them.

A pod of which the file names no node goes where the fewest of its kind are: of those in the mesh, or of those outside.
So pods of the mesh that call each other are on different nodes wherever there are two, as a scheduler would spread
them, and their traffic crosses a link on which something can be proven.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from meshlab.errors import Issue
from meshlab.model import Address, ContainerPort, Mesh, Node, Pod, Program, Service, addresses
from meshlab.topology import images as image_table
from meshlab.topology.gathered import Gathered
from meshlab.topology.notes import Notes, did_you_mean
from meshlab.topology.workloads import MAX_PODS, ZTUNNEL_PORTS, Container, Draft


@dataclass(frozen=True, slots=True)
class Ground:
    """What a lab is built on, and keeps."""

    nodes: Sequence[Node]
    images: Mapping[str, Program | None]
    urls: Mapping[str, str]
    """URL -> what the control plane reads there."""


_CHANGEABLE = {
    "node": "node",
    "ipv4": "address",
    "ipv6": "address",
    "service_account": "service account",
    "program": "program",
    "image": "image",
    "init": "init container",
    "restart_policy": "restartPolicy",
    "add_capabilities": "capabilities",
    "empty_dirs": "emptyDir",
}
"""Everything of a pod that only another pod can have otherwise, but its ports, and what a message calls it."""


def with_drafts(
    mesh: Mesh,
    given: Gathered,
    ground: Ground,
    owned: Set[Address],
    notes: Notes,
    *,
    remake: bool,
) -> Mesh:
    """``mesh`` with every draft of ``given`` as a pod: a new one, the one that is there, or another in its place.

    A Deployment has the pods of its manifest, and no others. Its pods are made anew where the template changed. A pod
    is changed where it stands, which its labels and annotations can be.

    Args:
        mesh: its namespaces, which say which pods belong into the mesh, and its Services are those of afterwards.
        given: one text.
        ground: nodes and programs.
        owned: addresses that somebody had before this text: places with one of them are passed over.
        notes: takes issues.
        remake: whether every draft is a pod of its own, also where nothing changed.
    """
    keys = {draft.key for draft in given.drafts}
    mesh = without_pods(
        mesh,
        {
            pod.key
            for pod in mesh.pods
            if f"{pod.namespace}/{pod.workload}" in given.deployments and pod.key not in keys
        },
    )
    total = len(keys | {pod.key for pod in mesh.pods})
    if total > MAX_PODS:
        notes.refuse(given.drafts[-1].place, f"{total} pods; a lab has at most {MAX_PODS}")
        return mesh
    _refuse_misplaced(given.drafts, [node.name for node in ground.nodes], notes)
    return _Placing(mesh, ground, owned, notes).placed(given.drafts, remake=remake)


def without_pods(mesh: Mesh, keys: Collection[str]) -> Mesh:
    """``mesh`` without the pods ``keys``, whose names it remembers: a pod that gets one of them is another pod."""
    former = dict(mesh.former)
    former.update((pod.key, pod.incarnation + 1) for pod in mesh.pods if pod.key in keys)
    return replace(mesh, pods=tuple(pod for pod in mesh.pods if pod.key not in keys), former=former)


class _Placing:
    """The drafts of one text on their way into one mesh."""

    def __init__(self, mesh: Mesh, ground: Ground, owned: Set[Address], notes: Notes) -> None:
        self._mesh = mesh
        self._names = [node.name for node in ground.nodes]
        self._images = ground.images
        self._notes = notes
        self._pods = {pod.key: pod for pod in mesh.pods}
        self._owned = owned
        self._places = mesh.places

    def placed(self, drafts: Sequence[Draft], *, remake: bool) -> Mesh:
        new = [draft for draft in drafts if remake or not self._stays(draft)]
        former = dict(self._mesh.former)
        for draft, node in zip(new, self._nodes_of(new), strict=True):
            old = self._pods.get(draft.key)
            incarnation = old.incarnation + 1 if old else former.pop(draft.key, 0)
            self._pods[draft.key] = self._new(draft, node, old, incarnation)
        return replace(self._mesh, pods=tuple(self._pods.values()), former=former, places=self._places)

    def _stays(self, draft: Draft) -> bool:
        """Whether the pod of this name stays the one that it is; its labels and annotations are then changed."""
        old = self._pods.get(draft.key)
        if old is None:
            return False
        if draft.workload and draft.workload != old.workload:
            message = (
                f"pod '{draft.key}' is there already, and not of the Deployment '{draft.workload}': delete it first"
            )
            self._notes.refuse(draft.place, message)
            return True
        node, ipv4, ipv6 = draft.node or old.node, draft.ipv4 or old.ipv4, draft.ipv6 or old.ipv6
        new = self._built(draft, node, ipv4, ipv6, old.incarnation)
        other = list(
            dict.fromkeys(word for name, word in _CHANGEABLE.items() if getattr(new, name) != getattr(old, name))
        )
        if not _declares(new, old):
            other.append("list of ports")
        marks = (new.labels, new.annotations)
        if draft.workload and (other or marks != (old.labels, old.annotations)):
            return False
        if other:
            self._notes.refuse(
                draft.place,
                f"pod '{draft.key}' is there already, and with another {', '.join(other)}: of a pod that is there only "
                f"labels and annotations can change. Delete it first, or use replace",
            )
        self._pods[draft.key] = replace(old, labels=new.labels, annotations=new.annotations)
        return True

    def _nodes_of(self, new: Sequence[Draft]) -> list[str]:
        """The node of each: the one that it names, the one that its forerunner is on, or the emptiest."""
        if not new:
            return []
        keys = {draft.key for draft in new}
        others = [pod for pod in self._pods.values() if pod.key not in keys]
        given = [pod.node for pod in others]
        for draft in new:
            old = self._pods.get(draft.key)
            given.append(draft.node if draft.node in self._names else old.node if old and not draft.node else "")
        everyone: list[Pod | Draft] = [*others, *new]
        in_mesh = [self._mesh.enrols(one.namespace, one.labels, one.annotations) for one in everyone]
        return _spread(given, in_mesh, self._names)[len(others) :]

    def _new(self, draft: Draft, node: str, old: Pod | None, incarnation: int) -> Pod:
        if old and old.node == node:
            ipv4, ipv6 = old.ipv4, old.ipv6
        else:
            ipv4, ipv6 = self._next_free(node, draft)
        return self._built(draft, node, draft.ipv4 or ipv4, draft.ipv6 or ipv6, incarnation)

    def _next_free(self, node: str, draft: Draft) -> tuple[IPv4Address, IPv6Address]:
        """Addresses of the next place; one at which somebody has been before this text is passed over."""
        index = self._names.index(node)
        while True:
            place = self._places % addresses.PLACES
            ipv4, ipv6 = addresses.pod4(index, place), addresses.pod6(index, place)
            self._places += 1
            if (draft.ipv4 or ipv4 not in self._owned) and (draft.ipv6 or ipv6 not in self._owned):
                return ipv4, ipv6

    def _built(self, draft: Draft, node: str, ipv4: IPv4Address, ipv6: IPv6Address, incarnation: int) -> Pod:
        pod = Pod(
            name=draft.name,
            namespace=draft.namespace,
            node=node,
            ipv4=ipv4,
            ipv6=ipv6,
            labels=draft.labels,
            annotations=draft.annotations,
            service_account=draft.service_account,
            ports=draft.ports,
            image=draft.container.image,
            add_capabilities=draft.add_capabilities,
            empty_dirs=draft.empty_dirs,
            workload=draft.workload,
            gateway=draft.gateway,
            restart_policy=draft.restart_policy,
            incarnation=incarnation,
        )
        init = (self._init(number, container, pod) for number, container in enumerate(draft.init))
        return replace(
            pod,
            program=draft.run or _program(draft.container, pod, self._images),
            init=tuple(program for program in init if program),
        )

    def _init(self, number: int, container: Container, pod: Pod) -> Program | None:
        """What an init container runs: its command also where the lab has no program for its image."""
        found = _program(container, pod, self._images)
        if found is None and container.command:
            found = _program(replace(container, image=""), pod, self._images)
        if found is None:
            image = container.image
            add = f", or add to the Lab's spec.images: {image_table.line_to_add(image)}" if image else ""
            self._notes.refuse(
                container.place,
                f"init container {number} of pod '{pod.key}' has no program, and the built-in echo never ends: give it "
                f"a command{add}",
            )
        return found


def _declares(new: Pod, old: Pod) -> bool:
    """Whether ``old`` has the ports of ``new``, and beyond them only what Services may have added."""
    declared, more = old.ports[: len(new.ports)], old.ports[len(new.ports) :]
    return declared == new.ports and all(port == ContainerPort(number=port.number) for port in more)


def unrunnable(drafts: Sequence[Draft], images: Mapping[str, Program | None], notes: Notes) -> Iterator[Issue]:
    """Images without a program, each once."""
    seen = set()
    for draft in drafts:
        image = draft.container.image
        if not image or draft.run or image in seen or image_table.find(image, images)[0]:
            continue
        seen.add(image)
        message = (
            f"no program stands for the image '{image}' of pod '{draft.key}'. Add to the Lab's spec.images: "
            f"{image_table.line_to_add(image)}, or {{}} in place of {{run: ...}} for the built-in echo"
        )
        yield notes.at(draft.container.image_place, message)


def _refuse_misplaced(drafts: Sequence[Draft], names: Sequence[str], notes: Notes) -> None:
    """Each node that the file names and that is none of the lab's, once for all replicas of a pod."""
    misplaced = [draft for draft in drafts if draft.node and draft.node not in names]
    for draft in {draft.node_place: draft for draft in reversed(misplaced)}.values():
        where = f"which is not under 'nodes:' ({', '.join(names)}).{did_you_mean(draft.node, names)}"
        notes.refuse(draft.node_place, f"pod '{draft.key}' is on node '{draft.node}', {where}")


def _spread(given: Sequence[str], in_mesh: Sequence[bool], names: Sequence[str]) -> list[str]:
    """The node of each pod: ``given``, or the emptiest. Pods of the mesh choose first, the others beside them."""
    chosen = list(given)
    for kind in (True, False):
        counts = Counter(node for node, member in zip(given, in_mesh, strict=True) if member is kind)
        others = Counter(node for node, member in zip(chosen, in_mesh, strict=True) if member is not kind)
        emptiest = [(counts[name], others[name], order, name) for order, name in enumerate(names)]
        heapq.heapify(emptiest)
        for place, (node, member) in enumerate(zip(given, in_mesh, strict=True)):
            if member is kind and not node:
                count, beside, order, chosen[place] = emptiest[0]
                heapq.heapreplace(emptiest, (count + 1, beside, order, chosen[place]))
    return chosen


def _program(container: Container, pod: Pod, images: Mapping[str, Program | None]) -> Program | None:
    """What a container runs. Where the echo stands in for an image, the image's command has nothing to run."""
    env = {**container.env, **{name: _field(pod, path) for name, path in container.env_fields.items()}}
    if not container.image:
        argv = container.command + container.args
        return Program(argv=argv, env=env, working_dir=container.working_dir) if argv else None
    _, entry = image_table.find(container.image, images)
    if entry is None:
        return None
    return Program(
        argv=(container.command or entry.argv) + container.args,
        env={**entry.env, **env},
        working_dir=container.working_dir or entry.working_dir,
    )


def _field(pod: Pod, path: str) -> str:
    """Source: https://kubernetes.io/docs/concepts/workloads/pods/downward-api/"""
    fields = {
        "metadata.name": pod.name,
        "metadata.namespace": pod.namespace,
        "metadata.uid": pod.uid,
        "spec.nodeName": pod.node,
        "spec.serviceAccountName": pod.service_account,
        "status.podIP": str(pod.ipv4),
        "status.podIPs": f"{pod.ipv4},{pod.ipv6}",
    }
    return fields[path]


# --- Services --------------------------------------------------------------------------------------------------------


def with_target_ports(mesh: Mesh) -> tuple[Mesh, list[tuple[Service, Pod, int]]]:
    """``mesh`` with the built-in echo on every port that a Service leads to, and what was added.

    A containerPort only informs: in a cluster the program listens where the Service says, whatever the pod declares.
    """
    added: list[tuple[Service, Pod, int]] = []
    ports = {pod.key: [port.number for port in pod.ports] for pod in mesh.pods}
    for service in mesh.services:
        for pod in mesh.endpoints(service):
            for port in service.ports:
                number = mesh.target(service, port, pod)
                if pod.program is None and number is not None and number not in (*ports[pod.key], *ZTUNNEL_PORTS):
                    ports[pod.key].append(number)
                    added.append((service, pod, number))
    return replace(mesh, pods=tuple(_listening(pod, ports[pod.key]) for pod in mesh.pods)), added


def _listening(pod: Pod, numbers: Sequence[int]) -> Pod:
    more = tuple(ContainerPort(number=number) for number in numbers[len(pod.ports) :])
    return replace(pod, ports=(*pod.ports, *more)) if more else pod


def nobody_behind(mesh: Mesh, service: Service) -> str:
    """Why no pod stands behind ``service``, or behind one of its ports; empty where some does."""
    behind = mesh.endpoints(service)
    if not service.selector:
        if not behind:
            return "it has no selector, and no Endpoints or EndpointSlice of it holds a pod's address"
        for port in service.ports:
            if all(mesh.target(service, port, pod) is None for pod in behind):
                named = f"named '{port.name}'" if port.name else "without a name"
                return f"its Endpoints have no port {named}, as its port {port.port} has"
        return ""
    wanted = ", ".join(f"{key}={value}" for key, value in service.selector.items())
    if not behind:
        return f"no pod of namespace '{service.namespace}' has its labels ({wanted})"
    for port in service.ports:
        if all(mesh.target(service, port, pod) is None for pod in behind):
            return f"no pod with its labels ({wanted}) has a port named '{port.target_port}'"
    return ""
