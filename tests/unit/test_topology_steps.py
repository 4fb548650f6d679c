"""``spec.steps`` beyond calls and policies: what is read, what it does to the mesh, and what is refused and where."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.errors import TopologyError
from meshlab.model import (
    AskStep,
    CallStep,
    ChangeStep,
    ConnectStep,
    PolicyStep,
    PushStep,
    Step,
    Topology,
    TrafficStep,
    VerbStep,
    Verdict,
)
from meshlab.play.moments import expecting, moments, states_before
from meshlab.protocols.messages import ADDRESS_TYPE, AUTHORIZATION_TYPE
from meshlab.topology import after, dump, load, load_manifests, replaced, without
from meshlab.topology.shapes import XDS_TYPES

HEAD = """
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: steps}
spec:
  pods: {shop/client: {}, shop/server: {ports: [8080], labels: {app: server}}}
  steps:
"""
POLICY = {
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": {"name": "none", "namespace": "shop"},
}
NEW = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "new", "namespace": "shop", "labels": {"app": "server", "note": "1.0"}},
    "spec": {"nodeName": "node-1", "containers": [{"ports": [{"containerPort": 8080}]}]},
}
AMBIENT = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}},
}
CALL_NEW: dict[str, Any] = {"call": {"from": "shop/client", "to": "shop/new:8080"}, "expect": "allow"}
PUSH = {"type": "istio.security.Authorization", "name": "shop/mangled", "body": "////"}
PAIRS = [["shop/client", "http://server:8080/"]]


def _load(*steps: Any, name: str = "x.yaml") -> Topology:
    return load(HEAD + "".join(f"    - {json.dumps(step)}\n" for step in steps), name)


def _step(*steps: Any) -> Step:
    """The last of the steps."""
    topology = _load(*steps)
    assert load(dump(topology), "again.yaml") == topology
    return topology.steps[-1]


@pytest.mark.parametrize(
    ("step", "read"),
    [
        ({"restart": "ztunnel@node-1"}, VerbStep(verb="restart", instance="ztunnel@node-1")),
        ({"kill": "control-plane"}, VerbStep(verb="kill", instance="control-plane")),
        ({"stop": "program@shop/server"}, VerbStep(verb="stop", instance="shop/server")),
        ({"pause": "agent@node-2"}, VerbStep(verb="pause", instance="agent@node-2")),
        ({"resume": "echo@node-2"}, VerbStep(verb="resume", instance="echo@node-2")),
        (
            {"upgrade": {"ztunnel@node-1": "istio=./new"}},
            VerbStep(verb="upgrade", instance="ztunnel@node-1", to="istio=./new"),
        ),
        ({"reboot": "node-2"}, VerbStep(verb="reboot", instance="node-2")),
        (
            {"push": {"type": "istio.security.Authorization", "name": "shop/mangled", "body": "////"}},
            PushStep(type_name="istio.security.Authorization", name="shop/mangled", body=b"\xff\xff\xff"),
        ),
        (
            {"call": {"from": "shop/client", "to": "shop/server:8080", "times": 8}, "expect": "deny"},
            CallStep(source="shop/client", to="shop/server:8080", expect=Verdict.DENY, times=8),
        ),
        (
            {"connect": {"from": "shop/client", "to": "shop/server:8080", "as": "one", "family": 6}},
            ConnectStep(source="shop/client", to="shop/server:8080", name="one", family=6),
        ),
        (
            {"traffic": {"pairs": PAIRS, "rate": 200, "open": 5, "during": [{"reboot": "node-1"}]}},
            TrafficStep(
                pairs=(("shop/client", "http://server:8080/"),),
                rate=200.0,
                open=5,
                during=(VerbStep(verb="reboot", instance="node-1"),),
            ),
        ),
        (
            {
                "traffic": {
                    "pairs": PAIRS,
                    "during": [CALL_NEW | {"call": {"from": "shop/client", "to": "shop/server:8080"}}],
                },
                "expect": {"failed_new": 0},
            },
            TrafficStep(
                pairs=(("shop/client", "http://server:8080/"),),
                rate=50.0,
                open=0,
                during=(CallStep(source="shop/client", to="shop/server:8080", expect="allow"),),  # type: ignore[arg-type]
                failed_new=0,
            ),
        ),
    ],
    ids=[
        "restart",
        "kill",
        "stop",
        "pause",
        "resume",
        "upgrade",
        "reboot",
        "push",
        "call several times",
        "connect",
        "traffic",
        "traffic that expects",
    ],
)
def test_a_step_is_read_and_written_as_it_was_read(step: Any, read: Step) -> None:
    assert _step(step) == read


@pytest.mark.parametrize(("word", "alive"), [("alive", True), ("closed", False)])
def test_a_connection_is_asked_by_its_name(word: str, alive: bool) -> None:
    connect = {"connect": {"from": "shop/client", "to": "shop/server:8080", "as": "one"}}
    assert _step(connect, {"ask": "one", "expect": word}) == AskStep(name="one", alive=alive)


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ({"apply": [POLICY]}, PolicyStep),
        ({"replace": []}, PolicyStep),
        ({"apply": [POLICY, NEW]}, ChangeStep),
        ({"replace": [NEW]}, ChangeStep),
        ({"apply": [{"apiVersion": "v1", "kind": "List", "items": [NEW, AMBIENT]}]}, ChangeStep),
    ],
    ids=["policy", "no policy", "policy and pod", "pod", "list"],
)
def test_only_policies_are_a_change_of_policies(step: Any, kind: type) -> None:
    assert type(_step(step)) is kind


def test_a_change_is_text_that_a_lab_takes_as_it_is() -> None:
    topology = _load({"apply": [NEW, AMBIENT]})
    (step,) = topology.steps
    assert isinstance(step, ChangeStep)
    mesh = load_manifests(step.manifests, "<apply>", topology)
    assert mesh == after(topology, step)
    assert mesh.pod("shop/new").labels == {"app": "server", "note": "1.0"}
    assert all(map(mesh.is_enrolled, mesh.pods))


def test_what_a_delete_says_beyond_its_name_is_not_read() -> None:
    step = _step({"delete": [{**NEW, "metadata": {"name": "server", "namespace": "shop"}, "spec": {"wrong": 1}}]})
    assert isinstance(step, ChangeStep)
    assert step.verb == "delete"
    assert "wrong" not in step.manifests


def test_a_pod_that_came_by_a_step_can_be_called_and_one_that_went_cannot() -> None:
    assert len(_load({"apply": [NEW]}, CALL_NEW).steps) == 2
    with pytest.raises(TopologyError, match=r"x\.yaml:10:.*no pod 'shop/new'"):
        _load({"apply": [NEW]}, {"delete": [NEW]}, CALL_NEW)


def test_a_pod_that_comes_during_traffic_is_there_afterwards() -> None:
    traffic = {"traffic": {"pairs": PAIRS, "during": [{"apply": [NEW]}]}}
    topology = _load(traffic, CALL_NEW)
    assert after(topology, topology.steps[0]).pod("shop/new").incarnation == 0


def test_moments_are_of_calls_only_and_know_what_changed_before() -> None:
    topology = _load({"apply": [NEW]}, {"restart": "ztunnel@node-1"}, CALL_NEW)
    (moment,) = moments(topology)
    assert moment.place == 2
    assert moment.mesh.pods[-1].key == "shop/new"
    assert len(list(states_before(topology, 2))) == 2
    assert expecting(topology) == topology
    assert expecting(replace(topology, steps=topology.steps[1:])) is None, "nobody is there to be called"


def test_the_types_that_can_be_pushed_are_those_that_are_served() -> None:
    served = [url.rpartition("/")[2] for url in (AUTHORIZATION_TYPE, ADDRESS_TYPE)]
    assert list(XDS_TYPES) == served


def test_what_is_refused_changes_nothing() -> None:
    topology = _load({"push": PUSH})
    assert after(topology, topology.steps[0]) == topology.mesh


CONNECT = {"connect": {"from": "shop/client", "to": "shop/server:8080", "as": "one"}}


@pytest.mark.parametrize(
    ("steps", "place", "message"),
    [
        ([{"restart": "ztunel@node-1"}], "8:19", "write ztunnel@NODE"),
        ([{"restart": "ztunel@node-1"}], "8:19", "Did you mean 'ztunnel@node-1'?"),
        ([{"restart": "ztunnel@node-3"}], "8:19", "no node 'node-3' (node-1, node-2). Did you mean"),
        ([{"restart": "ztunnel@node-1#2"}], "8:19", "write ztunnel@node-1"),
        (
            [{"kill": "shop/sever"}],
            "8:16",
            "no pod 'shop/sever' (shop/client, shop/server). Did you mean 'shop/server'?",
        ),
        ([{"upgrade": {"agent@node-1": "reference"}}], "8:19", "only a ztunnel can be upgraded, not agent@node-1"),
        ([{"upgrade": {}}], "8:19", "an upgrade names one ztunnel"),
        ([{"reboot": "node1"}], "8:18", "no node 'node1' (node-1, node-2). Did you mean 'node-1'?"),
        (
            [{"push": {**PUSH, "type": "istio.security.Authorisation"}}],
            "8:",
            "Did you mean 'istio.security.Authorization'",
        ),
        ([{"push": {**PUSH, "body": "//"}}], "8:", "must be bytes in base64"),
        ([{"push": {"type": PUSH["type"], "name": "shop/x"}}], "8:", "body"),
        ([{"push": PUSH, "expect": "deny"}], "8:", "only a call, ask or traffic has something to expect"),
        ([{"call": {**CALL_NEW["call"], "times": 0}, "expect": "deny"}], "8:", "must be a whole number, 1 to 100"),
        ([{"call": {**CALL_NEW["call"], "times": 101}, "expect": "deny"}], "8:", "must be a whole number, 1 to 100"),
        ([{"reboot": "node-1", "kill": "control-plane"}], "8:7", "a step does one thing"),
        ([{"reboot": "node-1", "expect": "alive"}], "8:38", "only a call, ask or traffic has something to expect"),
        ([CONNECT, CONNECT], "9:75", "the connection 'one' is already on line 8"),
        ([CONNECT, {"ask": "on", "expect": "alive"}], "9:15", "no step before connects as 'on' (one)."),
        ([CONNECT, {"ask": "one"}], "9:7", "an ask needs the key 'expect': alive or closed"),
        ([CONNECT, {"ask": "one", "expect": "deny"}], "9:32", "what an ask expects must be one of alive, closed"),
        ([{"ask": "one", "expect": "alive"}], "8:15", "no step before connects as 'one' (there is none)."),
        ([{"connect": {"from": "shop/client", "to": "shop/server:80", "as": "one"}}], "8:49", "declares no port 80"),
        ([{"delete": []}], "8:18", "a delete names what it takes away"),
        ([{"delete": [NEW]}], "8:76", "no Pod 'shop/new' to take away (shop/client, shop/server)."),
        ([{"apply": [{**NEW, "spec": {"nodeName": "node-9", "containers": [{}]}}]}], "8:", "is on node 'node-9'"),
        (
            [{"apply": [NEW]}, {"apply": [{**NEW, "spec": {"containers": [{"ports": [{"containerPort": 1}]}]}}]}],
            "9:",
            "with another list of ports",
        ),
        ([{"traffic": {"pairs": PAIRS}}], "8:19", "traffic needs `during`"),
        ([{"traffic": {"during": [{"reboot": "node-1"}]}}], "8:19", "traffic needs `pairs`"),
        (
            [{"traffic": {"pairs": [["shop/client"]], "during": [{"reboot": "node-1"}]}}],
            "8:30",
            "a pair is [NAMESPACE/POD, URL]",
        ),
        (
            [{"traffic": {"pairs": [["shop/x", "http://a"]], "during": [{"reboot": "node-1"}]}}],
            "8:31",
            "no pod 'shop/x'",
        ),
        ([{"traffic": {"pairs": PAIRS, "during": [{"reboot": "n"}]}}], "8:", "no node 'n'"),
        ([{"traffic": {"pairs": PAIRS, "during": [{"rebot": "n"}]}}], "8:", "Did you mean 'reboot'?"),
        (
            [{"traffic": {"pairs": PAIRS, "during": [{"traffic": {"pairs": PAIRS}}]}}],
            "8:",
            "a step does one thing: call, apply, replace, delete, push, connect, ask, restart, kill, stop, pause, "
            "resume, upgrade, reboot; not traffic",
        ),
        (
            [{"traffic": {"pairs": PAIRS, "during": [{"reboot": "node-1"}]}, "expect": "allow"}],
            "8:",
            "what traffic expects must be a mapping of failed_new, broken_open, in_plaintext",
        ),
        (
            [{"call": CALL_NEW["call"], "expect": {"failed_new": 0}}],
            "8:",
            "what a call expects must be one of allow, deny",
        ),
    ],
)
def test_a_wrong_step_is_refused_with_its_place(steps: list[Any], place: str, message: str) -> None:
    with pytest.raises(TopologyError) as refused:
        _load(*steps)
    found = [f"{issue.line}:{issue.column}: {issue.message}" for issue in refused.value.issues]
    assert [text for text in found if text.startswith(place) and message in text], found


def test_the_changes_of_a_file_are_bounded_for_a_few_bytes_can_ask_for_many() -> None:
    web = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"}}
    web["spec"] = {"replicas": 20_000, "template": {"spec": {"containers": [{}]}}}
    with pytest.raises(TopologyError) as refused:
        _load({"apply": [web]}, *({"replace": []} for _ in range(30)))
    (issue,) = refused.value.issues
    assert issue.line == 33
    assert issue.message == "the changes up to here, each times the pods that are there, are more than 500000"


# --- laws ------------------------------------------------------------------------------------------------------------

_labels = st.dictionaries(st.sampled_from(["app", "a.b/c"]), st.sampled_from(["", "true", "1.0", "null"]), max_size=2)
_pods = st.builds(
    lambda name, labels: {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": labels},
        "spec": {"containers": [{}]},
    },
    st.sampled_from(["a", "b"]),
    _labels,
)
_namespaces: st.SearchStrategy[dict[str, Any]] = st.builds(
    lambda labels: {**AMBIENT, "metadata": {"name": "shop", "labels": labels}}, _labels
)


def _name(document: dict[str, Any]) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


_documents = st.lists(
    _pods | _namespaces,
    min_size=1,
    max_size=3,
    unique_by=_name,
)
_changes = st.lists(st.tuples(st.sampled_from(["apply", "replace"]), _documents), max_size=4)


@settings(deadline=None, max_examples=25)
@given(_changes)
def test_steps_of_a_file_are_the_changes_of_a_lab_and_survive_a_dump(changes: list[tuple[str, list[Any]]]) -> None:
    topology = _load(*({verb: documents} for verb, documents in changes))
    assert load(dump(topology), "again.yaml") == topology
    by_steps = by_hand = replace(topology, steps=())
    verbs = {"apply": load_manifests, "replace": replaced, "delete": without}
    for step, (verb, documents) in zip(topology.steps, changes, strict=True):
        by_steps = replace(by_steps, mesh=after(by_steps, step))
        text = "\n---\n".join(map(json.dumps, documents))
        by_hand = replace(by_hand, mesh=verbs[verb](text, "x", by_hand))
    assert by_steps == by_hand
