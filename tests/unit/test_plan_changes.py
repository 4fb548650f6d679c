"""What a change says of itself, and which refusals it allows."""

from __future__ import annotations

import errno
from ipaddress import ip_address, ip_network

import pytest

from meshlab.plan.changes import (
    AddressAssign,
    Change,
    End,
    LinkDelete,
    LinkDown,
    LinkGroup,
    LinkGroupDelete,
    MarkRule,
    Removed,
    Route,
    allows,
)

ETH0 = End("eth0", 7)
ROUTE = Route(destination=ip_network("10.1.2.3/32"), end=ETH0)
RULE = MarkRule(family=4, preference=5, mark=1, mask=1, table=7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (LinkDown(ETH0), "set eth0 down"),
        (LinkDelete(ETH0), "delete eth0"),
        (LinkGroup(ETH0, 5), "put eth0 into link group 5"),
        (LinkGroupDelete(5), "delete link group 5"),
        (Removed(ROUTE), "take away what this added: add unicast route 10.1.2.3/32 dev eth0 table 254"),
        (Removed(RULE), "take away what this added: add IPv4 rule 5: fwmark 0x1/0x1 lookup 7"),
        (
            Removed(AddressAssign(ETH0, ip_address("10.0.0.1"))),
            "take away what this added: assign 10.0.0.1 to eth0",
        ),
    ],
    ids=str,
)
def test_a_change_says_what_it_does(change: Change, said: str) -> None:
    assert str(change) == said


@pytest.mark.parametrize(
    ("change", "number", "allowed"),
    [
        (Removed(ROUTE, absent_is_fine=True), errno.ESRCH, True),
        (Removed(RULE, absent_is_fine=True), errno.ENOENT, True),
        (LinkDelete(ETH0, absent_is_fine=True), errno.ENODEV, True),
        (LinkGroupDelete(5, absent_is_fine=True), errno.ENODEV, True),
        (LinkDelete(ETH0, absent_is_fine=True), errno.EPERM, False),
        (LinkDelete(ETH0), errno.ENODEV, False),
        (Removed(ROUTE), errno.ESRCH, False),
        (ROUTE, errno.ENODEV, False),
    ],
    ids=str,
)
def test_only_what_takes_something_away_may_find_it_absent(change: Change, number: int, allowed: bool) -> None:
    assert allows(change, number) is allowed
