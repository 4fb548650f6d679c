"""What is wrong with a file: each thing with its place, the value, the choices, and what was probably meant."""

from __future__ import annotations

from fnmatch import fnmatchcase
from textwrap import dedent

import pytest

from meshlab.errors import TopologyError
from meshlab.topology import load
from meshlab.topology.notes import MAX_ISSUES

LAB = """\
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: test}
spec:
"""


def _issues(text: str) -> list[str]:
    with pytest.raises(TopologyError) as refused:
        load(dedent(text), "t.yaml")
    return [str(issue) for issue in refused.value.issues]


def _of_lab(spec: str) -> list[str]:
    """Issues of a Lab whose ``spec`` begins on line 5."""
    return _issues(LAB + "".join(f"  {line}\n" for line in dedent(spec).strip("\n").splitlines()))


def _of_policy(spec: str) -> list[str]:
    return _issues(
        f"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: x}}\nspec: {spec}\n"
    )


def _of_service(spec: str) -> list[str]:
    return _issues(f"apiVersion: v1\nkind: Service\nmetadata: {{name: x}}\nspec: {spec}\n")


def test_every_issue_of_a_file_is_told_at_once_in_its_order() -> None:
    issues = _issues(
        LAB
        + """\
  nodez: [node-1]
  pods:
    shop/client: {node: node1, ports: [0]}
    client: {}
---
apiVersion: v1
kind: Servise
---
apiVersion: v1
kind: Deployment
metadata: {name: X}
"""
    )
    assert [issue.partition(": ")[0] for issue in issues] == [
        "t.yaml:5:3",
        "t.yaml:7:25",
        "t.yaml:7:40",
        "t.yaml:8:5",
        "t.yaml:11:7",
        "t.yaml:13:13",
    ]


@pytest.mark.parametrize(
    ("spec", "issue"),
    [
        pytest.param(
            "nodez: [node-1]",
            "t.yaml:5:3: no key 'nodez' in spec of a Lab "
            "(dataplane, expect, images, mounts, nodes, pods, profile, readyTimeoutSeconds, steps, urls, waypoints). "
            "Did you mean 'nodes'?",
            id="unknown key",
        ),
        pytest.param(
            "pods:\n  shop/client: {node: node1}",
            "t.yaml:6:25: pod 'shop/client' is on node 'node1', which is not under 'nodes:' (node-1, node-2). "
            "Did you mean 'node-1'?",
            id="unknown node",
        ),
        pytest.param(
            "pods: {client: {}}",
            "t.yaml:5:10: the key 'client' must be NAMESPACE/POD.",
            id="a pod without its namespace",
        ),
        pytest.param(
            "pods: {a/b: {ports: [http]}}",
            "t.yaml:5:24: spec.pods.a/b.ports[0]: 'http' must be a port, 1 to 65535.",
            id="a port that is a word",
        ),
        pytest.param(
            "pods: {a/b: {ports: [70000]}}",
            "t.yaml:5:24: spec.pods.a/b.ports[0]: 70000 must be a port, 1 to 65535.",
            id="a port beyond the last",
        ),
        pytest.param(
            "pods: {a/b: {ports: [15008]}}",
            "t.yaml:5:24: pod 'a/b': port 15008 is the ztunnel's own in every pod of the mesh "
            "(15001, 15006, 15008, 15053)",
            id="a port of the ztunnel's",
        ),
        pytest.param(
            "pods: {a/b: {ports: [80, 80]}}", "t.yaml:5:28: pod 'a/b': port 80 is there twice", id="a port twice"
        ),
        pytest.param(
            "pods: {a/b: {labels: {version: 1}}}",
            "t.yaml:5:34: spec.pods.a/b.labels.version: 1 must be a label's value (letters, digits, '-', '_' and '.', "
            'at most 63). Put it in quotes: "1"',
            id="a number for text",
        ),
        pytest.param(
            "pods: {a/b: {run: serve --now}}",
            "t.yaml:5:21: spec.pods.a/b.run: 'serve --now' must be a list.",
            id="a command line for a list",
        ),
        pytest.param(
            "pods: {a/b: {env: {A: b}}}",
            "t.yaml:5:21: pod 'a/b' has an environment but no `run`: the built-in echo reads none",
            id="an environment for nobody",
        ),
        pytest.param(
            "pods: {a/b: {capabilities: [NET_ADMN]}}",
            "t.yaml:5:31: spec.pods.a/b.capabilities[0]: 'NET_ADMN' must be a capability as Linux names it, "
            "without CAP_. Did you mean 'NET_ADMIN'?",
            id="an unknown capability",
        ),
        pytest.param("nodes: []", "t.yaml:5:10: a lab has at least one node", id="no node"),
        pytest.param("nodes: [a,\n  a]", "t.yaml:6:5: the node 'a' is already on line 5", id="a node twice"),
        pytest.param("nodes: [a, a]", "t.yaml:5:14: the node 'a' is already on line 5", id="a node twice on one line"),
        pytest.param("nodes: [&a {name: a}, *a]", "t.yaml:5:11: the node 'a' is already on line 5", id="by an alias"),
        pytest.param("nodes: [~]", "t.yaml:5:11: spec.nodes[0]: empty must be a DNS label (lower case, digits and '-', "
                     "at most 63) or a mapping.", id="an empty entry"),
        pytest.param(
            "nodes: [{ztunnel: none}]", "t.yaml:5:11: spec.nodes[0] needs the key 'name'.", id="a node without a name"
        ),
        pytest.param(
            "readyTimeoutSeconds: 0",
            "t.yaml:5:24: spec.readyTimeoutSeconds: 0 must be a number of seconds above 0.",
            id="no time at all",
        ),
        pytest.param(
            "mounts: [tmp]", "t.yaml:5:12: spec.mounts[0]: 'tmp' must be an absolute path.", id="a relative path"
        ),
    ],
)  # fmt: skip
def test_a_lab_that_cannot_be_says_why(spec: str, issue: str) -> None:
    assert _of_lab(spec) == [issue]


