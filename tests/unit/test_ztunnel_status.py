"""What a ztunnel says of itself: readiness, its configuration, and the access log in Istio's words."""

from __future__ import annotations

import asyncio
import json
import random
from ipaddress import ip_address
from typing import Any

import pytest
from ztunnel_world import named, policy, state_of, who, workload

from meshlab.model import SpiffeId
from meshlab.protocols.hbone import Target
from meshlab.proxykit import status
from meshlab.proxykit.certificates import CertificateError, Certificates
from meshlab.proxykit.credentials import Credentials
from meshlab.proxykit.tasks import Tasks
from meshlab.ztunnel import admin, headers
from meshlab.ztunnel.access_log import AccessLog, Record


def _get(pages: dict[str, status.Page], request: bytes) -> bytes:
    async def scenario() -> bytes:
        server = await status.serve("127.0.0.1", 0, pages)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        server.close()
        return answer

    return asyncio.run(scenario())


def test_ready_is_a_200_and_pending_a_500_that_names_what_is_waited_for() -> None:
    waiting = ["state manager", "workload proxy manager"]
    pages = {"/healthz/ready": status.readiness(lambda: waiting)}
    request = b"GET /healthz/ready HTTP/1.1\r\nhost: x\r\n\r\n"
    pending = _get(pages, request)
    assert pending.startswith(b"HTTP/1.1 500 ")
    assert pending.endswith(b"not ready, pending: state manager, workload proxy manager\n")
    waiting.clear()
    assert _get(pages, request).startswith(b"HTTP/1.1 200 ")


def test_the_configuration_is_what_is_kept_and_not_only_its_names() -> None:
    denies = policy("no-client", "DENY", destination_ports=[8080])
    state = state_of(workload("client", "10.1.0.1", "fd00:1::1"), policies=(denies,))
    certificates = Certificates(_issues_nothing, lambda: 0.0, asyncio.sleep, random.Random(0), Tasks())  # noqa: S311
    _, text = admin.config_dump(state, certificates)()
    dump = json.loads(text)
    kept = dump["workloads"]["Kubernetes//Pod/shop/client"]
    assert kept["addresses"] == ["10.1.0.1", "fd00:1::1"]
    assert kept["identity"] == "spiffe://cluster.local/ns/shop/sa/client"
    assert dump["policies"]["shop/no-client"]["action"] == "DENY"
    assert dump["services"] == {}
    assert dump["certificates"] == []


async def _issues_nothing(identity: SpiffeId) -> Credentials:
    raise CertificateError(f"no certificate for {identity}")


@pytest.mark.parametrize(
    ("request_line", "code"), [(b"GET /else HTTP/1.1", b"404"), (b"POST / HTTP/1.1", b"400"), (b"\x16\x03\1", b"400")]
)
def test_anything_else_is_an_error(request_line: bytes, code: bytes) -> None:
    assert _get({}, request_line + b"\r\n\r\n").split()[1] == code


def _target(text: str, port: int) -> Target:
    return Target(ip_address(text), port)


def _record(**changes: Any) -> Record:
    fields = {"direction": "inbound", "source": _target("10.1.0.1", 40000), "destination": _target("10.2.0.2", 15008)}
    return Record(**{**fields, **changes})


def test_a_tunnelled_connection_is_logged_with_both_identities() -> None:
    lines: list[str] = []
    state = state_of(workload("client", "10.1.0.1"), workload("server", "10.2.0.2"))
    record = _record(
        source_workload=named(state, "client"),
        source_identity=who("client"),
        hbone_target="10.2.0.2:8080",
        destination_workload=named(state, "server"),
        destination_identity=who("server"),
    )
    AccessLog(lines.append, log_opened=False).complete(record, sent=12, received=3)
    line = json.loads(lines[0])
    assert line.pop("time").endswith("Z")
    assert line.pop("duration").endswith("ms")
    assert line == {
        "level": "info",
        "scope": "access",
        "message": "connection complete",
        "src.addr": "10.1.0.1:40000",
        "src.workload": "client",
        "src.namespace": "shop",
        "src.identity": "spiffe://cluster.local/ns/shop/sa/client",
        "src.cluster": "Kubernetes",
        "dst.addr": "10.2.0.2:15008",
        "dst.hbone_addr": "10.2.0.2:8080",
        "dst.workload": "server",
        "dst.namespace": "shop",
        "dst.identity": "spiffe://cluster.local/ns/shop/sa/server",
        "dst.cluster": "Kubernetes",
        "direction": "inbound",
        "bytes_sent": 12,
        "bytes_recv": 3,
    }


def test_what_is_not_known_is_left_out_and_an_error_has_its_level() -> None:
    lines: list[str] = []
    log = AccessLog(lines.append, log_opened=True)
    log.opened(_record())
    log.complete(_record(), error="no")
    opened, complete = map(json.loads, lines)
    assert (opened["level"], complete["level"], complete["error"]) == ("debug", "error", "no")
    assert not {name for name in complete if name.startswith(("src.w", "src.i", "dst.h", "dst.s"))}


def test_opened_connections_are_not_told_where_nobody_asked() -> None:
    lines: list[str] = []
    AccessLog(lines.append, log_opened=False).opened(_record())
    assert lines == []


def test_a_connect_says_for_whom_it_is() -> None:
    client = workload("client", "10.1.0.1", workload_type="POD", workload_name="client", canonical_name="client")
    rng = random.Random(1)  # noqa: S311  # a test's
    said = headers.connect_headers(named(state_of(client), "client"), "10.1.0.1:40000", "h.example", rng)
    assert said["forwarded"] == 'for="10.1.0.1:40000";host=h.example'
    assert said["baggage"] == (
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=client,service.name=client"
    )
    version, trace, parent, flags = said["traceparent"].split("-")
    assert (version, len(trace), len(parent), flags) == ("00", 32, 16, "00")
