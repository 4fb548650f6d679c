"""What signs SVIDs: one CA certificate, its key, and the roots above it, as Istio's CA does it.

A leaf has an empty subject, so its SAN is critical (RFC 5280 4.2.1.6), and holds exactly one URI (SPIFFE X.509-SVID 2).
Its identity is the caller's, never the CSR's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshlab.model.identity import SpiffeId

DEFAULT_TTL = timedelta(hours=24)
MAX_TTL = timedelta(days=90)
"""Both as Istio's CA has them."""
_BACKDATE = timedelta(minutes=2)

_LEAF_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=True,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
_LEAF_PURPOSES = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


@dataclass(frozen=True, slots=True)
class Issuer:
    """One CA that signs SVIDs. ``to_pem`` and ``from_pem`` carry it from the lab to its control plane."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    roots: str
    """One or several PEM certificates: what those who verify trust."""

    @classmethod
    def from_pem(cls, pems: Mapping[str, str]) -> Issuer:
        key = load_pem_private_key(pems["issuer_key"].encode(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"the issuer's key is {type(key).__name__}, which is no elliptic-curve key")
        return cls(x509.load_pem_x509_certificate(pems["issuer"].encode()), key, pems["roots"])

    def to_pem(self) -> dict[str, str]:
        return {"issuer": _pem(self.certificate), "issuer_key": key_pem(self.key), "roots": self.roots}

    def issue(
        self, identity: SpiffeId, key: ec.EllipticCurvePublicKey, *, now: datetime, ttl: timedelta = DEFAULT_TTL
    ) -> list[str]:
        """The chain as Istio's CA answers it, one PEM a string: leaf, intermediate, root(s).

        ``ttl`` is clamped to (0, 90 days], zero and less meaning the default, and to what is left of the CA's own.

        Raises:
            ValueError: ``identity`` has a part that no SPIFFE ID of Istio's shape can have.
        """
        lifetime = min(ttl, MAX_TTL) if ttl > timedelta(0) else DEFAULT_TTL
        # A ztunnel renews at half of the *whole* life: back-dated by more than a quarter or so, a short one would be
        # renewed at once, again and again.
        not_before = now - min(_BACKDATE, lifetime / 4)
        return [_pem(self.sign(identity, key, not_before, now + lifetime)), _pem(self.certificate), self.roots]

    def sign(
        self, identity: SpiffeId, key: ec.EllipticCurvePublicKey, not_before: datetime, not_after: datetime
    ) -> x509.Certificate:
        """One leaf, its validity cut to the issuer's own.

        Raises:
            ValueError: ``identity`` has a part that no SPIFFE ID of Istio's shape can have.
        """
        SpiffeId.parse(str(identity))
        issuer_key_id = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(not_before.astimezone(UTC), self.certificate.not_valid_before_utc))
            .not_valid_after(min(not_after.astimezone(UTC), self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_LEAF_USAGE, critical=True)
            .add_extension(_LEAF_PURPOSES, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key_id), critical=False
            )
            .add_extension(san, critical=True)
            .sign(self.key, hashes.SHA256())
        )


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