@pytest.mark.parametrize(
    ("row", "issue"),
    [
        (
            "{from: a/clint, to: 'a/server:80', verdict: allow}",
            "8:14: no pod 'a/clint' (a/client, a/server, out/side). Did you mean 'a/client'?",
        ),
        ("{from: a/client, to: 'a/serve:80', verdict: allow}",
         "8:28: no pod 'a/serve' (a/server:80|81). Did you mean 'a/server'?"),
        ("{from: a/client, to: 'a/server:82', verdict: allow}", "8:28: pod 'a/server' declares no port 82 (80, 81)"),
        (
            "{from: a/server, to: 'a/server:80', verdict: allow}",
            "8:28: 'a/server' to itself is no cell: a pod's call to its own address is never captured",
        ),
        (
            "{from: a/client, to: 'web:80', verdict: allow}",
            "8:28: 'web:80' is neither NAMESPACE/POD:PORT nor SERVICE.NAMESPACE:PORT of a Service (v6.a, web.a). "
            "Did you mean 'web.a'?",
        ),
        ("{from: a/client, to: 'web.a:81', verdict: allow}", "8:28: Service 'web.a' has no port 81 (80)"),
        (
            "{from: a/client, to: 'v6.a:80', verdict: allow, family: 4}",
            "8:28: Service 'v6.a' has no address to call over IPv4",
        ),
        (
            "{from: out/side, to: 'web.a:80', verdict: allow}",
            "8:28: only pods of the mesh call Services, and 'out/side' is not in it: 'web.a' is no cell for it",
        ),
        (
            "{from: a/client, to: 'a/server:80', verdict: alow}",
            "8:52: spec.expect[0].verdict: 'alow' must be one of allow, deny. Did you mean 'allow'?",
        ),
        (
            "{from: a/client, to: 'a/server:80', verdict: allow, family: 5}",
            "8:67: spec.expect[0].family: 5 must be 4 or 6.",
        ),
        ("{from: a/client, to: 'a/server:80'}", "8:7: spec.expect[0] needs the key 'verdict'."),
    ],
)  # fmt: skip
def test_a_row_that_names_no_cell_is_refused(row: str, issue: str) -> None:
    text = f"""\
{LAB}  nodes: [node-1]
  pods: {{a/client: , out/side: , a/server: {{ports: [80, 81]}}}}
  expect:
    - {row}
---
{{apiVersion: v1, kind: Namespace, metadata: {{name: a, labels: {{istio.io/dataplane-mode: ambient}}}}}}
---
{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: a}}, spec: {{ports: [{{port: 80}}]}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: v6, namespace: a}}
spec: {{ports: [{{port: 80}}], ipFamilies: [IPv6]}}
"""
    assert _issues(text) == [f"t.yaml:{issue}"]


