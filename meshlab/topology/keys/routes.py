"""Keys of HTTPRoute, TCPRoute, VirtualService and DestinationRule."""

from __future__ import annotations

from meshlab.topology import shapes
from meshlab.topology.keys.common import NO_ANNOTATIONS, NO_LABELS, object_keys
from meshlab.topology.keys.key import Key, each, honoured, inert, refused, under

_OBJECT = {**object_keys(shapes.SUBDOMAIN), **NO_LABELS, **NO_ANNOTATIONS}
_NOT_YET = refused("the lab does not support it yet")

# --- HTTPRoute -------------------------------------------------------------------------------------------------------

_HEADER_FILTERS: dict[str, Key] = {}
for _name in ("requestHeaderModifier", "responseHeaderModifier"):
    for _verb in ("set", "add"):
        _HEADER_FILTERS[f"{_name}.{_verb}[].name"] = honoured(shapes.EDITED_HEADER, required=True)
        _HEADER_FILTERS[f"{_name}.{_verb}[].value"] = honoured(shapes.HEADER_VALUE, required=True)
    _HEADER_FILTERS[f"{_name}.remove[]"] = honoured(shapes.EDITED_HEADER)

_PATH_MODIFIER = {
    "path.type": honoured(shapes.one_of("ReplaceFullPath", "ReplacePrefixMatch"), required=True),
    "path.replaceFullPath": honoured(shapes.ANY_TEXT, why="with the type ReplaceFullPath"),
    "path.replacePrefixMatch": honoured(
        shapes.ANY_TEXT, why="with the type ReplacePrefixMatch, and where the match is a PathPrefix"
    ),
}
_OTHER_FILTERS = "cors extensionRef externalAuth"
_FILTER = {
    "type": honoured(
        shapes.one_of(
            "RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror", "RequestRedirect", "URLRewrite"
        ),
        required=True,
        why="its own key has to be there, too",
    ),
    **_HEADER_FILTERS,
    "requestRedirect.scheme": honoured(shapes.one_of("http", "https")),
    "requestRedirect.hostname": honoured(shapes.SUBDOMAIN),
    "requestRedirect.port": honoured(shapes.PORT),
    "requestRedirect.statusCode": honoured(shapes.REDIRECT_STATUS, why="302 where it is not given"),
    **under("requestRedirect.", _PATH_MODIFIER),
    "urlRewrite.hostname": honoured(shapes.SUBDOMAIN),
    **under("urlRewrite.", _PATH_MODIFIER),
    **each(_OTHER_FILTERS, _NOT_YET),
}
_BACKEND: dict[str, Key] = {
    "group": refused("the lab routes to Services only", unless=("", "core")),
    "kind": refused("the lab routes to Services only", unless=("Service",)),
    "name": honoured(shapes.LABEL, required=True, why="of a Service, which need not be there"),
    "namespace": honoured(
        shapes.LABEL, why="the route's own: another one needs a ReferenceGrant, which the lab does not read"
    ),
    "port": honoured(shapes.PORT, required=True, why="of the Service"),
    "weight": honoured(shapes.WEIGHT, why="1 where it is not given"),
}
_HTTP_BACKEND = {
    **_BACKEND,
    "filters[].type": honoured(shapes.one_of("RequestHeaderModifier", "ResponseHeaderModifier"), required=True),
    **under("filters[].", _HEADER_FILTERS),
    **under("filters[].", each(f"{_OTHER_FILTERS} requestMirror requestRedirect urlRewrite", _NOT_YET)),
}
_HOW = honoured(shapes.one_of("Exact", "RegularExpression"), why="Exact where it is not given")
_RULE = {
    "name": honoured(shapes.SUBDOMAIN),
    "matches[].path.type": honoured(
        shapes.one_of("Exact", "PathPrefix", "RegularExpression"), why="PathPrefix where it is not given"
    ),
    "matches[].path.value": honoured(why="`/` where it is not given; it starts with `/` unless it is a regex"),
    "matches[].method": honoured(shapes.HTTP_METHOD),
    "matches[].headers[].type": _HOW,
    "matches[].headers[].name": honoured(shapes.HEADER, required=True),
    "matches[].headers[].value": honoured(required=True),
    "matches[].queryParams[].type": _HOW,
    "matches[].queryParams[].name": honoured(required=True),
    "matches[].queryParams[].value": honoured(required=True),
    **under("filters[].", _FILTER),
    "filters[].requestMirror.backendRef": honoured(None, required=True),
    **under("filters[].requestMirror.backendRef.", {key: _BACKEND[key] for key in _BACKEND if key != "weight"}),
    "filters[].requestMirror.percent": honoured(shapes.WHOLE_PERCENT, why="100 where it is not given"),
    "filters[].requestMirror.fraction.numerator": honoured(shapes.REPLICAS, required=True),
    "filters[].requestMirror.fraction.denominator": honoured(shapes.REPLICAS, why="100 where it is not given"),
    **under("backendRefs[].", _HTTP_BACKEND),
    "timeouts.request": honoured(shapes.GATEWAY_DURATION, why="0s is none"),
    "timeouts.backendRequest": _NOT_YET,
    **each("retry sessionPersistence", _NOT_YET),
}
_PARENTS = {
    "spec.parentRefs[].group": honoured(shapes.ANY_TEXT, why="`''` for a Service"),
    "spec.parentRefs[].kind": honoured(
        why="a Service of the route's namespace; every other parent is inert, since the lab has no ingress and a "
        "waypoint honours no route for a Service of another namespace"
    ),
    "spec.parentRefs[].name": honoured(shapes.SUBDOMAIN, required=True),
    "spec.parentRefs[].namespace": honoured(shapes.LABEL, why="the route's where it is not given"),
    "spec.parentRefs[].port": honoured(shapes.PORT, why="of the Service; all its ports where it is not given"),
    "spec.parentRefs[].sectionName": inert("it names a listener of a Gateway; for a Service, write `port`"),
    "spec.useDefaultGateways": inert("the lab has no ingress"),
}
HTTP_ROUTE = {
    **_OBJECT,
    "spec": honoured(None, required=True),
    **_PARENTS,
    "spec.hostnames": inert("a waypoint knows a Service by its address"),
    **under("spec.rules[].", _RULE),
}

