"""What Istio's own tests expect of L4 policy, read from where it is published; nobody here wrote it.

``MESHLAB_PUBLISHED`` names the folder of the published inputs, else it is looked for beside the repository.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

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
    Verdict,
)

FOLDER = Path(os.environ.get("MESHLAB_PUBLISHED") or Path(__file__).parents[3] / "shared" / "published")
L4_CASES = FOLDER / "cases" / "l4-cases.json"
_KNOWN_CONNECTION = {"src": {"identity", "ip"}, "dst": {"namespace", "ip", "labels", "port"}}
_SOURCE_FIELDS = {
    "principals": "principals",
    "notPrincipals": "not_principals",
    "namespaces": "namespaces",
    "notNamespaces": "not_namespaces",
    "serviceAccounts": "service_accounts",
    "notServiceAccounts": "not_service_accounts",
    "ipBlocks": "ip_blocks",
    "notIpBlocks": "not_ip_blocks",
    "requestPrincipals": "request_principals",
}
_OPERATION_FIELDS = {"ports": "ports", "notPorts": "not_ports", "methods": "methods", "paths": "paths"}
_CONDITION_FIELDS = {"values": "values", "notValues": "not_values"}


@dataclass(frozen=True, slots=True)
class PublishedCase:
    name: str
    mesh: Mesh
    connection: Connection
    expected: Verdict
    how: str
    """Why upstream expects it."""


class NotCoveredError(Exception):
    """The case says something that the model has no word for."""


def published_cases() -> tuple[list[PublishedCase], dict[str, str]]:
    """The cases that can be asked, and for each other one (by name) why it cannot."""
    document = json.loads(L4_CASES.read_text())
    covered: list[PublishedCase] = []
    left_out: dict[str, str] = {}
    for case in document["cases"]:
        manifests = document["policy_sets"][case["policies_ref"]] if "policies_ref" in case else case["policies"]
        try:
            covered.append(_case(case, manifests))
        except NotCoveredError as reason:
            left_out[case["name"]] = str(reason)
    return covered, left_out


def _case(case: dict[str, Any], manifests: list[dict[str, Any]]) -> PublishedCase:
    source, destination = case["connection"]["src"], case["connection"]["dst"]
    for end, known in _KNOWN_CONNECTION.items():
        if unknown := case["connection"][end].keys() - known:
            raise NotCoveredError(f"{end}: {', '.join(sorted(unknown))}")
    pod = _destination(destination)
    return PublishedCase(
        name=case["name"],
        mesh=_mesh(pod, manifests),
        connection=Connection(
            source=_identity(source["identity"]) if source["identity"] else None,
            source_ip=ip_address(source["ip"]),
            destination=pod.key,
            destination_ip=ip_address(destination["ip"]),
            port=destination["port"],
        ),
        expected=Verdict(case["expected"]),
        how=case["how"],
    )


def _destination(destination: dict[str, Any]) -> Pod:
    address = ip_address(destination["ip"])
    return Pod(
        name="server",
        namespace=destination["namespace"],
        node="node-1",
        ipv4=address if isinstance(address, IPv4Address) else IPv4Address("192.0.2.1"),
        ipv6=address if isinstance(address, IPv6Address) else IPv6Address("2001:db8::1"),
        labels=destination["labels"],
    )


def _mesh(pod: Pod, manifests: list[dict[str, Any]]) -> Mesh:
    by_kind: dict[str, list[dict[str, Any]]] = {"AuthorizationPolicy": [], "PeerAuthentication": []}
    for manifest in manifests:
        if manifest["kind"] not in by_kind:
            raise NotCoveredError(f"kind {manifest['kind']}")
        by_kind[manifest["kind"]].append(manifest)
    return Mesh(
        namespaces=(Namespace(name=pod.namespace, labels={"istio.io/dataplane-mode": "ambient"}),),
        pods=(pod,),
        authorization_policies=tuple(map(_authorization_policy, by_kind["AuthorizationPolicy"])),
        peer_authentications=tuple(map(_peer_authentication, by_kind["PeerAuthentication"])),
    )


def _authorization_policy(manifest: dict[str, Any]) -> AuthorizationPolicy:
    metadata, spec = manifest["metadata"], manifest["spec"]
    return AuthorizationPolicy(
        name=metadata["name"],
        namespace=metadata["namespace"],
        selector=spec.get("selector", {}).get("matchLabels"),
        action=Action(spec.get("action", "ALLOW")),
        rules=tuple(map(_rule, spec.get("rules") or ())),
        dry_run=metadata.get("annotations", {}).get("istio.io/dry-run") == "true",
    )


def _rule(manifest: dict[str, Any]) -> Rule:
    return Rule(
        sources=tuple(Source(**_fields(entry["source"], _SOURCE_FIELDS)) for entry in manifest.get("from", ())),
        operations=tuple(
            Operation(**_fields(entry["operation"], _OPERATION_FIELDS)) for entry in manifest.get("to", ())
        ),
        conditions=tuple(
            Condition(key=entry.pop("key"), **_fields(entry, _CONDITION_FIELDS))
            for entry in map(dict, manifest.get("when", ()))
        ),
    )


def _fields(entry: dict[str, list[str]], names: dict[str, str]) -> dict[str, tuple[str, ...]]:
    if unknown := entry.keys() - names.keys():
        raise NotCoveredError(f"field {', '.join(sorted(unknown))}")
    return {names[key]: tuple(values) for key, values in entry.items()}


def _peer_authentication(manifest: dict[str, Any]) -> PeerAuthentication:
    metadata, spec = manifest["metadata"], manifest["spec"]
    return PeerAuthentication(
        name=metadata["name"],
        namespace=metadata["namespace"],
        selector=spec.get("selector", {}).get("matchLabels"),
        mode=MtlsMode(spec.get("mtls", {}).get("mode", "UNSET")),
        port_level_mtls={int(port): MtlsMode(mtls["mode"]) for port, mtls in spec.get("portLevelMtls", {}).items()},
    )


def _identity(uri: str) -> SpiffeId:
    """The parts of a published identity. One of them has ``sa=alt`` for an account, which SPIFFE does not allow."""
    trust_domain, _, namespace, _, account = uri.removeprefix("spiffe://").split("/")
    return SpiffeId(trust_domain, namespace, account)
