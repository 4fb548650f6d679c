"""Istio's metrics of a ztunnel: what a scraper of Prometheus reads on port 15020."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tunnel_world import CLIENT, SERVER, world_of
from ztunnel_world import named, policy, state_of, who, workload

from meshlab.protocols.hbone import Target
from meshlab.protocols.messages import ADDRESS_TYPE
from meshlab.proxykit.certificates import CertificateError
from meshlab.proxykit.pool import TunnelRefusedError
from meshlab.proxykit.tls import TlsError
from meshlab.ztunnel.access_log import Record
from meshlab.ztunnel.flags import response_flag
from meshlab.ztunnel.guard import DeniedError
from meshlab.ztunnel.metrics import MeteredLog, Metrics, metrics_page

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def _page(metrics: Metrics, **changes: Any) -> Samples:
    """Read the page as Prometheus would."""
    xds = SimpleNamespace(messages={ADDRESS_TYPE: 2}, message_bytes={ADDRESS_TYPE: 30}, terminations={"Error": 1})
    pods = SimpleNamespace(**{"served": ["a"], "failing": [], "started": 3, "stopped": 2, **changes})
    status, text = metrics_page(metrics, xds, pods, "0.1.0")()  # type: ignore[arg-type]
    assert status == 200
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return samples


def _one(samples: Samples, name: str) -> tuple[dict[str, str], float]:
    ((labels, value),) = samples[name].items()
    return dict(labels), value


def _record(direction: Any, **changes: Any) -> Record:
    state = state_of(
        workload("client", "10.1.0.1", workload_name="clients", canonical_name="client", canonical_revision="v1"),
        workload("server", "10.2.0.2"),
    )
    fields: dict[str, Any] = {
        "source": Target(ip_address("10.1.0.1"), 40000),
        "source_workload": named(state, "client"),
        "source_identity": who("client"),
        "destination": Target(ip_address("10.2.0.2"), 15008),
        "destination_workload": named(state, "server"),
        "destination_identity": who("server"),
        "service": "server.shop.svc.cluster.local",
        "service_name": "server",
        "service_namespace": "shop",
    }
    return Record(direction=direction, **{**fields, **changes})


def _log(metrics: Metrics) -> MeteredLog:
    return MeteredLog(lambda line: None, metrics, log_opened=False)


def test_a_connection_has_istios_labels() -> None:
    metrics = Metrics()
    log = _log(metrics)
    record = _record("outbound")
    log.opened(record)
    log.complete(record, sent=11, received=22)
    labels, opened = _one(_page(metrics), "istio_tcp_connections_opened_total")
    assert opened == 1
    assert labels == {
        "reporter": "source",
        "source_workload": "clients",
        "source_canonical_service": "client",
        "source_canonical_revision": "v1",
        "source_workload_namespace": "shop",
        "source_principal": "spiffe://cluster.local/ns/shop/sa/client",
        "source_app": "client",
        "source_version": "v1",
        "source_cluster": "Kubernetes",
        "destination_workload": "server",
        "destination_canonical_service": "unknown",
        "destination_canonical_revision": "unknown",
        "destination_workload_namespace": "shop",
        "destination_principal": "spiffe://cluster.local/ns/shop/sa/server",
        "destination_app": "unknown",
        "destination_version": "unknown",
        "destination_cluster": "Kubernetes",
        "destination_service": "server.shop.svc.cluster.local",
        "destination_service_name": "server",
        "destination_service_namespace": "shop",
        "request_protocol": "tcp",
        "response_flags": "-",
        "connection_security_policy": "mutual_tls",
    }


@pytest.mark.parametrize(
    ("direction", "sent", "received"), [("outbound", 11, 22), ("inbound", 22, 11)], ids=["source", "destination"]
)
def test_received_is_what_the_client_said_whoever_reports_it(direction: str, sent: int, received: int) -> None:
    metrics = Metrics()
    _log(metrics).complete(_record(direction), sent=sent, received=received)  # the client said 11 bytes
    samples = _page(metrics)
    assert _one(samples, "istio_tcp_received_bytes_total")[1] == 11
    assert _one(samples, "istio_tcp_sent_bytes_total")[1] == 22


def test_a_connection_that_fails_is_opened_and_closed_as_well_and_says_why() -> None:
    metrics = Metrics()
    record = _record("inbound", source_identity=None)
    record.flag = "DENY"
    _log(metrics).complete(record, error="no")
    samples = _page(metrics)
    assert _one(samples, "istio_tcp_connections_opened_total")[0]["response_flags"] == "-"
    assert _one(samples, "istio_tcp_connections_closed_total")[0]["response_flags"] == "DENY"
    labels, failed = _one(samples, "istio_tcp_connections_failed_total")
    assert (failed, labels["response_flags"], labels["connection_security_policy"]) == (1, "DENY", "unknown")


def test_a_connection_that_ends_in_order_has_not_failed() -> None:
    metrics = Metrics()
    _log(metrics).complete(_record("inbound"))
    assert "istio_tcp_connections_failed_total" not in _page(metrics)


@pytest.mark.parametrize(
    ("failure", "tunnelled", "flag"),
    [
        (DeniedError("no"), False, "DENY"),
        (CertificateError("no"), True, "IDENTITY_ERROR"),
        (TlsError("no"), True, "TLS_FAILURE"),
        (TunnelRefusedError("TLS handshake: no"), True, "TLS_FAILURE"),
        (TunnelRefusedError("http status: 503", 503), True, "CONNECT"),
        (TimeoutError(), True, "NETWORK_POLICY"),
        (TimeoutError(), False, "CONNECT"),
        (ConnectionRefusedError(), False, "CONNECT"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_a_failure_has_the_flag_of_istio(failure: Exception, flag: str, *, tunnelled: bool) -> None:
    assert response_flag(failure, tunnelled=tunnelled) == flag


def test_xds_and_the_pods_of_the_node_are_counted() -> None:
    samples = _page(Metrics(), served=["a", "b"], failing=["c"])
    url = (("url", ADDRESS_TYPE),)
    assert samples["istio_xds_message_total"] == {url: 2}
    assert samples["istio_xds_message_bytes_total"] == {url: 30}
    assert samples["istio_xds_connection_terminations_total"] == {(("reason", "Error"),): 1}
    assert samples["workload_manager_active_proxy_count"] == {(): 2}
    assert samples["workload_manager_pending_proxy_count"] == {(): 1}
    assert samples["workload_manager_proxies_started_total"] == {(): 3}
    assert samples["workload_manager_proxies_stopped_total"] == {(): 2}
    assert samples["istio_build"] == {(("component", "ztunnel"), ("tag", "0.1.0")): 1}


def test_a_call_and_a_refusal_are_counted_by_the_server_that_sees_them() -> None:
    async def scenario() -> None:
        async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"you said " + await reader.read())
            writer.close()

        async with world_of(app, policy("p", "DENY", destination_ports=[1])) as world:
            metrics = Metrics()
            object.__setattr__(world.inbound.shared, "log", _log(metrics))
            tunnel = await world.tunnel()
            reader, writer = await world.call(tunnel)
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"you said hello"
            writer.close()
            with pytest.raises(TunnelRefusedError, match="401"):
                await world.call(tunnel, port=1)
            tunnel.close()
            world.inbound.drain()
            await world.inbound.finished()
        samples = _page(metrics)
        closed = {dict(labels)["response_flags"]: value for labels, value in _closed(samples)}
        assert closed == {"-": 1, "DENY": 1}
        labels = dict(next(iter(samples["istio_tcp_connections_opened_total"])))
        assert (labels["source_principal"], labels["destination_principal"]) == (str(CLIENT), str(SERVER))
        assert sorted(samples["istio_tcp_received_bytes_total"].values()) == [0, 5]
        assert sorted(samples["istio_tcp_sent_bytes_total"].values()) == [0, 14]

    def _closed(samples: Samples) -> Any:
        return samples["istio_tcp_connections_closed_total"].items()

    asyncio.run(scenario())


def test_a_ztunnel_that_nobody_scrapes_does_not_load_the_library() -> None:
    said = "import meshlab.ztunnel.main, sys; print('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout == "False\n"
