"""From drafts to pods: each on a node, with its addresses and its program; and what Services add to them.

A pod of which the file names no node goes where the fewest of its kind are: of those in the mesh, or of those outside.
So pods of the mesh that call each other are on different nodes wherever there are two, as a scheduler would spread
them, and their traffic crosses a link on which something can be proven.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from meshlab.model import ContainerPort, Mesh, Node, Pod, Program, Service, addresses, target_port
from meshlab.topology import images as image_table
from meshlab.topology.notes import Notes, did_you_mean
from meshlab.topology.workloads import MAX_PODS, ZTUNNEL_PORTS, Draft


def place_pods(
    drafts: Sequence[Draft], nodes: Sequence[Node], mesh: Mesh, images: Mapping[str, Program | None], notes: Notes
) -> tuple[Pod, ...]:
    """Every draft on its node, with its addresses and its program.

    Args:
        drafts: in the order of the file.
        mesh: its namespaces say which pods belong into the mesh.
    """
    if len(drafts) > MAX_PODS:
        notes.refuse(drafts[MAX_PODS].place, f"{len(drafts)} pods; a lab has at most {MAX_PODS}")
        return ()
    names = [node.name for node in nodes]
    indices = {name: index for index, name in enumerate(names)}
    in_mesh = [mesh.enrols(draft.namespace, draft.labels, draft.annotations) for draft in drafts]
    _refuse_misplaced(drafts, names, notes)
    given = [draft.node if draft.node in names else "" for draft in drafts]
    chosen = _spread(given, in_mesh, names)
    return tuple(
        _placed(draft, place, node, indices[node], images)
        for place, (draft, node) in enumerate(zip(drafts, chosen, strict=True))
    )


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


def _placed(draft: Draft, place: int, node: str, index: int, images: Mapping[str, Program | None]) -> Pod:
    pod = Pod(
        name=draft.name,
        namespace=draft.namespace,
        node=node,
        ipv4=addresses.pod4(index, place),
        ipv6=addresses.pod6(index, place),
        labels=draft.labels,
        annotations=draft.annotations,
        service_account=draft.service_account,
        ports=draft.ports,
        image=draft.image,
        add_capabilities=draft.add_capabilities,
        empty_dirs=draft.empty_dirs,
        workload=draft.workload,
    )
    return replace(pod, program=_program(draft, pod, images))


def _program(draft: Draft, pod: Pod, images: Mapping[str, Program | None]) -> Program | None:
    """What the pod runs. Where the echo stands in for an image, the image's command has nothing to run."""
    env = {**draft.env, **{name: _field(pod, path) for name, path in draft.env_fields.items()}}
    if draft.run is not None:
        return draft.run
    if not draft.image:
        argv = draft.command + draft.args
        return Program(argv=argv, env=env, working_dir=draft.working_dir) if argv else None
    _, entry = image_table.find(draft.image, images)
    if entry is None:
        return None
    return Program(
        argv=(draft.command or entry.argv) + draft.args,
        env={**entry.env, **env},
        working_dir=draft.working_dir or entry.working_dir,
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
                number = target_port(port, pod)
                if pod.program is None and number is not None and number not in (*ports[pod.key], *ZTUNNEL_PORTS):
                    ports[pod.key].append(number)
                    added.append((service, pod, number))
    return replace(mesh, pods=tuple(_listening(pod, ports[pod.key]) for pod in mesh.pods)), added


def _listening(pod: Pod, numbers: Sequence[int]) -> Pod:
    more = tuple(ContainerPort(number=number) for number in numbers[len(pod.ports) :])
    return replace(pod, ports=(*pod.ports, *more)) if more else pod


def nobody_behind(mesh: Mesh, service: Service) -> str:
    """Why no pod stands behind ``service``, or behind one of its ports; empty where some does."""
    if not service.selector:
        return "it has no selector"
    wanted = ", ".join(f"{key}={value}" for key, value in service.selector.items())
    behind = mesh.endpoints(service)
    if not behind:
        return f"no pod of namespace '{service.namespace}' has its labels ({wanted})"
    for port in service.ports:
        if all(target_port(port, pod) is None for pod in behind):
            return f"no pod with its labels ({wanted}) has a port named '{port.target_port}'"
    return ""
