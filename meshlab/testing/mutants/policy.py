"""Ztunnels that judge wrongly: each gets one thing wrong about AuthorizationPolicy or PeerAuthentication.

They carry, encrypt and identify as the reference does. Only a verdict that is compared with the manifests tells them
apart, and for the last ones only a second verdict, after a change of policy or after several tries.
"""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from meshlab.model import Connection, Decision
from meshlab.protocols.zds import ZdsPod
from meshlab.ztunnel import rbac
from meshlab.ztunnel.guard import Guard
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.main import Parts, run
from meshlab.ztunnel.state import State, Workload

Program = Callable[[Mapping[str, Any], Mapping[str, int]], None]
_CONVERTED = "converted_peer_authentication_"
"""How Istio names what it makes of a PeerAuthentication with port levels."""


def judging_with(guard: type[Guard]) -> Program:
    """The reference ztunnel with another judge at its pods' doors."""

    class OtherwiseGuarded(Inbound):
        guard_class = guard

    def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        run(config, fds, Parts(inbound=OtherwiseGuarded))

    return main


# --- policies that are misread ---------------------------------------------------------------------------------------


class Misreading(Guard):
    """Judges rightly, by policies that say something else than those it was sent."""

    def policies(self) -> Mapping[str, rbac.Policy]:
        return {key: self.read(policy) for key, policy in super().policies().items()}

    @abstractmethod
    def read(self, policy: rbac.Policy) -> rbac.Policy:
        """What it takes ``policy`` for."""


def each_match(policy: rbac.Policy, change: Callable[[rbac.Match], rbac.Match]) -> rbac.Policy:
    rules = tuple(tuple(tuple(map(change, clause)) for clause in rule) for rule in policy.rules)
    return replace(policy, rules=rules)


def networks_of(match: rbac.Match, change: Callable[[rbac.Kind[rbac.Network]], rbac.Kind[rbac.Network]]) -> rbac.Match:
    return replace(match, source_ips=change(match.source_ips), destination_ips=change(match.destination_ips))


class _Anded(Misreading):
    def read(self, policy: rbac.Policy) -> rbac.Policy:
        all_clauses = tuple(clause for rule in policy.rules for clause in rule)
        return replace(policy, rules=(all_clauses,) if policy.rules else ())


class _Ored(Misreading):
    def read(self, policy: rbac.Policy) -> rbac.Policy:
        return replace(policy, rules=tuple(self._one_clause(rule) for rule in policy.rules))

    def _one_clause(self, rule: rbac.Rule) -> rbac.Rule:
        matches = tuple(match for clause in rule for match in clause)
        return (matches,) if matches else rule


class _Anywhere(rbac.Pattern):
    def matches(self, text: str) -> bool:
        return self.text in text if self.kind == "suffix" else super().matches(text)


class _SuffixAnywhere(Misreading):
    def read(self, policy: rbac.Policy) -> rbac.Policy:
        return each_match(
            policy,
            lambda match: replace(
                match, principals=self._loosened(match.principals), namespaces=self._loosened(match.namespaces)
            ),
        )

    def _loosened(self, kind: rbac.Kind[rbac.Pattern]) -> rbac.Kind[rbac.Pattern]:
        positive, negative = (
            tuple(_Anywhere(pattern.kind, pattern.text) for pattern in patterns)
            for patterns in (kind.positive, kind.negative)
        )
        return rbac.Kind(positive, negative)


class _NotFieldsIgnored(Misreading):
    def read(self, policy: rbac.Policy) -> rbac.Policy:
        return each_match(policy, self._positive)

    def _positive(self, match: rbac.Match) -> rbac.Match:
        kinds = {field.name: rbac.Kind(getattr(match, field.name).positive) for field in fields(match)}
        return rbac.Match(**kinds)


class _WideMasks(Misreading):
    def read(self, policy: rbac.Policy) -> rbac.Policy:
        return each_match(policy, lambda match: networks_of(match, self._widened))

    def _widened(self, kind: rbac.Kind[rbac.Network]) -> rbac.Kind[rbac.Network]:
        positive, negative = (
            tuple(network.supernet() if network.prefixlen else network for network in networks)
            for networks in (kind.positive, kind.negative)
        )
        return rbac.Kind(positive, negative)


