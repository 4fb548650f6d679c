"""Certificate signing requests, both ends: what a ztunnel asks for, and what may be signed."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from meshlab.errors import ProtocolError
from meshlab.model.identity import SpiffeId

_INVALID_ARGUMENT = 3  # gRPC's status code
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises of a CSR or a certificate that it cannot read; they have no base of their own."""


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """A CSR whose signature holds."""

    key: ec.EllipticCurvePublicKey
    uris: tuple[str, ...]
    """Of its SAN, in order."""


def create_csr(identity: SpiffeId, key: ec.EllipticCurvePrivateKey) -> str:
    """A PEM as a real ztunnel sends it: empty subject, one URI in a critical SAN, SHA-256."""
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(san, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def read_csr(pem: str) -> SigningRequest:
    """Read and verify a CSR.

    Raises:
        ProtocolError: it is no CSR, uses what is not supported, is not signed with its own key, or is for a key that
            is not elliptic-curve.
    """
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        key = csr.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ProtocolError(
                f"the CSR is for a {type(key).__name__}, not for an elliptic-curve key", _INVALID_ARGUMENT
            )
        key.verify(csr.signature, csr.tbs_certrequest_bytes, _signature_algorithm(csr))
        return SigningRequest(key, _uris(csr))
    except InvalidSignature as error:
        raise ProtocolError("the CSR is not signed with the key that it is for", _INVALID_ARGUMENT) from error
    except UNREADABLE as error:
        raise ProtocolError(f"the CSR cannot be read: {error}", _INVALID_ARGUMENT) from error


def _signature_algorithm(csr: x509.CertificateSigningRequest) -> ec.ECDSA:
    if csr.signature_hash_algorithm is None:
        raise ValueError("its signature has no hash")
    return ec.ECDSA(csr.signature_hash_algorithm)


def _uris(csr: x509.CertificateSigningRequest) -> tuple[str, ...]:
    try:
        san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(san.get_values_for_type(x509.UniformResourceIdentifier))