# --- TCPRoute --------------------------------------------------------------------------------------------------------

TCP_ROUTE = {
    **_OBJECT,
    "spec": honoured(None, required=True),
    **_PARENTS,
    "spec.rules": honoured(None, required=True, why="one rule"),
    "spec.rules[].name": inert("it has no part in traffic"),
    **under("spec.rules[].backendRefs[].", _BACKEND),
}

# --- VirtualService --------------------------------------------------------------------------------------------------

_EXCLUSIVE = "exact, prefix and regex exclude each other"
_VALUE = {
    "exact": honoured(shapes.ANY_TEXT, why=f"{_EXCLUSIVE}; with none of them, any value will do"),
    "prefix": honoured(why=_EXCLUSIVE),
    "regex": honoured(why=f"{_EXCLUSIVE}; `*` is any value"),
}
_NAMED_VALUE = {
    "headers.*": honoured(
        None, names=shapes.MATCHED_HEADER, why="`:method` and `:authority` are as the keys of that name"
    ),
    "withoutHeaders.*": honoured(None, names=shapes.HEADER),
}
_NO_SOURCES = refused("a waypoint ignores it, so the match would be wider than it reads")
_VIRTUAL_MATCH = {
    **under("uri.", _VALUE),
    "ignoreUriCase": honoured(shapes.BOOLEAN, why="of an exact or a prefix match of the path"),
    **under("method.", _VALUE),
    **under("authority.", _VALUE),
    **_NAMED_VALUE,
    "queryParams.*": honoured(None, names=shapes.TEXT),
    **under("headers.*.", _VALUE),
    **under("withoutHeaders.*.", _VALUE),
    **under("queryParams.*.", _VALUE),
    "port": honoured(shapes.PORT, why="of the Service"),
    "scheme": refused("no TLS ends at a waypoint: every request that it reads is http"),
    **each("sourceLabels sourceNamespace gateways", _NO_SOURCES),
    **each("name statPrefix", inert("it is for logs and metrics")),
}
_HEADER_EDITS: dict[str, Key] = {}
for _name in ("headers.request", "headers.response"):
    for _verb in ("set", "add"):
        _HEADER_EDITS[f"{_name}.{_verb}.*"] = honoured(shapes.HEADER_VALUE, names=shapes.EDITED_HEADER)
    _HEADER_EDITS[f"{_name}.remove[]"] = honoured(shapes.EDITED_HEADER)

