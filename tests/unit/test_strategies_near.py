"""Values that are nearly equal: each kind of proxy that confuses two of them is told apart by few examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any

import pytest

from meshlab.fuzz.choose import candidates, choose
from meshlab.fuzz.confusable import confusable
from meshlab.lab.sources import read
from meshlab.model import Connection, Mesh, SpiffeId
from meshlab.strategies import policy_sets
from meshlab.strategies.near import near_blocks, near_principals
from meshlab.testing.mutants import near as mutants
from meshlab.testing.registry import MUTANTS
from meshlab.translate.policies import authorization_policies, selecting_policy_keys
from meshlab.ztunnel import rbac

BASE = read("quickstart").topology.mesh
EXAMPLES = 180
JUDGES: dict[str, Any] = {
    "ignores-case-of-namespaces": mutants._NamespacesOfAnyCase,
    "ignores-case-of-accounts": mutants._AccountsOfAnyCase,
    "prefix-without-its-last-part": mutants._ShortPrefixes,
    "suffix-without-its-first-part": mutants._ShortSuffixes,
    "ipv4-cidr-one-bit-longer": mutants._LongerIpv4Blocks,
    "ipv6-cidr-one-bit-longer": mutants._LongerIpv6Blocks,
    "not-ports-of-operations-are-anded": mutants._NotPortsAnded,
    "not-ports-of-clauses-are-ored": mutants._NotPortsOred,
}


def test_every_judge_of_nearly_equal_values_is_asked_here() -> None:
    near = {name for name, mutant in MUTANTS.items() if ".mutants.near:" in mutant.entry}
    assert set(JUDGES) == near - {"flips-a-bit-in-bulk"}


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_that_confuses_nearly_equal_values_is_told_apart_by_one_set_of_policies_in_30(name: str) -> None:
    judge = object.__new__(JUDGES[name])
    told = sum(_is_told(judge.read, *question) for question in _questions())
    assert told * 30 >= EXAMPLES


@lru_cache(maxsize=1)
def _questions() -> list[tuple[Mesh, tuple[Connection, ...]]]:
    possible = candidates(BASE)
    return [
        (mesh, tuple(one.call.connection for one in choose(mesh, possible) if BASE.is_enrolled(one.call.destination)))
        for mesh in policy_sets(BASE, EXAMPLES, seed=5)
    ]


def _is_told(read_as: Callable[[rbac.Policy], rbac.Policy], mesh: Mesh, asked: tuple[Connection, ...]) -> bool:
    """Whether one of the calls ends otherwise at a proxy that reads its policies so."""
    policies = {key: rbac.compile_policy(sent) for key, sent in authorization_policies(mesh)}
    misread = {key: read_as(policy) for key, policy in policies.items()}
    return any(_verdict(policies, mesh, one) is not _verdict(misread, mesh, one) for one in asked)


def _verdict(policies: Mapping[str, rbac.Policy], mesh: Mesh, asked: Connection) -> object:
    pod = mesh.pod(asked.destination)
    workload = SimpleNamespace(namespace=pod.namespace, authorization_policies=[*selecting_policy_keys(mesh, pod)])
    return rbac.evaluate(policies, workload, asked).verdict


IDENTITY = SpiffeId("cluster.local", "shop", "client")


def _matching(pattern: str) -> bool:
    text = IDENTITY.principal
    if pattern.startswith("*"):
        return text.endswith(pattern[1:])
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


def test_a_pattern_that_fits_matches_and_one_that_misses_does_not() -> None:
    values = near_principals(IDENTITY, (IDENTITY, SpiffeId("cluster.local", "bank", "teller")))
    assert [value for value in values.fits if not _matching(value)] == []
    assert [value for value in values.misses if _matching(value)] == []


@pytest.mark.parametrize("place", [0, 2, 4], ids=["trust domain", "namespace", "service account"])
def test_each_part_of_an_identity_is_drawn_in_another_letter_case_with_all_else_equal(place: int) -> None:
    values = near_principals(IDENTITY, (IDENTITY,))
    parts = IDENTITY.principal.split("/")
    others = [value.split("/") for value in values.misses if value.count("/") == 4 and "*" not in value]
    only = [
        other
        for other in others
        if [p for p, q in enumerate(zip(other, parts, strict=True)) if q[0] != q[1]] == [place]
    ]
    assert any("/".join(other).lower() == IDENTITY.principal for other in only)


@pytest.mark.parametrize("text", ["10.128.158.55", "fd5a:7c1e:90d3:8000:9e37:79b9:7f4a:7c15"])
def test_a_block_that_fits_holds_the_address_and_one_that_misses_does_not(text: str) -> None:
    address = ip_address(text)
    values = near_blocks(address, (address,))
    assert all(address in ip_network(block, strict=False) for block in values.fits)
    assert not any(address in ip_network(block, strict=False) for block in values.misses)


@pytest.mark.parametrize("pair", [("10.128.158.55", "10.128.120.220"), ("fd5a::8000", "fd5a::4000")])
def test_blocks_are_drawn_of_the_length_at_which_two_pods_part_and_one_bit_to_either_side(
    pair: tuple[str, str],
) -> None:
    address, other = map(ip_address, pair)
    shared = address.max_prefixlen - (int(address) ^ int(other)).bit_length()
    lengths = {ip_network(block, strict=False).prefixlen for block in near_blocks(address, (address, other)).fits}
    assert {shared - 1, shared, shared + 1} <= lengths


@pytest.mark.parametrize(
    ("value", "others"),
    [
        ("td/ns/Shop/*", ("td/ns/shop/*", "td/ns/*")),
        ("*a/b/c", ("*/b/c",)),
        ("shop", ()),
        ("10.0.0.0/8", ("10.0.0.0/9", "10.0.0.0/7")),
        ("::/0", ("::/1",)),
        ("8080", ("8079", "8081")),
    ],
)
def test_values_that_a_proxy_may_take_for_another_differ_in_one_thing(value: str, others: tuple[str, ...]) -> None:
    assert confusable(value) == others
