"""Keys that several kinds have."""

from __future__ import annotations

from meshlab.model.workload import BYPASS_INBOUND
from meshlab.topology import shapes
from meshlab.topology.keys.key import Key, each, honoured, inert, refused, under
from meshlab.topology.shapes import Shape

_BOOKKEEPING = inert("the API server's bookkeeping")

BOOKKEPT = under(
    "metadata.",
    each(
        "creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers generateName generation "
        "managedFields ownerReferences resourceVersion selfLink uid",
        _BOOKKEEPING,
    ),
)
RESTARTS = (
    "Always where it is not given; it decides whether the pod's program is started again when it has ended, and an "
    "init container when it has failed; a program that fails is a finding of the audit even so, and one that ends with "
    "status 0 is none"
)
WAYPOINT = {"labels.istio.io/use-waypoint": refused("the lab has no waypoints", unless=("none",))}

LABELS = {
    "metadata.labels.*": honoured(shapes.LABEL_VALUE, names=shapes.LABEL_KEY),
    **under("metadata.", WAYPOINT),
}
_SIDECAR = refused("the lab has no sidecars", unless=("false",))
POD_MARKS = {
    "labels.*": honoured(shapes.LABEL_VALUE, names=shapes.LABEL_KEY),
    "labels.sidecar.istio.io/inject": _SIDECAR,
    **WAYPOINT,
    "annotations.*": honoured(shapes.ANY_TEXT, names=shapes.LABEL_KEY),
    "annotations.sidecar.istio.io/inject": _SIDECAR,
    f"annotations.{BYPASS_INBOUND}": honoured(
        shapes.ANY_TEXT, why="true: plaintext goes past its node proxy; what is no boolean of Go's is as if not given"
    ),
    "annotations.ambient.istio.io/dns-capture": refused(
        "the lab has no cluster DNS to capture", unless=shapes.FALSE_WORDS
    ),
    "annotations.istio.io/reroute-virtual-interfaces": refused("the lab writes the rules of a pod whole"),
}
"""Labels and annotations of a pod; the exact ones would change how it is captured."""
NO_LABELS = {"metadata.labels": inert("nothing selects this kind by its labels")}
NO_ANNOTATIONS = {"metadata.annotations": inert("no annotation of this kind has a part in what the lab does")}


def object_keys(name: Shape, *, namespaced: bool = True) -> dict[str, Key]:
    namespace = {"metadata.namespace": honoured(shapes.LABEL, why="`default` where it is not given")}
    return {
        "apiVersion": honoured(),
        "kind": honoured(),
        "metadata": honoured(None, required=True),
        "metadata.name": honoured(name, required=True),
        **(namespace if namespaced else {}),
        **BOOKKEPT,
        "status": inert("what a cluster reports"),
    }
