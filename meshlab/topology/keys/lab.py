"""Keys of the ``kind: Lab``."""

from __future__ import annotations

from meshlab.topology import shapes
from meshlab.topology.keys.common import NO_ANNOTATIONS, NO_LABELS, POD_MARKS, RESTARTS, object_keys
from meshlab.topology.keys.key import each, honoured, manifest, under

LAB = {
    **object_keys(shapes.SUBDOMAIN, namespaced=False),
    **NO_LABELS,
    **NO_ANNOTATIONS,
    "spec.nodes[]": honoured(shapes.LABEL, why="node-1 and node-2 where there are none"),
    "spec.nodes[].name": honoured(shapes.LABEL, required=True),
    "spec.nodes[].ztunnel": honoured(why="a node proxy of this node's own, which no option overrides"),
    "spec.pods.*": honoured(None, names=shapes.POD),
    "spec.pods.*.node": honoured(shapes.LABEL, why="where the fewest of its kind are, if it is not given"),
    "spec.pods.*.ips[]": honoured(
        shapes.POD_IP, why="one of a family at most; by the pod's place in the file where a family is left out"
    ),
    "spec.pods.*.ports[]": honoured(shapes.PORT),
    "spec.pods.*.ports[].containerPort": honoured(shapes.PORT, required=True),
    "spec.pods.*.ports[].name": honoured(shapes.PORT_NAME),
    "spec.pods.*.ports[].mode": honoured(shapes.ECHO_MODE, why="`server-first`: the echo greets before it reads"),
    "spec.pods.*.serviceAccount": honoured(shapes.SUBDOMAIN),
    **under("spec.pods.*.", POD_MARKS),
    "spec.pods.*.run[]": honoured(shapes.ANY_TEXT, why="the built-in echo where there is none"),
    "spec.pods.*.env.*": honoured(shapes.ANY_TEXT, names=shapes.TEXT),
    "spec.pods.*.workingDir": honoured(shapes.PATH),
    "spec.pods.*.image": honoured(shapes.IMAGE, why="looked up in spec.images, unless there is a `run`"),
    "spec.pods.*.init[].run[]": honoured(shapes.ANY_TEXT, why="each ends before the next one, or `run`, starts"),
    "spec.pods.*.init[].env.*": honoured(shapes.ANY_TEXT, names=shapes.TEXT),
    "spec.pods.*.init[].workingDir": honoured(shapes.PATH),
    "spec.pods.*.restartPolicy": honoured(shapes.RESTART_POLICY, why=RESTARTS),
    "spec.pods.*.capabilities[]": honoured(shapes.CAPABILITY),
    "spec.pods.*.emptyDirs[]": honoured(shapes.PATH),
    "spec.pods.*.workload": honoured(shapes.SUBDOMAIN, why="the Deployment that the pod stands for"),
    "spec.dataplane.ztunnel": honoured(why="reference, none, an entry point's name or [NAME=]PATH"),
    "spec.waypoints.*": honoured(None, names=shapes.POD, why="a Gateway of the class istio-waypoint, NAMESPACE/NAME"),
    "spec.waypoints.*.node": honoured(shapes.LABEL, why="of its pod; where the fewest of its kind are, if not given"),
    "spec.waypoints.*.ips[]": honoured(shapes.POD_IP, why="of its pod, as of spec.pods"),
    "spec.profile": honoured(
        shapes.one_of("advisory", "required"),
        why="`advisory` where it is not given, as Istio is; `required`: pods behind a Service that asks for a waypoint"
        " refuse whoever is not that waypoint",
    ),
    "spec.dataplane.waypoint": honoured(
        why="envoy, reference, none, an entry point's name or [NAME=]PATH of an Envoy; envoy where it is installed"
    ),
    "spec.images.*": honoured(None, names=shapes.TEXT, why="an image's pattern; `{}` is the built-in echo"),
    "spec.images.*.run[]": honoured(shapes.ANY_TEXT),
    "spec.images.*.env.*": honoured(shapes.ANY_TEXT, names=shapes.TEXT),
    "spec.images.*.workingDir": honoured(shapes.PATH),
    "spec.expect[].from": honoured(shapes.POD, required=True),
    "spec.expect[].to": honoured(required=True, why="NAMESPACE/POD:PORT or SERVICE.NAMESPACE:PORT"),
    "spec.expect[].verdict": honoured(shapes.one_of("allow", "deny"), required=True),
    "spec.expect[].family": honoured(shapes.FAMILY, why="both where it is not given"),
    "spec.steps[].call": honoured(None, why="what `meshlab check` and `meshlab replay` do, in order"),
    "spec.steps[].call.from": honoured(shapes.POD, required=True),
    "spec.steps[].call.to": honoured(required=True, why="NAMESPACE/POD:PORT or SERVICE.NAMESPACE:PORT"),
    "spec.steps[].call.family": honoured(shapes.FAMILY, why="both where it is not given"),
    "spec.steps[].call.kind": honoured(shapes.one_of("http", "tcp"), why="http where it is not given"),
    "spec.steps[].call.mode": honoured(
        shapes.one_of("plain", "echo-body", "half-close"), why="plain where it is not given; half-close with kind: tcp"
    ),
    "spec.steps[].call.method": honoured(shapes.METHOD, why="of HTTP; GET where it is not given"),
    "spec.steps[].call.path": honoured(shapes.PATH, why="of HTTP; / where it is not given"),
    "spec.steps[].call.headers.*": honoured(shapes.ANY_TEXT, names=shapes.TEXT),
    "spec.steps[].call.body.bytes": honoured(shapes.BODY_BYTES, required=True),
    "spec.steps[].call.body.seed": honoured(shapes.REPLICAS, why="SHAKE-256 of its digits gives the body"),
    "spec.steps[].call.times": honoured(
        shapes.TIMES, why="1 where it is not given; calls over each family, all of which come to what is expected"
    ),
    "spec.steps[].expect": honoured(
        shapes.one_of("allow", "deny", "alive", "closed"), why="allow or deny of a call, alive or closed of an `ask`"
    ),
    "spec.steps[].expect.failed_new": honoured(shapes.REPLICAS, why="of `traffic`: new calls that fail"),
    "spec.steps[].expect.broken_open": honoured(shapes.REPLICAS, why="of `traffic`: open connections that break"),
    "spec.steps[].expect.in_plaintext": honoured(
        shapes.REPLICAS, why="of `traffic`: bytes in plaintext on connections opened after a change was in effect"
    ),
    "spec.steps[].apply[]": manifest("what is added or changed: of any kind but Lab"),
    "spec.steps[].replace[]": manifest(
        "each in place of the one of its name; of policies exactly these are in effect then, and `[]` takes all away"
    ),
    "spec.steps[].delete[]": manifest("what is taken away: only kind, namespace and name are read"),
    "spec.steps[].push": honoured(None, why="a resource of xDS that every node proxy has to refuse"),
    "spec.steps[].push.type": honoured(shapes.one_of(*shapes.XDS_TYPES), required=True),
    "spec.steps[].push.name": honoured(required=True, why="of the resource"),
    "spec.steps[].push.body": honoured(shapes.BASE64, required=True, why="the resource as it is sent"),
    "spec.steps[].connect": honoured(None, why="a connection that stays open"),
    "spec.steps[].connect.from": honoured(shapes.POD, required=True),
    "spec.steps[].connect.to": honoured(required=True, why="NAMESPACE/POD:PORT or SERVICE.NAMESPACE:PORT"),
    "spec.steps[].connect.as": honoured(shapes.LABEL, required=True, why="what `ask` calls it"),
    "spec.steps[].connect.family": honoured(shapes.FAMILY),
    "spec.steps[].connect.mode": honoured(
        shapes.one_of("half-close"), why="the caller closes its side once it is open"
    ),
    "spec.steps[].ask": honoured(shapes.LABEL, why="a connection, which is alive or closed"),
    **under(
        "spec.steps[].",
        each(
            "restart kill stop pause resume",
            honoured(why="ztunnel@NODE, agent@NODE, waypoint@NAMESPACE/NAME, control-plane, NAMESPACE/POD"),
        ),
    ),
    "spec.steps[].upgrade.*": honoured(names=shapes.TEXT, why="ztunnel@NODE: what takes over, as of spec.dataplane"),
    "spec.steps[].reboot": honoured(shapes.LABEL, why="a node"),
    "spec.steps[].traffic": honoured(None, why="calls and open connections while other steps are done"),
    "spec.steps[].traffic.pairs[][]": honoured(why="[NAMESPACE/POD, URL]: who calls, and what"),
    "spec.steps[].traffic.rate": honoured(shapes.RATE, why="50 where it is not given; calls a second in all"),
    "spec.steps[].traffic.open": honoured(shapes.REPLICAS, why="0 where it is not given; connections for each pair"),
    "spec.steps[].traffic.during[]": manifest("a step as of spec.steps, but no `traffic`"),
    "spec.urls.*": honoured(shapes.ANY_TEXT, names=shapes.TEXT, why="what the control plane reads at a jwksUri"),
    "spec.mounts[]": honoured(shapes.PATH, why="folders that pods can read although they lie under /tmp"),
    "spec.readyTimeoutSeconds": honoured(shapes.SECONDS, why="10 where it is not given"),
}
