"""Certificates over time: renewed while the CA is away, and from one root to the next without a failed handshake."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from ztunnel_world import who

from meshlab.controlplane.authority import Authority
from meshlab.model import SpiffeId
from meshlab.pki import Issuer, MeshCA, create_root
from meshlab.protocols.messages import message
from meshlab.proxykit.certificates import CertificateError, Certificates
from meshlab.proxykit.credentials import Credentials, KeyRequest
from meshlab.proxykit.tasks import Tasks
from meshlab.proxykit.tls import Tls, TlsError, in_trust_domain, one_of

CLIENT, SERVER = who("client"), who("server")
TTL = timedelta(hours=1)


class Mesh:
    """A real CA, two proxies' certificates, and a clock that stands still until a certificate is due."""

    def __init__(self, ca: MeshCA) -> None:
        self.authority = Authority(ca.issuer, "cluster.local")
        self.now = datetime.now(UTC).replace(microsecond=0)  # certificates have whole seconds
        self.away = False
        self.pauses: list[tuple[float, asyncio.Future[None]]] = []
        self.paused = asyncio.Event()
        self.tasks = Tasks()
        rng = random.Random(0)  # noqa: S311  # a test's
        self.proxies = {
            who: Certificates(self.issue, lambda: self.now.timestamp(), self.pause, rng, self.tasks)
            for who in (CLIENT, SERVER)
        }

    async def issue(self, identity: SpiffeId) -> Credentials:
        if self.away:
            raise CertificateError("CA: UNAVAILABLE")
        asked = KeyRequest.new(identity)
        request = message("istio.v1.auth.IstioCertificateRequest")(
            csr=asked.csr_pem,
            validity_duration=int(TTL.total_seconds()),
            metadata={"fields": {"ImpersonatedIdentity": {"string_value": str(identity)}}},
        )
        _, chain = self.authority.create(request, self.now, "ztunnel@node-1")
        return Credentials.issued(identity, asked.key_pem, chain)

    async def pause(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self.pauses.append((seconds, future))
        self.paused.set()
        await future

    async def renew(self, number: int) -> None:
        """Let one proxy ask for its certificate again; ``number`` is the order in which they paused."""
        _, future = self.pauses[number]
        self.paused.clear()
        future.set_result(None)
        await self.paused.wait()

    async def handshake(self) -> None:
        """Shake hands with what each proxy has now.

        Raises:
            TlsError: one refused the other.
        """
        mine = await self.proxies[CLIENT].get(CLIENT)
        theirs = await self.proxies[SERVER].get(SERVER)
        client = Tls(mine.client_context, server_side=False, check_peer=one_of(frozenset({str(SERVER)})))
        server = Tls(theirs.server_context, server_side=True, check_peer=in_trust_domain("cluster.local"))
        client.start()
        for _ in range(3):
            server.receive(client.outgoing())
            client.receive(server.outgoing())
        assert (client.peer, server.peer) == (SERVER, CLIENT)


def _in_a_mesh(scenario: Callable[[Mesh], Awaitable[None]], ca: MeshCA) -> None:
    async def run() -> None:
        mesh = Mesh(ca)
        async with asyncio.timeout(20):
            await scenario(mesh)
        await mesh.tasks.cancel()

    asyncio.run(run())


def test_every_handshake_holds_while_one_root_takes_anothers_place_in_whatever_order_proxies_renew() -> None:
    ca = MeshCA()
    rotation = ca.rotate()
    for order in itertools.product([(0, 1), (1, 0)], repeat=3):

        async def scenario(mesh: Mesh, order: tuple[tuple[int, int], ...] = order) -> None:
            await mesh.handshake()
            due = 0
            for issuer, turns in zip((rotation.trusting, rotation.signing, rotation.finished), order, strict=True):
                mesh.authority.rotate(Issuer.from_pem(issuer.to_pem()))
                assert len(mesh.authority.behind()) == 2
                for turn in turns:
                    await mesh.renew(due + turn)
                    await mesh.handshake()
                assert mesh.authority.behind() == ()
                due += 2
            newest = (await mesh.proxies[CLIENT].get(CLIENT)).roots_pem
            assert newest.strip() == rotation.new.cert_pem.bytes().decode().strip()

        _in_a_mesh(scenario, ca)


def test_a_rotation_that_signs_with_a_root_that_nobody_trusts_yet_breaks_a_handshake() -> None:
    """The control of the test above: it could have failed."""
    ca = MeshCA()

    async def scenario(mesh: Mesh) -> None:
        await mesh.handshake()
        mesh.authority.rotate(ca.rotate().signing)
        await mesh.renew(0)
        assert mesh.authority.behind() == ((str(SERVER), "ztunnel@node-1"),)
        with pytest.raises(TlsError):
            await mesh.handshake()

    _in_a_mesh(scenario, ca)


def test_a_new_root_is_as_long_valid_as_the_old_one_and_has_another_name() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    old = create_root(start, start + timedelta(days=1))
    certificates = [x509.load_pem_x509_certificate(ca.cert_pem.bytes()) for ca in (old, old.rotate().new)]
    assert len({certificate.subject for certificate in certificates}) == 2
    assert {certificate.not_valid_before_utc for certificate in certificates} == {start}
    assert {certificate.not_valid_after_utc for certificate in certificates} == {start + timedelta(days=1)}


def test_a_ca_that_is_away_is_asked_again_by_the_time_at_which_the_certificate_expires() -> None:
    async def scenario(mesh: Mesh) -> None:
        await mesh.proxies[CLIENT].get(CLIENT)
        mesh.away = True
        mesh.now += TTL - timedelta(seconds=5)
        last = len(mesh.pauses) - 1
        for _ in range(3):
            await mesh.renew(last)
            last += 1
        first, second, third = (seconds for seconds, _ in mesh.pauses[-3:])
        assert first == pytest.approx(1, rel=0.2)
        assert second == pytest.approx(2, rel=0.2)
        assert third == pytest.approx(4, rel=0.2)
        await mesh.renew(last)
        assert mesh.pauses[-1][0] == pytest.approx(5), "and not 8: it expires then"
        assert mesh.proxies[CLIENT].states()[CLIENT] == "Available"
        mesh.now += timedelta(seconds=5)
        await mesh.renew(last + 1)
        assert mesh.pauses[-1][0] == pytest.approx(16, rel=0.2)
        assert mesh.proxies[CLIENT].states()[CLIENT] == "Unavailable: it has expired; CA: UNAVAILABLE"
        with pytest.raises(CertificateError, match="UNAVAILABLE"):
            await mesh.proxies[CLIENT].get(CLIENT)
        mesh.away = False
        await mesh.renew(last + 2)
        assert (await mesh.proxies[CLIENT].get(CLIENT)).not_after_s > mesh.now.timestamp()

    _in_a_mesh(scenario, MeshCA())


def test_a_pause_never_exceeds_150_s() -> None:
    async def scenario(mesh: Mesh) -> None:
        mesh.away = True
        with pytest.raises(CertificateError):
            await mesh.proxies[CLIENT].get(CLIENT)
        for number in range(12):
            await mesh.renew(number)
        assert max(seconds for seconds, _ in mesh.pauses) == 150

    _in_a_mesh(scenario, MeshCA())
