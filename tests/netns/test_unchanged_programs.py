"""Programs that people run, as pods and unchanged: postgres, nginx, curl, redis, iperf3.

``MESHLAB_BULK_MIB`` says how much nginx and curl move each way (64; 1024 shows more).
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import pytest

from meshlab.lab.running.programs import CLEAN_ENV

if TYPE_CHECKING:
    from meshlab.kernel.execute import Completed
    from meshlab.lab import Lab
    from meshlab.lab.pod import PodHandle

    LabFactory = Callable[..., AbstractContextManager[Lab]]

BULK_MIB = int(os.environ.get("MESHLAB_BULK_MIB", "64"))
PIECE_MIB = 16
"""Of these, both what was sent and what came back fit into the 64 MiB of an emptyDir."""
CONNECTIONS = 1000
MESH = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: unchanged-programs}
spec:
  nodes: [node-1, node-2]
  readyTimeoutSeconds: 30
  pods:
    shop/client: {node: node-1, serviceAccount: client, emptyDirs: [/mnt]}
    shop/server: {node: node-2, serviceAccount: server, labels: {app: server}, capabilities: [SETFCAP], %s}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec: {selector: {app: server}, ports: [{port: %d}]}
"""
DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: changes, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/%s]}}]}]
"""
AS_NOT_ROOT = "unshare --user --map-user=1 --map-group=1"
"""Postgres refuses to run as root, and a rootless lab has one user: that gets the number of daemon."""
POSTGRES = f"""
initdb=$(readlink -f "$(command -v postgres)"); initdb=${{initdb%/*}}/initdb
mkdir -m 700 /srv/db
{AS_NOT_ROOT} "$initdb" -D /srv/db -A trust -U postgres --no-sync >/dev/null
echo "host all all all trust" >>/srv/db/pg_hba.conf
exec {AS_NOT_ROOT} postgres -D /srv/db -c listen_addresses="*" -c unix_socket_directories=/srv -c fsync=off
"""
NGINX = """
mkdir -p /srv/files /srv/tmp
cat >/srv/nginx.conf <<END
user root root; daemon off; master_process off; pid /srv/pid; error_log stderr;
events {}
http {
  access_log off; client_max_body_size 0;
  client_body_temp_path /srv/tmp; proxy_temp_path /srv/tmp/p; fastcgi_temp_path /srv/tmp/f;
  uwsgi_temp_path /srv/tmp/u; scgi_temp_path /srv/tmp/s;
  server { listen [::]:8080 ipv6only=off; root /srv/files; dav_methods PUT; }
}
END
exec nginx -e stderr -c /srv/nginx.conf
"""


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program, path=CLEAN_ENV["PATH"]) is None]
    return pytest.mark.skipif(bool(missing), reason=f"a program that a pod would run is not installed: {missing}")


def mesh(port: int, *argv: str) -> str:
    """A client, which is the built-in echo, and a server that runs ``argv``."""
    run = ", ".join(f"'{word}'" if "\n" not in word else _quoted(word) for word in argv)
    return MESH % (f"ports: [{port}], emptyDirs: [/srv], run: [{run}]", port)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


class Session:
    """One ``psql`` of the client: it asks, waits for ``go``, and asks again on the same connection."""

    SCRIPT = b"SELECT 'first ' || pg_backend_pid();\n\\! echo >/mnt/ready; cat /mnt/go\nSELECT 'second';\n"

    def __init__(self, lab: Lab) -> None:
        self._client = lab.pod("shop/client")
        assert self._client.exec("mkfifo", "/mnt/ready", "/mnt/go").status == 0
        self._ended: list[Completed] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._client.exec("cat", "/mnt/ready").status == 0

    def _run(self) -> None:
        self._ended.append(
            self._client.exec(
                *("psql", "-h", "server", "-U", "postgres", "-At", "-v", "ON_ERROR_STOP=1"), stdin=self.SCRIPT
            )
        )

    def go_on(self) -> Completed:
        """Let it ask again, and return how it ended."""
        assert self._client.exec("sh", "-c", "echo >/mnt/go").status == 0
        self._thread.join()
        return self._ended[0]


@contextmanager
def a_session(lab_factory: LabFactory) -> Iterator[tuple[Lab, Session]]:
    with lab_factory(mesh(5432, "sh", "-ec", POSTGRES), ztunnel="reference") as lab:
        yield lab, Session(lab)


@needs("postgres", "psql", "unshare")
@pytest.mark.parametrize("change", ["policy", "label of the client", "label of the server"])
def test_a_session_with_postgres_outlives_what_allows_it(change: str, lab_factory: LabFactory) -> None:
    with a_session(lab_factory) as (lab, session):
        match change:
            case "policy":
                lab.apply(DENY % "nobody")
            case "label of the client":
                lab.pod("shop/client").label({"tier": "gold"})
            case _:
                lab.pod("shop/server").label({"tier": "gold"})
        ended = session.go_on()
        assert (ended.status, ended.stdout.split()[-1]) == (0, b"second"), ended


@needs("postgres", "psql", "unshare")
@pytest.mark.parametrize("change", ["a policy", "the server is deleted"])
def test_a_session_with_postgres_is_cut_by_what_denies_it(change: str, lab_factory: LabFactory) -> None:
    with a_session(lab_factory) as (lab, session):
        if change == "a policy":
            lab.apply(DENY % "client")
        else:
            lab.delete("{apiVersion: v1, kind: Pod, metadata: {name: server, namespace: shop}}")
        ended = session.go_on()
        assert b"second" not in ended.stdout
        assert ended.status != 0


@needs("nginx", "curl", "openssl")
@pytest.mark.parametrize("family", [4, 6])
def test_nginx_and_curl_move_much_each_way(family: int, lab_factory: LabFactory) -> None:
    with lab_factory(mesh(8080, "sh", "-ec", NGINX), ztunnel="reference") as lab:
        client, server = lab.pod("shop/client"), lab.pod("shop/server")
        curl = ("curl", f"-{family}", "-sSf", "--max-time", "60")
        for number in range(BULK_MIB // PIECE_MIB):
            made = (
                f"openssl enc -aes-128-ctr -nosalt -k {number} </dev/zero 2>/dev/null | head -c {PIECE_MIB}M >/mnt/up"
            )
            assert client.exec("sh", "-c", made).status == 0
            sent = client.exec(*curl, "-T", "/mnt/up", "http://server:8080/up", timeout_s=70)
            assert sent.status == 0, sent
            got = client.exec(*curl, "-o", "/mnt/down", "http://server:8080/up", timeout_s=70)
            assert got.status == 0, got
            assert _hash(client, "/mnt/up") == _hash(server, "/srv/files/up") == _hash(client, "/mnt/down")


def _hash(pod: PodHandle, path: str) -> bytes:
    summed = pod.exec("sha256sum", path, timeout_s=60)
    assert summed.status == 0, summed
    return summed.stdout.split()[0]


@needs("redis-server", "redis-cli")
def test_redis_keeps_what_it_is_given(lab_factory: LabFactory) -> None:
    argv = ("redis-server", "--bind", "::", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", "/srv")
    with lab_factory(mesh(6379, *argv), ztunnel="reference") as lab:
        client = lab.pod("shop/client")
        value = bytes(range(33, 123)) * 10_000
        assert client.exec("redis-cli", "-h", "server", "-x", "set", "key", stdin=value).stdout == b"OK\n"
        assert client.exec("redis-cli", "-h", "server", "get", "key").stdout.rstrip(b"\n") == value
        loaded = client.exec("redis-benchmark", "-h", "server", "-t", "set,get", "-n", "2000", "-c", "50", "-q")
        assert loaded.status == 0, loaded
        assert b"requests per second" in loaded.stdout


@needs("iperf3")
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("direction", [(), ("-R",)], ids=["there", "back"])
def test_iperf3_runs(family: int, direction: tuple[str, ...], lab_factory: LabFactory) -> None:
    with lab_factory(mesh(5201, "iperf3", "-s"), ztunnel="reference") as lab:
        run = ("iperf3", f"-{family}", "-c", "server", "-n", "32M", "-P", "4", "--connect-timeout", "5000")
        ended = lab.pod("shop/client").exec(*run, *direction)
        assert ended.status == 0, ended


def test_a_thousand_connections_are_open_at_once(lab_factory: LabFactory) -> None:
    with lab_factory(MESH % ("ports: [8080]", 8080), ztunnel="reference") as lab:
        lines = lab.pod("shop/client").connect_many("server:8080", CONNECTIONS)
        assert len({line.number for line in lines}) == CONNECTIONS
        assert all(line.alive for line in lines)
        assert {line.ask(b"still") for line in lines} == {b"still"}