class _Ipv4Only(Misreading):
    def read(self, policy: rbac.Policy) -> rbac.Policy:
        return each_match(policy, lambda match: networks_of(match, self._ipv4))

    def _ipv4(self, kind: rbac.Kind[rbac.Network]) -> rbac.Kind[rbac.Network]:
        positive, negative = (
            tuple(network for network in networks if network.version == 4)
            for networks in (kind.positive, kind.negative)
        )
        return rbac.Kind(positive, negative)


class _EmptyRuleNever(Misreading):
    def read(self, policy: rbac.Policy) -> rbac.Policy:
        return replace(policy, rules=tuple(filter(None, policy.rules)))


class _EverywhereInScope(Misreading):
    def read(self, policy: rbac.Policy) -> rbac.Policy:
        return replace(policy, scope="GLOBAL") if policy.scope == "NAMESPACE" else policy


class _NoPortLevels(Misreading):
    def read(self, policy: rbac.Policy) -> rbac.Policy:
        if not policy.name.startswith(_CONVERTED):
            return policy
        clauses = [clause for rule in policy.rules for clause in rule]
        of_any_port = [c for c in clauses if all(match.destination_ports == rbac.Kind() for match in c)]
        return replace(policy, rules=tuple((clause,) for clause in of_any_port))


rules_of_a_policy_are_anded = judging_with(_Anded)
parts_of_a_rule_are_ored = judging_with(_Ored)
suffix_matches_anywhere = judging_with(_SuffixAnywhere)
ignores_not_fields = judging_with(_NotFieldsIgnored)
cidr_mask_off_by_one = judging_with(_WideMasks)
ignores_ipv6_cidrs = judging_with(_Ipv4Only)
empty_rule_matches_nothing = judging_with(_EmptyRuleNever)
policy_scope_is_mesh_wide = judging_with(_EverywhereInScope)
ignores_port_level_mtls = judging_with(_NoPortLevels)


# --- policies that are misapplied ------------------------------------------------------------------------------------


class _DenyLast(Guard):
    def decide(self, own: Workload, connection: Connection) -> Decision:
        allowing = {key: policy for key, policy in self.policies().items() if policy.action == "ALLOW"}
        decision = rbac.evaluate(allowing, own, connection)
        return decision if decision.rule.startswith("allowed by") else super().decide(own, connection)


class _ByAddress(Guard):
    """Whoever has the address has the identity, with or without a certificate."""

    def decide(self, own: Workload, connection: Connection) -> Decision:
        client = self._state.workload_at(connection.source_ip)
        return super().decide(own, replace(connection, source=client.identity if client else None))


deny_after_allow = judging_with(_DenyLast)
identity_by_source_ip = judging_with(_ByAddress)


# --- verdicts that are right once, or mostly -------------------------------------------------------------------------


class _Remembering(Guard):
    """The client's port is left out of the key: it is another one each time, and the cache would never be hit."""

    def __init__(self, state: State, pod: ZdsPod) -> None:
        super().__init__(state, pod)
        self._verdicts: dict[tuple[Any, Any, int], Decision] = {}

    def decide(self, own: Workload, connection: Connection) -> Decision:
        key = (connection.source_ip, connection.destination_ip, connection.port)
        if key not in self._verdicts:
            self._verdicts[key] = super().decide(own, connection)
        return self._verdicts[key]


class _APushBehind(Guard):
    """Acknowledges what it has not put into effect: it judges by the policies of the push before."""

    def __init__(self, state: State, pod: ZdsPod) -> None:
        super().__init__(state, pod)
        self._before = self._now = dict(state.policies)

    def policies(self) -> Mapping[str, rbac.Policy]:
        return self._before

    def judge_again(self) -> None:
        if self._state.policies != self._now:
            self._before, self._now = self._now, dict(self._state.policies)
        super().judge_again()


class _SometimesLenient(Guard):
    def policies(self) -> Mapping[str, rbac.Policy]:
        all_policies = super().policies()
        if secrets.randbelow(5):
            return all_policies
        return {key: policy for key, policy in all_policies.items() if policy.action != "DENY"}


verdict_cached_by_4_tuple = judging_with(_Remembering)
stale_verdict_after_a_change = judging_with(_APushBehind)
sometimes_ignores_deny = judging_with(_SometimesLenient)
