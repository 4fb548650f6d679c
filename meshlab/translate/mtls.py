"""PeerAuthentication as ``istio.security.Authorization``: STRICT is a DENY of peers without an identity.

A ztunnel knows no PeerAuthentication. Where a pod's mode is STRICT it is sent a policy, which the Workload lists:

    strict on every port        istio_converted_static_strict                   the same one for the whole mesh
    strict but for some ports   converted_peer_authentication_NAME   one group: no principal AND not port AND not port
    strict on some ports only   converted_peer_authentication_NAME   a group a port: no principal AND the port
    else                        nothing: DISABLE cannot turn HBONE off

The mode of a port is the first that is set of port, workload, namespace, mesh; of several on one level the oldest wins.
Istio's own code departs from this in some nestings of UNSET with port levels; here what it documents is sent.

Source: https://istio.io/latest/docs/reference/config/security/peer_authentication/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from meshlab.model import Mesh, MtlsMode, PeerAuthentication, Pod, has_labels
from meshlab.protocols.messages import message

if TYPE_CHECKING:
    from meshlab.protocols.stubs.authorization_pb2 import Authorization, Match

STATIC_STRICT = "istio_converted_static_strict"
_CONVERTED = "converted_peer_authentication_"  # underscores: no name in Kubernetes has one


def peer_authentication_policies(mesh: Mesh) -> Iterator[tuple[str, Authorization]]:
    """The static policy, where there is any PeerAuthentication, and one for each with ports that differ, by name."""
    if mesh.peer_authentications:
        static = _deny(mesh.root_namespace, STATIC_STRICT)
        static.groups.add().rules.add(matches=[_without_identity()])
        yield _key(static), static
    for peer_authentication in mesh.peer_authentications:
        if _differing_ports(mesh, peer_authentication):
            converted = _converted(mesh, peer_authentication)
            yield _key(converted), converted


def peer_authentication_keys(mesh: Mesh, pod: Pod) -> tuple[str, ...]:
    """Names of the policies that make up the mode of ``pod``: none or one."""
    own = _oldest_selecting(mesh, pod)
    if own is not None and _differing_ports(mesh, own):
        return (f"{own.namespace}/{_CONVERTED}{own.name}",)
    if _is_strict(mesh, pod.namespace, own):
        return (f"{mesh.root_namespace}/{STATIC_STRICT}",)
    return ()


def _is_strict(mesh: Mesh, namespace: str, own: PeerAuthentication | None) -> bool:
    """Whether ports that no entry names are STRICT in ``namespace`` under ``own``, the workload's policy."""
    levels = (own, _oldest_wide(mesh, namespace), _oldest_wide(mesh, mesh.root_namespace))
    modes = (level.mode for level in levels if level is not None)
    return next((mode for mode in modes if mode is not MtlsMode.UNSET), None) is MtlsMode.STRICT


def _oldest_wide(mesh: Mesh, namespace: str) -> PeerAuthentication | None:
    """The policy for all of ``namespace``: of the mesh, for the root namespace."""
    wide = (policy for policy in mesh.peer_authentications if not policy.selector)
    return next((policy for policy in wide if policy.namespace == namespace), None)


def _oldest_selecting(mesh: Mesh, pod: Pod) -> PeerAuthentication | None:
    """The policy that chooses ``pod`` by label. In ambient none of the root namespace does."""
    for policy in mesh.peer_authentications:
        selects = policy.selector and has_labels(pod.labels, policy.selector)
        if selects and policy.namespace == pod.namespace != mesh.root_namespace:
            return policy
    return None


def _differing_ports(mesh: Mesh, own: PeerAuthentication) -> list[int]:
    """The ports for which ``own`` says otherwise than for the rest."""
    if not own.selector or own.namespace == mesh.root_namespace:
        return []
    strict = _is_strict(mesh, own.namespace, own)
    set_modes = {port: mode for port, mode in own.port_level_mtls.items() if mode is not MtlsMode.UNSET}
    return sorted(port for port, mode in set_modes.items() if (mode is MtlsMode.STRICT) != strict)


def _converted(mesh: Mesh, own: PeerAuthentication) -> Authorization:
    result = _deny(own.namespace, _CONVERTED + own.name)
    differing = _differing_ports(mesh, own)
    if _is_strict(mesh, own.namespace, own):
        group = result.groups.add()
        group.rules.add(matches=[_without_identity()])
        for port in differing:
            group.rules.add().matches.add(not_destination_ports=[port])
    else:
        for port in differing:
            result.groups.add().rules.add(matches=[_without_identity(destination_ports=[port])])
    return result


def _key(authorization: Authorization) -> str:
    return f"{authorization.namespace}/{authorization.name}"


def _deny(namespace: str, name: str) -> Authorization:
    return message("istio.security.Authorization")(
        namespace=namespace, name=name, scope="WORKLOAD_SELECTOR", action="DENY"
    )


def _without_identity(destination_ports: Iterable[int] = ()) -> Match:
    """A Match that is true of every peer without an identity: «not any principal»."""
    match = message("istio.security.Match")(destination_ports=destination_ports)
    match.not_principals.add().presence.SetInParent()
    return match