@pytest.mark.parametrize(("first", "second"), [("", ""), ("", ", family: 4"), (", family: 6", "")])
def test_a_cell_has_one_row(first: str, second: str) -> None:
    row = "  - {{from: a/a, to: 'a/b:80', verdict: {}{}}}\n"
    rows = row.format("allow", first) + row.format("deny", second)
    (issue,) = _of_lab(f"pods: {{a/a: , a/b: {{ports: [80]}}}}\nexpect:\n{rows}")
    assert "a/a to a/b:80 over IPv" in issue
    assert issue.endswith("is already on line 7")
    assert issue.startswith("t.yaml:8:7: ")


def test_both_families_may_have_their_own_row() -> None:
    rows = "".join(f"\n  - {{from: a/a, to: 'a/b:80', verdict: allow, family: {family}}}" for family in (4, 6))
    text = f"{LAB}  pods: {{a/a: , a/b: {{ports: [80]}}}}\n  expect:{rows}\n"
    assert len(load(text, "t.yaml").expect) == 2


@pytest.mark.parametrize(
    ("text", "issue"),
    [
        (
            "apiVersion: v1\nkind: Servise\n",
            "2:7: kind 'Servise' is not supported. The supported kinds are Lab, Namespace, ServiceAccount, Pod, "
            "Deployment, Service, Endpoints, EndpointSlice, Gateway, HTTPRoute, TCPRoute, VirtualService, "
            "DestinationRule, AuthorizationPolicy, PeerAuthentication, RequestAuthentication. "
            "Did you mean 'Service'?",
        ),
        ("apiVersion: apps/v2\nkind: Deployment\n", "1:13: apiVersion 'apps/v2' for kind Deployment, which is apps/v1"),
        (
            "kind: AuthorizationPolicy\n",
            "1:1: no apiVersion for kind AuthorizationPolicy, which is security.istio.io/v1 or "
            "security.istio.io/v1beta1",
        ),
        ("shop: {}\n", "1:1: a document needs apiVersion and kind"),
        ("- a\n", "1:1: a document is a mapping with apiVersion and kind, not a list"),
        ("word\n", "1:1: a document is a mapping with apiVersion and kind, not 'word'"),
        ("apiVersion: v1\nkind: List\nitems: [1]\n", "3:9: an item of a List is a mapping with apiVersion and kind"),
        ("apiVersion: v1\nkind: Namespace\n", "1:1: Namespace needs the key 'metadata'."),
        ("apiVersion: v1\nkind: Namespace\nmetadata: {}\n", "3:11: metadata needs the key 'name'."),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: Shop}\n",
            "3:18: metadata.name: 'Shop' must be a DNS label (lower case, digits and '-', at most 63).",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + "a" * 64 + "}\n",
            f"3:18: metadata.name: '{'a' * 64}' must be a DNS label (lower case, digits and '-', at most 63).",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: " + "a" * 254 + "}\nspec: {containers: [{}]}\n",
            f"3:18: metadata.name: '{'a' * 80}...' must be a DNS name (labels of lower case, digits and '-', "
            "at most 253 in all).",
        ),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n", "1:1: Pod needs the key 'spec'."),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\n", "4:7: spec needs the key 'containers'."),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{}, {}]}\n",
            "4:20: 2 containers; a pod of the lab runs one program",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {hostNetwork: true, containers: [{}]}\n",
            "4:8: spec.hostNetwork is refused: a pod in its node's network is never captured",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n"
            "spec: {volumes: [{name: data}], containers: [{volumeMounts: [{name: date, mountPath: /d}]}]}\n",
            "4:69: volume 'date' is not among the pod's volumes (data). Did you mean 'data'?",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n"
            "spec: {replicas: 70000, template: {spec: {containers: [{}]}}}\n",
            "4:18: 70000 replicas; a lab has at most 65534 pods",
        ),
    ],
)
def test_a_document_that_cannot_be_read_says_why(text: str, issue: str) -> None:
    assert _issues(text) == [f"t.yaml:{issue}"]


