"""What a node proxy and the lab's control plane, CA and agent send each other: xDS, ZDS, HBONE, certificates."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError

from benchmarks.parsers.files import mesh_of_files
from benchmarks.parsers.parser import Parser, pieces, repeated
from meshlab.controlplane.authority import Authority
from meshlab.errors import ProtocolError
from meshlab.model import SpiffeId
from meshlab.pki import MeshCA, create_csr, read_csr
from meshlab.protocols.hbone import Authority as HboneAuthority
from meshlab.protocols.hbone import Framing, SendConnect
from meshlab.protocols.messages import ADDRESS_TYPE, message
from meshlab.protocols.xds import DeltaClient, Node
from meshlab.protocols.xds_server import Snapshot, Stream
from meshlab.protocols.zds import AgentSession, ProxySession, ZdsPod, encode_add
from meshlab.proxykit.credentials import Credentials
from meshlab.proxykit.tls import spiffe_id
from meshlab.translate import resources
from meshlab.ztunnel.state import State

# --- identities ------------------------------------------------------------------------------------------------------

_CLIENT = SpiffeId("cluster.local", "shop", "client")
_NOW = datetime(2026, 8, 1, tzinfo=UTC)


@cache
def _ca() -> MeshCA:
    return MeshCA()


@cache
def _csr() -> str:
    return create_csr(_CLIENT, ec.derive_private_key(7, ec.SECP256R1()))


def _der() -> tuple[bytes, ...]:
    return (base64.b64decode("".join(_csr().splitlines()[1:-1])),)


def _read_der(data: bytes) -> None:
    """A mutation of the PEM is mostly no base64 any more."""
    text = base64.encodebytes(data).decode()
    read_csr(f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n")


def _certificate_requests() -> tuple[bytes, ...]:
    request = message("istio.v1.auth.IstioCertificateRequest")(csr=_csr(), validity_duration=2**62)
    request.metadata.fields["ImpersonatedIdentity"].string_value = str(_CLIENT)
    return (request.SerializeToString(),)


def _sign(data: bytes) -> None:
    request = message("istio.v1.auth.IstioCertificateRequest").FromString(data)
    Authority(_ca().issuer, "cluster.local").create(request, _NOW, "ztunnel@node-1")


def _certificates() -> tuple[bytes, ...]:
    leaf = _ca().issuer.sign(_CLIENT, read_csr(_csr()).key, _NOW, _NOW + timedelta(hours=1))
    return (leaf.public_bytes(Encoding.DER),)


def _take_certificates(data: bytes) -> None:
    """As a node proxy takes the CA's answer."""
    answer = message("istio.v1.auth.IstioCertificateResponse").FromString(data)
    Credentials.issued(_CLIENT, b"", list(answer.cert_chain))


def _chains() -> tuple[bytes, ...]:
    chain = _ca().issuer.issue(_CLIENT, read_csr(_csr()).key, now=_NOW)
    return (message("istio.v1.auth.IstioCertificateResponse")(cert_chain=chain).SerializeToString(),)


_IDENTITIES = (
    Parser(
        name="peer certificate",
        run=spiffe_id,
        seeds=_certificates,
        documented=(ProtocolError,),
        shapes={"a long one": lambda size: b"\x30\x84" + (size * 4).to_bytes(4, "big") + b"\x30\x80\x02\x01" * size},
    ),
    Parser(
        name="CSR",
        run=_read_der,
        seeds=_der,
        documented=(ProtocolError,),
        shapes={"a long one": lambda size: b"\x30\x84" + (size * 4).to_bytes(4, "big") + b"\x30\x80\x02\x01" * size},
    ),
    Parser(
        name="CSR as PEM",
        run=lambda data: read_csr(data.decode(errors="replace")),
        seeds=lambda: (_csr().encode(),),
        documented=(ProtocolError,),
        shapes={
            "lines": repeated(b"-----BEGIN CERTIFICATE REQUEST-----\n", b"AAAA\n"),
            "beginnings": repeated(b"", b"-----BEGIN CERTIFICATE REQUEST-----\n"),
        },
    ),
    Parser(
        name="certificate request",
        run=_sign,
        seeds=_certificate_requests,
        documented=(ProtocolError, DecodeError),
        share=0.3,
    ),
    Parser(
        name="certificate answer",
        run=_take_certificates,
        seeds=_chains,
        documented=(ValueError, DecodeError),
    ),
    Parser(
        name="SPIFFE ID",
        run=lambda data: SpiffeId.parse(data.decode("latin-1")),
        seeds=lambda: (str(_CLIENT).encode(),),
        documented=(ValueError,),
        shapes={"segments": repeated(b"spiffe://a/ns/", b"."), "domains": repeated(b"spiffe://", b"a/ns/")},
        unit=100_000,
    ),
)

