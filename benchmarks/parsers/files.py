"""Files that a user opens, maybe from an issue: labs, manifests, bug files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from benchmarks.parsers.parser import Parser, Shape, numbered, repeated
from meshlab.errors import TopologyError
from meshlab.model import Topology
from meshlab.play.bugfile import formatted
from meshlab.play.files import hazards, opened
from meshlab.topology import load, load_manifests, replaced, without

_LAB_HEAD = "apiVersion: meshlab.dev/v1alpha1\nkind: Lab\nmetadata: {name: t}\nspec:\n"
_LAB = (
    _LAB_HEAD
    + """\
  nodes: [node-1]
  readyTimeoutSeconds: 30
  images: {"*/web:*": {run: [sleep, "1"]}}
  pods:
    shop/a: {node: node-1, labels: {app: a}, serviceAccount: a}
    shop/b: {ports: [8080, {containerPort: 81, name: web}], labels: &l {app: b}}
  expect:
    - {from: shop/a, to: "shop/b:8080", verdict: allow, family: 4}
  steps:
    - {call: {from: shop/a, to: "shop/b:81", kind: tcp}, expect: allow}
    - apply: [{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: q}, spec: {}}]
    - apply: [{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {a: b}}}]
    - connect: {from: shop/a, to: "shop/b:81", as: one, family: 6}
    - delete: [{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: shop}}]
    - {ask: one, expect: closed}
    - {upgrade: {ztunnel@node-1: reference}}
    - traffic: {pairs: [[shop/a, "http://b:81/"]], rate: 9, open: 1, during: [{reboot: node-1}]}
      expect: {failed_new: 0, in_plaintext: 0}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
"""
)
_DANGERS = """\
  dataplane: {ztunnel: ./ztunnel}
  mounts: [/tmp, "/a/b"]
  pods:
    shop/a: {run: [sh, "-c", "true"], workingDir: /tmp}
"""
_DEPLOYMENT = """\
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: w, namespace: shop}
spec: {replicas: 2, template: {metadata: {labels: {app: b}}, spec: {containers: [{name: w, image: a/curlimages/curl}]}}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: b}, clusterIP: 10.96.0.9, ports: [{port: 80, targetPort: web}]}
"""
_BY_HAND = """\
---
apiVersion: v1
kind: Pod
metadata: {name: c, namespace: shop, annotations: {ambient.istio.io/bypass-inbound-capture: "true"}}
spec: {restartPolicy: Never, initContainers: [{command: [a]}], containers: [{}]}
status: {podIP: 10.1.2.3, podIPs: [{ip: 10.1.2.3}, {ip: "fd00::3"}]}
---
apiVersion: v1
kind: Service
metadata: {name: hand, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: hand, namespace: shop}
subsets: [{addresses: [{ip: 10.1.2.3}], ports: [{port: 8080}]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: hand-1, namespace: shop, labels: {kubernetes.io/service-name: hand}}
addressType: IPv6
endpoints: [{addresses: ["fd00::3"], conditions: {ready: true}}]
ports: [{port: 8080}]
"""
_POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  selector: {matchLabels: {app: b}}
  action: ALLOW
  rules:
    - from: [{source: {principals: ["*/sa/a"], ipBlocks: ["10.0.0.0/8"]}}]
      to: [{operation: {ports: ["8080"]}}]
      when: [{key: source.ip, values: ["fd00::/8"]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: m, namespace: shop}
spec: {selector: {matchLabels: {app: b}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}
"""
_YAML_SHAPES: Mapping[str, Shape] = {
    "brackets": repeated(b"a: ", b"[" * 10),  # from some length on: ruamel.yaml looks ahead by 1024 characters
    "dashes": repeated(b"", b"- "),
    "a long scalar": repeated(b"a: ", b"word "),
    "a long quoted scalar": repeated(b'a: "', b"\\x41", b'"'),
    "many keys": numbered("", lambda n: f"k{n}: v\n"),
    "many keys in a line": numbered(f"{_LAB_HEAD}  pods: {{a/b: {{labels: {{", lambda n: f"k{n}: v, ", "z: z}}}\n"),
    "many documents": repeated(b"", b"---\na: b\n"),
    "anchors": numbered("a: &x [b]\n", lambda n: f"k{n}: *x\n"),
    "an alias bomb": numbered("a0: &a0 [x]\n", lambda n: f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n"),
}


_ALL = _LAB + _DEPLOYMENT + "---\n" + _POLICY


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


@cache
def mesh_of_files() -> Topology:
    """Pods, a Deployment, a Service and policies."""
    return load(_ALL, "t.yaml")


def _open(data: bytes) -> None:
    """As `meshlab replay` opens a file that somebody else made."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        path.write_bytes(data)
        hazards(opened(str(path)))


def _change(data: bytes) -> None:
    """As ``lab.apply``, ``lab.replace`` and ``lab.delete`` take it."""
    topology = mesh_of_files()
    after = load_manifests(_text(data), "t.yaml", topology)
    replaced(_text(data), "t.yaml", topology)
    without(_text(data), "t.yaml", replace(topology, mesh=after))


PARSERS = (
    Parser(
        name="Lab file",
        run=lambda data: load(_text(data), "t.yaml"),
        seeds=lambda: (_LAB.encode(), (_LAB + _DEPLOYMENT).encode()),
        documented=(TopologyError,),
        shapes={
            **_YAML_SHAPES,
            "pods": numbered(f"{_LAB_HEAD}  pods:\n", lambda n: f"    shop/p{n}: {{}}\n"),
            "ports": numbered(f"{_LAB_HEAD}  pods:\n    a/b: {{ports: [", lambda n: f"{n + 1},", "65000]}\n"),
            "expectations": numbered(
                f"{_LAB_HEAD}  pods: {{a/a: {{}}, a/b: {{ports: [80]}}}}\n  expect:\n",
                lambda n: '    - {from: a/a, to: "a/b:80", verdict: allow}\n',
            ),
            "changes": numbered(
                f"{_LAB_HEAD}  pods: {{a/a: {{}}}}\n  steps:\n",
                lambda n: f"    - apply: [{{apiVersion: v1, kind: Namespace, metadata: {{name: n{n}}}}}]\n",
            ),
            "mistakes": numbered(_LAB_HEAD, lambda n: f"  wrong{n}: {{}}\n"),
        },
        unit=200,
        share=0.1,
    ),
    Parser(
        name="opened file",
        run=_open,
        seeds=lambda: (_LAB.encode(), (_LAB_HEAD + _DANGERS).encode()),
        documented=(TopologyError,),
        share=0.1,
    ),
    Parser(
        name="manifests",
        run=_change,
        seeds=lambda: (_POLICY.encode(), _BY_HAND.encode(), (_DEPLOYMENT + _BY_HAND).encode()),
        documented=(TopologyError,),
        shapes={
            "policies": numbered("", lambda n: "---\n" + _POLICY.partition("---")[0].replace("name: p", f"name: p{n}")),
            "pods": numbered(
                "",
                lambda n: f"---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}}}\nspec: {{containers: [{{}}]}}\n",
            ),
            "mistakes": numbered("", lambda n: f"---\nkind: K{n}\n"),
        },
        unit=10,
        share=0.1,
    ),
    Parser(
        name="bug file",
        run=lambda data: formatted(_text(data), "t.yaml"),
        seeds=lambda: (_ALL.encode(),),
        documented=(TopologyError,),
        shapes={name: _YAML_SHAPES[name] for name in ("many keys", "many keys in a line", "dashes")},
        unit=200,
        share=0.03,
    ),
)