@pytest.mark.parametrize(
    ("spec", "issue"),
    [
        ("{rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}",
         "4:45: spec.rules[0].from[0].source.ipBlocks[0]: '10.0.0.0/33' must be an address or a CIDR of IPv4 or IPv6."),
        ("{rules: [{from: [{source: {notIpBlocks: ['fd00::/129']}}]}]}",
         "4:48: spec.rules[0].from[0].source.notIpBlocks[0]: 'fd00::/129' must be an address or a CIDR of IPv4 or "
         "IPv6."),
        ("{rules: [{to: [{operation: {ports: [80]}}]}]}",
         "4:43: spec.rules[0].to[0].operation.ports[0]: 80 must be a port, 1 to 65535, as text. "
         'Put it in quotes: "80"'),
        ("{rules: [{to: [{operation: {ports: [http]}}]}]}",
         "4:43: spec.rules[0].to[0].operation.ports[0]: 'http' must be a port, 1 to 65535, as text."),
        ("{action: AUDIT}", "4:16: spec.action: 'AUDIT' must be one of ALLOW, DENY."),
        ("{action: DENY}", "4:7: a DENY without rules matches nothing; Istio refuses it"),
        ("{rules: [{from: []}]}", "4:23: 'from' must not be an empty list; leave it out to match everything"),
        ("{rules: [{from: [{source: {}}]}]}", "4:24: 'source' has no field: it would match nothing; Istio refuses it"),
        ("{rules: [{to: [{}]}]}", "4:22: 'operation' has no field: it would match nothing; Istio refuses it"),
        ("{rules: [{from: [{source: {serviceAccounts: [a], principals: [b]}}]}]}",
         "4:51: serviceAccounts and principals exclude each other in one source; make them two"),
        ("{rules: [{from: [{source: {serviceAccounts: ['*']}}]}]}",
         "4:52: spec.rules[0].from[0].source.serviceAccounts[0]: '*' must be NAMESPACE/SERVICE-ACCOUNT or "
         "SERVICE-ACCOUNT."),
        ("{rules: [{when: [{key: source.ipp, values: [a]}]}]}",
         "4:30: no condition 'source.ipp'; there are connection.sni, destination.ip, destination.port, "
         "experimental.envoy.filters.FILTER[NAME], remote.ip, request.auth.audiences, request.auth.claims[NAME], "
         "request.auth.presenter, request.auth.principal, request.headers[NAME], source.ip, source.namespace, "
         "source.principal, source.serviceAccount, source.trustDomain. Did you mean 'source.ip'?"),
        ("{rules: [{when: [{key: 'request.headers[]', values: [a]}]}]}", "4:30: no condition 'request.headers[]'; *"),
        ("{rules: [{when: [{key: experimental.envoy.filters.x, values: [a]}]}]}",
         "4:30: no condition 'experimental.envoy.filters.x'; *"),
        ("{rules: [{when: [{key: source.trustDomain, values: [a*b]}]}]}",
         "4:59: source.trustDomain: 'a*b' must be a trust domain, with '*' at one end at most, and without spiffe://."),
        ("{rules: [{to: [{operation: {paths: ['/{x}/a']}}]}]}",
         "4:43: spec.rules[0].to[0].operation.paths[0]: '/{x}/a' must be a path, or a template of {*} and, as the last "
         "of them, {**}."),
        ("{rules: [{when: [{key: source.ip, values: [a.b.c.d]}]}]}",
         "4:50: source.ip: 'a.b.c.d' must be an address or a CIDR of IPv4 or IPv6."),
        ("{rules: [{when: [{key: destination.port, notValues: ['0']}]}]}",
         "4:60: destination.port: '0' must be a port, 1 to 65535, as text."),
        ("{rules: [{when: [{key: source.ip}]}]}", "4:24: the condition 'source.ip' has neither values nor notValues"),
        ("{selector: {matchLabels: {a: b}}, targetRef: {group: '', kind: Service, name: a}}",
         "4:52: selector and targetRef exclude each other"),
        ("{targetRef: {group: apps, kind: Service, name: a}}", "4:27: group 'apps' of a Service must be '' or 'core'"),
        ("{selector: {matchLabels: {'': b}}}",
         "4:33: the key '' must be a label's key ([PREFIX/]NAME, NAME at most 63)."),
    ],
)  # fmt: skip
def test_a_policy_that_istio_would_refuse_is_refused(spec: str, issue: str) -> None:
    (said,) = _of_policy(spec)
    assert fnmatchcase(said, f"t.yaml:{issue}") if issue.endswith("; *") else said == f"t.yaml:{issue}"


