"""Certificates of a mesh: its root, its intermediate, SVIDs, and what a CSR asks for. Pure: time is passed in."""

from meshlab.pki.authority import MeshCA, Rotation, create_root
from meshlab.pki.csr import SigningRequest, create_csr, read_csr
from meshlab.pki.issuer import MAX_TTL, Issuer
from meshlab.pki.svid import identity_of, read_certificate

__all__ = [
    "MAX_TTL",
    "Issuer",
    "MeshCA",
    "Rotation",
    "SigningRequest",
    "create_csr",
    "create_root",
    "identity_of",
    "read_certificate",
    "read_csr",
]
