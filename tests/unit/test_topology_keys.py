"""The table of keys is the truth: what it calls honoured changes the model, what it calls inert does not."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from ruamel.yaml import YAML

from meshlab.errors import TopologyError
from meshlab.model import Topology
from meshlab.topology import load, read, render_keys_page
from meshlab.topology.keys import KINDS, Use, parts

GONE = object()
"""The key is taken away instead of changed."""

BASES = {
    "Lab": """
        apiVersion: meshlab.dev/v1alpha1
        kind: Lab
        metadata: {name: base}
        spec:
          nodes: [{name: spare, ztunnel: none}, node-1, node-2, node-3]
          pods:
            shop/client: {node: node-1, ports: [8080], image: "corp/tool:1"}
            shop/full:
              node: node-1
              ports: [{containerPort: 80, name: web, mode: echo}, 81]
              serviceAccount: full
              labels: {app: full}
              annotations: {note: one}
              run: [serve, --now]
              env: {MODE: fast}
              workingDir: /srv
              image: corp/server
              capabilities: [NET_ADMIN]
              emptyDirs: [/cache]
              ips: [10.1.2.3, "fd00::3"]
              init: [{run: [wait], env: {MODE: fast}, workingDir: /srv}]
              restartPolicy: Never
              workload: full
          dataplane: {ztunnel: reference, waypoint: reference}
          images: {"*/corp/tool:*": {run: [tool], env: {LEVEL: low}, workingDir: /opt}}
          urls: {"https://keys.example": text}
          mounts: [/opt]
          readyTimeoutSeconds: 5
        """,
    "Lab with rows": """
        apiVersion: meshlab.dev/v1alpha1
        kind: Lab
        metadata: {name: base}
        spec:
          pods: {a/a: {}, a/b: {}, a/c: {ports: [80, 81]}}
          expect: [{from: a/a, to: "a/c:80", verdict: allow, family: 4}]
        """,
    "Lab with steps": """
        apiVersion: meshlab.dev/v1alpha1
        kind: Lab
        metadata: {name: base}
        spec:
          pods: {a/a: {}, a/b: {}, a/c: {ports: [80, 81]}, a/d: {}}
          steps:
            - call: {from: a/a, to: "a/c:80", family: 4, kind: tcp, mode: half-close, body: {bytes: 2, seed: 1}}
              expect: allow
            - apply:
                - apiVersion: security.istio.io/v1
                  kind: AuthorizationPolicy
                  metadata: {name: none, namespace: a}
                  spec: {}
            - replace:
                - apiVersion: security.istio.io/v1
                  kind: PeerAuthentication
                  metadata: {name: strict, namespace: a}
                  spec: {mtls: {mode: STRICT}}
            - delete: [{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: a}}]
            - connect: {from: a/b, to: "a/c:80", as: one, family: 4, mode: half-close}
            - connect: {from: a/b, to: "a/c:80", as: two}
            - ask: one
              expect: alive
            - restart: ztunnel@node-1
            - kill: ztunnel@node-1
            - stop: ztunnel@node-1
            - pause: ztunnel@node-1
            - resume: ztunnel@node-1
            - upgrade: {ztunnel@node-1: reference}
            - reboot: node-1
            - traffic:
                pairs: [[a/b, "http://c:80/"]]
                rate: 10
                open: 2
                during: [{restart: agent@node-1}]
              expect: {failed_new: 0, broken_open: 0, in_plaintext: 0}
        """,
    "Namespace": """
        apiVersion: v1
        kind: Namespace
        metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
        """,
    "ServiceAccount": "{apiVersion: v1, kind: ServiceAccount, metadata: {name: shop, namespace: shop}}",
    "Pod": """
        apiVersion: v1
        kind: Pod
        metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {note: one}}
        spec:
          nodeName: node-1
          serviceAccountName: web
          containers:
            - command: [serve]
              args: [--now]
              workingDir: /srv
              env: [{name: MODE, value: fast}, {name: HOST, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
              ports: [{containerPort: 80, name: web}]
              volumeMounts: [{name: cache, mountPath: /cache}]
              securityContext: {capabilities: {add: [NET_ADMIN]}}
          volumes: [{name: cache, emptyDir: {}}, {name: first, emptyDir: {}}, {name: logs}]
          initContainers:
            - command: [wait]
              args: [--for]
              workingDir: /srv
              env: [{name: MODE, value: fast}, {name: HOST, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
              volumeMounts: [{name: first, mountPath: /first}]
              securityContext: {capabilities: {add: [SYS_TIME]}}
        status: {podIP: 10.1.2.3, podIPs: [{ip: 10.1.2.3}, {ip: "fd00::3"}]}
        """,
    "Deployment": """
        apiVersion: apps/v1
        kind: Deployment
        metadata: {name: web, namespace: shop}
        spec:
          replicas: 2
          template:
            metadata: {labels: {app: web}, annotations: {note: one}}
            spec:
              nodeName: node-1
              serviceAccountName: web
              containers:
                - command: [serve]
                  args: [--now]
                  workingDir: /srv
                  env: [{name: MODE, value: fast}, {name: HOST, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
                  ports: [{containerPort: 80, name: web}]
                  volumeMounts: [{name: cache, mountPath: /cache}]
                  securityContext: {capabilities: {add: [NET_ADMIN]}}
              volumes: [{name: cache, emptyDir: {}}, {name: first, emptyDir: {}}, {name: logs}]
              initContainers:
                - command: [wait]
                  args: [--for]
                  workingDir: /srv
                  env: [{name: MODE, value: fast}, {name: HOST, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
                  volumeMounts: [{name: first, mountPath: /first}]
                  securityContext: {capabilities: {add: [SYS_TIME]}}
        """,
    "Service": """
        apiVersion: v1
        kind: Service
        metadata: {name: web, namespace: shop, labels: {tier: front}}
        spec:
          selector: {app: web}
          ports: [{port: 80, targetPort: web, name: web, appProtocol: tcp}]
          clusterIP: 172.16.0.10
          clusterIPs: [172.16.0.10, "fd00::10"]
          ipFamilies: [IPv4, IPv6]
          ipFamilyPolicy: RequireDualStack
        """,
    "Service of one family": """
        apiVersion: v1
        kind: Service
        metadata: {name: web, namespace: shop}
        spec: {ports: [{port: 80}], ipFamilies: [IPv4], ipFamilyPolicy: SingleStack}
        """,
    "Endpoints": """
        apiVersion: v1
        kind: Endpoints
        metadata: {name: web, namespace: shop}
        subsets: [{addresses: [{ip: 10.1.2.3}], ports: [{port: 80, name: http}]}]
        """,
    "EndpointSlice": """
        apiVersion: discovery.k8s.io/v1
        kind: EndpointSlice
        metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
        addressType: IPv4
        endpoints: [{addresses: [10.1.2.3], conditions: {ready: true}}]
        ports: [{port: 80, name: http}]
        """,
    "Gateway": """
        apiVersion: gateway.networking.k8s.io/v1
        kind: Gateway
        metadata: {name: gate, namespace: shop, labels: {istio.io/waypoint-for: workload}}
        spec: {gatewayClassName: istio-waypoint, listeners: [{allowedRoutes: {namespaces: {from: Same}}}]}
        """,
    "HTTPRoute": """
        apiVersion: gateway.networking.k8s.io/v1
        kind: HTTPRoute
        metadata: {name: route, namespace: shop}
        spec:
          parentRefs: [{group: "", kind: Service, name: web, port: 80}, {group: "", kind: Service, name: api}]
          rules:
            - name: one
              matches:
                - path: {type: PathPrefix, value: /a}
                  method: GET
                  headers: [{type: Exact, name: X-A, value: a}]
                  queryParams: [{type: Exact, name: q, value: a}]
              filters:
                - type: RequestMirror
                  requestMirror: {backendRef: {name: web, port: 80}, percent: 50}
                - type: RequestMirror
                  requestMirror: {backendRef: {name: web, port: 80}, fraction: {numerator: 1, denominator: 2}}
                - type: RequestHeaderModifier
                  requestHeaderModifier: {set: [{name: a, value: a}], add: [{name: b, value: b}], remove: [c]}
                - type: ResponseHeaderModifier
                  responseHeaderModifier: {set: [{name: a, value: a}], add: [{name: b, value: b}], remove: [c]}
                - type: URLRewrite
                  urlRewrite: {hostname: a.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}
              backendRefs:
                - name: web
                  port: 80
                  weight: 2
                  filters:
                    - type: RequestHeaderModifier
                      requestHeaderModifier: {set: [{name: a, value: a}], add: [{name: b, value: b}], remove: [c]}
                    - type: ResponseHeaderModifier
                      responseHeaderModifier: {set: [{name: a, value: a}], add: [{name: b, value: b}], remove: [c]}
              timeouts: {request: 10s}
            - filters:
                - type: RequestRedirect
                  requestRedirect:
                    scheme: http
                    hostname: a.example
                    port: 80
                    statusCode: 302
                    path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}
            - matches: [{path: {type: PathPrefix, value: /c}}]
              filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /b}}}]
            - filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /b}}}]
        """,
    "TCPRoute": """
        apiVersion: gateway.networking.k8s.io/v1
        kind: TCPRoute
        metadata: {name: route, namespace: shop}
        spec:
          parentRefs: [{group: "", kind: Service, name: web, port: 80}, {group: "", kind: Service, name: api}]
          rules: [{backendRefs: [{name: web, port: 80, weight: 2}]}]
        """,
    "VirtualService": """
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {name: route, namespace: shop}
        spec:
          hosts: [web]
          gateways: [mesh]
          http:
            - name: one
              match:
                - uri: {prefix: /a}
                  ignoreUriCase: true
                  method: {exact: GET}
                  authority: {exact: a}
                  headers: {x-a: {exact: a}}
                  withoutHeaders: {x-b: {exact: a}}
                  queryParams: {q: {exact: a}}
                  port: 80
              route:
                - destination: {host: web, subset: v1, port: {number: 80}}
                  weight: 90
                  headers:
                    request: {set: {a: a}, add: {b: b}, remove: [c]}
                    response: {set: {a: a}, add: {b: b}, remove: [c]}
                - destination: {host: web, subset: v2}
                  weight: 10
              rewrite: {uri: /b, authority: b}
              timeout: 10s
              mirror: {host: web, subset: v1, port: {number: 80}}
              mirrorPercentage: {value: 10}
              fault:
                delay: {fixedDelay: 1s, percentage: {value: 10}}
                abort: {httpStatus: 500, percentage: {value: 10}}
              headers:
                request: {set: {a: a}, add: {b: b}, remove: [c]}
                response: {set: {a: a}, add: {b: b}, remove: [c]}
            - redirect: {uri: /b, authority: b, scheme: http, port: 80, redirectCode: 302}
            - redirect: {prefixRewrite: /b}
            - directResponse: {status: 200, body: {string: fine}}
            - match:
                - uri: {exact: /a}
                  method: {prefix: a}
                  authority: {prefix: a}
                  headers: {x-a: {prefix: a}}
                  withoutHeaders: {x-b: {prefix: a}}
                  queryParams: {q: {prefix: a}}
                - uri: {regex: /a}
                  method: {regex: a}
                  authority: {regex: a}
                  headers: {x-a: {regex: a}}
                  withoutHeaders: {x-b: {regex: a}}
                  queryParams: {q: {regex: a}}
              route: [{destination: {host: web}}]
              mirrors: [{destination: {host: web, subset: v1, port: {number: 80}}, percentage: {value: 10}}]
              fault: {delay: {fixedDelay: 1s, percent: 10}}
          tcp:
            - match: [{port: 90}]
              route:
                - {destination: {host: web, subset: v1, port: {number: 90}}, weight: 90}
                - {destination: {host: web, subset: v2}, weight: 10}
        """,
    "DestinationRule": """
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {name: web, namespace: shop}
        spec: {host: web, subsets: [{name: v1, labels: {version: v1}}]}
        """,
    "AuthorizationPolicy": """
        apiVersion: security.istio.io/v1
        kind: AuthorizationPolicy
        metadata: {name: rules, namespace: shop, annotations: {istio.io/dry-run: "false"}}
        spec:
          selector: {matchLabels: {app: web}}
          action: ALLOW
          rules:
            - from:
                - source:
                    principals: [a]
                    notPrincipals: [a]
                    namespaces: [a]
                    notNamespaces: [a]
                    ipBlocks: [10.0.0.1]
                    notIpBlocks: ["fd00::/8"]
                    requestPrincipals: [a]
                    notRequestPrincipals: [a]
                    remoteIpBlocks: [10.0.0.1]
                    notRemoteIpBlocks: [10.0.0.1]
                    trustDomains: [a]
                    notTrustDomains: [a]
              to:
                - operation:
                    ports: ["80"]
                    notPorts: ["81"]
                    hosts: [a]
                    notHosts: [a]
                    methods: [a]
                    notMethods: [a]
                    paths: [a]
                    notPaths: [a]
              when: [{key: source.namespace, values: [a], notValues: [b]}]
        """,
    "AuthorizationPolicy by account": """
        apiVersion: security.istio.io/v1
        kind: AuthorizationPolicy
        metadata: {name: rules, namespace: shop}
        spec: {rules: [{from: [{source: {serviceAccounts: [shop/a], notServiceAccounts: [b]}}]}]}
        """,
    "AuthorizationPolicy of a target": """
        apiVersion: security.istio.io/v1
        kind: AuthorizationPolicy
        metadata: {name: rules, namespace: shop}
        spec: {targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: web}}
        """,
    "AuthorizationPolicy of targets": """
        apiVersion: security.istio.io/v1
        kind: AuthorizationPolicy
        metadata: {name: rules, namespace: shop}
        spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: web}]}
        """,
    "AuthorizationPolicy of a Service": """
        apiVersion: security.istio.io/v1
        kind: AuthorizationPolicy
        metadata: {name: rules, namespace: shop}
        spec: {targetRef: {group: "", kind: Service, name: web}}
        """,
    "AuthorizationPolicy of Services": """
        apiVersion: security.istio.io/v1
        kind: AuthorizationPolicy
        metadata: {name: rules, namespace: shop}
        spec: {targetRefs: [{group: "", kind: Service, name: web}]}
        """,
    "PeerAuthentication": """
        apiVersion: security.istio.io/v1
        kind: PeerAuthentication
        metadata: {name: tls, namespace: shop}
        spec:
          selector: {matchLabels: {app: web}}
          mtls: {mode: STRICT}
          portLevelMtls: {"80": {mode: DISABLE}, "81": {mode: DISABLE}}
        """,
    "RequestAuthentication": """
        apiVersion: security.istio.io/v1
        kind: RequestAuthentication
        metadata: {name: tokens, namespace: shop}
        spec:
          selector: {matchLabels: {app: web}}
          jwtRules:
          - issuer: me
            audiences: [shop]
            jwks: '{"keys": [{"kty": "EC"}]}'
            fromHeaders: [{name: x-token, prefix: "t:"}]
            fromParams: [token]
            forwardOriginalToken: true
        """,
    "RequestAuthentication of a target": """
        apiVersion: security.istio.io/v1
        kind: RequestAuthentication
        metadata: {name: tokens, namespace: shop}
        spec: {targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: web}}
        """,
    "RequestAuthentication of targets": """
        apiVersion: security.istio.io/v1
        kind: RequestAuthentication
        metadata: {name: tokens, namespace: shop}
        spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: web}]}
        """,
    "RequestAuthentication of a Service": """
        apiVersion: security.istio.io/v1
        kind: RequestAuthentication
        metadata: {name: tokens, namespace: shop}
        spec: {targetRef: {group: "", kind: Service, name: web}}
        """,
    "RequestAuthentication of Services": """
        apiVersion: security.istio.io/v1
        kind: RequestAuthentication
        metadata: {name: tokens, namespace: shop}
        spec: {targetRefs: [{group: "", kind: Service, name: web}]}
        """,
}

_NAMED = {"metadata name": "other", "metadata namespace": "other"}
_WAYPOINT = {"labels istio.io/use-waypoint": "gate", "labels istio.io/use-waypoint-namespace": "edge"}
_CONTAINER = {
    "command 0": "other",
    "args 0": "--later",
    "workingDir": "/other",
    "env 0 name": "OTHER",
    "env 0 value": "slow",
    "env 1 valueFrom fieldRef fieldPath": "status.podIP",
    "volumeMounts 0 name": "logs",
    "volumeMounts 0 mountPath": "/other",
}
_POD = {
    "nodeName": "node-2",
    "serviceAccountName": "other",
    "containers 0 image": "curlimages/curl",
    **{f"containers 0 {path}": value for path, value in _CONTAINER.items()},
    **{f"initContainers 0 {path}": value for path, value in _CONTAINER.items()},
    "initContainers 0 securityContext capabilities add 0": "NET_RAW",
    "containers 0 ports 0 containerPort": 90,
    "containers 0 ports 0 name": "other",
    "containers 0 securityContext capabilities add 0": "SYS_TIME",
    "volumes 0 emptyDir": GONE,
}
_SOURCE = (
    *("principals", "notPrincipals", "namespaces", "notNamespaces"),
    *("requestPrincipals", "notRequestPrincipals", "trustDomains", "notTrustDomains"),
)
_ADDRESSES = ("ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks")
_OPERATION = ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")

_OTHER_POLICY = {
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": {"name": "other", "namespace": "a"},
}

_EDITS = {
    **{
        f"{side}HeaderModifier {verb} 0 {key}": "other"
        for side in ("request", "response")
        for verb in ("set", "add")
        for key in ("name", "value")
    },
    **{f"{side}HeaderModifier remove 0": "other" for side in ("request", "response")},
}
_VIRTUAL_EDITS = {
    **{
        f"headers {side} {verb} {name}": "other"
        for side in ("request", "response")
        for verb, name in (("set", "a"), ("add", "b"))
    },
    **{f"headers {side} remove 0": "other" for side in ("request", "response")},
}
_VALUES = ("method", "authority", "headers x-a", "withoutHeaders x-b", "queryParams q")

_VERBS = ("restart", "kill", "stop", "pause", "resume")

CHANGES: dict[str, dict[str, Any]] = {
    "Lab": {
        "spec urls https://keys.example": "other",
        "metadata name": "other",
        "spec nodes 0 name": "other",
        "spec nodes 0 ztunnel": "reference",
        "spec nodes 3": "other",
        "spec pods shop/full": GONE,
        "spec pods shop/full node": "node-2",
        "spec pods shop/full ports 1": 82,
        "spec pods shop/full ports 0 containerPort": 83,
        "spec pods shop/full ports 0 name": "other",
        "spec pods shop/full ports 0 mode": "server-first",
        "spec pods shop/full serviceAccount": "other",
        "spec pods shop/full labels app": "other",
        **{f"spec pods shop/full {path}": value for path, value in _WAYPOINT.items()},
        "spec pods shop/full annotations note": "two",
        "spec pods shop/full annotations ambient.istio.io/bypass-inbound-capture": "true",
        "spec pods shop/full run 0": "other",
        "spec pods shop/full env MODE": "slow",
        "spec pods shop/full workingDir": "/other",
        "spec pods shop/full image": "other",
        "spec pods shop/full capabilities 0": "SYS_TIME",
        "spec pods shop/full emptyDirs 0": "/other",
        "spec pods shop/full workload": "other",
        "spec pods shop/full ips 0": "10.1.2.4",
        "spec pods shop/full init 0 run 0": "other",
        "spec pods shop/full init 0 env MODE": "slow",
        "spec pods shop/full init 0 workingDir": "/other",
        "spec pods shop/full restartPolicy": "OnFailure",
        "spec dataplane ztunnel": "none",
        "spec dataplane waypoint": "envoy",
        "spec images */corp/tool:*": GONE,
        "spec images */corp/tool:* run 0": "other",
        "spec images */corp/tool:* env LEVEL": "high",
        "spec images */corp/tool:* workingDir": "/other",
        "spec mounts 0": "/other",
        "spec readyTimeoutSeconds": 2.5,
    },
    "Lab with rows": {
        "spec expect 0 from": "a/b",
        "spec expect 0 to": "a/c:81",
        "spec expect 0 verdict": "deny",
        "spec expect 0 family": 6,
    },
    "Lab with steps": {
        "spec steps 0 call": {"from": "a/b", "to": "a/c:80"},
        "spec steps 0 call from": "a/b",
        "spec steps 0 call to": "a/c:81",
        "spec steps 0 call family": 6,
        "spec steps 0 call mode": "plain",
        "spec steps 0 call body bytes": 3,
        "spec steps 0 call body seed": 2,
        "spec steps 0 expect": "deny",
        "spec steps 1 apply 0": _OTHER_POLICY,
        "spec steps 2 replace 0": _OTHER_POLICY,
        "spec steps 3 delete 0": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "d", "namespace": "a"}},
        "spec steps 4 connect": {"from": "a/d", "to": "a/c:80", "as": "one"},
        "spec steps 4 connect from": "a/d",
        "spec steps 4 connect to": "a/c:81",
        "spec steps 5 connect as": "three",
        "spec steps 4 connect family": 6,
        "spec steps 4 connect mode": GONE,
        "spec steps 6 ask": "two",
        "spec steps 6 expect": "closed",
        **{f"spec steps {n + 7} {verb}": "agent@node-2" for n, verb in enumerate(_VERBS)},
        "spec steps 12 upgrade ztunnel@node-1": "none",
        "spec steps 13 reboot": "node-2",
        "spec steps 14 traffic": {"pairs": [["a/c", "http://c"]], "during": [{"reboot": "node-1"}]},
        "spec steps 14 traffic pairs 0 1": "http://c:81/",
        "spec steps 14 traffic rate": 20,
        "spec steps 14 traffic open": 0,
        "spec steps 14 traffic during 0": {"restart": "agent@node-2"},
        "spec steps 14 expect failed_new": 1,
        "spec steps 14 expect broken_open": 1,
        "spec steps 14 expect in_plaintext": 1,
    },
    "Namespace": {
        "metadata name": "other",
        "metadata labels istio.io/dataplane-mode": "none",
        **{f"metadata {path}": value for path, value in _WAYPOINT.items()},
    },
    "ServiceAccount": {"metadata namespace": "other"},
    "Pod": {
        **_NAMED,
        "metadata labels app": "other",
        **{f"metadata {path}": value for path, value in _WAYPOINT.items()},
        "metadata annotations note": "two",
        "metadata annotations ambient.istio.io/bypass-inbound-capture": "true",
        **{f"spec {path}": value for path, value in _POD.items()},
        "spec restartPolicy": "Never",
        "status podIPs 1 ip": "fd00::4",
    },
    "Deployment": {
        **_NAMED,
        "spec replicas": 3,
        "spec template metadata labels app": "other",
        **{f"spec template metadata {path}": value for path, value in _WAYPOINT.items()},
        "spec template metadata annotations note": "two",
        "spec template metadata annotations ambient.istio.io/bypass-inbound-capture": "true",
        **{f"spec template spec {path}": value for path, value in _POD.items()},
    },
    "Service": {
        **_NAMED,
        "metadata labels tier": "back",
        **{f"metadata {path}": value for path, value in _WAYPOINT.items()},
        "spec selector app": "other",
        "spec ports 0 port": 81,
        "spec ports 0 targetPort": 8080,
        "spec ports 0 name": "other",
        "spec ports 0 appProtocol": "http",
        "spec clusterIP": "None",
        "spec clusterIPs 1": "fd00::11",
    },
    "Service of one family": {"spec ipFamilies 0": "IPv6", "spec ipFamilyPolicy": "PreferDualStack"},
    "Endpoints": {
        **_NAMED,
        "subsets 0 addresses 0 ip": "10.1.2.4",
        "subsets 0 ports 0 port": 81,
        "subsets 0 ports 0 name": "other",
    },
    "EndpointSlice": {
        **_NAMED,
        "metadata labels kubernetes.io/service-name": "other",
        "endpoints 0 addresses 0": "10.1.2.4",
        "endpoints 0 conditions ready": False,
        "ports 0 port": 81,
        "ports 0 name": "other",
    },
    "Gateway": {
        **_NAMED,
        "metadata labels istio.io/waypoint-for": "all",
        "spec gatewayClassName": "istio",
        "spec listeners 0 allowedRoutes namespaces from": "All",
    },
    "HTTPRoute": {
        **_NAMED,
        "spec parentRefs 0 kind": "Gateway",
        "spec parentRefs 0 name": "other",
        "spec parentRefs 0 namespace": "other",
        "spec parentRefs 0 port": 81,
        "spec rules 0 name": "other",
        "spec rules 2 matches 0 path type": "Exact",
        "spec rules 0 matches 0 path value": "/other",
        "spec rules 0 matches 0 method": "PUT",
        **{f"spec rules 0 matches 0 {key} 0 type": "RegularExpression" for key in ("headers", "queryParams")},
        **{f"spec rules 0 matches 0 {key} 0 name": "other" for key in ("headers", "queryParams")},
        **{f"spec rules 0 matches 0 {key} 0 value": "other" for key in ("headers", "queryParams")},
        **{f"spec rules 0 filters {2 + path.startswith('response')} {path}": "other" for path in _EDITS},
        "spec rules 0 filters 4 urlRewrite hostname": "b.example",
        "spec rules 0 filters 4 urlRewrite path replacePrefixMatch": "/other",
        "spec rules 2 filters 0 urlRewrite path replaceFullPath": "/other",
        "spec rules 1 filters 0 requestRedirect scheme": "https",
        "spec rules 1 filters 0 requestRedirect hostname": "b.example",
        "spec rules 1 filters 0 requestRedirect port": 81,
        "spec rules 1 filters 0 requestRedirect statusCode": 308,
        "spec rules 1 filters 0 requestRedirect path replacePrefixMatch": "/other",
        "spec rules 3 filters 0 requestRedirect path replaceFullPath": "/other",
        "spec rules 0 backendRefs 0 name": "other",
        "spec rules 0 backendRefs 0 port": 81,
        "spec rules 0 backendRefs 0 weight": 3,
        **{f"spec rules 0 backendRefs 0 filters {int(path.startswith('response'))} {path}": "other" for path in _EDITS},
        "spec rules 0 timeouts request": "500ms",
        "spec rules 0 filters 0 requestMirror backendRef name": "other",
        "spec rules 0 filters 0 requestMirror backendRef port": 81,
        "spec rules 0 filters 0 requestMirror percent": 0,
        "spec rules 0 filters 1 requestMirror fraction numerator": 2,
        "spec rules 0 filters 1 requestMirror fraction denominator": 3,
    },
    "TCPRoute": {
        **_NAMED,
        "spec parentRefs 0 kind": "Gateway",
        "spec parentRefs 0 name": "other",
        "spec parentRefs 0 namespace": "other",
        "spec parentRefs 0 port": 81,
        "spec rules 0 backendRefs 0 name": "other",
        "spec rules 0 backendRefs 0 port": 81,
        "spec rules 0 backendRefs 0 weight": 3,
    },
    "VirtualService": {
        **_NAMED,
        "spec hosts 0": "other",
        "spec gateways 0": "other",
        "spec http 0 name": "other",
        "spec http 0 match 0 uri prefix": "/other",
        "spec http 0 match 0 ignoreUriCase": False,
        "spec http 0 match 0 port": 81,
        "spec http 4 match 0 uri exact": "/other",
        "spec http 4 match 1 uri regex": "/other",
        **{f"spec http 0 match 0 {key} exact": "other" for key in _VALUES},
        **{f"spec http 4 match 0 {key} prefix": "other" for key in _VALUES},
        **{f"spec http 4 match 1 {key} regex": "other" for key in _VALUES},
        **{f"spec http 0 match 0 {key}": {} for key in _VALUES[2:]},
        "spec http 0 route 0 destination host": "other",
        "spec http 0 route 0 destination subset": "other",
        "spec http 0 route 0 destination port number": 81,
        "spec http 0 route 0 weight": 80,
        **{f"spec http 0 route 0 {path}": value for path, value in _VIRTUAL_EDITS.items()},
        **{f"spec http 0 {path}": value for path, value in _VIRTUAL_EDITS.items()},
        "spec http 0 rewrite uri": "/other",
        "spec http 0 rewrite authority": "other",
        "spec http 0 timeout": "1m",
        "spec http 0 fault delay fixedDelay": "2s",
        "spec http 0 fault delay percentage value": 0.5,
        "spec http 4 fault delay percent": 50,
        "spec http 0 fault abort httpStatus": 503,
        "spec http 0 fault abort percentage value": 50,
        "spec http 1 redirect uri": "/other",
        "spec http 1 redirect authority": "other",
        "spec http 1 redirect scheme": "https",
        "spec http 1 redirect port": 81,
        "spec http 1 redirect redirectCode": 308,
        "spec http 2 redirect prefixRewrite": "/other",
        "spec http 3 directResponse status": 404,
        "spec http 3 directResponse body string": "other",
        "spec http 0 mirror host": "other",
        "spec http 0 mirror subset": "other",
        "spec http 0 mirror port number": 81,
        "spec http 0 mirrorPercentage value": 0.5,
        "spec http 4 mirrors 0 destination host": "other",
        "spec http 4 mirrors 0 destination subset": "other",
        "spec http 4 mirrors 0 destination port number": 81,
        "spec http 4 mirrors 0 percentage value": 0.5,
        "spec tcp 0 match 0 port": 91,
        "spec tcp 0 route 0 destination host": "other",
        "spec tcp 0 route 0 destination subset": "other",
        "spec tcp 0 route 0 destination port number": 91,
        "spec tcp 0 route 0 weight": 80,
    },
    "DestinationRule": {
        **_NAMED,
        "spec host": "other",
        "spec subsets 0 name": "other",
        "spec subsets 0 labels version": "v2",
    },
    "AuthorizationPolicy": {
        **_NAMED,
        "metadata annotations istio.io/dry-run": "true",
        "spec selector matchLabels app": "other",
        "spec action": "DENY",
        **{f"spec rules 0 from 0 source {name} 0": "other" for name in _SOURCE},
        **{f"spec rules 0 from 0 source {name} 0": "10.9.0.0/16" for name in _ADDRESSES},
        "spec rules 0 to 0 operation ports 0": "90",
        "spec rules 0 to 0 operation notPorts 0": "90",
        **{f"spec rules 0 to 0 operation {name} 0": "other" for name in _OPERATION},
        "spec rules 0 when 0 key": "source.principal",
        "spec rules 0 when 0 values 0": "other",
        "spec rules 0 when 0 notValues 0": "other",
    },
    "AuthorizationPolicy by account": {
        "spec rules 0 from 0 source serviceAccounts 0": "other",
        "spec rules 0 from 0 source notServiceAccounts 0": "shop/b",
    },
    "AuthorizationPolicy of a target": {
        "spec targetRef kind": "GatewayClass",
        "spec targetRef name": "other",
    },
    "AuthorizationPolicy of targets": {
        "spec targetRefs 0 kind": "GatewayClass",
        "spec targetRefs 0 name": "other",
    },
    "AuthorizationPolicy of a Service": {"spec targetRef group": "core"},
    "AuthorizationPolicy of Services": {"spec targetRefs 0 group": "core"},
    "PeerAuthentication": {
        **_NAMED,
        "spec selector matchLabels app": "other",
        "spec mtls mode": "PERMISSIVE",
        "spec portLevelMtls 80": GONE,
        "spec portLevelMtls 80 mode": "STRICT",
    },
    "RequestAuthentication": {
        **_NAMED,
        "spec selector matchLabels app": "other",
        "spec jwtRules 0 issuer": "other",
        "spec jwtRules 0 audiences 0": "other",
        "spec jwtRules 0 jwks": '{"keys": [{"kty": "RSA"}]}',
        "spec jwtRules 0 fromHeaders 0 name": "other",
        "spec jwtRules 0 fromHeaders 0 prefix": "other",
        "spec jwtRules 0 fromParams 0": "other",
        "spec jwtRules 0 forwardOriginalToken": False,
    },
    "RequestAuthentication of a target": {
        "spec targetRef kind": "GatewayClass",
        "spec targetRef name": "other",
    },
    "RequestAuthentication of targets": {
        "spec targetRefs 0 kind": "GatewayClass",
        "spec targetRefs 0 name": "other",
    },
    "RequestAuthentication of a Service": {"spec targetRef group": "core"},
    "RequestAuthentication of Services": {"spec targetRefs 0 group": "core"},
}
"""Base -> steps into it -> another value there."""

ELSEWHERE = {
    "apiVersion": "a kind means the same in each of its versions",
    "kind": "test_topology_load: each kind is read as what it is",
    "spec.steps[].call.times": "test_topology_steps: read, written, and bounded",
    "spec.steps[].push.type": "test_topology_steps: with the name and the body that it needs",
    "spec.steps[].push.name": "test_topology_steps: with the type and the body that it needs",
    "spec.steps[].push.body": "test_topology_steps: with the type and the name that it needs",
    "spec.steps[].call.kind": "test_bugfile_steps: with the modes and the methods that go with it",
    "spec.steps[].call.method": "test_bugfile_steps: with the kind that it goes with",
    "spec.profile": "test_waypoint_profile: what each profile lets through",
    "spec.steps[].call.path": "test_bugfile_steps: with the kind that it goes with",
    "spec.steps[].call.headers.*": "test_bugfile_steps: with the kind that it goes with",
    "spec.jwtRules[].jwksUri": "test_topology_tokens: it goes with spec.urls",
    "spec.waypoints.*": "test_waypoint_paths: they go with a Gateway",
    "spec.waypoints.*.node": "test_waypoint_paths: they go with a Gateway",
    "spec.waypoints.*.ips[]": "test_waypoint_paths: they go with a Gateway",
    "addressType": "test_topology_endpoints: every address is of it",
    "status.podIP": "test_topology_changes: it goes with status.podIPs",
    "spec.initContainers[].image": "test_topology_load: with and without an entry of spec.images",
    "spec.template.spec.initContainers[].image": "as of a Pod",
    "spec.serviceAccount": "test_topology_load: the older name of serviceAccountName",
    "spec.template.spec.serviceAccount": "as of a Pod",
    "spec.listeners[].port": "test_topology_routes: a waypoint has 15008, another Gateway any",
    "spec.listeners[].protocol": "test_topology_routes: a waypoint has HBONE, another Gateway any",
    "spec.parentRefs[].group": "test_topology_routes: it is '' for a Service",
    "spec.rules[].filters[].type": "it goes with the filter's own key, which is here",
    "spec.rules[].filters[].urlRewrite.path.type": "it goes with the path, which is here",
    "spec.rules[].filters[].requestRedirect.path.type": "it goes with the path, which is here",
    "spec.rules[].filters[].requestMirror.backendRef.namespace": "test_topology_routes: only the route's own",
    "spec.rules[].backendRefs[].namespace": "test_topology_routes: only the route's own",
    "spec.rules[].backendRefs[].filters[].type": "it goes with the filter's own key, which is here",
    "spec.volumes[].name": "it goes with the mount's name, which is here",
    "spec.template.spec.volumes[].name": "it goes with the mount's name, which is here",
}
"""Honoured keys that cannot change alone, and where they are tested."""


def _base(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(BASES[name])


def _changed(document: Any, path: str, value: object) -> Any:
    document = copy.deepcopy(document)
    *way, last = path.split()
    node = document
    for step in way:
        node = node[int(step) if isinstance(node, list) else step]
    if value is GONE:
        del node[last]
    elif isinstance(node, list):
        node[int(last)] = value
    else:
        node[last] = value
    return document


def _load(document: Any) -> Topology:
    return load(json.dumps(document), "keys.yaml")


def _honoured(kind: str) -> set[str]:
    """Paths of ``kind`` that end in a value, or in a mapping whose very presence means something."""
    keys = KINDS[kind].keys
    return {
        path
        for path, key in keys.items()
        if key.use is Use.HONOURED and (key.shape is not None or key.names or key.whole)
    }


def _row(kind: str, path: str) -> str:
    """The row of the table that ``path`` falls under."""
    for row in sorted(KINDS[kind].keys, key=lambda row: row.count("*")):
        steps, row_parts = path.split(), list(parts(row))
        if len(row_parts) == len(steps) and all(map(_is_under, row_parts, steps)):
            return row
    raise AssertionError(f"'{path}' is under no row of {kind}")


def _is_under(part: str, step: str) -> bool:
    return part in ("*", step) or (part == "[]" and step.isdigit())


@pytest.mark.parametrize("kind", KINDS)
def test_every_honoured_key_has_a_test(kind: str) -> None:
    tested = {_row(kind, path) for base in CHANGES if base.split()[0] == kind for path in CHANGES[base]}
    assert _honoured(kind) - tested - ELSEWHERE.keys() == set()


@pytest.mark.parametrize(("base", "path"), [(base, path) for base in CHANGES for path in CHANGES[base]])
def test_an_honoured_key_changes_the_model(base: str, path: str) -> None:
    document = _base(base)
    assert _load(_changed(document, path, CHANGES[base][path])) != _load(document)


def _walk(kind: str, use: Use) -> list[str]:
    return [path for path, key in KINDS[kind].keys.items() if key.use is use]


def _with(base: str, path: str, value: object) -> Any:
    """``base`` with ``value`` at a row of the table, the way there made where it is missing."""
    document = _base(base)
    node: Any = document
    way = list(parts(path))
    for part, following in zip(way, [*way[1:], None], strict=True):
        if part == "[]":
            node = node[0]
            continue
        empty: Any = value if following is None else [{}] if following == "[]" else {}
        name = part if part != "*" else "example.com/other" if following is None else next(iter(node))
        if following is None or not isinstance(node.get(name), dict | list):
            node[name] = empty
        node = node[name]
    return document


INERT = [(kind, path) for kind in KINDS for path in _walk(kind, Use.INERT)]
REFUSED = [(kind, path) for kind in KINDS for path in _walk(kind, Use.REFUSED)]


@pytest.mark.parametrize(("kind", "path"), INERT)
def test_an_inert_key_changes_nothing_and_is_listed(kind: str, path: str) -> None:
    value = "kept" if path == "metadata.name" else {"any": ["thing"]}
    reading = read(json.dumps(_with(kind, path, value)), "keys.yaml")
    assert reading.topology == _load(_base(kind))
    last = list(parts(path))[-1]
    name = "example.com/other" if last == "*" else last
    assert [issue for issue in reading.inert if f"{name} is not read: {KINDS[kind].keys[path].why}" in issue.message]


@pytest.mark.parametrize(("kind", "path"), REFUSED)
def test_a_refused_key_says_why(kind: str, path: str) -> None:
    with pytest.raises(TopologyError) as refused:
        _load(_with(kind, path, {"any": ["thing"]}))
    assert f"is refused: {KINDS[kind].keys[path].why}" in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [(kind, path, value) for kind, path in REFUSED for value in KINDS[kind].keys[path].unless],
)
def test_a_refused_key_may_say_what_is_so_anyway(kind: str, path: str, value: object) -> None:
    assert _load(_with(kind, path, value)) == _load(_base(kind))


def test_the_page_of_keys_has_a_row_for_every_key() -> None:
    page = render_keys_page()
    for kind in KINDS.values():
        section = page.partition(f"\n## {kind.name}\n")[2].partition("\n## ")[0]
        assert [path for path in kind.keys if f"| `{path}` |" not in section] == []