@pytest.mark.parametrize(
    ("word", "dry_run"),
    [
        *((word, True) for word in ("1", "t", "T", "true", "TRUE", "True")),
        *((word, False) for word in ("0", "f", "False")),
    ],
)
def test_dry_run_is_read_as_go_reads_a_truth_value(word: str, dry_run: bool) -> None:
    policy = f"""apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: a, annotations: {{istio.io/dry-run: "{word}"}}}}
spec: {{}}
"""
    assert load(policy, "t.yaml").mesh.authorization_policies[0].dry_run is dry_run


@pytest.mark.parametrize("word", ["yes", "tRUE", "", "2"])
def test_another_word_for_dry_run_is_refused(word: str) -> None:
    policy = f"""apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: a, annotations: {{istio.io/dry-run: "{word}"}}}}
spec: {{}}
"""
    with pytest.raises(TopologyError, match="must be one of 0, 1, F, FALSE"):
        load(policy, "t.yaml")


@pytest.mark.parametrize(
    ("spec", "issue"),
    [
        ("{ports: [{port: 80}, {port: 81, name: a}]}", "4:16: port 80 needs a name, since the Service has several"),
        ("{ports: [{port: 80, name: a}, {port: 80, name: b}]}", "4:44: port 80 is there twice"),
        ("{ports: [{port: 80, name: a}, {port: 81, name: a}]}", "4:54: two ports are named 'a'"),
        ("{ports: [{name: a}]}", "4:16: spec.ports[0] needs the key 'port'."),
        ("{ports: [{port: 80, targetPort: '81'}]}",
         "4:39: spec.ports[0].targetPort: '81' must be a port, 1 to 65535, or a port's name."),
        ("{clusterIP: 127.0.0.1}",
         "4:19: spec.clusterIP: '127.0.0.1' must be 'None' or an address that a Service can have."),
        ("{clusterIP: 10.96.0.1, ipFamilies: [IPv6]}", "4:19: 10.96.0.1 is not of the Service's ipFamilies (IPv6)"),
        ("{type: NodePort}", "4:8: spec.type is refused: a Service of the lab is reached from its pods only"),
    ],
)  # fmt: skip
def test_a_service_that_cannot_be_says_why(spec: str, issue: str) -> None:
    assert _of_service(spec) == [f"t.yaml:{issue}"]


