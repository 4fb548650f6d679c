"""Whom a leaf certificate names, and whether it may name anybody. Its chain and dates are the TLS library's to check.

Source: https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md (sections 2, 4.1, 4.3 and 5.2)
"""

from __future__ import annotations

from typing import TypeVar

from cryptography import x509

from meshlab.model.identity import SpiffeId
from meshlab.pki.csr import UNREADABLE

E = TypeVar("E", bound=x509.ExtensionType)


def read_certificate(data: bytes) -> x509.Certificate:
    """Read a certificate that is written as PEM or as DER.

    Raises:
        ValueError: the bytes are no certificate.
    """
    read = x509.load_pem_x509_certificate if data.startswith(b"-----") else x509.load_der_x509_certificate
    try:
        return read(data)
    except UNREADABLE as error:
        raise ValueError(f"the certificate cannot be read: {error}") from error


def identity_of(leaf: x509.Certificate) -> SpiffeId:
    """Return the one SPIFFE id in a leaf certificate.

    Raises:
        ValueError: it names none or several, or it is a certificate that signs others.
    """
    if (problem := _signs(leaf)) is not None:
        raise ValueError(f"the certificate is not a leaf: {problem}")
    uris = _uris(leaf)
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        raise ValueError(
            f"the certificate has no SPIFFE identity: an SVID has exactly one URI, this has {uris or 'none'}"
        )
    return SpiffeId.parse(uris[0])


def _uris(leaf: x509.Certificate) -> list[str]:
    names = _extension(leaf, x509.SubjectAlternativeName)
    return names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []


def _signs(leaf: x509.Certificate) -> str | None:
    constraints = _extension(leaf, x509.BasicConstraints)
    usage = _extension(leaf, x509.KeyUsage)
    if constraints is not None and constraints.ca:
        return "its basic constraints say CA"
    if usage is not None and (usage.key_cert_sign or usage.crl_sign):
        return "its key may sign certificates or revocation lists"
    return None


def _extension(leaf: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return leaf.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except UNREADABLE as error:
        raise ValueError(f"the certificate cannot be read: {error}") from error
