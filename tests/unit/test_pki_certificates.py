"""The mesh's certificates: what is in them, who accepts them, and what a CSR may ask for."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshlab.controlplane.authority import Authority
from meshlab.errors import ProtocolError
from meshlab.model.identity import SpiffeId
from meshlab.pki import Issuer, MeshCA, create_csr, create_root, identity_of, read_certificate, read_csr
from meshlab.protocols.messages import message

CLIENT = SpiffeId("cluster.local", "shop", "client")
NOW = datetime(2026, 8, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def ca() -> MeshCA:
    return MeshCA()


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def leaf(chain: list[str]) -> x509.Certificate:
    return x509.load_pem_x509_certificate(chain[0].encode())


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = None) -> ssl.SSLObject:
    """The server's end of a finished handshake in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    accepting = server.wrap_bio(up, down, server_side=True)
    dialing = client.wrap_bio(down, up, server_hostname=name)
    unfinished = [dialing, accepting]
    for _ in range(10):
        for end in tuple(unfinished):
            try:
                end.do_handshake()
                unfinished.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert not unfinished
    return accepting


def mtls(ca: trustme.CA, cert: trustme.LeafCert, purpose: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(purpose)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    cert.configure_cert(context)
    ca.configure_trust(context)
    return context


def test_two_svids_meet_in_mutual_tls_and_see_each_others_identity(ca: MeshCA) -> None:
    server = mtls(ca, ca.svid("spiffe://cluster.local/ns/shop/sa/server"), ssl.PROTOCOL_TLS_SERVER)
    client = mtls(ca, ca.svid(CLIENT), ssl.PROTOCOL_TLS_CLIENT)
    peer = handshake(server, client).getpeercert()
    assert peer is not None
    assert peer["subjectAltName"] == (("URI", str(CLIENT)),)


def test_an_svid_of_another_mesh_is_refused(ca: MeshCA) -> None:
    server = mtls(ca, ca.svid(CLIENT), ssl.PROTOCOL_TLS_SERVER)
    client = mtls(ca, MeshCA().svid(CLIENT), ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self-signed"):
        handshake(server, client)


def test_the_control_planes_certificate_is_good_for_its_names_and_no_other(ca: MeshCA, tmp_path: Path) -> None:
    pems = ca.control_plane("100.64.0.1", "istiod.istio-system.svc")
    (tmp_path / "both.pem").write_text(pems["server_key"] + pems["server_chain"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "both.pem")
    client = ssl.create_default_context(cadata=pems["roots"])
    for name in ("100.64.0.1", "istiod.istio-system.svc"):
        handshake(server, client, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        handshake(server, client, "100.64.0.2")


def test_it_is_a_trustme_ca_as_its_users_know_it(ca: MeshCA) -> None:
    assert isinstance(ca, trustme.CA)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.create_child_ca().issue_cert("example.org").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(client)
    handshake(server, client, "example.org")


def test_a_chain_is_one_pem_a_string_leaf_intermediate_root(ca: MeshCA, key: ec.EllipticCurvePrivateKey) -> None:
    first, second, last = ca.issuer.issue(CLIENT, key.public_key(), now=NOW)
    certificates = [x509.load_pem_x509_certificates(pem.encode()) for pem in (first, second, last)]
    assert [len(several) for several in certificates] == [1, 1, 1]
    (end,), (middle,), (root,) = certificates
    end.verify_directly_issued_by(middle)
    middle.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)
    assert last == ca.cert_pem.bytes().decode()


def test_a_leaf_has_an_empty_subject_a_critical_san_and_both_purposes(
    ca: MeshCA, key: ec.EllipticCurvePrivateKey
) -> None:
    certificate = leaf(ca.issuer.issue(CLIENT, key.public_key(), now=NOW))
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(certificate.subject) == []
    assert san.critical
    assert list(san.value) == [x509.UniformResourceIdentifier(str(CLIENT))]
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert certificate.public_key() == key.public_key()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
def test_openssl_finds_nothing_to_criticise(ca: MeshCA, tmp_path: Path) -> None:
    for name, pem in zip(
        ("leaf", "middle", "root"),
        ca.issuer.issue(CLIENT, ec.generate_private_key(ec.SECP256R1()).public_key(), now=datetime.now(UTC)),
        strict=True,
    ):
        (tmp_path / name).write_text(pem)
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", "root", "-untrusted", "middle", "leaf"]
    done = subprocess.run(verify, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "leaf: OK\n"), done.stderr


VALIDITIES = {
    "a day is back-dated by two minutes": (timedelta(hours=24), timedelta(minutes=2), timedelta(hours=24)),
    "20 s are back-dated by a quarter": (timedelta(seconds=20), timedelta(seconds=5), timedelta(seconds=20)),
    "nothing said is a day": (timedelta(0), timedelta(minutes=2), timedelta(hours=24)),
    "less than nothing is a day": (timedelta(seconds=-5), timedelta(minutes=2), timedelta(hours=24)),
    "a year is cut to 90 days": (timedelta(days=365), timedelta(minutes=2), timedelta(days=90)),
}


@pytest.mark.parametrize("case", VALIDITIES)
def test_validity_is_what_was_asked_for_within_bounds(ca: MeshCA, key: ec.EllipticCurvePrivateKey, case: str) -> None:
    ttl, before, after = VALIDITIES[case]
    certificate = leaf(ca.issuer.issue(CLIENT, key.public_key(), now=NOW, ttl=ttl))
    assert certificate.not_valid_before_utc == NOW - before
    assert certificate.not_valid_after_utc == NOW + after


@pytest.mark.parametrize("seconds", [4, 8, 20, 60, 600, 86400])
def test_a_certificate_is_not_due_for_renewal_when_it_is_issued(
    ca: MeshCA, key: ec.EllipticCurvePrivateKey, seconds: int
) -> None:
    certificate = leaf(ca.issuer.issue(CLIENT, key.public_key(), now=NOW, ttl=timedelta(seconds=seconds)))
    half = certificate.not_valid_before_utc + (certificate.not_valid_after_utc - certificate.not_valid_before_utc) / 2
    assert half - NOW >= timedelta(seconds=seconds) / 4


def test_no_certificate_outlives_its_root(key: ec.EllipticCurvePrivateKey) -> None:
    root = create_root(NOW - timedelta(seconds=30), NOW + timedelta(hours=1))
    certificate = leaf(root.issuer.issue(CLIENT, key.public_key(), now=NOW))
    assert certificate.not_valid_before_utc == NOW - timedelta(seconds=30)
    assert certificate.not_valid_after_utc == NOW + timedelta(hours=1)
    assert root.issuer.certificate.not_valid_after_utc == NOW + timedelta(hours=1)


def test_an_svid_may_have_expired(ca: MeshCA) -> None:
    server = mtls(ca, ca.svid(CLIENT), ssl.PROTOCOL_TLS_SERVER)
    then = NOW - timedelta(days=365)
    client = mtls(ca, ca.svid(CLIENT, not_before=then, not_after=then + timedelta(hours=1)), ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(server, client)


def test_an_issuer_goes_through_json_and_signs_as_before(ca: MeshCA, key: ec.EllipticCurvePrivateKey) -> None:
    issuer = Issuer.from_pem(json.loads(json.dumps(ca.control_plane("127.0.0.1"))))
    chain = issuer.issue(CLIENT, key.public_key(), now=NOW)
    leaf(chain).verify_directly_issued_by(ca.issuer.certificate)
    assert chain[1:] == ca.issuer.issue(CLIENT, key.public_key(), now=NOW)[1:]


def test_an_svid_needs_an_identity_of_istios_shape(ca: MeshCA) -> None:
    with pytest.raises(ValueError, match=r"spiffe://cluster\.local/shop"):
        ca.svid("spiffe://cluster.local/shop")


# --- signing requests ---


def test_a_csr_is_read_as_it_was_made(key: ec.EllipticCurvePrivateKey) -> None:
    request = read_csr(create_csr(CLIENT, key))
    assert request.key == key.public_key()
    assert request.uris == (str(CLIENT),)


def test_a_csr_looks_like_a_real_ztunnels(key: ec.EllipticCurvePrivateKey) -> None:
    csr = x509.load_pem_x509_csr(create_csr(CLIENT, key).encode())
    (san,) = csr.extensions
    assert list(csr.subject) == []
    assert (san.oid.dotted_string, san.critical) == ("2.5.29.17", True)
    assert isinstance(csr.signature_hash_algorithm, hashes.SHA256)


def unsigned(key: ec.EllipticCurvePrivateKey) -> str:
    der = bytearray(x509.load_pem_x509_csr(create_csr(CLIENT, key).encode()).public_bytes(Encoding.DER))
    der[der.index(b"/sa/client") + 4] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()


def of_rsa() -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256())
    return csr.public_bytes(Encoding.PEM).decode()


def test_a_csr_that_was_changed_after_signing_is_refused(key: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(ProtocolError, match="not signed with the key"):
        read_csr(unsigned(key))


def test_a_csr_for_another_kind_of_key_is_refused() -> None:
    with pytest.raises(ProtocolError, match="RSAPublicKey"):
        read_csr(of_rsa())


def test_what_is_no_csr_is_refused() -> None:
    with pytest.raises(ProtocolError, match="cannot be read") as caught:
        read_csr("-----BEGIN CERTIFICATE REQUEST-----\nnonsense\n-----END CERTIFICATE REQUEST-----\n")
    assert caught.value.code == 3


def test_a_csr_may_come_without_a_name(key: ec.EllipticCurvePrivateKey) -> None:
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    assert read_csr(csr.public_bytes(Encoding.PEM).decode()).uris == ()


def _changed(csr: str, old: bytes, new: bytes) -> str:
    """The CSR with other bytes in its DER; its signature no longer holds."""
    der = x509.load_pem_x509_csr(csr.encode()).public_bytes(Encoding.DER)
    assert old in der
    text = base64.encodebytes(der.replace(old, new, 1)).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n"


ODD_CSRS: dict[str, Callable[[str], str]] = {
    "version 15": lambda csr: _changed(csr, b"\x02\x01\x00\x30", b"\x02\x01\x0e\x30"),  # InvalidVersion
    "an unknown signature": lambda csr: _changed(csr, b"\xce\x3d\x04\x03\x02", b"\xce\x3d\x04\x58\x02"),
    "an unknown curve": lambda csr: _changed(csr, b"\x3d\x03\x01\x07", b"\x3d\x03\x01\x77"),
    "an unknown kind of key": lambda csr: _changed(csr, b"\xce\x3d\x02\x01", b"\xce\x3d\x02\x77"),
    "an Ed25519 key": lambda _: _of_ed25519(),
    "no text": lambda _: "\ud800",
}


def _of_ed25519() -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize("what", ODD_CSRS)
def test_a_csr_that_is_odd_is_refused_with_the_one_error(key: ec.EllipticCurvePrivateKey, what: str) -> None:
    with pytest.raises(ProtocolError, match="the CSR") as caught:
        read_csr(ODD_CSRS[what](create_csr(CLIENT, key)))
    assert caught.value.code == 3


@pytest.mark.parametrize("tag", [0xA3, 0xA5], ids=["X.400", "EDI"])
def test_a_signed_csr_with_a_name_of_an_unsupported_kind_is_refused(tag: int, key: ec.EllipticCurvePrivateKey) -> None:
    pem = create_csr(CLIENT, key)
    with pytest.raises(ProtocolError, match="cannot be read"):
        read_csr(_signed_again(pem, b"\x86(spiffe", bytes([tag]) + b"(spiffe", key))


def _signed_again(csr: str, old: bytes, new: bytes, key: ec.EllipticCurvePrivateKey) -> str:
    """The CSR with other bytes in what is signed, and a signature over those."""
    request = x509.load_pem_x509_csr(csr.encode())
    assert old in request.tbs_certrequest_bytes
    signed = request.tbs_certrequest_bytes.replace(old, new, 1)
    signature = key.sign(signed, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    der = _tlv(0x30, signed + algorithm + _tlv(0x03, b"\0" + signature))
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n"


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + content


NO_IDS = [
    "spiffe://cluster.local/ns/shop/sa/a\n",
    "spiffe://cluster.local/ns/sh\nop/sa/a",
    "spiffe://cluster.local/ns/shop/sa/a\0",
    "spiffe://cluster.local/ns/shop/sa/a?x=1",
    "spiffe://cluster.local/ns/shop/sa/a#x",
    "spiffe://cluster.local/ns/shop/sa/a b",
    "spiffe://cluster.local/ns/shop/sa/%61",
    "spiffe://cluster.local/ns/shop/sa/\u00e9",
    "spiffe://cluster.local/ns/../sa/a",
    "spiffe://cluster.local/ns/./sa/a",
    "spiffe://cluster.local/ns/shop/sa/..",
    "spiffe://cluster.local/ns/shop/sa/",
    "spiffe://cluster.local/ns/shop/sa/a/",
    "spiffe://Cluster.local/ns/shop/sa/a",
    "spiffe://user@cluster.local/ns/shop/sa/a",
    "spiffe://cluster.local:80/ns/shop/sa/a",
    "spiffe:///ns/shop/sa/a",
    f"spiffe://{'a' * 256}/ns/shop/sa/a",
    f"spiffe://cluster.local/ns/shop/sa/{'a' * 100_000}",
    "SPIFFE://cluster.local/ns/shop/sa/a",
]


@pytest.mark.parametrize("uri", NO_IDS)
def test_a_spiffe_id_is_strict_in_each_part(uri: str) -> None:
    with pytest.raises(ValueError, match="is not spiffe://") as caught:
        SpiffeId.parse(uri)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("uri", ["spiffe://a-b.c_1/ns/Shop.1/sa/..a", "spiffe://a/ns/b/sa/" + "c" * 2000])
def test_a_spiffe_id_may_have_whatever_spiffe_allows(uri: str) -> None:
    assert str(SpiffeId.parse(uri)) == uri


@pytest.mark.parametrize("account", ["a\nb", "", "..", "a/b", "a" * 3000])
def test_nobody_gets_a_certificate_for_an_id_that_is_none(
    ca: MeshCA, key: ec.EllipticCurvePrivateKey, account: str
) -> None:
    with pytest.raises(ValueError, match="is not spiffe://"):
        ca.svid(SpiffeId("cluster.local", "shop", account))
    with pytest.raises(ValueError, match="is not spiffe://"):
        ca.issuer.issue(SpiffeId("cluster.local", "shop", account), key.public_key(), now=NOW)


REQUEST = message("istio.v1.auth.IstioCertificateRequest")


@pytest.mark.parametrize("seconds", [2**62, 2**63 - 1, -(2**63), -1, 0, 60])
def test_any_validity_that_a_request_can_carry_is_answered_within_the_authoritys_own(
    ca: MeshCA, key: ec.EllipticCurvePrivateKey, seconds: int
) -> None:
    authority = Authority(ca.issuer, "cluster.local")
    request = REQUEST(csr=create_csr(CLIENT, key), validity_duration=seconds)
    _, chain = authority.create(request, NOW, "ztunnel@node-1")
    assert timedelta(0) < leaf(chain).not_valid_after_utc - NOW <= timedelta(days=90)


def test_a_key_is_one_workloads_at_one_proxy(ca: MeshCA, key: ec.EllipticCurvePrivateKey) -> None:
    authority, other = Authority(ca.issuer, "cluster.local"), SpiffeId("cluster.local", "shop", "other")
    for identity, client, shared in (
        (CLIENT, "ztunnel@node-1", 0),
        (CLIENT, "ztunnel@node-1", 0),  # the same key again, to have its certificate renewed
        (CLIENT, "ztunnel@node-2", 1),
        (other, "ztunnel@node-1", 2),
    ):
        authority.create(REQUEST(csr=create_csr(identity, key)), NOW, client)
        assert len(authority.shared_keys) == shared
    assert authority.shared_keys[0].startswith(
        f"one private key is that of {CLIENT} at ztunnel@node-1 and {CLIENT} at ztunnel@node-2:"
    )


@pytest.mark.parametrize("asked", NO_IDS[:4])
def test_an_authority_refuses_to_sign_what_is_no_spiffe_id(
    ca: MeshCA, key: ec.EllipticCurvePrivateKey, asked: str
) -> None:
    request = REQUEST(csr=create_csr(CLIENT, key))
    request.metadata.fields["ImpersonatedIdentity"].string_value = asked
    with pytest.raises(ProtocolError, match="is not spiffe://") as caught:
        Authority(ca.issuer, "cluster.local").create(request, NOW, "ztunnel@node-1")
    assert caught.value.code == 3


def test_what_is_no_certificate_is_refused_with_the_one_error(ca: MeshCA, key: ec.EllipticCurvePrivateKey) -> None:
    der = leaf(ca.issuer.issue(CLIENT, key.public_key(), now=NOW)).public_bytes(Encoding.DER)
    assert identity_of(read_certificate(der)) == CLIENT
    for wrong in (der[:-1], der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x12"), b"-----BEGIN", b""):
        with pytest.raises(ValueError, match="the certificate cannot be read"):
            read_certificate(wrong)
