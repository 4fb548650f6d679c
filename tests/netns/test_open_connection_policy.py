"""A connection that is open when policies begin to deny it ends; one that is still allowed goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import histories
import pytest

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

FROM_CLIENT = "[{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]"
AT_NO_PORT = "[{to: [{operation: {ports: ['1']}}]}]"


def policy(rules: str, *, selects: str = "") -> str:
    """A DENY policy with these rules, of the namespace or of the pods with ``app: selects``."""
    selector = f"selector: {{matchLabels: {{app: {selects}}}}}, " if selects else ""
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: changes, namespace: shop}}
spec: {{{selector}action: DENY, rules: {rules}}}
"""


DENYING = [
    pytest.param("", policy(FROM_CLIENT), id="new-for-the-namespace"),
    pytest.param("", policy(FROM_CLIENT, selects="server"), id="new-by-selector"),
    pytest.param(policy(AT_NO_PORT, selects="server"), policy(FROM_CLIENT, selects="server"), id="rules-change"),
    pytest.param(policy(AT_NO_PORT), policy(FROM_CLIENT, selects="server"), id="gets-a-selector"),
]


@pytest.mark.parametrize(("before", "after"), DENYING)
@pytest.mark.parametrize("to", ["server:80", "shop/server:8080"])
def test_a_connection_ends_when_a_policy_begins_to_deny_it(
    to: str, before: str, after: str, lab_factory: LabFactory
) -> None:
    with lab_factory(histories.LAB, ztunnel="reference") as lab:
        if before:
            lab.apply(before)
        line, other = lab.pod("shop/client").connect(to), lab.pod("shop/near").connect(to)
        assert line.ask()
        assert other.ask()
        lab.apply(after)
        assert line.wait_closed() in {"peer", "peer-reset"}
        assert other.ask(b"still") == b"still"


@pytest.mark.parametrize(
    "after",
    [policy(AT_NO_PORT), policy(FROM_CLIENT, selects="nobody")],
    ids=["another-port", "another-pod"],
)
def test_a_connection_goes_on_when_a_policy_comes_that_does_not_deny_it(after: str, lab_factory: LabFactory) -> None:
    with lab_factory(histories.LAB, ztunnel="reference") as lab:
        line = lab.pod("shop/client").connect("shop/server:8080")
        assert line.ask()
        lab.apply(after)
        assert lab.pod("shop/client").http(histories.SERVER_URL).answered
        assert line.ask(b"still") == b"still"
