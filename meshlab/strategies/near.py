"""Values of policies that are near to what a connection has: about half of them match it.

«Near» is the value itself, what a prefix or a suffix of it would match, its neighbour one letter, one bit or one port
away, and values of another pod.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from ipaddress import ip_network

from meshlab.model import Address, Connection, Mesh, Pod, SpiffeId
from meshlab.topology.shapes import is_account, is_port_text

_LENGTHS: Mapping[int, tuple[int, ...]] = {
    4: (1, 7, 8, 9, 15, 16, 17, 24, 31, 32),
    6: (1, 32, 47, 48, 49, 63, 64, 65, 112, 127, 128),
}
"""Round the networks of all pods, of a node and of one pod (``model.addresses``)."""


@dataclass(frozen=True)
class Near:
    """What the values of one case are near to. Each method lists values; how often is how likely."""

    base: Mesh
    connection: Connection
    anything: bool = False
    """Also values that Istio's API server refuses, which an evaluator may meet all the same."""

    @cached_property
    def identities(self) -> list[SpiffeId]:
        return sorted({pod.identity(self.base.trust_domain) for pod in self.base.pods})

    @property
    def identity(self) -> SpiffeId:
        return self.connection.source or self.identities[0]

    @property
    def destination(self) -> Pod:
        return self.base.pod(self.connection.destination)

    def namespaces(self) -> list[str]:
        return near_texts(self.identity.namespace, tuple(identity.namespace for identity in self.identities))

    def principals(self) -> list[str]:
        return near_texts(self.identity.principal, tuple(identity.principal for identity in self.identities))

    def service_accounts(self) -> list[str]:
        """``ns/sa``, and ``sa`` alone, which means the policy's own namespace."""
        account = f"{self.identity.namespace}/{self.identity.service_account}"
        fitting = [account, account, self.identity.service_account]
        missing = [f"x{account}", f"{account}x"]
        missing += [f"{self.identity.namespace}/*", "*"]
        missing += [f"{other.namespace}/{other.service_account}" for other in self.identities]
        return _half(fitting, self._valid(missing, is_account))

    def source_ips(self) -> list[str]:
        return near_blocks(self.connection.source_ip)

    def destination_ips(self) -> list[str]:
        return near_blocks(self.connection.destination_ip)

    def ports(self) -> list[str]:
        port = self.connection.port
        missing = [str(port + 1), str(port - 1), "80", "9090", str(port)[:-1], f"{port}0", "http", "0"]
        return _half([str(port)], self._valid(missing, is_port_text))

    def policy_namespaces(self) -> list[str]:
        mine, root = self.destination.namespace, self.base.root_namespace
        return [*[mine] * 7, *[root] * 3, *sorted({pod.namespace for pod in self.base.pods})]

    def selectors(self) -> list[dict[str, str] | None]:
        """Everything (two spellings), labels that the destination has, and ones that it nearly has."""
        labels = dict(self.destination.labels)
        fitting: list[dict[str, str] | None] = [None, None, {}, labels, *({k: text} for k, text in labels.items())]
        missing: list[dict[str, str] | None] = [{**labels, "absent": ""}]
        missing += [{key: f"{text}x"} for key, text in labels.items() if text]
        return [*fitting * 3, *missing]

    def _valid(self, values: list[str], valid: Callable[[str], bool]) -> list[str]:
        return values if self.anything else [value for value in values if valid(value)]


def near_identities(identity: SpiffeId) -> list[SpiffeId]:
    """Other trust domains with the same names in them, and names one letter longer."""
    return [
        replace(identity, trust_domain=f"{identity.trust_domain}.example"),
        replace(identity, trust_domain=f"x{identity.trust_domain}"),
        replace(identity, namespace=f"{identity.namespace}x"),
        replace(identity, service_account=f"{identity.service_account}-x"),
    ]


@lru_cache(maxsize=4096)
def near_texts(text: str, others: tuple[str, ...]) -> list[str]:
    """Patterns that match ``text``, that just do not (its middle at an end, say), and that match one of ``others``."""
    middle = len(text) // 2
    fitting = [text, "*", f"{text}*", f"*{text}", f"{text[:middle]}*", f"*{text[middle:]}"]
    missing = [
        f"{text}x",
        f"x{text}",
        text[:-1] or "x",
        text[1:] or "x",
        f"{text}x*",
        f"*x{text}",
        f"{text[1:-1] or 'x'}*",
        f"*{text[1:-1] or 'x'}",
        text.upper(),
        f"{text[0]}*{text[-1]}",
    ]
    return _half(fitting, [*missing, *others])


@lru_cache(maxsize=4096)
def near_blocks(address: Address) -> list[str]:
    """Blocks around ``address``, the blocks beside them, and everything of either family."""
    bits, lengths = address.max_prefixlen, _LENGTHS[address.version]
    around = [f"{address}/{length}" for length in lengths]
    masked = [str(ip_network(block, strict=False)) for block in around]
    beside = [f"{type(address)(int(address) ^ 1 << (bits - length))}/{length}" for length in lengths]
    return _half([str(address), *around, *masked, "0.0.0.0/0", "::/0"], beside)


def _half(fitting: Sequence[str], missing: Sequence[str]) -> list[str]:
    """Both lists, repeated until neither is much likelier than the other."""
    if not missing:
        return [*fitting]
    one, other = max(1, round(len(missing) / len(fitting))), max(1, round(len(fitting) / len(missing)))
    return [*fitting] * one + [*missing] * other


ValuesOf = Mapping[str, Callable[[Near], list[str]]]
"""Name of a field -> values for it."""

SOURCE: ValuesOf = {
    "principals": Near.principals,
    "not_principals": Near.principals,
    "namespaces": Near.namespaces,
    "not_namespaces": Near.namespaces,
    "service_accounts": Near.service_accounts,
    "not_service_accounts": Near.service_accounts,
    "ip_blocks": Near.source_ips,
    "not_ip_blocks": Near.source_ips,
}
OPERATION: ValuesOf = {"ports": Near.ports, "not_ports": Near.ports}
CONDITION: ValuesOf = {
    "source.ip": Near.source_ips,
    "source.namespace": Near.namespaces,
    "source.principal": Near.principals,
    "destination.ip": Near.destination_ips,
    "destination.port": Near.ports,
}
L4_FIELDS: tuple[tuple[str, str], ...] = (
    *(("from", name) for name in SOURCE),
    *(("to", name) for name in OPERATION),
    *((key, name) for key in CONDITION for name in ("values", "not_values")),
)
"""Every field of a rule that L4 judges: ``from``, ``to`` or the key of a condition, and the field's name."""