# --- protocols -------------------------------------------------------------------------------------------------------

_NODE = Node(name="node-1", instance_ip="10.0.0.1", pod_name="ztunnel", pod_namespace="istio-system")


def _xds_requests() -> tuple[bytes, ...]:
    return tuple(request.SerializeToString() for request in DeltaClient(_NODE).start())


def _serve_xds(data: bytes) -> None:
    request = message("envoy.service.discovery.v3.DeltaDiscoveryRequest").FromString(data)
    stream = Stream(Snapshot.of({}), "ztunnel@node-1")
    stream.receive(request)
    stream.receive(request)


def _xds_responses() -> tuple[bytes, ...]:
    workload = message("istio.workload.Address")()
    workload.workload.uid = "a"
    response = message("envoy.service.discovery.v3.DeltaDiscoveryResponse")(type_url=ADDRESS_TYPE, nonce="1")
    resource = response.resources.add(name="a", version="1")
    resource.resource.type_url, resource.resource.value = ADDRESS_TYPE, workload.SerializeToString()
    return (response.SerializeToString(),)


def _take_xds(data: bytes) -> None:
    client = DeltaClient(_NODE)
    client.start()
    client.answer(client.receive(message("envoy.service.discovery.v3.DeltaDiscoveryResponse").FromString(data)))


def _served() -> tuple[bytes, ...]:
    """A push with every kind of resource: workloads, services and policies."""
    mesh = mesh_of_files().mesh
    served = resources(mesh, frozenset(pod.key for pod in mesh.pods))
    return tuple(_response(type_url, named) for type_url, named in served.items())


def _response(type_url: str, named: Mapping[str, Any]) -> bytes:
    response = message("envoy.service.discovery.v3.DeltaDiscoveryResponse")(type_url=type_url, nonce="1")
    for name, body in named.items():
        resource = response.resources.add(name=name, version="1")
        resource.resource.type_url, resource.resource.value = type_url, body.SerializeToString()
    return bytes(response.SerializeToString())


def _apply_xds(data: bytes) -> None:
    """As the reference ztunnel takes a push: what it cannot use it refuses by name."""
    client, state = DeltaClient(_NODE), State()
    client.start()
    update = client.receive(message("envoy.service.discovery.v3.DeltaDiscoveryResponse").FromString(data))
    for why in state.apply(update).values():
        assert why


_POD = ZdsPod(uid="1", name="a", namespace="shop", service_account="a")


def _serve_zds(data: bytes) -> None:
    session = AgentSession([_POD])
    session.receive(ProxySession.hello())
    session.receive(data)
    session.receive(data)


def _take_zds(data: bytes) -> None:
    session = ProxySession()
    session.receive(data, fds=1)
    session.receive(data, fds=1)


def _client_bytes() -> tuple[bytes, ...]:
    framing = Framing(client=True)
    framing.send(SendConnect(framing.next_stream(), "10.0.0.2:8080"))
    return (framing.take(),)


def _serve_hbone(data: bytes) -> None:
    framing = Framing(client=False)
    for piece in pieces(data):
        framing.receive(piece)
        framing.take()


_PROTOCOLS = (
    Parser(name="xDS request", run=_serve_xds, seeds=_xds_requests, documented=(ProtocolError, DecodeError)),
    Parser(name="xDS response", run=_take_xds, seeds=_xds_responses, documented=(ProtocolError, DecodeError)),
    Parser(
        name="xDS resources",
        run=_apply_xds,
        seeds=_served,
        documented=(ProtocolError, DecodeError),
    ),
    Parser(
        name="ZDS answer",
        run=_serve_zds,
        seeds=lambda: (ProxySession.ack(),),
        documented=(ProtocolError,),
    ),
    Parser(name="ZDS request", run=_take_zds, seeds=lambda: (encode_add(_POD),), documented=(ProtocolError,)),
    Parser(
        name="HBONE frames",
        run=_serve_hbone,
        seeds=_client_bytes,
        documented=(ProtocolError,),
        shapes={
            "pings": lambda size: _client_bytes()[0] + bytes.fromhex("0000080600000000000000000000000000") * size,
            "settings": lambda size: _client_bytes()[0] + bytes.fromhex("000000040000000000") * size,
        },
    ),
    Parser(
        name="HBONE authority",
        run=lambda data: HboneAuthority.parse(data.decode("latin-1")),
        seeds=lambda: (b"10.0.0.2:8080", b"[fd00::2]:8080", b"web.shop:80"),
        documented=(ValueError,),
        shapes={"colons": repeated(b"", b":"), "digits": repeated(b"a:", b"9"), "dots": repeated(b"", b"1.", b":1")},
        unit=20_000,
    ),
)

PARSERS = (*_IDENTITIES, *_PROTOCOLS)
