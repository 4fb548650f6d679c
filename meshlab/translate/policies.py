"""AuthorizationPolicy as ``istio.security.Authorization``: what of it a node proxy can enforce, and for whom.

    AuthorizationPolicy    Authorization
      rules[]       OR       groups[]               OR
        to[]        AND        rules[] = clauses    AND   one for to, one for from, one for each when
        from[]                   matches[]          OR    one for each entry of the list
        when[]

What needs HTTP is no part of it: an ALLOW rule with an HTTP field is left out whole, a DENY rule loses only the field.
Both ways more is denied, but for one: a match left without any field never matches, so a DENY rule whose ``to`` was
only HTTP denies nothing. For waypoints (targetRefs) and dry-run policies nothing is sent.

Source: https://istio.io/latest/docs/ambient/usage/l4-policy/ and Istio's ``ambient/authorization.go``, which wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from meshlab.model import Action, AuthorizationPolicy, Condition, Mesh, Operation, Pod, Rule, Source, has_labels
from meshlab.model.profile import policies_in_force
from meshlab.protocols.messages import message
from meshlab.translate.values import Values, addresses, ports, service_accounts, string_matches

if TYPE_CHECKING:
    from meshlab.protocols.stubs.authorization_pb2 import Authorization, Match

_CONDITION_FIELDS: dict[str, tuple[str, Values]] = {
    "source.ip": ("source_ips", addresses),
    "source.namespace": ("namespaces", string_matches),
    "source.principal": ("principals", string_matches),
    "destination.ip": ("destination_ips", addresses),
    "destination.port": ("destination_ports", ports),
}
"""The keys of ``when`` that L4 can judge: the field of a Match (``not_`` before it for notValues) and its values."""


def authorization_policies(mesh: Mesh) -> Iterator[tuple[str, Authorization]]:
    """The Authorizations of the mesh's AuthorizationPolicies, under their names.

    Raises:
        ValueError: one names an address block that is none.
    """
    for policy in policies_in_force(mesh):
        if _is_sent(policy):
            try:
                yield policy.key, _authorization(policy, mesh.root_namespace)
            except ValueError as error:
                raise ValueError(f"AuthorizationPolicy {policy.key}: {error}") from error


def selecting_policy_keys(mesh: Mesh, pod: Pod) -> Iterator[str]:
    """Policies that choose ``pod`` by its labels: of its namespace, and of the root namespace.

    Source: https://istio.io/latest/docs/reference/config/security/authorization-policy/ (``selector``)
    """
    for policy in policies_in_force(mesh):
        in_reach = policy.namespace in (pod.namespace, mesh.root_namespace)
        if _is_sent(policy) and policy.selector and in_reach and has_labels(pod.labels, policy.selector):
            yield policy.key


def _is_sent(policy: AuthorizationPolicy) -> bool:
    return not policy.target_refs and not policy.dry_run


def _authorization(policy: AuthorizationPolicy, root_namespace: str) -> Authorization:
    result = message("istio.security.Authorization")(
        name=policy.name, namespace=policy.namespace, scope=_scope(policy, root_namespace), action=policy.action.value
    )
    for rule in policy.rules:
        if policy.action is Action.DENY or not _needs_http(rule):
            _add_group(result, rule, policy.namespace)
    return result


def _scope(policy: AuthorizationPolicy, root_namespace: str) -> str:
    if policy.selector:
        return "WORKLOAD_SELECTOR"
    return "GLOBAL" if policy.namespace == root_namespace else "NAMESPACE"


def _needs_http(rule: Rule) -> bool:
    return (
        any(_is_http_source(source) for source in rule.sources)
        or any(_is_http_operation(operation) for operation in rule.operations)
        or any(condition.key not in _CONDITION_FIELDS for condition in rule.conditions)
    )


def _is_http_source(source: Source) -> bool:
    return bool(
        source.request_principals
        or source.not_request_principals
        or source.remote_ip_blocks
        or source.not_remote_ip_blocks
        or source.trust_domains
        or source.not_trust_domains
    )


def _is_http_operation(operation: Operation) -> bool:
    return bool(
        operation.hosts
        or operation.not_hosts
        or operation.methods
        or operation.not_methods
        or operation.paths
        or operation.not_paths
    )


def _add_group(authorization: Authorization, rule: Rule, namespace: str) -> None:
    group = authorization.groups.add()
    if rule.operations:
        group.rules.add(matches=[_operation_match(operation) for operation in rule.operations])
    if rule.sources:
        group.rules.add(matches=[_source_match(source, namespace) for source in rule.sources])
    for condition in rule.conditions:
        group.rules.add(matches=[_condition_match(condition)])


def _operation_match(operation: Operation) -> Match:
    return message("istio.security.Match")(
        destination_ports=ports(operation.ports), not_destination_ports=ports(operation.not_ports)
    )


def _source_match(source: Source, namespace: str) -> Match:
    return message("istio.security.Match")(
        principals=string_matches(source.principals),
        not_principals=string_matches(source.not_principals),
        namespaces=string_matches(source.namespaces),
        not_namespaces=string_matches(source.not_namespaces),
        service_accounts=service_accounts(source.service_accounts, namespace),
        not_service_accounts=service_accounts(source.not_service_accounts, namespace),
        source_ips=addresses(source.ip_blocks),
        not_source_ips=addresses(source.not_ip_blocks),
    )


def _condition_match(condition: Condition) -> Match:
    """The Match of one ``when``: without any field, thus never true, for a key that needs HTTP."""
    match = message("istio.security.Match")()
    if condition.key in _CONDITION_FIELDS:
        field, values = _CONDITION_FIELDS[condition.key]
        getattr(match, field).extend(values(condition.values))
        getattr(match, f"not_{field}").extend(values(condition.not_values))
    return match
