"""The oracle agrees with what Istio's own tests expect: a stranger's opinion, case by case.

The cases are read where they are published; ``MESHLAB_PUBLISHED`` names the folder.
"""

from __future__ import annotations

import json
import os
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest

from meshlab.model import (
    Action,
    AuthorizationPolicy,
    Condition,
    Connection,
    Mesh,
    MtlsMode,
    Namespace,
    Operation,
    PeerAuthentication,
    Pod,
    Rule,
    Source,
    SpiffeId,
)
from meshlab.oracle import decide

_PUBLISHED = Path(os.environ.get("MESHLAB_PUBLISHED", Path(__file__).parents[2].parent / "shared" / "published"))
_FILE = _PUBLISHED / "cases" / "l4-cases.json"
if not _FILE.exists():
    pytest.skip(f"no published cases at {_FILE} (MESHLAB_PUBLISHED)", allow_module_level=True)

_DOCUMENT: dict[str, Any] = json.loads(_FILE.read_text())
_FIELDS = {
    "principals": "principals",
    "notPrincipals": "not_principals",
    "namespaces": "namespaces",
    "notNamespaces": "not_namespaces",
    "serviceAccounts": "service_accounts",
    "notServiceAccounts": "not_service_accounts",
    "ipBlocks": "ip_blocks",
    "notIpBlocks": "not_ip_blocks",
    "requestPrincipals": "request_principals",
    "ports": "ports",
    "notPorts": "not_ports",
    "methods": "methods",
    "paths": "paths",
    "key": "key",
    "values": "values",
    "notValues": "not_values",
}


def _fields(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest's keys in the model's words; one that is not in the table fails its case."""
    return {_FIELDS[key]: tuple(value) if isinstance(value, list) else value for key, value in manifest.items()}


def _rule(manifest: dict[str, Any]) -> Rule:
    return Rule(
        sources=tuple(Source(**_fields(entry["source"])) for entry in manifest.get("from", ())),
        operations=tuple(Operation(**_fields(entry["operation"])) for entry in manifest.get("to", ())),
        conditions=tuple(Condition(**_fields(entry)) for entry in manifest.get("when", ())),
    )


def _authorization_policy(manifest: dict[str, Any]) -> AuthorizationPolicy:
    metadata, spec = manifest["metadata"], manifest.get("spec", {})
    return AuthorizationPolicy(
        name=metadata["name"],
        namespace=metadata["namespace"],
        selector=spec.get("selector", {}).get("matchLabels"),
        action=Action(spec.get("action", "ALLOW")),
        rules=tuple(map(_rule, spec.get("rules", ()))),
        dry_run=metadata.get("annotations", {}).get("istio.io/dry-run") == "true",
    )


def _peer_authentication(manifest: dict[str, Any]) -> PeerAuthentication:
    metadata, spec = manifest["metadata"], manifest.get("spec", {})
    return PeerAuthentication(
        name=metadata["name"],
        namespace=metadata["namespace"],
        selector=spec.get("selector", {}).get("matchLabels"),
        mode=MtlsMode(spec.get("mtls", {}).get("mode", "UNSET")),
        port_level_mtls={int(port): MtlsMode(mtls["mode"]) for port, mtls in spec.get("portLevelMtls", {}).items()},
    )


def _mesh(case: dict[str, Any]) -> Mesh:
    manifests = _DOCUMENT["policy_sets"][case["policies_ref"]] if "policies_ref" in case else case["policies"]
    destination = case["connection"]["dst"]
    address = ip_address(destination["ip"])
    pod = Pod(
        name="server",
        namespace=destination["namespace"],
        node="node-1",
        ipv4=address if isinstance(address, IPv4Address) else IPv4Address("192.0.2.1"),
        ipv6=address if isinstance(address, IPv6Address) else IPv6Address("2001:db8::1"),
        labels=destination["labels"],
    )
    return Mesh(
        namespaces=(Namespace(name=pod.namespace, labels={"istio.io/dataplane-mode": "ambient"}),),
        pods=(pod,),
        authorization_policies=tuple(
            _authorization_policy(manifest) for manifest in manifests if manifest["kind"] == "AuthorizationPolicy"
        ),
        peer_authentications=tuple(
            _peer_authentication(manifest) for manifest in manifests if manifest["kind"] == "PeerAuthentication"
        ),
    )


def _connection(case: dict[str, Any]) -> Connection:
    source, destination = case["connection"]["src"], case["connection"]["dst"]
    return Connection(
        source=SpiffeId.parse(source["identity"]) if source["identity"] else None,
        source_ip=ip_address(source["ip"]),
        destination=f"{destination['namespace']}/server",
        destination_ip=ip_address(destination["ip"]),
        port=destination["port"],
    )


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in _DOCUMENT["cases"]])
def test_the_oracle_gives_the_published_verdict(case: dict[str, Any]) -> None:
    decision = decide(_mesh(case), _connection(case))
    assert decision.verdict == case["expected"], f"{decision.rule}; published: {case['how']}"


def test_every_kind_in_the_cases_is_one_the_oracle_judges() -> None:
    sets = [*_DOCUMENT["policy_sets"].values(), *(case.get("policies", []) for case in _DOCUMENT["cases"])]
    assert {manifest["kind"] for policies in sets for manifest in policies} == {
        "AuthorizationPolicy",
        "PeerAuthentication",
    }
