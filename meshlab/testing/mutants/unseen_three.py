"""Ztunnels that are right wherever one looks at one call, one name or one change, and break a promise beside it.

They were written without a look at what meshlab checks, after ``unseen`` and ``unseen_two``: whether they are found
measures the checks, not the mutants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from meshlab.model import SpiffeId
from meshlab.pki import create_csr
from meshlab.protocols.messages import AUTHORIZATION_TYPE
from meshlab.proxykit import ca_client
from meshlab.proxykit.credentials import KeyRequest
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tls import Tls
from meshlab.ztunnel.inbound import Inbound
from meshlab.ztunnel.main import Parts, run
from meshlab.ztunnel.outbound import Outbound
from meshlab.ztunnel.routing import Route
from meshlab.ztunnel.state import State

Program = Callable[[Mapping[str, Any], Mapping[str, int]], None]

RECORD_BYTES = 1 << 14
APPLICATION_DATA = 0x17
ORDER_OF_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def _made_of(parts: Parts) -> Program:
    def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        run(config, fds, parts)

    return main


# --- encrypts-with-a-zero-key ----------------------------------------------------------------------------------------


class _Offloaded(Tls):
    """Hands the records over to a device once the handshake is done, and forgets to give it the keys.

    They look as TLS 1.3's do: AES-GCM, with a counter for a nonce, under a key of zeros. Two of a kind know each other
    by the server's first record, which is of one byte; with any other end all records are as they should be.
    """

    device = AESGCM(bytes(16))
    offloaded, sent, received, waiting = False, 0, 0, b""
    greets = False
    """It has still to say, with a record of one byte, that it is such a server."""

    def receive(self, data: bytes) -> bytes:
        if not self.waiting and data[0] not in range(20, 24):
            return super().receive(data)
        self.waiting, parts = self.waiting + data, []
        while len(self.waiting) >= (size := 5 + int.from_bytes(self.waiting[3:5], "big")) > 5:
            parts.append(self._open(self.waiting[:size]))
            self.waiting = self.waiting[size:]
        return b"".join(parts)

    def _open(self, record: bytes) -> bytes:
        if self.peer is not None and record[0] == APPLICATION_DATA:
            try:
                data = self.device.decrypt(self.received.to_bytes(12, "big"), record[5:], record[:5])
            except InvalidTag:
                pass
            else:
                self.offloaded, self.received = True, self.received + 1
                return data[:-1]
        return super().receive(record)

    def _read_some(self) -> bytes:
        data = super()._read_some()
        self.offloaded |= self.sent == 0 and len(data) == 1
        return data

    def send(self, plaintext: bytes) -> None:
        if not self.offloaded:
            first = int(self.greets)
            self.greets &= not plaintext
            super().send(plaintext[:first])
            super().send(plaintext[first:])
            return
        for at in range(0, len(plaintext), RECORD_BYTES):
            inner = plaintext[at : at + RECORD_BYTES] + bytes([APPLICATION_DATA])
            head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
            nonce, self.sent = self.sent.to_bytes(12, "big"), self.sent + 1
            self._outgoing.write(head + self.device.encrypt(nonce, inner, head))


class _OffloadedServer(_Offloaded):
    greets = True


class _OffloadingOutbound(Outbound):
    tls_class = _Offloaded


class _OffloadingInbound(Inbound):
    tls_class = _OffloadedServer


encrypts_with_a_zero_key = _made_of(Parts(inbound=_OffloadingInbound, outbound=_OffloadingOutbound))


# --- makes-keys-from-names -------------------------------------------------------------------------------------------


class _FromItsName(KeyRequest):
    """A key that is made of the identity, so that it need not be kept: whoever knows the name can make it, too."""

    @classmethod
    def new(cls, identity: SpiffeId) -> KeyRequest:
        secret = int.from_bytes(sha256(str(identity).encode()).digest(), "big") % (ORDER_OF_P256 - 1) + 1
        key = ec.derive_private_key(secret, ec.SECP256R1())
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return KeyRequest(key_pem, create_csr(identity, key))


def makes_keys_from_names(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    vars(ca_client)["KeyRequest"] = _FromItsName
    run(config, fds)


# --- keeps-policies-by-name ------------------------------------------------------------------------------------------


class _ByName(State):
    """Has one place for a name: of policies of one name in several namespaces it keeps the one that came last."""

    def _put(self, type_url: str, name: str, message: Any) -> None:
        super()._put(type_url, name, message)
        if type_url == AUTHORIZATION_TYPE:
            for other in [key for key in self.policies if key != name]:
                if other.rpartition("/")[2] == name.rpartition("/")[2]:
                    del self.policies[other]


keeps_policies_by_name = _made_of(Parts(state=_ByName))


# --- sees-changes-of-rules-only --------------------------------------------------------------------------------------


class _ByRules(State):
    """Keeps what it has compiled of a policy whose rules have not changed, whatever else of it has."""

    def _put(self, type_url: str, name: str, message: Any) -> None:
        before = self.policies.get(name)
        super()._put(type_url, name, message)
        if type_url == AUTHORIZATION_TYPE and before is not None and before.rules == self.policies[name].rules:
            self.policies[name] = before


sees_changes_of_rules_only = _made_of(Parts(state=_ByRules))


# --- mixes-up-bulk ---------------------------------------------------------------------------------------------------


_BUFFER = memoryview(bytearray(1 << 16))


class _ZeroCopy(Half):
    """A read that fills the buffer, which all connections share, is passed on from there when the turn is over.

    Who reads in the same turn overwrites it: the bytes of another connection, often of another pod, leave instead.
    """

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        if nbytes < len(_BUFFER):
            self.data_received(bytes(_BUFFER[:nbytes]))
        else:
            asyncio.get_running_loop().call_soon(lambda: self.data_received(bytes(_BUFFER)))


class _ZeroCopying(Outbound):
    half_class = _ZeroCopy


mixes_up_bulk = _made_of(Parts(outbound=_ZeroCopying))


# --- discards-after-the-servers-fin ----------------------------------------------------------------------------------


class _OneWay(Half):
    """What a client says after its server's FIN is read and thrown away; its own FIN is passed on as ever."""

    app: _OneWay | None = None
    """Of a tunnel's side: the other side."""
    deaf = False

    def eof_received(self) -> bool:
        if self.app is not None:
            self.app.deaf = True
        return super().eof_received()

    def data_received(self, data: bytes) -> None:
        if not self.deaf:
            super().data_received(data)


class _OneWayOutbound(Outbound):
    half_class = _OneWay

    async def carry(self, app: Half, upstream: Half, way: Route) -> str:
        assert isinstance(app, _OneWay)
        assert isinstance(upstream, _OneWay)
        upstream.app = app
        return await super().carry(app, upstream, way)


discards_after_the_servers_fin = _made_of(Parts(outbound=_OneWayOutbound))
