"""Keys of AuthorizationPolicy, PeerAuthentication and RequestAuthentication."""

from __future__ import annotations

from meshlab.topology import shapes
from meshlab.topology.keys.common import NO_ANNOTATIONS, NO_LABELS, object_keys
from meshlab.topology.keys.key import each, honoured, inert, refused, under

_SELECTOR = {
    "spec.selector": honoured(None),
    "spec.selector.matchLabels.*": honoured(shapes.LABEL_VALUE, names=shapes.LABEL_KEY),
}

_L7 = "HTTP: no ztunnel enforces it, but it changes what a ztunnel is sent"
_REMOTE = f"{_L7}; refused in a policy with targetRefs, since the lab does not support it at a waypoint yet"
_UNSENT = "no ztunnel can be sent it, so it counts as HTTP; write principals: [TRUST-DOMAIN/*] to have it enforced"
_SOURCE_STRINGS = "principals notPrincipals namespaces notNamespaces"
_OPERATION_STRINGS = "hosts notHosts methods notMethods"
_RULE = {
    **each(" ".join(f"from[].source.{name}[]" for name in _SOURCE_STRINGS.split()), honoured(shapes.TEXT)),
    **under("from[].source.", each("serviceAccounts[] notServiceAccounts[]", honoured(shapes.ACCOUNT))),
    **under("from[].source.", each("ipBlocks[] notIpBlocks[]", honoured(shapes.CIDR))),
    **under("from[].source.", each("requestPrincipals[] notRequestPrincipals[]", honoured(shapes.TEXT, why=_L7))),
    **under("from[].source.", each("remoteIpBlocks[] notRemoteIpBlocks[]", honoured(shapes.CIDR, why=_REMOTE))),
    **under("from[].source.", each("trustDomains[] notTrustDomains[]", honoured(shapes.TRUST_DOMAIN, why=_UNSENT))),
    **under("to[].operation.", each("ports[] notPorts[]", honoured(shapes.PORT_TEXT))),
    **each(" ".join(f"to[].operation.{name}[]" for name in _OPERATION_STRINGS.split()), honoured(shapes.TEXT, why=_L7)),
    **under("to[].operation.", each("paths[] notPaths[]", honoured(shapes.PATH_PATTERN, why=_L7))),
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

AUTHORIZATION_POLICY = {
    **object_keys(shapes.SUBDOMAIN),
    **NO_LABELS,
    "metadata.annotations.*": inert("of the annotations only istio.io/dry-run is read"),
    "metadata.annotations.istio.io/dry-run": honoured(shapes.PARSE_BOOL),
    **_SELECTOR,
    "spec.action": honoured(
        shapes.one_of("ALLOW", "DENY"), why="ALLOW where it is not given; no ztunnel does AUDIT or CUSTOM"
    ),
    **under("spec.rules[].", _RULE),
    **under("spec.targetRef.", _TARGET),
    **under("spec.targetRefs[].", _TARGET),
    "spec.provider": refused("it belongs to the action CUSTOM, which no ztunnel does"),
}

_MODE = honoured(shapes.one_of("UNSET", "DISABLE", "PERMISSIVE", "STRICT"))
PEER_AUTHENTICATION = {
    **object_keys(shapes.SUBDOMAIN),
    **NO_LABELS,
    **NO_ANNOTATIONS,
    **_SELECTOR,
    "spec.mtls.mode": _MODE,
    "spec.portLevelMtls.*": honoured(None, names=shapes.PORT_KEY),
    "spec.portLevelMtls.*.mode": _MODE,
}

_JWT_RULE = {
    "issuer": honoured(shapes.ANY_TEXT, why="of the tokens; any where it is empty"),
    "audiences[]": honoured(why="a token for another one gets 403"),
    "jwks": honoured(why="the public keys, as JSON text"),
    "jwksUri": honoured(shapes.URL, why="looked up in spec.urls of the Lab: the lab reads no other host"),
    "fromHeaders[].name": honoured(shapes.HEADER, required=True),
    "fromHeaders[].prefix": honoured(shapes.ANY_TEXT),
    "fromParams[]": honoured(
        why="without any place a token is taken from `Authorization: Bearer`, or from the parameter access_token"
    ),
    "forwardOriginalToken": honoured(shapes.BOOLEAN, why="false where it is not given: the server gets no token"),
    "fromCookies": refused("the lab reads no cookies; write fromHeaders"),
    "spaceDelimitedClaims": refused("the lab takes scope and permission for lists of words, and no other claim"),
    **each("outputClaimToHeaders outputPayloadToHeader", refused("the lab does not pass on what a token says")),
    "timeout": inert("no keys are fetched"),
}
REQUEST_AUTHENTICATION = {
    **object_keys(shapes.SUBDOMAIN),
    **NO_LABELS,
    **NO_ANNOTATIONS,
    **_SELECTOR,
    "spec.selector": honoured(None, why="one without targetRefs has no effect: no waypoint honours it"),
    **under("spec.targetRef.", _TARGET),
    **under("spec.targetRefs[].", _TARGET),
    **under("spec.jwtRules[].", _JWT_RULE),
}
