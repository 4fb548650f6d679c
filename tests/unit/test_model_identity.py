"""Which texts are identities: those of Istio's shape that are SPIFFE ids, and no others."""

from __future__ import annotations

import pytest

from meshlab.model import SpiffeId

RIGHT = "spiffe://cluster.local/ns/shop/sa/client"


@pytest.mark.parametrize(
    "uri",
    [
        RIGHT,
        "spiffe://td_1.example-2/ns/Shop_1/sa/a.b-c",
        "spiffe://td/ns/.../sa/..a",
        f"spiffe://{'t' * 255}/ns/n/sa/s",
    ],
)
def test_an_identity_is_read_as_it_is_written(uri: str) -> None:
    assert str(SpiffeId.parse(uri)) == uri


@pytest.mark.parametrize(
    "uri",
    [
        f"{RIGHT}?x=1",
        f"{RIGHT}#x",
        f"{RIGHT}/",
        f"{RIGHT}\n",
        f"{RIGHT}/more",
        "spiffe://cluster.local/ns/shop/sa/%63lient",
        "spiffe://cluster.local/ns/shop/sa/",
        "spiffe://cluster.local/ns//sa/client",
        "spiffe://cluster.local/ns/./sa/client",
        "spiffe://cluster.local/ns/shop/sa/..",
        "spiffe://cluster.local/ns/sh\u00f6p/sa/client",
        "spiffe:///ns/shop/sa/client",
        "spiffe://Cluster.local/ns/shop/sa/client",
        "spiffe://cluster.local:443/ns/shop/sa/client",
        "spiffe://user@cluster.local/ns/shop/sa/client",
        "SPIFFE://cluster.local/ns/shop/sa/client",
        "https://cluster.local/ns/shop/sa/client",
        f"spiffe://{'t' * 256}/ns/n/sa/s",
        f"spiffe://t/ns/n/sa/{'s' * 2048}",
    ],
)
def test_what_is_no_spiffe_id_of_istios_shape_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="is not spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT"):
        SpiffeId.parse(uri)
