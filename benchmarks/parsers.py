"""Every parser that a file or a peer can reach: what it is fed, which exceptions it documents, and what might slow it.

A seed is a good input, which is then changed at random. A shape is an input that grows: a parser whose time is linear
in the size takes eight times as long for the eightfold.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from ipaddress import ip_address

from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from meshlab.apps import language
from meshlab.apps.http1 import MalformedError, ResponseReader
from meshlab.apps.http_echo import HttpEcho, Memory
from meshlab.apps.language import Answer
from meshlab.apps.received import CanaryScanner, Received
from meshlab.controlplane.authority import Authority
from meshlab.errors import ProtocolError, TopologyError
from meshlab.fuzz.bugfile import formatted
from meshlab.model import Peer, SpiffeId, Topology
from meshlab.pki import MeshCA, create_csr, read_csr
from meshlab.proofs import packets, pcapng
from meshlab.proofs.access_log import read_opened
from meshlab.proofs.canary import RANDOM_BYTES, canary, secret_of
from meshlab.proofs.links import Link
from meshlab.proofs.search import Search
from meshlab.proofs.tls import CLIENT_HELLO, TlsRecords
from meshlab.protocols.hbone import Authority as HboneAuthority
from meshlab.protocols.hbone import Framing, SendConnect
from meshlab.protocols.messages import ADDRESS_TYPE, message
from meshlab.protocols.xds import DeltaClient, Node
from meshlab.protocols.xds_server import Snapshot, Stream
from meshlab.protocols.zds import AgentSession, ProxySession, ZdsPod, encode_add
from meshlab.topology import load, load_manifests

Shape = Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """One way in."""

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], tuple[bytes, ...]]
    documented: tuple[type[Exception], ...] = ()
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    """What an input of so many units looks like."""
    unit: int = 2000
    """Units of the smallest input whose time is measured."""
    share: float = 1.0
    """How many inputs it gets, beside the others: the slow ones get fewer."""


def _repeated(head: bytes, piece: bytes, tail: bytes = b"") -> Shape:
    return lambda size: head + piece * size + tail


def _numbered(head: str, line: Callable[[int], str], tail: str = "") -> Shape:
    return lambda size: (head + "".join(map(line, range(size))) + tail).encode()


# --- HTTP and the echo's language ------------------------------------------------------------------------------------

_JSON = Answer(
    peer=Peer(
        pod="shop/server",
        server_port=80,
        address=ip_address("10.0.0.1"),
        port=40404,
        headers={"host": "x", "a": "1, 2"},
    ),
    method="GET",
    path="/",
    body_bytes=3,
    body_sha256="00ff",
    canary="mlc-0f-7.",
).to_json()
_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_POST = b"POST /a?b HTTP/1.1\r\nHost: x\r\nX-Meshlab-Canary: mlc-0f-7.\r\n"
_PIECE_BYTES = 16 * 1024


def _pieces(data: bytes) -> list[bytes]:
    """As a socket hands them out."""
    return [data[at : at + _PIECE_BYTES] for at in range(0, len(data), _PIECE_BYTES)]


def _read_response(data: bytes) -> None:
    reader = ResponseReader()
    for piece in _pieces(data):
        reader.feed(piece)
    reader.end()
    assert len(reader.body.kept) <= reader.body.keeps


def _read_requests(data: bytes) -> None:
    memory = Memory(most=1 << 20)
    echo = HttpEcho(Peer(pod="shop/a", server_port=80, address=ip_address("10.0.0.1"), port=1), memory)
    for piece in _pieces(data):
        echo.receive(piece)
        memory.held = echo.held


def _sniff(data: bytes) -> None:
    language.sniff(data[: language.LINE_BYTES])
    language.may_greet(data)
    language.read_greeting(data)


def _scan(data: bytes) -> None:
    scanner = CanaryScanner(Received(most=100))
    for piece in _pieces(data):
        scanner.feed(piece)


_HTTP = (
    Parser(
        name="HTTP response",
        run=_read_response,
        seeds=lambda: (
            _OK + b"Content-Type: application/json\r\nContent-Length: 3\r\n\r\nabc",
            b"HTTP/1.1 100 Continue\r\n\r\n" + _OK + b"Content-Length: 0\r\n\r\n",
            b"HTTP/1.0 404 Not Found\r\nA: b\r\na: c\r\n\r\nto the end",
        ),
        documented=(MalformedError,),
        shapes={
            "many headers": _repeated(_OK, b"A: b\r\n", b"\r\n"),
            "one long header": _repeated(_OK + b"A: ", b"a \t ", b"\0\r\n\r\n"),
            "a long line": _repeated(b"HTTP/1.1 200 ", b"x\r"),
            "interim responses": _repeated(b"", b"HTTP/1.1 102 \r\n\r\n"),
        },
    ),
    Parser(
        name="HTTP chunks",
        run=_read_response,
        seeds=lambda: (_CHUNKED + b"5;a=b\r\nhello\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n",),
        documented=(MalformedError,),
        shapes={
            "small chunks": _repeated(_CHUNKED, b"1\r\na\r\n"),
            "a long extension": _repeated(_CHUNKED + b"1;", b"a"),
            "a long trailer": _repeated(_CHUNKED + b"0\r\n", b"A: b\r\n"),
        },
    ),
    Parser(
        name="HTTP request",
        run=_read_requests,
        seeds=lambda: (
            _POST + b"X-Meshlab-Status: 503\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            _POST + b"X-Meshlab-Echo: body\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            _POST + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: 9\r\n\r\nabc",
            b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"HEAD / HTTP/1.0\r\nUpgrade: h2c\r\n\r\n",
        ),
        shapes={
            "many headers": _repeated(_POST, b"A: b\r\n", b"\r\n"),
            "many requests": _repeated(b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            "small chunks": _repeated(_POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        },
        unit=500,
    ),
    Parser(
        name="the echo's first line",
        run=_sniff,
        seeds=lambda: (b"MESHLAB echo mlc-0f-7.\nhello", b"MESHLAB shop/a 10.0.0.1 40404", b"GET / HTTP/1.1\r\n"),
        shapes={"spaces": _repeated(b"MESHLAB ", b" a"), "digits": _repeated(b"MESHLAB a 10.0.0.1 ", b"9")},
        unit=100_000,
    ),
    Parser(
        name="the echo's answer",
        run=Answer.from_json,
        seeds=lambda: (_JSON.encode(),),
        documented=(ValueError,),
        shapes={
            "deep nesting": _repeated(b"", b'{"a":'),
            "many headers": _numbered('{"peer":{},"headers":{', lambda n: f'"{n}":"a",', '"":""}}'),
            "a long number": _repeated(b"", b"9"),
        },
        unit=4000,
    ),
    Parser(
        name="the echo's canary scanner",
        run=_scan,
        seeds=lambda: (b"a mlc-" + b"0f" * 16 + b"-7. b",),
        shapes={
            "marks": _repeated(b"", b"mlc-"),
            "canaries": _repeated(b"", b"mlc-" + b"0f" * 16 + b"-7."),
            "canaries without an end": _repeated(b"", b"mlc-" + b"0f" * 16 + b"-777777777777"),
        },
        unit=10_000,
    ),
)

# --- proofs ----------------------------------------------------------------------------------------------------------

_SECRET = secret_of(bytes(range(RANDOM_BYTES)))
_RECORD = json.dumps(
    {
        "level": "debug",
        "time": "2026-08-01T12:00:00.000001Z",
        "message": "connection opened",
        "direction": "inbound",
        "src.addr": "[fd00::1]:40404",
        "src.identity": "spiffe://cluster.local/ns/shop/sa/client",
        "dst.hbone_addr": "10.0.0.2:8080",
    }
).encode()


def _read_log(data: bytes) -> None:
    for record in read_opened(data.decode(errors="replace")):
        assert record.at_ns is None or record.at_ns < 1e30
        assert 0 <= record.destination_port + record.source_port < 200_000
        assert (record.source_identity + record.destination_identity).isprintable()


def _read_tls(data: bytes) -> None:
    records = TlsRecords(CLIENT_HELLO)
    for piece in _pieces(data):
        records.feed(piece)


def _search(data: bytes) -> None:
    search = Search(_SECRET)
    search.begin(len(data))
    for _ in search.everywhere(data):
        pass


def _parse_frame(data: bytes) -> None:
    head = packets.parse(data, 0, len(data))
    assert head.payload <= len(data)
    assert head.end <= len(data)


def _frames() -> tuple[bytes, ...]:
    tcp = bytes.fromhex("9dd41f900000000100000002501800000000000068656c6c6f")
    ipv4 = bytes.fromhex("4500002d000040004006000000000000") + bytes([10, 0, 0, 1, 10, 0, 0, 2])
    ipv6 = bytes.fromhex("6000000000210040") + bytes(32) + bytes.fromhex("0600000000000000")
    return (bytes(12) + b"\x08\x00" + ipv4[:20] + tcp, bytes(12) + b"\x86\xdd" + ipv6 + tcp)


def _pcapng() -> tuple[bytes, ...]:
    link = Link("node-1", 2, "shop/a")
    frames = [(link, True, 10**18, frame) for frame in _frames()]
    return (b"".join(pcapng.write([link], frames, comment="a", drops={link: 1}, secrets=b"CLIENT_RANDOM")),)


_PROOFS = (
    Parser(
        name="access log",
        run=_read_log,
        seeds=lambda: (_RECORD, _RECORD + b"\n" + _RECORD.replace(b"inbound", b"outbound")),
        shapes={
            "deep nesting": _repeated(b'{"message":"connection opened","a":', b"["),
            "many records": _repeated(b"", _RECORD + b"\n"),
            "a long line": _repeated(b'"connection opened"', b"a"),
        },
    ),
    Parser(
        name="TLS records",
        run=_read_tls,
        seeds=lambda: (bytes.fromhex("1603010005010000012a") + bytes.fromhex("17030300020102"),),
        shapes={"small records": _repeated(bytes.fromhex("160301000101"), bytes.fromhex("170303000101"))},
    ),
    Parser(
        name="canary search",
        run=_search,
        seeds=lambda: (
            b"a " + canary(_SECRET, 7) + b" b",
            canary(_SECRET, 7).hex().encode() + base64.b64encode(canary(_SECRET, 8)),
            b"x" + gzip.compress(b"a " + canary(_SECRET, 7), mtime=0),
        ),
        shapes={
            "gzip magic": _repeated(b"", b"\x1f\x8b\x08"),
            "prefixes": _repeated(b"", _SECRET),
            "prefixes in hex": _repeated(b"", _SECRET.hex().encode()),
            "a bomb": lambda size: gzip.compress(bytes(size * 1000), mtime=0),
        },
    ),
    Parser(name="frames", run=_parse_frame, seeds=_frames),
    Parser(name="pcapng", run=pcapng.read, seeds=_pcapng, documented=(ValueError,)),
)

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
    Authority(_ca().issuer, "cluster.local").create(request, _NOW)


_IDENTITIES = (
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
            "lines": _repeated(b"-----BEGIN CERTIFICATE REQUEST-----\n", b"AAAA\n"),
            "beginnings": _repeated(b"", b"-----BEGIN CERTIFICATE REQUEST-----\n"),
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
        name="SPIFFE ID",
        run=lambda data: SpiffeId.parse(data.decode("latin-1")),
        seeds=lambda: (str(_CLIENT).encode(),),
        documented=(ValueError,),
        shapes={"segments": _repeated(b"spiffe://a/ns/", b"."), "domains": _repeated(b"spiffe://", b"a/ns/")},
        unit=100_000,
    ),
)

# --- files -----------------------------------------------------------------------------------------------------------

_LAB_HEAD = "apiVersion: meshlab.dev/v1alpha1\nkind: Lab\nmetadata: {name: t}\nspec:\n"
_LAB = (
    _LAB_HEAD
    + """\
  nodes: [node-1]
  readyTimeoutSeconds: 30
  images: {"*/web:*": {run: [sleep, "1"]}}
  pods:
    shop/a: {node: node-1, labels: {app: a}, serviceAccount: a}
    shop/b: {ports: [8080, {containerPort: 81, name: web}], labels: &l {app: b}}
  expect:
    - {from: shop/a, to: "shop/b:8080", verdict: allow, family: 4}
  steps:
    - {call: {from: shop/a, to: "shop/b:81", kind: tcp}, expect: allow}
    - apply: [{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: q}, spec: {}}]
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
"""
)
_DEPLOYMENT = """\
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: w, namespace: shop}
spec: {replicas: 2, template: {metadata: {labels: {app: b}}, spec: {containers: [{name: w, image: a/curlimages/curl}]}}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: b}, clusterIP: 10.96.0.9, ports: [{port: 80, targetPort: web}]}
"""
_POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  selector: {matchLabels: {app: b}}
  action: ALLOW
  rules:
    - from: [{source: {principals: ["*/sa/a"], ipBlocks: ["10.0.0.0/8"]}}]
      to: [{operation: {ports: ["8080"]}}]
      when: [{key: source.ip, values: ["fd00::/8"]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: m, namespace: shop}
spec: {selector: {matchLabels: {app: b}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}
"""
_YAML_SHAPES: Mapping[str, Shape] = {
    "brackets": _repeated(b"a: ", b"[" * 10),  # from some length on: ruamel.yaml looks ahead by 1024 characters
    "dashes": _repeated(b"", b"- "),
    "a long scalar": _repeated(b"a: ", b"word "),
    "a long quoted scalar": _repeated(b'a: "', b"\\x41", b'"'),
    "many keys": _numbered("", lambda n: f"k{n}: v\n"),
    "many keys in a line": _numbered(f"{_LAB_HEAD}  pods: {{a/b: {{labels: {{", lambda n: f"k{n}: v, ", "z: z}}}\n"),
    "many documents": _repeated(b"", b"---\na: b\n"),
    "anchors": _numbered("a: &x [b]\n", lambda n: f"k{n}: *x\n"),
    "an alias bomb": _numbered("a0: &a0 [x]\n", lambda n: f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n"),
}


@cache
def _mesh_of_files() -> str:
    return _LAB + _DEPLOYMENT + "---\n" + _POLICY


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


@cache
def _topology() -> Topology:
    return load(_mesh_of_files(), "t.yaml")


def _apply(data: bytes) -> None:
    load_manifests(_text(data), "t.yaml", _topology())


_FILES = (
    Parser(
        name="Lab file",
        run=lambda data: load(_text(data), "t.yaml"),
        seeds=lambda: (_LAB.encode(), (_LAB + _DEPLOYMENT).encode()),
        documented=(TopologyError,),
        shapes={
            **_YAML_SHAPES,
            "pods": _numbered(f"{_LAB_HEAD}  pods:\n", lambda n: f"    shop/p{n}: {{}}\n"),
            "ports": _numbered(f"{_LAB_HEAD}  pods:\n    a/b: {{ports: [", lambda n: f"{n + 1},", "65000]}\n"),
            "expectations": _numbered(
                f"{_LAB_HEAD}  pods: {{a/a: {{}}, a/b: {{ports: [80]}}}}\n  expect:\n",
                lambda n: '    - {from: a/a, to: "a/b:80", verdict: allow}\n',
            ),
            "mistakes": _numbered(_LAB_HEAD, lambda n: f"  wrong{n}: {{}}\n"),
        },
        unit=200,
        share=0.1,
    ),
    Parser(
        name="manifests",
        run=_apply,
        seeds=lambda: (_POLICY.encode(),),
        documented=(TopologyError,),
        shapes={
            "policies": _numbered(
                "", lambda n: "---\n" + _POLICY.partition("---")[0].replace("name: p", f"name: p{n}")
            ),
            "mistakes": _numbered("", lambda n: f"---\nkind: K{n}\n"),
        },
        unit=10,
        share=0.1,
    ),
    Parser(
        name="bug file",
        run=lambda data: formatted(_text(data), "t.yaml"),
        seeds=lambda: (_mesh_of_files().encode(),),
        documented=(TopologyError,),
        shapes={name: _YAML_SHAPES[name] for name in ("many keys", "many keys in a line", "dashes")},
        unit=200,
        share=0.03,
    ),
)

# --- protocols -------------------------------------------------------------------------------------------------------


_NODE = Node(name="node-1", instance_ip="10.0.0.1", pod_name="ztunnel", pod_namespace="istio-system")


def _xds_requests() -> tuple[bytes, ...]:
    return tuple(request.SerializeToString() for request in DeltaClient(_NODE).start())


def _serve_xds(data: bytes) -> None:
    request = message("envoy.service.discovery.v3.DeltaDiscoveryRequest").FromString(data)
    stream = Stream(Snapshot.of({}))
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
    for piece in _pieces(data):
        framing.receive(piece)
        framing.take()


_PROTOCOLS = (
    Parser(name="xDS request", run=_serve_xds, seeds=_xds_requests, documented=(ProtocolError, DecodeError)),
    Parser(name="xDS response", run=_take_xds, seeds=_xds_responses, documented=(ProtocolError, DecodeError)),
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
        shapes={"colons": _repeated(b"", b":"), "digits": _repeated(b"a:", b"9"), "dots": _repeated(b"", b"1.", b":1")},
        unit=20_000,
    ),
)

PARSERS = (*_HTTP, *_PROOFS, *_IDENTITIES, *_FILES, *_PROTOCOLS)