@pytest.mark.parametrize(
    ("spec", "issue"),
    [
        ("{portLevelMtls: {'80': {mode: STRICT}}}",
         "4:23: portLevelMtls needs a selector: Istio honours it for workloads only"),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {}}", "4:56: portLevelMtls has no port"),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {'0': {mode: STRICT}}}",
         "4:57: the key '0' must be a port, 1 to 65535."),
        ("{mtls: {mode: STRIKT}}",
         "4:21: spec.mtls.mode: 'STRIKT' must be one of DISABLE, PERMISSIVE, STRICT, UNSET. Did you mean 'STRICT'?"),
    ],
)  # fmt: skip
def test_a_peer_authentication_that_istio_would_refuse_is_refused(spec: str, issue: str) -> None:
    text = f"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: x}}\nspec: {spec}\n"
    assert _issues(text) == [f"t.yaml:{issue}"]


def test_an_object_is_there_once_and_a_pod_whatever_it_came_from() -> None:
    text = """\
apiVersion: v1
kind: Pod
metadata: {name: web-0}
spec: {containers: [{}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {template: {spec: {containers: [{}]}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: a}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: a}}
"""
    assert _issues(text) == [
        "t.yaml:8:18: the Pod 'default/web-0' is already on line 3",
        "t.yaml:13:52: the Namespace 'a' is already on line 11",
    ]


def test_a_second_lab_is_refused() -> None:
    assert _issues(f"{LAB}  nodes: [a]\n---\n{LAB}  nodes: [a]\n") == ["t.yaml:7:1: the Lab is already on line 1"]


def test_a_service_does_not_take_the_address_of_a_pod() -> None:
    address = str(load(f"{LAB}  pods: {{a/b: }}\n", "t.yaml").mesh.pods[0].ipv4)
    service = f"{{apiVersion: v1, kind: Service, metadata: {{name: s}}, spec: {{clusterIP: {address}}}}}"
    assert _issues(f"{LAB}  pods: {{a/b: }}\n---\n{service}\n") == [
        f"t.yaml:7:72: {address} of Service 's.default' is also that of pod 'a/b'"
    ]


def test_a_lab_has_at_most_255_nodes() -> None:
    nodes = ", ".join(f"n{number}" for number in range(256))
    assert _of_lab(f"nodes: [{nodes}]") == ["t.yaml:5:10: 256 nodes; a lab has at most 255"]


def test_a_lab_has_at_most_65534_pods() -> None:
    spec = "{replicas: 40000, template: {spec: {containers: [{}]}}}"
    head = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: "
    (issue,) = _issues("---\n".join(f"{head}{name}}}\nspec: {spec}\n" for name in "ab"))
    assert issue.endswith("40000 replicas beside 40000 other pods; a lab has at most 65534 pods")


def _deployment(name: str, replicas: str) -> str:
    template = "{spec: {containers: [{}]}}"
    spec = f"{{replicas: {replicas}, template: {template}}}"
    return f"apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec: {spec}\n"


@pytest.mark.parametrize(("written", "pods"), [("0x3", 3), ("0o3", 3), ("+3", 3), ("0", 0)])
def test_a_number_means_the_same_however_yaml_writes_it(written: str, pods: int) -> None:
    assert len(load(_deployment("a", written), "t.yaml").mesh.pods) == pods


def test_deployments_that_are_too_many_in_sum_are_refused_before_one_of_them_is_made() -> None:
    issues = _issues("---\n".join(_deployment(f"a-{number}", "65534" if number else "1") for number in range(100)))
    assert len(issues) == 99
    assert "65534 replicas beside 1 other pods" in issues[0]


def test_reading_ends_at_the_most_issues_and_says_so() -> None:
    issues = _issues("".join(f"---\nkind: Nothing{number}\n" for number in range(500)))
    assert len(issues) == MAX_ISSUES + 1
    assert issues[0].endswith("after 200 issues the rest was not read: there may be more")


def test_a_node_that_is_not_there_is_one_issue_for_all_replicas_of_a_deployment() -> None:
    text = _deployment("a", "5000").replace("spec: {containers", "spec: {nodeName: gone, containers")
    (issue,) = _issues(text)
    assert "pod 'default/a-0' is on node 'gone'" in issue
