"""The verdict of AuthorizationPolicy and PeerAuthentication on one L4 connection, as Istio's ambient gives it.

    not in the mesh -> allow
    no identity, and inbound capture is bypassed -> allow
    STRICT and no identity -> deny
    any DENY policy matches -> deny
    no ALLOW policy -> allow
    any ALLOW policy matches -> allow
    otherwise -> deny

Source: https://istio.io/latest/docs/concepts/security/#implicit-enablement and .../ambient/usage/l4-policy/
"""

from __future__ import annotations

from collections.abc import Sequence

from meshlab.model import (
    Action,
    AuthorizationPolicy,
    Connection,
    Decision,
    HttpRequest,
    Mesh,
    Pod,
    Verdict,
    has_labels,
)
from meshlab.model.profile import policies_in_force
from meshlab.model.workload import BYPASS_INBOUND
from meshlab.oracle.matching import NOBODY, Claims, match_policy
from meshlab.oracle.mtls import strict_rule


def decide(mesh: Mesh, connection: Connection) -> Decision:
    """Judge ``connection``; the decision's rule is a sentence that names the policy and what in it decided.

    Raises:
        KeyError: ``connection.destination`` is no pod of ``mesh``.
    """
    pod = mesh.pod(connection.destination)
    if not mesh.is_enrolled(pod):
        return Decision(Verdict.ALLOW, f"{pod.key} is not in the mesh")
    if connection.source is None:
        if pod.bypasses_inbound:
            return Decision(Verdict.ALLOW, f"{pod.key} takes plaintext past its node proxy ({BYPASS_INBOUND})")
        rule = strict_rule(mesh, pod, connection.port)
        if rule is not None:
            return Decision(Verdict.DENY, rule)
    return judged_by(_policies_of(mesh, pod), connection)


def judged_by(
    policies: Sequence[AuthorizationPolicy],
    connection: Connection,
    request: HttpRequest | None = None,
    claims: Claims = NOBODY,
    *,
    at_waypoint: bool = False,
) -> Decision:
    """What these policies say: DENY before ALLOW; where there is an ALLOW, one has to match.

    Args:
        request: what a waypoint reads on the connection; ``None``: only the connection is judged.
        claims: what its token says.
    """
    denying = [policy for policy in policies if policy.action is Action.DENY]
    allowing = [policy for policy in policies if policy.action is Action.ALLOW]
    for policy in denying:
        reason = match_policy(policy, connection, request, claims, at_waypoint=at_waypoint)
        if reason is not None:
            return Decision(Verdict.DENY, f"AuthorizationPolicy {policy.key} denies: {reason}")
    for policy in allowing:
        reason = match_policy(policy, connection, request, claims, at_waypoint=at_waypoint)
        if reason is not None:
            return Decision(Verdict.ALLOW, f"AuthorizationPolicy {policy.key} allows: {reason}")
    if allowing:
        return Decision(Verdict.DENY, f"no ALLOW policy matches: {_names(allowing)}")
    if denying:
        return Decision(Verdict.ALLOW, f"no DENY policy matches ({_names(denying)}), and there is no ALLOW policy")
    return Decision(Verdict.ALLOW, "no policy applies")


def _policies_of(mesh: Mesh, pod: Pod) -> list[AuthorizationPolicy]:
    """Every policy in force at ``pod``'s node proxy, by name: the sentence must not depend on the file's order."""
    chosen = [policy for policy in policies_in_force(mesh) if _selects(policy, mesh, pod)]
    return sorted(chosen, key=lambda policy: policy.key)


def _selects(policy: AuthorizationPolicy, mesh: Mesh, pod: Pod) -> bool:
    """Namespace (the root namespace's is mesh-wide) and labels; one with targetRefs is for a waypoint."""
    if policy.dry_run or policy.target_refs:
        return False
    if policy.namespace not in {pod.namespace, mesh.root_namespace}:
        return False
    return has_labels(pod.labels, policy.selector or {})


def _names(policies: list[AuthorizationPolicy]) -> str:
    return ", ".join(policy.key for policy in policies)
