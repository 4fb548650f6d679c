"""What the records of a handshake show without being decrypted: whether the client can have shown a certificate."""

from __future__ import annotations

import contextlib
import ssl
import struct

import capture_scenes as scenes
import pytest
import trustme

from meshlab.proofs.tls import CLIENT_HELLO, SERVER_HELLO, TlsRecords

CA = trustme.CA()
PSK = 41


def client_bytes(
    *, certificate: bool, asked: bool = True, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, resume: bool = False
) -> bytes:
    """What a client sends in a handshake, and one byte of application data after it."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.maximum_version = version
    server.verify_mode = ssl.CERT_OPTIONAL if asked else ssl.CERT_NONE
    CA.configure_trust(client)
    CA.configure_trust(server)
    CA.issue_cert("server.test").configure_cert(server)
    if certificate:
        CA.issue_cert("client.test").configure_cert(client)
    session = None
    for _ in range(1 + resume):
        session, sent = _shake(client, server, session)
    return sent


def _shake(
    client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bytes]:
    to_client, to_server, sent = ssl.MemoryBIO(), ssl.MemoryBIO(), b""
    one = client.wrap_bio(to_client, to_server, session=session)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (one, other):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
            if end is one:
                piece = to_server.read()
                sent += piece
                to_server.write(piece)
    other.write(b"x")
    one.read(1)
    one.write(b"y")
    return one.session, sent + to_server.read()


def records(data: bytes, opens_with: int = CLIENT_HELLO, step: int = 1 << 20) -> TlsRecords:
    found = TlsRecords(opens_with)
    for at in range(0, len(data), step):
        found.feed(data[at : at + step])
    assert not found.fault
    return found


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_a_client_that_shows_a_certificate_is_believed(step: int) -> None:
    assert records(client_bytes(certificate=True), step=step).no_certificate == ""


@pytest.mark.parametrize("asked", [True, False], ids=["asked-for-one", "not-asked"])
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_a_client_that_shows_none_is_seen(asked: bool, step: int) -> None:
    said = records(client_bytes(certificate=False, asked=asked), step=step).no_certificate
    assert said.endswith("bytes, too few to hold a certificate")


def test_a_client_that_resumes_a_session_need_show_none_again() -> None:
    assert records(client_bytes(certificate=True, resume=True)).no_certificate == ""


@pytest.mark.parametrize("certificate", [True, False])
def test_of_tls_1_2_nothing_is_said(certificate: bool) -> None:
    sent = client_bytes(certificate=certificate, version=ssl.TLSVersion.TLSv1_2)
    assert records(sent).no_certificate == ""


def test_of_a_server_nothing_is_said() -> None:
    assert records(scenes.recorded_tls().server, SERVER_HELLO).no_certificate == ""


def test_a_hello_that_cannot_be_read_is_not_held_against_its_client() -> None:
    hello = b"\x01" + bytes(3)
    sent = b"\x16\x03\x01" + struct.pack("!H", len(hello)) + hello + b"\x17\x03\x03\x00\x10" + bytes(16)
    assert records(sent).no_certificate == ""
