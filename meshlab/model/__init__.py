"""Frozen dataclasses in Istio's and Kubernetes' own words. No logic beyond what the words mean."""

from meshlab.model.call import Call, Outcome, Peer
from meshlab.model.connection import Connection, Decision
from meshlab.model.identity import SpiffeId
from meshlab.model.instance import InstanceId, Role
from meshlab.model.mesh import DATAPLANE_MODE, Mesh, has_labels
from meshlab.model.policy import (
    Action,
    AuthorizationPolicy,
    Condition,
    MtlsMode,
    Operation,
    PeerAuthentication,
    Rule,
    Source,
)
from meshlab.model.topology import CallShape, CallStep, Expectation, Node, PolicyStep, Step, Topology, Verdict
from meshlab.model.workload import (
    FAMILIES,
    Address,
    ContainerPort,
    EndpointPort,
    Endpoints,
    Family,
    Labels,
    Namespace,
    Pod,
    Program,
    RestartPolicy,
    Service,
    ServicePort,
)

__all__ = [
    "DATAPLANE_MODE",
    "FAMILIES",
    "Action",
    "Address",
    "AuthorizationPolicy",
    "Call",
    "CallShape",
    "CallStep",
    "Condition",
    "Connection",
    "ContainerPort",
    "Decision",
    "EndpointPort",
    "Endpoints",
    "Expectation",
    "Family",
    "InstanceId",
    "Labels",
    "Mesh",
    "MtlsMode",
    "Namespace",
    "Node",
    "Operation",
    "Outcome",
    "Peer",
    "PeerAuthentication",
    "Pod",
    "PolicyStep",
    "Program",
    "RestartPolicy",
    "Role",
    "Rule",
    "Service",
    "ServicePort",
    "Source",
    "SpiffeId",
    "Step",
    "Topology",
    "Verdict",
    "has_labels",
]
