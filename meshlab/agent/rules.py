"""The in-pod rules of one pod: written through sockets that are opened inside it, read back, and taken away again."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from meshlab.kernel.namespaces import in_netns
from meshlab.kernel.netlink import NETLINK_ROUTE, RouteSocket
from meshlab.kernel.nft_wire import NETLINK_NETFILTER
from meshlab.kernel.nftables import NftSocket
from meshlab.plan import nft
from meshlab.plan.changes import Removed
from meshlab.plan.redirect import Redirection


def write(netns: int, name: str, redirection: Redirection) -> None:
    """Write the rules into ``netns`` and make sure that the kernel holds them, and not something like them.

    Raises:
        KernelRefusedError: the kernel refused them.
        ValueError: what it gives back is not what was written.
    """
    with _opened(netns, name) as (routes, rules):
        _write(routes, rules, redirection)


def ensure(netns: int, name: str, redirection: Redirection) -> bool:
    """As ``write``, but only where ``netns`` does not hold these rules already; whether they were written.

    Rules that are right are not touched: neither their counters nor anything that is open.
    """
    with _opened(netns, name) as (routes, rules):
        routes.apply(redirection.routing, present_is_fine=True)
        if _holds(rules, redirection.ruleset):
            return False
        _write(routes, rules, redirection)
        return True


def remove(netns: int, name: str, redirection: Redirection, closing: contextlib.ExitStack) -> None:
    """Take away what ``write`` has written, and nothing else; what is gone already is no error.

    Args:
        closing: closes the sockets. Linux makes whoever closes one wait until the deleted tables are freed, 13 ms;
            where those of many pods are closed together, that is waited for once.

    Raises:
        KernelRefusedError: the kernel refused it.
    """
    routes, rules = closing.enter_context(_opened(netns, name))
    rules.delete(table.name for table in redirection.ruleset)
    routes.apply([Removed(change, absent_is_fine=True) for change in reversed(redirection.routing)])


def read(netns: int, name: str, redirection: Redirection) -> nft.Ruleset:
    """The tables of ``redirection`` as they are in ``netns`` now; those that are absent are left out."""
    with _opened(netns, name) as (_, rules):
        return rules.read(redirection.ruleset)


def _write(routes: RouteSocket, rules: NftSocket, redirection: Redirection) -> None:
    routes.apply(redirection.routing, present_is_fine=True)
    rules.apply(redirection.ruleset)
    if (found := rules.read(redirection.ruleset)) != redirection.ruleset:
        raise ValueError(f"the kernel holds other rules than were written:\n{nft.text(found)}")


def _holds(rules: NftSocket, ruleset: nft.Ruleset) -> bool:
    try:
        return rules.read(ruleset) == ruleset
    except ValueError:  # something is in our tables that no plan has
        return False


@contextlib.contextmanager
def _opened(netns: int, name: str) -> Iterator[tuple[RouteSocket, NftSocket]]:
    with contextlib.ExitStack() as stack:
        with in_netns(netns):
            sockets = [
                stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol))
                for protocol in (NETLINK_ROUTE, NETLINK_NETFILTER)
            ]
        yield RouteSocket(sockets[0], name), NftSocket(sockets[1], name)
