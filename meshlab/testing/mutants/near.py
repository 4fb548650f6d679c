"""Ztunnels that are wrong about values that are nearly equal, and in nothing else; and one that flips a single bit.

Two of each kind: the letter case of one part of an identity, one part more or less in a pattern, an address block that
is one bit longer, negative ports of two clauses that are joined the other way. Policies that people write hardly ever
have such a value, so only values that were drawn on purpose tell these proxies from the reference.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

from meshlab.proxykit.splice import Half
from meshlab.testing.mutants.policy import Misreading, each_match, judging_with, networks_of
from meshlab.ztunnel import rbac
from meshlab.ztunnel.main import Parts, run
from meshlab.ztunnel.outbound import Outbound

FLIPPED_AT = 1 << 20
"""The number of the byte of a stream, from 1, of which one bit is flipped."""

# --- patterns over an identity ---------------------------------------------------------------------------------------


class _OtherPatterns(Misreading):
    """Compares principals with other patterns than those of the policy."""

    @abstractmethod
    def pattern(self, pattern: rbac.Pattern) -> rbac.Pattern:
        """What it takes ``pattern`` for."""

    def read(self, policy: rbac.Policy) -> rbac.Policy:
        return each_match(policy, lambda match: replace(match, principals=self._kind(match.principals)))

    def _kind(self, kind: rbac.Kind[rbac.Pattern]) -> rbac.Kind[rbac.Pattern]:
        return rbac.Kind(tuple(map(self.pattern, kind.positive)), tuple(map(self.pattern, kind.negative)))


def _lowered(text: str, place: int) -> str:
    """``text`` with the part at ``place`` in lower case, where it has such a part."""
    parts = text.split("/")
    if -len(parts) <= place < len(parts):
        parts[place] = parts[place].lower()
    return "/".join(parts)


class _NamespaceOfAnyCase(rbac.Pattern):
    def matches(self, text: str) -> bool:
        place = -3 if self.kind == "suffix" else 2
        return rbac.Pattern(self.kind, _lowered(self.text, place)).matches(text)


class _AccountOfAnyCase(rbac.Pattern):
    def matches(self, text: str) -> bool:
        place = -1 if self.kind == "suffix" else 4
        return rbac.Pattern(self.kind, _lowered(self.text, place)).matches(text)


class _NamespacesOfAnyCase(_OtherPatterns):
    def pattern(self, pattern: rbac.Pattern) -> rbac.Pattern:
        return _NamespaceOfAnyCase(pattern.kind, pattern.text)


class _AccountsOfAnyCase(_OtherPatterns):
    def pattern(self, pattern: rbac.Pattern) -> rbac.Pattern:
        return _AccountOfAnyCase(pattern.kind, pattern.text)


class _ShortPrefixes(_OtherPatterns):
    """``a/b/c*`` as ``a/b/*``."""

    def pattern(self, pattern: rbac.Pattern) -> rbac.Pattern:
        if pattern.kind != "prefix":
            return pattern
        kept, slash, _ = pattern.text.rpartition("/")
        return replace(pattern, text=f"{kept}{slash}")


class _ShortSuffixes(_OtherPatterns):
    """``*a/b/c`` as ``*/b/c``."""

    def pattern(self, pattern: rbac.Pattern) -> rbac.Pattern:
        if pattern.kind != "suffix":
            return pattern
        _, slash, kept = pattern.text.partition("/")
        return replace(pattern, text=f"{slash}{kept}")


ignores_case_of_namespaces = judging_with(_NamespacesOfAnyCase)
ignores_case_of_accounts = judging_with(_AccountsOfAnyCase)
prefix_without_its_last_part = judging_with(_ShortPrefixes)
suffix_without_its_first_part = judging_with(_ShortSuffixes)


# --- address blocks --------------------------------------------------------------------------------------------------


class _LongerBlocks(Misreading):
    """Compares one bit more than the block of one family has; whole addresses and blocks of everything stay."""

    version: int

    def read(self, policy: rbac.Policy) -> rbac.Policy:
        return each_match(policy, lambda match: networks_of(match, self._kind))

    def _kind(self, kind: rbac.Kind[rbac.Network]) -> rbac.Kind[rbac.Network]:
        return rbac.Kind(tuple(map(self._longer, kind.positive)), tuple(map(self._longer, kind.negative)))

    def _longer(self, network: rbac.Network) -> rbac.Network:
        if network.version != self.version or network.prefixlen in (0, network.max_prefixlen):
            return network
        return ip_network((network.network_address, network.prefixlen + 1))


class _LongerIpv4Blocks(_LongerBlocks):
    version = 4


class _LongerIpv6Blocks(_LongerBlocks):
    version = 6


ipv4_cidr_one_bit_longer = judging_with(_LongerIpv4Blocks)
ipv6_cidr_one_bit_longer = judging_with(_LongerIpv6Blocks)


# --- negative ports of several clauses -------------------------------------------------------------------------------


def _only_not_ports(matches: Iterable[rbac.Match]) -> bool:
    """Whether they say something about ports that it must not be, and nothing else."""
    return all(
        match == rbac.Match(destination_ports=rbac.Kind((), match.destination_ports.negative)) for match in matches
    )


class _NotPortsAnded(Misreading):
    """Takes two operations with ``notPorts``, of which one is enough, for one that has both lists."""

    def read(self, policy: rbac.Policy) -> rbac.Policy:
        rules = tuple(tuple(map(self._joined, rule)) for rule in policy.rules)
        return replace(policy, rules=rules)

    def _joined(self, clause: rbac.Clause) -> rbac.Clause:
        if len(clause) < 2 or not _only_not_ports(clause):
            return clause
        ports = tuple(port for match in clause for port in match.destination_ports.negative)
        return (rbac.Match(destination_ports=rbac.Kind((), ports)),)


class _NotPortsOred(Misreading):
    """Is content with one of two clauses with negative ports, where both have to hold."""

    def read(self, policy: rbac.Policy) -> rbac.Policy:
        return replace(policy, rules=tuple(map(self._joined, policy.rules)))

    def _joined(self, rule: rbac.Rule) -> rbac.Rule:
        negative = [clause for clause in rule if clause and _only_not_ports(clause)]
        if len(negative) < 2:
            return rule
        others = tuple(clause for clause in rule if clause not in negative)
        return (*others, tuple(match for clause in negative for match in clause))


not_ports_of_operations_are_anded = judging_with(_NotPortsAnded)
not_ports_of_clauses_are_ored = judging_with(_NotPortsOred)


# --- bytes -----------------------------------------------------------------------------------------------------------


class _FlippingHalf(Half):
    """Passes on what one side says, apart from one bit of the byte that ends its first MiB."""

    def data_received(self, data: bytes) -> None:
        place = FLIPPED_AT - 1 - self.received_bytes
        if 0 <= place < len(data):
            data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        super().data_received(data)


class _Flipping(Outbound):
    half_class = _FlippingHalf


def flips_a_bit_in_bulk(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    run(config, fds, Parts(outbound=_Flipping))