_HOST = honoured(
    shapes.HOST, required=True, why="NAME, of the object's own namespace, or NAME.NAMESPACE.svc.cluster.local"
)
_PLACE = {
    "host": _HOST,
    "subset": honoured(shapes.SUBSET, why="of the DestinationRule for that Service"),
    "port.number": honoured(
        shapes.PORT, why="the Service's only port where it is not given; of several, the one that was called"
    ),
}
_DESTINATION: dict[str, Key] = {
    "destination": honoured(None, required=True),
    **under("destination.", _PLACE),
    "weight": honoured(shapes.WEIGHT, why="of several destinations, 0 where it is not given"),
}
_NEVER = "where it is not given, it never happens"
_VIRTUAL_RULE = {
    "name": honoured(shapes.TEXT),
    **under("match[].", _VIRTUAL_MATCH),
    **under("route[].", {**_DESTINATION, **_HEADER_EDITS}),
    "redirect.uri": honoured(shapes.ANY_TEXT),
    "redirect.prefixRewrite": honoured(shapes.TEXT),
    "redirect.authority": honoured(shapes.ANY_TEXT),
    "redirect.scheme": honoured(shapes.one_of("http", "https")),
    "redirect.port": honoured(shapes.PORT),
    "redirect.derivePort": _NOT_YET,
    "redirect.redirectCode": honoured(shapes.REDIRECT_STATUS, why="301 where it is not given"),
    "directResponse.status": honoured(shapes.HTTP_STATUS, required=True),
    "directResponse.body.string": honoured(shapes.ANY_TEXT),
    "directResponse.body.bytes": refused("the lab compares text: write it as `string`"),
    "rewrite.uri": honoured(
        shapes.ANY_TEXT, why="in place of the prefix that matched; of an exact or a regex match, of the whole path"
    ),
    "rewrite.authority": honoured(shapes.ANY_TEXT),
    "rewrite.uriRegexRewrite": _NOT_YET,
    "timeout": honoured(shapes.DURATION),
    "fault.delay.fixedDelay": honoured(shapes.DURATION, required=True),
    "fault.delay.percentage.value": honoured(shapes.PERCENT, why=_NEVER),
    "fault.delay.percent": honoured(shapes.PERCENT, why="the older form of percentage"),
    "fault.delay.exponentialDelay": refused("Istio does not implement it"),
    "fault.abort.httpStatus": honoured(shapes.HTTP_STATUS, required=True),
    "fault.abort.percentage.value": honoured(shapes.PERCENT, why=_NEVER),
    **under("fault.abort.", each("grpcStatus http2Error", _NOT_YET)),
    **_HEADER_EDITS,
    "retries.attempts": refused("the lab does not support retries yet", unless=(0,)),
    **under(
        "retries.",
        each("backoff perTryTimeout retryIgnorePreviousHosts retryOn retryRemoteLocalities", _NOT_YET),
    ),
    **under("mirror.", _PLACE),
    "mirrorPercentage.value": honoured(shapes.PERCENT, why="100 where mirrorPercentage is not given"),
    "mirrors[].destination": honoured(None, required=True),
    **under("mirrors[].destination.", _PLACE),
    "mirrors[].percentage.value": honoured(shapes.PERCENT, why="100 where percentage is not given"),
    **each("mirrorPercent mirror_percent", refused("write mirrorPercentage, which took its place")),
    **each("corsPolicy delegate", _NOT_YET),
}
VIRTUAL_SERVICE = {
    **_OBJECT,
    "spec": honoured(None, required=True),
    "spec.hosts": honoured(None, required=True),
    "spec.hosts[]": honoured(
        shapes.TEXT, why="NAME, of the object's own namespace, or NAME.NAMESPACE.svc.cluster.local; others are inert"
    ),
    "spec.gateways[]": honoured(
        shapes.GATEWAY,
        why="with others than `mesh` only, the object is inert: the lab has no ingress",
    ),
    "spec.exportTo": inert("a waypoint reads the routes of its Services' namespaces and of its own"),
    **under("spec.http[].", _VIRTUAL_RULE),
    "spec.tcp[].match[].port": honoured(shapes.PORT, why="of the Service, which does not speak HTTP there"),
    **under("spec.tcp[].match[].", each("destinationSubnets sourceSubnet", _NOT_YET)),
    **under("spec.tcp[].match[].", each("gateways sourceLabels sourceNamespace", _NO_SOURCES)),
    **under("spec.tcp[].route[].", _DESTINATION),
    "spec.tls": refused("the lab does not route TLS by its server names"),
}

# --- DestinationRule -------------------------------------------------------------------------------------------------

_POLICY = {
    **under(
        "trafficPolicy.",
        each(
            "connectionPool loadBalancer outlierDetection portLevelSettings proxyProtocol retryBudget tunnel", _NOT_YET
        ),
    ),
    "trafficPolicy.tls.mode": refused(
        "the lab does not support it yet; ISTIO_MUTUAL and DISABLE change nothing at a waypoint, which speaks HBONE",
        unless=("ISTIO_MUTUAL", "DISABLE"),
    ),
    **under(
        "trafficPolicy.tls.",
        each(
            "caCertificates caCrl clientCertificate credentialName insecureSkipVerify privateKey sni subjectAltNames",
            inert("it goes with the modes SIMPLE and MUTUAL"),
        ),
    ),
}
DESTINATION_RULE = {
    **_OBJECT,
    "spec": honoured(None, required=True),
    "spec.host": _HOST,
    "spec.subsets[].name": honoured(shapes.SUBSET, required=True),
    "spec.subsets[].labels.*": honoured(shapes.LABEL_VALUE, names=shapes.LABEL_KEY),
    **under("spec.subsets[].", _POLICY),
    **under("spec.", _POLICY),
    "spec.workloadSelector": refused("it selects sidecars, which the lab does not have"),
    "spec.exportTo": inert("the lab looks for it in the namespace of its Service only"),
}
