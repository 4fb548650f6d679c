"""Where the URL or the address of a call leads, and which ones lead nowhere."""

from __future__ import annotations

import pytest

from meshlab.errors import UsageError
from meshlab.lab.calls.names import Target, behind, read_url, resolve
from meshlab.lab.calls.urls import parse_address
from meshlab.model import Family
from meshlab.topology import load

MESH = load(
    """\
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: names}
spec:
  nodes: [node-1]
  pods:
    shop/client: {}
    shop/server: {ports: [8080], labels: {app: server}}
    shop/both: {ports: [8080]}
    both/server: {ports: [8080]}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
""",
    "names.yaml",
).mesh
CLIENT, SERVER, BOTH = MESH.pod("shop/client"), MESH.pod("shop/server"), MESH.pod("shop/both")


def target(url: str, family: Family | None = None) -> tuple[Target, str]:
    read = read_url(MESH, CLIENT, url)
    return resolve(MESH, CLIENT, read.host, read.port, family), read.path


@pytest.mark.parametrize(
    ("url", "to", "path"),
    [
        ("http://front/", "front.shop:80", "/"),
        ("http://front:80/x?y=1", "front.shop:80", "/x?y=1"),
        ("http://FRONT.shop.svc.cluster.local?y=1#z", "front.shop:80", "/?y=1"),
        ("http://front:/", "front.shop:80", "/"),
        ("http://front/hello:80", "front.shop:80", "/hello:80"),
        ("http://front/a/b:80/c", "front.shop:80", "/a/b:80/c"),
        ("http://server:8080", "shop/server:8080", "/"),
        ("http://shop/server:8080", "shop/server:8080", "/"),
        ("http://shop/server:8080/x?y=1", "shop/server:8080", "/x?y=1"),
        ("http://shop/server:8080?x=1", "shop/server:8080", "/?x=1"),
        ("http://shop%2Fserver:8080/x", "shop/server:8080", "/x"),
        ("http://both%2fserver:8080/", "both/server:8080", "/"),
        ("http://both:80/server:8080", "shop/both:80", "/server:8080"),
        (f"http://{SERVER.ipv4}:1/x:80", "shop/server:1", "/x:80"),
        (f"http://[{SERVER.ipv6}]:65535/", "shop/server:65535", "/"),
    ],
)
def test_a_url_leads_where_it_says(url: str, to: str, path: str) -> None:
    found, what = target(url)
    assert (found.to, what) == (to, path)


def test_a_url_with_two_readings_is_refused_with_a_spelling_of_each() -> None:
    with pytest.raises(UsageError) as refused:
        target("http://both/server:8080/x")
    assert "the host 'both' and as the pod 'both/server'" in str(refused.value)
    assert "http://both:80/server:8080/x or http://both%2Fserver:8080/x" in str(refused.value)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://front:0/", "1 to 65535, not 0"),
        ("http://front:65536/", "1 to 65535, not 65536"),
        (f"http://front:{'9' * 5000}/", "1 to 65535"),
        ("http://shop/server:99999/", "1 to 65535, not 99999"),
        ("http://front:http/", "not HOST:PORT"),
        ("http://front:²/", "percent-encode"),
        ("http://front/a b", "percent-encode"),
        ("http://front/\r\nX: y", "percent-encode"),
        ("http://fro\0nt/", "percent-encode"),
        ("http://[::1:80/", "is no URL"),
        ("http://::1:80/", "in brackets"),
        ("http://[front]:80/", "is no"),
        ("http://[fe80::1%25eth0]:80/", "zone"),
        ("http://me:secret@front/", "names a user"),
        ("https://front/", "the mesh does the TLS"),
        ("http:front", "of the form"),
        ("http://", "of the form"),
        ("http://:80/", "not HOST:PORT"),
        ("front:80", "of the form"),
        ("", "is no URL"),
        ("http://frnt/", "Did you mean 'front'"),
        ("http://shop/servr:8080/", "Did you mean 'shop/server'"),
        ("http://%00/", "is no Service and no pod"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused_with_the_reason(url: str, why: str) -> None:
    with pytest.raises(UsageError, match=why.replace("[", "\\[")):
        target(url)


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("server:80", "server", 80),
        ("shop/server:1", "shop/server", 1),
        ("10.1.2.3:65535", "10.1.2.3", 65535),
        ("[fd00::0001]:80", "fd00::1", 80),
    ],
)
def test_an_address_is_host_and_port(address: str, host: str, port: int) -> None:
    assert parse_address(address) == (host, port)


@pytest.mark.parametrize(
    "address",
    [
        "server",
        "server:",
        "server:0",
        "server:99999",
        "server:²",
        "server:-1",
        ":80",
        "",
        "fd00::1:80",
        "[fe80::1%eth0]:80",
    ],
)
def test_another_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError):
        parse_address(address)


def test_an_ipv4_address_in_ipv6_s_clothes_is_ipv4_on_the_wire() -> None:
    found, _ = target(f"http://[::ffff:{SERVER.ipv4}]:8080/")
    assert found == Target("shop/server:8080", SERVER.ipv4, 8080, 4)


def test_an_address_of_the_other_family_is_refused() -> None:
    with pytest.raises(UsageError, match="is an address of IPv4"):
        target(f"http://{SERVER.ipv4}:8080/", family=6)


@pytest.mark.parametrize("to", ["", "nope", "shop/server", "shop/server:x", "front.shop:²"])
def test_where_a_call_went_has_a_port(to: str) -> None:
    with pytest.raises(UsageError, match="PORT"):
        behind(MESH, to)
