"""The environment of a ztunnel, read once: the same variables as the real one's.

Source: https://github.com/istio/ztunnel/blob/master/src/config.rs
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_DEFAULT_UDS = "/var/run/ztunnel/ztunnel.sock"
_DEFAULT_CONTROL_PLANE = "localhost:15012"
_ISTIO_ROOT = "./var/run/secrets/istio/root-cert.pem"
_TOKEN = "./var/run/secrets/tokens/istio-token"  # noqa: S105  # where Kubernetes mounts it
_DURATION = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)(ms|s|m|h)")
_DRAIN_S = 5.0
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    uds: str
    """Path of the agent's ZDS socket."""
    xds_address: str
    """``host:port``; always TLS, verified against ``xds_root_pem``."""
    ca_address: str
    xds_root_pem: bytes
    ca_root_pem: bytes
    token: str
    """Bearer token for both; empty: none is sent."""
    node_name: str
    """Workloads of this node get their certificates before the first call; empty: none do."""
    cluster_id: str
    instance_ip: str
    pod_name: str
    pod_namespace: str
    secret_ttl_s: int
    """Validity that is asked for, in each CSR."""
    drain_s: float
    """How long open connections may go on after SIGTERM."""
    pool_max_streams: int
    """How many streams share a connection of the pool at most."""
    pool_idle_s: float
    """How long a connection of the pool is kept that nobody uses."""
    log_opened: bool
    """Whether the access log also tells of connections as they open."""
    keylog: str
    """Where the secrets of its TLS sessions go, so that a capture can be read; never a private key. Empty: nowhere."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Config:
        """Read a process's environment.

        Raises:
            ValueError: a value that cannot be used; the message names the variable.
        """
        return cls(
            uds=env.get("INPOD_UDS", _DEFAULT_UDS),
            xds_address=_address(env, "XDS_ADDRESS"),
            ca_address=_address(env, "CA_ADDRESS"),
            xds_root_pem=_file_or_literal(env.get("XDS_ROOT_CA", _ISTIO_ROOT)).encode(),
            ca_root_pem=_file_or_literal(env.get("CA_ROOT_CA", _ISTIO_ROOT)).encode(),
            token=_token(env.get("AUTH_TOKEN", _TOKEN)),
            node_name=env.get("NODE_NAME", ""),
            cluster_id=env.get("CLUSTER_ID", "Kubernetes"),
            instance_ip=env.get("INSTANCE_IP", ""),
            pod_name=env.get("POD_NAME", ""),
            pod_namespace=env.get("POD_NAMESPACE", ""),
            secret_ttl_s=int(_duration_s(env, "SECRET_TTL", 86_400)),
            drain_s=_duration_s(env, "CONNECTION_TERMINATION_DEADLINE", _within_grace_period_s(env)),
            pool_max_streams=_count(env, "POOL_MAX_STREAMS_PER_CONNECTION", 100),
            pool_idle_s=_duration_s(env, "POOL_UNUSED_RELEASE_TIMEOUT", 300),
            log_opened="access=debug" in env.get("RUST_LOG", ""),
            keylog=env.get("SSLKEYLOGFILE", ""),
        )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every gRPC call carries, as the real one sends it."""
        return (("authorization", f"Bearer {self.token}"), ("clusterid", self.cluster_id)) if self.token else ()


def _address(env: Mapping[str, str], name: str) -> str:
    text = env.get(name, _DEFAULT_CONTROL_PLANE).removeprefix("https://")
    if "://" in text or not text.rpartition(":")[2].isdecimal():
        raise ValueError(f"{name}={text!r} is not HOST:PORT or https://HOST:PORT (the control plane is reached by TLS)")
    return text


def _file_or_literal(value: str) -> str:
    return value if "-----BEGIN" in value or not os.path.exists(value) else Path(value).read_text()


def _token(value: str) -> str:
    if os.path.exists(value):
        return Path(value).read_text().strip()
    return "" if value == _TOKEN else value


def _count(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:10]) < 1 << 31):
        raise ValueError(f"{name}={text!r} is not a whole number of at least 1")
    return int(text)


def _within_grace_period_s(env: Mapping[str, str]) -> float:
    """The deadline of connections that ends before Kubernetes kills the pod: it leaves 5 s of more than 10, or 1."""
    if "TERMINATION_GRACE_PERIOD_SECONDS" not in env:
        return _DRAIN_S
    period_s = _count(env, "TERMINATION_GRACE_PERIOD_SECONDS", 0)
    return period_s - 5 if period_s > 10 else max(1, period_s - 1)


def _duration_s(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name)
    if text is None:
        return default
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{name}={text!r} is not a duration such as 5s, 500ms or 24h")
    return float(match[1]) * _SECONDS[match[2]]
