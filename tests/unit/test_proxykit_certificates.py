"""Certificates: asked for once, renewed at half life, kept while the CA is away; and TLS that checks the peer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from ztunnel_world import ca, credentials, who

from meshlab.errors import ProtocolError
from meshlab.model import SpiffeId
from meshlab.pki.issuer import key_pem
from meshlab.proxykit.certificates import CertificateError, Certificates
from meshlab.proxykit.credentials import Credentials, KeyRequest
from meshlab.proxykit.tasks import Tasks
from meshlab.proxykit.tls import CheckPeer, Tls, TlsError, in_trust_domain, one_of

CLIENT, SERVER = who("client"), who("server")


# --- the CA's answer -------------------------------------------------------------------------------------------------


def _answer(identity: SpiffeId) -> tuple[bytes, list[str]]:
    svid = ca().svid(identity)
    chain = [pem.bytes().decode() for pem in svid.cert_chain_pems]
    return svid.private_key_pem.bytes(), [*chain, ca().cert_pem.bytes().decode()]


def test_an_answer_without_a_root_is_refused() -> None:
    key, entries = _answer(CLIENT)
    with pytest.raises(ValueError, match="no root certificate present"):
        Credentials.issued(CLIENT, key, entries[:1])


def test_a_certificate_of_another_identity_is_refused() -> None:
    key, entries = _answer(SERVER)
    with pytest.raises(ValueError, match="did not find expected SAN"):
        Credentials.issued(CLIENT, key, entries)


def test_a_root_for_a_leaf_is_refused() -> None:
    key, entries = _answer(CLIENT)
    with pytest.raises(ValueError, match="not a leaf: its basic constraints say CA"):
        Credentials.issued(CLIENT, key, entries[::-1])


def test_each_request_has_a_key_of_its_own() -> None:
    assert KeyRequest.new(CLIENT).key_pem != KeyRequest.new(CLIENT).key_pem


# --- when they are asked for -----------------------------------------------------------------------------------------


class Ca:
    """A CA, and the clock: it counts requests, answers as it is told, and time passes only in ``pass_time``."""

    def __init__(self) -> None:
        self.asked: list[SpiffeId] = []
        self.error = ""
        self.lifetime_s = 1e9
        self.now_s = 0.0
        self.pauses: list[float] = []
        self._waiting: list[asyncio.Future[None]] = []

    async def issue(self, identity: SpiffeId) -> Credentials:
        self.asked.append(identity)
        await asyncio.sleep(0)
        if self.error:
            raise CertificateError(self.error)
        end_s = self.now_s + self.lifetime_s
        return dataclasses.replace(credentials(identity), not_before_s=self.now_s, not_after_s=end_s)

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self._waiting.append(asyncio.get_running_loop().create_future())
        await self._waiting[-1]

    async def pass_time(self) -> None:
        """Let the last pause be over, and what follows it happen."""
        self.now_s += self.pauses[-1]
        self._waiting[-1].set_result(None)
        count = len(self.pauses)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(self.pauses) > count


def _with_ca(scenario: Callable[[Ca, Certificates], Awaitable[None]]) -> None:
    async def run() -> None:
        tasks, authority = Tasks(), Ca()
        rng = random.Random(0)  # noqa: S311  # a test's
        certificates = Certificates(authority.issue, lambda: authority.now_s, authority.pause, rng, tasks)
        async with asyncio.timeout(20):
            await scenario(authority, certificates)
        await tasks.cancel()

    asyncio.run(run())


def test_many_who_want_the_same_identity_ask_once() -> None:
    async def scenario(authority: Ca, certificates: Certificates) -> None:
        got = await asyncio.gather(*(certificates.get(CLIENT) for _ in range(20)))
        assert authority.asked == [CLIENT]
        assert len({id(one) for one in got}) == 1

    _with_ca(scenario)


def test_a_refusal_is_told_to_who_waits_and_is_asked_again_after_a_pause_that_doubles() -> None:
    async def scenario(authority: Ca, certificates: Certificates) -> None:
        authority.error = "CA: UNAUTHENTICATED"
        with pytest.raises(CertificateError, match="UNAUTHENTICATED"):
            await certificates.get(CLIENT)
        assert "UNAUTHENTICATED" in certificates.states()[CLIENT]
        await authority.pass_time()
        authority.error = ""
        await authority.pass_time()
        assert authority.pauses[:2] == [pytest.approx(1, rel=0.2), pytest.approx(2, rel=0.2)]
        assert certificates.states()[CLIENT] == "Available"
        assert (await certificates.get(CLIENT)).identity == CLIENT

    _with_ca(scenario)


def test_a_certificate_is_renewed_at_half_of_its_life() -> None:
    async def scenario(authority: Ca, certificates: Certificates) -> None:
        authority.lifetime_s = 8
        old = await certificates.get(CLIENT)
        assert authority.pauses == [4]
        await authority.pass_time()
        assert (await certificates.get(CLIENT)) is not old

    _with_ca(scenario)


def test_a_certificate_that_comes_past_its_half_life_is_not_asked_for_without_a_pause() -> None:
    async def scenario(authority: Ca, certificates: Certificates) -> None:
        authority.lifetime_s = 0.5
        await certificates.get(CLIENT)
        assert authority.pauses == [1]

    _with_ca(scenario)


def test_a_valid_certificate_is_used_while_its_successor_cannot_be_had_and_not_longer() -> None:
    async def scenario(authority: Ca, certificates: Certificates) -> None:
        authority.lifetime_s = 8
        old = await certificates.get(CLIENT)
        authority.error = "CA: UNAVAILABLE"
        await authority.pass_time()
        assert (await certificates.get(CLIENT)) is old
        authority.now_s = 8
        with pytest.raises(CertificateError, match="UNAVAILABLE"):
            await certificates.get(CLIENT)

    _with_ca(scenario)


def test_what_is_kept_is_fetched_ahead_and_what_is_not_is_forgotten() -> None:
    async def scenario(authority: Ca, certificates: Certificates) -> None:
        certificates.keep([CLIENT, SERVER])
        for _ in range(5):
            await asyncio.sleep(0)
        assert certificates.states() == {CLIENT: "Available", SERVER: "Available"}
        certificates.keep([SERVER])
        assert list(certificates.states()) == [SERVER]
        assert sorted(authority.asked) == [CLIENT, SERVER]

    _with_ca(scenario)


def test_a_request_that_fails_in_its_own_code_lets_nobody_wait(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(authority: Ca, certificates: Certificates) -> None:
        async def broken(identity: SpiffeId) -> Credentials:
            raise LookupError("a bug")

        certificates._issue = broken
        with pytest.raises(CertificateError, match="nobody asks the CA any more"):
            await certificates.get(CLIENT)

    _with_ca(scenario)
    assert "LookupError: a bug" in capsys.readouterr().err


# --- TLS -------------------------------------------------------------------------------------------------------------


def _tls(mine: SpiffeId, check: CheckPeer, *, server: bool) -> Tls:
    own = credentials(mine)
    return Tls(own.server_context if server else own.client_context, server_side=server, check_peer=check)


def _shake(client: Tls, server: Tls) -> tuple[str, str]:
    """Run a handshake; what each end said of the other, or why it failed."""
    results = ["", ""]
    client.start()
    for _ in range(4):
        for place, (speaker, listener) in enumerate(((client, server), (server, client)), start=1):
            try:
                if data := speaker.outgoing():
                    listener.receive(data)
            except TlsError as error:
                results[place % 2] = results[place % 2] or str(error)
    return (results[0] or str(client.peer), results[1] or str(server.peer))


def test_each_end_learns_who_the_other_is() -> None:
    client = _tls(CLIENT, one_of(frozenset({str(SERVER)})), server=False)
    server = _tls(SERVER, in_trust_domain("cluster.local"), server=True)
    assert _shake(client, server) == (str(SERVER), str(CLIENT))
    client.send(b"hello")
    assert server.receive(client.outgoing()) == b"hello"
    client.close()
    assert server.receive(client.outgoing()) == b""
    assert server.ended


def test_a_server_that_is_not_expected_is_refused() -> None:
    client = _tls(CLIENT, one_of(frozenset({str(who("other"))})), server=False)
    seen, _ = _shake(client, _tls(SERVER, in_trust_domain("cluster.local"), server=True))
    assert seen == f"the peer is {SERVER}, expected {who('other')}"
    assert client.peer is None


def test_a_client_of_another_trust_domain_is_refused() -> None:
    client = _tls(who("client", "elsewhere"), one_of(frozenset({str(SERVER)})), server=False)
    _, seen = _shake(client, _tls(SERVER, in_trust_domain("cluster.local"), server=True))
    assert "another trust domain" in seen


def _odd(identity: SpiffeId, *uris: str, ca_flag: bool = False, signs: bool = False) -> Credentials:
    """A certificate that chains to the mesh's root and is not as an SVID must be."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = ca().issuer
    right = issuer.sign(
        identity, key.public_key(), issuer.certificate.not_valid_before_utc, issuer.certificate.not_valid_after_utc
    )
    changed: dict[type[x509.ExtensionType], x509.ExtensionType] = {
        x509.BasicConstraints: x509.BasicConstraints(ca=ca_flag, path_length=None),
        x509.KeyUsage: _usage(signs=signs),
        x509.SubjectAlternativeName: x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]),
    }
    builder = x509.CertificateBuilder(
        right.issuer,
        right.subject,
        key.public_key(),
        right.serial_number,
        right.not_valid_before_utc,
        right.not_valid_after_utc,
    )
    for extension in right.extensions:
        builder = builder.add_extension(changed.get(type(extension.value), extension.value), extension.critical)
    leaf = builder.sign(issuer.key, hashes.SHA256())
    chain = "".join(pem.public_bytes(Encoding.PEM).decode() for pem in (leaf, issuer.certificate))
    return dataclasses.replace(credentials(identity), key_pem=key_pem(key).encode(), chain_pem=chain)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


