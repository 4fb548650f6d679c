"""What the agents of a lab are asked: to bring pods into the mesh, to release them, to let go of those that end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from meshlab.agent.requests import Enrol, Enrolled, GiveUp, Release, Remove
from meshlab.errors import LabError, LabLostError, NotEnrolledError
from meshlab.kernel.conversation import Number
from meshlab.kernel.messages import Request
from meshlab.lab.cluster import as_asked
from meshlab.lab.running.programs import Peer
from meshlab.lab.site import NodeProxy, Site, nodes_of
from meshlab.model import Pod
from meshlab.plan.netns import pod_netns

_A = TypeVar("_A")
ByNode = Mapping[str, list[Pod]]
_SLACK_S = 5.0
"""How much later than the deadline an agent's answer may come."""


def enrol(site: Site, pods: Sequence[Pod], timeout_s: float) -> None:
    """Ask every agent at once; a pod is enrolled, or pending with a reason.

    Where no agent runs, its pods wait until one is started, at most until the deadline.

    Raises:
        NotEnrolledError: a pod is pending at the deadline, and the settings do not allow that.
    """
    deadline = time.monotonic() + timeout_s
    pending: dict[str, str] = {}
    waiting = nodes_of(pods)
    while waiting:
        seen = site.changes
        refused, waiting = _ask(site, waiting, max(0.0, deadline - time.monotonic()))
        pending |= refused
        if waiting and not site.wait_for_change(seen, deadline - time.monotonic()):
            pending |= {pod.key: f"no agent runs on {node}" for node, some in waiting.items() for pod in some}
            break
    for pod in pods:
        site.pending.pop(pod.key, None)
    site.pending.update(pending)
    if pending and not site.settings.allow_pending:
        missing = "; ".join(f"{key}: {why}" for key, why in sorted(pending.items()))
        raise NotEnrolledError(f"pending (at most {timeout_s:g} s were given): {missing}{last_words(site)}")


def _ask(site: Site, by_node: ByNode, timeout_s: float) -> tuple[dict[str, str], ByNode]:
    """What became of the pods: those that are pending, with the reason, and by node those that nobody was asked of."""
    posted: dict[str, tuple[Peer, Number[Enrolled]]] = {}
    pending: dict[str, str] = {}
    unasked: dict[str, list[Pod]] = {}
    for node, some in by_node.items():
        agent = site.peer("agent", node)
        if agent is None:
            unasked[node] = some
            continue
        fds = [site.netns[pod_netns(pod.key)].fd for pod in some]
        asked = [as_asked(pod) for pod in some]
        posted[node] = agent, agent.post(Enrol(asked, timeout_s, no_proxy=not site.proxies[node]), fds)
    for node, (agent, number) in posted.items():
        uids = {pod.uid: pod.key for pod in by_node[node]}
        try:
            answer, _ = agent.answer(number, timeout_s + _SLACK_S, _GiveUp(site, node, agent))
        except LabLostError:
            if site.peer("agent", node) is agent:
                raise
            unasked[node] = by_node[node]  # a verb ended it: the next one is asked
        else:
            pending |= {uids[uid]: why for uid, why in answer["pending"].items()}
    return pending, unasked


def release(site: Site, pods: Sequence[Pod], timeout_s: float) -> None:
    """Take running pods out of the mesh: their rules go first, then the node proxies let go of them.

    Raises:
        LabError: Linux kept the rules of one, whose traffic is redirected still.
    """
    known = {pod.uid: pod.key for pod in pods if pod.key not in site.pending}
    members = [pod for pod in pods if pod.uid in known]
    answers = _tell(site, lambda uids: Release(uids, timeout_s), members, timeout_s)
    kept = {uid: why for answer in answers for uid, why in answer["failed"].items()}
    if kept:
        raise LabError("not released: " + "; ".join(f"{known[uid]}: {why}" for uid, why in kept.items()))


def let_go(site: Site, pods: Sequence[Pod], timeout_s: float) -> None:
    """Have the node proxies let go of pods that end. A node without an agent is told nothing: its proxy keeps them."""
    _tell(site, lambda uids: Remove(uids, timeout_s), pods, timeout_s)


def _tell(site: Site, request: Callable[[list[str]], Request[_A]], pods: Sequence[Pod], timeout_s: float) -> list[_A]:
    """Send every agent the request for the uids of its pods; their answers."""
    posted: list[tuple[Peer, Number[_A]]] = []
    for node, some in nodes_of(pods).items():
        if (agent := site.peer("agent", node)) is not None:
            posted.append((agent, agent.post(request([pod.uid for pod in some]))))
    return [agent.answer(number, timeout_s + _SLACK_S)[0] for agent, number in posted]


@dataclass(slots=True)
class _GiveUp:
    """Tells the agent of a node, once, that its proxy is gone: nobody starts it again meanwhile."""

    site: Site
    node: str
    agent: Peer
    told: bool = False

    def __call__(self) -> None:
        if self.told:
            return
        gone = [proxy for proxy in self.site.proxies[self.node] if _has_ended(self.site, proxy)]
        if gone and len(gone) == len(self.site.proxies[self.node]):
            self.told = True
            how = self.site.programs.how_ended(str(gone[-1].instance))
            self.agent.post(GiveUp(f"the node proxy is gone: {how}"))


def _has_ended(site: Site, proxy: NodeProxy) -> bool:
    return site.programs.has_ended(str(proxy.instance))


def last_words(site: Site) -> str:
    """What the proxies printed last, and how they ended: mostly the reason why something did not come off."""
    site.sandbox.poll()
    said = []
    for program in sorted(site.programs.of_role("ztunnel"), key=lambda program: program.name):
        if program.pid in site.sandbox.exits:
            said.append(f"\n{program.name} ended: {site.programs.how_ended(program.name)}")
        lines = site.programs.logs(program.name).splitlines()[-6:]
        said += [f"\n{program.name}: {line}" for line in lines]
    return "".join(said)


def settled_in_part(site: Site, error: LabError) -> None:
    """Where pods may stay pending: what was waited for in vain is told of them.

    Raises:
        LabError: none is pending, or none may be.
    """
    if not site.settings.allow_pending or not site.pending:
        raise error
    site.pending.update({key: f"{why}; {error}" for key, why in site.pending.items()})
