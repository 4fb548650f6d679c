"""The mesh's root: ``lab.ca``, a ``trustme.CA`` as its users know it, plus ``svid``.

    root --signs--> certificates of servers (trustme's own)
      `---signs--> intermediate --signs--> SVIDs

trustme makes the root and the certificates of servers. It cannot make SVIDs (``spiffe://`` is no identity to it) and
its validity is fixed, so the rest is made with ``cryptography``, from keys that trustme gives away publicly.

Another root can take the place of the first, step by step: ``Rotation``.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from datetime import datetime

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from meshlab.model.identity import SpiffeId
from meshlab.pki.issuer import Issuer, key_pem


class MeshCA(trustme.CA):
    """A mesh's root certificate authority, with an intermediate of the same validity that signs its SVIDs."""

    @functools.cached_property
    def issuer(self) -> Issuer:
        """The intermediate, made at first use."""
        root = x509.load_pem_x509_certificate(self.cert_pem.bytes())
        root_key = load_pem_private_key(self.private_key_pem.bytes(), password=None)
        assert isinstance(root_key, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _ca_certificate(
            _name("meshlab intermediate"),
            key.public_key(),
            signer=(root.subject, root_key),
            validity=(root.not_valid_before_utc, root.not_valid_after_utc),
        )
        return Issuer(certificate, key, self.cert_pem.bytes().decode())

    def svid(
        self, identity: SpiffeId | str, *, not_before: datetime | None = None, not_after: datetime | None = None
    ) -> trustme.LeafCert:
        """A key and a certificate of a workload, chained to the intermediate; valid as long as the CA if not told.

        Raises:
            ValueError: ``identity`` is no SPIFFE id of Istio's shape.
        """
        who = SpiffeId.parse(identity) if isinstance(identity, str) else identity
        key = ec.generate_private_key(ec.SECP256R1())
        ca = self.issuer.certificate
        leaf = self.issuer.sign(
            who, key.public_key(), not_before or ca.not_valid_before_utc, not_after or ca.not_valid_after_utc
        )
        chain = [ca.public_bytes(Encoding.PEM)]
        return trustme.LeafCert(key_pem(key).encode(), leaf.public_bytes(Encoding.PEM), chain)

    def rotate(self) -> Rotation:
        """Make a new root of the same validity, whose place in the mesh is taken step by step."""
        root = x509.load_pem_x509_certificate(self.cert_pem.bytes())
        return Rotation(self, create_root(root.not_valid_before_utc, root.not_valid_after_utc))

    def control_plane(self, *names: str) -> dict[str, str]:
        """All that a control plane needs, as PEM: the issuer, and a server certificate for these DNS names or IPs."""
        server = self.issue_cert(*names)
        chain = "".join(pem.bytes().decode() for pem in server.cert_chain_pems)
        return {
            **self.issuer.to_pem(),
            "server_key": server.private_key_pem.bytes().decode(),
            "server_chain": chain,
        }


@dataclass(frozen=True, slots=True)
class Rotation:
    """A root that takes the place of another, without a handshake that fails on the way.

        step       who signs SVIDs      roots that are handed out    the next step may come when
        trusting   the old root's CA    the old one, the new one     every proxy has renewed each of its certificates
        signing    the new root's CA    the old one, the new one     every proxy has renewed each of its certificates
        finished   the new root's CA    the new one                  (the old root is forgotten)

    A mesh that skips ``trusting`` breaks for a while: proxies that have renewed show certificates of a root that those
    which have not do not know. Certificates of servers, such as the control plane's own, stay the old root's, since
    what verifies them was given that root when it started.

    Source: https://istio.io/latest/docs/tasks/security/cert-management/plugin-ca-cert/
    """

    old: MeshCA
    new: MeshCA

    @property
    def trusting(self) -> Issuer:
        """Signs as before the rotation, and has both roots trusted."""
        return dataclasses.replace(self.old.issuer, roots=self._both)

    @property
    def signing(self) -> Issuer:
        """Signs under the new root, and has both roots trusted."""
        return dataclasses.replace(self.new.issuer, roots=self._both)

    @property
    def finished(self) -> Issuer:
        """Signs under the new root, and has it alone trusted."""
        return self.new.issuer

    @property
    def _both(self) -> str:
        return "\n".join(issuer.roots.strip() for issuer in (self.old.issuer, self.new.issuer)) + "\n"


def create_root(not_before: datetime, not_after: datetime) -> MeshCA:
    """A root, and so an intermediate, of this validity; trustme's is fixed to the years 2000 to 3000."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"meshlab root {x509.random_serial_number():x}")  # a bundle may hold several
    certificate = _ca_certificate(name, key.public_key(), signer=(name, key), validity=(not_before, not_after))
    ca = MeshCA.from_pem(certificate.public_bytes(Encoding.PEM), key_pem(key).encode())
    assert isinstance(ca, MeshCA)
    return ca


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _ca_certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    *,
    signer: tuple[x509.Name, ec.EllipticCurvePrivateKey],
    validity: tuple[datetime, datetime],
) -> x509.Certificate:
    issuer, signing_key = signer
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(authority, critical=False)
        .sign(signing_key, hashes.SHA256())
    )


_CA_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
