"""From who calls whom to the connections that the destination's node proxy sees, and what they come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from meshlab.model import Connection, Family, Mesh, Pod, Service, ServicePort, Verdict
from meshlab.oracle.decide import decide


@dataclass(frozen=True, slots=True)
class ServiceDecision:
    """What calls to a Service's port end in."""

    expected: Literal["allow", "deny", "mixed"]
    """``mixed``: endpoints disagree, and the proxy picks one at random."""
    rule: str


def connection(mesh: Mesh, source: Pod, destination: Pod, port: int, family: Family) -> Connection:
    """The connection that ``source`` makes to ``port`` of ``destination``.

    HBONE, and with it an identity, needs a proxy at both ends; with one end out of the mesh the bytes are plaintext.
    """
    both = mesh.is_enrolled(source) and mesh.is_enrolled(destination)
    return Connection(
        source=source.identity(mesh.trust_domain) if both else None,
        source_ip=source.address(family),
        destination=destination.key,
        destination_ip=destination.address(family),
        port=port,
    )


def decide_service(mesh: Mesh, source: Pod, service: Service, port: int, family: Family) -> ServiceDecision:
    """Judge a call of an enrolled pod to ``port`` of ``service`` by its VIP, over every endpoint that it may reach."""
    service_port = next((candidate for candidate in service.ports if candidate.port == port), None)
    if service_port is None:
        return ServiceDecision("deny", f"{service.key} has no port {port}")
    rules = _rules_by_verdict(mesh, source, service, service_port, family)
    allowing, denying = rules[Verdict.ALLOW], rules[Verdict.DENY]
    if allowing and denying:
        return ServiceDecision("mixed", f"endpoints disagree: {'; '.join(denying + allowing)}")
    if allowing:
        return ServiceDecision("allow", "; ".join(allowing))
    return ServiceDecision("deny", "; ".join(denying) or f"{service.key} has no endpoint for port {port}")


def _rules_by_verdict(
    mesh: Mesh, source: Pod, service: Service, service_port: ServicePort, family: Family
) -> dict[Verdict, list[str]]:
    """Each rule that decided for some endpoint, said once: an endpoint without the named target port is none."""
    rules: dict[Verdict, dict[str, list[str]]] = {Verdict.ALLOW: {}, Verdict.DENY: {}}
    for pod in mesh.endpoints(service):
        number = mesh.target(service, service_port, pod)
        if number is not None:
            decision = decide(mesh, connection(mesh, source, pod, number, family))
            rules[decision.verdict].setdefault(decision.rule, []).append(pod.key)
    return {
        verdict: [f"{rule} (at {', '.join(pods)})" for rule, pods in by_rule.items()]
        for verdict, by_rule in rules.items()
    }
