"""RequestAuthentications as the filter that reads tokens, before the RBAC filters judge by what they say.

A token is good if any provider verifies it, and a request has to have none: where there are several providers, each may
find its token at a place of its own, so that each alone may be missing, but not all of them may fail.

The keys are in the filter's own configuration, which comes with its listener. So a change of RequestAuthentications
leaves connections that are open on the chain that they came to.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/jwt_authn_filter and
https://github.com/istio/istio/blob/master/pilot/pkg/security/authn/policy_applier.go
"""

from __future__ import annotations

from collections.abc import Collection

from meshlab.model import JwtRule
from meshlab.translate.envoy.forms import TOKENS, Json, extension


def reader(rules: Collection[JwtRule]) -> list[Json]:
    """The filter, or none where no rule is for these requests."""
    if not rules:
        return []
    ordered = sorted(rules, key=lambda rule: rule.issuer)
    providers = {f"origins-{number}": _provider(rule) for number, rule in enumerate(ordered)}
    each: list[Json] = [{"provider_name": name} for name in providers]
    may_miss = [_any([one, {"allow_missing": {}}]) for one in each]
    required = may_miss[0] if len(each) == 1 else _any([*each, {"requires_all": {"requirements": may_miss}}])
    rule = {"match": {"prefix": "/"}, "requires": required}
    more = {"providers": providers, "rules": [rule], "bypass_cors_preflight": True}
    return [extension(TOKENS, "filters.http.jwt_authn.v3.JwtAuthentication", more)]


def _any(some: Collection[Json]) -> Json:
    return {"requires_any": {"requirements": some}}


def _provider(rule: JwtRule) -> Json:
    return {
        "issuer": rule.issuer,
        "audiences": rule.audiences,
        "local_jwks": {"inline_string": rule.jwks},
        "from_headers": [{"name": name, "value_prefix": prefix} for name, prefix in rule.from_headers],
        "from_params": rule.from_params,
        "forward": rule.forward_original_token,
        "payload_in_metadata": "payload",
        "normalize_payload_in_metadata": {"space_delimited_claims": ["scope", "permission"]},
    }
