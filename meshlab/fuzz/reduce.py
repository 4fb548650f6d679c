"""A topology with steps, made smaller in one way after the other. Pure: whether the smaller one still fails is asked.

Every candidate is judged anew by the oracle (``moments.expecting``): what is looked for is not the old verdict but a
call that does not end as the policies then in effect say. Where these do not say one thing it is no candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from ipaddress import ip_address
from typing import Any, TypeVar

from meshlab.fuzz.reduce_routes import less_routes, routed_to, without_strangers
from meshlab.lab.calls.names import backends_of, behind
from meshlab.model import (
    FAMILIES,
    Address,
    AskStep,
    AuthorizationPolicy,
    CallShape,
    CallStep,
    Condition,
    ConnectStep,
    Mesh,
    MtlsMode,
    Operation,
    PeerAuthentication,
    PolicyStep,
    PushStep,
    Rule,
    Service,
    Source,
    Step,
    Topology,
    TrafficStep,
)
from meshlab.model import addresses as places
from meshlab.play.moments import expecting

T = TypeVar("T")


def smaller(topology: Topology) -> Iterator[Topology]:
    """Every way to make ``topology`` smaller by one thing; what takes most away comes first."""
    yield from fewer_steps(topology)
    yield from plainer(topology)


def fewer_steps(topology: Topology) -> Iterator[Topology]:
    """Without some steps. One of those that are left can come to something else than it should."""
    for steps in _fewer(topology.steps):
        if any(isinstance(step, CallStep | AskStep | ConnectStep | PushStep | TrafficStep) for step in steps):
            yield replace(topology, steps=steps)


def plainer(topology: Topology) -> Iterator[Topology]:
    """With less in its policies and steps; how often a call is made stays, for it would fail less often."""
    for mesh in (*less_routes(topology.mesh), *_less_policies(topology.mesh)):
        yield replace(topology, mesh=mesh)
    for place, step in enumerate(topology.steps):
        if isinstance(step, CallStep):
            for simpler in (*_direct(topology.mesh, step), *_plainer(step)):
                yield replace(topology, steps=_with(topology.steps, place, simpler))
    for place, step in enumerate(topology.steps):
        if isinstance(step, PolicyStep):
            for less in _less_policies(step):
                yield replace(topology, steps=_with(topology.steps, place, less))


def _direct(mesh: Mesh, step: CallStep) -> Iterator[CallStep]:
    """To a pod behind the service; not to the calling pod, whose calls to its own address no proxy sees."""
    if "/" not in step.to:
        for pod, number in behind(mesh, step.to):
            if pod.key != step.source and number in {port.number for port in pod.ports}:
                yield replace(step, to=f"{pod.key}:{number}")


def _plainer(step: CallStep) -> Iterator[CallStep]:
    """Sending less, or in a plainer way."""
    shape, plain = step.shape, CallShape()
    whole = replace(shape, body_bytes=0, body_seed=0)
    half = replace(shape, body_bytes=shape.body_bytes // 2)
    paths = [replace(shape, path=path) for path in (plain.path, shape.path.partition("?")[0])]
    headers = [replace(shape, headers=_without(shape.headers, place)) for place in range(len(shape.headers))]
    ways = (replace(shape, mode=plain.mode), replace(shape, method=plain.method), half, *paths, *headers)
    for simpler in (plain, whole, *ways):
        if simpler != shape and (simpler.body_bytes or not simpler.body_seed):
            yield replace(step, shape=simpler)


def _fewer(entries: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    """Without all of them, without a half, a quarter ... down to one."""
    size = len(entries)
    while size:
        for start in range(0, len(entries), size):
            yield (*entries[:start], *entries[start + size :])
        size //= 2


Holder = TypeVar("Holder", Mesh, PolicyStep)


def _less_policies(holder: Holder) -> Iterator[Holder]:
    rules, modes = holder.authorization_policies, holder.peer_authentications
    for fewer in _fewer(rules):
        yield replace(holder, authorization_policies=fewer)
    for fewer_modes in _fewer(modes):
        yield replace(holder, peer_authentications=fewer_modes)
    for place, policy in enumerate(rules):
        for less in _less_authorization(policy):
            yield replace(holder, authorization_policies=_with(rules, place, less))
    for place, mode in enumerate(modes):
        for simpler in _less_authentication(mode):
            yield replace(holder, peer_authentications=_with(modes, place, simpler))


def _less_authorization(policy: AuthorizationPolicy) -> Iterator[AuthorizationPolicy]:
    if len(policy.rules) > 1:
        yield from (replace(policy, rules=(rule,)) for rule in policy.rules)
    if policy.dry_run:
        yield replace(policy, dry_run=False)
    if policy.selector is not None:
        yield replace(policy, selector=None)
    for place, rule in enumerate(policy.rules):
        for less in _less_rule(rule):
            yield replace(policy, rules=_with(policy.rules, place, less))


def _less_rule(rule: Rule) -> Iterator[Rule]:
    for name in ("sources", "operations", "conditions"):
        entries = getattr(rule, name)
        for place in range(len(entries)):
            yield replace(rule, **{name: _without(entries, place)})
    for name in ("sources", "operations", "conditions"):
        entries = getattr(rule, name)
        for place, entry in enumerate(entries):
            for less in _less_entry(entry):
                yield replace(rule, **{name: _with(entries, place, less)})


Entry = TypeVar("Entry", Source, Operation, Condition)


def _less_entry(entry: Entry) -> Iterator[Entry]:
    """Without one of its fields, or one of a field's values; never without any, which Istio refuses."""
    named = {field.name: getattr(entry, field.name) for field in fields(entry) if field.name != "key"}
    given = {name: values for name, values in named.items() if values}
    if len(given) > 1:
        yield from (_changed(entry, name, ()) for name in given)
    for name, values in given.items():
        if len(values) > 1:
            yield from (_changed(entry, name, _without(values, place)) for place in range(len(values)))


