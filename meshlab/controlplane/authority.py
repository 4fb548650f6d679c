"""The Istio CA of a lab: whom it gives a certificate, and for how long. The gRPC around it is ``plane``'s.

Source: https://istio.io/latest/docs/concepts/security/#pki
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from meshlab.errors import ProtocolError
from meshlab.model.identity import SpiffeId
from meshlab.pki import MAX_TTL, Issuer, SigningRequest, read_csr

if TYPE_CHECKING:
    from meshlab.protocols.stubs.citadel_pb2 import IstioCertificateRequest

CA_SERVICE = "istio.v1.auth.IstioCertificateService"
CA_METHOD = "CreateCertificate"

_INVALID_ARGUMENT, _PERMISSION_DENIED, _UNAUTHENTICATED = 3, 7, 16  # gRPC's status codes


class Authority:
    """Signs what it is asked to, and remembers for whom."""

    def __init__(self, issuer: Issuer, trust_domain: str) -> None:
        self.issuer = issuer
        self.trust_domain = trust_domain
        self.refuses = False
        """Every request is unauthenticated, as at an Istio CA that does not know the caller."""
        self.issued: dict[str, int] = {}
        """SPIFFE URI to how many certificates it was given."""
        self.shared_keys: list[str] = []
        """A sentence for each private key that two workloads or two proxies have, which says whose it is."""
        self._holders: dict[bytes, tuple[str, str]] = {}
        self._newest: dict[tuple[str, str], Issuer] = {}
        """Who signed the newest certificate of an identity at a proxy."""

    def rotate(self, issuer: Issuer) -> None:
        """Sign as this one from now on: a step of a ``pki.Rotation``."""
        self.issuer = issuer

    def behind(self) -> tuple[tuple[str, str], ...]:
        """Return each identity and its proxy whose newest certificate is not from the present issuer.

        The next step of a rotation may come when none of them is in use any more. An identity whose workload has gone
        stays in the list, since nobody tells the CA.
        """
        return tuple(holder for holder, issuer in self._newest.items() if issuer is not self.issuer)

    def create(self, request: IstioCertificateRequest, now: datetime, client: str) -> tuple[SpiffeId, list[str]]:
        """Answer an ``IstioCertificateRequest``: the identity, and its chain.

        Args:
            client: who asks, ``ztunnel@node-1``.

        Raises:
            ProtocolError: with gRPC's status code.
        """
        if self.refuses:
            raise ProtocolError("request authenticate failure", _UNAUTHENTICATED)
        csr = read_csr(request.csr)
        identity = self.identity(request, csr)
        self._note_holder(csr, identity, client)
        chain = self.issuer.issue(identity, csr.key, now=now, ttl=_ttl(request.validity_duration))
        self._newest[str(identity), client] = self.issuer
        self.issued[str(identity)] = self.issued.get(str(identity), 0) + 1
        return identity, chain

    def _note_holder(self, csr: SigningRequest, identity: SpiffeId, client: str) -> None:
        """A proxy may show the key of a certificate again to have it renewed, and nobody else may show it at all."""
        key = csr.key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        holder = (str(identity), client)
        first = self._holders.setdefault(key, holder)
        if first != holder:
            both = " and ".join(f"{who} at {where}" for who, where in (first, holder))
            shared = f"one private key is that of {both}: whoever has it can pose as either"
            self.shared_keys += [shared] if shared not in self.shared_keys else []

    def identity(self, request: IstioCertificateRequest, csr: SigningRequest) -> SpiffeId:
        """For whom: whom a shared ztunnel impersonates, else the CSR's own name (a dedicated one)."""
        asked = impersonated(request)
        uris = (asked,) if asked else csr.uris
        if len(uris) != 1:
            raise ProtocolError(f"no ImpersonatedIdentity, and a CSR with {len(uris)} URIs", _INVALID_ARGUMENT)
        try:
            identity = SpiffeId.parse(uris[0])
        except ValueError as error:
            raise ProtocolError(str(error), _INVALID_ARGUMENT) from error
        if identity.trust_domain != self.trust_domain:
            raise ProtocolError(f"{identity} is not of the trust domain {self.trust_domain!r}", _PERMISSION_DENIED)
        return identity


def _ttl(seconds: int) -> timedelta:
    """The validity that is asked for, within what a ``timedelta`` can hold and this CA grants."""
    return timedelta(seconds=max(0, min(seconds, MAX_TTL.total_seconds())))


def impersonated(request: IstioCertificateRequest) -> str:
    """``ImpersonatedIdentity`` of a request, or nothing."""
    fields = request.metadata.fields
    return str(fields["ImpersonatedIdentity"].string_value) if "ImpersonatedIdentity" in fields else ""
