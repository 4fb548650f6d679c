"""One identity's certificate and key, and the TLS contexts made of them. No key touches a disk.

Source: https://istio.io/latest/docs/concepts/security/#pki, https://github.com/istio/ztunnel/blob/master/src/tls
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from meshlab.model import SpiffeId
from meshlab.pki import create_csr, identity_of, read_certificate


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A fresh key and its CSR."""

    key_pem: bytes
    csr_pem: str

    @classmethod
    def new(cls, identity: SpiffeId) -> KeyRequest:
        key = ec.generate_private_key(ec.SECP256R1())
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return cls(key_pem, create_csr(identity, key))


@dataclass(frozen=True)
class Credentials:
    """What a workload proves its identity with."""

    identity: SpiffeId
    key_pem: bytes
    chain_pem: str
    """Leaf, then intermediates."""
    roots_pem: str
    not_before_s: float
    """Seconds since 1970."""
    not_after_s: float
    keylog: str = ""
    """File to which its sessions' secrets are added; empty: none."""

    @classmethod
    def issued(cls, identity: SpiffeId, key_pem: bytes, entries: list[str], keylog: str = "") -> Credentials:
        """Take a CA's answer: leaf, intermediates, root(s), each entry a PEM.

        Raises:
            ValueError: it is not the certificate that was asked for, or has no root.
        """
        if len(entries) < 2:
            raise ValueError("no root certificate present")
        leaf = read_certificate(entries[0].encode())
        if (named := identity_of(leaf)) != identity:
            raise ValueError(f"did not find expected SAN: {identity}, but {named}")
        return cls(
            identity=identity,
            key_pem=key_pem,
            chain_pem="\n".join(entries[:-1]),
            roots_pem=entries[-1],
            not_before_s=leaf.not_valid_before_utc.timestamp(),
            not_after_s=leaf.not_valid_after_utc.timestamp(),
            keylog=keylog,
        )

    @property
    def refresh_at_s(self) -> float:
        """Half way through its life."""
        return (self.not_before_s + self.not_after_s) / 2

    @cached_property
    def client_context(self) -> ssl.SSLContext:
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # who the server must be is a SPIFFE URI: ``tls.one_of``
        return context

    @cached_property
    def server_context(self) -> ssl.SSLContext:
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # nobody resumes
        return context

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(["h2"])
        context.load_verify_locations(cadata=self.roots_pem)
        self._load_chain(context)
        if self.keylog:
            context.keylog_filename = self.keylog
        return context

    def _load_chain(self, context: ssl.SSLContext) -> None:
        """``load_cert_chain`` only takes paths; a memfd has one."""
        memfd = os.memfd_create("svid", os.MFD_CLOEXEC)
        try:
            os.write(memfd, self.key_pem + self.chain_pem.encode())
            context.load_cert_chain(f"/proc/self/fd/{memfd}")
        finally:
            os.close(memfd)
