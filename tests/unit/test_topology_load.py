"""What a topology file means: nodes, places, replicas, families, programs."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from textwrap import dedent

import pytest

from meshlab.model import (
    Action,
    AuthorizationPolicy,
    ContainerPort,
    Expectation,
    MtlsMode,
    Node,
    PeerAuthentication,
    Pod,
    Program,
    Rule,
    Service,
    ServicePort,
    Source,
    Topology,
    Verdict,
    addresses,
)
from meshlab.topology import load, read

MANIFESTS = Path(__file__).parents[2] / "fixtures" / "manifests"


def _lab(spec: str, *documents: str) -> Topology:
    lab = f"apiVersion: meshlab.dev/v1alpha1\nkind: Lab\nmetadata: {{name: test}}\nspec: {spec}\n"
    return load("---\n".join((lab, *documents)), "test.yaml")


def _pod(spec: str, metadata: str = "{name: web}") -> str:
    return f"apiVersion: v1\nkind: Pod\nmetadata: {metadata}\nspec: {spec}\n"


def _service(spec: str) -> Service:
    return load(f"apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}\n", "test.yaml").mesh.services[0]


def test_the_example_of_the_design_means_what_it_says() -> None:
    topology = load(
        dedent("""
        apiVersion: meshlab.dev/v1alpha1
        kind: Lab
        metadata: {name: quickstart}
        spec:
          nodes: [node-1, {name: node-2, ztunnel: reference}]
          pods:
            shop/client: {node: node-1}
            shop/server: {node: node-2, ports: [8080], serviceAccount: server, labels: {app: server}}
          dataplane: {ztunnel: none}
          images: {"docker.io/library/nginx*": {run: [nginx, -g, daemon off;]}}
          expect:
            - {from: shop/client, to: "shop/server:8080", verdict: allow}
        ---
        apiVersion: v1
        kind: Namespace
        metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
        """),
        "quickstart.yaml",
    )
    assert topology.nodes == (Node(name="node-1"), Node(name="node-2", ztunnel="reference"))
    assert topology.ztunnel == "none"
    assert topology.images == {"docker.io/library/nginx*": Program(argv=("nginx", "-g", "daemon off;"))}
    assert topology.expect == (Expectation(source="shop/client", to="shop/server:8080", verdict=Verdict.ALLOW),)
    client, server = topology.mesh.pods
    assert client.ports == ()
    assert server == Pod(
        name="server",
        namespace="shop",
        node="node-2",
        ipv4=addresses.pod4(1, 1),
        ipv6=addresses.pod6(1, 1),
        labels={"app": "server"},
        service_account="server",
        ports=(ContainerPort(number=8080),),
    )
    assert topology.mesh.is_enrolled(client)


def test_a_short_form_and_a_verbatim_pod_mean_the_same() -> None:
    short = _lab(
        "{pods: {default/web: {node: node-2, serviceAccount: web, labels: {app: web},"
        " ports: [{containerPort: 80, name: h}], run: [serve, --now], env: {MODE: fast}, workingDir: /srv,"
        " capabilities: [NET_ADMIN], emptyDirs: [/cache]}}}"
    )
    verbatim = _lab(
        "{}",
        _pod(
            "{nodeName: node-2, serviceAccountName: web, volumes: [{name: cache, emptyDir: {}}], containers: [{"
            "ports: [{containerPort: 80, name: h}], command: [serve], args: [--now], env: [{name: MODE, value: fast}],"
            " workingDir: /srv, securityContext: {capabilities: {add: [NET_ADMIN]}},"
            " volumeMounts: [{name: cache, mountPath: /cache}]}]}",
            "{name: web, labels: {app: web}}",
        ),
    )
    assert short == verbatim


def test_a_file_without_a_lab_has_two_nodes_and_spreads_its_pods() -> None:
    topology = load("---\n".join(_pod("{containers: [{}]}", f"{{name: p{number}}}") for number in range(3)), "x.yaml")
    assert topology.nodes == (Node(name="node-1"), Node(name="node-2"))
    assert [pod.node for pod in topology.mesh.pods] == ["node-1", "node-2", "node-1"]
    assert topology.ztunnel == "reference"


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n---\n---\n", "null\n"])
def test_empty_documents_are_skipped(text: str) -> None:
    assert load(text, "x.yaml").mesh.pods == ()


def test_pods_are_addressed_by_their_place_in_the_file_whatever_their_kind() -> None:
    topology = load(
        _pod("{containers: [{}], nodeName: node-2}", "{name: first}")
        + "---\napiVersion: meshlab.dev/v1alpha1\nkind: Lab\nmetadata: {name: x}\n"
        + "spec: {pods: {a/second: , a/third: }}\n---\n"
        + _pod("{containers: [{}]}", "{name: fourth}"),
        "x.yaml",
    )
    assert [pod.name for pod in topology.mesh.pods] == ["first", "second", "third", "fourth"]
    assert [pod.node for pod in topology.mesh.pods] == ["node-2", "node-1", "node-1", "node-2"]
    nodes = [1, 0, 0, 1]
    assert [pod.ipv4 for pod in topology.mesh.pods] == [addresses.pod4(node, place) for place, node in enumerate(nodes)]


def test_a_rename_changes_no_address() -> None:
    before, after = (_lab(f"{{pods: {{shop/{name}: , shop/other: }}}}").mesh.pods for name in ("server", "renamed"))
    assert [(pod.ipv4, pod.ipv6) for pod in before] == [(pod.ipv4, pod.ipv6) for pod in after]


def test_replicas_become_numbered_pods_that_know_their_deployment() -> None:
    topology = load(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\nspec:\n"
        "  replicas: 3\n"
        "  template: {metadata: {labels: {app: web}}, spec: {containers: [{ports: [{containerPort: 80}]}]}}\n",
        "x.yaml",
    )
    assert [(pod.key, pod.node, pod.workload) for pod in topology.mesh.pods] == [
        ("shop/web-0", "node-1", "web"),
        ("shop/web-1", "node-2", "web"),
        ("shop/web-2", "node-1", "web"),
    ]
    assert {tuple(pod.labels.items()) for pod in topology.mesh.pods} == {(("app", "web"),)}


@pytest.mark.parametrize(("replicas", "names"), [("", ["web-0"]), ("replicas: 0,", [])])
def test_a_deployment_has_one_replica_unless_it_says_otherwise(replicas: str, names: list[str]) -> None:
    spec = f"{{{replicas} template: {{spec: {{containers: [{{}}]}}}}}}"
    text = f"{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: web}}, spec: {spec}}}"
    assert [pod.name for pod in load(text, "x.yaml").mesh.pods] == names


def test_namespaces_are_those_declared_and_then_those_only_mentioned() -> None:
    topology = _lab(
        "{pods: {late/pod: , b/pod: }}",
        "{apiVersion: v1, kind: ServiceAccount, metadata: {name: x, namespace: of-an-account}}\n",
        "{apiVersion: v1, kind: Namespace, metadata: {name: b, labels: {istio.io/dataplane-mode: ambient}}}\n",
        _pod("{containers: [{}]}"),
    )
    assert [namespace.name for namespace in topology.mesh.namespaces] == ["b", "late", "of-an-account", "default"]


@pytest.mark.parametrize(
    ("spec", "families"),
    [
        ("{}", (4, 6)),
        ("{ipFamilies: [IPv4]}", (4,)),
        ("{ipFamilies: [IPv6]}", (6,)),
        ("{ipFamilies: [IPv6, IPv4]}", (4, 6)),
        ("{ipFamilyPolicy: SingleStack}", (4,)),
        ("{ipFamilyPolicy: PreferDualStack}", (4, 6)),
        ("{ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6]}", (4, 6)),
        ("{clusterIP: None}", ()),
    ],
)
def test_a_service_has_an_address_of_each_of_its_families(spec: str, families: tuple[int, ...]) -> None:
    service = _service(spec)
    assert tuple(family for family, address in ((4, service.ipv4), (6, service.ipv6)) if address) == families


def test_a_cluster_ip_that_is_given_is_kept() -> None:
    service = _service('{clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, "fd00::a"]}')
    assert (service.ipv4, service.ipv6) == (IPv4Address("10.96.0.10"), IPv6Address("fd00::a"))


def test_addresses_of_services_follow_from_their_place() -> None:
    text = "---\n".join(f"{{apiVersion: v1, kind: Service, metadata: {{name: s{number}}}}}\n" for number in range(2))
    assert [s.ipv4 for s in load(text, "x.yaml").mesh.services] == [addresses.service4(0), addresses.service4(1)]


def test_ports_of_a_service_lead_to_numbers_names_or_themselves() -> None:
    service = _service(
        "{ports: [{port: 80, targetPort: http, name: a}, {port: 81, name: b}, {port: 82, targetPort: 8, name: c}]}"
    )
    assert service.ports == (
        ServicePort(port=80, target_port="http", name="a"),
        ServicePort(port=81, target_port=81, name="b"),
        ServicePort(port=82, target_port=8, name="c"),
    )


@pytest.mark.parametrize(
    ("container", "program"),
    [
        ("{}", None),
        ("{command: [serve], args: [now]}", Program(argv=("serve", "now"))),
        ("{image: 'corp/tool:1'}", Program(argv=("tool", "-d"), env={"A": "1"}, working_dir="/opt")),
        ("{image: 'corp/tool:1', args: [x]}", Program(argv=("tool", "-d", "x"), env={"A": "1"}, working_dir="/opt")),
        (
            "{image: 'corp/tool:1', command: [c], args: [x]}",
            Program(argv=("c", "x"), env={"A": "1"}, working_dir="/opt"),
        ),
        (
            "{image: 'corp/tool:1', env: [{name: A, value: '2'}], workingDir: /w}",
            Program(argv=("tool", "-d"), env={"A": "2"}, working_dir="/w"),
        ),
        ("{image: 'corp/echo:1', command: [anything]}", None),
        ("{image: 'curlimages/curl:8', command: [sleep, infinity]}", None),
        ("{image: 'unknown:1', command: [anything]}", None),
    ],
)
def test_an_image_is_the_program_that_the_file_says(container: str, program: Program | None) -> None:
    topology = _lab(
        '{images: {"docker.io/corp/tool:*": {run: [tool, -d], env: {A: "1"}, workingDir: /opt}, "*/corp/echo*": {}}}',
        _pod(f"{{containers: [{container}]}}"),
    )
    assert topology.mesh.pods[0].program == program


def test_fields_of_the_pod_reach_its_environment() -> None:
    fields = ["metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName"]
    fields += ["status.podIP", "status.podIPs"]
    env = ", ".join(f"{{name: V{n}, valueFrom: {{fieldRef: {{fieldPath: {path}}}}}}}" for n, path in enumerate(fields))
    pod = load(_pod(f"{{containers: [{{command: [x], env: [{env}]}}]}}"), "x.yaml").mesh.pods[0]
    assert pod.program is not None
    assert list(pod.program.env.values()) == [
        "web", "default", pod.uid, "node-1", "default", str(pod.ipv4), f"{pod.ipv4},{pod.ipv6}"
    ]  # fmt: skip


def test_the_older_name_of_the_service_account_is_read_and_the_newer_one_goes_first() -> None:
    older = load(_pod("{serviceAccount: old, containers: [{}]}"), "x.yaml").mesh.pods[0]
    both = load(_pod("{serviceAccount: old, serviceAccountName: new, containers: [{}]}"), "x.yaml").mesh.pods[0]
    assert (older.service_account, both.service_account) == ("old", "new")


def test_images_without_a_program_are_told_once_with_the_line_to_add() -> None:
    text = "---\n".join(_pod("{containers: [{image: 'nginx:1.27'}]}", f"{{name: p{n}}}") for n in range(2))
    (issue,) = read(text, "x.yaml").unrunnable
    assert str(issue).startswith("x.yaml:4:29: no program stands for the image 'nginx:1.27' of pod 'default/p0'.")
    line = issue.message.partition("spec.images: ")[2].partition(", or")[0]
    assert load(f"{_LAB_WITH_IMAGES}{{{line}}}", "y.yaml").images == {
        "docker.io/library/nginx*": Program(argv=("PROGRAM", "ARGUMENT"))
    }


_LAB_WITH_IMAGES = "apiVersion: meshlab.dev/v1alpha1\nkind: Lab\nmetadata: {name: x}\nspec:\n  images: "


def test_each_kind_is_read_as_what_it_is() -> None:
    mesh = load((MANIFESTS / "bookshop.yaml").read_text(), "bookshop.yaml").mesh
    assert [pod.key for pod in mesh.pods] == ["bookshop/page-v1-0", "bookshop/reviews-v2-0", "bookshop/reviews-v2-1"]
    assert [service.key for service in mesh.services] == ["page.bookshop", "reviews.bookshop"]
    assert mesh.authorization_policies == (
        AuthorizationPolicy(
            name="reviews-for-the-page",
            namespace="bookshop",
            selector={"app": "reviews"},
            action=Action.ALLOW,
            rules=(
                Rule(
                    sources=(Source(principals=("cluster.local/ns/bookshop/sa/page",)),),
                    operations=mesh.authorization_policies[0].rules[0].operations,
                ),
            ),
        ),
    )
    assert mesh.authorization_policies[0].rules[0].operations[0].ports == ("9080",)
    assert mesh.peer_authentications == (
        PeerAuthentication(name="default", namespace="bookshop", mode=MtlsMode.STRICT),
    )
    assert all(map(mesh.is_enrolled, mesh.pods))


def test_what_kubectl_prints_can_be_pasted() -> None:
    reading = read((MANIFESTS / "as-kubectl-prints.yaml").read_text(), "list.yaml")
    (pod,) = reading.topology.mesh.pods
    assert (pod.node, pod.service_account, pod.ports) == ("node-2", "web", (ContainerPort(number=8080),))
    assert reading.topology.mesh.services[0].ipv4 == IPv4Address("10.96.14.7")
    assert reading.unrunnable == ()
    assert len(reading.inert) > 20


@pytest.mark.parametrize(
    ("spec", "selector"), [("{}", None), ("{selector: {}}", {}), ("{selector: {matchLabels: {a: b}}}", {"a": "b"})]
)
def test_no_selector_and_an_empty_one_are_told_apart(spec: str, selector: dict[str, str] | None) -> None:
    text = f"{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: x}}, spec: {spec}}}"
    assert load(text, "x.yaml").mesh.authorization_policies[0].selector == selector


def test_a_rule_that_is_empty_is_not_no_rule() -> None:
    texts = (
        f"{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: x}}, spec: {spec}}}"
        for spec in ("{}", "{rules: []}", "{rules: [{}]}")
    )
    rules = [load(text, "x.yaml").mesh.authorization_policies[0].rules for text in texts]
    assert rules == [(), (), (Rule(),)]
