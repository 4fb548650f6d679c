"""Keys of Services, and of Endpoints that are written by hand."""

from __future__ import annotations

from meshlab.topology import shapes
from meshlab.topology.keys.common import LABELS, NO_ANNOTATIONS, NO_LABELS, object_keys
from meshlab.topology.keys.key import each, honoured, inert, refused, under
from meshlab.topology.services import SERVICE_NAME

_BALANCING = "networking.istio.io/traffic-distribution"
SERVICE = {
    **object_keys(shapes.LABEL),
    **LABELS,
    "metadata.annotations.*": inert("of the annotations only those here would change anything"),
    f"metadata.annotations.{_BALANCING}": refused("it would change which endpoint answers"),
    "spec.selector.*": honoured(shapes.LABEL_VALUE, names=shapes.LABEL_KEY),
    "spec.ports[].port": honoured(shapes.PORT, required=True),
    "spec.ports[].targetPort": honoured(shapes.TARGET_PORT, why="the port itself where it is not given"),
    "spec.ports[].name": honoured(shapes.LABEL),
    "spec.ports[].protocol": refused("only TCP is captured and proven", unless=("TCP",)),
    "spec.ports[].appProtocol": honoured(
        why="what is spoken there; where it is not given, the first part of the name says it (`http-web`)"
    ),
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
    **under(
        "spec.",
        each(
            "allocateLoadBalancerNodePorts externalTrafficPolicy healthCheckNodePort loadBalancerClass loadBalancerIP "
            "loadBalancerSourceRanges",
            inert("it concerns traffic from outside a cluster"),
        ),
    ),
    **under("spec.", each("sessionAffinity sessionAffinityConfig", inert("kube-proxy's; a ztunnel does not know it"))),
    "spec.publishNotReadyAddresses": inert("every pod of a running lab is ready"),
}

_OF_AN_ENDPOINT = inert("the address says which pod it is")
_ENDPOINT_PORT = {
    "port": honoured(shapes.PORT, required=True),
    "name": honoured(shapes.LABEL, why="that of the Service's port which leads here"),
    "protocol": refused("only TCP is captured and proven", unless=("TCP",)),
    "appProtocol": inert("a ztunnel sees TCP only"),
}
ENDPOINTS = {
    **object_keys(shapes.LABEL),
    **NO_LABELS,
    **NO_ANNOTATIONS,
    "metadata.name": honoured(shapes.LABEL, required=True, why="that of its Service, which has no selector"),
    "subsets[].addresses[].ip": honoured(shapes.POD_IP, required=True, why="one that is no pod's leads nowhere"),
    **under("subsets[].addresses[].", each("hostname nodeName targetRef", _OF_AN_ENDPOINT)),
    "subsets[].notReadyAddresses": inert("who is not ready gets no calls"),
    **under("subsets[].ports[].", _ENDPOINT_PORT),
}

ENDPOINT_SLICE = {
    **object_keys(shapes.SUBDOMAIN),
    **NO_ANNOTATIONS,
    "metadata.labels.*": inert("of the labels only the one of the Service is read"),
    f"metadata.labels.{SERVICE_NAME}": honoured(shapes.LABEL, why="its Service, which has no selector"),
    "addressType": honoured(shapes.one_of("IPv4", "IPv6"), required=True),
    "endpoints[].addresses[]": honoured(shapes.POD_IP, why="one that is no pod's leads nowhere"),
    "endpoints[].conditions.ready": honoured(shapes.BOOLEAN, why="true where it is not given"),
    **under("endpoints[].conditions.", each("serving terminating", inert("only `ready` says who gets calls"))),
    **under("endpoints[].", each("hostname nodeName targetRef zone hints deprecatedTopology", _OF_AN_ENDPOINT)),
    **under("ports[].", _ENDPOINT_PORT),
}
