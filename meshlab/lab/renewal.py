"""A lab that was used becomes as good as a new one, or it is said why not.

    programs        what verbs have ended runs again, what they have paused goes on, an upgrade is undone
    pods            those in which a program ran come anew, and with them their files, processes and rules
    mesh            that of the file; on the way a policy that says nothing comes and goes, so that every proxy answers

Then all of it is looked at: the mesh is the file's but for its pods' incarnations, everything runs, the audit is clean.
Left are higher generations and incarnations, the place of a second node proxy, and what programs have printed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from meshlab.errors import LabError
from meshlab.lab import edits
from meshlab.lab.instances import whole_again
from meshlab.lab.running.audit import findings
from meshlab.lab.site import Site
from meshlab.lab.transition import Transitions
from meshlab.model import Action, AuthorizationPolicy, InstanceId, Mesh

_PROBE = "meshlab-renewal"


def renew(transitions: Transitions, timeout_s: float) -> None:
    """Make the lab of ``transitions`` as good as a new one.

    Raises:
        LabError: it is not; the message says what is otherwise.
    """
    site, file = transitions.site, transitions.site.topology.mesh
    with transitions.alone:
        whole_again(transitions, timeout_s)
        used = [pod.key for pod in file.pods if pod.program is not None or site.mounts.known(pod.key) is not None]
        transitions.edit(lambda mesh: _probed(edits.back_to(mesh, file, used)), timeout_s)
        transitions.edit(lambda mesh: edits.back_to(mesh, file), timeout_s)
        if wrong := [*differences(site), *findings(site)]:
            raise LabError(f"this lab is not as good as a new one: {'; '.join(wrong)}")


def differences(site: Site) -> Iterator[str]:
    """What is not as in a new lab, as half sentences."""
    if not edits.is_of(site.mesh, site.topology.mesh):
        yield "its mesh is not that of its file"
    yield from (f"{key} is pending: {why}" for key, why in site.pending.items())
    yield from (f"the node proxy of {node} is another one" for node in site.choices if _is_another(site, node))
    for one in _wanted(site):
        running = site.programs.running(one)
        if len(running) != 1:
            yield f"{len(running)} generations of {one} run"
        yield from (f"{program.name} is paused" for program in running if program.paused)


def _is_another(site: Site, node: str) -> bool:
    return site.choices[node] != site.first_choices[node]


def _wanted(site: Site) -> Iterator[InstanceId]:
    """What runs in a new lab, once each."""
    yield from (InstanceId("recorder"), InstanceId("control-plane"))
    for node in site.topology.nodes:
        yield from (InstanceId("agent", node.name), InstanceId("echo", node.name))
        if site.first_choices[node.name].proxy is not None:
            yield InstanceId("ztunnel", node.name)


def _probed(mesh: Mesh) -> Mesh:
    """``mesh`` with one more policy, which denies nothing, since it has no rules."""
    namespace = mesh.root_namespace
    probe = AuthorizationPolicy(name=_PROBE, namespace=namespace, action=Action.DENY, rules=())
    return replace(mesh, authorization_policies=(*mesh.authorization_policies, probe))
