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