ODD: dict[str, Callable[[SpiffeId], Credentials]] = {
    "a CA": lambda who: _odd(who, str(who), ca_flag=True, signs=True),
    "a leaf that may sign": lambda who: _odd(who, str(who), signs=True),
    "two identities": lambda who: _odd(who, str(who), "spiffe://cluster.local/ns/shop/sa/admin"),
    "two URIs": lambda who: _odd(who, str(who), "https://shop"),
    "no SPIFFE id": lambda who: _odd(who, "https://shop"),
    "a query": lambda who: _odd(who, f"{who}?x=1"),
    "a percent sign": lambda who: _odd(who, str(who).replace("/sa/", "/sa/%61")),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_a_certificate_that_is_no_svid_is_refused_by_a_server_and_by_a_client(
    odd: Callable[[SpiffeId], Credentials],
) -> None:
    checks: list[SpiffeId] = []
    client = Tls(odd(CLIENT).client_context, server_side=False, check_peer=checks.append)
    server = _tls(SERVER, checks.append, server=True)
    _, seen = _shake(client, server)
    assert ("certificate" in seen, server.peer) == (True, None)
    client = _tls(CLIENT, checks.append, server=False)
    server = Tls(odd(SERVER).server_context, server_side=True, check_peer=checks.append)
    seen, _ = _shake(client, server)
    assert ("certificate" in seen, client.peer) == (True, None)


def test_the_odd_certificates_are_refused_for_what_is_odd_and_for_nothing_else() -> None:
    plain = _odd(CLIENT, str(CLIENT))
    client = Tls(plain.client_context, server_side=False, check_peer=one_of(frozenset({str(SERVER)})))
    assert _shake(client, _tls(SERVER, in_trust_domain("cluster.local"), server=True)) == (str(SERVER), str(CLIENT))


def _context(**changes: Any) -> ssl.SSLContext:
    context = dataclasses.replace(credentials(CLIENT)).client_context
    for name, value in changes.items():
        setattr(context, name, value)
    return context


def _anonymous() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _http1() -> ssl.SSLContext:
    context = _context()
    context.set_alpn_protocols(["http/1.1"])
    return context


STRANGERS = {
    "no certificate": _anonymous,
    "another protocol": _http1,
    "TLS 1.2": lambda: _context(minimum_version=ssl.TLSVersion.TLSv1_2, maximum_version=ssl.TLSVersion.TLSv1_2),
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_server_refuses(stranger: Callable[[], ssl.SSLContext]) -> None:
    server = _tls(SERVER, in_trust_domain("cluster.local"), server=True)
    with pytest.raises(ProtocolError):
        _shake_with_stranger(server, stranger())
    assert server.peer is None


def _shake_with_stranger(server: Tls, context: ssl.SSLContext) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing)
    for _ in range(4):
        with contextlib.suppress(ssl.SSLError):
            client.do_handshake()
        server.receive(outgoing.read())
        incoming.write(server.outgoing())


def test_no_key_is_left_open_or_on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []
    load = ssl.SSLContext.load_cert_chain

    def spied(self: ssl.SSLContext, certfile: str) -> None:
        paths.append(certfile)
        load(self, certfile)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", spied)
    fresh = dataclasses.replace(credentials(who("fresh")))
    assert fresh.client_context is not fresh.server_context
    assert [path.rpartition("/")[0] for path in paths] == ["/proc/self/fd"] * 2


def test_a_task_that_fails_is_told_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        tasks = Tasks()
        done = asyncio.Event()

        async def fail() -> None:
            raise LookupError("a bug")

        tasks.spawn(fail())
        tasks.spawn(done.wait())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done.set()
        await tasks.finished()

    asyncio.run(run())
    said = capsys.readouterr().err
    assert "panic in a task of ztunnel" in said
    assert "LookupError: a bug" in said


def test_a_key_log_holds_each_sessions_secrets_and_no_private_key() -> None:
    memfd = os.memfd_create("keylog")
    try:
        ends = [dataclasses.replace(credentials(who), keylog=f"/proc/self/fd/{memfd}") for who in (CLIENT, SERVER)]
        client = Tls(ends[0].client_context, server_side=False, check_peer=one_of(frozenset({str(SERVER)})))
        server = Tls(ends[1].server_context, server_side=True, check_peer=in_trust_domain("cluster.local"))
        assert _shake(client, server) == (str(SERVER), str(CLIENT))
        lines = os.pread(memfd, 1 << 16, 0).decode().splitlines()
    finally:
        os.close(memfd)
    said = {tuple(line.split()[:2]) for line in lines if not line.startswith("#")}
    assert {label for label, _ in said} >= {
        f"{end}_{what}" for end in ("CLIENT", "SERVER") for what in ("HANDSHAKE_TRAFFIC_SECRET", "TRAFFIC_SECRET_0")
    }
    assert len({random for _, random in said}) == 1, "one session"
    keys = [end.key_pem for end in ends]
    assert not any(b"PRIVATE" in line.encode() or line.encode() in key for line in lines for key in keys)
