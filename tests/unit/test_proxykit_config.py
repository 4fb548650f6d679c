"""The environment of the reference ztunnel is that of the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshlab.proxykit.config import Config

PEM = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"


def test_roots_and_token_may_be_literals() -> None:
    config = Config.from_env({"XDS_ROOT_CA": PEM, "CA_ROOT_CA": PEM, "AUTH_TOKEN": "secret"})
    assert config.xds_root_pem == config.ca_root_pem == PEM.encode()
    assert config.metadata == (("authorization", "Bearer secret"), ("clusterid", "Kubernetes"))


def test_roots_and_token_may_be_paths(tmp_path: Path) -> None:
    root, token = tmp_path / "root.pem", tmp_path / "token"
    root.write_text(PEM)
    token.write_text("secret\n")
    config = Config.from_env({"XDS_ROOT_CA": str(root), "AUTH_TOKEN": str(token)})
    assert (config.xds_root_pem, config.token) == (PEM.encode(), "secret")


def test_without_a_token_nothing_is_said_of_who_asks() -> None:
    assert Config.from_env({"CLUSTER_ID": "east"}).metadata == ()


@pytest.mark.parametrize("address", ["10.0.0.1:15012", "https://10.0.0.1:15012"])
def test_an_address_may_have_the_only_scheme_there_is(address: str) -> None:
    assert Config.from_env({"XDS_ADDRESS": address}).xds_address == "10.0.0.1:15012"


@pytest.mark.parametrize("address", ["", "istiod", "http://istiod:15010"])
def test_an_address_without_tls_or_port_is_refused_by_name(address: str) -> None:
    with pytest.raises(ValueError, match="CA_ADDRESS"):
        Config.from_env({"CA_ADDRESS": address})


@pytest.mark.parametrize(("text", "seconds"), [("2s", 2), ("500ms", 0.5), ("1m", 60), ("1.5h", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert Config.from_env({"CONNECTION_TERMINATION_DEADLINE": text}).drain_s == seconds


@pytest.mark.parametrize("text", ["60", "9" * 400 + "h"], ids=["without a unit", "without an end"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="SECRET_TTL"):
        Config.from_env({"SECRET_TTL": text})


@pytest.mark.parametrize(("level", "opened"), [("info,access=debug", True), ("info", False)])
def test_opened_connections_are_logged_where_the_access_log_is_at_debug(level: str, *, opened: bool) -> None:
    assert Config.from_env({"RUST_LOG": level}).log_opened is opened


def test_tls_secrets_go_where_sslkeylogfile_says_and_else_nowhere() -> None:
    assert Config.from_env({"SSLKEYLOGFILE": "/proc/self/fd/7"}).keylog == "/proc/self/fd/7"
    assert Config.from_env({}).keylog == ""


@pytest.mark.parametrize(("period", "seconds"), [("30", 25), ("11", 6), ("10", 9), ("2", 1), ("1", 1)])
def test_open_connections_end_before_kubernetes_kills_the_pod(period: str, seconds: float) -> None:
    assert Config.from_env({"TERMINATION_GRACE_PERIOD_SECONDS": period}).drain_s == seconds
    both = {"TERMINATION_GRACE_PERIOD_SECONDS": period, "CONNECTION_TERMINATION_DEADLINE": "2s"}
    assert Config.from_env(both).drain_s == 2
    assert Config.from_env({}).drain_s == 5


def test_the_limits_of_the_pool() -> None:
    env = {"POOL_MAX_STREAMS_PER_CONNECTION": "7", "POOL_UNUSED_RELEASE_TIMEOUT": "3s"}
    config = Config.from_env(env)
    assert (config.pool_max_streams, config.pool_idle_s) == (7, 3)
    assert (Config.from_env({}).pool_max_streams, Config.from_env({}).pool_idle_s) == (100, 300)


@pytest.mark.parametrize("text", ["0", "-1", "many", "9" * 30, "²"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="POOL_MAX_STREAMS_PER_CONNECTION"):
        Config.from_env({"POOL_MAX_STREAMS_PER_CONNECTION": text})
