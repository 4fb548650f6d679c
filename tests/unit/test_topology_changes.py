"""``lab.apply`` and ``lab.delete`` on the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlab.errors import TopologyError
from meshlab.model import Action, Topology
from meshlab.topology import load, load_manifests, replaced, without


def _policy(name: str, spec: str = "{}", kind: str = "AuthorizationPolicy", namespace: str = "shop") -> str:
    metadata = f"{{name: {name}, namespace: {namespace}}}"
    return f"---\n{{apiVersion: security.istio.io/v1, kind: {kind}, metadata: {metadata}, spec: {spec}}}\n"


@pytest.fixture
def topology() -> Topology:
    pod = "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop}, spec: {containers: [{}]}}\n"
    tls = _policy("first", "{mtls: {mode: STRICT}}", "PeerAuthentication")
    return load(pod + _policy("first") + _policy("second") + tls, "t.yaml")


def test_a_new_policy_comes_last_since_it_is_the_youngest(topology: Topology) -> None:
    mesh = load_manifests(_policy("third"), "<apply>", topology)
    assert [policy.name for policy in mesh.authorization_policies] == ["first", "second", "third"]
    assert mesh.pods == topology.mesh.pods


def test_a_policy_of_the_same_kind_namespace_and_name_is_replaced_where_it_stands(topology: Topology) -> None:
    mesh = load_manifests(_policy("first", "{action: DENY, rules: [{}]}"), "<apply>", topology)
    assert [(policy.name, policy.action) for policy in mesh.authorization_policies] == [
        ("first", Action.DENY),
        ("second", Action.ALLOW),
    ]
    assert mesh.peer_authentications == topology.mesh.peer_authentications


def test_the_same_name_in_another_namespace_is_another_policy(topology: Topology) -> None:
    mesh = load_manifests(_policy("first", namespace="other"), "<apply>", topology)
    assert [policy.key for policy in mesh.authorization_policies] == ["shop/first", "shop/second", "other/first"]


def test_applying_nothing_changes_nothing(topology: Topology) -> None:
    assert load_manifests("---\n---\n", "<apply>", topology) == topology.mesh


def test_applying_twice_is_applying_once(topology: Topology) -> None:
    text = _policy("third", "{action: DENY, rules: [{}]}")
    once = load_manifests(text, "<apply>", topology)
    assert load_manifests(text, "<apply>", replace(topology, mesh=once)) == once


def test_a_policy_that_is_not_valid_is_refused_with_its_place(topology: Topology) -> None:
    with pytest.raises(TopologyError) as refused:
        load_manifests(_policy("a", "{action: DENY}") + _policy("b", "{rulez: []}"), "<apply>", topology)
    assert [(issue.line, issue.column) for issue in refused.value.issues] == [(2, 107), (4, 108)]


def test_nodes_are_those_of_the_file(topology: Topology) -> None:
    text = "{apiVersion: meshlab.dev/v1alpha1, kind: Lab, metadata: {name: x}, spec: {nodes: [node-3]}}"
    for change in (load_manifests, replaced, without):
        with pytest.raises(TopologyError, match="<text>:1:42: a Lab cannot change while it runs: its nodes are those"):
            change(text, "<text>", topology)


def test_an_object_that_is_there_twice_in_one_text_is_refused(topology: Topology) -> None:
    with pytest.raises(TopologyError, match="<apply>:4:80: the AuthorizationPolicy 'shop/third' is already on line 2"):
        load_manifests(_policy("third") * 2, "<apply>", topology)


def test_a_policy_is_taken_away_by_kind_namespace_and_name(topology: Topology) -> None:
    mesh = without(_policy("first", "{rulez: anything}"), "<delete>", topology)
    assert [policy.name for policy in mesh.authorization_policies] == ["second"]
    assert [policy.name for policy in mesh.peer_authentications] == ["first"]
    assert without(_policy("first", kind="PeerAuthentication"), "<delete>", topology).peer_authentications == ()


def test_taking_away_what_is_not_there_says_what_is(topology: Topology) -> None:
    with pytest.raises(TopologyError) as refused:
        without(_policy("secnd"), "<delete>", topology)
    assert refused.value.issues[0].message == (
        "no AuthorizationPolicy 'shop/secnd' to take away (shop/first, shop/second). Did you mean 'shop/second'?"
    )


def test_applying_and_taking_away_again_is_where_it_was(topology: Topology) -> None:
    text = _policy("third")
    applied = load_manifests(text, "<apply>", topology)
    back = without(text, "<delete>", Topology(name="x", nodes=topology.nodes, mesh=applied))
    assert back == topology.mesh


@pytest.mark.parametrize(
    ("text", "rules", "modes"),
    [
        (_policy("third"), ["third"], []),
        (_policy("first", kind="PeerAuthentication"), [], ["first"]),
        ("", [], []),
        ("{apiVersion: v1, kind: Namespace, metadata: {name: b}}", ["first", "second"], ["first"]),
    ],
    ids=["one policy", "one mode", "nothing", "no policy"],
)
def test_a_text_with_policies_or_with_nothing_replaces_all_policies(
    topology: Topology, text: str, rules: list[str], modes: list[str]
) -> None:
    mesh = replaced(text, "<replace>", topology)
    assert [policy.name for policy in mesh.authorization_policies] == rules
    assert [policy.name for policy in mesh.peer_authentications] == modes
    assert mesh.pods == topology.mesh.pods