def _changed(entry: Entry, name: str, values: tuple[str, ...]) -> Entry:
    changes: dict[str, Any] = {name: values}
    return replace(entry, **changes)


def _less_authentication(policy: PeerAuthentication) -> Iterator[PeerAuthentication]:
    ports = dict(policy.port_level_mtls)
    for port in ports:
        yield replace(policy, port_level_mtls={other: mode for other, mode in ports.items() if other != port})
    if policy.selector and not ports:
        yield replace(policy, selector=None)
    if policy.mode is not MtlsMode.UNSET:
        yield replace(policy, mode=MtlsMode.UNSET)


def _without(entries: Sequence[T], place: int) -> tuple[T, ...]:
    return (*entries[:place], *entries[place + 1 :])


def _with(entries: Sequence[T], place: int, entry: Any) -> tuple[T, ...]:
    return (*entries[:place], entry, *entries[place + 1 :])


# --- pods ------------------------------------------------------------------------------------------------------------


def fewer_pods(topology: Topology) -> Iterator[Topology]:
    """Only the pods that a step names; or those and one more, which may make the same calls after them.

    Each is judged anew: in another place a pod has another address, and a block may have another pod in it.
    """
    return filter(None, map(expecting, _fewer_pods(topology)))


def _fewer_pods(topology: Topology) -> Iterator[Topology]:
    if not all(isinstance(step, CallStep | PolicyStep) for step in topology.steps):
        return  # what else a step names is not looked for
    named = called(topology)
    if len(named) == len(topology.mesh.pods) and not topology.mesh.services:
        return
    yield with_pods(without_services(topology), named)
    if topology.mesh.services:
        yield with_pods(topology, named)
    others = [pod for pod in topology.mesh.pods if pod.key not in named]
    for other in others:
        yield with_pods(topology, {*named, other.key})
    steps = [step for step in topology.steps if isinstance(step, CallStep)]
    for other in filter(topology.mesh.is_enrolled, others):
        more = tuple(replace(step, source=other.key) for step in steps)
        yield with_pods(replace(topology, steps=(*topology.steps, *more)), {*named, other.key})


