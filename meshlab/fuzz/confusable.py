"""Which values of a policy a proxy may take for each other, since they are equal but for one thing. Pure."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_network


@lru_cache(maxsize=4096)
def confusable(value: str) -> tuple[str, ...]:
    """Values of the same field that a proxy may take for ``value``, since they are equal but for one thing.

    >>> confusable("td/ns/Shop/*"), confusable("10.0.0.0/8"), confusable("8080")
    (('td/ns/shop/*', 'td/ns/*'), ('10.0.0.0/9', '10.0.0.0/7'), ('8079', '8081'))
    """
    if value.isascii() and value.isdigit():
        return (str(int(value) - 1), str(int(value) + 1))
    try:
        network = ip_network(value, strict=False)
    except ValueError:
        return tuple(text for text in dict.fromkeys((value.lower(), _one_part_less(value))) if text != value)
    longer = [next(network.subnets())] if network.prefixlen < network.max_prefixlen else []
    return tuple(map(str, [*longer, *([network.supernet()] if network.prefixlen else [])]))


def _one_part_less(pattern: str) -> str:
    """The prefix or suffix ``pattern`` without the part that is at its star."""
    if pattern.endswith("*"):
        kept, slash, _ = pattern.removesuffix("/*").removesuffix("*").rpartition("/")
        return f"{kept}{slash}*"
    if pattern.startswith("*"):
        _, slash, kept = pattern.removeprefix("*/").removeprefix("*").partition("/")
        return f"*{slash}{kept}"
    return pattern
