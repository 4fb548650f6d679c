"""Every key of every kind that a topology may hold, and what becomes of it: one table for reader and documentation.

* honoured: it changes the model (each has a test in which it does);
* inert: it has no part in traffic, so it is read over, and listed by ``meshlab validate -v``;
* refused: it would change what is proven and is not supported; why is said here.

A path is written as in ``kubectl explain``, with ``[]`` for the entries of a list and ``*`` for keys that the user
names. What stands below an inert or refused key is not looked at. A key that is not here is unknown, and an error.

Sources: https://kubernetes.io/docs/reference/kubernetes-api/ and https://istio.io/latest/docs/reference/config/security/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

from meshlab.topology import shapes
from meshlab.topology.shapes import Shape


class Use(StrEnum):
    HONOURED = "honoured"
    INERT = "inert"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    use: Use
    shape: Shape | None = None
    """What a scalar must look like; ``None`` where only a mapping or a list may stand."""
    names: Shape | None = None
    """Of a ``*``: what its keys must look like."""
    required: bool = False
    why: str = ""
    whole: bool = False
    """A manifest stands here, which is judged by the table of its own kind."""
    unless: tuple[object, ...] = ()
    """Values with which a refused key changes nothing, and so may stand."""


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    api_versions: tuple[str, ...]
    keys: Mapping[str, Key]


@dataclass(slots=True)
class Branch:
    """The table as a tree: ``children`` by the next part of the path."""

    key: Key | None = None
    children: dict[str, Branch] = field(default_factory=dict)


def honoured(
    shape: Shape | None = shapes.TEXT, *, required: bool = False, names: Shape | None = None, why: str = ""
) -> Key:
    return Key(use=Use.HONOURED, shape=shape, required=required, names=names, why=why)


def manifest(why: str) -> Key:
    return Key(use=Use.HONOURED, whole=True, why=why)


def inert(why: str) -> Key:
    return Key(use=Use.INERT, why=why)


def refused(why: str, *, unless: tuple[object, ...] = ()) -> Key:
    return Key(use=Use.REFUSED, why=why, unless=unless)


def _all(names: str, key: Key) -> dict[str, Key]:
    return dict.fromkeys(names.split(), key)


def _under(prefix: str, keys: Mapping[str, Key]) -> dict[str, Key]:
    return {f"{prefix}{path}": key for path, key in keys.items()}


_NOT_RUN = inert("the lab starts a pod once and does not probe or restart it")
_NO_LIMITS = inert("the lab sets no limits")
_NO_SCHEDULER = refused("the lab has no scheduler: say nodeName, or leave the pod to be spread")
_USER = inert("programs run as the user who runs the lab, confined by its namespaces")
_FILES = inert("the lab has no such volume: the path stays as the host has it")
_BOOKKEEPING = inert("the API server's bookkeeping")

_BOOKKEPT = _under(
    "metadata.",
    _all(
        "creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers generateName generation "
        "managedFields ownerReferences resourceVersion selfLink uid",
        _BOOKKEEPING,
    ),
)
_WAYPOINT = {"labels.istio.io/use-waypoint": refused("the lab has no waypoints", unless=("none",))}
_BALANCING = "networking.istio.io/traffic-distribution"
_LABELS = {
    "metadata.labels.*": honoured(shapes.LABEL_VALUE, names=shapes.LABEL_KEY),
    **_under("metadata.", _WAYPOINT),
}
_SIDECAR = refused("the lab has no sidecars", unless=("false",))
_POD_MARKS = {
    "labels.*": honoured(shapes.LABEL_VALUE, names=shapes.LABEL_KEY),
    "labels.sidecar.istio.io/inject": _SIDECAR,
    **_WAYPOINT,
    "annotations.*": honoured(shapes.ANY_TEXT, names=shapes.LABEL_KEY),
    "annotations.sidecar.istio.io/inject": _SIDECAR,
    "annotations.ambient.istio.io/bypass-inbound-capture": refused(
        "the lab writes the rules of a pod whole", unless=("false",)
    ),
    "annotations.istio.io/reroute-virtual-interfaces": refused("the lab writes the rules of a pod whole"),
}
"""Labels and annotations of a pod; the exact ones would change how it is captured."""
_NO_LABELS = {"metadata.labels": inert("nothing selects this kind by its labels")}
_NO_ANNOTATIONS = {"metadata.annotations": inert("no annotation of this kind has a part in what the lab does")}


def _object(name: Shape, *, namespaced: bool = True) -> dict[str, Key]:
    namespace = {"metadata.namespace": honoured(shapes.LABEL, why="`default` where it is not given")}
    return {
        "apiVersion": honoured(),
        "kind": honoured(),
        "metadata": honoured(None, required=True),
        "metadata.name": honoured(name, required=True),
        **(namespace if namespaced else {}),
        **_BOOKKEPT,
        "status": inert("what a cluster reports"),
    }


_SELECTOR = {
    "spec.selector": honoured(None),
    "spec.selector.matchLabels.*": honoured(shapes.LABEL_VALUE, names=shapes.LABEL_KEY),
}

_LAB = {
    **_object(shapes.SUBDOMAIN, namespaced=False),
    **_NO_LABELS,
    **_NO_ANNOTATIONS,
    "spec.nodes[]": honoured(shapes.LABEL, why="node-1 and node-2 where there are none"),
    "spec.nodes[].name": honoured(shapes.LABEL, required=True),
    "spec.nodes[].ztunnel": honoured(why="a node proxy of this node's own, which no option overrides"),
    "spec.pods.*": honoured(None, names=shapes.POD),
    "spec.pods.*.node": honoured(shapes.LABEL, why="where the fewest of its kind are, if it is not given"),
    "spec.pods.*.ports[]": honoured(shapes.PORT),
    "spec.pods.*.ports[].containerPort": honoured(shapes.PORT, required=True),
    "spec.pods.*.ports[].name": honoured(shapes.PORT_NAME),
    "spec.pods.*.ports[].mode": honoured(shapes.ECHO_MODE, why="`server-first`: the echo greets before it reads"),
    "spec.pods.*.serviceAccount": honoured(shapes.SUBDOMAIN),
    **_under("spec.pods.*.", _POD_MARKS),
    "spec.pods.*.run[]": honoured(shapes.ANY_TEXT, why="the built-in echo where there is none"),
    "spec.pods.*.env.*": honoured(shapes.ANY_TEXT, names=shapes.TEXT),
    "spec.pods.*.workingDir": honoured(shapes.PATH),
    "spec.pods.*.image": honoured(shapes.IMAGE, why="looked up in spec.images, unless there is a `run`"),
    "spec.pods.*.capabilities[]": honoured(shapes.CAPABILITY),
    "spec.pods.*.emptyDirs[]": honoured(shapes.PATH),
    "spec.pods.*.workload": honoured(shapes.SUBDOMAIN, why="the Deployment that the pod stands for"),
    "spec.dataplane.ztunnel": honoured(why="reference, none, an entry point's name or [NAME=]PATH"),
    "spec.images.*": honoured(None, names=shapes.TEXT, why="an image's pattern; `{}` is the built-in echo"),
    "spec.images.*.run[]": honoured(shapes.ANY_TEXT),
    "spec.images.*.env.*": honoured(shapes.ANY_TEXT, names=shapes.TEXT),
    "spec.images.*.workingDir": honoured(shapes.PATH),
    "spec.expect[].from": honoured(shapes.POD, required=True),
    "spec.expect[].to": honoured(required=True, why="NAMESPACE/POD:PORT or SERVICE.NAMESPACE:PORT"),
    "spec.expect[].verdict": honoured(shapes.one_of("allow", "deny"), required=True),
    "spec.expect[].family": honoured(shapes.FAMILY, why="both where it is not given"),
    "spec.steps[].call": honoured(None, why="what `meshlab replay` does, in order"),
    "spec.steps[].call.from": honoured(shapes.POD, required=True),
    "spec.steps[].call.to": honoured(required=True, why="NAMESPACE/POD:PORT or SERVICE.NAMESPACE:PORT"),
    "spec.steps[].call.family": honoured(shapes.FAMILY, why="both where it is not given"),
    "spec.steps[].call.kind": honoured(shapes.one_of("http", "tcp"), why="http where it is not given"),
    "spec.steps[].call.mode": honoured(
        shapes.one_of("plain", "echo-body", "half-close"), why="plain where it is not given; half-close with kind: tcp"
    ),
    "spec.steps[].call.method": honoured(shapes.METHOD, why="of HTTP; GET where it is not given"),
    "spec.steps[].call.body.bytes": honoured(shapes.BODY_BYTES, required=True),
    "spec.steps[].call.body.seed": honoured(shapes.REPLICAS, why="SHAKE-256 of its digits gives the body"),
    "spec.steps[].expect": honoured(shapes.one_of("allow", "deny"), why="of a call"),
    "spec.steps[].apply[]": manifest("policies that are added or changed"),
    "spec.steps[].replace[]": manifest("exactly these policies are in effect then; `[]` takes all away"),
    "spec.mounts[]": honoured(shapes.PATH, why="folders that pods can read although they lie under /tmp"),
    "spec.readyTimeoutSeconds": honoured(shapes.SECONDS, why="10 where it is not given"),
}

_CONTAINER = {
    "name": inert("a pod of the lab has one container"),
    "image": honoured(shapes.IMAGE, why="looked up in the Lab's spec.images"),
    "command[]": honoured(shapes.ANY_TEXT),
    "args[]": honoured(shapes.ANY_TEXT),
    "workingDir": honoured(shapes.PATH),
    "env[].name": honoured(shapes.TEXT, required=True),
    "env[].value": honoured(shapes.ANY_TEXT),
    "env[].valueFrom.fieldRef.fieldPath": honoured(
        shapes.one_of(
            "metadata.name",
            "metadata.namespace",
            "metadata.uid",
            "spec.nodeName",
            "spec.serviceAccountName",
            "status.podIP",
            "status.podIPs",
        )
    ),
    "env[].valueFrom.fieldRef.apiVersion": inert("there is one version of it"),
    **_under(
        "env[].valueFrom.",
        _all(
            "configMapKeyRef resourceFieldRef secretKeyRef fileKeyRef",
            refused("the lab has no such source: give a value"),
        ),
    ),
    "envFrom": refused("the lab has no ConfigMaps or Secrets: give the values in env"),
    "ports[].containerPort": honoured(shapes.PORT, required=True),
    "ports[].name": honoured(shapes.PORT_NAME),
    "ports[].protocol": refused("only TCP is captured and proven", unless=("TCP",)),
    **_under("ports[].", _all("hostPort hostIP", refused("nothing of the host is taken: call the pod's own port"))),
    "volumeMounts[].name": honoured(shapes.LABEL, required=True),
    "volumeMounts[].mountPath": honoured(shapes.PATH, required=True),
    **_under(
        "volumeMounts[].",
        _all("readOnly recursiveReadOnly subPath subPathExpr mountPropagation", inert("an emptyDir is mounted whole")),
    ),
    "securityContext.capabilities.add[]": honoured(shapes.CAPABILITY),
    "securityContext.capabilities.drop": inert("pods have NET_BIND_SERVICE, NET_RAW and what is added, no more"),
    "securityContext.privileged": refused(
        "a privileged pod could undo its own redirection: add the capabilities that it needs", unless=(False,)
    ),
    **_under(
        "securityContext.",
        _all(
            "allowPrivilegeEscalation appArmorProfile procMount readOnlyRootFilesystem runAsGroup runAsNonRoot "
            "runAsUser seLinuxOptions seccompProfile windowsOptions",
            _USER,
        ),
    ),
    **_all("livenessProbe readinessProbe startupProbe lifecycle restartPolicy restartPolicyRules", _NOT_RUN),
    **_all("resources resizePolicy", _NO_LIMITS),
    **_all("imagePullPolicy", inert("the lab pulls nothing")),
    **_all("stdin stdinOnce tty terminationMessagePath terminationMessagePolicy", inert("output goes to the recorder")),
    "volumeDevices": _FILES,
}

_POD_SPEC = {
    "nodeName": honoured(shapes.LABEL, why="where the fewest of its kind are, if it is not given"),
    "serviceAccountName": honoured(shapes.ACCOUNT_NAME),
    "serviceAccount": honoured(shapes.ACCOUNT_NAME, why="the older name of serviceAccountName"),
    "containers": honoured(None, required=True),
    **_under("containers[].", _CONTAINER),
    "volumes[].name": honoured(shapes.LABEL, required=True),
    "volumes[].emptyDir": honoured(None),
    "volumes[].emptyDir.medium": inert("every emptyDir is a tmpfs"),
    "volumes[].emptyDir.sizeLimit": _NO_LIMITS,
    **_under(
        "volumes[].", _all("configMap secret projected downwardAPI persistentVolumeClaim ephemeral csi image", _FILES)
    ),
    "volumes[].hostPath": refused(
        "the host's files are read-only in every pod; list the folder in the Lab's spec.mounts"
    ),
    "initContainers": refused("the lab runs one program in a pod"),
    "ephemeralContainers": refused("the lab runs one program in a pod"),
    "hostNetwork": refused("a pod in its node's network is never captured", unless=(False,)),
    "hostAliases": refused("names are the lab's own"),
    "dnsConfig": refused("names are the lab's own"),
    "dnsPolicy": refused("names are the lab's own", unless=("ClusterFirst", "Default", "ClusterFirstWithHostNet")),
    "subdomain": refused("the lab has no names of single pods under a Service"),
    "securityContext.sysctls": refused("they would change the network that is proven"),
    **_under(
        "securityContext.",
        _all(
            "appArmorProfile fsGroup fsGroupChangePolicy runAsGroup runAsNonRoot runAsUser seLinuxChangePolicy "
            "seLinuxOptions seccompProfile supplementalGroups supplementalGroupsPolicy windowsOptions",
            _USER,
        ),
    ),
    **_all("nodeSelector affinity schedulingGates", _NO_SCHEDULER),
    **_all(
        "tolerations topologySpreadConstraints priority priorityClassName preemptionPolicy schedulerName "
        "runtimeClassName",
        inert("the lab has no scheduler"),
    ),
    **_all("hostPID hostIPC hostUsers shareProcessNamespace", inert("all pods of a lab share one pid namespace")),
    **_all("hostname hostnameOverride setHostnameAsFQDN", inert("a pod's host name is its own name")),
    **_all("activeDeadlineSeconds restartPolicy terminationGracePeriodSeconds readinessGates", _NOT_RUN),
    **_all("automountServiceAccountToken imagePullSecrets enableServiceLinks os", inert("there is no API server")),
    **_all("overhead resources resourceClaims", _NO_LIMITS),
}

_POD = {
    **_object(shapes.SUBDOMAIN),
    **_under("metadata.", _POD_MARKS),
    "spec": honoured(None, required=True),
    **_under("spec.", _POD_SPEC),
}

_DEPLOYMENT = {
    **_object(shapes.SUBDOMAIN),
    **_NO_LABELS,
    **_NO_ANNOTATIONS,
    "spec": honoured(None, required=True),
    "spec.replicas": honoured(shapes.REPLICAS, why="1 where it is not given; the pods are NAME-0, NAME-1, ..."),
    "spec.selector": inert("the pods are those of the template"),
    "spec.template": honoured(None, required=True),
    **_under("spec.template.", _BOOKKEPT),
    **_under("spec.template.metadata.", _POD_MARKS),
    **_under("spec.template.metadata.", _all("name namespace", inert("the pods are named after the Deployment"))),
    "spec.template.spec": honoured(None, required=True),
    **_under("spec.template.spec.", _POD_SPEC),
    **_under(
        "spec.",
        _all(
            "minReadySeconds paused progressDeadlineSeconds revisionHistoryLimit strategy",
            inert("nothing is rolled out"),
        ),
    ),
}

_SERVICE = {
    **_object(shapes.LABEL),
    **_LABELS,
    "metadata.annotations.*": inert("of the annotations only those here would change anything"),
    f"metadata.annotations.{_BALANCING}": refused("it would change which endpoint answers"),
    "spec.selector.*": honoured(shapes.LABEL_VALUE, names=shapes.LABEL_KEY),
    "spec.ports[].port": honoured(shapes.PORT, required=True),
    "spec.ports[].targetPort": honoured(shapes.TARGET_PORT, why="the port itself where it is not given"),
    "spec.ports[].name": honoured(shapes.LABEL),
    "spec.ports[].protocol": refused("only TCP is captured and proven", unless=("TCP",)),
    "spec.ports[].appProtocol": inert("a ztunnel sees TCP only"),
    "spec.ports[].nodePort": refused("nothing of the host is taken: call the ClusterIP"),
    "spec.clusterIP": honoured(shapes.CLUSTER_IP, why="None: headless; from its place in the file where not given"),
    "spec.clusterIPs[]": honoured(shapes.CLUSTER_IP),
    "spec.ipFamilies[]": honoured(shapes.one_of("IPv4", "IPv6"), why="both where it is not given"),
    "spec.ipFamilyPolicy": honoured(shapes.one_of("SingleStack", "PreferDualStack", "RequireDualStack")),
    "spec.type": refused("a Service of the lab is reached from its pods only", unless=("ClusterIP",)),
    "spec.externalName": refused("a Service of the lab is reached from its pods only"),
    "spec.externalIPs": refused("nothing of the host is taken: call the ClusterIP"),
    "spec.internalTrafficPolicy": refused("it would change which endpoint answers", unless=("Cluster",)),
    "spec.trafficDistribution": refused("it would change which endpoint answers"),
    **_under(
        "spec.",
        _all(
            "allocateLoadBalancerNodePorts externalTrafficPolicy healthCheckNodePort loadBalancerClass loadBalancerIP "
            "loadBalancerSourceRanges",
            inert("it concerns traffic from outside a cluster"),
        ),
    ),
    **_under("spec.", _all("sessionAffinity sessionAffinityConfig", inert("kube-proxy's; a ztunnel does not know it"))),
    "spec.publishNotReadyAddresses": inert("every pod of a running lab is ready"),
}

_L7 = "HTTP: no ztunnel enforces it, but it changes what a ztunnel is sent"
_UNSENT = "no ztunnel can be sent it, so it counts as HTTP; write principals: [TRUST-DOMAIN/*] to have it enforced"
_SOURCE_STRINGS = "principals notPrincipals namespaces notNamespaces"
_OPERATION_STRINGS = "hosts notHosts methods notMethods"
_RULE = {
    **_all(" ".join(f"from[].source.{name}[]" for name in _SOURCE_STRINGS.split()), honoured(shapes.TEXT)),
    **_under("from[].source.", _all("serviceAccounts[] notServiceAccounts[]", honoured(shapes.ACCOUNT))),
    **_under("from[].source.", _all("ipBlocks[] notIpBlocks[]", honoured(shapes.CIDR))),
    **_under("from[].source.", _all("requestPrincipals[] notRequestPrincipals[]", honoured(shapes.TEXT, why=_L7))),
    **_under("from[].source.", _all("remoteIpBlocks[] notRemoteIpBlocks[]", honoured(shapes.CIDR, why=_L7))),
    **_under("from[].source.", _all("trustDomains[] notTrustDomains[]", honoured(shapes.TRUST_DOMAIN, why=_UNSENT))),
    **_under("to[].operation.", _all("ports[] notPorts[]", honoured(shapes.PORT_TEXT))),
    **_all(" ".join(f"to[].operation.{name}[]" for name in _OPERATION_STRINGS.split()), honoured(shapes.TEXT, why=_L7)),
    **_under("to[].operation.", _all("paths[] notPaths[]", honoured(shapes.PATH_PATTERN, why=_L7))),
    "when[].key": honoured(required=True),
    "when[].values[]": honoured(),
    "when[].notValues[]": honoured(),
}

_TARGET = {
    "group": honoured(shapes.ANY_TEXT),
    "kind": honoured(shapes.one_of("Gateway", "GatewayClass", "Service", "ServiceEntry"), required=True),
    "name": honoured(shapes.SUBDOMAIN, required=True),
    "namespace": refused("a policy is attached within its own namespace only"),
}

_AUTHORIZATION_POLICY = {
    **_object(shapes.SUBDOMAIN),
    **_NO_LABELS,
    "metadata.annotations.*": inert("of the annotations only istio.io/dry-run is read"),
    "metadata.annotations.istio.io/dry-run": honoured(shapes.PARSE_BOOL),
    **_SELECTOR,
    "spec.action": honoured(
        shapes.one_of("ALLOW", "DENY"), why="ALLOW where it is not given; no ztunnel does AUDIT or CUSTOM"
    ),
    **_under("spec.rules[].", _RULE),
    **_under("spec.targetRef.", _TARGET),
    **_under("spec.targetRefs[].", _TARGET),
    "spec.provider": refused("it belongs to the action CUSTOM, which no ztunnel does"),
}

_MODE = honoured(shapes.one_of("UNSET", "DISABLE", "PERMISSIVE", "STRICT"))
_PEER_AUTHENTICATION = {
    **_object(shapes.SUBDOMAIN),
    **_NO_LABELS,
    **_NO_ANNOTATIONS,
    **_SELECTOR,
    "spec.mtls.mode": _MODE,
    "spec.portLevelMtls.*": honoured(None, names=shapes.PORT_KEY),
    "spec.portLevelMtls.*.mode": _MODE,
}

_NAMESPACE = {
    **_object(shapes.LABEL, namespaced=False),
    **_LABELS,
    "metadata.labels.istio-injection": refused("the lab has no sidecars", unless=("disabled",)),
    **_NO_ANNOTATIONS,
    "spec": inert("the API server's bookkeeping"),
}

_SERVICE_ACCOUNT = {
    **_object(shapes.SUBDOMAIN),
    "metadata.name": inert("every account that a pod names exists"),
    **_NO_LABELS,
    **_NO_ANNOTATIONS,
    **_all("automountServiceAccountToken imagePullSecrets secrets", inert("there is no API server")),
}

_MARK = re.compile(r"(.*?\b(?:labels|annotations))\.(.+)")

LAB_API = "meshlab.dev/v1alpha1"
_SECURITY = ("security.istio.io/v1", "security.istio.io/v1beta1")

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("Lab", (LAB_API,), _LAB),
        Kind("Namespace", ("v1",), _NAMESPACE),
        Kind("ServiceAccount", ("v1",), _SERVICE_ACCOUNT),
        Kind("Pod", ("v1",), _POD),
        Kind("Deployment", ("apps/v1",), _DEPLOYMENT),
        Kind("Service", ("v1",), _SERVICE),
        Kind("AuthorizationPolicy", _SECURITY, _AUTHORIZATION_POLICY),
        Kind("PeerAuthentication", _SECURITY, _PEER_AUTHENTICATION),
    )
}
"""In the order of the documentation. ``kind: List`` is its items."""


@cache
def tree(kind: str) -> Branch:
    """The table of ``kind`` as a tree, for walking beside a document."""
    root = Branch()
    for path, key in KINDS[kind].keys.items():
        branch = root
        for part in parts(path):
            branch = branch.children.setdefault(part, Branch())
        branch.key = key
    return root


def parts(path: str) -> Iterator[str]:
    """``a.b[].c`` -> a, b, [], c. The key of a label or an annotation may have dots of its own, and stays whole."""
    marked = _MARK.fullmatch(path)
    for part in (marked[1] if marked else path).split("."):
        name = part.removesuffix("[]")
        yield name
        if name != part:
            yield "[]"
    if marked:
        yield marked[2]


def render_keys_page() -> str:
    """The table as the reference page of the documentation, in Markdown."""
    intro = (
        "# Keys of a topology file\n\n"
        "Made from `meshlab/topology/keys.py`. A key that is not listed is an error. "
        "What stands below an inert or refused key is not looked at.\n"
    )
    return intro + "".join(_section(kind) for kind in KINDS.values())


def _section(kind: Kind) -> str:
    rows = "".join(_row(path, key) for path, key in sorted(kind.keys.items(), key=lambda item: _order(*item)))
    versions = ", ".join(f"`{version}`" for version in kind.api_versions)
    return f"\n## {kind.name}\n\n{versions}\n\n| key | | value, or why |\n|---|---|---|\n{rows}"


def _order(path: str, key: Key) -> tuple[int, str]:
    return list(Use).index(key.use), path


def _row(path: str, key: Key) -> str:
    use = "required" if key.required else key.use.value
    words = key.shape.words if key.shape else ""
    unless = f"; may be {', '.join(map(repr, key.unless))}" if key.unless else ""
    about = "; ".join(part for part in (words, key.why) if part) + unless
    return f"| `{path}` | {use} | {about.replace('|', chr(92) + '|')} |\n"