def with_pods(topology: Topology, keys: Collection[str]) -> Topology:
    """Only these pods, what else hangs on the others gone; blocks move with the address they are near to.

    A pod's addresses follow from its place, so they change; a block keeps its distance, bit by bit, from the pod that
    it was nearest to. A node stays while a pod is on it, a namespace while a pod or a policy is in it, a service while
    it selects a pod.
    """
    mesh = topology.mesh
    kept = [pod for pod in mesh.pods if pod.key in keys]
    held_nodes = tuple(node for node in topology.nodes if any(pod.node == node.name for pod in kept))
    nodes = [node.name for node in held_nodes]
    pods = tuple(
        replace(
            pod,
            ipv4=places.pod4(nodes.index(pod.node), place),
            ipv6=places.pod6(nodes.index(pod.node), place),
        )
        for place, pod in enumerate(kept)
    )
    moves: dict[Address, Address] = {}
    for old, new in zip(kept, pods, strict=True):
        moves |= {old.ipv4: new.ipv4, old.ipv6: new.ipv6}
    services = tuple(service for service in mesh.services if any(pod in kept for pod in mesh.endpoints(service)))
    waypoints = tuple(waypoint for waypoint in mesh.waypoints if waypoint.key in {pod.key for pod in kept})
    if mesh.waypoints:  # their Services have no manifest, so that a file gives them the addresses of their places
        placed = tuple(_at_place(service, place) for place, service in enumerate(services))
        for was, now in zip(services, placed, strict=True):
            for family in FAMILIES:
                if (before := was.address(family)) is not None and (after := now.address(family)) is not None:
                    moves[before] = after
        services = placed
    holders: list[Mesh | PolicyStep] = [mesh, *(step for step in topology.steps if isinstance(step, PolicyStep))]
    used = {pod.namespace for pod in pods}
    for held in holders:
        used.update(policy.namespace for policy in held.authorization_policies)
        used.update(policy.namespace for policy in held.peer_authentications)
    fewer = replace(mesh, pods=pods, services=services, waypoints=waypoints, places=len(pods))
    moved = _moved_policies(without_strangers(fewer), moves)
    return replace(
        topology,
        nodes=held_nodes,
        mesh=replace(moved, namespaces=tuple(space for space in mesh.namespaces if space.name in used)),
        steps=tuple(_moved_step(step, moves) for step in topology.steps),
        expect=(),
    )


def _at_place(service: Service, place: int) -> Service:
    return replace(
        service,
        ipv4=None if service.ipv4 is None else places.service4(place),
        ipv6=None if service.ipv6 is None else places.service6(place),
    )


def called(topology: Topology) -> frozenset[str]:
    """The pods that call, and those that may be reached."""
    keys: set[str] = set()
    for step in topology.steps:
        if isinstance(step, CallStep):
            keys.update((step.source, *(pod.key for pod, _ in behind(topology.mesh, step.to))))
            keys.update(routed_to(topology.mesh, step.to))
    return frozenset(keys)


def without_services(topology: Topology) -> Topology:
    """Only those services that a step names, those that their routes lead to, and those of waypoints."""
    mesh = topology.mesh
    named = {step.to.rpartition(":")[0] for step in topology.steps if isinstance(step, CallStep)}
    named |= {backend for service in named for backend in backends_of(mesh, service)}
    services = tuple(service for service in mesh.services if service.key in named or mesh.is_of_waypoint(service))
    return replace(topology, mesh=without_strangers(replace(mesh, services=services)))


def _moved_step(step: Step, moves: Mapping[Address, Address]) -> Step:
    return _moved_policies(step, moves) if isinstance(step, PolicyStep) else step


def _moved_policies(holder: Holder, moves: Mapping[Address, Address]) -> Holder:
    policies = (
        replace(policy, rules=tuple(_moved_rule(rule, moves) for rule in policy.rules))
        for policy in holder.authorization_policies
    )
    return replace(holder, authorization_policies=tuple(policies))


def _moved_rule(rule: Rule, moves: Mapping[Address, Address]) -> Rule:
    def moved(blocks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(moved_block(block, moves) for block in blocks)

    return replace(
        rule,
        sources=tuple(
            replace(source, ip_blocks=moved(source.ip_blocks), not_ip_blocks=moved(source.not_ip_blocks))
            for source in rule.sources
        ),
        conditions=tuple(
            replace(condition, values=moved(condition.values), not_values=moved(condition.not_values))
            if condition.key in ("source.ip", "destination.ip")
            else condition
            for condition in rule.conditions
        ),
    )


def moved_block(block: str, moves: Mapping[Address, Address]) -> str:
    """``block`` as far from the new address as it was from the old one that it was nearest to."""
    text, slash, length = block.partition("/")
    address = ip_address(text)
    near = [old for old in moves if old.version == address.version]
    if not near or length == "0":
        return block
    old = min(near, key=lambda one: int(one) ^ int(address))
    return f"{type(address)(int(address) ^ int(old) ^ int(moves[old]))}{slash}{length}"


Fails = Callable[[Topology], bool]
Ways = Callable[[Topology], Iterator[Topology]]


def reduced(topology: Topology, fails: Fails, tries: int = 400, ways_of: Ways = smaller) -> Topology:
    """The smallest found that still ``fails``, asking at most ``tries`` times; ``ways_of`` says what may be smaller.

    After a step that counted it goes on from there: what was needed a moment ago is asked for again last.
    """
    ways = [*ways_of(topology)]
    at = kept = 0
    while kept < len(ways) and tries > 0:
        candidate = expecting(ways[at % len(ways)])
        tries -= candidate is not None
        if candidate is not None and fails(candidate):
            topology, kept = candidate, 0
            ways = [*ways_of(topology)]
        else:
            at, kept = at + 1, kept + 1
    return topology
