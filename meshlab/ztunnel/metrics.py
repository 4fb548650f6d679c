"""Istio's metrics of a ztunnel, which it serves on port 15020.

They are counted in dictionaries, which costs a connection next to nothing. Only a page that is asked for loads
``prometheus_client``, whose format it is written in.

    received bytes  from the client to the server, whichever of the two reports them
    sent bytes      from the server to the client

Bytes are counted when their connection is over. A connection is opened, and later closed, also where policy refuses it;
it has failed where ``response_flags`` says why.

Source: https://istio.io/latest/docs/reference/config/metrics/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from meshlab.model import SpiffeId
from meshlab.proxykit.status import Page
from meshlab.proxykit.xds_client import XdsClient
from meshlab.ztunnel.access_log import AccessLog, Record
from meshlab.ztunnel.pods import Pods
from meshlab.ztunnel.state import Workload

PATHS = ("/metrics", "/stats/prometheus")
LABELS = (
    "reporter",
    *(
        f"{end}_{what}"
        for end in ("source", "destination")
        for what in (
            "workload",
            "canonical_service",
            "canonical_revision",
            "workload_namespace",
            "principal",
            "app",
            "version",
            "cluster",
        )
    ),
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
)
"""Of everything that is counted by connection, in the order of a ``_Labels``."""

_UNKNOWN = "unknown"
_Labels = tuple[str, ...]
_Family = tuple[str, str, tuple[str, ...], Mapping[_Labels, int]]
"""Name without ``_total``, help, names of the labels, and the values by labels."""


class Metrics:
    """What is counted by connection."""

    def __init__(self) -> None:
        self._opened: Counter[_Labels] = Counter()
        self._closed: Counter[_Labels] = Counter()
        self._failed: Counter[_Labels] = Counter()
        self._received: Counter[_Labels] = Counter()
        self._sent: Counter[_Labels] = Counter()

    def opened(self, record: Record) -> None:
        """A connection begins; a second call for it does nothing."""
        if not record.counted:
            record.counted = True
            self._opened[_labels(record)] += 1

    def closed(self, record: Record, *, from_client: int, from_server: int) -> None:
        """A connection is over, after so many bytes each way."""
        self.opened(record)
        labels = _labels(record, record.flag)
        self._closed[labels] += 1
        self._received[labels] += from_client
        self._sent[labels] += from_server
        if record.flag != "-":
            self._failed[labels] += 1

    def families(self) -> Iterator[_Family]:
        yield "istio_tcp_connections_opened", "TCP connections opened", LABELS, self._opened
        yield "istio_tcp_connections_closed", "TCP connections closed", LABELS, self._closed
        yield "istio_tcp_connections_failed", "TCP connections failed", LABELS, self._failed
        yield "istio_tcp_received_bytes", "Bytes that clients sent to servers", LABELS, self._received
        yield "istio_tcp_sent_bytes", "Bytes that servers sent to clients", LABELS, self._sent


class MeteredLog(AccessLog):
    """An access log whose connections are counted as well."""

    def __init__(self, write: Callable[[str], object], metrics: Metrics, *, log_opened: bool) -> None:
        super().__init__(write, log_opened=log_opened)
        self._metrics = metrics

    def opened(self, record: Record) -> None:
        super().opened(record)
        self._metrics.opened(record)

    def complete(self, record: Record, *, sent: int = 0, received: int = 0, error: str = "") -> None:
        super().complete(record, sent=sent, received=received, error=error)
        client, server = (sent, received) if record.direction == "outbound" else (received, sent)
        self._metrics.closed(record, from_client=client, from_server=server)


def _labels(record: Record, flag: str = "-") -> _Labels:
    service = (record.service, record.service_name, record.service_namespace)
    return (
        "destination" if record.direction == "inbound" else "source",
        *_who(record.source_workload, record.source_identity),
        *_who(record.destination_workload, record.destination_identity),
        *(value or _UNKNOWN for value in service),
        "tcp",
        flag,
        "mutual_tls" if record.source_identity else _UNKNOWN,
    )


def _who(workload: Workload | None, identity: SpiffeId | None) -> Iterator[str]:
    if workload is None:
        values = ("", "", "", "", str(identity or ""), "", "", "")
    else:
        values = (
            workload.workload_name or workload.name,
            workload.canonical_name,
            workload.canonical_revision,
            workload.namespace,
            str(identity or ""),
            workload.canonical_name,
            workload.canonical_revision,
            workload.cluster,
        )
    return (value or _UNKNOWN for value in values)


# --- the page --------------------------------------------------------------------------------------------------------


def metrics_page(metrics: Metrics, xds: XdsClient, pods: Pods, version: str) -> Page:
    """Everything that this ztunnel counts, in Prometheus' text format."""

    def page() -> tuple[int, str]:
        counters = [*metrics.families(), *_of_xds(xds), *_of_starts(pods)]
        return 200, _exposition(counters, [*_of_pods(pods), _build(version)])

    return page


def _of_xds(xds: XdsClient) -> Iterator[_Family]:
    yield "istio_xds_message", "xDS messages received", ("url",), _by_one(xds.messages)
    yield "istio_xds_message_bytes", "Bytes of xDS messages received", ("url",), _by_one(xds.message_bytes)
    yield "istio_xds_connection_terminations", "xDS streams that ended", ("reason",), _by_one(xds.terminations)


def _of_starts(pods: Pods) -> Iterator[_Family]:
    yield "workload_manager_proxies_started", "Proxies of pods that were started", (), {(): pods.started}
    yield "workload_manager_proxies_stopped", "Proxies of pods that were stopped", (), {(): pods.stopped}


def _of_pods(pods: Pods) -> Iterator[_Family]:
    yield "workload_manager_active_proxy_count", "Pods that are served", (), {(): len(pods.served)}
    yield "workload_manager_pending_proxy_count", "Pods that cannot be served yet", (), {(): len(pods.failing)}


def _build(version: str) -> _Family:
    return "istio_build", "Istio component build info", ("component", "tag"), {("ztunnel", version): 1}


def _by_one(values: Mapping[str, int]) -> dict[_Labels, int]:
    return {(label,): value for label, value in values.items()}


def _exposition(counters: Iterable[_Family], gauges: Iterable[_Family]) -> str:
    # Here, because the library takes 20 ms to load, which each lab would pay for and hardly any needs.
    from prometheus_client import generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    families: list[Any] = []
    for kind, described in ((CounterMetricFamily, counters), (GaugeMetricFamily, gauges)):
        for name, help_text, labels, values in described:
            family: Any = kind(name, help_text, labels=labels)
            for key, value in values.items():
                family.add_metric(key, value)
            families.append(family)

    return generate_latest(_Collected(families)).decode()


class _Collected:
    """What ``generate_latest`` wants of a registry."""

    def __init__(self, families: list[Any]) -> None:
        self._families = families

    def collect(self) -> list[Any]:
        return self._families
