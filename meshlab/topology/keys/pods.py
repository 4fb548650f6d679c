"""Keys of Pods, and of Deployments, whose template is one."""

from __future__ import annotations

from meshlab.topology import shapes
from meshlab.topology.keys.common import BOOKKEPT, NO_ANNOTATIONS, NO_LABELS, POD_MARKS, RESTARTS, object_keys
from meshlab.topology.keys.key import each, honoured, inert, refused, under

_NOT_RUN = inert("the lab does not probe a program, and runs nothing before its end")
_NO_LIMITS = inert("the lab sets no limits")
_NO_SCHEDULER = refused("the lab has no scheduler: say nodeName, or leave the pod to be spread")
_USER = inert("programs run as the user who runs the lab, confined by its namespaces")
_FILES = inert("the lab has no such volume: the path stays as the host has it")

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
    **under(
        "env[].valueFrom.",
        each(
            "configMapKeyRef resourceFieldRef secretKeyRef fileKeyRef",
            refused("the lab has no such source: give a value"),
        ),
    ),
    "envFrom": refused("the lab has no ConfigMaps or Secrets: give the values in env"),
    "ports[].containerPort": honoured(shapes.PORT, required=True),
    "ports[].name": honoured(shapes.PORT_NAME),
    "ports[].protocol": refused("only TCP is captured and proven", unless=("TCP",)),
    **under("ports[].", each("hostPort hostIP", refused("nothing of the host is taken: call the pod's own port"))),
    "volumeMounts[].name": honoured(shapes.LABEL, required=True),
    "volumeMounts[].mountPath": honoured(shapes.PATH, required=True),
    **under(
        "volumeMounts[].",
        each("readOnly recursiveReadOnly subPath subPathExpr mountPropagation", inert("an emptyDir is mounted whole")),
    ),
    "securityContext.capabilities.add[]": honoured(shapes.CAPABILITY),
    "securityContext.capabilities.drop": inert("pods have NET_BIND_SERVICE, NET_RAW and what is added, no more"),
    "securityContext.privileged": refused(
        "a privileged pod could undo its own redirection: add the capabilities that it needs", unless=(False,)
    ),
    **under(
        "securityContext.",
        each(
            "allowPrivilegeEscalation appArmorProfile procMount readOnlyRootFilesystem runAsGroup runAsNonRoot "
            "runAsUser seLinuxOptions seccompProfile windowsOptions",
            _USER,
        ),
    ),
    **each("livenessProbe readinessProbe startupProbe lifecycle", _NOT_RUN),
    **each("restartPolicy restartPolicyRules", refused("a pod of the lab has one program, and one restartPolicy")),
    **each("resources resizePolicy", _NO_LIMITS),
    **each("imagePullPolicy", inert("the lab pulls nothing")),
    **each("stdin stdinOnce tty terminationMessagePath terminationMessagePolicy", inert("output goes to the recorder")),
    "volumeDevices": _FILES,
}

_INIT_CONTAINER = {
    **{path: key for path, key in _CONTAINER.items() if not path.startswith("ports")},
    "image": honoured(shapes.IMAGE, why="looked up in the Lab's spec.images; a command is run without an entry, too"),
    "ports": inert("nobody calls an init container"),
    **each("restartPolicy restartPolicyRules", refused("the lab runs no sidecar containers")),
}

_POD_SPEC = {
    "nodeName": honoured(shapes.LABEL, why="where the fewest of its kind are, if it is not given"),
    "serviceAccountName": honoured(shapes.ACCOUNT_NAME),
    "serviceAccount": honoured(shapes.ACCOUNT_NAME, why="the older name of serviceAccountName"),
    "containers": honoured(None, required=True),
    **under("containers[].", _CONTAINER),
    "volumes[].name": honoured(shapes.LABEL, required=True),
    "volumes[].emptyDir": honoured(None),
    "volumes[].emptyDir.medium": inert("every emptyDir is a tmpfs"),
    "volumes[].emptyDir.sizeLimit": _NO_LIMITS,
    **under(
        "volumes[].", each("configMap secret projected downwardAPI persistentVolumeClaim ephemeral csi image", _FILES)
    ),
    "volumes[].hostPath": refused(
        "the host's files are read-only in every pod; list the folder in the Lab's spec.mounts"
    ),
    **under("initContainers[].", _INIT_CONTAINER),
    "restartPolicy": honoured(shapes.RESTART_POLICY, why=RESTARTS),
    "ephemeralContainers": refused("the lab runs one program in a pod"),
    "hostNetwork": refused("a pod in its node's network is never captured", unless=(False,)),
    "hostAliases": refused("names are the lab's own"),
    "dnsConfig": refused("names are the lab's own"),
    "dnsPolicy": refused("names are the lab's own", unless=("ClusterFirst", "Default", "ClusterFirstWithHostNet")),
    "subdomain": refused("the lab has no names of single pods under a Service"),
    "securityContext.sysctls": refused("they would change the network that is proven"),
    **under(
        "securityContext.",
        each(
            "appArmorProfile fsGroup fsGroupChangePolicy runAsGroup runAsNonRoot runAsUser seLinuxChangePolicy "
            "seLinuxOptions seccompProfile supplementalGroups supplementalGroupsPolicy windowsOptions",
            _USER,
        ),
    ),
    **each("nodeSelector affinity schedulingGates", _NO_SCHEDULER),
    **each(
        "tolerations topologySpreadConstraints priority priorityClassName preemptionPolicy schedulerName "
        "runtimeClassName",
        inert("the lab has no scheduler"),
    ),
    **each("hostPID hostIPC hostUsers shareProcessNamespace", inert("all pods of a lab share one pid namespace")),
    **each("hostname hostnameOverride setHostnameAsFQDN", inert("a pod's host name is its own name")),
    **each("activeDeadlineSeconds terminationGracePeriodSeconds readinessGates", _NOT_RUN),
    **each("automountServiceAccountToken imagePullSecrets enableServiceLinks os", inert("there is no API server")),
    **each("overhead resources resourceClaims", _NO_LIMITS),
}

POD = {
    **{path: key for path, key in object_keys(shapes.SUBDOMAIN).items() if path != "status"},
    "status.podIP": honoured(shapes.POD_IP, why="the first of status.podIPs"),
    "status.podIPs[].ip": honoured(
        shapes.POD_IP, why="one of a family at most; by the pod's place where a family is left out"
    ),
    "status.*": inert("what a cluster reports"),
    **under("metadata.", POD_MARKS),
    "spec": honoured(None, required=True),
    **under("spec.", _POD_SPEC),
}

DEPLOYMENT = {
    **object_keys(shapes.SUBDOMAIN),
    **NO_LABELS,
    **NO_ANNOTATIONS,
    "spec": honoured(None, required=True),
    "spec.replicas": honoured(shapes.REPLICAS, why="1 where it is not given; the pods are NAME-0, NAME-1, ..."),
    "spec.selector": inert("the pods are those of the template"),
    "spec.template": honoured(None, required=True),
    **under("spec.template.", BOOKKEPT),
    **under("spec.template.metadata.", POD_MARKS),
    **under("spec.template.metadata.", each("name namespace", inert("the pods are named after the Deployment"))),
    "spec.template.spec": honoured(None, required=True),
    **under("spec.template.spec.", _POD_SPEC),
    "spec.template.spec.restartPolicy": refused("Kubernetes takes nothing else here", unless=("Always",)),
    **under(
        "spec.",
        each(
            "minReadySeconds paused progressDeadlineSeconds revisionHistoryLimit strategy",
            inert("nothing is rolled out"),
        ),
    ),
}
