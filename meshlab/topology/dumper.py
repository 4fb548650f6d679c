"""``Topology`` -> text that loads as the same topology: what a report or a reproduction saves.

Namespaces come first and every address of a Service is written out, so that nothing hangs on where a manifest stood;
pods keep their order, from which their addresses follow.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from meshlab.model import (
    WAYPOINT_CLASS,
    WAYPOINT_FOR,
    AskStep,
    AuthorizationPolicy,
    CallShape,
    CallStep,
    ChangeStep,
    ConnectStep,
    ContainerPort,
    Endpoints,
    Expectation,
    JwtRule,
    Node,
    PeerAuthentication,
    Pod,
    PolicyStep,
    Program,
    PushStep,
    RequestAuthentication,
    Rule,
    Service,
    ServicePort,
    Step,
    Topology,
    TrafficStep,
    VerbStep,
    Waypoint,
    addresses,
)
from meshlab.model.ambient import HBONE_PORT
from meshlab.topology.keys import LAB_API
from meshlab.topology.nodes import read_documents
from meshlab.topology.notes import Notes
from meshlab.topology.policies import DRY_RUN, operation_fields, source_fields
from meshlab.topology.services import SERVICE_NAME, named_protocol
from meshlab.topology.steps import TRAFFIC_NUMBERS
from meshlab.topology.writing import given, headed, plain, write
from meshlab.topology.writing_routes import destination_rule, http_route

_SECURITY = "security.istio.io/v1"
_DEFAULT_TIMEOUT_S = 10.0


def dump(topology: Topology) -> str:
    """YAML which ``load`` reads as ``topology`` again."""
    return write(_documents(topology))


def _documents(topology: Topology) -> Iterator[dict[str, Any]]:
    mesh = topology.mesh
    for namespace in mesh.namespaces:
        metadata = given(name=namespace.name, labels=dict(namespace.labels))
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    yield _lab(topology)
    yield from map(_gateway, mesh.waypoints)
    yield from map(_service, (service for service in mesh.services if not mesh.is_of_waypoint(service)))
    yield from map(_endpoints, mesh.endpoints_by_hand)
    yield from map(http_route, mesh.routes)
    yield from map(destination_rule, mesh.destination_rules)
    yield from map(_authorization_policy, mesh.authorization_policies)
    yield from map(_peer_authentication, mesh.peer_authentications)
    yield from map(_request_authentication, mesh.request_authentications)


def _lab(topology: Topology) -> dict[str, Any]:
    timeout = topology.ready_timeout_s
    spec = {
        "nodes": [_node(node) for node in topology.nodes],
        "dataplane": {
            "ztunnel": topology.ztunnel,
            **given(waypoint=topology.waypoint),
        },
        **given(
            profile=topology.mesh.profile if topology.mesh.profile != "advisory" else "",
            pods=_pods(topology),
            waypoints=_waypoints(topology),
            images={pattern: _program(program) for pattern, program in topology.images.items()},
            expect=[_row(row) for row in topology.expect],
            steps=[_step(step) for step in topology.steps],
            urls=dict(topology.urls),
            mounts=list(topology.mounts),
            readyTimeoutSeconds=timeout if timeout != _DEFAULT_TIMEOUT_S else None,
        ),
    }
    return {"apiVersion": LAB_API, "kind": "Lab", "metadata": {"name": topology.name}, "spec": spec}


def _node(node: Node) -> str | dict[str, str]:
    return {"name": node.name, "ztunnel": node.ztunnel} if node.ztunnel else node.name


def _port(port: ContainerPort) -> int | dict[str, Any]:
    if not port.name and not port.server_first:
        return port.number
    return given(containerPort=port.number, name=port.name, mode="server-first" if port.server_first else "")


def _pods(topology: Topology) -> dict[str, dict[str, Any]]:
    nodes = {node.name: index for index, node in enumerate(topology.nodes)}
    placed = enumerate(pod for pod in topology.mesh.pods if not pod.gateway)
    return {pod.key: _pod(pod, place, nodes[pod.node]) for place, pod in placed}


def _waypoints(topology: Topology) -> dict[str, dict[str, Any]]:
    """The pods of waypoints, which are drawn up behind all others."""
    nodes = {node.name: index for index, node in enumerate(topology.nodes)}
    gates = [pod for pod in topology.mesh.pods if pod.gateway]
    first = len(topology.mesh.pods) - len(gates)
    return {
        pod.key: {"node": pod.node, **given(ips=_unusual(pod, place, nodes[pod.node]))}
        for place, pod in enumerate(gates, first)
    }


def _unusual(pod: Pod, place: int, node: int) -> list[str]:
    """The addresses of a pod that are not those of its place."""
    usual = {addresses.pod4(node, place), addresses.pod6(node, place)}
    return [str(address) for address in (pod.ipv4, pod.ipv6) if address not in usual]


def _pod(pod: Pod, place: int, node: int) -> dict[str, Any]:
    ports = [_port(port) for port in pod.ports]
    return {
        "node": pod.node,
        **given(
            ips=_unusual(pod, place, node),
            serviceAccount=pod.service_account if pod.service_account != "default" else "",
            ports=ports,
            labels=dict(pod.labels),
            annotations=dict(pod.annotations),
            image=pod.image,
            **_program(pod.program),
            init=[_program(program) for program in pod.init],
            restartPolicy=pod.restart_policy if pod.restart_policy != "Always" else "",
            capabilities=list(pod.add_capabilities),
            emptyDirs=list(pod.empty_dirs),
            workload=pod.workload,
        ),
    }


def _program(program: Program | None) -> dict[str, Any]:
    if program is None:
        return {}
    return given(run=list(program.argv), env=dict(program.env), workingDir=program.working_dir)


def _row(row: Expectation) -> dict[str, Any]:
    return {"from": row.source, "to": row.to, "verdict": row.verdict.value, **given(family=row.family)}


def _step(step: Step) -> dict[str, Any]:
    match step:
        case CallStep():
            more = {
                **given(family=step.family),
                **_shape(step.shape),
                **given(times=step.times if step.times > 1 else 0),
            }
            call = {"from": step.source, "to": step.to, **more}
            return {"call": call, "expect": step.expect.value}
        case PolicyStep():
            manifests = [
                *map(_authorization_policy, step.authorization_policies),
                *map(_peer_authentication, step.peer_authentications),
            ]
            return {"replace" if step.replaces else "apply": manifests}
        case ChangeStep():
            return {step.verb: [plain(document) for document in read_documents(step.manifests, Notes(step.verb))]}
        case PushStep():
            body = base64.b64encode(step.body).decode()
            return {"push": {"type": step.type_name, "name": step.name, "body": body}}
        case ConnectStep():
            more = given(family=step.family, mode="half-close" if step.half_close else "")
            return {"connect": {"from": step.source, "to": step.to, "as": step.name, **more}}
        case AskStep():
            return {"ask": step.name, "expect": "alive" if step.alive else "closed"}
        case VerbStep():
            return {step.verb: {step.instance: step.to} if step.verb == "upgrade" else step.instance}
        case TrafficStep():
            return _traffic(step)


def _traffic(step: TrafficStep) -> dict[str, Any]:
    numbers = {name: getattr(step, name) for name in TRAFFIC_NUMBERS}
    expect = {name: number for name, number in numbers.items() if number is not None}
    traffic = {
        "pairs": [list(pair) for pair in step.pairs],
        "rate": step.rate,
        "open": step.open,
        "during": [_step(each) for each in step.during],
    }
    return {"traffic": traffic, **given(expect=expect)}


def _shape(shape: CallShape) -> dict[str, Any]:
    """What is not as it would be where nothing is given."""
    plain = CallShape()
    named = {name: getattr(shape, name) for name in ("kind", "mode", "method", "path")}
    body = {"bytes": shape.body_bytes, **given(seed=shape.body_seed)} if shape.body_bytes else {}
    return {
        **{name: value for name, value in named.items() if value != getattr(plain, name)},
        **given(headers=dict(shape.headers), body=body),
    }


def _gateway(waypoint: Waypoint) -> dict[str, Any]:
    labels = {WAYPOINT_FOR: waypoint.serves} if waypoint.serves != "service" else {}
    listener = {"name": "mesh", "port": HBONE_PORT, "protocol": "HBONE"}
    if waypoint.from_all:
        listener["allowedRoutes"] = {"namespaces": {"from": "All"}}
    about = headed("Gateway", "gateway.networking.k8s.io/v1", waypoint.name, waypoint.namespace, labels=labels)
    return {**about, "spec": {"gatewayClassName": WAYPOINT_CLASS, "listeners": [listener]}}


def _service(service: Service) -> dict[str, Any]:
    families = {"IPv4": service.ipv4, "IPv6": service.ipv6}
    addresses = [str(address) for address in families.values() if address]
    spec = {
        **given(selector=dict(service.selector), ports=[_service_port(port) for port in service.ports]),
        **({"clusterIPs": addresses} if addresses else {"clusterIP": "None"}),
        **({"ipFamilies": [name for name, address in families.items() if address]} if len(addresses) == 1 else {}),
    }
    return {**headed("Service", "v1", service.name, service.namespace, labels=dict(service.labels)), "spec": spec}


def _service_port(port: ServicePort) -> dict[str, Any]:
    protocol = port.protocol if port.protocol != named_protocol(port.name) else ""
    return {**given(name=port.name, appProtocol=protocol), "port": port.port, "targetPort": port.target_port}


def _endpoints(endpoints: Endpoints) -> dict[str, Any]:
    ports = [{**given(name=port.name), "port": port.number} for port in endpoints.ports]
    if endpoints.kind == "Endpoints":
        subset = given(addresses=[{"ip": str(address)} for address in endpoints.addresses], ports=ports)
        about = headed("Endpoints", "v1", endpoints.name, endpoints.namespace)
        return {**about, "subsets": [subset] if subset else []}
    version = endpoints.addresses[0].version if endpoints.addresses else 4
    labels = {SERVICE_NAME: endpoints.service}
    return {
        **headed("EndpointSlice", "discovery.k8s.io/v1", endpoints.name, endpoints.namespace, labels=labels),
        "addressType": f"IPv{version}",
        "endpoints": [{"addresses": [str(address)]} for address in endpoints.addresses],
        "ports": ports,
    }


def _selector(selector: Mapping[str, str] | None) -> dict[str, Any]:
    return {} if selector is None else {"selector": given(matchLabels=dict(selector))}


def _authorization_policy(policy: AuthorizationPolicy) -> dict[str, Any]:
    annotations = {DRY_RUN: "true"} if policy.dry_run else {}
    spec = {
        **_selector(policy.selector),
        "action": policy.action.value,
        "rules": [_rule(rule) for rule in policy.rules],
        **given(targetRefs=[dict(target) for target in policy.target_refs]),
    }
    about = headed("AuthorizationPolicy", _SECURITY, policy.name, policy.namespace, annotations=annotations)
    return {**about, "spec": spec}


def _rule(rule: Rule) -> dict[str, Any]:
    return given(
        **{"from": [{"source": _lists(source_fields(source))} for source in rule.sources]},
        to=[{"operation": _lists(operation_fields(operation))} for operation in rule.operations],
        when=[
            {"key": when.key, **_lists(given(values=when.values, notValues=when.not_values))}
            for when in rule.conditions
        ],
    )


def _lists(fields: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    return {name: list(values) for name, values in fields.items()}


def _peer_authentication(policy: PeerAuthentication) -> dict[str, Any]:
    ports = {str(port): {"mode": mode.value} for port, mode in policy.port_level_mtls.items()}
    spec = {**_selector(policy.selector), "mtls": {"mode": policy.mode.value}, **given(portLevelMtls=ports)}
    return {**headed("PeerAuthentication", _SECURITY, policy.name, policy.namespace), "spec": spec}


def _request_authentication(policy: RequestAuthentication) -> dict[str, Any]:
    spec = {
        **_selector(policy.selector),
        **given(
            targetRefs=[dict(target) for target in policy.target_refs],
            jwtRules=[_jwt_rule(rule) for rule in policy.rules],
        ),
    }
    return {**headed("RequestAuthentication", _SECURITY, policy.name, policy.namespace), "spec": spec}


def _jwt_rule(rule: JwtRule) -> dict[str, Any]:
    return given(
        issuer=rule.issuer,
        jwks=rule.jwks,
        audiences=list(rule.audiences),
        fromHeaders=[{"name": name, **given(prefix=prefix)} for name, prefix in rule.from_headers],
        fromParams=list(rule.from_params),
        forwardOriginalToken=rule.forward_original_token,
    )
